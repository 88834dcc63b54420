"""The export against closed forms of a conjugate model, and ArviZ's own functions on the result."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import bnnzoo
from bnnzoo import BayesianNetwork, fit, guides, likelihoods, models, priors
from bnnzoo.data import Dataset, Standardization
from bnnzoo.evaluation import arviz_export, names, pareto_k, save_netcdf, to_arviz
from bnnzoo.evaluation.inference_data import import_arviz

az = import_arviz()
NOISE, SCALE, SHIFT = 0.5, 20.0, 300.0


def orthogonal(n=40, seed=0):
    """Data in own units whose standardized inputs are orthogonal: the exact posterior is a product of Gaussians."""
    rng = np.random.default_rng(seed)
    design, _ = np.linalg.qr(np.concatenate([np.ones((n, 1)), rng.normal(size=(n, 2))], 1))
    x = design[:, 1:] * n**0.5
    y = x @ [0.8, -0.4] + NOISE * rng.normal(size=n)
    standardization = Standardization(
        torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.1]), torch.tensor(SHIFT), torch.tensor(SCALE)
    )
    data = Dataset(
        x * [3.0, 0.1] + [1.0, 2.0],
        y * SCALE + SHIFT,
        name="orthogonal",
        feature_names=["age", "dose"],
        standardization=standardization,
    )
    return data, x, y


@pytest.fixture(scope="module")
def exact():
    """A mean-field guide set to the exact posterior of linear regression, with its data and evidence."""
    data, x, y = orthogonal()
    bnn = BayesianNetwork(nn.Linear(2, 1).double(), likelihoods.Gaussian(scale=NOISE))
    posterior = fit(bnn, guides.MeanField(bnn), data, epochs=2, chains=2, lr=1e-3, seed=5)
    design = np.concatenate([x, np.ones((len(y), 1))], 1)  # the order of the sites: weight, bias
    precision = 1 + len(y) / NOISE**2
    loc = design.T @ y / NOISE**2 / precision
    posterior._parameters["guide.loc"][:] = torch.as_tensor(loc)
    posterior._parameters["guide.log_scale"][:] = -0.5 * math.log(precision)
    covariance = NOISE**2 * np.eye(len(y)) + design @ design.T
    evidence = stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y) - len(y) * math.log(SCALE)
    return posterior, data, evidence, (x, y, loc, precision**-0.5)


@pytest.fixture(scope="module")
def idata(exact):
    posterior, data, _, _ = exact
    return posterior.to_arviz(data, x=data.x[:7], num_samples=150, seed=3)


def test_groups_and_dimensions(idata):
    expected = {
        "posterior": {"weight": ("weight_out", "weight_in"), "bias": ("bias_out",)},
        "posterior_predictive": {"y": ("obs",)},
        "log_likelihood": {"y": ("obs",)},
        "predictions": {"y": ("obs",)},
        "prior": {"weight": ("weight_out", "weight_in"), "bias": ("bias_out",)},
        "prior_predictive": {"y": ("obs",)},
        "sample_stats": dict.fromkeys(["log_prior", "log_q", "log_likelihood", "lp", "elbo"], ()),
    }
    for group, variables in expected.items():
        assert {n: v.dims for n, v in idata[group].data_vars.items()} == {
            n: ("chain", "draw", *dims) for n, dims in variables.items()
        }
        assert idata[group].sizes["chain"] == 2
        assert idata[group].sizes["draw"] == (100 if group.startswith("prior") else 150)
    assert idata["observed_data"]["y"].dims == ("obs",)
    assert idata["constant_data"]["x"].dims == ("obs", "feature")
    assert idata["predictions"].sizes["obs"] == idata["predictions_constant_data"].sizes["obs"] == 7
    assert idata["history"]["loss"].dims == ("chain", "epoch")
    assert list(idata["history"]["epoch"].values) == [1, 2]
    assert set(idata.groups()) == {
        *expected,
        "observed_data",
        "constant_data",
        "predictions_constant_data",
        "history",
    }
    for group, dim in (("posterior", "weight_in"), ("prior", "weight_in"), ("constant_data", "feature")):
        assert list(idata[group][dim].values) == ["age", "dose"]


def test_posterior_is_what_sample_draws(exact, idata):
    draws = exact[0].sample(150, seed=3)
    for name, values in draws.items():
        np.testing.assert_array_equal(idata["posterior"][name].values, values.numpy())


def test_densities_are_those_of_the_same_draws(exact, idata):
    _, data, _, (x, _, loc, scale) = exact
    w, b = idata["posterior"]["weight"].values[:, :, 0], idata["posterior"]["bias"].values
    f = (w @ x.T + b) * SCALE + SHIFT
    log_likelihood = stats.norm(f, NOISE * SCALE).logpdf(data.y.numpy())
    # The data set holds its targets in single precision.
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values, log_likelihood, atol=1e-5)
    stat = idata["sample_stats"]
    np.testing.assert_allclose(stat["log_likelihood"].values, log_likelihood.sum(-1), atol=1e-3)
    both = np.concatenate([w, b], -1)
    np.testing.assert_allclose(stat["log_prior"].values, stats.norm.logpdf(both).sum(-1), atol=1e-6)
    np.testing.assert_allclose(stat["log_q"].values, stats.norm(loc, scale).logpdf(both).sum(-1), atol=1e-6)
    np.testing.assert_allclose(stat["lp"].values, (stat["log_prior"] + stat["log_likelihood"]).values)


def test_elbo_of_the_exact_posterior_is_the_evidence_in_every_draw(exact, idata):
    np.testing.assert_allclose(idata["sample_stats"]["elbo"].values, exact[2], atol=1e-4)


def test_predictive_draws_have_the_mean_and_variance_in_own_units(exact):
    posterior, data, _, (x, _, loc, scale) = exact
    draws = 4000
    idata = posterior.to_arviz(data, x=data.x[:7], num_samples=draws, num_prior_samples=draws)
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    spread = NOISE**2 + (design**2).sum(1) * np.array([[scale**2], [1.0]])
    for group, mean, variance, rows in (
        ("posterior_predictive", design @ loc, spread[0], slice(None)),
        ("predictions", design @ loc, spread[0], slice(7)),
        ("prior_predictive", np.zeros(len(x)), spread[1], slice(None)),
    ):
        y = idata[group]["y"].values.reshape(2 * draws, -1)
        z = (y - (mean[rows] * SCALE + SHIFT)) / (variance[rows] ** 0.5 * SCALE)
        assert np.abs(z.mean(0)).max() < 5.5 / (2 * draws) ** 0.5
        assert np.abs(z.var(0) - 1).max() < 5.5 * (2 / (2 * draws)) ** 0.5


def test_pareto_k_of_a_fit(exact, idata):
    assert (pareto_k(idata).values < 0.7).all()
    posterior, data, _, _ = exact
    narrow = posterior._parameters["guide.log_scale"].clone()
    posterior._parameters["guide.log_scale"][:] -= math.log(10)
    try:
        assert (pareto_k(posterior.to_arviz(data, num_samples=500)).values > 0.7).all()
    finally:
        posterior._parameters["guide.log_scale"][:] = narrow


def test_pareto_k_is_refused_for_other_data_and_points(exact):
    posterior, data, _, _ = exact
    with pytest.raises(ValueError, match="these 9 are not the 40 of the fit"):
        pareto_k(posterior.to_arviz(data[:9]))
    with pytest.raises(ValueError, match=r"needs sample_stats\.elbo"):
        pareto_k(posterior.to_arviz())
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(scale=NOISE))
    point = fit(bnn, guides.Map(bnn), data, epochs=1).to_arviz(data)
    assert set(point["sample_stats"].data_vars) == {"log_prior", "log_likelihood", "lp"}
    with pytest.raises(ValueError, match="not Map"):
        pareto_k(point)


def test_arviz_functions_run(exact, idata):
    table = az.summary(idata, kind="stats")
    assert list(table.index) == ["weight[0, age]", "weight[0, dose]", "bias[0]"]
    result = az.loo(idata, reff=1.0)
    assert not result.warning
    assert result.n_data_points == 40
    waic = az.waic(idata)
    assert abs(result.elpd_loo - waic.elpd_waic) < 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning:arviz.*")
def test_arviz_plots_run(idata):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for plot, options in (
        (az.plot_ppc, {"num_pp_samples": 20}),
        (az.plot_ppc, {"group": "prior", "num_pp_samples": 20}),
        (az.plot_trace, {"var_names": ["weight"]}),
        (az.plot_forest, {"combined": True}),
        (az.plot_loo_pit, {"y": "y"}),
    ):
        plot(idata, **options)
    plt.close("all")


@pytest.mark.parametrize("container", ["InferenceData", "DataTree"])
def test_netcdf_round_trip_of_both_containers(exact, container, tmp_path):
    posterior, data, _, _ = exact
    idata = posterior.to_arviz(data, x=data.x[:3], num_samples=30, container=container)
    back = az.from_netcdf(save_netcdf(idata, tmp_path / "fit.nc"))
    for group in back.groups():
        for name, values in back[group].data_vars.items():
            assert values.equals(idata[group][name]), (group, name)
    assert set(back.groups()) == set(idata.groups() if container == "InferenceData" else idata.children)
    assert back.attrs["guide"] == "MeanField"


def test_the_tree_is_that_of_arviz_base(exact):
    base = pytest.importorskip("arviz_base")  # ArviZ 1.x's own builder
    posterior, data, _, _ = exact
    tree = posterior.to_arviz(data, num_samples=30, container="DataTree")
    theirs = base.from_dict(
        {
            g: {n: v.values for n, v in tree[g].data_vars.items()}
            for g in ("posterior", "log_likelihood", "observed_data")
        },
        coords={"weight_in": ["age", "dose"]},
        dims={"weight": ["weight_out", "weight_in"], "bias": ["bias_out"], "y": ["obs"]},
    )
    for group in theirs.children:
        ours = tree[group].to_dataset()
        assert ours.equals(theirs[group].to_dataset())
    assert base.extract(tree).sizes["sample"] == 60


def test_attributes(exact, idata):
    attrs = idata.attrs
    assert attrs["inference_library"] == "bnnzoo"
    assert attrs["inference_library_version"] == bnnzoo.__version__
    assert (attrs["guide"], attrs["network"]) == ("MeanField", "Linear")
    assert attrs["objective"] == "ELBO(num_particles=1, kl_weight=1.0)"
    assert (attrs["seed"], attrs["export_seed"], attrs["data"]) == (5, 3, "orthogonal")
    assert attrs["fitted_to_these_data"] == 1
    np.testing.assert_allclose(attrs["x_scale"], [3.0, 0.1])
    np.testing.assert_allclose(attrs["y_loc"], [SHIFT])
    assert "notes" not in attrs


def test_without_data(exact):
    posterior, data, _, _ = exact
    assert set(posterior.to_arviz().groups()) == {"posterior", "sample_stats", "prior", "history"}
    groups = set(posterior.to_arviz(x=data.x[:3].numpy(), num_prior_samples=0).groups())
    assert groups == {"posterior", "predictions", "sample_stats", "predictions_constant_data", "history"}


def test_seed_and_global_generator(exact):
    posterior, data, _, _ = exact
    before = torch.get_rng_state()
    one, same, other = (posterior.to_arviz(data, num_samples=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
        assert one[group].equals(same[group])
        assert not one[group].equals(other[group])


def test_blocks_of_rows_do_not_change_densities_and_have_own_noise(exact, monkeypatch):
    posterior, data, _, _ = exact
    whole = posterior.to_arviz(data, num_samples=20)
    monkeypatch.setattr(arviz_export, "_BLOCK", 20 * 2 * 7)
    blocks = posterior.to_arviz(data, num_samples=20)
    np.testing.assert_allclose(blocks["log_likelihood"]["y"], whole["log_likelihood"]["y"])
    for group in ("posterior_predictive", "prior_predictive"):
        assert blocks[group]["y"].shape == whole[group]["y"].shape
        assert len(np.unique(blocks[group]["y"])) == blocks[group]["y"].size
    residual = blocks["posterior_predictive"]["y"] - blocks["posterior_predictive"]["y"].mean(("chain", "draw"))
    same = np.corrcoef(residual[:, :, 0].values.ravel(), residual[:, :, 7].values.ravel())[0, 1]
    assert abs(same) < 0.8  # rows 0 and 7 are first in their blocks


def test_sites_are_chosen_by_pattern(exact):
    posterior, data, _, _ = exact
    idata = posterior.to_arviz(data, sites="we*")
    assert list(idata["posterior"].data_vars) == list(idata["prior"].data_vars) == ["weight"]
    full = posterior.to_arviz(data)
    assert idata["sample_stats"].equals(full["sample_stats"])
    with pytest.raises(ValueError, match=r"'layers\.\*' matches no site; they are weight, bias"):
        posterior.to_arviz(data, sites=["weight", "layers.*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, given 0"),
        ({"num_prior_samples": -1}, "num_prior_samples must be an integer of at least 0"),
        ({"container": "zarr"}, "container must be 'auto', 'InferenceData' or 'DataTree', given 'zarr'"),
        ({"max_bytes": 100}, "max_bytes=100 is too small: a single draw takes"),
        ({"x": np.zeros((3, 5))}, "x has shape"),
    ],
)
def test_bad_arguments(exact, arguments, message):
    posterior, data, _, _ = exact
    with pytest.raises(ValueError, match=message):
        posterior.to_arviz(data, **arguments)


def test_data_that_do_not_fit(exact):
    posterior, data, _, _ = exact
    with pytest.raises(ValueError, match=r"targets have shape \['N'\], those of the data \[40, 2\]"):
        posterior.to_arviz((data.x, torch.stack([data.y, data.y], 1)))


@pytest.fixture(scope="module")
def wide():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    bnn = BayesianNetwork(models.MLP(4, 1, hidden=(60, 30)), likelihoods.Gaussian(scale=0.3))
    data = Dataset(x, x.sum(1))
    return fit(bnn, guides.MeanField(bnn), data, epochs=1, chains=2), data


class TestBudget:
    def test_double_precision_takes_twice_as_much(self, exact):
        posterior, data, _, _ = exact
        size = self.size(posterior.to_arviz(data, num_samples=200))
        with pytest.warns(UserWarning, match="to_arviz"):
            posterior.to_arviz(data, num_samples=200, max_bytes=int(0.95 * size))

    @staticmethod
    def size(idata):
        return sum(idata[group].nbytes for group in idata.groups() if group != "history")

    def test_the_estimate_is_what_it_takes(self, wide):
        posterior, data = wide
        size = self.size(posterior.to_arviz(data, num_samples=200))
        posterior.to_arviz(data, num_samples=200, max_bytes=size)  # no warning
        with pytest.warns(UserWarning, match="to_arviz: 2 x 200 draws would take"):
            posterior.to_arviz(data, num_samples=200, max_bytes=int(0.95 * size))

    def test_fewer_draws_first(self, wide):
        posterior, data = wide
        with pytest.warns(UserWarning, match=r"exported \d+ draws a chain\. Raise max_bytes"):
            idata = posterior.to_arviz(data, num_samples=1000, max_bytes=6_000_000)
        assert self.size(idata) < 6_000_000 + 20_000  # coordinates
        assert 100 < idata["posterior"].sizes["draw"] < 1000
        assert "prior" in idata
        assert idata["log_likelihood"].sizes["draw"] == idata["posterior"].sizes["draw"]
        assert "1000 draws would take" in str(idata.attrs["notes"])

    def test_then_the_prior_then_the_largest_sites(self, wide):
        posterior, data = wide
        with pytest.warns(UserWarning, match=r"the prior groups and the sites layers\.2\.weight\. Raise"):
            idata = posterior.to_arviz(data, num_samples=1000, max_bytes=700_000)
        assert self.size(idata) < 720_000
        assert idata["posterior"].sizes["draw"] >= 100
        assert "layers.2.weight" not in idata["posterior"]
        assert "layers.0.weight" in idata["posterior"]
        assert {"prior", "prior_predictive"}.isdisjoint(idata.groups())
        # densities are those of all sites all the same
        draws = posterior.sample(idata["posterior"].sizes["draw"])
        np.testing.assert_allclose(idata["sample_stats"]["log_q"], posterior.log_q(draws), rtol=1e-5)

    def test_then_fewer_than_a_hundred_draws(self, wide):
        posterior, data = wide
        with pytest.warns(UserWarning, match="exported 2. draws a chain"):
            idata = posterior.to_arviz(data, num_samples=1000, max_bytes=25_000)
        assert "posterior" not in idata
        assert idata["log_likelihood"].sizes["draw"] > 20

    def test_large_inputs_are_left_out(self):
        x = torch.randn(50, 2000)
        bnn = BayesianNetwork(nn.Linear(2000, 1), likelihoods.Gaussian(scale=0.3))
        posterior = fit(bnn, guides.MeanField(bnn), (x, x[:, 0]), epochs=1)
        with pytest.warns(UserWarning, match="left out the prior groups and the inputs"):
            idata = posterior.to_arviz((x, x[:, 0]), max_bytes=1_200_000)
        assert "constant_data" not in idata
        assert "observed_data" in idata


class TestOtherModels:
    """Every likelihood, and dimensions of every kind of layer."""

    @staticmethod
    def export(network, likelihood, inputs, y, prior=priors.Normal(0.0, 1.0), **settings):  # noqa: B008
        bnn = BayesianNetwork(network, likelihood, prior=prior)
        posterior = fit(bnn, guides.MeanField(bnn), (inputs, y), epochs=1, chains=2)
        return posterior.to_arviz((inputs, y), num_samples=30, **settings)

    def test_classes_are_integers(self):
        x = torch.randn(20, 3)
        idata = self.export(nn.Linear(3, 4), likelihoods.Categorical(), x, torch.arange(20) % 4, x=x[:5])
        for group in ("posterior_predictive", "prior_predictive", "predictions", "observed_data"):
            assert idata[group]["y"].dtype.kind == "i"
            assert set(np.unique(idata[group]["y"])) <= set(range(4))
        with pytest.warns(UserWarning, match="shape parameter of Pareto"):  # 60 draws are few
            assert az.loo(idata, reff=1.0).n_data_points == 20

    @pytest.mark.parametrize(
        ("likelihood", "y"),
        [(likelihoods.Bernoulli(), torch.arange(20) % 2), (likelihoods.Poisson(), torch.arange(20) % 5)],
    )
    def test_yes_no_and_counts(self, likelihood, y):
        idata = self.export(nn.Linear(3, 1), likelihood, torch.randn(20, 3), y)
        assert idata["posterior_predictive"]["y"].dtype.kind == idata["observed_data"]["y"].dtype.kind == "i"
        np.testing.assert_array_equal(idata["observed_data"]["y"], y)

    def test_several_targets_are_one_datum(self):
        x, y = torch.randn(20, 3), torch.randn(20, 2)
        idata = self.export(nn.Linear(3, 2), likelihoods.Gaussian(scale=0.3, num_outputs=2), x, y)
        assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "obs", "output")
        assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "obs")
        f = torch.as_tensor(idata["posterior"]["weight"].values) @ x.T + torch.as_tensor(
            idata["posterior"]["bias"].values
        ).unsqueeze(-1)
        density = torch.distributions.Normal(f.movedim(-1, 2), 0.3).log_prob(y).sum(-1)
        np.testing.assert_allclose(idata["log_likelihood"]["y"], density, rtol=1e-4, atol=1e-4)

    def test_a_noise_site_and_heteroscedastic_noise(self):
        import pyro.distributions as dist

        x = torch.randn(20, 3)
        idata = self.export(nn.Linear(3, 1), likelihoods.Gaussian(scale=dist.LogNormal(-1.0, 0.5)), x, x.sum(1))
        assert idata["posterior"]["noise"].dims == ("chain", "draw")
        assert (idata["posterior"]["noise"] > 0).all()
        assert "noise" in idata["prior"]
        self.export(nn.Linear(3, 2), likelihoods.HeteroscedasticGaussian(), x, x.sum(1))

    def test_counts_beyond_any_integer_are_left_as_they_are(self):
        x = 50 * torch.ones(4, 1)
        prior = priors.Normal(0.0, 5.0)
        idata = self.export(nn.Linear(1, 1), likelihoods.Poisson(), x, torch.tensor([0, 1, 2, 3]), prior=prior)
        assert idata["prior_predictive"]["y"].dtype == np.float32
        assert idata["observed_data"]["y"].dtype == np.int32

    def test_dense_labels_and_convolutions(self):
        x = torch.randn(6, 1, 5, 5)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
        idata = self.export(network, likelihoods.Categorical(), x, torch.randint(3, (6, 5, 5)))
        assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "obs", "row", "column")
        assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "obs")
        assert idata["constant_data"]["x"].dims == ("obs", "channel", "height", "width")
        assert idata["posterior"]["0.weight"].dims[2:] == tuple(
            f"0.weight_{n}" for n in ("out", "in", "height", "width")
        )

    def test_an_improper_prior_is_skipped_and_said(self, tmp_path):
        x = torch.randn(20, 3)
        idata = self.export(
            nn.Linear(3, 1),
            likelihoods.Gaussian(scale=0.3),
            x,
            x.sum(1),
            prior={"weight": priors.LogUniform(), "*": None},
        )
        assert {"prior", "prior_predictive"}.isdisjoint(idata.groups())
        assert "the prior of weight is improper" in str(idata.attrs["notes"])
        assert save_netcdf(idata, tmp_path / "noted.nc").is_file()  # netCDF has no lists of strings
        assert "elbo" in idata["sample_stats"]

    def test_parameters_learned_by_each_chain_are_used(self):
        x = torch.randn(20, 3)
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian())
        posterior = fit(bnn, guides.MeanField(bnn), (x, x.sum(1)), epochs=1, chains=2)
        posterior._parameters["model.likelihood.log_scale"][:] = torch.tensor([0.0, 3.0])
        idata = posterior.to_arviz((x, x.sum(1)), num_samples=400, num_prior_samples=400)
        for group in ("posterior_predictive", "prior_predictive"):
            first, second = idata[group]["y"].std(("draw", "obs")).values
            assert second > 4 * first
        assert (idata["sample_stats"]["log_likelihood"][1] < -20 * 3.5).all()

    def test_sampled_draws(self):
        x = torch.randn(20, 2)
        bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(scale=0.5))
        posterior = bnnzoo.sample(bnn, (x, x.sum(1)), num_samples=40, warmup_steps=20, chains=2)
        idata = posterior.to_arviz((x, x.sum(1)))
        assert idata["posterior"].sizes == {"chain": 2, "draw": 40, "weight_out": 1, "weight_in": 2, "bias_out": 1}
        thinned = posterior.to_arviz((x, x.sum(1)), num_samples=10)
        assert thinned["posterior"]["draw"].values[[0, -1]].tolist() == [0, 39]
        np.testing.assert_array_equal(
            thinned["posterior"]["weight"], idata["posterior"]["weight"].sel(draw=thinned["posterior"]["draw"])
        )
        few = posterior.to_arviz((x, x.sum(1)), num_samples=20, num_prior_samples=5)
        assert few["prior"]["draw"].values.tolist() == list(range(5))
        assert "log_q" not in idata["sample_stats"]
        assert "lp" in idata["sample_stats"]
        assert "history" not in idata


@pytest.mark.parametrize(
    ("module", "attribute", "expected"),
    [
        (nn.Linear(2, 3), "weight", ("out", "in")),
        (nn.Linear(2, 3), "bias", ("out",)),
        (nn.Bilinear(2, 3, 4), "weight", ("out", "in1", "in2")),
        (nn.Conv1d(2, 3, 4), "weight", ("out", "in", "kernel")),
        (nn.Conv3d(2, 3, 4), "weight", ("out", "in", "depth", "height", "width")),
        (nn.ConvTranspose2d(2, 3, 4), "weight", ("in", "out", "height", "width")),
        (nn.Embedding(5, 3), "weight", ("token", "feature")),
        (nn.BatchNorm2d(3), "weight", ("channel",)),
        (nn.BatchNorm2d(3), "bias", ("out",)),
        (nn.LayerNorm((3, 4)), "weight", ("dim_0", "dim_1")),
        (nn.LayerNorm((3, 4)), "bias", ("dim_0", "dim_1")),
        (nn.GRU(2, 3), "weight_ih_l0", ("dim_0", "dim_1")),
    ],
)
def test_dimension_names_by_layer(module, attribute, expected):
    shape = tuple(module.get_parameter(attribute).shape)
    for network, site in ((module, attribute), (nn.Sequential(nn.ReLU(), module), f"1.{attribute}")):
        assert names.site_dims(network, site, shape) == tuple(f"{site}_{name}" for name in expected)
    assert names.site_dims(module, "noise", (2,)) == ("noise_output",)
    assert names.site_dims(module, "noise", ()) == ()


def test_only_layers_that_take_the_inputs_are_labeled_with_features():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(3, 1)  # declared first, used last
            self.first = nn.Linear(3, 3)
            self.skip = nn.Linear(3, 1)

        def forward(self, x):
            return self.second(self.first(x).relu()) + self.skip(x)

    x = torch.randn(10, 3)
    bnn = BayesianNetwork(Skip(), likelihoods.Gaussian(scale=1.0))
    data = Dataset(x, x.sum(1), feature_names=["a", "b", "c"])
    posterior = fit(bnn, guides.MeanField(bnn), data, epochs=1)
    assert names.fed_by_inputs(posterior, data.x) == ["first.weight_in", "skip.weight_in"]
    idata = to_arviz(posterior, data, num_samples=5)
    assert list(idata["posterior"]["skip.weight_in"].values) == ["a", "b", "c"]
    assert list(idata["posterior"]["second.weight_in"].values) == [0, 1, 2]
    assert not posterior.bnn.network.first._forward_pre_hooks


def test_a_slash_in_a_module_s_name():
    network = nn.Module()
    network.add_module("a/b", nn.Linear(2, 1))
    network.forward = lambda x: network.get_submodule("a/b")(x)
    assert names.site_dims(network, "a/b.weight", (1, 2)) == ("a_b.weight_out", "a_b.weight_in")

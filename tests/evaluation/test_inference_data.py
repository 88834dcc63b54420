"""The builder of ArviZ's containers, on whichever line of ArviZ is installed.

On ArviZ 1.x this file runs in an interpreter without torch, so it loads the module by its path:
`python3.12 -m pytest --noconftest tests/evaluation/test_inference_data.py`. What a whole export looks like there is
tested on files that `python tests/evaluation/write_export.py FOLDER` wrote beforehand, where torch is; the environment
variable BNNZOO_EXPORTED names the folder.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

_PATH = Path(__file__).parents[2] / "bnnzoo" / "evaluation" / "inference_data.py"
_spec = importlib.util.spec_from_file_location("inference_data", _PATH)
module = importlib.util.module_from_spec(_spec)
sys.modules["inference_data"] = module
_spec.loader.exec_module(module)

az = module.import_arviz()
ONE = int(az.__version__.split(".")[0]) >= 1

# ArviZ's plots and tables warn about their own dependencies and about few draws, none of which is our doing.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:arviz.*")


def conjugate(chains=2, draws=400, n=60, inflate=1.0, seed=0):
    """Bayesian linear regression, known noise: exact posterior draws (times `inflate`) as a whole export."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=n)
    precision = np.eye(3) + x.T @ x / 0.25
    mean = np.linalg.solve(precision, x.T @ y / 0.25)
    q = stats.multivariate_normal(mean, inflate**2 * np.linalg.inv(precision))
    w = q.rvs(size=(chains, draws), random_state=rng)
    f = w @ x.T
    log_likelihood = stats.norm(f, 0.5).logpdf(y)
    log_prior = stats.norm.logpdf(w).sum(-1)
    lp = log_prior + log_likelihood.sum(-1)
    groups = {
        "posterior": {
            "layers.0.weight": (("chain", "draw", "layers.0.weight_out", "layers.0.weight_in"), w[:, :, None])
        },
        "posterior_predictive": {"y": (("chain", "draw", "obs"), f + 0.5 * rng.normal(size=f.shape))},
        "log_likelihood": {"y": (("chain", "draw", "obs"), log_likelihood)},
        "sample_stats": {
            "lp": (("chain", "draw"), lp),
            "log_q": (("chain", "draw"), q.logpdf(w)),
            "elbo": (("chain", "draw"), lp - q.logpdf(w)),
        },
        "prior": {
            "layers.0.weight": (
                ("chain", "draw", "layers.0.weight_out", "layers.0.weight_in"),
                rng.normal(size=(1, 90, 1, 3)),
            )
        },
        "observed_data": {"y": (("obs",), y)},
        "constant_data": {"x": (("obs", "feature"), x)},
        "predictions": {"y": (("chain", "draw", "obs"), f[:, :, :7])},
        "predictions_constant_data": {"x": (("obs", "feature"), x[:7])},
        "history": {"loss": (("chain", "epoch"), rng.normal(size=(chains, 30)))},
        "warmup": {},
    }
    coords = {"feature": ["a", "b", "c"], "layers.0.weight_in": ["a", "b", "c"]}
    attrs = {
        "bnnzoo_version": "0.1",
        "seed": 0,
        "flag": True,
        "scale": [1.0, 2.0],
        "settings": {"lr": 1e-3},
        "none": None,
    }
    return groups, coords, attrs


@pytest.fixture(scope="module")
def idata():
    groups, coords, attrs = conjugate()
    return module.build(groups, coords=coords, attrs=attrs)


def test_the_container_is_the_installed_arviz_s(idata):
    assert isinstance(idata, xr.DataTree if ONE else az.InferenceData)
    groups, _, _ = conjugate()
    names = {name.strip("/") for name in (idata.groups if ONE else idata.groups())} - {""}
    assert names == set(groups) - {"warmup"}  # the empty group is left out


@pytest.mark.parametrize("container", ["auto", "DataTree"])
def test_values_dims_and_labels(container):
    groups, coords, attrs = conjugate()
    idata = module.build(groups, coords=coords, attrs=attrs, container=container)
    for group, variables in groups.items():
        for name, (dims, values) in variables.items():
            array = idata[group][name]
            assert array.dims == tuple(dims)
            np.testing.assert_array_equal(array.values, values)
    assert list(idata["posterior"]["layers.0.weight_in"].values) == ["a", "b", "c"]
    assert idata["prior"].sizes["draw"] == 90
    assert idata["predictions"].sizes["obs"] == 7
    assert idata.attrs["flag"] == 1
    assert idata.attrs["settings"] == '{"lr": 0.001}'
    assert "none" not in idata.attrs
    assert idata["posterior"].attrs["inference_library"] == "bnnzoo"


def test_the_prior_has_draws_of_its_own():
    groups, _, _ = conjugate()
    idata = module.build(groups, coords={"draw": np.arange(0, 800, 2)})
    assert list(idata["posterior"]["draw"].values[:3]) == [0, 2, 4]
    assert list(idata["prior"]["draw"].values[:3]) == [0, 1, 2]


@pytest.mark.skipif(not ONE, reason="a container of ArviZ 0.x")
def test_a_container_that_is_not_there():
    with pytest.raises(ValueError, match="container must be 'auto' or 'DataTree'"):
        module.build(conjugate()[0], container="InferenceData")


def test_summary_of_the_result(idata):
    table = az.summary(idata, kind="stats")
    assert list(table.index) == [f"layers.0.weight[0, {name}]" for name in "abc"]
    values = idata["posterior"]["layers.0.weight"].values
    np.testing.assert_allclose(table["mean"].astype(float), values.mean((0, 1, 2)), atol=6e-3)


def test_loo_of_the_result_is_near_exact_leave_one_out(idata):
    result = az.loo(idata, pointwise=True)
    groups, _, _ = conjugate()
    x, y = groups["constant_data"]["x"][1], groups["observed_data"]["y"][1]
    exact = 0.0
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        precision = np.eye(3) + x[rest].T @ x[rest] / 0.25
        mean = np.linalg.solve(precision, x[rest].T @ y[rest] / 0.25)
        exact += stats.norm(x[i] @ mean, (0.25 + x[i] @ np.linalg.solve(precision, x[i])) ** 0.5).logpdf(y[i])
    elpd = result.elpd if ONE else result.elpd_loo
    assert abs(elpd - exact) < 0.5  # Monte Carlo error of 800 draws, 0.1 over seeds


def test_ppc_plot_of_the_result(idata):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if ONE:
        az.plot_ppc_dist(idata, num_samples=20)
    else:
        az.plot_ppc(idata, num_pp_samples=20)
    assert plt.get_fignums()
    plt.close("all")


@pytest.mark.parametrize("container", ["auto", "DataTree"])
def test_netcdf_round_trip(container, tmp_path):
    groups, coords, attrs = conjugate()
    idata = module.build(groups, coords=coords, attrs=attrs, container=container)
    path = module.save_netcdf(idata, tmp_path / "fit.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~_umask()
    back = az.from_netcdf(path)  # each line of ArviZ reads what either container wrote
    for group, variables in groups.items():
        for name, (dims, values) in variables.items():
            assert back[group][name].dims == tuple(dims)
            np.testing.assert_array_equal(back[group][name].values, values)
    assert list(back["constant_data"]["feature"].values) == ["a", "b", "c"]
    assert back.attrs["bnnzoo_version"] == "0.1"
    assert back.attrs["seed"] == 0
    np.testing.assert_array_equal(back.attrs["scale"], [1.0, 2.0])


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(idata, tmp_path, monkeypatch):
    path = tmp_path / "fit.nc"
    path.write_bytes(b"old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(idata), "to_netcdf", full)
    with pytest.raises(OSError, match="No space"):
        module.save_netcdf(idata, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        module.save_netcdf(idata, tmp_path / "missing" / "fit.nc")


@pytest.mark.parametrize(
    ("groups", "coords", "message"),
    [
        ({"posterior": {"a/b": (("chain", "draw"), np.zeros((1, 2)))}}, {}, 'illegal.*"?a/b'),
        ({"posterior": {"a": (("chain",), np.zeros((1, 2)))}}, {}, "posterior/a: shape"),
        (
            {"posterior": {"a": (("chain", "draw"), np.zeros((1, 2))), "b": (("chain", "draw"), np.zeros((1, 3)))}},
            {},
            "posterior/b: dimension 'draw' has size 3, elsewhere 2",
        ),
        ({"observed_data": {"y": (("obs",), np.zeros(3))}}, {"obs": [1, 2]}, "size 3 but 2 labels"),
    ],
)
def test_what_does_not_fit_is_an_error(groups, coords, message):
    with pytest.raises(ValueError, match=message):
        module.build(groups, coords=coords)


@pytest.mark.parametrize(("k", "low", "high"), [(0.2, 0.0, 0.4), (1.0, 0.75, 1.25)])
def test_pareto_k_recovers_the_tail_of_pareto_ratios(k, low, high):
    # Ratios U^-k have a generalized Pareto tail of shape k; the negated logs would be bounded (k̂ = -1).
    rng = np.random.default_rng(1)
    elbo = k * rng.exponential(size=(3, 4000)) - 900.0
    idata = module.build({"sample_stats": {"elbo": (("chain", "draw"), elbo)}})
    estimate = module.pareto_k(idata)
    assert estimate.dims == ("chain",)
    assert ((estimate > low) & (estimate < high)).all(), estimate.values


def test_pareto_k_of_a_good_and_a_bad_fit():
    def khat(inflate):
        groups, _, _ = conjugate(chains=3, draws=4000, inflate=inflate)
        return module.pareto_k(module.build({"sample_stats": groups["sample_stats"]})).values

    # q = N(m, c²Σ) against N(m, Σ): the ratios are bounded for c > 1, else their tail has shape 1 - c² (0.91 here).
    good, bad = khat(1.3), khat(0.3)
    assert ((good > -3) & (good < 0.3)).all(), good
    assert abs(bad.mean() - 0.91) < 0.35, bad


def test_pareto_k_at_the_edges():
    def khat(elbo):
        return module.pareto_k(module.build({"sample_stats": {"elbo": (("chain", "draw"), elbo)}})).values

    assert (khat(np.full((2, 100), -3.0)) == -np.inf).all()
    spread = np.random.default_rng(0).normal(scale=1e4, size=(1, 200))
    assert khat(spread)[0] == np.inf
    assert np.isnan(khat(np.full((1, 100), np.nan))[0])
    with pytest.raises(ValueError, match="at least 25 draws a chain, given 24"):
        khat(np.zeros((1, 24)))


def test_pareto_k_says_what_it_lacks():
    groups, coords, attrs = conjugate()
    del groups["sample_stats"]["elbo"]
    with pytest.raises(ValueError, match=r"needs sample_stats\.elbo"):
        module.pareto_k(module.build(groups, coords=coords, attrs=attrs))
    with pytest.raises(ValueError, match=r"needs sample_stats\.elbo"):
        module.pareto_k(module.build({"observed_data": groups["observed_data"]}))
    groups, _, _ = conjugate()
    attrs = {"fitted_to_these_data": False, "num_data": 60, "num_data_fitted": 54}
    with pytest.raises(ValueError, match=r"these 60 are not the 54 of the fit"):
        module.pareto_k(module.build(groups, attrs=attrs))


@pytest.mark.skipif(not ONE, reason="a function of ArviZ 1.x")
def test_approximate_leave_one_out_takes_our_sample_stats():
    groups, coords, attrs = conjugate(draws=1000, inflate=1.3)
    idata = module.build(groups, coords=coords, attrs=attrs)
    stats_group = idata["sample_stats"]
    corrected = az.loo_approximate_posterior(idata, log_p=stats_group["lp"], log_q=stats_group["log_q"])
    groups, coords, attrs = conjugate(draws=1000)
    exact = az.loo(module.build(groups, coords=coords, attrs=attrs))
    assert abs(corrected.elpd - exact.elpd) < 0.5


@pytest.mark.skipif("BNNZOO_EXPORTED" not in os.environ, reason="needs the files of write_export.py")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")  # leave-one-out of a rough fit
@pytest.mark.parametrize("container", ["InferenceData", "DataTree"])
def test_a_real_export_in_another_process(container):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    idata = az.from_netcdf(Path(os.environ["BNNZOO_EXPORTED"]) / f"{container}.nc")
    table = az.summary(idata, var_names=["layers.0.bias", "layers.2.weight"], kind="stats")
    assert len(table) == 16
    assert idata["posterior"]["layers.0.weight"].dims[2:] == ("layers.0.weight_out", "layers.0.weight_in")
    assert "bmi" in idata["posterior"]["layers.0.weight_in"].values
    result = az.loo(idata, reff=1.0)
    elpd = result.elpd if ONE else result.elpd_loo
    predictive = np.logaddexp.reduce(idata["log_likelihood"]["y"].values.reshape(400, -1)) - np.log(400)
    assert -97 < elpd - predictive.sum() < 0  # leaving out costs something, but less than a nat for each of 97 weights
    assert module.pareto_k(idata).sizes["chain"] == 2
    if ONE:
        stat = idata["sample_stats"]
        assert np.isfinite(az.loo_approximate_posterior(idata, log_p=stat["lp"], log_q=stat["log_q"]).elpd)
        az.plot_ppc_dist(idata, num_samples=20)
        az.plot_dist(idata, var_names=["layers.2.weight"])
    else:
        az.plot_ppc(idata, num_pp_samples=20)
    plt.close("all")

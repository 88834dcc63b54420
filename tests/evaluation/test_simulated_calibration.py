"""Simulation-based calibration: of an exact posterior, of wrong ones, of guides."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors
from bnnzoo.data import Dataset
from bnnzoo.evaluation import plot_sbc, sbc, sbc_test, vsbc
from bnnzoo.evaluation.simulated_calibration import _seed, _walk_tail

NOISE, ALARM = 0.7, 1e-7
X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.45]])
DESIGN = torch.cat([X, torch.ones(12, 1)], 1).double()
COVARIANCE = (DESIGN.T @ DESIGN / NOISE**2 + torch.eye(3).double()).inverse()
NAMES = ["weight[0, 0]", "weight[0, 1]", "bias[0]", "prediction[0]", "prediction[1]"]


@pytest.fixture(scope="module")
def bnn():
    torch.manual_seed(0)
    return BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(NOISE), dist.Normal(0.0, 1.0))


def conjugate(scale=1.0, shift=0.0, draws=100):
    """A sampler of the exact posterior, or of one with other standard deviations or moved means."""
    root = torch.linalg.cholesky(COVARIANCE)

    def sampler(data, seed):
        mean = COVARIANCE @ DESIGN.T @ data[1].double() / NOISE**2 + shift * COVARIANCE.diag().sqrt()
        normal = torch.randn(draws, 3, generator=torch.Generator().manual_seed(seed)).double()
        w = (mean + scale * normal @ root.T).float()
        return {"weight": w[:, None, :2], "bias": w[:, 2:]}

    return sampler


def found(bnn, sampler, replications=200, **settings):
    return sbc(bnn, X, sampler, replications=replications, sites="*", at=X[:2], **settings)


@pytest.fixture(scope="module")
def exact(bnn):
    return found(bnn, conjugate())


def test_the_exact_posterior_is_calibrated(exact):
    assert list(exact["quantity"].values) == NAMES
    assert exact["p"].dims == ("replication", "quantity")
    tests = sbc_test(exact)
    for name in ("ks_pvalue", "asymmetry_pvalue", "dispersion_pvalue"):
        assert (tests[name] > ALARM).all(), name


def test_a_shrunken_posterior_is_not_and_is_called_too_narrow(bnn):
    tests = sbc_test(found(bnn, conjugate(scale=0.5)))
    # E (p - 1/2)² of Φ(2Z), Z normal, in closed form; the standard error is below that of the uniform's bound.
    expected = 12 * math.asin(4 / 5) / (2 * math.pi)
    assert np.abs(tests["dispersion"] - expected).max() < 5.5 * math.sqrt(0.8 / 200)
    assert (tests["dispersion_pvalue"] < 1e-9).all()
    assert (tests["ks_pvalue"] < 1e-4).all()
    assert (tests["asymmetry_pvalue"] > ALARM).all()  # it is centered


def test_a_wide_posterior_is_called_too_wide(bnn):
    tests = sbc_test(found(bnn, conjugate(scale=2.0)))
    assert np.abs(tests["dispersion"] - 12 * math.asin(1 / 5) / (2 * math.pi)).max() < 0.2
    assert (tests["dispersion_pvalue"] < 1e-6).all()


def test_a_moved_posterior_is_asymmetric_to_the_side_it_is_moved_to(bnn):
    result = found(bnn, conjugate(shift=1.0))
    tests = sbc_test(result).sel(quantity=NAMES[:3])
    assert (tests["asymmetry_pvalue"] < 1e-6).all()
    assert (result["p"].sel(quantity=NAMES[:3]).mean("replication") < 0.4).all()  # the truth is below the draws


def test_draws_of_the_prior_are_calibrated_however_few(bnn):
    # Whoever ignores the data and believes the prior is calibrated, exactly so by the randomized rank of one draw.
    def prior(data, seed):
        generator = torch.Generator().manual_seed(seed)
        return {"weight": torch.randn(1, 1, 2, generator=generator), "bias": torch.randn(1, 1, generator=generator)}

    result = sbc(bnn, X, prior, replications=600, sites="weight")
    assert list(result["quantity"].values) == NAMES[:2]
    assert (sbc_test(result)["ks_pvalue"] > ALARM).all()
    assert result["p"].min() > 0
    assert result["p"].max() < 1


def test_the_truth_its_posterior_and_the_draws_share_no_randomness(bnn):
    seen, drawn = [], []

    def sampler(data, seed):
        own = torch.Generator().manual_seed(seed)
        seen.append(torch.randn(3, generator=own))  # as the truth would be drawn by the same seed
        return {"weight": seen[-1][None, None, :2], "bias": seen[-1][None, 2:]}

    truths = []
    sbc(bnn, X, sampler, replications=6, functions={"f": lambda v: truths.append(v["weight"]) or v["bias"][:, 0]})
    own = {tuple(value.flatten().tolist()) for value in truths if len(value) == 1}
    assert len(own) == 12  # six truths and six draws, none of which is a truth
    assert len({tuple(each.tolist()) for each in seen}) == 6
    posterior = fit(bnn, guides.MeanField(bnn), (orthogonal(), torch.zeros(8)), epochs=1)
    keep = {"f": lambda values: drawn.append(values) or values["bias"][:, 0]}
    sbc(bnn, X, lambda data, seed: posterior, replications=3, functions=keep)
    several = [each["bias"] for each in drawn if len(each["bias"]) > 2]
    assert len(several) == 3
    assert not torch.equal(several[0], several[1])


def test_ranks_by_hand(bnn):
    rows = []

    def sampler(data, seed):
        rows.append(data)
        return {"weight": torch.tensor([-9.0, 9.0, 9.0]).view(3, 1, 1).expand(3, 1, 2), "bias": torch.zeros(3, 1)}

    values = {"always": lambda v: v["weight"][:, 0, 0] * 0, "low": lambda v: v["weight"][:, 0, 1]}
    result = sbc(bnn, X, sampler, replications=4, functions=values)
    p = result["p"].sel(quantity="low").values
    assert ((p > 0.25) & (p < 0.5)).all()  # one of three draws is below
    assert result["p"].sel(quantity="always").values.std() > 0  # all ties: anywhere
    assert len({tuple(y.tolist()) for _, y in rows}) == 4
    assert all(x is rows[0][0] for x, _ in rows)
    again = sbc(bnn, X, sampler, replications=4, functions=values)
    xr.testing.assert_identical(result, again)


def test_simulated_data_have_the_prior_predictive_s_moments(bnn):
    ys = []
    sbc(bnn, X, lambda data, seed: ys.append(data[1]) or conjugate(draws=1)(data, seed), replications=600, sites="bias")
    y = torch.stack(ys).double()
    variance = (DESIGN @ DESIGN.T).diag() + NOISE**2
    assert (y.mean(0) / (variance / 600).sqrt()).abs().max() < 5.5
    assert (((y**2).mean(0) / variance - 1) / (2 / 600) ** 0.5).abs().max() < 5.5


def test_the_asymmetry_is_the_two_sample_distance_and_its_p_value_exact():
    p = np.random.default_rng(0).beta(2.0, 1.5, size=21)
    result = xr.Dataset({"p": (("replication", "quantity"), p[:, None])}, coords={"quantity": ["a"]})
    assert sbc_test(result)["asymmetry"][0] == pytest.approx(stats.ks_2samp(p, 1 - p).statistic)
    walks = np.cumsum(list(itertools.product([-1, 1], repeat=10)), axis=1)
    extremes = np.abs(walks).max(1)
    for extreme in range(1, 11):
        assert _walk_tail(10, extreme) == pytest.approx((extremes >= extreme).mean())


def test_p_values_are_uniform_if_all_is_well():
    p = np.random.default_rng(0).uniform(size=(60, 500))
    tests = sbc_test(xr.Dataset({"p": (("replication", "quantity"), p)}, coords={"quantity": np.arange(500)}))
    assert stats.kstest(tests["ks_pvalue"], "uniform").pvalue > ALARM
    assert stats.kstest(tests["dispersion_pvalue"], "uniform").pvalue > ALARM
    assert (tests["asymmetry_pvalue"] < 0.05).mean() < 0.05 + 5.5 * (0.05 * 0.95 / 500) ** 0.5  # its values are few


def orthogonal():
    """Inputs on which MeanField can be the posterior."""
    return torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(2, 1)


def test_a_trained_guide_is_calibrated_and_an_untrained_one_is_not(bnn):
    settings = {"replications": 60, "lr": 0.05, "at": X[:1], "sites": "*", "num_samples": 300}
    result = vsbc(bnn, orthogonal(), guides.MeanField, epochs=250, **settings)
    assert result.sizes == {"replication": 60, "quantity": 4}
    tests = sbc_test(result)
    assert (tests["ks_pvalue"] > 1e-6).all()
    assert (tests["dispersion_pvalue"] > 1e-6).all()
    untrained = sbc_test(vsbc(bnn, orthogonal(), guides.MeanField, epochs=1, **settings))
    assert (untrained["ks_pvalue"] < 1e-6).all()


def test_a_posterior_is_a_sampler_s_answer_too():
    torch.manual_seed(0)
    bnn = BayesianNetwork(nn.Linear(2, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0))
    found, values = [], []

    def sampler(data, seed):
        found.append(fit(bnn, guides.MeanField(bnn), data, epochs=2, chains=2, seed=seed))
        return found[-1]

    keep = {"first": lambda each: values.append(each) or each["bias"][:, 0]}
    result = sbc(bnn, X, sampler, replications=3, at=X[:2], functions=keep, num_samples=20)
    predictions = [f"prediction[{i}, {k}]" for i in range(2) for k in range(3)]
    assert list(result["quantity"].values) == [*predictions, "first"]
    drawn = [each for each in values if len(each["bias"]) == 40]  # 20 of both chains
    truths = [each for each in values if len(each["bias"]) == 1]
    assert (len(drawn), len(truths)) == (3, 3)
    for number, (posterior, draws, truth) in enumerate(zip(found, drawn, truths, strict=True)):
        own = posterior.sample(20, _seed(0, number, 3))
        for name in ("weight", "bias"):
            assert torch.equal(draws[name], own[name].flatten(0, 1))

        def quantities(each):
            probs = (X[:2] @ each["weight"].mT + each["bias"][:, None]).softmax(-1)
            return torch.cat([probs.flatten(1), each["bias"][:, :1]], 1)

        below = (quantities(draws) < quantities(truth)).sum(0).numpy()
        p = 41 * result["p"].sel(replication=number).values
        assert ((below <= p) & (p <= below + 1)).all()


def test_a_posterior_of_standardized_data_is_refused(bnn):
    def sampler(data, seed):
        return fit(bnn, guides.Map(bnn), Dataset(*data).with_standardization(), epochs=1, seed=seed)

    with pytest.raises(ValueError, match="fitted to standardized data: its weights are in other units"):
        sbc(bnn, X, sampler, replications=2)


def test_what_is_refused(bnn):
    sampler = conjugate()
    learned = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian())
    with pytest.raises(ValueError, match="need a prior or a fixed value"):
        sbc(learned, X, sampler)
    improper = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(NOISE), priors.LogUniform())
    with pytest.raises(ValueError, match="improper"):
        vsbc(improper, X, guides.MeanField)
    for settings, message in (
        ({"replications": 1}, "replications must be at least 2, given 1"),
        ({"sites": "w"}, "'w' matches no site; they are weight, bias"),
        ({"sites": ()}, "nothing to look at"),
        ({"functions": {"f": lambda v: v["weight"]}}, r"function 'f' must return a value a draw, \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sbc(bnn, X, sampler, **settings)
    with pytest.raises(ValueError, match=r"draws of 'weight' must have shape \[draw, 1, 2\], given \[5, 2\]"):
        sbc(bnn, X, lambda data, seed: {"weight": torch.zeros(5, 2), "bias": torch.zeros(5, 1)})
    with pytest.raises(TypeError, match="not Tensor"):
        sbc(bnn, X, lambda data, seed: torch.zeros(5, 2))


def test_the_histograms(exact):
    figure = plot_sbc(exact, bins=10)
    assert isinstance(figure, Figure)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == NAMES
    for panel, name in zip(panels, NAMES, strict=True):
        heights = [bar.get_height() for bar in panel.patches if bar.get_width() == pytest.approx(0.1)]
        assert len(heights) == 10
        np.testing.assert_array_equal(heights, np.histogram(exact["p"].sel(quantity=name), 10, (0, 1))[0])
    own = Figure().subplots()
    assert plot_sbc(exact, NAMES[0], ax=own) is own.figure
    assert len(plot_sbc(exact, "bias[0]").axes) == 1
    with pytest.raises(ValueError, match="there is no quantity 'w'"):
        plot_sbc(exact, "w")
    with pytest.raises(ValueError, match="bins must be at least 2, given 1"):
        plot_sbc(exact, bins=1)
    with pytest.raises(ValueError, match="one axes shows one quantity, and these are 2"):
        plot_sbc(exact, NAMES[:2], ax=own)

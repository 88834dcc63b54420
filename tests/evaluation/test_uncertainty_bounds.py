"""The constant uncertainty and the optimal one: against searches, brute force and plain networks."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import nn
from torch.func import functional_call

import bnnzoo
from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import seeded
from bnnzoo.data import Dataset
from bnnzoo.evaluation import bounds, score, scores
from bnnzoo.prediction import Prediction

N = 40
SHARE = math.erf(math.sqrt(math.log(2) / 2))  # 2Φ(√ln 2) - 1
RNG = np.random.default_rng
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1) + 0.5 * torch.randn(N, generator=torch.Generator().manual_seed(1))
NEW = (torch.randn(15, 3, generator=torch.Generator().manual_seed(2)), torch.linspace(-2, 2, 15))


def fitted(guide=guides.MeanField, likelihood=None, net=None, data=(X, Y), **settings):
    with seeded(0):
        net = net or nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        bnn = BayesianNetwork(net, likelihood or likelihoods.Gaussian(0.5))
        built = guide(bnn)
    return fit(bnn, built, data, **{"epochs": 5, "lr": 0.05, "chains": 2, "progress": False, **settings})


def with_batch_norm():
    with seeded(0):
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


def plain(posterior, weights, x, chain):
    """The ordinary network in eval mode with a chain's weights and running statistics."""
    network = posterior.bnn.network.eval()
    buffers = {
        name.removeprefix("model.network."): value[chain]
        for name, value in posterior.state()[1].items()
        if name.startswith("model.network.")
    }
    with torch.no_grad():
        return functional_call(network, {**weights, **buffers}, (x,)).squeeze(-1)


OWN = {
    "map": guides.Map,
    "mean-field": guides.MeanField,
    "low-rank": lambda bnn: guides.LowRank(bnn, rank=2),
    "dropout": lambda bnn: guides.Dropout(bnn, rate=0.3),
    "laplace": guides.Laplace,
    "last layer": lambda bnn: guides.Laplace(bnn, "last_layer"),
    "batch norm": guides.BatchNorm,
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("noise", [likelihoods.Gaussian(0.5), likelihoods.Gaussian(dist.HalfNormal(1.0))])
def test_the_point_is_the_ordinary_network_with_the_weights_in_the_middle(name, noise, monkeypatch):
    posterior = fitted(OWN[name], noise, with_batch_norm() if name == "batch norm" else None, batch_size=20)
    monkeypatch.setattr(bounds, "_ROWS", 7)
    found = bounds.point_prediction(posterior, NEW[0])
    assert found.shape == (2, 15)
    layout = posterior.guide.layout
    for chain in range(2):
        loc = posterior.state()[0]["guide.loc"][chain]
        weights = dict(zip(layout.names, layout.split(loc), strict=True))
        weights = {
            site: value for site, value in weights.items() if site in dict(posterior.bnn.network.named_parameters())
        }
        torch.testing.assert_close(found[chain], plain(posterior, weights, NEW[0], chain))
    if name not in ("map", "low-rank"):
        draws = posterior.predict(NEW[0], 100).draws
        assert (draws.std(1) > 0.01).any(), "the guide has an uncertainty, which the point has not"


def test_the_point_of_pyros_guides_and_of_pruned_weights():
    posterior = fitted(AutoNormal)
    found = bounds.point_prediction(posterior, NEW[0])
    parameters = posterior.state()[0]
    for chain in range(2):
        weights = {
            name.removeprefix("guide.locs.").removesuffix("_unconstrained"): value[chain]
            for name, value in parameters.items()
            if name.startswith("guide.locs.")
        }
        weights = {name: weights[name] for name in dict(posterior.bnn.network.named_parameters())}
        torch.testing.assert_close(found[chain], plain(posterior, weights, NEW[0], chain))
    assert bounds.point_prediction(fitted(AutoLowRankMultivariateNormal), NEW[0]).shape == (2, 15)
    # A threshold that prunes everything: a network of zeros.
    pruned = fitted(guides.MeanField).prune(-100.0)
    torch.testing.assert_close(bounds.point_prediction(pruned, NEW[0]), torch.zeros(2, 15))


def test_guides_without_a_middle_predict_their_mean():
    for posterior in (fitted(guides.MNF), fitted(AutoIAFNormal)):
        found = bounds.point_prediction(posterior, NEW[0], num_samples=30, seed=3)
        torch.testing.assert_close(found, posterior.predict(NEW[0], 30, 3).draws.mean(1))
    bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.5))
    drawn = bnnzoo.sample(bnn, (X, Y), num_samples=8, warmup_steps=5, progress=False)
    torch.testing.assert_close(bounds.point_prediction(drawn, NEW[0]), drawn.predict(NEW[0]).draws.mean(1))


def test_other_targets():
    classes = fitted(guides.Map, likelihoods.Categorical(), nn.Linear(3, 3), (X, (Y > 0).long()))
    with pytest.raises(TypeError, match="a constant uncertainty is for numbers"):
        bounds.point_prediction(classes, NEW[0])
    noisy = fitted(guides.MeanField, likelihoods.HeteroscedasticGaussian(), nn.Linear(3, 2))
    assert bounds.constant_uncertainty(noisy, NEW).predict(NEW[0]).shape == (2, 1, 15)


def crps(errors, scale):
    """Mean CRPS of Gaussians of each of the scales, by its closed form."""
    scale = np.asarray(scale)[..., None]
    z = errors / scale
    return np.mean(scale * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5), -1)


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_the_constant_scale_is_the_best_in_the_units_of_the_target(by):
    y = torch.stack([40 * Y + 1000, 0.01 * Y**2], 1)
    with seeded(0):
        net = nn.Linear(3, 2)
    posterior = fitted(guides.MeanField, net=net, data=Dataset(X, y).with_standardization())
    new = torch.stack([40 * NEW[1] + 1000, 0.01 * NEW[1] ** 2], 1)
    constant = bounds.constant_uncertainty(posterior, (NEW[0], new), by)
    assert constant.scale.shape == (2, 2)
    prediction = constant.predict(NEW[0])
    assert prediction.shape == (2, 1, 15, 2)
    errors = (new - prediction.draws[:, 0]).double().numpy()
    for chain in range(2):
        for target in range(2):
            own, scale = errors[chain, :, target], prediction.parameters["scale"][chain, 0, 0, target].item()
            if by == "pll":
                assert scale == pytest.approx(np.sqrt(np.mean(own**2)), rel=1e-5)
                continue
            grid = np.geomspace(0.05, 5, 4001) * np.abs(own).mean()
            assert scale == pytest.approx(grid[np.argmin(crps(own, grid))], rel=2e-3)
            assert crps(own, scale) <= crps(own, grid).min() * (1 + 1e-9)


def test_what_does_not_fit():
    posterior = fitted(guides.Map)
    with pytest.raises(ValueError, match=r"y must have the prediction's shape \[15\], not \[15, 2\]"):
        bounds.constant_uncertainty(posterior, (NEW[0], torch.zeros(15, 2)))
    with pytest.raises(ValueError, match="by must be one of 'crps', 'pll', not 'rmse'"):
        bounds.constant_uncertainty(posterior, NEW, "rmse")
    classes = Prediction({"logits": torch.zeros(1, 1, 5, 3)}, dist.Categorical, "classification")
    with pytest.raises(ValueError, match="for regression, and these are classification targets"):
        bounds.optimum(classes, [0] * 5)
    one = gaussian(np.zeros((1, 1, 5)), 1.0)
    with pytest.raises(ValueError, match="must have 1 or 1 chains as the prediction has, not 2"):
        bounds.normalized_scores(one, gaussian(np.zeros((2, 1, 5)), 1.0), np.ones(5))


def gaussian(loc, scale):
    loc = torch.as_tensor(loc).double()
    scale = torch.as_tensor(scale).double().expand(loc.shape)
    return Prediction({"loc": loc, "scale": scale}, dist.Normal, "regression")


@pytest.mark.parametrize("error", [-13.0, -0.4, 1e-3, 1.0, 250.0])
def test_the_optimum_is_what_a_search_finds(error):
    # The search is in the logarithm of the scale, over a smooth function with one minimum.
    bracket = tuple(math.log(abs(error)) + step for step in (-2.0, 0.3, 3.0))
    found = minimize_scalar(lambda s: crps(np.array([error]), math.exp(s)), bracket=bracket, tol=1e-12)
    assert bounds.crps_optimum(error) == pytest.approx(found.fun, rel=1e-9)
    assert bounds.crps_optimal_scale(error) == pytest.approx(math.exp(found.x), rel=1e-5)
    assert bounds.crps_optimum(error) == pytest.approx(0.5949 * abs(error), rel=1e-4)
    found = minimize_scalar(lambda s: -norm.logpdf(error, scale=math.exp(s)), bracket=bracket, tol=1e-12)
    assert bounds.pll_optimum(error) == pytest.approx(-found.fun, rel=1e-9)
    assert abs(error) == pytest.approx(math.exp(found.x), rel=1e-5)


def test_an_error_of_zero():
    assert bounds.crps_optimum(0.0) == bounds.crps_optimal_scale(0.0) == 0.0
    assert bounds.pll_optimum([0.0, 1.0])[0] == math.inf
    assert bounds.normalized(1.0, 0.5, math.inf) == 0.0


def test_the_optimum_is_around_the_mean_of_each_chain():
    rng = RNG(0)
    loc, y = rng.normal(size=(2, 6, 4, 3)), rng.normal(size=(4, 3))
    found = bounds.optimum(gaussian(loc, 0.3), y)
    errors = np.abs(y - loc.mean(1))
    np.testing.assert_allclose(found.crps, SHARE * errors.mean(-1))
    np.testing.assert_allclose(found.pll, norm.logpdf(errors, scale=errors).sum(-1))
    assert found.crps.dims == ("chain", "obs")
    assert found.crps.attrs["better"] == "lower"


def test_normalized_scores_are_0_for_the_constant_and_100_for_the_optimum():
    rng = RNG(1)
    loc, y = rng.normal(size=(2, 1, 50)), rng.normal(size=50)
    constant, errors = gaussian(loc, 0.9), np.abs(y - loc)
    same = bounds.normalized_scores(constant, constant, y)
    assert same.crps.values.tolist() == same.pll.values.tolist() == [0.0, 0.0]
    by_crps = bounds.normalized_scores(gaussian(loc, errors / math.sqrt(math.log(2))), constant, y)
    by_pll = bounds.normalized_scores(gaussian(loc, errors), constant, y)
    np.testing.assert_allclose(by_crps.crps, 100.0)
    np.testing.assert_allclose(by_pll.pll, 100.0)
    assert (by_crps.pll < 99).all()
    assert (by_pll.crps < 99).all()
    assert (
        bounds.normalized_scores(gaussian(loc, 30.0), constant, y).to_array().sel(variable=["crps", "pll"]) < 0
    ).all()


def test_normalized_scores_by_hand():
    rng = RNG(2)
    loc, y = rng.normal(size=(2, 8, 30)), rng.normal(size=30)
    prediction, constant = gaussian(loc, 0.5), gaussian(rng.normal(size=(1, 1, 30)), 1.0)
    found = bounds.normalized_scores(prediction, constant, y)
    mean, std = loc.mean(1), np.sqrt(0.25 + loc.var(1))
    errors = np.abs(y - mean)
    raw, least = scores.crps_gaussian(mean, std, y).mean(1), scores.crps_gaussian(*moments(constant), y).mean()
    np.testing.assert_allclose(found.crps, 100 * (raw - least) / (SHARE * errors.mean(1) - least))
    np.testing.assert_allclose(found.crps_raw, raw)
    np.testing.assert_allclose(found.crps_constant, least)
    raw, least = score(prediction, y).pll.values, score(constant, y).pll.item()
    most = norm.logpdf(errors, scale=errors).mean(1)
    np.testing.assert_allclose(found.pll, 100 * (raw - least) / (most - least))
    np.testing.assert_allclose(found.pll_optimum, most)
    assert found.pll.attrs == {"long_name": "normalized log likelihood", "units": "percent", "better": "higher"}


def moments(prediction):
    return prediction.mean.numpy(), prediction.std.numpy()


def test_a_hit_makes_the_optimum_infinite_and_is_said():
    prediction = gaussian(np.array([[[0.0, 1.0]], [[0.5, 1.0]]]), 1.0)
    with pytest.warns(UserWarning, match="1 predicted means equal their targets"):
        found = bounds.normalized_scores(prediction, gaussian(np.zeros((1, 1, 2)), 2.0), [0.0, 3.0])
    assert found.pll_optimum[0] == math.inf
    assert found.pll[0] == 0.0
    assert found.pll[1] != 0.0


def test_t_test_is_that_of_the_paper():
    # Teye et al. 2018, Table 4: boston by MCBN, 8.50 ± 0.86 over 25 runs, p = 6.39e-10; ± is of two digits.
    rng = RNG(3)
    values = rng.normal(size=(5, 5))
    values = 8.50 + 0.86 * 5 * (values - values.mean()) / values.std(ddof=1)
    found = bounds.t_test(values)
    assert found["mean"].item() == pytest.approx(8.50)
    assert found.standard_error.item() == pytest.approx(0.86)
    assert found.t.item() == pytest.approx(8.50 / 0.86)
    assert found.p_value.item() == pytest.approx(6.39e-10, rel=0.1)
    for mean, error, published in ((5.75, 0.52, 6.71e-11), (-0.44, 0.05, 2.17e-8), (1.37, 0.89, 1.38e-1)):
        p = bounds.t_test(mean + (values - 8.50) / 0.86 * error).p_value.item()
        # Errors of half a last digit move the logarithm of p by so much.
        low, high = (
            bounds.t_test(mean + (values - 8.50) / 0.86 * e).p_value.item() for e in (0.95 * error, 1.12 * error)
        )
        assert low < p < high
        assert low < published < high


def test_t_test_over_some_dimensions():
    rng = RNG(4)
    values = xr.DataArray(
        rng.normal(size=(3, 2, 5)), dims=("split", "guide", "seed"), coords={"guide": ["mcbn", "dropout"]}
    )
    found = bounds.t_test(values, ("split", "seed"), bound=0.3)
    assert found.t.dims == ("guide",)
    for name in ("mcbn", "dropout"):
        alone = bounds.t_test(values.sel(guide=name) - 0.3)
        assert found.sel(guide=name).p_value.item() == pytest.approx(alone.p_value.item())
        flat = values.sel(guide=name).values.ravel()
        expected = (flat.mean() - 0.3) / (flat.std(ddof=1) / 15**0.5)
        assert found.sel(guide=name).t.item() == pytest.approx(expected)
    assert bounds.t_test(values, "split").t.dims == ("guide", "seed")
    one = bounds.t_test([2.0])
    assert one["mean"] == 2.0
    assert math.isnan(one.p_value)
    for empty in (np.zeros((0,)), 3.0):
        with pytest.raises(ValueError, match="values must have repetitions"):
            bounds.t_test(empty)

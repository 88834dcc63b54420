"""`tune_noise`: the best noise scale by CRPS and by PLL, against searches of another kind and closed forms."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from saving import round_trip
from scipy.integrate import quad
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm
from torch import nn

import bnnzoo
from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import seeded
from bnnzoo.data import Dataset
from bnnzoo.noise import _crps, best_scale


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


N = 60
X = torch.randn(N, 3, generator=gen())
Y = X.sum(1) + 0.5 * torch.randn(N, generator=gen(1))
TEST = (torch.randn(N, 3, generator=gen(2)), torch.randn(N, generator=gen(3)))


def fitted(guide=guides.MeanField, likelihood=None, data=(X, Y), out=1, **settings):
    with seeded(0):
        bnn = BayesianNetwork(nn.Linear(3, out), likelihood or likelihoods.Gaussian())
    return fit(bnn, guide(bnn), data, **{"epochs": 15, "lr": 0.05, **settings})


def errors_of(posterior, data, num_samples=200, seed=0):
    """Errors of every draw, in the units of the data, [chain, draw, N, C], by the posterior's own draws."""
    prediction = posterior.predict(data[0], num_samples=num_samples, seed=seed)
    y = torch.as_tensor(data[1])
    return (y - prediction.parameters["loc"]).reshape(*prediction.shape[:2], len(y), -1).double().numpy()


def crps(errors, scale):
    """Mean CRPS of the Gaussian with the mixture's moments; errors [draw, N]."""
    std = np.sqrt(scale**2 + errors.var(0))
    z = errors.mean(0) / std
    return np.mean(std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)))


def negative_pll(errors, scale):
    """Mean negative log density of the mixture; errors [draw, N, C], scales a number or [C]."""
    density = norm.logpdf(errors, scale=scale).sum(-1)
    top = density.max(0)
    return -np.mean(top + np.log(np.exp(density - top).mean(0)))


def search(score):
    """The best scale by scipy, from the best of a grid on."""
    grid = np.linspace(-6, 3, 200)
    start = grid[np.argmin([score(math.exp(s)) for s in grid])]
    return math.exp(minimize_scalar(lambda s: score(math.exp(s)), bracket=(start - 0.1, start, start + 0.1)).x)


def own_scale(posterior):
    """The noise scale of every chain in the units of the data, [chain, ...]."""
    return posterior.predict(X[:2], num_samples=1).parameters["scale"][:, 0, 0]


@pytest.mark.parametrize("by", ["crps", "pll"])
@pytest.mark.parametrize("guide", [guides.MeanField, guides.Map, AutoNormal], ids=["mean-field", "map", "auto"])
def test_the_scale_is_the_one_that_a_search_finds(guide, by):
    posterior = fitted(guide, chains=2)
    tuned = posterior.tune_noise(TEST, by=by)
    errors = errors_of(posterior, TEST)
    score = (lambda e, s: crps(e[..., 0], s)) if by == "crps" else negative_pll
    for chain in range(2):
        expected = search(lambda s, c=chain: score(errors[c], s))
        assert own_scale(tuned)[chain].item() == pytest.approx(expected, rel=1e-4)
        for other in (0.9, 1.1):
            assert score(errors[chain], expected) < score(errors[chain], other * expected)
    assert not torch.allclose(own_scale(tuned), own_scale(posterior))


def test_without_spread_pll_takes_the_root_mean_squared_error():
    posterior = fitted(guides.Map, likelihood=likelihoods.Gaussian(0.1))
    tuned = posterior.tune_noise(TEST, by="pll")
    rms = np.sqrt(np.mean(errors_of(posterior, TEST) ** 2))
    assert tuned.bnn.likelihood.scale.item() == pytest.approx(rms, rel=1e-5)
    # One error alone: |y - f| / sqrt(log 2), where the CRPS is 0.5949 |y - f|.
    one = (TEST[0][:1], TEST[1][:1])
    error = abs(errors_of(posterior, one)[0, 0, 0, 0])
    scale = posterior.tune_noise(one, by="crps").bnn.likelihood.scale.item()
    assert scale == pytest.approx(error / math.sqrt(math.log(2)), rel=1e-5)
    assert crps(np.array([[error]]), scale) == pytest.approx(0.5949 * error, rel=1e-4)


def test_the_crps_is_that_of_its_definition():
    errors = torch.randn(1, 7, 3, 2, generator=gen(4)).double()
    scale = torch.tensor([[0.4, 1.3]]).double()
    expected = []
    for n in range(3):
        for c in range(2):
            e = errors[0, :, n, c].numpy()
            std = math.sqrt(scale[0, c] ** 2 + e.var())
            belief = norm(-e.mean(), std)  # of the error's negative, which is 0 where the target is
            below, above = (
                quad(lambda v, d=belief: d.cdf(v) ** 2, -30, 0),
                quad(lambda v, d=belief: d.sf(v) ** 2, 0, 30),
            )
            expected.append(below[0] + above[0])
    assert _crps(errors, scale).item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_several_targets_have_a_scale_each_or_one_together(by):
    y = torch.stack([Y, 3 * Y + torch.randn(N, generator=gen(6))], 1)
    test = (TEST[0], torch.stack([TEST[1], 2 * TEST[1] - 1], 1))
    each = fitted(likelihood=likelihoods.Gaussian(num_outputs=2), data=(X, y), out=2)
    errors = errors_of(each, test)[0]

    def joint(log_scale):
        scale = np.exp(log_scale)
        return sum(crps(errors[..., c], scale[c]) for c in range(2)) if by == "crps" else negative_pll(errors, scale)

    expected = np.exp(minimize(joint, np.zeros(2), tol=1e-10).x)
    np.testing.assert_allclose(each.tune_noise(test, by=by).bnn.likelihood.scale.detach(), expected, rtol=1e-3)
    one = fitted(likelihood=likelihoods.Gaussian(0.3), data=(X, y), out=2)
    errors = errors_of(one, test)[0]
    expected = search(lambda s: joint(np.full(2, math.log(s))))
    assert one.tune_noise(test, by=by).bnn.likelihood.scale.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_units_of_the_target_change_nothing(by):
    scaled = Dataset(X, 40 * Y + 1000).with_standardization()
    posterior = fitted(data=scaled, likelihood=likelihoods.Gaussian(0.2), chains=2)
    test = (TEST[0], 40 * TEST[1] + 1000)
    tuned = posterior.tune_noise(test, by=by)
    errors = errors_of(posterior, test)
    score = (lambda e, s: crps(e[..., 0], s)) if by == "crps" else negative_pll
    for chain in range(2):
        expected = 40 * search(lambda s, c=chain: score(errors[c] / 40, s))
        assert own_scale(tuned)[chain].item() == pytest.approx(expected, rel=1e-3)
    # What the model sees is standardized.
    stored = tuned.state()[1]["model.likelihood.fixed_scale"]
    torch.testing.assert_close(stored * scaled.standardization.y_scale.float(), own_scale(tuned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.Gaussian(0.2)], ids=["learned", "fixed"])
@pytest.mark.parametrize("chains", [1, 2])
def test_the_rest_of_the_posterior_stays(likelihood, chains, tmp_path):
    posterior = fitted(likelihood=likelihood, chains=chains)
    before, draws = posterior.state(), posterior.sample(3)
    tuned = posterior.tune_noise(TEST)
    for old, new in zip(before, posterior.state(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    for name, value in tuned.sample(3).items():
        assert torch.equal(value, draws[name])
    assert tuned.info["noise"] == {"by": "crps", "data": "data", "num_data": N}
    assert "noise" not in posterior.info
    loaded = round_trip(tuned, tmp_path)
    assert torch.equal(own_scale(loaded), own_scale(tuned))
    again = tuned.fit((X, Y), epochs=2)
    assert torch.equal(own_scale(again), own_scale(tuned)) == (likelihood.fixed_scale is not None)


def test_stored_draws_and_batch_norm():
    with seeded(0):
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.5))
    drawn = bnnzoo.sample(bnn, (X, Y), num_samples=20, warmup_steps=20, seed=0, progress=False)
    expected = search(lambda s: crps(errors_of(drawn, TEST, None)[0, ..., 0], s))
    assert drawn.tune_noise(TEST).bnn.likelihood.scale.item() == pytest.approx(expected, rel=1e-4)
    with seeded(0):
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian())
    posterior = fit(bnn, guides.BatchNorm(bnn), (X, Y), epochs=3, batch_size=15)
    expected = search(lambda s: crps(errors_of(posterior, TEST)[0, ..., 0], s))
    assert posterior.tune_noise(TEST).bnn.likelihood.scale.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_scales_of_many_kinds_of_errors_are_global_optima(by):
    # Heavy tails, outliers and narrow draws: scores with plateaus and more than one dip.
    score = crps if by == "crps" else lambda e, s: negative_pll(e[..., None], s)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        errors = (rng.standard_t(1.5, size=(1, 25)) + 0.1 * rng.normal(size=(30, 25))) * 10.0 ** rng.integers(-3, 3)
        found = best_scale(torch.as_tensor(errors)[None, ..., None], by).item()
        grid = np.geomspace(1e-3, 3, 500) * np.sqrt(np.mean(errors**2))
        assert score(errors, found) <= min(score(errors, s) for s in grid) + 1e-9


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_a_guide_that_predicts_by_moments_is_tuned_by_its_draws(by):
    # Inputs far from those of the fit, where the weights spread the predictions as much as the noise does.
    posterior = fitted(guides.MomentPropagation, data=(X[:10], Y[:10]), epochs=30)
    far = 4 * TEST[0]
    drawn = posterior.predict(far, num_samples=N, seed=1).draws[0].diagonal()  # each target of a draw of its own
    test = (far, drawn + torch.randn(N, generator=gen(9)))
    errors = errors_of(posterior, test)[0, ..., 0]
    score = crps if by == "crps" else lambda e, s: negative_pll(e[..., None], s)
    expected = search(lambda s: score(errors, s))
    tuned = posterior.tune_noise(test, by=by).bnn.likelihood.scale.item()
    assert tuned == pytest.approx(expected, rel=1e-4)
    assert tuned < 0.8 * search(lambda s: score(errors.mean(0, keepdims=True), s))  # what takes the draws for noise
    assert tuned == posterior.tune_noise(test, by=by, num_samples=200).bnn.likelihood.scale.item()


@pytest.mark.parametrize("by", ["crps", "pll"])
@pytest.mark.parametrize("draws", [1, 20])
def test_scales_of_errors_of_any_size_are_found_alike(by, draws):
    errors = torch.randn(1, draws, 200, 1, generator=gen(10)).double() / draws + torch.randn(200, 1, generator=gen(11))
    expected = best_scale(errors, by).item()
    sizes = torch.tensor([1.0, 1e-9, 1e-6, 1e-3, 1e6, 1e9]).double()
    for size in sizes:
        assert best_scale(size * errors, by).item() == pytest.approx(size.item() * expected, rel=1e-6)
    chains = best_scale(sizes.view(-1, 1, 1, 1) * errors, by)[:, 0]
    torch.testing.assert_close(chains / sizes, torch.full_like(sizes, expected), rtol=1e-6, atol=0)
    if draws == 1:  # of more, the log likelihood is of the targets together
        targets = best_scale(errors * sizes, by, each_target=True)[0]
        torch.testing.assert_close(targets / sizes, torch.full_like(sizes, expected), rtol=1e-6, atol=0)


def test_draws_that_spread_more_than_the_errors_leave_the_least_noise():
    errors = torch.linspace(-1, 1, 101).double().view(1, -1, 1, 1).expand(1, 101, 5, 1)
    with pytest.warns(UserWarning, match="the draws alone spread more than the errors: the best noise scale by crps"):
        scale = best_scale(errors)
    assert scale.item() == pytest.approx(1e-3 * errors.square().mean().sqrt().item())


@pytest.mark.parametrize("by", ["crps", "pll"])
def test_scales_of_errors_alone_are_those_of_each_chain_and_target(by):
    errors = torch.randn(3, 1, 40, 2, generator=gen(8)).double() * torch.tensor([1.0, 30.0])
    each = best_scale(errors, by, each_target=True)
    assert each.shape == (3, 2)
    for chain in range(3):
        for target in range(2):
            one = errors[chain : chain + 1, :, :, target : target + 1]
            torch.testing.assert_close(best_scale(one.float(), by)[0, 0], each[chain, target], rtol=1e-5, atol=0)
    # Without draws to mix, folds of one chain may stand in one N.
    pooled = errors.movedim(0, 2).reshape(1, 1, 120, 2)
    assert best_scale(pooled, by).shape == (1, 1)
    if by == "pll":
        torch.testing.assert_close(each, errors.square().mean((1, 2)).sqrt(), rtol=1e-6, atol=0)


def test_errors_that_have_no_scale():
    for errors in (torch.ones(3, 4, 5), torch.full((1, 1, 3, 1), math.nan), torch.ones(1, 1, 0, 1)):
        with pytest.raises(ValueError, match=r"errors must be finite numbers \[chain, draw, N, C\], given"):
            best_scale(errors)
    with pytest.raises(ValueError, match="by must be one of 'crps', 'pll', not 'rmse'"):
        best_scale(torch.ones(1, 1, 3, 1), "rmse")


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (likelihoods.HeteroscedasticGaussian(), "Gaussian likelihood, and this one is HeteroscedasticGaussian"),
        (likelihoods.Gaussian(dist.HalfNormal(1.0)), "the noise scale has a prior"),
    ],
)
def test_other_likelihoods_are_refused(likelihood, message):
    posterior = fitted(likelihood=likelihood, out=2 if "Hetero" in message else 1, epochs=1)
    with pytest.raises(TypeError, match=message):
        posterior.tune_noise(TEST)


def test_what_it_is_given_is_checked():
    posterior = fitted(guides.Map, epochs=1)
    with pytest.raises(ValueError, match="by must be one of 'crps', 'pll', not 'nll'"):
        posterior.tune_noise(TEST, by="nll")
    with pytest.raises(ValueError, match="y must have the prediction's shape"):
        posterior.tune_noise((X, torch.randn(N, 2)))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        posterior.tune_noise(TEST, num_samples=0)
    exact = posterior.predict(X, num_samples=1).mean
    with pytest.raises(ValueError, match="the predictions equal the targets"):
        posterior.tune_noise((X, exact), num_samples=1)

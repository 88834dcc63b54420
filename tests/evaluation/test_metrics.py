"""Scores of predictions against independent implementations and numerical integration; what they refuse."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, special, stats
from sklearn import metrics as sk

from bnnzoo.evaluation import pit, pointwise, score, scores, uncertainties
from bnnzoo.evaluation.metrics import KINDS, numbers, predictive_draws
from bnnzoo.prediction import Prediction


def gaussian(loc, scale):
    """Parameters [chain, draw, N, ...]."""
    return Prediction(
        {"loc": torch.as_tensor(loc).double(), "scale": torch.as_tensor(scale).double()}, dist.Normal, "regression"
    )


@pytest.fixture
def mixture():
    """Two chains of three draws for four targets, of several scales."""
    rng = np.random.default_rng(0)
    loc, scale = 100 + 20 * rng.normal(size=(2, 3, 4)), rng.uniform(3, 15, size=(2, 3, 4))
    return gaussian(loc, scale), loc.reshape(6, 4), scale.reshape(6, 4), np.array([95.0, 110.0, 160.0, 101.0])


def scored(prediction, y, **settings):
    """Scores of all chains as one mixture, plain numbers."""
    return {name: value for name, (value, _) in numbers(score(prediction.pooled, y, **settings)).items()}


def test_regression_scores_of_a_mixture_of_gaussians(mixture):
    prediction, loc, scale, y = mixture
    found = scored(prediction, y)
    assert list(found) == [
        *("rmse", "mae", "pll", "pll_gaussian", "crps", "crps_gaussian", "coverage_95", "width_95"),
        "calibration_error",
    ]
    np.testing.assert_allclose(found["rmse"], sk.root_mean_squared_error(y, loc.mean(0)))
    np.testing.assert_allclose(found["mae"], sk.mean_absolute_error(y, loc.mean(0)))
    log_density = special.logsumexp(stats.norm(loc, scale).logpdf(y), axis=0) - np.log(6)
    np.testing.assert_allclose(found["pll"], log_density.mean())
    gaussian_ = stats.norm(loc.mean(0), np.sqrt(loc.var(0) + (scale**2).mean(0)))
    np.testing.assert_allclose(found["pll_gaussian"], gaussian_.logpdf(y).mean())
    z = (y - gaussian_.mean()) / gaussian_.std()
    crps = gaussian_.std() * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5)
    np.testing.assert_allclose(found["crps_gaussian"], crps.mean())
    below = np.sort(stats.norm(loc, scale).cdf(y).mean(0))
    np.testing.assert_allclose(
        found["calibration_error"], stats.wasserstein_distance(below, (np.arange(100_000) + 0.5) / 100_000), atol=1e-5
    )

    def quantile(n, p):
        return optimize.brentq(lambda v: stats.norm(loc[:, n], scale[:, n]).cdf(v).mean() - p, -100, 300)

    low, high = (np.array([quantile(n, p) for n in range(4)]) for p in (0.025, 0.975))
    np.testing.assert_allclose(found["width_95"], (high - low).mean(), rtol=1e-6)
    assert found["coverage_95"] == ((low <= y) & (y <= high)).mean() == 0.75


def test_crps_is_the_integral_over_the_distribution_function(mixture):
    prediction, loc, scale, y = mixture
    grid = np.linspace(-100, 300, 200_001)
    exact = 0.0
    for n in range(4):
        below = sum(stats.norm(loc[s, n], scale[s, n]).cdf(grid) for s in range(6)) / 6
        exact += integrate.trapezoid((below - (grid >= y[n])) ** 2, grid) / 4
    values = np.array([scores.crps_draws(predictive_draws(prediction, s), y).mean() for s in range(40)])
    assert abs(values.mean() - exact) < 6 * values.std(ddof=1) / 40**0.5
    assert values.std() < 0.02 * exact
    assert scored(prediction, y, seed=7)["crps"] == pytest.approx(values[7])


def test_several_targets_are_averaged_and_their_joint_density_scored():
    rng = np.random.default_rng(2)
    loc, y = rng.normal(size=(1, 5, 6, 3)), rng.normal(size=(6, 3))
    both = scored(gaussian(loc, np.full((1, 1, 1, 3), 0.7)), y)
    single = [scored(gaussian(loc[..., c], np.full((1, 1, 1), 0.7)), y[:, c]) for c in range(3)]
    assert both["rmse"] == pytest.approx(np.mean([s["rmse"] ** 2 for s in single]) ** 0.5)
    assert both["pll_gaussian"] == pytest.approx(sum(s["pll_gaussian"] for s in single))
    for name in ("mae", "crps_gaussian", "coverage_95", "width_95"):
        assert both[name] == pytest.approx(np.mean([s[name] for s in single]))
    joint = special.logsumexp(stats.norm(loc[0], 0.7).logpdf(y).sum(-1), axis=0) - np.log(5)
    assert both["pll"] == pytest.approx(joint.mean())


def categorical(logits):
    return Prediction({"logits": torch.as_tensor(logits)}, dist.Categorical, "classification")


def test_classification_scores():
    rng = np.random.default_rng(3)
    logits, y = 2 * rng.normal(size=(2, 5, 200, 4)), rng.integers(0, 4, 200)
    probs = special.softmax(logits, -1).mean((0, 1))
    found = scored(categorical(logits), y)
    assert list(found) == [
        *("accuracy", "error", "pll", "brier", "ece", "adaptive_ece", "entropy", "mutual_information", "confidence")
    ]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, probs.argmax(1)))
    assert found["error"] == pytest.approx(1 - found["accuracy"])
    assert found["pll"] == pytest.approx(-sk.log_loss(y, probs, labels=range(4)))
    assert found["brier"] == pytest.approx(((probs - np.eye(4)[y]) ** 2).sum(1).mean())
    assert found["entropy"] == pytest.approx(stats.entropy(probs, axis=1).mean())
    given_weights = stats.entropy(special.softmax(logits, -1), axis=-1).mean((0, 1))
    assert found["mutual_information"] == pytest.approx((stats.entropy(probs, axis=1) - given_weights).mean())
    assert found["confidence"] == pytest.approx(probs.max(1).mean())
    correct = probs.argmax(1) == y
    assert found["ece"] == pytest.approx(scores.calibration_error(probs.max(1), correct))
    assert found["adaptive_ece"] == pytest.approx(scores.calibration_error(probs.max(1), correct, adaptive=True))


def test_certain_and_right_is_perfect():
    found = scored(categorical(np.array([[[[0.0, -np.inf], [-np.inf, 0.0]]]])), [0, 1])
    assert found == dict.fromkeys(KINDS["classification"], 0.0) | {"accuracy": 1.0, "confidence": 1.0}


def test_yes_no_targets_score_as_two_classes():
    rng = np.random.default_rng(4)
    logits, y = rng.normal(size=(2, 3, 50)), rng.integers(0, 2, 50)
    bernoulli = Prediction({"logits": torch.as_tensor(logits)}, dist.Bernoulli, "classification")
    two = categorical(np.stack([np.zeros_like(logits), logits], -1))
    assert scored(bernoulli, y) == pytest.approx(scored(two, y))


def test_several_yes_no_targets_and_dense_labels_are_averaged():
    rng = np.random.default_rng(5)
    logits, y = rng.normal(size=(1, 3, 50, 2)), rng.integers(0, 2, (50, 2))
    both = scored(Prediction({"logits": torch.as_tensor(logits)}, dist.Bernoulli, "classification"), y)
    each = [
        scored(Prediction({"logits": torch.as_tensor(logits[..., c])}, dist.Bernoulli, "classification"), y[:, c])
        for c in range(2)
    ]
    for name in ("accuracy", "brier", "entropy", "mutual_information", "confidence"):
        assert both[name] == pytest.approx(np.mean([s[name] for s in each]))
    dense, labels = rng.normal(size=(1, 2, 6, 4, 5, 3)), rng.integers(0, 3, (6, 4, 5))
    found = scored(categorical(dense), labels)
    flat = scored(categorical(dense.reshape(1, 2, 120, 3)), labels.reshape(120))
    for name in set(found) - {"pll"}:
        assert found[name] == pytest.approx(flat[name]), name
    log_probs = np.take_along_axis(np.log(special.softmax(dense[0], -1)), labels[None, ..., None], -1)[..., 0]
    joint = special.logsumexp(log_probs.reshape(2, 6, 20).sum(-1), axis=0) - np.log(2)
    assert found["pll"] == pytest.approx(joint.mean())


def test_count_scores():
    rng = np.random.default_rng(6)
    rates, y = rng.uniform(1, 9, size=(1, 2000, 3)), np.array([2.0, 7.0, 40.0])
    found = scored(Prediction({"rate": torch.as_tensor(rates)}, dist.Poisson, "counts"), y)
    assert list(found) == ["rmse", "mae", "pll", "crps", "coverage_95", "width_95", "calibration_error"]
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, rates[0].mean(0)))
    mixture = special.logsumexp(stats.poisson(rates[0]).logpmf(y), axis=0) - np.log(2000)
    assert found["pll"] == pytest.approx(mixture.mean())
    assert found["coverage_95"] == pytest.approx(2 / 3)
    counts = np.arange(200)  # the CRPS of counts is a sum
    below = stats.poisson(rates[0][..., None]).cdf(counts).mean(0)
    crps = ((below - (counts >= y[:, None])) ** 2).sum(-1).mean()
    values = [
        scored(Prediction({"rate": torch.as_tensor(rates)}, dist.Poisson, "counts"), y, seed=s)["crps"]
        for s in range(20)
    ]
    assert abs(np.mean(values) - crps) < 6 * np.std(values, ddof=1) / 20**0.5


def test_the_seed_fixes_the_draws_and_spares_the_global_generators(mixture):
    prediction, _, _, y = mixture
    before = torch.get_rng_state()
    assert scored(prediction, y, seed=3) == scored(prediction, y, seed=3) != scored(prediction, y, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_of_many_kinds(mixture):
    prediction, _, _, y = mixture
    expected = scored(prediction, y)
    column = torch.tensor(y)[:, None].requires_grad_()
    for given in (y.tolist(), pd.Series(y, index=[3, 2, 1, 0]), column, y.astype(np.float32)):
        assert scored(prediction, given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, 2.0, 3.0], "prediction has 4 data, y has 3"),
        (1.0, "y has a single number"),
        (np.zeros((4, 2)), r"shape \(4,\).* given \(4, 2\)"),
        ([1.0, np.nan, np.inf, 2.0], "2 NaN or infinite"),
        (["a", "b", "c", "d"], "must hold numbers, given list"),
    ],
)
def test_targets_that_do_not_fit(mixture, y, message):
    with pytest.raises(ValueError, match=message):
        score(mixture[0], y)


@pytest.mark.parametrize(
    ("prediction", "y", "message"),
    [
        (categorical(np.zeros((1, 1, 2, 3))), [0, 3], "labels 0 to 2, given values from 0 to 3"),
        (categorical(np.zeros((1, 1, 2, 3))), [0.5, 1], "labels 0 to 2"),
        (Prediction({"logits": torch.zeros(1, 1, 2)}, dist.Bernoulli, "classification"), [0, 2], "labels 0 to 1"),
        (Prediction({"rate": torch.ones(1, 1, 2)}, dist.Poisson, "counts"), [0, -1], "counts 0, 1, 2"),
    ],
)
def test_labels_and_counts_that_cannot_be(prediction, y, message):
    with pytest.raises(ValueError, match=message):
        score(prediction, y)


def test_there_must_be_something_to_score():
    prediction = Prediction({"loc": torch.zeros(1, 3, 0), "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression")
    with pytest.raises(ValueError, match=r"there are no data: the prediction and y are empty, of shape \(0,\)"):
        score(prediction, [])
    loc = torch.tensor([[[0.0, math.nan]]])
    prediction = Prediction({"loc": loc, "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression")
    with pytest.raises(ValueError, match=r"the prediction holds NaN \(loc\) and has no scores"):
        score(prediction, [0.0, 1.0])


def test_targets_far_from_zero_keep_their_differences():
    loc = torch.full((1, 1, 4), 1.7e9)  # where float32 has steps of 128
    prediction = Prediction({"loc": loc, "scale": torch.full((1, 1, 1), 50.0)}, dist.Normal, "regression")
    center = loc[0, 0, 0].item()
    found = scored(prediction, np.full(4, center + 60))
    near = Prediction({"loc": 0 * loc, "scale": torch.full((1, 1, 1), 50.0)}, dist.Normal, "regression")
    expected = scored(near, np.full(4, 60.0))
    assert found["rmse"] == pytest.approx(60.0, rel=1e-6)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    np.testing.assert_allclose(pit(prediction, np.full(4, center + 60)), stats.norm.cdf(1.2), rtol=1e-6)


def test_mutual_information_of_draws_that_nearly_agree_is_that_of_float64():
    rng = np.random.default_rng(0)
    logits = torch.as_tensor(1e-4 * rng.normal(size=(1, 200, 50, 3)) + np.array([0.0, 0.3, 0.1])).float()
    prediction = Prediction({"logits": logits}, dist.Categorical, "classification")
    expected = scores.mutual_information(special.softmax(logits[0].double().numpy(), -1))
    found = pointwise(prediction, [0] * 50)["mutual_information"].to_numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found, uncertainties(prediction)["mutual_information"], rtol=1e-9)


def test_pit_of_gaussians_is_their_distribution_function(mixture):
    prediction, loc, scale, y = mixture
    np.testing.assert_allclose(pit(prediction, y), stats.norm(loc, scale).cdf(y).mean(0))


def test_pit_of_counts_is_uniform_if_calibrated():
    rng = np.random.default_rng(8)
    rates = rng.uniform(0.2, 3, size=3000)
    y = rng.poisson(rates).astype(float)
    prediction = Prediction({"rate": torch.as_tensor(rates)[None, None]}, dist.Poisson, "counts")
    assert stats.kstest(pit(prediction, y), "uniform").pvalue > 1e-5
    shifted = Prediction({"rate": torch.as_tensor(rates + 0.3)[None, None]}, dist.Poisson, "counts")
    assert stats.kstest(pit(shifted, y), "uniform").pvalue < 1e-5


def test_pit_is_not_for_classes():
    with pytest.raises(ValueError, match="reliability"):
        pit(categorical(np.zeros((1, 1, 2, 3))), [0, 1])

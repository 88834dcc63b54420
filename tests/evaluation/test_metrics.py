"""Scores against independent implementations, numerical integration and the bootstrap."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, special, stats
from sklearn import metrics as sk

from bnnzoo.evaluation import metrics, pit, pointwise, score, score_table
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


def test_regression_scores_of_a_mixture_of_gaussians(mixture):
    prediction, loc, scale, y = mixture
    scores = score(prediction, y)
    assert list(scores) == ["rmse", "mae", "nll", "crps", "coverage_95", "width_95"]
    np.testing.assert_allclose(scores["rmse"], sk.root_mean_squared_error(y, loc.mean(0)))
    np.testing.assert_allclose(scores["mae"], sk.mean_absolute_error(y, loc.mean(0)))
    log_density = special.logsumexp(stats.norm(loc, scale).logpdf(y), axis=0) - np.log(6)
    np.testing.assert_allclose(scores["nll"], -log_density.mean())

    def quantile(n, p):
        return optimize.brentq(lambda v: stats.norm(loc[:, n], scale[:, n]).cdf(v).mean() - p, -100, 300)

    low, high = (np.array([quantile(n, p) for n in range(4)]) for p in (0.025, 0.975))
    np.testing.assert_allclose(scores["width_95"], (high - low).mean(), rtol=1e-6)
    assert scores["coverage_95"] == ((low <= y) & (y <= high)).mean() == 0.75


def test_crps_is_the_integral_over_the_distribution_function(mixture):
    prediction, loc, scale, y = mixture
    grid = np.linspace(-100, 300, 200_001)
    exact = 0.0
    for n in range(4):
        below = sum(stats.norm(loc[s, n], scale[s, n]).cdf(grid) for s in range(6)) / 6
        exact += integrate.trapezoid((below - (grid >= y[n])) ** 2, grid) / 4
    values = np.array([metrics._crps(metrics.predictive_draws(prediction, s), y).mean() for s in range(40)])
    assert abs(values.mean() - exact) < 6 * values.std(ddof=1) / 40**0.5
    assert values.std() < 0.02 * exact
    assert score(prediction, y, seed=7)["crps"] == pytest.approx(values[7])


def test_crps_from_few_draws_is_unbiased():
    rng = np.random.default_rng(1)
    # A hundred thousand ensembles of four draws: the CRPS of the empirical distribution would be 0.14 too large.
    values = metrics._crps(rng.normal(size=(4, 100_000)), np.full(100_000, 0.3))
    exact = 0.3 * (2 * stats.norm.cdf(0.3) - 1) + 2 * stats.norm.pdf(0.3) - np.pi**-0.5
    assert abs(values.mean() - exact) < 4.5 * values.std() / 100_000**0.5


def test_crps_does_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    draws, y = rng.normal(size=(50, 7, 3)), rng.normal(size=(7, 3))
    whole = metrics._crps(draws, y)
    monkeypatch.setattr(metrics, "_BLOCK", 200)
    np.testing.assert_array_equal(metrics._crps(draws, y), whole)


def test_several_targets_are_averaged_and_their_joint_density_scored():
    rng = np.random.default_rng(2)
    loc, y = rng.normal(size=(1, 5, 6, 3)), rng.normal(size=(6, 3))
    both = score(gaussian(loc, np.full((1, 1, 1, 3), 0.7)), y)
    single = [score(gaussian(loc[..., c], np.full((1, 1, 1), 0.7)), y[:, c]) for c in range(3)]
    assert both["rmse"] == pytest.approx(np.mean([s["rmse"] ** 2 for s in single]) ** 0.5)
    for name in ("mae", "coverage_95", "width_95"):
        assert both[name] == pytest.approx(np.mean([s[name] for s in single]))
    joint = special.logsumexp(stats.norm(loc[0], 0.7).logpdf(y).sum(-1), axis=0) - np.log(5)
    assert both["nll"] == pytest.approx(-joint.mean())


def test_scores_follow_the_units(mixture):
    prediction, loc, scale, y = mixture
    scores = score(prediction, y)
    thousand = score(gaussian(1000 * loc.reshape(2, 3, 4), 1000 * scale.reshape(2, 3, 4)), 1000 * y)
    for name in ("rmse", "mae", "crps", "width_95"):
        assert thousand[name] == pytest.approx(1000 * scores[name])
    assert thousand["nll"] == pytest.approx(scores["nll"] + np.log(1000))
    assert thousand["coverage_95"] == scores["coverage_95"]


def categorical(logits):
    return Prediction({"logits": torch.as_tensor(logits)}, dist.Categorical, "classification")


def test_classification_scores():
    rng = np.random.default_rng(3)
    logits, y = 2 * rng.normal(size=(2, 5, 200, 4)), rng.integers(0, 4, 200)
    probs = special.softmax(logits, -1).mean((0, 1))
    scores = score(categorical(logits), y)
    assert list(scores) == ["accuracy", "error", "nll", "brier", "ece", "entropy"]
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(y, probs.argmax(1)))
    assert scores["error"] == pytest.approx(1 - scores["accuracy"])
    assert scores["nll"] == pytest.approx(sk.log_loss(y, probs, labels=range(4)))
    assert scores["brier"] == pytest.approx(((probs - np.eye(4)[y]) ** 2).sum(1).mean())
    assert scores["entropy"] == pytest.approx(stats.entropy(probs, axis=1).mean())
    calibration_error, confidence = 0.0, probs.max(1)
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        members = (low < confidence) & (confidence <= high)
        if members.any():
            gap = (probs.argmax(1) == y)[members].mean() - confidence[members].mean()
            calibration_error += members.mean() * abs(gap)
    assert scores["ece"] == pytest.approx(calibration_error)


def test_confidence_bins_are_closed_above():
    np.testing.assert_array_equal(metrics.confidence_bins(np.array([0.0, 0.1, 0.2, 0.21, 1.0]), 5), [0, 0, 0, 1, 4])


def test_certain_and_right_is_perfect():
    scores = score(categorical(np.array([[[[0.0, -np.inf], [-np.inf, 0.0]]]])), [0, 1])
    assert scores == {"accuracy": 1, "error": 0, "nll": 0, "brier": 0, "ece": 0, "entropy": 0}


def test_yes_no_targets_score_as_two_classes():
    rng = np.random.default_rng(4)
    logits, y = rng.normal(size=(2, 3, 50)), rng.integers(0, 2, 50)
    bernoulli = Prediction({"logits": torch.as_tensor(logits)}, dist.Bernoulli, "classification")
    two = categorical(np.stack([np.zeros_like(logits), logits], -1))
    assert score(bernoulli, y) == pytest.approx(score(two, y))


def test_several_yes_no_targets_and_dense_labels_are_averaged():
    rng = np.random.default_rng(5)
    logits, y = rng.normal(size=(1, 3, 50, 2)), rng.integers(0, 2, (50, 2))
    both = score(Prediction({"logits": torch.as_tensor(logits)}, dist.Bernoulli, "classification"), y)
    each = [
        score(Prediction({"logits": torch.as_tensor(logits[..., c])}, dist.Bernoulli, "classification"), y[:, c])
        for c in range(2)
    ]
    for name in ("accuracy", "brier", "entropy"):
        assert both[name] == pytest.approx(np.mean([s[name] for s in each]))
    dense, labels = rng.normal(size=(1, 2, 6, 4, 5, 3)), rng.integers(0, 3, (6, 4, 5))
    scores = score(categorical(dense), labels)
    flat = score(categorical(dense.reshape(1, 2, 120, 3)), labels.reshape(120))
    for name in ("accuracy", "brier", "ece", "entropy"):
        assert scores[name] == pytest.approx(flat[name])


def test_count_scores():
    rng = np.random.default_rng(6)
    rates, y = rng.uniform(1, 9, size=(1, 2000, 3)), np.array([2.0, 7.0, 40.0])
    scores = score(Prediction({"rate": torch.as_tensor(rates)}, dist.Poisson, "counts"), y)
    assert scores["rmse"] == pytest.approx(sk.root_mean_squared_error(y, rates[0].mean(0)))
    mixture = special.logsumexp(stats.poisson(rates[0]).logpmf(y), axis=0) - np.log(2000)
    assert scores["nll"] == pytest.approx(-mixture.mean())
    assert scores["coverage_95"] == pytest.approx(2 / 3)


def test_standard_errors_are_those_of_the_bootstrap():
    rng = np.random.default_rng(7)
    loc = rng.normal(size=400)
    y = loc + rng.standard_t(8, size=400)
    table = score_table(gaussian(loc[None, None], np.ones((1, 1, 1))), y)
    samples = rng.integers(0, 400, (1000, 400))
    rmse = ((loc - y)[samples] ** 2).mean(1) ** 0.5
    nll = -stats.norm(loc, 1).logpdf(y)[samples].mean(1)
    # the bootstrap's own relative error is about 1 / sqrt(2000)
    assert table["rmse"].standard_error == pytest.approx(rmse.std(), rel=0.15)
    assert table["nll"].standard_error == pytest.approx(nll.std(), rel=0.15)
    logits, labels = 2 * rng.normal(size=(1, 1, 400, 3)), rng.integers(0, 3, 400)
    table = score_table(categorical(logits), labels)
    ece = [score(categorical(logits[:, :, rows]), labels[rows])["ece"] for rows in samples[:300]]
    assert table["ece"].standard_error == pytest.approx(np.std(ece), rel=0.25)
    assert {name: entry.value for name, entry in table.items()} == score(categorical(logits), labels)


def test_one_datum_has_no_standard_error_and_a_perfect_fit_none_left():
    table = score_table(gaussian(np.zeros((1, 1, 1)), np.ones((1, 1, 1))), [2.0])
    assert table["rmse"].value == 2.0
    assert np.isnan(table["rmse"].standard_error)
    perfect = score_table(gaussian(np.zeros((1, 1, 2)), np.ones((1, 1, 1))), [0.0, 0.0])
    assert perfect["rmse"] == (0.0, 0.0)


def test_pointwise_means_are_the_scores(mixture):
    prediction, _, _, y = mixture
    values, scores = pointwise(prediction, y), score(prediction, y)
    assert all(v.shape == (4,) and v.dtype == np.float64 for v in values.values())
    assert values.pop("squared_error").mean() ** 0.5 == pytest.approx(scores["rmse"])
    for name, each in values.items():
        assert each.mean() == pytest.approx(scores[name])


def test_the_seed_fixes_the_draws_and_spares_the_global_generators(mixture):
    prediction, _, _, y = mixture
    before = torch.get_rng_state()
    assert score(prediction, y, seed=3) == score(prediction, y, seed=3) != score(prediction, y, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_of_many_kinds(mixture):
    prediction, _, _, y = mixture
    expected = score(prediction, y)
    column = torch.tensor(y)[:, None].requires_grad_()
    for given in (y.tolist(), pd.Series(y, index=[3, 2, 1, 0]), column, y.astype(np.float32)):
        assert score(prediction, given) == pytest.approx(expected)


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

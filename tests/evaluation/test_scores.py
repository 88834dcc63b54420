"""The single scores against closed forms, quadrature, brute force and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from sklearn import metrics as sk

from bnnzoo.evaluation import scores

RNG = np.random.default_rng


def integral(belief, y, reach=40.0):
    """CRPS by its definition, of a frozen scipy distribution."""
    below = integrate.quad(lambda v: belief.cdf(v) ** 2, min(y, belief.mean()) - reach, y, points=[belief.mean()])[0]
    above = integrate.quad(lambda v: belief.sf(v) ** 2, y, max(y, belief.mean()) + reach, points=[belief.mean()])[0]
    return below + above


def test_crps_of_a_gaussian_is_the_integral_of_its_definition():
    rng = RNG(0)
    mean, std, y = rng.normal(size=5), rng.uniform(0.2, 3, size=5), 2 * rng.normal(size=5)
    expected = [integral(stats.norm(m, s), v) for m, s, v in zip(mean, std, y, strict=True)]
    np.testing.assert_allclose(scores.crps_gaussian(mean, std, y), expected, rtol=1e-6)
    broadcast = scores.crps_gaussian(mean, 0.7, y[:, None])
    assert broadcast.shape == (5, 5)
    np.testing.assert_allclose(broadcast[1, 3], scores.crps_gaussian(mean[3], 0.7, y[1]))


def test_crps_of_a_sure_gaussian_is_the_absolute_error():
    np.testing.assert_allclose(scores.crps_gaussian(1.0, [0.0, 1e-320, 1e-9], [3.0, -1.0, 1.5]), [2.0, 2.0, 0.5])
    with pytest.raises(ValueError, match="std must be at least 0, given -1"):
        scores.crps_gaussian(0.0, [1.0, -1.0], 0.0)
    with pytest.raises(ValueError, match="std must be at least 0, given nan"):
        scores.crps_gaussian(0.0, math.nan, 0.0)


def test_crps_of_draws_is_the_integral_over_their_distribution_function_less_its_bias():
    rng = RNG(1)
    for count in (2, 7, 60):
        draws, y = rng.gamma(2.0, size=(count, 3)), rng.gamma(2.0, size=3)
        values = scores.crps_draws(torch.as_tensor(draws), y.tolist())
        for n in range(3):
            edges = np.sort(np.append(draws[:, n], y[n]))  # the integrand is constant between these
            middles = (edges[1:] + edges[:-1]) / 2
            below = (draws[:, n, None] <= middles).mean(0)
            empirical = ((below - (middles >= y[n])) ** 2 * np.diff(edges)).sum()
            distances = np.abs(draws[:, None, n] - draws[None, :, n]).sum()
            assert values[n] == pytest.approx(empirical - distances / (2 * count**2 * (count - 1)))


def test_crps_of_draws_is_unbiased_for_what_they_are_drawn_from():
    # A hundred thousand ensembles of four draws: the CRPS of the empirical distribution would be 0.14 too large.
    values = scores.crps_draws(RNG(1).normal(size=(4, 100_000)), np.full(100_000, 0.3))
    assert abs(values.mean() - integral(stats.norm(), 0.3)) < 5 * values.std() / 100_000**0.5


def test_crps_of_draws_does_not_depend_on_the_blocks(monkeypatch):
    rng = RNG(1)
    draws, y = rng.normal(size=(50, 7, 3)), rng.normal(size=(7, 3))
    whole = scores.crps_draws(draws, y)
    assert whole.shape == (7, 3)
    monkeypatch.setattr(scores, "_BLOCK", 200)
    np.testing.assert_array_equal(scores.crps_draws(draws, y), whole)
    for wrong in (draws[:, :6], draws[:1]):
        with pytest.raises(ValueError, match=r"draws must be \[S >= 2, 7, 3\] as y is, given \["):
            scores.crps_draws(wrong, y)


def test_log_densities():
    rng = RNG(2)
    mean, std, y = rng.normal(size=(4, 6)), rng.uniform(0.2, 3, size=(4, 6)), rng.normal(size=6)
    expected = np.exp(-((y - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)
    np.testing.assert_allclose(scores.pll_gaussian(mean, std, y), np.log(expected))
    np.testing.assert_allclose(scores.pll_mixture(np.log(expected)), np.log(expected.mean(0)))
    # Densities that are 0 in double precision; Teye et al. 2018, section 4.2: logsumexp - log T.
    assert scores.pll_mixture([[-2000.0], [-2000.0 + math.log(3.0)]]) == pytest.approx(-2000 + math.log(2))
    with pytest.raises(ValueError, match="std must be positive, given 0"):
        scores.pll_gaussian(0.0, [1.0, 0.0], 0.0)


def test_intervals():
    np.testing.assert_array_equal(scores.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1.1, -0.1]), [1, 1, 0, 0])
    np.testing.assert_array_equal(scores.interval_width([0.0, -1.0], [1.0, 2.0]), [1.0, 3.0])


def values_of_pit():
    rng = RNG(3)
    return [rng.uniform(size=7), rng.beta(2, 3, size=(10, 5)), np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.3, 0.9])]


@pytest.mark.parametrize("pit", values_of_pit(), ids=["uniform", "beta", "ends", "ties"])
def test_the_calibration_error_of_quantiles_is_the_area_to_the_diagonal(pit):
    levels = (np.arange(200_000) + 0.5) / 200_000
    below = np.searchsorted(np.sort(pit.ravel()), levels, side="right") / pit.size
    assert scores.quantile_calibration_error(pit) == pytest.approx(np.abs(below - levels).mean(), abs=1e-5)
    distance = stats.wasserstein_distance(pit.ravel(), levels)
    assert scores.quantile_calibration_error(pit) == pytest.approx(distance, abs=1e-5)
    parts = [(np.sign(below - levels) * ((u <= levels) - levels)).mean() for u in pit.ravel()]
    np.testing.assert_allclose(scores.quantile_calibration_parts(pit).ravel(), parts, atol=1e-5)
    assert scores.quantile_calibration_parts(pit).shape == pit.shape


def test_the_calibration_error_of_calibrated_quantiles_falls_with_the_root_of_the_data():
    # The mean area under a Brownian bridge's absolute value: √(2/π) ∫ √(p (1 - p)) dp = √(2π) / 8.
    values = np.array([scores.quantile_calibration_error(RNG(i).uniform(size=400)) for i in range(1000)]) * 400**0.5
    assert abs(values.mean() - math.sqrt(2 * math.pi) / 8) < 5 * values.std() / 1000**0.5 + 1 / 400
    assert scores.quantile_calibration_error((np.arange(1000) + 0.5) / 1000) < 1e-3
    assert scores.quantile_calibration_error([0.0, 1.0]) == 0.25
    assert scores.quantile_calibration_error([0.0]) == scores.quantile_calibration_error([1.0]) == 0.5
    for wrong in ([], [0.5, 1.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"pit must be values in \[0, 1\], at least one"):
            scores.quantile_calibration_error(wrong)


def forecasts(n=600, classes=4, seed=4):
    rng = RNG(seed)
    probs = special.softmax(2 * rng.normal(size=(n, classes)), -1)
    return probs, rng.integers(0, classes, n)


def test_brier_score():
    probs, labels = forecasts()
    one_hot = np.eye(4)[labels]
    np.testing.assert_allclose(scores.brier(probs, labels), ((probs - one_hot) ** 2).sum(1))
    binary = np.stack([1 - probs[:, 0], probs[:, 0]], -1)
    right = (labels == 0).astype(int)
    expected = 2 * sk.brier_score_loss(right, probs[:, 0])
    assert scores.brier(binary.reshape(30, 20, 2), right.reshape(30, 20)).mean() == pytest.approx(expected)


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    probs, labels = forecasts()
    confidence, correct = probs.max(1), (probs.argmax(1) == labels).astype(float)
    for bins in (1, 15, 40):
        error = 0.0
        for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
            members = (low < confidence) & (confidence <= high)
            if members.any():
                error += members.mean() * abs(correct[members].mean() - confidence[members].mean())
        assert scores.calibration_error(confidence, correct, bins) == pytest.approx(error)
        order = np.argsort(confidence)  # bins of 600 / 40 = 15 each
        parts = np.array_split(order, bins)
        error = sum(len(p) / 600 * abs(correct[p].mean() - confidence[p].mean()) for p in parts)
        assert scores.calibration_error(confidence, correct, bins, adaptive=True) == pytest.approx(error)
    shape = scores.calibration_parts(confidence.reshape(20, 30), correct.reshape(20, 30), adaptive=True).shape
    assert shape == (20, 30)


def test_bins():
    np.testing.assert_array_equal(scores.confidence_bins([0.0, 0.1, 0.2, 0.21, 1.0], 5), [0, 0, 0, 1, 4])
    np.testing.assert_array_equal(scores.adaptive_bins([0.9, 0.91, 0.3, 0.99], 2), [0, 1, 0, 1])
    # Equal confidences are in one bin, wherever they stand: the order of data does not count.
    np.testing.assert_array_equal(scores.adaptive_bins([0.5, 1.0, 0.5, 0.5, 1.0, 0.5], 3), [1, 2, 1, 1, 2, 1])
    assert scores.calibration_error([0.9] * 10, [1] * 9 + [0], adaptive=True) == pytest.approx(0.0)
    for wrong in (([0.5], [1, 0]), ([0.5], [1], 0)):
        with pytest.raises(ValueError, match="must have one shape, and bins be at least 1"):
            scores.calibration_error(*wrong)


def test_entropy_and_mutual_information():
    rng = RNG(5)
    probs = special.softmax(3 * rng.normal(size=(8, 50, 4)), -1)
    probs[:, 0] = np.eye(4)[2]
    np.testing.assert_allclose(scores.entropy(probs), stats.entropy(probs, axis=-1), atol=1e-12)
    # The mean divergence of the draws from their mean.
    expected = special.rel_entr(probs, probs.mean(0)).sum(-1).mean(0)
    np.testing.assert_allclose(scores.mutual_information(probs), expected, atol=1e-12)
    assert scores.mutual_information(probs)[0] == scores.entropy(probs)[0, 0] == 0.0
    assert math.copysign(1.0, scores.entropy([1.0, 0.0])) == 1.0
    assert scores.mutual_information([[[1.0, 0.0]], [[0.0, 1.0]]]) == pytest.approx(math.log(2))

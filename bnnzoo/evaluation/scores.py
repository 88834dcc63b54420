"""Scores of forecasts held as plain arrays, one function each; `bnnzoo.evaluation.score` has them all at once.

Each takes arrays, lists or tensors on the CPU and returns one value for each target, in the target's own units (log
densities in nats), to average; the calibration errors, which are of many targets together, return a number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scoringrules
from scipy.special import logsumexp, xlogy
from scipy.stats import norm, rankdata

BINS = 15
"""Number of confidence bins of the expected calibration error."""

_BLOCK = 2**22  # elements of predictive draws that are sorted at once


def crps_gaussian(mean: Any, std: Any, y: Any) -> np.ndarray:
    """Continuous ranked probability score of Gaussian forecasts; lower is better.

    `∫ (F(v) - 1{v ≥ y})² dv`, a generalization of the absolute error in the target's unit (Gneiting & Raftery 2007,
    Strictly Proper Scoring Rules, Prediction, and Estimation, section 4.2).

    Args:
        mean: Means, any shape.
        std: Standard deviations, ≥ 0; broadcastable. With 0 the score is the absolute error.
        y: Targets; broadcastable.

    Returns:
        One value a target, ≥ 0.

    Raises:
        ValueError: If a standard deviation is negative or NaN.
    """
    mean, std, y = np.broadcast_arrays(*(_array(each) for each in (mean, std, y)))
    _check_std(std, zero=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = scoringrules.crps_normal(y, mean, std, backend="numpy")
    # Where z = (y - mean) / std overflows, what it tends to.
    return np.where(np.isfinite(value), value, np.abs(y - mean))


def crps_draws(draws: Any, y: Any) -> np.ndarray:
    """Continuous ranked probability score of the distribution that draws are from; lower is better.

    The estimator by probability-weighted moments (Zamo & Naveau 2018): unbiased for the distribution drawn from, where
    the score of the draws' empirical distribution is too large by 1/S of their mean distance. See `crps_gaussian`.

    Args:
        draws: S ≥ 2 draws a target, [S, *B].
        y: Targets, [*B].

    Returns:
        One value a target, [*B]; of few draws an estimate may be negative.

    Raises:
        ValueError: If there are less than 2 draws, or the shapes differ.
    """
    draws, y = np.asarray(draws), _array(y)
    if draws.shape[1:] != y.shape or len(draws) < 2:
        raise ValueError(f"draws must be [S >= 2, {', '.join(map(str, y.shape))}] as y is, given {list(draws.shape)}")
    flat, targets = draws.reshape(len(draws), -1), y.reshape(-1)
    step = max(1, _BLOCK // len(draws))
    parts = [
        scoringrules.crps_ensemble(
            targets[i : i + step], flat[:, i : i + step].T.astype(np.float64), estimator="pwm", backend="numpy"
        )
        for i in range(0, max(len(targets), 1), step)
    ]
    return np.concatenate(parts).reshape(y.shape)


def pll_gaussian(mean: Any, std: Any, y: Any) -> np.ndarray:
    """Log density of targets under Gaussian forecasts, in nats; higher is better.

    The logarithmic score (Gneiting & Raftery 2007, section 4.1).

    Args:
        mean: Means, any shape.
        std: Standard deviations, > 0; broadcastable.
        y: Targets; broadcastable.

    Returns:
        One value a target.

    Raises:
        ValueError: If a standard deviation is not positive.
    """
    std = _array(std)
    _check_std(std, zero=False)
    return norm.logpdf(_array(y), _array(mean), std)


def pll_mixture(log_prob: Any) -> np.ndarray:
    """Log density of targets under an equal mixture of forecasts, in nats; higher is better.

    `log (1/T) Σ_t p_t(y)`, the predictive log likelihood of T draws of a posterior (Teye et al. 2018, section 4.2).

    Args:
        log_prob: The log density or log probability of each target under each of T forecasts, [T, *B].

    Returns:
        One value a target, [*B].
    """
    log_prob = _array(log_prob)
    return logsumexp(log_prob, axis=0) - math.log(len(log_prob))


def coverage(low: Any, high: Any, y: Any) -> np.ndarray:
    """Whether targets are within their predictive intervals, ends included: 1 or 0.

    Of central intervals of probability p the mean is p if they are calibrated (Gneiting & Raftery 2007, section 6.2).

    Args:
        low: Lower ends, any shape.
        high: Upper ends; broadcastable.
        y: Targets; broadcastable.
    """
    y = _array(y)
    return ((_array(low) <= y) & (y <= _array(high))).astype(np.float64)


def interval_width(low: Any, high: Any) -> np.ndarray:
    """Widths of predictive intervals, in the target's unit: of two with the same coverage the narrower is better.

    Args:
        low: Lower ends, any shape.
        high: Upper ends; broadcastable.
    """
    return _array(high) - _array(low)


def quantile_calibration_error(pit: Any) -> float:
    """The area between the curve of observed against predicted probabilities and the diagonal; lower is better.

    `∫ |share of PIT values ≤ p - p| dp` over p from 0 to 1: the mean distance of how often targets are below their
    predicted p-quantile from p (Kuleshov et al. 2018, Accurate Uncertainties for Deep Learning Using Calibrated
    Regression, section 3.5, with distances for squares and all levels for a few; the miscalibration area of Tran et al.
    2020). Of N calibrated forecasts it is about 0.31 / √N, not 0.

    Args:
        pit: Probability integral transforms, see `bnnzoo.evaluation.pit`; in [0, 1], any shape.

    Returns:
        From 0 to 0.5.

    Raises:
        ValueError: If there are none, or one is out of [0, 1].
    """
    return float(quantile_calibration_parts(pit).mean())


def quantile_calibration_parts(pit: Any) -> np.ndarray:
    """What each target adds to `quantile_calibration_error`, which is their mean.

    A target's part is `∫ sign(D(p)) (1{u ≤ p} - p) dp`, where D(p) is the share of all values ≤ p less p.

    Args:
        pit: As for `quantile_calibration_error`.

    Returns:
        Of the same shape.

    Raises:
        ValueError: As `quantile_calibration_error`.
    """
    u = _array(pit)
    values = np.sort(u.reshape(-1))
    if not values.size or not (values[0] >= 0.0 and values[-1] <= 1.0):
        raise ValueError("pit must be values in [0, 1], at least one")
    # D is k/N - p between the values k and k + 1 of the sorted ones: it changes sign there at most once, at k/N.
    levels = np.arange(len(values) + 1) / len(values)
    edges = np.concatenate([[0.0], values, [1.0]])
    crossing = np.clip(levels, edges[:-1], edges[1:])
    signs = np.concatenate([[0.0], np.cumsum((crossing - edges[:-1]) - (edges[1:] - crossing))])  # ∫ sign(D) from 0
    moment = 0.5 * ((crossing**2 - edges[:-1] ** 2) - (edges[1:] ** 2 - crossing**2)).sum()  # ∫ sign(D) p dp
    return signs[-1] - np.interp(u, edges, signs) - moment


def brier(probs: Any, labels: Any) -> np.ndarray:
    """Squared distance of class probabilities from the class that is, summed over classes: 0 to 2, lower is better.

    The multi-category score of Brier 1950 (Gneiting & Raftery 2007, section 3.1).

    Args:
        probs: Class probabilities, [*B, K].
        labels: Classes 0 to K - 1, [*B].

    Returns:
        One value a label.
    """
    probs = _array(probs)
    of_label = np.take_along_axis(probs, np.asarray(labels, np.int64)[..., None], -1)[..., 0]
    return (probs**2).sum(-1) - 2.0 * of_label + 1.0


def calibration_error(confidence: Any, correct: Any, bins: int = BINS, *, adaptive: bool = False) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence; lower is better.

    Bins are weighted by how many predictions they have. Equally wide (Guo et al. 2017, On Calibration of Modern Neural
    Networks, eq. 3), or with equally many predictions each, which do not depend on where confidences crowd (Nguyen &
    O'Connor 2015; adaptive as in Nixon et al. 2019, Measuring Calibration in Deep Learning, section 4).

    Args:
        confidence: Probabilities of the predicted classes, any shape.
        correct: Whether these are right, 1 or 0, of the same shape.
        bins: Number of bins, ≥ 1.
        adaptive: Whether the bins have equally many predictions, not equal widths.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: If the shapes differ or there are no bins.
    """
    return float(calibration_parts(confidence, correct, bins, adaptive=adaptive).mean())


def calibration_parts(confidence: Any, correct: Any, bins: int = BINS, *, adaptive: bool = False) -> np.ndarray:
    """What each prediction adds to `calibration_error`, which is their mean: confidence less correctness, or minus it.

    Args:
        confidence: As for `calibration_error`, as the others.
        correct: See there.
        bins: See there.
        adaptive: See there.

    Returns:
        Of the same shape; the sign is that of the bin.

    Raises:
        ValueError: As `calibration_error`.
    """
    confidence, correct = _array(confidence), _array(correct)
    if confidence.shape != correct.shape or bins < 1:
        raise ValueError(
            f"confidence and correct must have one shape, and bins be at least 1; given {list(confidence.shape)}, "
            f"{list(correct.shape)} and {bins}"
        )
    gaps = confidence - correct
    which = (adaptive_bins if adaptive else confidence_bins)(confidence, bins)
    signs = np.sign(np.bincount(which.reshape(-1), gaps.reshape(-1), bins))
    return signs[which] * gaps


def confidence_bins(confidence: Any, count: int = BINS) -> np.ndarray:
    """The bin, 0 to count - 1, of each confidence: bin i is (i/count, (i + 1)/count].

    Args:
        confidence: Probabilities, any shape.
        count: Number of bins, equally wide.
    """
    return np.clip(np.ceil(_array(confidence) * count).astype(np.int64) - 1, 0, count - 1)


def adaptive_bins(confidence: Any, count: int = BINS) -> np.ndarray:
    """The bin, 0 to count - 1, of each confidence by its rank: bins have equally many, equal confidences share one.

    Args:
        confidence: Probabilities, any shape.
        count: Number of bins.
    """
    confidence = _array(confidence)
    ranks = rankdata(confidence, axis=None).reshape(confidence.shape)
    return ((ranks - 0.5) / confidence.size * count).astype(np.int64)


def entropy(probs: Any) -> np.ndarray:
    """Entropy of class probabilities in nats, 0 to log K: a description of the forecast, not a score.

    Args:
        probs: Class probabilities, [*B, K].

    Returns:
        [*B].
    """
    probs = _array(probs)
    return -xlogy(probs, probs).sum(-1) + 0.0  # not -0


def mutual_information(probs: Any) -> np.ndarray:
    """Mutual information of class and weights in nats: the part of the entropy that is due to the weights, ≥ 0.

    Entropy of the mean less mean of the entropies (Houlsby et al. 2011, Bayesian Active Learning by Disagreement, eq.
    2): a description of the forecast, not a score.

    Args:
        probs: Class probabilities given each of S draws of the weights, [S, *B, K].

    Returns:
        [*B].
    """
    probs = _array(probs)
    return np.maximum(entropy(probs.mean(0)) - entropy(probs).mean(0), 0.0)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _check_std(std: np.ndarray, zero: bool) -> None:
    if not (np.all(std >= 0.0) if zero else np.all(std > 0.0)):
        raise ValueError(f"std must be {'at least 0' if zero else 'positive'}, given {np.min(std):g}")

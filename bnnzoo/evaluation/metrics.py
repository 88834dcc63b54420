"""Scores of a prediction against targets, in the targets' own units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import scoringrules
import torch
from torch import Tensor

from bnnzoo._vectorize import seeded
from bnnzoo.prediction import Prediction

LEVEL = 0.95
"""Probability of the intervals whose coverage and width are scored."""

BINS = 15
"""Number of equally wide confidence bins of the expected calibration error."""

_DRAWS = 1000  # least number of predictive draws that CRPS and ranks are taken from
_BLOCK = 2**22  # elements of predictive draws that are sorted at once


class Score(NamedTuple):
    """One score of a data set.

    Attributes:
        value: The score.
        standard_error: How far the value is from that of infinitely many data of the same kind: one standard error,
            from the spread over the N data scored (for `rmse` and `ece` to first order). NaN for N = 1.
    """

    value: float
    standard_error: float


def score(prediction: Prediction, y: Any, *, seed: int = 0) -> dict[str, float]:
    """Score a prediction against the observed targets, all in the targets' own units.

    Regression and counts (several targets a datum are averaged, but for `nll`, which is of their joint density):

    | name | what | better |
    |---|---|---|
    | `rmse` | root mean squared error of the predictive mean | lower |
    | `mae` | mean absolute error of the predictive mean | lower |
    | `nll` | mean of -log p(y_n), the average over all draws of the density, in nats | lower |
    | `crps` | continuous ranked probability score of the predictive distribution | lower |
    | `coverage_95` | fraction of targets inside the central 95% interval | 0.95 |
    | `width_95` | mean width of that interval | lower, at equal coverage |

    Classification (dense labels and several yes/no targets a datum are averaged, but for `nll`):

    | name | what | better |
    |---|---|---|
    | `accuracy`, `error` | fraction whose most probable class is right, wrong | higher, lower |
    | `nll` | mean of -log p(y_n), the average over all draws of the probability, in nats | lower |
    | `brier` | mean over data of the squared error of the probabilities, summed over classes (0 to 2) | lower |
    | `ece` | expected calibration error: mean distance of confidence and accuracy over 15 bins | lower |
    | `entropy` | mean entropy of the predicted class, in nats (a description, not a score) | |

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, [N] ([N, 1] too), [N, C] or [N, H, W]: tensor, array, list or series.
        seed: Fixes the predictive draws that `crps` is estimated from; the global generators are left alone.

    Returns:
        {name: value}.

    Raises:
        ValueError: If `y` has another length or shape than the prediction, holds NaN or infinite values, or labels or
            counts that the likelihood cannot produce.
    """
    return {name: entry.value for name, entry in score_table(prediction, y, seed=seed).items()}


def score_table(prediction: Prediction, y: Any, *, seed: int = 0) -> dict[str, Score]:
    """As `score`, each value with its standard error.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, as for `score`.
        seed: As for `score`.

    Returns:
        {name: (value, standard error)}.

    Raises:
        ValueError: As `score`.
    """
    table = {}
    for name, values in pointwise(prediction, y, seed=seed).items():
        entry = _mean(values)
        if name == "squared_error":
            name, root = "rmse", math.sqrt(entry.value)
            entry = Score(root, entry.standard_error / (2.0 * root) if root > 0.0 else 0.0)
        table[name] = entry
    return table


def _mean(values: np.ndarray) -> Score:
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Score(float(values.mean()), error)


def pointwise(prediction: Prediction, y: Any, *, seed: int = 0) -> dict[str, np.ndarray]:
    """What each datum adds to the scores: their means over data are the scores.

    Under the names of `score`, with `squared_error` in the place of `rmse`, which is the root of its mean. A datum's
    part of `ece` is its confidence less its correctness, with the sign of its bin.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, as for `score`.
        seed: As for `score`.

    Returns:
        {name: [N], float64}.

    Raises:
        ValueError: As `score`.
    """
    targets = as_targets(prediction, y)
    if prediction.task == "classification":
        return _classification(prediction, targets)
    return _regression(prediction, targets, seed)


def _regression(prediction: Prediction, y: Tensor, seed: int) -> dict[str, np.ndarray]:
    observed = to_numpy(y)
    mean = to_numpy(prediction.mean)
    low, high = (to_numpy(bound) for bound in prediction.interval(LEVEL))
    scores = {
        "squared_error": (mean - observed) ** 2,
        "mae": np.abs(mean - observed),
        "nll": -to_numpy(prediction.log_prob(y)),
        "crps": _crps(predictive_draws(prediction, seed), observed),
        "coverage_95": ((low <= observed) & (observed <= high)).astype(np.float64),
        "width_95": high - low,
    }
    return {name: _per_datum(values) for name, values in scores.items()}


def _crps(draws: np.ndarray, y: np.ndarray) -> np.ndarray:
    """CRPS of the distribution that [S, ...] are draws of, elementwise.

    The estimator is that by probability-weighted moments (`pwm`): unbiased for the distribution sampled, where that of
    the draws' empirical distribution (`nrg`, `qd`) is too large by 1/S of their mean distance.
    """
    flat, targets = draws.reshape(len(draws), -1), y.reshape(-1)
    step = max(1, _BLOCK // len(draws))
    parts = [
        scoringrules.crps_ensemble(
            targets[i : i + step], flat[:, i : i + step].T.astype(np.float64), estimator="pwm", backend="numpy"
        )
        for i in range(0, len(targets), step)
    ]
    return np.concatenate(parts).reshape(y.shape)


def _classification(prediction: Prediction, y: Tensor) -> dict[str, np.ndarray]:
    probs, labels = class_probabilities(prediction), to_numpy(y).astype(np.int64)
    correct = (probs.argmax(-1) == labels).astype(np.float64)
    of_label = np.take_along_axis(probs, labels[..., None], -1)[..., 0]
    confidence = probs.max(-1)
    signs = np.zeros(BINS)
    bins = confidence_bins(confidence)
    np.add.at(signs, bins.reshape(-1), (confidence - correct).reshape(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(probs > 0.0, probs * np.log(probs), 0.0).sum(-1)
    scores = {
        "accuracy": correct,
        "error": 1.0 - correct,
        "nll": -to_numpy(prediction.log_prob(y)),
        "brier": (probs**2).sum(-1) - 2.0 * of_label + 1.0,
        "ece": np.sign(signs)[bins] * (confidence - correct),
        "entropy": entropy,
    }
    return {name: _per_datum(values) for name, values in scores.items()}


def _per_datum(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).mean(1).astype(np.float64)


def confidence_bins(confidence: np.ndarray, count: int = BINS) -> np.ndarray:
    """The bin, 0 to count - 1, of each confidence: bin i is (i/count, (i + 1)/count].

    Args:
        confidence: Probabilities, any shape.
        count: Number of bins, equally wide.
    """
    return np.clip(np.ceil(confidence * count).astype(np.int64) - 1, 0, count - 1)


def class_probabilities(prediction: Prediction) -> np.ndarray:
    """Probabilities of the classes, the classes last: [N, K], [N, H, W, K], and for several yes/no targets [N, C, 2].

    Args:
        prediction: A classification.

    Returns:
        float64; rows sum to 1.
    """
    probs = to_numpy(prediction.probs).astype(np.float64)
    return probs / probs.sum(-1, keepdims=True)


def predictive_draws(prediction: Prediction, seed: int = 0) -> np.ndarray:
    """Draws of y from the posterior predictive, all chains together: [S, N, ...].

    One for each draw of the weights, and as many times more as it takes to have 1000.

    Args:
        prediction: What `Posterior.predict` returned.
        seed: Fixes the draws.
    """
    times = math.ceil(_DRAWS / math.prod(prediction.shape[:2]))
    with seeded(seed, next(iter(prediction.parameters.values())).device), torch.no_grad():
        return to_numpy(prediction.distribution.sample((times,)).flatten(0, 2))


def pit(prediction: Prediction, y: Any, *, seed: int = 0) -> np.ndarray:
    """Probability integral transform: where each target falls in its predictive distribution.

    Uniform on [0, 1] if the predictive distributions are calibrated. The distribution function at the target; for
    counts its rank among predictive draws, ties broken at random.

    Args:
        prediction: A regression or counts.
        y: The targets, as for `score`.
        seed: Fixes draws and ties.

    Returns:
        [N] or [N, C].

    Raises:
        ValueError: As `score`, and for a classification.
    """
    if prediction.task == "classification":
        raise ValueError("pit is for regression and counts; class probabilities have a reliability diagram")
    targets = as_targets(prediction, y)
    if prediction.task == "regression":
        return to_numpy(prediction.cdf(targets))
    draws, observed = predictive_draws(prediction, seed), to_numpy(targets)
    below, ties = (draws < observed).sum(0), (draws == observed).sum(0)
    # The target is one more draw if the prediction is right: its rank among S + 1 is uniform.
    uniform = np.random.default_rng(seed).uniform(size=observed.shape)
    return (below + uniform * (ties + 1)) / (len(draws) + 1)


def as_targets(prediction: Prediction, y: Any) -> Tensor:
    """Targets as the prediction takes them.

    Args:
        prediction: What `Posterior.predict` returned.
        y: Tensor, array, list or series.

    Returns:
        On the prediction's device, [N] or [N, ...]; int64 for categorical labels, else floating.

    Raises:
        ValueError: If they do not fit the prediction.
    """
    try:
        values = y.detach().cpu().double() if isinstance(y, Tensor) else torch.from_numpy(np.array(y, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers, given {type(y).__name__}: {error}") from None
    expected = tuple(prediction.shape[2:])
    if values.dim() == 0 or values.shape[0] != expected[0]:
        given = values.shape[0] if values.dim() else "a single number"
        raise ValueError(f"y and the prediction differ in length: the prediction has {expected[0]} data, y has {given}")
    if tuple(values.shape) == (*expected, 1):
        values = values.squeeze(-1)
    if tuple(values.shape) != expected:
        raise ValueError(f"y must have shape {expected}, as the prediction has, given {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(f"y holds {count} NaN or infinite values; every target must be finite to be scored")
    reference = next(iter(prediction.parameters.values()))
    categorical = issubclass(prediction.family, dist.Categorical)
    if prediction.task != "regression":
        top = math.inf if prediction.task == "counts" else reference.shape[-1] - 1 if categorical else 1
        if bool((values != values.round()).any()) or bool((values < 0).any()) or bool((values > top).any()):
            allowed = "counts 0, 1, 2, ..." if top == math.inf else f"labels 0 to {top}"
            raise ValueError(f"y must hold {allowed}, given values from {values.min():g} to {values.max():g}")
    values = values.to(device=reference.device)
    return values.long() if categorical else values.to(reference.dtype)


def to_numpy(values: Tensor) -> np.ndarray:
    """The tensor's values, on the CPU.

    Args:
        values: Any tensor.
    """
    return values.detach().cpu().numpy()

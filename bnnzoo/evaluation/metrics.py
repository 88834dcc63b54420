"""Scores of a prediction against targets, in the targets' own units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
import xarray as xr
from torch import Tensor

from bnnzoo._vectorize import seeded
from bnnzoo.evaluation import scores
from bnnzoo.prediction import Prediction

LEVEL = 0.95
"""Probability of the intervals whose coverage and width are scored."""

_DRAWS = 1000  # least number of predictive draws that CRPS and ranks are taken from


class Scored:
    """A prediction of one chain and what came true: what scores are made of, each computed once, as float64.

    Args:
        prediction: Of one chain.
        y: Targets, as `as_targets` returns them.
        seed: Fixes predictive draws.
    """

    def __init__(self, prediction: Prediction, y: Tensor, seed: int) -> None:
        self.prediction, self.seed = prediction.double(), seed
        self._y = y
        self.y = _floats(y)

    @cached_property
    def mean(self) -> np.ndarray:
        """Predictive means, [N, ...]."""
        return _floats(self.prediction.mean)

    @cached_property
    def std(self) -> np.ndarray:
        """Predictive standard deviations, [N, ...]."""
        return _floats(self.prediction.std)

    @cached_property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the central 95% intervals, [N, ...] each."""
        low, high = self.prediction.interval(LEVEL)
        return _floats(low), _floats(high)

    @cached_property
    def log_prob(self) -> np.ndarray:
        """Log density or log probability of the targets of each datum, [N]."""
        return _floats(self.prediction.log_prob(self._y))

    @cached_property
    def draws(self) -> np.ndarray:
        """Draws of targets, [S, N, ...]."""
        return predictive_draws(self.prediction, self.seed)

    @cached_property
    def pit(self) -> np.ndarray:
        """Probability integral transforms, [N, ...]."""
        return _pit(self.prediction, self._y, self.seed)

    @cached_property
    def probs(self) -> np.ndarray:
        """Class probabilities, [N, ..., K]."""
        return class_probabilities(self.prediction)

    @property
    def labels(self) -> np.ndarray:
        """The classes that are, [N, ...]."""
        return self.y.astype(np.int64)

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class is right, 1 or 0, [N, ...]."""
        return (self.probs.argmax(-1) == self.labels).astype(np.float64)

    @property
    def confidence(self) -> np.ndarray:
        """Probabilities of the most probable classes, [N, ...]."""
        return self.probs.max(-1)


@dataclass(frozen=True)
class Kind:
    """One score: how it is computed, and its meaning.

    Attributes:
        long_name: In words.
        units: `"target"` for those of the targets, `"nats"`, or `"1"` for a number without.
        better: Whether `"lower"` or `"higher"` values are better, or `"none"` are.
        values: What each target, [N, ...], or each datum, [N], adds to it.
        root_of: Name of what each datum adds where the score is the root of the mean of that, not the mean.
    """

    long_name: str
    units: str
    better: Literal["lower", "higher", "none"]
    values: Callable[[Scored], np.ndarray]
    root_of: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """What describes it in a data set."""
        return {"long_name": self.long_name, "units": self.units, "better": self.better}


_NUMBERS = {
    "rmse": Kind("RMSE", "target", "lower", lambda s: (s.mean - s.y) ** 2, root_of="squared_error"),
    "mae": Kind("MAE", "target", "lower", lambda s: np.abs(s.mean - s.y)),
    "pll": Kind("predictive log likelihood", "nats", "higher", lambda s: s.log_prob),
    "pll_gaussian": Kind(
        "log likelihood of the Gaussian",
        "nats",
        "higher",
        lambda s: scores.pll_gaussian(s.mean, s.std, s.y).reshape(len(s.y), -1).sum(1),
    ),
    "crps": Kind("CRPS", "target", "lower", lambda s: scores.crps_draws(s.draws, s.y)),
    "crps_gaussian": Kind(
        "CRPS of the Gaussian", "target", "lower", lambda s: scores.crps_gaussian(s.mean, s.std, s.y)
    ),
    "coverage_95": Kind("coverage of 95% intervals", "1", "none", lambda s: scores.coverage(*s.interval, s.y)),
    "width_95": Kind("width of 95% intervals", "target", "none", lambda s: scores.interval_width(*s.interval)),
    "calibration_error": Kind(
        "calibration error of quantiles", "1", "lower", lambda s: scores.quantile_calibration_parts(s.pit)
    ),
}
_CLASSES = {
    "accuracy": Kind("accuracy", "1", "higher", lambda s: s.correct),
    "error": Kind("error", "1", "lower", lambda s: 1.0 - s.correct),
    "pll": Kind("predictive log likelihood", "nats", "higher", lambda s: s.log_prob),
    "brier": Kind("Brier score", "1", "lower", lambda s: scores.brier(s.probs, s.labels)),
    "ece": Kind("calibration error (ECE)", "1", "lower", lambda s: scores.calibration_parts(s.confidence, s.correct)),
    "adaptive_ece": Kind(
        "adaptive calibration error",
        "1",
        "lower",
        lambda s: scores.calibration_parts(s.confidence, s.correct, adaptive=True),
    ),
    "entropy": Kind("predictive entropy", "nats", "none", lambda s: scores.entropy(s.probs)),
    "mutual_information": Kind(
        "mutual information", "nats", "none", lambda s: _floats(s.prediction.mutual_information)
    ),
    "confidence": Kind("confidence", "1", "none", lambda s: s.confidence),
}

KINDS: dict[str, dict[str, Kind]] = {
    "regression": _NUMBERS,
    "counts": {name: kind for name, kind in _NUMBERS.items() if not name.endswith("_gaussian")},
    "classification": _CLASSES,
}
"""The scores of each task, in the order shown."""


def score(prediction: Prediction, y: Any, *, seed: int = 0) -> xr.Dataset:
    """Score a prediction against the observed targets, all in the targets' own units, each chain alone.

    The chains of `prediction` are scored one by one. `score(prediction.pooled, y)` scores all of them as one mixture:
    an ensemble's members, or chains of one sampler.

    Regression and counts (several targets a datum are averaged, but for log likelihoods, which are of all together):

    | name | what | better |
    |---|---|---|
    | `rmse` | root mean squared error of the predictive mean | lower |
    | `mae` | mean absolute error of the predictive mean | lower |
    | `pll` | predictive log likelihood: mean of log p(y_n), the average over draws of the density, in nats | higher |
    | `pll_gaussian` | the same of Gaussians with the predictive's means and variances (not of counts) | higher |
    | `crps` | continuous ranked probability score of the predictive distribution | lower |
    | `crps_gaussian` | the same of Gaussians with the predictive's means and variances (not of counts) | lower |
    | `coverage_95` | fraction of targets inside the central 95% interval | 0.95 |
    | `width_95` | mean width of that interval | lower, at equal coverage |
    | `calibration_error` | mean distance of how many targets are below their p-quantile from p, over all p | lower |

    Classification (dense labels and several yes/no targets a datum are averaged, but for `pll`):

    | name | what | better |
    |---|---|---|
    | `accuracy`, `error` | fraction whose most probable class is right, wrong | higher, lower |
    | `pll` | predictive log likelihood: mean of log p(y_n), the average over draws of it, in nats | higher |
    | `brier` | mean over data of the squared error of the probabilities, summed over classes (0 to 2) | lower |
    | `ece` | expected calibration error: mean distance of confidence and accuracy over 15 equally wide bins | lower |
    | `adaptive_ece` | the same over 15 bins with equally many predictions | lower |
    | `entropy` | mean entropy of the predicted class, in nats (a description, as the next two) | |
    | `mutual_information` | mean of the part of it that is due to the weights, in nats | |
    | `confidence` | mean probability of the predicted class | |

    The single scores are functions of `bnnzoo.evaluation.scores`, with their sources.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, [N] ([N, 1] too), [N, C] or [N, H, W]: tensor, array, list or series.
        seed: Fixes the predictive draws that `crps` is estimated from; the global generators are left alone.

    Returns:
        Each score and, as `<name>_se`, its standard error, both by `chain`: how far the score is from that of
        infinitely many data of the same kind, from the spread over the N data (for `rmse` and the calibration errors
        to first order); NaN for N = 1. Their attributes are `long_name`, `units` (`"target"` for those of the targets,
        `"nats"` or `"1"`), and `better` (`"lower"`, `"higher"` or `"none"`).

    Raises:
        ValueError: If there are no data, the prediction holds NaN, or `y` has another length or shape than the
            prediction, holds NaN or infinite values, or labels or counts that the likelihood cannot produce.
    """
    values = pointwise(prediction, y, seed=seed)
    found = {}
    for name, kind in KINDS[prediction.task].items():
        each = values[kind.root_of or name].values
        mean, error = each.mean(1), _standard_error(each)
        if kind.root_of:
            mean = np.sqrt(mean)
            error = np.divide(error, 2.0 * mean, out=np.zeros_like(error), where=mean > 0.0)
        about = kind.attributes
        found[name] = ("chain", mean, about)
        found[f"{name}_se"] = ("chain", error, about | {"long_name": f"standard error of {name}", "better": "none"})
    return xr.Dataset(found)


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Of means over data, [chain, N]."""
    count = values.shape[1]
    return values.std(1, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(values), math.nan)


def numbers(table: xr.Dataset) -> dict[str, tuple[float, float]]:
    """The scores of one chain, or of all pooled, as plain numbers.

    Args:
        table: What `score` returned for a prediction of one chain.

    Returns:
        {name: (score, standard error)}.
    """
    names = [str(name) for name in table if f"{name}_se" in table]
    return {name: (table[name].item(), table[f"{name}_se"].item()) for name in names}


def plus_minus(value: float, error: float) -> str:
    """A value and its standard error, both to the error's second digit: `49.6 ± 4.2`.

    Args:
        value: Any number.
        error: Its standard error; without one (NaN, or none to speak of) the value stands alone, with four digits.
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 1e-4 * abs(value)):
        return number(value)
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def number(value: float) -> str:
    """A number with four digits, or all of those before the point.

    Args:
        value: Any number.
    """
    return f"{value:.4g}" if abs(value) < 1e4 or not math.isfinite(value) else f"{value:.0f}"


def pointwise(prediction: Prediction, y: Any, *, seed: int = 0) -> xr.Dataset:
    """What each datum adds to the scores: their means over data are the scores.

    Under the names of `score`, with `squared_error` in the place of `rmse`, which is the root of its mean. A datum's
    part of a calibration error has the sign of its bin or level: confidence less correctness, for `ece`.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, as for `score`.
        seed: As for `score`.

    Returns:
        Each by `chain` and `obs`, with attributes as of `score`.

    Raises:
        ValueError: As `score`.
    """
    targets = as_targets(prediction, y)
    unknown = [name for name, value in prediction.parameters.items() if bool(value.isnan().any())]
    if unknown:
        raise ValueError(
            f"the prediction holds NaN ({', '.join(unknown)}) and has no scores: did the fit diverge, or are there "
            "inputs that the network cannot take?"
        )
    kinds = KINDS[prediction.task]
    with torch.no_grad():
        chains = (Scored(prediction.chain(index), targets, seed) for index in range(prediction.shape[0]))
        by_chain = [{name: _per_datum(kind.values(chain)) for name, kind in kinds.items()} for chain in chains]
    found = {}
    for name, kind in kinds.items():
        values = np.stack([each[name] for each in by_chain])
        about = kind.attributes
        if kind.root_of:
            about |= {"long_name": kind.root_of.replace("_", " "), "units": f"{kind.units}^2"}
        found[kind.root_of or name] = (("chain", "obs"), values, about)
    return xr.Dataset(found)


def _per_datum(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).mean(1)


def _floats(values: Tensor) -> np.ndarray:
    return to_numpy(values).astype(np.float64)


def class_probabilities(prediction: Prediction) -> np.ndarray:
    """Probabilities of the classes, the classes last: [N, K], [N, H, W, K], and for several yes/no targets [N, C, 2].

    Args:
        prediction: A classification.

    Returns:
        float64; rows sum to 1.
    """
    probs = to_numpy(prediction.double().probs)
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
        return to_numpy(prediction.double().distribution.sample((times,)).flatten(0, 2))


def pit(prediction: Prediction, y: Any, *, seed: int = 0) -> np.ndarray:
    """Probability integral transform: where each target falls in its predictive distribution, all chains together.

    Uniform on [0, 1] if the predictive distributions are calibrated. The distribution function at the target; for
    counts its rank among predictive draws, ties broken at random.

    Args:
        prediction: A regression or counts.
        y: The targets, as for `score`.
        seed: Fixes draws and ties.

    Returns:
        [N] or [N, C], in [0, 1].

    Raises:
        ValueError: As `score`, and for a classification.
    """
    if prediction.task == "classification":
        raise ValueError("pit is for regression and counts; class probabilities have a reliability diagram")
    return _pit(prediction, as_targets(prediction, y), seed)


def _pit(prediction: Prediction, targets: Tensor, seed: int) -> np.ndarray:
    if prediction.task == "regression":
        return _floats(prediction.double().cdf(targets)).clip(0.0, 1.0)
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
        On the prediction's device, [N] or [N, ...]; int64 for categorical labels, else float64, whatever the prediction
        is: in float32 a large target would lose its difference from what was predicted.

    Raises:
        ValueError: If they do not fit the prediction, or there are none.
    """
    try:
        values = y.detach().cpu().double() if isinstance(y, Tensor) else torch.from_numpy(np.array(y, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers, given {type(y).__name__}: {error}") from None
    expected = tuple(prediction.shape[2:])
    if values.dim() == 0 or values.shape[0] != expected[0]:
        given = values.shape[0] if values.dim() else "a single number"
        raise ValueError(f"y and the prediction differ in length: the prediction has {expected[0]} data, y has {given}")
    if not math.prod(expected):
        raise ValueError(f"there are no data: the prediction and y are empty, of shape {expected}")
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
    return values.long() if categorical else values


def to_numpy(values: Tensor) -> np.ndarray:
    """The tensor's values, on the CPU.

    Args:
        values: Any tensor.
    """
    return values.detach().cpu().numpy()

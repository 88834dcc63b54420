"""How good an uncertainty is between a constant one and the best possible (Teye et al. 2018, section 4.2).

For a regression: `constant_uncertainty` makes the baseline that a posterior must beat (CUBN, CUDO), `optimum` is what
no uncertainty beats, `normalized_scores` says how far from the one to the other a prediction gets, and `t_test` whether
that is more than chance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from bnnzoo.data import as_dataset
from bnnzoo.evaluation.metrics import as_targets, score, to_numpy
from bnnzoo.guides import Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.noise import best_scale
from bnnzoo.posterior import Posterior, _conditional
from bnnzoo.prediction import Prediction

_ROWS = 2**12  # inputs that pass through the network together

SCORES = {"crps": "crps_gaussian", "pll": "pll"}
"""The normalized scores, and which scores of `score` they are made of: the paper's CRPS is of a Gaussian."""


def point_prediction(posterior: Posterior, x: Any, num_samples: int | None = None, seed: int = 0) -> Tensor:
    """What the network predicts without the posterior's uncertainty, in the target's own units, for each chain.

    The network with the weights in the middle of the guide (`Guide.center`): for `guides.BatchNorm` the ordinary
    network with its running statistics, for `guides.Dropout` the network without dropout, for Gaussians and `Map` that
    of the mean weights, for Pyro's AutoGuides of their medians. Guides without such weights (`MNF`, draws of a sampler)
    predict the mean over their draws.

    Args:
        posterior: A posterior of numbers.
        x: Inputs in their own units, [N, ...].
        num_samples: Draws a chain for a guide without a center, see `Posterior.predict`.
        seed: Fixes these.

    Returns:
        [chain, N, *event].

    Raises:
        ValueError: If `x` does not fit the network.
        TypeError: For classes.
    """
    likelihood = posterior.bnn.likelihood
    if likelihood.task == "classification":
        raise TypeError("a constant uncertainty is for numbers: the targets of this posterior are classes")
    center = _center(posterior)
    if center is None:
        return posterior.predict(x, num_samples, seed, method="draws").draws.mean(1)
    x = posterior._inputs(x)
    posterior._conditional_once(x)
    parts = []
    for rows in x.split(_ROWS):
        parameters = posterior._rescaled(posterior._map(_conditional, center, rows))
        parts.append(Prediction(parameters, likelihood.family, likelihood.task).draws.squeeze(1))
    return torch.cat(parts, 1)


def _center(posterior: Posterior) -> dict[str, Tensor] | None:
    """The middle of the guide, {site: [chain, 1, *shape]}, or None."""

    def center(_: BayesianNetwork, guide: Any) -> dict[str, Tensor] | None:
        if isinstance(guide, Guide):
            return guide.center()
        try:
            return guide.median()  # of Pyro's AutoGuides, some have one
        except (AttributeError, NotImplementedError):
            return None

    if center(posterior.bnn, posterior.guide) is None:
        return None
    found = posterior._map_chains(center)
    return {name: found[name].unsqueeze(1) for name in posterior.bnn.sites}


@dataclass(frozen=True)
class ConstantUncertainty:
    """A Gaussian of one constant scale around the point prediction of a posterior.

    Attributes:
        posterior: Whose `point_prediction` it is around.
        scale: Standard deviations in the target's own units, [chain, *event], or [1, *event] for all chains.
        num_samples: See `point_prediction`.
        seed: See `point_prediction`.
    """

    posterior: Posterior = field(repr=False)
    scale: Tensor
    num_samples: int | None = None
    seed: int = 0

    def predict(self, x: Any) -> Prediction:
        """The predictive distribution, to score and plot as any other, [chain, 1, N, *event].

        Args:
            x: Inputs in their own units, [N, ...].
        """
        loc = point_prediction(self.posterior, x, self.num_samples, self.seed).unsqueeze(1)
        scale = self.scale.to(loc).expand(len(loc), *loc.shape[3:]).reshape(len(loc), 1, 1, *loc.shape[3:])
        return Prediction({"loc": loc, "scale": scale}, dist.Normal, "regression")


def constant_uncertainty(
    posterior: Posterior, data: Any, by: str = "crps", *, num_samples: int | None = None, seed: int = 0
) -> ConstantUncertainty:
    """The baseline of a constant uncertainty, its scale chosen on held-out data for each chain and target.

    CUBN for `guides.BatchNorm`, CUDO for `guides.Dropout` (Teye et al. 2018, section 4.2).

    Args:
        posterior: A posterior of numbers.
        data: Validation data in their own units: whatever `fit` takes. Not those of the fit, whose errors are too
            small.
        by: `"crps"`, as the paper, or `"pll"`: what the scale is best by (`noise.best_scale`).
        num_samples: See `point_prediction`.
        seed: See `point_prediction`.

    Raises:
        ValueError: If `by` is unknown, the data do not fit, or the predictions equal the targets.
        TypeError: For classes.
    """
    dataset = as_dataset(data)
    point = point_prediction(posterior, dataset.x, num_samples, seed)
    y = posterior.bnn.likelihood.prepare(dataset.y).to(point)
    if y.shape != point.shape[1:]:
        raise ValueError(f"y must have the prediction's shape {list(point.shape[1:])}, not {list(y.shape)}")
    errors = (y - point).reshape(len(point), 1, len(y), -1)
    scale = best_scale(errors, by, each_target=True).reshape(len(point), *point.shape[2:])
    return ConstantUncertainty(posterior, scale.to(point), num_samples, seed)


def crps_optimum(error: Any) -> np.ndarray:
    """The least CRPS of a Gaussian whose mean is off by an error: `(2Φ(√ln 2) - 1) |e|`, about 0.5949 |e|.

    Reached at the scale `|e| / √ln 2`, which the paper finds numerically (Teye et al. 2018, section 4.2, footnote 10).

    Args:
        error: Targets less predicted means, any shape.
    """
    return (2.0 * stats.norm.cdf(math.sqrt(math.log(2.0))) - 1.0) * np.abs(np.asarray(error, np.float64))


def crps_optimal_scale(error: Any) -> np.ndarray:
    """The scale of a Gaussian that makes the CRPS least, `|e| / √ln 2`; see `crps_optimum`.

    Args:
        error: Targets less predicted means, any shape.
    """
    return np.abs(np.asarray(error, np.float64)) / math.sqrt(math.log(2.0))


def pll_optimum(error: Any) -> np.ndarray:
    """The highest log density of a Gaussian whose mean is off by an error: `-½ log 2π - ½ - log |e|`, in nats.

    Reached at the precision `e⁻²`, the scale |e|. An error of 0 has none: the density grows without bound, and the
    value is infinite.

    Args:
        error: Targets less predicted means, any shape.
    """
    with np.errstate(divide="ignore"):
        return -0.5 * math.log(2.0 * math.pi) - 0.5 - np.log(np.abs(np.asarray(error, np.float64)))


def optimum(prediction: Prediction, y: Any) -> xr.Dataset:
    """The best scores that any Gaussian uncertainty around the predicted means can have, datum by datum.

    Args:
        prediction: A regression, each chain with means of its own.
        y: The targets, as for `score`.

    Returns:
        `crps` (the mean over several targets a datum) and `pll` (their sum; infinite where a mean equals its target),
        by `chain` and `obs`.

    Raises:
        ValueError: As `score`, and for classes.
    """
    if prediction.task != "regression":
        raise ValueError(f"the optimal uncertainty is for regression, and these are {prediction.task} targets")
    targets = as_targets(prediction, y)
    means = np.stack([to_numpy(prediction.chain(index).mean) for index in range(prediction.shape[0])])
    errors = (to_numpy(targets).astype(np.float64) - means).reshape(*means.shape[:2], -1)
    dims = ("chain", "obs")
    about = {"long_name": "optimal CRPS", "units": "target", "better": "lower"}
    found = {"crps": (dims, crps_optimum(errors).mean(-1), about)}
    about = {"long_name": "optimal log likelihood", "units": "nats", "better": "higher"}
    return xr.Dataset(found | {"pll": (dims, pll_optimum(errors).sum(-1), about)})


def normalized(score: Any, constant: Any, optimum: Any) -> Any:
    """A score in percent of the way from that of a constant uncertainty to the optimum.

    `100 (score - constant) / (optimum - constant)`: 0 is no better than a constant, below it worse, 100 cannot be
    beaten (Teye et al. 2018, section 4.2). Of an infinite way, an infinite optimum, every score has made 0%.

    Args:
        score: Mean CRPS or mean log likelihood: a number, array or `xarray.DataArray`.
        constant: The same of the constant uncertainty.
        optimum: The same of the optimum.
    """
    return 100.0 * (score - constant) / (optimum - constant)


def normalized_scores(prediction: Prediction, constant: Prediction, y: Any) -> xr.Dataset:
    """Normalized CRPS and log likelihood of a prediction, each chain's, beside the scores that they are made of.

    Args:
        prediction: A regression. Its CRPS is that of the Gaussian with its mean and variance, its log likelihood that
            of the mixture, and the optimum is around its own means.
        constant: What `ConstantUncertainty.predict` says for the same inputs; with as many chains, or one for all.
        y: The targets, as for `score`.

    Returns:
        By `chain`, for `crps` and `pll`: `<name>` in percent, see `normalized`, `<name>_raw`, `<name>_constant` and
        `<name>_optimum`.

    Raises:
        ValueError: As `score`; for classes or counts; if the numbers of chains do not fit.

    Warns:
        UserWarning: If a predicted mean equals its target: the optimal log likelihood is infinite there.
    """
    best = optimum(prediction, y)
    chains, others = prediction.shape[0], constant.shape[0]
    if others not in (1, chains):
        raise ValueError(f"the constant uncertainty must have 1 or {chains} chains as the prediction has, not {others}")
    hits = int(np.isinf(best["pll"].values).sum())
    if hits:
        warnings.warn(
            f"{hits} predicted means equal their targets: the optimal log likelihood is infinite, and the normalized "
            "one of their chains is 0",
            UserWarning,
            stacklevel=2,
        )
    raw, base = score(prediction, y), score(constant, y)
    found = {}
    for name, of in SCORES.items():
        values, least, most = raw[of].values, np.broadcast_to(base[of].values, chains), best[name].values.mean(1)
        title = {"crps": "CRPS", "pll": "log likelihood"}[name]
        about = {"long_name": f"normalized {title}", "units": "percent", "better": "higher"}
        found[name] = ("chain", normalized(values, least, most), about)
        for word, each in (("raw", values), ("constant", least), ("optimum", most)):
            found[f"{name}_{word}"] = ("chain", each, raw[of].attrs | {"long_name": f"{title}, {word}"})
    return xr.Dataset(found)


def t_test(values: Any, dim: Hashable | Iterable[Hashable] | None = None, bound: float = 0.0) -> xr.Dataset:
    """Whether the mean of repetitions differs from a bound: Student's one-sample test, two-sided.

    As the paper's of normalized scores against 0, over 5 splits with 5 seeds each (Teye et al. 2018, Tables 4 and 5).
    Seeds of one split share their data, so that their values are alike and p is too small; for a test of independent
    values average over seeds first.

    Args:
        values: Repetitions, an array or `xarray.DataArray`.
        dim: Dimensions of a `DataArray` that are repetitions; default all.
        bound: What the mean is compared with.

    Returns:
        `mean`, `standard_error`, `t` and `p_value`, over the other dimensions. NaN but for the mean where there is one
        repetition.

    Raises:
        ValueError: If there are no repetitions.
    """
    array = values if isinstance(values, xr.DataArray) else xr.DataArray(np.asarray(values, np.float64))
    over = list(array.dims) if dim is None else [dim] if isinstance(dim, str) else list(dim)  # type: ignore[arg-type]
    count = math.prod(array.sizes[each] for each in over)
    if count < 1 or not over:
        raise ValueError(f"values must have repetitions, given shape {list(array.shape)}")
    flat = array.transpose(..., *over)
    rest = flat.dims[: flat.ndim - len(over)]
    each = flat.values.reshape(*flat.shape[: len(rest)], count).astype(np.float64)
    if count > 1:
        test = stats.ttest_1samp(each, bound, axis=-1)
        error, t, p = each.std(-1, ddof=1) / math.sqrt(count), test.statistic, test.pvalue
    else:
        error = t = p = np.full(each.shape[:-1], math.nan)
    found = {"mean": each.mean(-1), "standard_error": error, "t": t, "p_value": p}
    coordinates = {name: array.coords[name] for name in rest if name in array.coords}
    return xr.Dataset({name: (rest, np.asarray(value)) for name, value in found.items()}, coords=coordinates)

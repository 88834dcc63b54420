"""Scores of a posterior predictive as an adversarial attack on it grows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from bnnzoo.evaluation.adversarial import Attack, FastGradientSign
from bnnzoo.evaluation.metrics import score
from bnnzoo.evaluation.predictive_gradient import SCORE, predictives, seed_of
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

_OF_TARGET = {
    "accuracy": "share predicted as the target",
    "rmse": "root mean squared distance of the predictive mean from the target",
    "pll": "log likelihood of the target",
}


def attack_curve(
    posterior: Posterior,
    x: Any,
    y: Any,
    attack: Attack | None = None,
    *,
    pooled: bool = False,
    seed: int = 0,
    max_memory: int = 2**30,
    **predict: Any,
) -> xr.Dataset:
    """All scores of the prediction as an attack grows: accuracy and entropy of classes, RMSE of numbers, and so on.

    Every chain is attacked on its own predictive and scored on what the attack made of it, by draws of its own: those
    that the gradient went through are not those that are scored (stored draws, as of MCMC, and moments are the same).

    Args:
        posterior: What is attacked.
        x: Inputs in their own units, real numbers, [N, ...].
        y: Observed targets, as of `score`.
        attack: The attack; default `FastGradientSign()`.
        pooled: Whether all chains are one predictive (an ensemble), or each is one.
        seed: Fixes the draws.
        max_memory: Bytes that a gradient may take, and a prediction.
        **predict: Of `Posterior.predict`: `num_samples` (draws a chain), `method`, and what belongs to moments.

    Returns:
        The variables of `score` with dims (chain, epsilon) or (chain, step). `<name>_se` are standard errors over the
        inputs; chains are attacked at the same inputs, so their errors are not independent: `chain_mean` combines them.
        With a target also `target_accuracy` (the share that is predicted as the target), `target_rmse` and
        `target_pll`, of the target in the place of `y`.

    Raises:
        ValueError: As `Attack.path` and `score`.
    """
    attack = FastGradientSign() if attack is None else attack
    members = predictives(posterior, pooled, max_memory, predict)
    values, points = [], []
    path = attack.path(posterior, x, y, pooled=pooled, seed=seed, max_memory=max_memory, **predict)
    for value, moved in path:
        scored = []
        for predictive, inputs in zip(members, moved, strict=True):
            prediction = predictive.at(inputs, seed_of(seed, SCORE, 0)).pooled
            scored.append(_scored(prediction, y, attack.targets(prediction), seed))
        values.append(value)
        points.append(xr.concat(scored, "chain", combine_attrs="override"))
    curve = xr.concat(points, attack.dim, combine_attrs="override").transpose("chain", attack.dim)
    sizes = xr.Variable(attack.dim, values, {"long_name": attack.axis})
    return curve.assign_coords({"chain": np.arange(len(members)), attack.dim: sizes})


def chain_mean(curve: xr.Dataset) -> xr.Dataset:
    """The mean over chains of scores, with standard errors of both causes: few inputs and few chains.

    `<name>_se` is the root of the sum of the squares of the mean standard error over inputs and of the standard error
    over chains. That is no less than it should be: the inputs are the same for all chains, so averaging over chains
    does not make their part smaller, and what part of it differs from chain to chain is counted twice.

    Args:
        curve: Of `attack_curve`, or scores of `score`: variables with a dim `chain` and their `<name>_se`.
    """
    mean = curve.mean("chain", keep_attrs=True)
    chains = curve.sizes["chain"]
    for name in curve.data_vars:
        if f"{name}_se" in curve and chains > 1:
            between = curve[name].var("chain", ddof=1) / chains
            mean[f"{name}_se"] = np.sqrt(mean[f"{name}_se"] ** 2 + between)
    return mean


def breaking_point(curve: xr.Dataset, level: float = 0.5, of: str = "accuracy") -> xr.DataArray:
    """The size of the attack at which a score first falls below a level, or first reaches it if it began below.

    Args:
        curve: Of `attack_curve`.
        level: The level.
        of: A variable of the curve.

    Returns:
        By chain, between the sizes of the curve by linear interpolation; NaN where the level is not crossed.

    Raises:
        ValueError: If the curve has no such variable.
    """
    if of not in curve:
        raise ValueError(f"the curve has no {of!r}: it has {', '.join(map(str, curve))}")
    (dim,) = (str(name) for name in curve[of].dims if name != "chain")
    sizes, rows = curve[dim].values.astype(float), curve[of].transpose("chain", dim).values
    points = np.full(len(rows), math.nan)
    for chain, row in enumerate(rows):
        beyond = np.flatnonzero(row < level if row[0] >= level else row >= level)
        if len(beyond):
            last, first = beyond[0] - 1, beyond[0]
            share = (row[last] - level) / (row[last] - row[first])
            points[chain] = sizes[last] + share * (sizes[first] - sizes[last])
    return xr.DataArray(points, {"chain": curve.chain}, "chain", attrs={"long_name": f"{dim} where {of} is {level:g}"})


def _scored(prediction: Prediction, y: Any, target: Tensor | None, seed: int) -> xr.Dataset:
    scores = score(prediction, y, seed=seed)
    if target is None:
        return scores
    reached = score(prediction, target, seed=seed)
    names = [name for name in _OF_TARGET if name in reached]
    reached = reached[[*names, *(f"{name}_se" for name in names)]]
    for name in names:
        reached[name].attrs["long_name"] = _OF_TARGET[name]
    return scores.merge(reached.rename({name: f"target_{name}" for name in reached.data_vars}))

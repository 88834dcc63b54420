"""Adversarial attacks on a posterior predictive by the sign of its gradient, and how the prediction holds out.

The fast gradient sign of Goodfellow et al. (2015, Explaining and Harnessing Adversarial Examples) and its iterated
form, as in Li & Gal (2017, Dropout Inference in Bayesian Neural Networks with Alpha-divergences, section 5.3) and
Louizos & Welling (2017, Multiplicative Normalizing Flows, section 4.2). What is attacked is the prediction that a user
sees: the average over draws of the weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from typing_extensions import override

from bnnzoo._vectorize import CountingBytes
from bnnzoo.evaluation.metrics import as_targets, score
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

Label = Literal["predicted", "true"]
"""Which label an attack without a target moves away from."""

_ATTACK, _SCORE = 0, 1  # streams of draws
_OF_TARGET = {
    "accuracy": "share predicted as the target",
    "rmse": "root mean squared distance of the predictive mean from the target",
    "pll": "log likelihood of the target",
}


def input_gradient(
    posterior: Posterior,
    x: Any,
    y: Any,
    *,
    pooled: bool = False,
    seed: int = 0,
    max_memory: int = 2**30,
    **predict: Any,
) -> Tensor:
    """The gradient of `log p(y|x)` by the inputs, of the posterior predictive, each input by itself.

    By draws it is the gradient of `log (1/T) Σ_t p(y|x, w_t)`, through the average, and not the average of the draws'
    gradients. By moments (`method="moments"`) it is that of the propagated predictive. The density is taken in float64,
    so that the gradient does not vanish as soon as a probability rounds to 1 (at 1e-7 in float32; at 1e-16 it does).

    Args:
        posterior: What is attacked.
        x: Inputs in their own units, real numbers, [N, ...]. A standardization is gone through.
        y: Targets in their own units: labels [N], yes/no targets [N] or [N, C], numbers or counts [N] or [N, C].
        pooled: Whether all chains are one predictive (an ensemble), or each chain is one.
        seed: Fixes the draws.
        max_memory: Bytes that the work may take; the inputs are cut into blocks that fit.
        **predict: Of `Posterior.predict`: `num_samples` (draws a chain), `method`, and what belongs to moments.

    Returns:
        [chain, N, ...], in the inputs' dtype, per unit of the inputs; `pooled` makes it one "chain".

    Raises:
        ValueError: If `x` are no real numbers or have no gradient, `y` does not fit, or `max_memory` is too small.
    """
    x = _inputs(posterior, x)
    predictives = _predictives(posterior, pooled, max_memory, predict)
    return torch.stack([each.gradient(x, each.targets(x, y, seed), seed) for each in predictives])


@dataclass(frozen=True, eq=False, kw_only=True)
class Attack(ABC):
    """A way to move inputs such that the prediction fails: steps along the sign of the gradient of `log p(y|x)`.

    Either away from a label, `x - η sgn(∇ log p(y|x))`, or towards a target, `x + η sgn(∇ log p(target|x))`.

    Attributes:
        label: Which label it moves away from: `"predicted"`, the attacked prediction's most probable one for the input
            as it came (that of Li & Gal, `max_y log p(y|x)`, and of Cleverhans; of several yes/no targets each its
            own), or `"true"`, the observed `y` (Goodfellow et al.). Numbers and counts have only the latter: the
            prediction itself sits where their density is flat.
        target: What the prediction is to become instead: a class, a number, or one for every input, [N, ...], in the
            targets' own units. None: the attack moves away from `label`.
        scale: The unit of the steps, broadcastable to one input: 1 for the input's own unit, or each feature's standard
            deviation or range for tables.
        bounds: Least and greatest value that an input may have, numbers or tensors broadcastable to one input: what
            lies outside is clipped after every step. None clips nothing, as in the formulas of Li & Gal, who do not say
            whether they do; `(0.0, 1.0)` keeps images images.
        dim: Name of the dimension that its sizes make in curves.
        axis: What they are, on axes.
        symbol: The same in short.
    """

    dim: ClassVar[str]
    axis: ClassVar[str]
    symbol: ClassVar[str]

    label: Label = "predicted"
    target: Any = None
    scale: float | Tensor = 1.0
    bounds: tuple[float | Tensor, float | Tensor] | None = None

    def __post_init__(self) -> None:
        if self.label not in get_args(Label):
            raise ValueError(f"label must be one of {', '.join(map(repr, get_args(Label)))}, not {self.label!r}")
        scale = torch.as_tensor(self.scale)
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ValueError(f"scale must be finite and not negative, not {self.scale}")
        if self.bounds is not None:
            if not isinstance(self.bounds, Sequence) or len(self.bounds) != 2:
                raise ValueError(f"bounds must be the least and the greatest value, such as (0.0, 1.0): {self.bounds}")
            low, high = map(torch.as_tensor, self.bounds)
            if not bool((low < high).all()):
                raise ValueError(f"bounds must be the least and the greatest value, such as (0.0, 1.0): {self.bounds}")

    @abstractmethod
    def run(self, x: Tensor, direction: Callable[[Tensor, int], Tensor]) -> Iterator[tuple[float, Tensor]]:
        """Attacks one predictive.

        Args:
            x: Inputs, [N, ...].
            direction: -1, 0 or 1 for each number of inputs [N, ...], where the attack goes from there, by the draws of
                a step.

        Yields:
            The size of the attack, and the inputs [N, ...].
        """

    def path(
        self,
        posterior: Posterior,
        x: Any,
        y: Any = None,
        *,
        pooled: bool = False,
        seed: int = 0,
        max_memory: int = 2**30,
        **predict: Any,
    ) -> Iterator[tuple[float, Tensor]]:
        """Attacked inputs: first the least attack, last the greatest.

        Every chain is attacked by its own gradient, and so moves otherwise than the others; what is done to a chain
        does not depend on the other ones.

        Args:
            posterior: What is attacked.
            x: Inputs in their own units, real numbers, [N, ...].
            y: Targets in their own units, for attacks away from the true label; else not used.
            pooled: Whether all chains are attacked as one predictive (an ensemble), or each as one.
            seed: Fixes the draws; every step of an iterated attack makes its own.
            max_memory: Bytes that the gradient may take; the inputs are cut into blocks that fit.
            **predict: Of `Posterior.predict`: `num_samples` (draws a chain), `method`, and what belongs to moments.

        Yields:
            The size of the attack (ε, or the number of steps), and the inputs [chain, N, ...], in their own units;
            `pooled` makes it one "chain".

        Raises:
            ValueError: As `input_gradient`; if inputs lie outside of `bounds`, a target is none of the classes, or `y`
                is needed and missing.
        """
        x = _inputs(posterior, x)
        self._check(x)
        runs = []
        for predictive in _predictives(posterior, pooled, max_memory, predict):
            labels = self._labels(predictive.at(x, _seed(seed, _ATTACK, 0)), y)
            runs.append(self.run(x, partial(self._direction, predictive, labels, seed)))
        for together in zip(*runs, strict=True):
            yield together[0][0], torch.stack([moved for _, moved in together])

    def targets(self, prediction: Prediction) -> Tensor | None:
        """The target of every datum of a prediction, None if the attack has none.

        Args:
            prediction: Of the inputs that are attacked.
        """
        if self.target is None:
            return None
        value = torch.as_tensor(self.target)
        value = value.expand(prediction.shape[2:]) if value.dim() == 0 else value
        try:
            return as_targets(prediction, value)
        except ValueError as error:
            raise ValueError(f"target: {error}") from None

    def _labels(self, prediction: Prediction, y: Any) -> Tensor:
        target = self.targets(prediction)
        if target is not None:
            return target
        if self.label == "true":
            if y is None:
                raise ValueError("label='true' needs the true targets: y is None")
            return as_targets(prediction, y)
        if prediction.task != "classification":
            raise ValueError(
                f"label='predicted' is for classes; an attack on {prediction.task} takes label='true' and the observed "
                "y, or a target"
            )
        return prediction.classes

    def _direction(self, predictive: _Predictive, labels: Tensor, seed: int, x: Tensor, step: int) -> Tensor:
        sign = predictive.gradient(x, labels, _seed(seed, _ATTACK, step)).sign()
        return -sign if self.target is None else sign

    def _check(self, x: Tensor) -> None:
        for name, value in (("scale", self.scale), *(("bounds", each) for each in self.bounds or ())):
            shape = torch.as_tensor(value).shape
            try:
                fits = torch.broadcast_shapes(shape, x.shape[1:]) == x.shape[1:]
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(f"{name} must broadcast to one input, {list(x.shape[1:])}; given: {list(shape)}")
        if self.bounds is not None:
            low, high = (torch.as_tensor(each).to(x) for each in self.bounds)
            outside = int(((x < low) | (x > high)).sum())
            if outside:
                raise ValueError(f"x has {outside} values outside of the bounds: an attack of size 0 would move them")

    def _moved(self, x: Tensor, size: float, direction: Tensor) -> Tensor:
        moved = x + size * torch.as_tensor(self.scale).to(x) * direction
        if self.bounds is None:
            return moved
        low, high = (torch.as_tensor(each).to(x) for each in self.bounds)
        return torch.minimum(torch.maximum(moved, low), high)


@dataclass(frozen=True, eq=False)
class FastGradientSign(Attack):
    """One step of size ε along the sign of the gradient at the inputs as they came.

    Attributes:
        epsilons: Sizes of the step, ≥ 0 and increasing, in the unit of `scale`; default 0 to 0.5 by 0.05, as in Li
            & Gal's Figure 6.
    """

    dim: ClassVar[str] = "epsilon"
    axis: ClassVar[str] = "size of the step ε"
    symbol: ClassVar[str] = "ε ="

    epsilons: Sequence[float] = tuple(round(0.05 * step, 2) for step in range(11))

    def __post_init__(self) -> None:
        super().__post_init__()
        values = [float(value) for value in self.epsilons]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"epsilons must be numbers of at least 0, one or more; given: {list(self.epsilons)}")
        if any(later <= value for value, later in pairwise(values)):
            raise ValueError(f"epsilons must be increasing: a curve goes along them; given: {list(self.epsilons)}")

    @override
    def run(self, x: Tensor, direction: Callable[[Tensor, int], Tensor]) -> Iterator[tuple[float, Tensor]]:
        signs = direction(x, 0)
        for epsilon in self.epsilons:
            yield float(epsilon), self._moved(x, float(epsilon), signs)


@dataclass(frozen=True, eq=False)
class IteratedGradientSign(Attack):
    """Many small steps along the sign of the gradient, each at where the last one led.

    Li & Gal's Figure 7 is `IteratedGradientSign(target=0)`. By draws, every step makes its own.

    Attributes:
        steps: Number of steps, ≥ 1.
        step_size: Size of each step, > 0, in the unit of `scale`.
        every: `path` yields the start, every so many steps, and the last one.
    """

    dim: ClassVar[str] = "step"
    axis: ClassVar[str] = "gradient steps"
    symbol: ClassVar[str] = "step"

    steps: int = 40
    step_size: float = 0.01
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be above 0, not {self.step_size}")

    @override
    def run(self, x: Tensor, direction: Callable[[Tensor, int], Tensor]) -> Iterator[tuple[float, Tensor]]:
        yield 0, x
        for step in range(1, self.steps + 1):
            x = self._moved(x, self.step_size, direction(x, step))
            if step % self.every == 0 or step == self.steps:
                yield step, x


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
    predictives = _predictives(posterior, pooled, max_memory, predict)
    values, points = [], []
    path = attack.path(posterior, x, y, pooled=pooled, seed=seed, max_memory=max_memory, **predict)
    for value, moved in path:
        scored = []
        for predictive, inputs in zip(predictives, moved, strict=True):
            prediction = predictive.at(inputs, _seed(seed, _SCORE, 0)).pooled
            scored.append(_scored(prediction, y, attack.targets(prediction), seed))
        values.append(value)
        points.append(xr.concat(scored, "chain", combine_attrs="override"))
    curve = xr.concat(points, attack.dim, combine_attrs="override").transpose("chain", attack.dim)
    sizes = xr.Variable(attack.dim, values, {"long_name": attack.axis})
    return curve.assign_coords({"chain": np.arange(len(predictives)), attack.dim: sizes})


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


def _inputs(posterior: Posterior, x: Any) -> Tensor:
    x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if not x.is_floating_point():
        raise ValueError(f"x must be real numbers, which have gradients, not {x.dtype}: images of bytes as x / 255")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError("x is empty")
    return x.to(posterior.device)


@dataclass
class _Predictive:
    """One predictive that is attacked: a chain's, or that of all of them.

    Attributes:
        posterior: Whose average over all draws it is.
        max_memory: Bytes that a gradient may take, and a prediction.
        predict: Settings of predictions.
        rows: How many inputs one gradient takes at a time; 0 until that is known.
    """

    posterior: Posterior
    max_memory: int
    predict: dict[str, Any]
    rows: int = 0

    def at(self, x: Tensor, seed: int) -> Prediction:
        """The prediction of inputs, [N, ...]."""
        return self.posterior.predict(x, seed=seed, max_memory=self.max_memory, **self.predict)

    def targets(self, x: Tensor, y: Any, seed: int) -> Tensor:
        """Targets as the prediction has them."""
        return as_targets(self.at(x, seed), y)

    def gradient(self, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """The gradient of `log p(y|x)`, [N, ...]."""
        self.rows = self.rows or self._rows(x, y, seed)
        blocks = zip(x.split(self.rows), y.split(self.rows), strict=True)
        return torch.cat([self._gradient(inputs, targets, seed) for inputs, targets in blocks])

    def _gradient(self, x: Tensor, y: Tensor, seed: int) -> Tensor:
        x = x.detach().requires_grad_()
        log_prob = self.at(x, seed).double().log_prob(y)
        if not log_prob.requires_grad:
            raise ValueError("the network's outputs have no gradient by its inputs: there is no direction to attack in")
        return torch.autograd.grad(log_prob.sum(), x)[0]

    def _rows(self, x: Tensor, y: Tensor, seed: int) -> int:
        used = []
        for rows in (1, 2):
            with CountingBytes() as counting:
                self._gradient(x[:1].expand(rows, *x.shape[1:]), y[:1].expand(rows, *y.shape[1:]), seed)
            used.append(counting.bytes)
        each = max(1, used[1] - used[0])
        fixed = max(0, used[0] - each)
        if fixed + each > self.max_memory:
            raise ValueError(
                f"max_memory is too small: the gradient of one input needs {(fixed + each) / 2**20:.1f} MiB of work, "
                f"and max_memory={self.max_memory}"
            )
        return min(len(x), (self.max_memory - fixed) // each)


def _predictives(posterior: Posterior, pooled: bool, max_memory: int, predict: dict[str, Any]) -> list[_Predictive]:
    alone = pooled or posterior.chains == 1
    members = [posterior] if alone else [posterior.chain(chain) for chain in range(posterior.chains)]
    return [_Predictive(member, max_memory, predict) for member in members]


def _seed(seed: int, stream: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, stream, step]).generate_state(1)[0])

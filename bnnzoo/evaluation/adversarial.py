"""Adversarial attacks on a posterior predictive by the sign of its gradient.

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

import torch
from torch import Tensor
from typing_extensions import override

from bnnzoo.evaluation.metrics import as_targets
from bnnzoo.evaluation.predictive_gradient import ATTACK, Predictive, predictives, real_inputs, seed_of
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

Label = Literal["predicted", "true"]
"""Which label an attack without a target moves away from."""


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
        x = real_inputs(posterior, x)
        self._check(x)
        runs = []
        for predictive in predictives(posterior, pooled, max_memory, predict):
            labels = self._labels(predictive.at(x, seed_of(seed, ATTACK, 0)), y)
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

    def _direction(self, predictive: Predictive, labels: Tensor, seed: int, x: Tensor, step: int) -> Tensor:
        sign = predictive.gradient(x, labels, seed_of(seed, ATTACK, step)).sign()
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

"""An objective, what is claimed of it, and how its loss is evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro.infer
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from bnnzoo import guides
from bnnzoo._contract.measure import Loss, call, naming, parameters_of, perturb, require, require_finite
from bnnzoo._contract.problems import PROBLEMS, GuideCase, Problem
from bnnzoo._vectorize import Pair, seeded
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Objective

#: Wide, so that particles differ and it matters what is made of them.
_GUIDES = (functools.partial(guides.MeanField, init_scale=0.3), functools.partial(AutoNormal, init_scale=0.3))


@dataclass
class ObjectiveCase:
    """An objective and what is claimed of it.

    Attributes:
        make: Builds the objective from the keywords `num_particles` and `kl_weight`: its class, or a function that sets
            further options, as `functools.partial(BBAlpha, 0.5)`.
        problems: The models it is checked on; the slower checks take the first one only.
        guides: What makes the guides that it is checked with, from a model: guides with a density, for all of the
            problems. The slowest checks take the first one only.
        elbo: Whether with one particle it estimates the ELBO (tempered by `kl_weight`) on any minibatch: equal means of
            losses and gradients, and for a point of a guide, `guides.Map`, equal losses with any number of particles.
        points: Whether it is defined for `guides.Map`; if not, it must raise a ValueError that says why.
        draws: Whether it draws weights; if not, `make` is called with `kl_weight` alone, and seeds change nothing.
        additive: Whether it is a sum over data and a term for the weights: the losses of equal minibatches that make up
            the data average to the loss on all, in the mean over draws.
        steps: Optimizer steps after which it must have fallen, ≥ 1.
        lr: Their learning rate, > 0.

    Raises:
        TypeError: If `make` is an objective itself, or cannot be called.
    """

    make: Callable[..., Objective]
    problems: Sequence[Problem] = PROBLEMS
    guides: Sequence[Callable[[BayesianNetwork], nn.Module]] = _GUIDES
    elbo: bool = True
    points: bool = True
    draws: bool = True
    additive: bool = True
    steps: int = 10
    lr: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.make, pyro.infer.ELBO) or not callable(self.make):  # objectives can be called, too
            raise TypeError(f"make builds an objective: a class or a function, not {self.make!r}")

    def objective(self, particles: int, kl_weight: float | Callable[[float], float] = 1.0) -> Objective:
        """A new objective."""
        drawn = {"num_particles": particles} if self.draws else {}
        return self.make(**drawn, kl_weight=kl_weight)


Guided = Callable[[ObjectiveCase, Problem, GuideCase], None]


def _each(check: Guided, problems: int | None, guides: int | None) -> Callable[[ObjectiveCase], None]:
    @functools.wraps(check)
    def run(case: ObjectiveCase) -> None:
        for problem in case.problems[:problems]:
            for make in case.guides[:guides]:
                guide = GuideCase(make, [problem])
                with naming(f"{problem.name}, {getattr(getattr(make, 'func', make), '__name__', make)}"):
                    check(case, problem, guide)

    return run


def everywhere(check: Guided) -> Callable[[ObjectiveCase], None]:
    """The check on every problem of a case with every guide; messages begin with their names."""
    return _each(check, None, None)


def with_each_guide(check: Guided) -> Callable[[ObjectiveCase], None]:
    """The check on the first problem of a case, with every guide."""
    return _each(check, 1, None)


def once(check: Guided) -> Callable[[ObjectiveCase], None]:
    """The check on the first problem of a case, with the first guide."""
    return _each(check, 1, 1)


def moved(guide: GuideCase, problem: Problem, dtype: torch.dtype = torch.float32) -> Pair:
    """A model and its guide a little away from where training starts."""
    pair = guide.pair(problem, dtype)
    perturb(pair, 0.1, 0)
    return pair


def scaled_loss(objective: Objective, x: Tensor) -> Loss:
    """`loss(model, guide, x, y)` of rows that stand for those of `x`."""
    return functools.partial(objective.differentiable_loss, size=len(x))


def evaluate(objective: Objective, pair: Pair, x: Tensor, y: Tensor, size: int | None = None, seed: int = 0) -> Tensor:
    """The loss for a seed: a finite scalar that can be differentiated, or an AssertionError."""
    with seeded(seed):
        loss = call(pair, objective.differentiable_loss, x, y, size=len(x) if size is None else size)
    require(isinstance(loss, Tensor), f"the loss is a {type(loss).__name__}, not a tensor")
    require(loss.dim() == 0, f"the loss has shape {list(loss.shape)}, and not that of a scalar, []")
    require_finite({"loss": loss}, "the objective's")
    require(loss.requires_grad, "the loss depends on no parameter: it has no gradient")
    return loss


def gradients_of(loss: Tensor, pair: Pair) -> dict[str, Tensor]:
    """The gradient of a loss by every parameter; each must have one."""
    own = parameters_of(pair)
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    unused = [name for name, gradient in zip(own, found, strict=True) if gradient is None]
    require(not unused, f"the loss does not depend on the parameters {unused}: they would never be trained")
    return dict(zip(own, found, strict=True))

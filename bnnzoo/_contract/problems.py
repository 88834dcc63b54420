"""Models and data that guides are checked on, and what is claimed of a guide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bnnzoo import likelihoods
from bnnzoo._contract.measure import naming, prepare
from bnnzoo._vectorize import Pair, seeded
from bnnzoo.likelihoods import Likelihood
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import ELBO
from bnnzoo.posterior import Posterior
from bnnzoo.priors import Prior
from bnnzoo.training import fit


@dataclass(frozen=True)
class Problem:
    """A small model and its data, on which a guide is checked.

    Attributes:
        name: What messages call it.
        network: Makes the network.
        likelihood: How targets are distributed.
        data: Inputs [N, ...] and targets, as the likelihood takes them.
        prior: A rule, see `bnnzoo.priors`.
        independent: Whether rules that draw a layer's outputs independently keep the distribution of each row's output:
            true without convolutions, and of a convolution alone.
    """

    name: str
    network: Callable[[], nn.Module]
    likelihood: Likelihood
    data: tuple[Tensor, Tensor]
    prior: Prior = field(default_factory=lambda: dist.Normal(0.0, 1.0))
    independent: bool = True

    @property
    def x(self) -> Tensor:
        """Inputs, [N, ...]."""
        return self.data[0]

    @property
    def y(self) -> Tensor:
        """Targets, [N, ...]."""
        return self.data[1]

    def bnn(self) -> BayesianNetwork:
        """The model, the same at every call."""
        with seeded(3):
            return BayesianNetwork(self.network(), self.likelihood, self.prior)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regression(features: int, targets: int | None = None) -> tuple[Tensor, Tensor]:
    """Twelve rows of a regression: inputs [12, features], targets [12] or [12, targets]."""
    x = _normal(12, features)
    y = x.sum(1) + 0.3 * _normal(12, seed=1)
    return x, y if targets is None else torch.stack([y * (-1) ** target for target in range(targets)], 1)


def _images() -> tuple[Tensor, Tensor]:
    return _normal(12, 1, 6, 6, seed=2), torch.arange(12) % 3


_NOISE = dist.LogNormal(-0.5, 0.3)

#: A convolution alone, an output at each position.
CONVOLUTION = Problem(
    "one convolution",
    lambda: nn.Conv2d(1, 3, 3),
    likelihoods.Categorical(),
    (_normal(4, 1, 5, 5, seed=2), torch.arange(36).view(4, 3, 3) % 3),
)

#: A perceptron with two targets of unknown noise, a convolutional classifier, and one input under priors of every kind.
PROBLEMS = (
    Problem(
        "dense",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        likelihoods.Gaussian(_NOISE, num_outputs=2),
        regression(3, targets=2),
    ),
    Problem(
        "convolutional",
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        likelihoods.Categorical(),
        _images(),
        independent=False,
    ),
    Problem(
        "one input, mixed priors",
        lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)),
        likelihoods.Gaussian(0.5),
        regression(1),
        prior={
            "0.weight": dist.Normal(0.0, 1.0),
            "0.bias": dist.MultivariateNormal(torch.zeros(4), 0.5 * torch.eye(4) + 0.5),
            "2.weight": dist.Laplace(0.0, 1.0),
            "2.bias": None,
        },
    ),
)

#: A perceptron and a convolutional classifier with batch normalization.
BATCH_NORM_PROBLEMS = (
    Problem(
        "dense with batch norm",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)),
        likelihoods.Gaussian(_NOISE),
        regression(3),
    ),
    Problem(
        "convolutional with batch norm",
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
        likelihoods.Categorical(),
        _images(),
        independent=False,
    ),
)


@dataclass
class GuideCase:
    """A guide and what is claimed of it.

    Attributes:
        make: Builds the guide from a model: its class, or a function that sets options.
        problems: The models it is checked on.
        bound: Whether the ELBO under it is a lower bound of the log evidence: false of points, which have no density,
            and where the divergence is not that of a density, up to a constant.
        pyro_elbo: Whether `pyro.infer.Trace_ELBO`, which samples each divergence from the sites' densities, estimates
            the same loss; if not, it need only run.
        structured: Whether a pass with structured weights has the distribution of a pass with dense draws, at each row.
        unlisted: Auxiliary sites that `guide.auxiliary` leaves out on purpose, as a flat vector whose parts the model's
            sites are.
        sizes: Standard deviations of random changes of all parameters under which losses and gradients stay finite;
            those above 1 where the likelihood has no sites of its own.
        extremes: Values which all parameters may have together, there too.
        steps: Optimizer steps that the check of the bound trains for, ≥ 1.
        lr: The learning rate that it starts with and brings down to a hundredth, > 0.

    Raises:
        TypeError: If `make` cannot be called.
    """

    make: Callable[[BayesianNetwork], nn.Module]
    problems: Sequence[Problem] = PROBLEMS
    bound: bool = True
    pyro_elbo: bool = True
    structured: bool = True
    unlisted: Collection[str] = ()
    sizes: Sequence[float] = (0.1, 1.0, 3.0)
    extremes: Sequence[float] = (-5.0, 0.0, 5.0)
    steps: int = 150
    lr: float = 0.2
    _posteriors: dict[str, Posterior] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise TypeError(f"make builds a guide from a model: a class or a function, not {self.make!r}")

    def pair(self, problem: Problem, dtype: torch.dtype = torch.float32) -> Pair:
        """A new model and its guide, in training."""
        with seeded(4):
            bnn = problem.bnn().to(dtype)
            return prepare(bnn, self.make(bnn), problem.x.to(dtype), targets(problem, dtype))

    def posterior(self, problem: Problem) -> Posterior:
        """A brief fit of two chains; made once, for checks do not change it."""
        if problem.name not in self._posteriors:
            self._posteriors[problem.name] = self.fit(problem)
        return self._posteriors[problem.name]

    def fit(self, problem: Problem, **settings: Any) -> Posterior:
        """A brief fit."""
        with seeded(4):
            bnn = problem.bnn()
            guide = self.make(bnn)
        settings = {"epochs": 2, "batch_size": 6, "lr": 0.01, "chains": 2, "seed": 1, **settings}
        return fit(bnn, guide, problem.data, **settings)


def targets(problem: Problem, dtype: torch.dtype = torch.float32) -> Tensor:
    return problem.y.to(dtype) if problem.y.is_floating_point() else problem.y


def each_problem(check: Callable[[GuideCase, Problem], None]) -> Callable[[GuideCase], None]:
    """The check on every problem of a case; messages begin with the problem's name."""

    @functools.wraps(check)
    def run(case: GuideCase) -> None:
        for problem in case.problems:
            with naming(problem.name):
                check(case, problem)

    return run


def auxiliary_shapes(guide: nn.Module) -> dict[str, torch.Size]:
    return dict(getattr(guide, "auxiliary", {}))


def elbo(model: nn.Module, guide: nn.Module, x: Tensor, y: Tensor, size: int | None = None) -> Tensor:
    return ELBO().differentiable_loss(model, guide, x, y, size=size or len(x))

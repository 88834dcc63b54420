"""`Method`: what is compared: a guide, the network's options and a grid of hyperparameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from bnnzoo import guides
from bnnzoo.data.messages import closest

CALLS = ("batch_size", "epochs", "steps")
"""Hyperparameters that fits trained as one stack must share: each value is a stack of its own."""

PRIORS = ("weight_decay", "prior_scale")
"""Two ways to say how wide the normal prior of all weights is."""


@dataclass(frozen=True)
class Method:
    r"""One method of a comparison.

    The grid's names are

    - `weight_decay`: λ of the loss `(1/2N) Σ (y - f)² + λ ‖w‖²` of standardized targets (of classes: the mean negative
      log probability in the place of the squares). As a prior that is `w ~ N(0, s²)` with `s² = σ² / (2 N λ)`, N the
      training rows and σ the noise scale in training (Teye et al. 2018, section 3.3, where τ = σ⁻²); a method that has
      it therefore trains under a `noise` that is fixed;
    - `prior_scale`: s itself;
    - `batch_size`, `epochs`, `steps`: of the training, in place of the protocol's;
    - anything else: an argument of the guide, which must be held in its buffers (as the `rate` of dropout is).

    All but those in `CALLS` are chains of one vectorized stack. A name with a single value is a fixed setting.

    Attributes:
        name: What results call it.
        guide: `guide(bnn, **arguments of the grid)` builds the guide.
        label: Its name in tables and figures; default `name`.
        grid: The values to choose from by cross-validation, by name.
        network: Options of `bnnzoo.models.MLP`.
        noise: Standard deviation of the Gaussian noise in training, in standardized units, where it is fixed; None
            learns it with everything else. For predictions it is chosen by cross-validation either way.
        kl_annealing: Share of the training, in [0, 1], through which the weight of the KL divergence rises from 0 to 1;
            0 has it at 1 throughout.
        members: Fits that predict together, as an ensemble; each seed has as many.
        single: Whether all draws of the posterior are the same, so that one will do.

    Raises:
        ValueError: If the name or the grid is empty, or the settings contradict each other.
    """

    name: str
    guide: Callable[..., nn.Module]
    label: str = ""
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    noise: float | None = None
    kl_annealing: float = 0.0
    members: int = 1
    single: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a method needs a name")
        object.__setattr__(self, "label", self.label or self.name)
        empty = [name for name, values in self.grid.items() if not len(values)]
        if empty:
            raise ValueError(f"method {self.name!r}: the grid has no value for {empty[0]!r}")
        if all(name in self.grid for name in PRIORS):
            raise ValueError(f"method {self.name!r}: weight_decay and prior_scale are two names of one thing: keep one")
        if "epochs" in self.grid and "steps" in self.grid:
            raise ValueError(f"method {self.name!r}: epochs and steps are two names of one thing: keep one")
        for name in set(self.grid) & {*PRIORS, *CALLS}:
            if not all(math.isfinite(value) and value > 0 for value in self.grid[name]):
                raise ValueError(f"method {self.name!r}: {name} must be above 0, not {list(self.grid[name])}")
        if "weight_decay" in self.grid and self.noise is None:
            raise ValueError(
                f"method {self.name!r}: what weight decay means as a prior depends on the noise: set noise=1.0, or "
                "have prior_scale in the grid"
            )
        if self.members < 1 or not 0 <= self.kl_annealing <= 1:
            raise ValueError(
                f"method {self.name!r}: members must be at least 1 and kl_annealing in [0, 1], not {self.members} and "
                f"{self.kl_annealing}"
            )

    def calls(self) -> list[dict[str, int]]:
        """Settings of training, one stack each."""
        return [{n: int(v) for n, v in each.items()} for each in _product(self.grid, lambda n: n in CALLS)]

    def chains(self) -> list[dict[str, float]]:
        """Values of the grid that are chains of one stack."""
        return [{n: float(v) for n, v in each.items()} for each in _product(self.grid, lambda n: n not in CALLS)]

    def prior_scale(self, values: Mapping[str, float], rows: int, task: str = "regression") -> float:
        """Standard deviation of the prior of all weights; 1 if the grid does not say.

        Args:
            values: One of `chains`.
            rows: Training rows N.
            task: The data's; classes have no noise scale, and count as if it were 1.
        """
        if "weight_decay" in values:
            noise = self.noise if self.noise is not None and task == "regression" else 1.0
            return noise / math.sqrt(2.0 * rows * values["weight_decay"])
        return values.get("prior_scale", 1.0)

    def describe(self) -> dict[str, Any]:
        """All settings in words and numbers, to tell methods apart; functions by their names only."""
        return {
            "name": self.name,
            "guide": _called(self.guide),
            "grid": {name: [float(value) for value in values] for name, values in self.grid.items()},
            "network": dict(self.network),
            "noise": self.noise,
            "kl_annealing": self.kl_annealing,
            "members": self.members,
            "single": self.single,
        }


def _product(grid: Mapping[str, Sequence[float]], wanted: Callable[[str], bool]) -> list[dict[str, float]]:
    names = [name for name in grid if wanted(name)]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[name] for name in names))]


def _called(fn: Callable[..., Any]) -> str:
    if isinstance(fn, partial):
        given = [repr(a) for a in fn.args] + [f"{name}={value!r}" for name, value in sorted(fn.keywords.items())]
        return f"{_called(fn.func)}({', '.join(given)})"
    return f"{fn.__module__}.{fn.__qualname__}"


_POINT: dict[str, Any] = {"noise": 1.0}
_GAUSSIAN: dict[str, Any] = {"kl_annealing": 0.75, "grid": {"batch_size": (100,)}}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "mcbn",
            guides.BatchNorm,
            "MCBN",
            {"weight_decay": (1e-2, 1e-3, 1e-4), "batch_size": (32, 128)},
            {"batch_norm": True},
            **_POINT,
        ),
        Method(
            "dropout",
            guides.Dropout,
            "MC dropout",
            {"weight_decay": (1e-3, 1e-5), "rate": (0.1, 0.05, 0.01, 0.005), "batch_size": (32,)},
            **_POINT,
        ),
        Method("mnf", guides.MNF, "MNF", **_GAUSSIAN),
        Method("mean-field", partial(guides.MeanField, init_scale=0.03), "mean field", **_GAUSSIAN),
        Method("low-rank", partial(guides.LowRank, rank=5), "low rank", **_GAUSSIAN),
        Method(
            "moment-propagation", partial(guides.MomentPropagation, init_scale=0.03), "moment propagation", **_GAUSSIAN
        ),
        Method("laplace", guides.Laplace, "Laplace", {"prior_scale": (0.3, 1.0), "batch_size": (32,)}),
        Method(
            "map",
            guides.Map,
            "MAP",
            {"weight_decay": (1e-3, 1e-4, 1e-5, 1e-6), "batch_size": (32,)},
            single=True,
            **_POINT,
        ),
        Method(
            "ensemble",
            guides.Map,
            "ensemble of 5",
            {"weight_decay": (1e-3, 1e-4, 1e-5, 1e-6), "batch_size": (32,)},
            members=5,
            single=True,
            **_POINT,
        ),
    )
}
"""Methods by name, their grids cut for a CPU; a new guide joins by one line."""

_DECADES = tuple(10.0**-power for power in range(1, 16))

PAPER_METHODS: dict[str, Method] = {
    "mcbn": replace(
        METHODS["mcbn"], grid={"weight_decay": _DECADES, "batch_size": tuple(2**power for power in range(5, 11))}
    ),
    "dropout": replace(
        METHODS["dropout"],
        grid={"weight_decay": _DECADES, "rate": (0.2, 0.1, 0.05, 0.01, 0.005, 0.001), "batch_size": (32,)},
    ),
    "mnf": METHODS["mnf"],
}
"""The three methods of the MCBN paper with the grids of its section 4.3 (without the number of epochs, which it chose
by cross-validation, too: an entry `"epochs": (...)` does that)."""


def method_of(method: str | Method) -> Method:
    """A method by its name, or as it is.

    Raises:
        ValueError: If there is no such name; the message has the closest one.
        TypeError: If it is neither.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"a method is a name or a bnnzoo.compare.Method, not {type(method).__name__}")
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}.{closest(method, METHODS)} Known: {', '.join(METHODS)}")
    return METHODS[method]

"""`Protocol`: how methods are compared: splits, seeds, folds, the network and its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bnnzoo.data import Dataset
from bnnzoo.noise import CRITERIA

SCHEDULES = ("cosine", "constant")
"""What the learning rate may do: fall to 0 along a cosine, or stay."""


@dataclass(frozen=True)
class Protocol:
    """How methods are compared; by default as the MCBN paper does (Teye et al. 2018, section 4.3), with less training.

    Attributes:
        splits: Random splits into training and test rows, ≥ 1; the same for all methods.
        seeds: Fits of each split that are scored on its test rows, ≥ 1.
        folds: Folds of the cross-validation inside each split's training rows, ≥ 2.
        test_size: Test rows: a fraction in (0, 1), or a number of rows. Of data with an official test set the rest of
            the training rows is trained on, and the official set is left alone.
        hidden: Units of each hidden layer of the ReLU network.
        steps: Optimizer steps of each fit, ≥ 1, rounded up to whole epochs; those that are scored on test rows take at
            least as many as those of the cross-validation.
        epochs: Passes over the data in place of `steps`; None for those.
        batch_size: Rows a step, ≥ 1, where a method's grid has no other; at most all.
        lr: Learning rate of Adam, > 0.
        schedule: `"cosine"` lets the learning rate fall to 0, `"constant"` does not. The cosine moves from epoch to
            epoch, not from step to step: of one epoch the rate is `lr` throughout, of two it is half of `lr` in the
            last one, and only of many is it near 0 in the end.
        draws: Posterior draws a seed on the test rows, ≥ 1.
        cv_draws: Posterior draws a fit in the cross-validation, ≥ 1.
        noise_by: What the noise scale of a regression is chosen by on the folds' held-out rows: `"crps"`, as in the
            paper, or `"pll"`.
        seed: Fixes splits, folds, initial values, minibatches and draws, ≥ 0.
        max_chains: Most fits that are trained as one vectorized stack, ≥ 1. It bounds the memory, and is a part of the
            protocol because results depend on it: it numbers the stacks, which are a part of the seeds, so that
            another value changes all minibatches and draws.

    Raises:
        ValueError: If a number is out of range, or a word unknown; says which.
    """

    splits: int = 5
    seeds: int = 5
    folds: int = 5
    test_size: float = 0.2
    hidden: Sequence[int] = (50, 50)
    steps: int = 1000
    epochs: int | None = None
    batch_size: int = 64
    lr: float = 0.01
    schedule: str = "cosine"
    draws: int = 500
    cv_draws: int = 100
    noise_by: str = "crps"
    seed: int = 0
    max_chains: int = 100

    def __post_init__(self) -> None:
        least = {"folds": 2, "seed": 0}
        for name in ("splits", "seeds", "folds", "steps", "epochs", "batch_size", "draws", "cv_draws", "seed"):
            _whole(name, getattr(self, name), least.get(name, 1), optional=name == "epochs")
        _whole("max_chains", self.max_chains, 1)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for units in self.hidden:
            _whole("each of hidden", units, 1)
        if not (isinstance(self.lr, int | float) and math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a number above 0, not {self.lr!r}")
        size = self.test_size
        if not isinstance(size, int | float) or isinstance(size, bool) or not (0 < size < 1 or size == int(size) >= 1):
            raise ValueError(f"test_size must be a fraction in (0, 1) or a number of rows, not {size!r}")
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("noise_by", self.noise_by, CRITERIA)

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, as JSON holds them."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def epochs_of(self, rows: int, batch_size: int, steps: int | None = None) -> int:
        """Epochs of a fit.

        Args:
            rows: Training rows.
            batch_size: Rows a step.
            steps: At least so many, ≥ 1, where no `epochs` are given; default the protocol's.
        """
        return self.epochs or math.ceil((steps or self.steps) / math.ceil(rows / batch_size))

    def seed_of(self, *where: int) -> int:
        """A seed for one purpose, which no other has.

        Args:
            *where: Numbers that tell the purposes apart.
        """
        return int(np.random.SeedSequence([self.seed, *where]).generate_state(1)[0])

    def split(self, data: Dataset, number: int) -> tuple[Dataset, Dataset]:
        """Training and test rows of a split, with the training rows' standardization.

        Args:
            data: All rows.
            number: Which split, from 0.
        """
        size = int(self.test_size) if self.test_size >= 1 else self.test_size
        train, test = data.split(size, seed=self.seed_of(0, number))
        return train, test

    def fold(self, data: Dataset, number: int) -> list[tuple[Dataset, Dataset]]:
        """Training and held-out rows of the folds of a split.

        Args:
            data: All rows.
            number: Which split, from 0.
        """
        train, _ = self.split(data, number)
        return [(each.train, each.test) for each in train.folds(self.folds, seed=self.seed_of(1, number))]


def common_rows(parts: Sequence[Dataset], batch_size: int) -> tuple[int, int]:
    """The length that training sets are cut to for one vectorized stack: the shortest one's.

    Folds differ by a row. One row more goes where the last batch would be a single one, of which batch normalization
    can take no statistics.

    Args:
        parts: Training sets.
        batch_size: Rows a step, as asked for.

    Returns:
        Rows, and rows a step: at most all.
    """
    rows = min(len(part) for part in parts)
    if rows % min(batch_size, rows) == 1 and batch_size > 1:
        rows -= 1
    return rows, min(batch_size, rows)


def _whole(name: str, value: Any, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")

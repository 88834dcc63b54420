"""A cell of a comparison, a data set and a method: its stages, and what is chosen between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from bnnzoo.compare.method import Method
from bnnzoo.compare.protocol import Protocol
from bnnzoo.compare.stages import CV, FINAL, Fit, Stage, Values, best_by, best_by_pll, scale_units
from bnnzoo.data import Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What the cross-validation of a split chose.

    Attributes:
        call: Settings of training from the grid.
        values: The grid's values that are chains.
        loss: The mean held-out loss of the folds: RMSE of a regression in the target's own units, mean negative log
            probability of classes; NaN where there was nothing to choose.
        noise: Noise scales, one a target; empty for classes.
        noise_pll: Those that are best for the log likelihood, likewise.
        constant: Noise scales of the constant-uncertainty baseline, likewise.
    """

    call: Mapping[str, int]
    values: Values
    loss: float = math.nan
    noise: tuple[float, ...] = ()
    noise_pll: tuple[float, ...] = ()
    constant: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A data set and a method.

    Attributes:
        data: All rows.
        method: The method.
        protocol: The protocol.
        path: Where its files are.
    """

    data: Dataset
    method: Method
    protocol: Protocol
    path: Path

    def validation(self) -> list[Stage]:
        """The stages of the cross-validation: all splits, folds and values of the grid; none where nothing is open."""
        calls, values = self.method.calls(), self.method.chains()
        if self.data.task == "classification" and len(calls) * len(values) == 1:
            return []
        splits, folds = range(self.protocol.splits), range(self.protocol.folds)
        fits = [Fit(split, each, fold) for split in splits for fold in folds for each in values]
        found = [(call, part) for call in calls for part in cut(fits, self.protocol.max_chains // self.method.members)]
        return [self._stage(CV, number, call, part) for number, (call, part) in enumerate(found)]

    def choices(self, results: Sequence[Mapping[str, Any]]) -> list[Choice]:
        """What the cross-validation chooses for each split.

        Args:
            results: Of each stage of `validation`.
        """
        stages = self.validation()
        if not stages:
            return [Choice(self.method.calls()[0], self.method.chains()[0])] * self.protocol.splits
        # By split, and by candidate in the grid's order: (fold's loss, stage, place in the stage).
        found: list[dict[Any, list[tuple[float, int, int]]]] = [{} for _ in range(self.protocol.splits)]
        for number, (stage, result) in enumerate(zip(stages, results, strict=True)):
            for place, (fit, loss) in enumerate(zip(stage.fits, result["loss"].tolist(), strict=True)):
                candidate = tuple({**stage.call, **fit.values}.items())
                found[fit.split].setdefault(candidate, []).append((loss, number, place))
        return [self._choice(stages, results, each) for each in found]

    def _choice(
        self,
        stages: Sequence[Stage],
        results: Sequence[Mapping[str, Any]],
        found: Mapping[Any, list[tuple[float, int, int]]],
    ) -> Choice:
        means = {name: math.fsum(loss for loss, _, _ in folds) / len(folds) for name, folds in found.items()}
        finite = {name: loss for name, loss in means.items() if math.isfinite(loss)}
        if not finite:
            raise FloatingPointError(
                f"{self.method.name} on {self.data.name}: no fit of the cross-validation has a finite held-out loss"
            )
        best = min(finite, key=lambda name: finite[name])
        folds = found[best]
        stage, place = stages[folds[0][1]], folds[0][2]
        call, fit = stage.call, stage.fits[place]
        if self.data.task == "classification":
            return Choice(call, fit.values, finite[best])
        by = self.protocol.noise_by
        errors, curves, plain = (
            [results[number][name][place] for _, number, place in folds] for name in ("errors", "curves", "plain")
        )
        noise_pll = best_by_pll(curves, scale_units(self.protocol.split(self.data, fit.split)[0]))
        noise = best_by(errors, by) if by == "crps" else noise_pll
        return Choice(call, fit.values, math.sqrt(finite[best]), noise, noise_pll, best_by(plain, by))

    def final(self, choices: Sequence[Choice]) -> list[Stage]:
        """The stages that are scored on test rows: all splits with what was chosen for them.

        Args:
            choices: Of each split.
        """
        groups: dict[Any, list[int]] = {}
        for split, choice in enumerate(choices):
            groups.setdefault(tuple(choice.call.items()), []).append(split)
        most = self.protocol.max_chains // (self.method.members * self.protocol.seeds)
        found = [part for splits in groups.values() for part in cut(splits, most)]
        return [
            self._stage(
                FINAL,
                number,
                choices[splits[0]].call,
                [
                    Fit(s, choices[s].values, None, choices[s].noise, choices[s].noise_pll, choices[s].constant)
                    for s in splits
                ],
            )
            for number, splits in enumerate(found)
        ]

    def _stage(self, kind: str, number: int, call: Mapping[str, int], fits: Sequence[Fit]) -> Stage:
        return Stage(kind, number, self.data, self.method, self.protocol, call, tuple(fits))

    def result(
        self, choices: Sequence[Choice], stages: Sequence[Stage], results: Sequence[Mapping[str, Any]], spent: float
    ) -> dict[str, Any]:
        """What is kept of the finished cell.

        Args:
            choices: Of each split.
            stages: Those of `final`.
            results: Of each of them.
            spent: Processor seconds of the cross-validation.

        Returns:
            `scores`, {name: [split, seed]}; `chosen`, {name: [split]}; `noise`, `noise_pll`, `constant` [split,
            target], `cv_loss` [split]; `seconds`, and how many test fits `diverged`.
        """
        order = torch.tensor([fit.split for stage in stages for fit in stage.fits]).argsort()
        every = [{**each.call, **each.values} for each in choices]
        chosen = {n: torch.tensor([float(each[n]) for each in every], dtype=torch.float64) for n in every[0]}
        return {
            "scores": {n: torch.cat([r["scores"][n] for r in results])[order] for n in results[0]["scores"]},
            "chosen": chosen,
            "cv_loss": torch.tensor([each.loss for each in choices], dtype=torch.float64),
            "noise": torch.tensor([each.noise for each in choices], dtype=torch.float64),
            "noise_pll": torch.tensor([each.noise_pll for each in choices], dtype=torch.float64),
            "constant": torch.tensor([each.constant for each in choices], dtype=torch.float64),
            "seconds": spent + math.fsum(result["seconds"] for result in results),
            "diverged": sum(result["diverged"] for result in results),
        }


def cut(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """The items in groups of nearly equal sizes, as few as there can be with at most `most` (at least 1) in each.

    Args:
        items: What to cut.
        most: Largest size.
    """
    count = math.ceil(len(items) / max(most, 1))
    bounds = [round(len(items) * number / count) for number in range(count + 1)]
    return [items[low:high] for low, high in pairwise(bounds)]

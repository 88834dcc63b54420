"""The loop of training: epochs over minibatches of one stack of chains, of one task or of many."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.infer
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bnnzoo._vectorize import Pair
from bnnzoo.chains import Keeper, State, Trainer, chain_seed, collect, hold
from bnnzoo.checkpoint import Checkpoint
from bnnzoo.guides import Guide
from bnnzoo.objectives import Objective
from bnnzoo.posterior import Posterior
from bnnzoo.together import is_stacked_prior
from bnnzoo.training_data import checksum, input_range

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


@dataclass
class Progression:
    """What a callback sees at the end of an epoch.

    Attributes:
        epoch: Number of finished epochs, from 1.
        history: `{"loss": [chain, epoch], ...}` so far.
        parameters: The chains' parameters, stacked, [chain, ...]; views: writing to them changes the fit.
        active: Whether each chain is still trained, [chain].

    With several tasks, all chains of the first task come first.
    """

    epoch: int
    history: dict[str, np.ndarray]
    parameters: dict[str, Tensor]
    active: Tensor


@dataclass(frozen=True)
class Part:
    """A task as the loop sees it: programs of its own, and tensors.

    Attributes:
        pair: Model and guide.
        x: Training inputs as the model sees them, [N, ...]; all parts have the same N.
        y: Training targets, [N, ...].
        held_out: Inputs and targets to validate on.
        seed: Fixes initial values, minibatches and what is collected.
    """

    pair: Pair
    x: Tensor
    y: Tensor
    held_out: tuple[Tensor, Tensor] | None
    seed: int


@dataclass
class Run:
    """One call of `fit` or `fit_each`, its arguments checked; see there. `chains` are those of one task."""

    objective: pyro.infer.ELBO
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None
    epochs: int
    lr: float
    chains: int
    seed: int
    clip_norm: float | None
    adversarial: float | None
    patience: int | None
    checkpoint: Path | None
    callback: Callable[[Progression], bool | None] | None
    progress: bool
    history: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, pair: Pair, state: State, parts: list[Part], batch_size: int) -> list[Posterior]:
        """Train.

        Args:
            pair: The programs that all chains run; of a single part, its own.
            state: Parameters and buffers where training starts, [part x chain, ...].
            parts: The tasks.
            batch_size: Rows a step.

        Returns:
            A posterior of each part.
        """
        objective = copy.copy(self.objective)
        description = self._objective()
        make = partial(self.optimizer, lr=self.lr)
        size = len(parts[0].x)
        data = (parts[0].x, parts[0].y)
        if len(parts) > 1:
            data = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
        trainer = Trainer(pair, state, objective, data, make, self.clip_norm, self._reach(parts), size)
        scheduler = self.scheduler(trainer.optimizer) if self.scheduler else None
        if isinstance(scheduler, ReduceLROnPlateau) and trainer.chains > 1:
            raise ValueError("ReduceLROnPlateau follows one loss, and chains share their learning rate: use chains=1")
        seeds = [chain_seed(part.seed, chain) + 1 for part in parts for chain in range(self.chains)]
        orders = [torch.Generator().manual_seed(seed) for seed in seeds]
        names = [f"chain {chain}" for chain in range(self.chains)]
        if len(parts) > 1:
            names = [f"{name} of task {number}" for number in range(len(parts)) for name in names]
        keeper = Keeper(trainer, self.patience, names)
        validations = [Validation(part.pair, *part.held_out, part.seed) for part in parts if part.held_out is not None]
        saved = None
        if self.checkpoint is not None:
            saved = Checkpoint(self.checkpoint, self._fingerprint(trainer, scheduler, batch_size, parts))
        first = 0
        if saved is not None and saved.exists():
            first = saved.restore(trainer, scheduler, keeper, orders, self.history)

        def states() -> list[State]:
            return [self._state(trainer, number) for number in range(len(parts))]

        def learn() -> None:
            for part, own in zip(parts, states(), strict=True):
                collect(part.pair, own, part.x, part.y, batch_size, part.seed)

        pair.train()
        with self._bar(first) as advance:
            for epoch in range(first, self.epochs if keeper.active.any() else first):
                loss = self._epoch(trainer, orders, epoch, size, batch_size)
                scores = {"loss": loss}
                if validations:
                    learn()
                    scores["validation"] = torch.cat([v(own) for v, own in zip(validations, states(), strict=True)])
                for name, value in scores.items():
                    self.history.setdefault(name, []).append(value.cpu())
                keeper.after_epoch(epoch + 1, scores)
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(list(scores.values())[-1].item())
                elif scheduler is not None:
                    scheduler.step()
                stop = self._call_back(epoch + 1, trainer, keeper)
                if saved is not None:
                    saved.write(epoch + 1, trainer, scheduler, keeper, orders, self.history)
                advance(loss)
                if stop or not keeper.active.any():
                    break
        keeper.finish()
        learn()
        pair.eval()
        info = {
            "objective": description,
            "seed": self.seed,
            "batch_size": batch_size,
            "lr": self.lr,
            "adversarial": self.adversarial,
            "num_data": size,
            "example": [(list(t[:2].shape), str(t.dtype).removeprefix("torch.")) for t in data],
        }
        return [self._posterior(number, part, trainer, keeper, info, pair) for number, part in enumerate(parts)]

    def _posterior(
        self, number: int, part: Part, trainer: Trainer, keeper: Keeper, info: dict[str, Any], pair: Pair
    ) -> Posterior:
        """The posterior of one part, cut out of the stack."""
        own = slice(number * self.chains, (number + 1) * self.chains)
        state = self._state(trainer, number)
        if part.pair is not pair:
            state = tuple({name: value.clone() for name, value in values.items()} for values in state)  # type: ignore[assignment]
            hold(part.pair, state)
            part.pair.eval()
        diverged = [chain - own.start for chain in keeper.diverged if own.start <= chain < own.stop]
        return Posterior(
            part.pair,
            *state,
            history={name: values[own] for name, values in self._arrays().items()},
            info={**info, "checksum": checksum(part.x, part.y), "diverged": diverged},
        )

    def _state(self, trainer: Trainer, number: int) -> State:
        """Views of one part's parameters and buffers, [chain, ...]."""
        own = slice(number * self.chains, (number + 1) * self.chains)
        parameters = {name: value[own] for name, value in trainer.parameters.items()}
        return parameters, {name: value[own] for name, value in trainer.buffers.items() if not is_stacked_prior(name)}

    def _reach(self, parts: list[Part]) -> Tensor | None:
        if self.adversarial is None:
            return None
        ranges = torch.stack([self.adversarial * input_range(part.x) for part in parts])
        if len(parts) == 1:
            return ranges[0]
        # Beside inputs [chain, B, ...].
        ranges = ranges.repeat_interleave(self.chains, 0)
        return ranges.view(len(ranges), *[1] * (parts[0].x.dim() + 1 - ranges.dim()), *ranges.shape[1:])

    def _epoch(self, trainer: Trainer, orders: list[torch.Generator], epoch: int, size: int, batch_size: int) -> Tensor:
        order = torch.stack([torch.randperm(size, generator=generator) for generator in orders])
        # A task's rows come after those of the tasks before it.
        order += torch.arange(0, len(trainer.x), size).repeat_interleave(self.chains)[:, None]
        order = order.to(trainer.x.device)
        steps = math.ceil(size / batch_size)
        total = torch.zeros(trainer.chains, device=trainer.x.device)
        for step in range(steps):
            trainer.objective.epoch = epoch + step / steps
            total += trainer.step(order[:, step * batch_size : (step + 1) * batch_size])
        return total / steps

    def _call_back(self, epoch: int, trainer: Trainer, keeper: Keeper) -> bool:
        if self.callback is None:
            return False
        return self.callback(Progression(epoch, self._arrays(), trainer.parameters, keeper.active)) is True

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: torch.stack(values, dim=1).numpy() for name, values in self.history.items()}

    def _objective(self) -> str:
        if isinstance(self.objective, Objective):
            return repr(self.objective)
        numbers = {name: value for name, value in vars(self.objective).items() if isinstance(value, int | float)}
        return f"{type(self.objective).__name__} {numbers}"

    def _fingerprint(self, trainer: Trainer, scheduler: Any, batch_size: int, parts: list[Part]) -> dict[str, Any]:
        """What must agree for a checkpoint to continue this run."""
        held_out = [values for part in parts if part.held_out is not None for values in part.held_out]
        return {
            "seed": self.seed,
            "chains": self.chains,
            "batch_size": batch_size,
            "num_data": len(trainer.x),
            "checksum of the data": checksum(trainer.x, trainer.y),
            "checksum of the validation data": checksum(*held_out) if held_out else None,
            "lr": self.lr,
            "clip_norm": self.clip_norm,
            "adversarial": self.adversarial,
            "patience": self.patience,
            "objective": self._objective(),
            "optimizer": f"{type(trainer.optimizer).__name__} {trainer.optimizer.defaults}",
            "scheduler": _settings(scheduler),
            "network": _joined(parts, lambda pair: " ".join(str(pair.model.network).split())),
            "guide": _joined(parts, lambda pair: _description(pair.guide)),
            "prior": _joined(parts, lambda pair: {name: str(prior) for name, prior in pair.model.priors.items()}),
            "likelihood": _joined(parts, lambda pair: str(pair.model.likelihood)),
            "parameters": {name: list(value.shape) for name, value in trainer.parameters.items()},
        }

    @contextmanager
    def _bar(self, first: int) -> Iterator[Callable[[Tensor], None]]:
        if not self.progress:
            yield lambda loss: None
            return
        columns = (
            TextColumn("fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("fit", total=self.epochs, completed=first, loss="-")

            def advance(loss: Tensor) -> None:
                bar.update(task, advance=1, loss=f"{loss[loss.isfinite()].mean().item():.4g}")

            yield advance


class Validation:
    """The mean negative log predictive density of every chain of a task on held-out data.

    Args:
        pair: The task's model and guide.
        x: Held-out inputs as the model sees them.
        y: Held-out targets as the model sees them.
        seed: Fixes the draws.
    """

    num_samples = 32
    memory = 2**27  # of the predictions that are held at once, in bytes

    def __init__(self, pair: Pair, x: Tensor, y: Tensor, seed: int) -> None:
        self.pair, self.x, self.y, self.seed = pair, x, y, seed

    def __call__(self, state: State) -> Tensor:
        """The scores of chains with these parameters and buffers, [chain]."""
        posterior = Posterior(self.pair, *state)
        draws = posterior.chains * self.num_samples
        row = sum(value.numel() * value.element_size() for value in posterior._conditional_once(self.x).values())
        rows = max(1, self.memory // (row * draws))
        # A guide that predicts by moments draws nothing.
        number = None if getattr(self.pair.guide, "prediction", "draws") == "moments" else self.num_samples
        scores = []
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            prediction = posterior.predict(x, num_samples=number, seed=self.seed)
            scores.append(torch.stack([prediction.chain(c).log_prob(y) for c in range(posterior.chains)]))
        return -torch.cat(scores, 1).mean(1)


def _joined(parts: list[Part], describe: Callable[[Pair], Any]) -> Any:
    """What describes a single part, or a list of what describes each."""
    found = [describe(part.pair) for part in parts]
    return found[0] if len(found) == 1 else found


def _settings(scheduler: Any) -> str:
    """A scheduler's class and the numbers it was built with, before its first step."""
    if scheduler is None:
        return "none"
    kinds = int | float | str | list | tuple
    numbers = {name: value for name, value in scheduler.state_dict().items() if isinstance(value, kinds)}
    return f"{type(scheduler).__name__} {numbers}"


def _description(guide: nn.Module) -> str:
    """A guide's class, and the options that it was built with if it is one of bnnzoo's, which keep them."""
    if not isinstance(guide, Guide):
        return type(guide).__name__
    return f"{type(guide).__name__}({', '.join(f'{name}={value!r}' for name, value in guide.options().items())})"

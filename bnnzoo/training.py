"""`fit`: train a guide, one chain or many in one vectorized pass."""

from __future__ import annotations

import copy
import inspect
import math
import sys
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

from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import Keeper, State, Trainer, chain_seed, collect, initial_state
from bnnzoo.checkpoint import Checkpoint
from bnnzoo.data import as_dataset
from bnnzoo.guides import Empirical, Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import ELBO, Objective
from bnnzoo.posterior import Posterior
from bnnzoo.training_data import check_last_batch, checksum, input_range, training_tensors, validation_split

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
    """

    epoch: int
    history: dict[str, np.ndarray]
    parameters: dict[str, Tensor]
    active: Tensor


def fit(
    bnn: BayesianNetwork,
    guide: nn.Module,
    data: Any,
    *,
    objective: pyro.infer.ELBO | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    lr: float = 1e-3,
    chains: int = 1,
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    clip_norm: float | None = None,
    adversarial: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    callback: Callable[[Progression], bool | None] | None = None,
    progress: bool | None = None,
) -> Posterior:
    """Fit a guide to data by stochastic optimization.

    The chains are independent restarts: own initial values, own minibatches, own draws. They are stacked and trained
    in one pass, the whole Pyro program mapped by `torch.func.vmap`; a single chain runs without it. Chain 0 starts at
    the network's values as they are, the others at fresh ones (`reset_parameters` of the network's modules).

    `bnn` and `guide` are copied, never changed. A `Dataset` that carries a standardization is standardized here, and
    the posterior undoes it: predictions are in the data's own units.

    Args:
        bnn: The model.
        guide: A guide built from it: one of `bnnzoo.guides`, or any Pyro guide module such as `AutoNormal(bnn)`.
        data: A `bnnzoo.data.Dataset`, a pair `(x, y)` of arrays, tensors or frames, a torch Dataset or DataLoader.
        objective: A `pyro.infer.ELBO`, default the guide's own (`Guide.objective`): `objectives.MomentELBO()` for
            `guides.MomentPropagation`, `objectives.ELBO()` for the others and Pyro's. Those of bnnzoo are mapped over
            the chains; others run chain by chain.
        epochs: Passes over the data, ≥ 1.
        batch_size: Rows a step, from 1 to the number of data; default the smaller of 100 and that number. The last
            batch of an epoch holds the rest.
        lr: Learning rate, > 0.
        chains: Number of chains, ≥ 1.
        seed: Fixes initial values, minibatches and draws; torch's global generators are left as they were.
        optimizer: `optimizer(parameters, lr=lr)` makes a torch optimizer; default fused Adam. With several chains it
            must act elementwise, as most do (not Adafactor or Muon, which would mix the chains). LBFGS will not do.
        scheduler: `scheduler(optimizer)` makes a learning-rate scheduler, stepped once an epoch. `ReduceLROnPlateau`
            follows the validation score, or else the loss, of a single chain.
        clip_norm: Bound of each chain's gradient norm (of the loss summed over the data), > 0.
        adversarial: ε in (0, 1] for adversarial training by the fast gradient sign (Goodfellow et al. 2015), as deep
            ensembles do (Lakshminarayanan et al. 2017, algorithm 1): each step minimizes the mean of the losses on its
            batch and on `x + ε · range · sign(∂loss/∂x)`, and `history["loss"]` records that mean. The range is
            maximum minus minimum over the training data, of each feature for inputs [N, D], of all numbers together
            for others, such as images. Each chain makes its own examples; a step costs twice as much. Running
            statistics of batch normalization are moved by both batches. Default: none.
        validation: Data to score each epoch on (`history["validation"]`: mean negative log predictive density of each
            chain), or a fraction of the training data, in (0, 1), to hold out.
        patience: Stop a chain after this many epochs, ≥ 1, without a better validation score, and return its
            parameters at the best one. Needs `validation`.
        checkpoint: A file to keep the state in after every epoch. If it exists, training resumes there; the result is
            bit for bit (on the CPU) that of a run that was never interrupted. A file of another run is refused;
            functions, as a `kl_weight` of your own, are told apart by their names only.
        callback: Called after every epoch with a `Progression`; returning True ends training.
        progress: Show a progress bar; default if standard error is a terminal.

    Returns:
        The fitted posterior.

    Raises:
        ValueError: If an argument is out of range, or the data do not fit the model.
        FloatingPointError: If every chain diverged.

    Warns:
        DivergenceWarning: If a chain diverged; the others are not touched by it.
    """
    settings = {name: value for name, value in locals().items() if name not in ("bnn", "guide", "data")}
    return _fit(Pair(bnn, guide).copy(), None, data, **settings)


def resume(posterior: Posterior, data: Any, **settings: Any) -> Posterior:
    """Train a posterior's chains further; see `Posterior.fit`."""
    unknown = sorted(set(settings) - set(inspect.signature(fit).parameters))
    if unknown or "chains" in settings:
        raise TypeError(f"{unknown or ['chains']} is no setting of Posterior.fit: see bnnzoo.fit")
    defaults = {n: p.default for n, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if isinstance(posterior.guide, Empirical):
        raise TypeError("stored draws have nothing to train: draw more with bnnzoo.sample")
    pair = Pair(posterior.bnn, posterior.guide).copy()
    return _fit(pair, posterior, data, **{**defaults, **settings, "chains": posterior.chains})


def _fit(
    pair: Pair,
    start: Posterior | None,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None,
    validation: Any,
    progress: bool | None,
    **settings: Any,
) -> Posterior:
    own = pair.guide.objective() if isinstance(pair.guide, Guide) else ELBO()
    run = _Run(
        objective=own if settings["objective"] is None else settings["objective"],
        optimizer=settings["optimizer"] or partial(torch.optim.Adam, fused=True),
        scheduler=settings["scheduler"],
        epochs=_at_least(1, epochs=epochs),
        lr=_positive(lr=settings["lr"]),
        chains=_at_least(1, chains=settings["chains"]),
        seed=_at_least(0, seed=settings["seed"]),
        clip_norm=None if settings["clip_norm"] is None else _positive(clip_norm=settings["clip_norm"]),
        adversarial=None if settings["adversarial"] is None else _fraction(adversarial=settings["adversarial"]),
        patience=None if settings["patience"] is None else _at_least(1, patience=settings["patience"]),
        checkpoint=None if settings["checkpoint"] is None else Path(settings["checkpoint"]),
        callback=settings["callback"],
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    if isinstance(run.objective, type):
        raise TypeError(f"objective must be an instance, {run.objective.__name__}(...), not the class")
    if not hasattr(run.objective, "differentiable_loss"):
        raise TypeError(f"{type(run.objective).__name__} has no differentiable_loss to train by: use bnnzoo.objectives")
    if run.checkpoint is not None and not run.checkpoint.parent.is_dir():
        raise FileNotFoundError(f"cannot keep a checkpoint in {run.checkpoint}: there is no such folder")
    dataset, held_out = validation_split(as_dataset(data), validation, run.patience, run.seed)
    standardization = dataset.standardization if start is None else start.standardization
    x, y = training_tensors(pair.model, dataset, standardization)
    size = len(x)
    if batch_size is None:
        batch_size = min(100, size)
    if _at_least(1, batch_size=batch_size) > size:
        raise ValueError(f"batch_size must be at most the number of data, {size}, not {batch_size}")
    check_last_batch(pair.model, x, batch_size)
    validation_tensors = None if held_out is None else training_tensors(pair.model, held_out, standardization)
    with seeded(run.seed, x.device), pyro_settings(pair), torch.enable_grad():
        state = initial_state(pair, run.chains, run.seed, x[:2], y[:2]) if start is None else start.state()
        posterior = run(pair, state, (x, y), batch_size, validation_tensors)
    posterior.standardization = standardization
    posterior.info["data"] = dataset.name
    return posterior


@dataclass
class _Run:
    """One call of `fit`, its arguments checked."""

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

    def __call__(
        self,
        pair: Pair,
        state: State,
        data: tuple[Tensor, Tensor],
        batch_size: int,
        held_out: tuple[Tensor, Tensor] | None,
    ) -> Posterior:
        objective = copy.copy(self.objective)
        description = self._objective()
        make = partial(self.optimizer, lr=self.lr)
        reach = None if self.adversarial is None else self.adversarial * input_range(data[0])
        trainer = Trainer(pair, state, objective, data, make, self.clip_norm, reach)
        scheduler = self.scheduler(trainer.optimizer) if self.scheduler else None
        if isinstance(scheduler, ReduceLROnPlateau) and self.chains > 1:
            raise ValueError("ReduceLROnPlateau follows one loss, and chains share their learning rate: use chains=1")
        size = len(data[0])
        orders = [torch.Generator().manual_seed(chain_seed(self.seed, chain) + 1) for chain in range(self.chains)]
        keeper = Keeper(trainer, self.patience)
        learn = partial(collect, pair, (trainer.parameters, trainer.buffers), *data, batch_size, self.seed)
        validate = None if held_out is None else _Validation(pair, trainer, held_out, self.seed)
        saved = None
        if self.checkpoint is not None:
            saved = Checkpoint(self.checkpoint, self._fingerprint(trainer, scheduler, batch_size, held_out))
        first = 0
        if saved is not None and saved.exists():
            first = saved.restore(trainer, scheduler, keeper, orders, self.history)
        pair.train()
        with self._bar(first) as advance:
            for epoch in range(first, self.epochs if keeper.active.any() else first):
                loss = self._epoch(trainer, orders, epoch, size, batch_size)
                scores = {"loss": loss}
                if validate is not None:
                    learn()
                    scores["validation"] = validate()
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
        return Posterior(
            pair,
            trainer.parameters,
            trainer.buffers,
            history=self._arrays(),
            info={
                "objective": description,
                "seed": self.seed,
                "batch_size": batch_size,
                "lr": self.lr,
                "adversarial": self.adversarial,
                "num_data": size,
                "checksum": checksum(*data),
                "example": [(list(t[:2].shape), str(t.dtype).removeprefix("torch.")) for t in data],
                "diverged": keeper.diverged,
            },
        )

    def _epoch(self, trainer: Trainer, orders: list[torch.Generator], epoch: int, size: int, batch_size: int) -> Tensor:
        order = torch.stack([torch.randperm(size, generator=generator) for generator in orders])
        order = order.to(trainer.x.device)
        steps = math.ceil(size / batch_size)
        total = torch.zeros(self.chains, device=trainer.x.device)
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

    def _fingerprint(
        self, trainer: Trainer, scheduler: Any, batch_size: int, held_out: tuple[Tensor, Tensor] | None
    ) -> dict[str, Any]:
        """What must agree for a checkpoint to continue this run."""
        model = trainer.pair.model
        return {
            "seed": self.seed,
            "chains": self.chains,
            "batch_size": batch_size,
            "num_data": len(trainer.x),
            "checksum of the data": checksum(trainer.x, trainer.y),
            "checksum of the validation data": None if held_out is None else checksum(*held_out),
            "lr": self.lr,
            "clip_norm": self.clip_norm,
            "adversarial": self.adversarial,
            "patience": self.patience,
            "objective": self._objective(),
            "optimizer": f"{type(trainer.optimizer).__name__} {trainer.optimizer.defaults}",
            "scheduler": type(scheduler).__name__,
            "guide": _description(trainer.pair.guide),
            "prior": {name: str(prior) for name, prior in model.priors.items()},
            "likelihood": str(model.likelihood),
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


class _Validation:
    """The mean negative log predictive density of every chain on held-out data."""

    num_samples = 32
    memory = 2**27  # of the predictions that are held at once, in bytes

    def __init__(self, pair: Pair, trainer: Trainer, held_out: tuple[Tensor, Tensor], seed: int) -> None:
        self.pair, self.trainer, self.seed = pair, trainer, seed
        self.x, self.y = held_out

    def __call__(self) -> Tensor:
        posterior = Posterior(self.pair, self.trainer.parameters, self.trainer.buffers)
        draws = self.trainer.chains * self.num_samples
        row = sum(value.numel() * value.element_size() for value in posterior._conditional_once(self.x).values())
        rows = max(1, self.memory // (row * draws))
        # A guide that predicts by moments draws nothing.
        number = None if getattr(self.pair.guide, "prediction", "draws") == "moments" else self.num_samples
        scores = []
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            prediction = posterior.predict(x, num_samples=number, seed=self.seed)
            scores.append(torch.stack([prediction.chain(c).log_prob(y) for c in range(self.trainer.chains)]))
        return -torch.cat(scores, 1).mean(1)


def _description(guide: nn.Module) -> str:
    """A guide's class, and the options that it was built with if it is one of bnnzoo's, which keep them."""
    if not isinstance(guide, Guide):
        return type(guide).__name__
    options = [name for name in inspect.signature(type(guide)).parameters if name != "bnn" and hasattr(guide, name)]
    return f"{type(guide).__name__}({', '.join(f'{name}={getattr(guide, name)!r}' for name in options)})"


def _at_least(bound: int, **named: int) -> int:
    ((name, value),) = named.items()
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < bound:
        raise ValueError(f"{name} must be an integer of at least {bound}, not {value!r}")
    return int(value)


def _positive(**named: float) -> float:
    ((name, value),) = named.items()
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return float(value)


def _fraction(**named: float) -> float:
    ((name, value),) = named.items()
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1):
        raise ValueError(f"{name} must be a number in (0, 1], a fraction of the inputs' range, not {value!r}")
    return float(value)

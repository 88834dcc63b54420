"""`fit` and `fit_each`: train guides, one chain or many, of one task or many, in one vectorized pass."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import nn

from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import State, chain_seed, initial_state
from bnnzoo.data import Dataset, Standardization, as_dataset
from bnnzoo.guides import Empirical, Guide
from bnnzoo.loop import OptimizerFactory, Part, Progression, Run, SchedulerFactory
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import ELBO
from bnnzoo.posterior import Posterior
from bnnzoo.together import check_alike, together
from bnnzoo.training_data import check_last_batch, training_tensors, validation_split


@dataclass(frozen=True)
class Task:
    """One of several things to fit together, see `fit_each`.

    Attributes:
        bnn: The model.
        guide: A guide built from it.
        data: The training data, whatever `fit` takes.
    """

    bnn: BayesianNetwork
    guide: nn.Module
    data: Any


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
    dataset = as_dataset(data)
    return _fit([Pair(bnn, guide).copy()], [dataset.standardization], [dataset], None, **settings)[0]


def fit_each(tasks: Sequence[Task], *, chains: int = 1, validation: Any = None, **settings: Any) -> list[Posterior]:
    """Fit several tasks in one vectorized pass: splits, folds of a cross-validation, a grid of hyperparameters.

    All chains of all tasks are one stack, trained as `fit` trains the chains of one: each has initial values,
    minibatches and draws of its own. Tasks must be alike in all that makes the program: the network, the guide and its
    options, the likelihood, the families of the priors, and the number and shape of their data. They may differ in all
    that tensors hold: data and their standardization, the network's values, the numbers of normal, Laplace, Student's t
    and Cauchy priors, dropout rates, initial scales, a Gaussian likelihood's fixed noise. The first chain of a task
    starts at its own network's values.

    Args:
        tasks: What to fit, at least one.
        chains: Number of chains of each task, ≥ 1.
        validation: A fraction of each task's training data to hold out, in (0, 1), or a sequence of data, one a task.
        **settings: As of `fit`: objective (by default the first guide's own), epochs, batch_size, lr, seed, ... A
            callback sees all chains, those of the first task first.

    Returns:
        A posterior of each task, as `fit` returns it.

    Raises:
        ValueError: As `fit`, or if the tasks are not alike; says which task differs in what.
        FloatingPointError: If every chain of every task diverged.
        TypeError: If a setting is unknown.
    """
    unknown = sorted(set(settings) - _DEFAULTS.keys())
    if unknown:
        raise TypeError(f"{unknown[0]} is no setting of fit_each: it takes those of bnnzoo.fit")
    tasks = list(tasks)
    if not tasks:
        raise ValueError("there is no task to fit")
    for number, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"task {number} must be a bnnzoo.Task(bnn, guide, data), not {type(task).__name__}")
    if validation is not None and not isinstance(validation, float):
        validation = list(validation)
        if len(validation) != len(tasks):
            raise ValueError(f"validation must have data for each of the {len(tasks)} tasks, not {len(validation)}")
    pairs = [Pair(task.bnn, task.guide).copy() for task in tasks]
    check_alike(pairs)
    data = [as_dataset(task.data) for task in tasks]
    settings = {**_DEFAULTS, **settings, "chains": chains, "validation": validation}
    return _fit(pairs, [each.standardization for each in data], data, None, **settings)


def resume(posterior: Posterior, data: Any, **settings: Any) -> Posterior:
    """Train a posterior's chains further; see `Posterior.fit`."""
    unknown = sorted(set(settings) - _DEFAULTS.keys())
    if unknown or "chains" in settings:
        raise TypeError(f"{unknown or ['chains']} is no setting of Posterior.fit: see bnnzoo.fit")
    if isinstance(posterior.guide, Empirical):
        raise TypeError("stored draws have nothing to train: draw more with bnnzoo.sample")
    pair = Pair(posterior.bnn, posterior.guide).copy()
    settings = {**_DEFAULTS, **settings, "chains": posterior.chains}
    return _fit([pair], [posterior.standardization], [as_dataset(data)], posterior.state(), **settings)[0]


_DEFAULTS = {n: p.default for n, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY}


def _fit(
    pairs: list[Pair],
    standardizations: list[Standardization | None],
    data: list[Dataset],
    start: State | None,
    *,
    epochs: int,
    batch_size: int | None,
    validation: Any,
    progress: bool | None,
    **settings: Any,
) -> list[Posterior]:
    """Fit each pair to its data; `start` has the stacked state of a single pair that is trained further."""
    own = pairs[0].guide.objective() if isinstance(pairs[0].guide, Guide) else ELBO()
    run = Run(
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
    # A single task has the seed itself, several have seeds made of it.
    seeds = [run.seed] if len(pairs) == 1 else [chain_seed(run.seed, number) for number in range(len(pairs))]
    held_out = validation if isinstance(validation, list) else [validation] * len(pairs)
    parts = [
        _part(pair, dataset, standardization, valid, run.patience, seed)
        for pair, dataset, standardization, valid, seed in zip(
            pairs, data, standardizations, held_out, seeds, strict=True
        )
    ]
    shapes = [(part.x.shape, part.y.shape) for part in parts]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"all tasks need as many data of the same shape: task {number} has inputs {list(shape[0])} and targets "
                f"{list(shape[1])}, task 0 {list(shapes[0][0])} and {list(shapes[0][1])}; drop rows, or fit it apart"
            )
    x = parts[0].x
    size = len(x)
    if batch_size is None:
        batch_size = min(100, size)
    if _at_least(1, batch_size=batch_size) > size:
        raise ValueError(f"batch_size must be at most the number of data, {size}, not {batch_size}")
    check_last_batch(parts[0].pair.model, x, batch_size)
    with seeded(run.seed, x.device), pyro_settings(*pairs), torch.enable_grad():
        if start is None:
            states = [initial_state(p.pair, run.chains, p.seed, p.x[:2], p.y[:2]) for p in parts]
            pair, start = together(pairs, states)
        else:
            pair = pairs[0]
        posteriors = run(pair, start, parts, batch_size)
    for posterior, standardization, dataset in zip(posteriors, standardizations, data, strict=True):
        posterior.standardization = standardization
        posterior.info["data"] = dataset.name
    return posteriors


def _part(
    pair: Pair,
    dataset: Dataset,
    standardization: Standardization | None,
    validation: Any,
    patience: int | None,
    seed: int,
) -> Part:
    """A task as tensors, checked."""
    train, held_out = validation_split(dataset, validation, patience, seed)
    x, y = training_tensors(pair.model, train, standardization)
    validating = None if held_out is None else training_tensors(pair.model, held_out, standardization)
    return Part(pair, x, y, validating, seed)


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

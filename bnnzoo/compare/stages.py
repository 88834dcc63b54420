"""Stages: the pieces of work of a comparison, each one vectorized stack of fits and what is taken from it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from bnnzoo import evaluation, likelihoods, models, objectives
from bnnzoo._vectorize import seeded
from bnnzoo.compare.method import Method
from bnnzoo.compare.protocol import Protocol, common_rows
from bnnzoo.data import Dataset
from bnnzoo.evaluation.bounds import SCORES, optimum, point_prediction
from bnnzoo.guides import Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.noise import best_scale
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction, of_groups
from bnnzoo.priors import Normal
from bnnzoo.training import Task, fit_each

CV, FINAL = "cv", "final"

Values = Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """One task of a stack.

    Attributes:
        split: Which split, from 0.
        values: The grid's values that are chains.
        fold: Which fold of the split's training rows is held out, from 0; None trains on all of them.
        noise: Noise scales of the predictions, in the target's own units, one a target; empty for classes.
        noise_pll: Those that are best for the log likelihood, likewise.
        constant: Noise scales of the constant-uncertainty baseline, likewise.
    """

    split: int
    values: Values
    fold: int | None = None
    noise: tuple[float, ...] = ()
    noise_pll: tuple[float, ...] = ()
    constant: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stack of fits.

    Attributes:
        kind: `"cv"`: each fit is scored on its held-out fold; `"final"`: each is scored on the test rows.
        number: Among the stages of its kind in a cell, from 0.
        data: All rows.
        method: What is fitted.
        protocol: How.
        call: Settings of training from the grid.
        fits: The tasks.
    """

    kind: str
    number: int
    data: Dataset
    method: Method
    protocol: Protocol
    call: Mapping[str, int]
    fits: tuple[Fit, ...]

    @property
    def chains(self) -> int:
        """Chains of each task."""
        return self.method.members * (self.protocol.seeds if self.kind == FINAL else 1)

    @property
    def num_fits(self) -> int:
        """Fits in the stack."""
        return self.chains * len(self.fits)

    @property
    def work(self) -> float:
        """How much work it is, relative to other stages: rows that go through the network in training."""
        protocol = _protocol(self.protocol, self.call)
        size, total = protocol.test_size, len(self.data)
        train = int(total - size if size >= 1 else total * (1 - size))
        sizes = [train - train // protocol.folds, train][: 2 if self.kind == FINAL else 1]
        return self.num_fits * _epochs(protocol, [(n, min(n, protocol.batch_size)) for n in sizes]) * sizes[-1]


def run(stage: Stage) -> dict[str, Any]:
    """Fits a stack and scores it, on one thread: the same numbers in whatever process.

    Args:
        stage: What to do.

    Returns:
        Tensors and numbers, ready for `bnnzoo.files.write`: `seconds` of the processor, `diverged` and all `fits`. Of a
        cross-validation `loss` [fit], the mean squared error or the mean negative log probability, and for regressions
        lists of what the noise can be chosen by, of held-out `errors` and `curves` of the log likelihood, and `plain`,
        the errors of the network without uncertainty; of final fits
        `scores`, {name: [fit, seed]}.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = time.process_time()
        posteriors, held_out = _fitted(stage)
        result = (_validated if stage.kind == CV else _scored)(stage, posteriors, held_out)
        diverged = sum(len(posterior.info["diverged"]) for posterior in posteriors)
        return {**result, "seconds": time.process_time() - begin, "diverged": diverged, "fits": stage.num_fits}
    finally:
        torch.set_num_threads(threads)


def _fitted(stage: Stage) -> tuple[list[Posterior], list[Dataset]]:
    """The posteriors of a stage's fits, and the rows that each is to be scored on."""
    protocol = _protocol(stage.protocol, stage.call)
    splits = {fit.split for fit in stage.fits}
    if stage.kind == CV:
        folds = {split: protocol.fold(stage.data, split) for split in splits}
        pairs = [folds[fit.split][fit.fold or 0] for fit in stage.fits]
    else:
        wholes = {split: protocol.split(stage.data, split) for split in splits}
        pairs = [wholes[fit.split] for fit in stage.fits]
    rows, batch_size, epochs = training_of(stage)
    trains = [train if len(train) == rows else train.subset(slice(0, rows)) for train, _ in pairs]
    tasks = [_task(stage, fit, train) for fit, train in zip(stage.fits, trains, strict=True)]
    try:
        return _fit(stage, tasks, batch_size, epochs), [test for _, test in pairs]
    except FloatingPointError as error:
        raise FloatingPointError(f"{stage.method.name} on {stage.data.name}: {error}") from error


def _fit(stage: Stage, tasks: Sequence[Task], batch_size: int, epochs: int) -> list[Posterior]:
    protocol = stage.protocol
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    return fit_each(
        tasks,
        objective=_objective(tasks[0].guide, stage.method.kl_annealing * epochs),
        epochs=epochs,
        batch_size=batch_size,
        lr=protocol.lr,
        scheduler=schedule if protocol.schedule == "cosine" else None,
        chains=stage.chains,
        seed=protocol.seed_of(3, stage.kind == FINAL, stage.number),
        progress=False,
    )


def training_of(stage: Stage) -> tuple[int, int, int]:
    """How long a stage's fits are trained: rows, rows a step, and epochs.

    Both kinds of stages round steps up to whole epochs, of different lengths: final fits take at least as many steps as
    those of the cross-validation that chose for them.

    Args:
        stage: The stage.
    """
    protocol, split = _protocol(stage.protocol, stage.call), stage.fits[0].split  # all splits have the same lengths
    parts = [common_rows([train for train, _ in protocol.fold(stage.data, split)], protocol.batch_size)]
    if stage.kind == FINAL:
        parts.append(common_rows([protocol.split(stage.data, split)[0]], protocol.batch_size))
    return *parts[-1], _epochs(protocol, parts)


def _epochs(protocol: Protocol, parts: Sequence[tuple[int, int]]) -> int:
    """Epochs of the last of some fits (rows, rows a step), with at least as many steps as the one before it."""
    epochs, steps = 0, None
    for rows, batch_size in parts:
        epochs = protocol.epochs_of(rows, batch_size, steps)
        steps = epochs * math.ceil(rows / batch_size)
    return epochs


def _protocol(protocol: Protocol, call: Mapping[str, int]) -> Protocol:
    """The protocol with the grid's settings of training; its own `epochs` do not outdo the grid's `steps`."""
    changes: dict[str, Any] = {"epochs": None, **call} if "steps" in call else dict(call)
    return replace(protocol, **changes)


def _objective(guide: Any, annealed: float) -> Any:
    if not isinstance(guide, Guide) or annealed == 0:
        return None
    return guide.objective(kl_weight=objectives.KLAnnealing(annealed))


def _task(stage: Stage, fit: Fit, part: Dataset) -> Task:
    """Model and guide of a fit; the grid's values share the initial weights."""
    protocol, method = stage.protocol, stage.method
    where = (2, stage.kind == FINAL, fit.split, 0 if fit.fold is None else fit.fold)
    outputs = part.num_classes or math.prod(part.y.shape[1:])
    with seeded(protocol.seed_of(*where)):
        network = models.MLP(math.prod(part.input_shape), outputs, protocol.hidden, **method.network)
        likelihood = (
            likelihoods.Gaussian(scale=method.noise, num_outputs=outputs)
            if part.task == "regression"
            else likelihoods.Categorical()
        )
        bnn = BayesianNetwork(network, likelihood, Normal(0.0, method.prior_scale(fit.values, len(part), part.task)))
        own = {name: value for name, value in fit.values.items() if name not in ("weight_decay", "prior_scale")}
        return Task(bnn, method.guide(bnn, **own), part)


def _validated(stage: Stage, posteriors: Sequence[Posterior], held_out: Sequence[Dataset]) -> dict[str, Any]:
    """Of each fit the loss on its held-out rows, and for a regression what the noise can be chosen by."""
    losses, errors, curves, plain = [], [], [], []
    for fit, posterior, test in zip(stage.fits, posteriors, held_out, strict=True):
        prediction = _predict(stage, posterior, test, stage.protocol.cv_draws)
        if test.task == "classification":
            losses.append(-prediction.log_prob(test.y).mean().item())
            continue
        drawn = _errors(prediction.parameters["loc"][0], test)
        losses.append(drawn.mean(0).square().mean().item())
        errors.append(_moments(drawn))
        curves.append(_curve(drawn, scale_units(stage.protocol.split(stage.data, fit.split)[0])))
        plain.append(_errors(_points(stage, posterior, test, stage.protocol.cv_draws), test))
    return {"loss": torch.tensor(losses, dtype=torch.float64), "errors": errors, "curves": curves, "plain": plain}


def _predict(stage: Stage, posterior: Posterior, part: Dataset, draws: int) -> Prediction:
    """Predictions of a posterior, the members of an ensemble as one chain."""
    prediction = posterior.predict(part.x, 1 if stage.method.single else draws, stage.protocol.seed)
    return _grouped(prediction, stage.method.members)


def _points(stage: Stage, posterior: Posterior, part: Dataset, draws: int) -> Tensor:
    """What the network predicts without the method's uncertainty, [seed, N, *event]: an ensemble's first member."""
    return point_prediction(posterior, part.x, draws, stage.protocol.seed)[:: stage.method.members]


def _errors(loc: Tensor, part: Dataset) -> Tensor:
    """Targets less predictions [draw, N, *event], in own units, [draw, N, target]."""
    return (part.y.double() - loc.double()).reshape(*loc.shape[:2], -1)


def _moments(errors: Tensor) -> Tensor:
    """Two draws with the mean and the spread of errors [draw, N, target]: all that the CRPS of Gaussians sees."""
    mean, spread = errors.mean(0), errors.std(0, correction=0)
    return torch.stack([mean - spread, mean + spread])


_SCALES = torch.logspace(-3.0, 0.5, 120, dtype=torch.float64)  # in units of the targets' standard deviation


def _curve(errors: Tensor, units: Tensor) -> Tensor:
    """Sum over rows of the log density of each target's mixture over draws, at each of `_SCALES`: [scale, target].

    Args:
        errors: [draw, N, target].
        units: Standard deviations of the targets, [target].
    """
    sums = []
    for scale in _SCALES:
        z = errors / (scale * units)
        density = (-0.5 * z.square()).logsumexp(0) - math.log(len(z) * math.sqrt(2.0 * math.pi))
        sums.append(density.sum(0) - len(density[:, 0]) * (scale * units).log())
    return torch.stack(sums)


def scale_units(train: Dataset) -> Tensor:
    """Standard deviations of a regression's targets, [target], in which the scales of `_curve` are.

    Args:
        train: The training rows of a split: test rows have no say in what the noise can be.
    """
    return train.y.double().reshape(len(train), -1).std(0).clamp_min(torch.finfo(torch.float64).tiny)


def best_by_pll(curves: Sequence[Tensor], units: Tensor) -> tuple[float, ...]:
    """The noise scale of each target with the highest log likelihood of all rows together.

    By a parabola through the best of the scales tried and its neighbors, which is within 0.2% of the best of all.

    Args:
        curves: Of several folds, see `_curve`.
        units: See `_curve`.
    """
    total, logs = torch.stack(list(curves)).sum(0), _SCALES.log()
    found = []
    for own, unit in zip(total.unbind(1), units, strict=True):
        best = int(own.argmax().clamp(1, len(own) - 2))
        low, middle, high = own[best - 1 : best + 2].tolist()
        bend = low - 2.0 * middle + high
        shift = 0.5 * (low - high) / bend if bend < 0.0 else 0.0
        step = float(logs[1] - logs[0])
        found.append(math.exp(float(logs[best]) + step * min(max(shift, -1.0), 1.0)) * float(unit))
    return tuple(found)


def best_by(errors: Sequence[Tensor], by: str) -> tuple[float, ...]:
    """The best noise scale of each target for pooled errors.

    Args:
        errors: Of several folds, [draw, N, target] each.
        by: `"crps"` or `"pll"`.
    """
    return tuple(best_scale(torch.cat(list(errors), dim=1)[None], by, each_target=True)[0].tolist())


def _grouped(prediction: Prediction, members: int) -> Prediction:
    """Each group of `members` chains as one, whose draws are those of all of them."""
    if members == 1:
        return prediction
    chains, draws = prediction.shape[:2]
    return replace(prediction, parameters=of_groups(prediction.parameters, chains, draws, members))


def _normal(loc: Tensor, noise: Sequence[float]) -> Prediction:
    """A regression's prediction with these means [chain, draw, N, *event] and noise scales, one a target."""
    scale = torch.tensor(noise, dtype=loc.dtype).reshape(1, 1, 1, *loc.shape[3:])
    return Prediction({"loc": loc, "scale": scale}, dist.Normal, "regression")


def _scored(stage: Stage, posteriors: Sequence[Posterior], tests: Sequence[Dataset]) -> dict[str, Any]:
    """The scores of each fit and seed on the test rows, [fit, seed]."""
    found = []
    for fit, posterior, test in zip(stage.fits, posteriors, tests, strict=True):
        prediction = _predict(stage, posterior, test, stage.protocol.draws)
        bounds: dict[str, np.ndarray] = {}
        if test.task == "regression":
            tuned = _normal(prediction.parameters["loc"], fit.noise_pll)
            chains = range(tuned.shape[0])
            bounds["pll_tuned"] = np.array([tuned.chain(c).log_prob(test.y).double().mean().item() for c in chains])
            prediction = _normal(prediction.parameters["loc"], fit.noise)
            constant = _normal(_points(stage, posterior, test, stage.protocol.draws).unsqueeze(1), fit.constant)
            least, most = evaluation.score(constant, test.y), optimum(prediction, test.y).mean("obs")
            bounds["rmse_constant"] = least["rmse"].values
            for name, score in SCORES.items():
                bounds |= {f"{name}_constant": least[score].values, f"{name}_optimum": most[name].values}
        scores = evaluation.score(prediction, test.y, seed=stage.protocol.seed)
        own = {str(name): value.values for name, value in scores.items() if not str(name).endswith("_se")}
        found.append(own | bounds)
    return {"scores": {name: torch.tensor(np.stack([each[name] for each in found])) for name in found[0]}}

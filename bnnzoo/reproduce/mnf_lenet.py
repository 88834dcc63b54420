"""LeNet on MNIST, and on the first five classes of CIFAR-10, by the methods of the MNF paper's Table 1 and by others.

The fits behind Table 2 and Figures 1 to 5 (Louizos and Welling, 2017, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import Normal
from torch import nn

from bnnzoo import data, guides, likelihoods, models, objectives, priors
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.fits import enlarged_digits, trained

DENSE_CONV: dict[Any, Any] = {nn.Conv2d: "dense", "*": "local"}
"""Local convolutions take twice the time."""


@dataclass(frozen=True)
class Task:
    """A set of images, and what the paper fits to it.

    Attributes:
        title: In tables.
        data: A name that `data.load` knows.
        classes: Only the first so many are used; the others are hidden.
        network: Arguments of `models.LeNet`, by position.
        max_scale: Bound on the standard deviations of MNF's weights.
        members: Of the deep ensemble.
        adversarial: ε of the deep ensemble's training.
        errors: Test errors in the paper's Table 2 by method, in percent.
        pruned: Of FFLU's four weights, the share that the paper prunes, in percent.
    """

    title: str
    data: str
    classes: int
    network: tuple[Any, ...]
    max_scale: float
    members: int
    adversarial: float
    errors: Mapping[str, float]
    pruned: tuple[float, ...]


TASKS: dict[str, Task] = {
    "mnist": Task(
        "MNIST",
        "mnist",
        classes=10,
        network=(1, 10, (20, 50), 500, 28),
        max_scale=0.5,
        members=10,
        adversarial=0.25,
        errors={"map": 0.6, "dropout": 0.5, "ensemble": 0.7, "mean-field": 0.9, "fflu": 0.9, "mnf": 0.7},
        pruned=(62, 95.2, 99.5, 93.3),
    ),
    "cifar5": Task(
        "five classes of CIFAR-10",  # airplane, automobile, bird, cat, deer
        "cifar10",
        classes=5,
        network=(3, 5, (192, 192), 1000, 32),
        max_scale=0.4,
        members=5,
        adversarial=0.1,
        errors={"map": 24, "dropout": 16, "ensemble": 21, "mean-field": 22, "fflu": 23, "mnf": 16},
        pruned=(94.9, 99.8, 99.9, 92.7),
    ),
}


@dataclass(frozen=True)
class Method:
    """A way to fit a LeNet.

    Attributes:
        label: In tables and figures.
        guide: Builds the guide; is given the bound of the weights' standard deviations, which only MNF uses.
        prior: Of all weights; None is the standard normal.
        ensemble: Whether the chains are the members of one posterior.
        batch_norm: Whether the network has batch normalization.
    """

    label: str
    guide: Callable[[BayesianNetwork, float], guides.Guide]
    prior: Any = None
    ensemble: bool = False
    batch_norm: bool = False


def _map(bnn: BayesianNetwork, most: float) -> guides.Guide:
    return guides.Map(bnn)


def _sampling(bnn: BayesianNetwork) -> Any:
    return DENSE_CONV if any(isinstance(module, nn.Conv2d) for module in bnn.network.modules()) else "local"


def _mean_field(bnn: BayesianNetwork, most: float) -> guides.Guide:
    return guides.MeanField(bnn, init_scale=0.02, sampling=_sampling(bnn))


METHODS: dict[str, Method] = {
    "map": Method("Map (L2)", _map),
    "dropout": Method("Dropout", lambda bnn, _: guides.Dropout(bnn)),  # rate 0.5, but on the pixels none
    "ensemble": Method("ensemble of Maps", _map, ensemble=True),
    "mean-field": Method("MeanField (FFG)", _mean_field),
    "fflu": Method("MeanField, log-uniform prior (FFLU)", _mean_field, prior=priors.LogUniform()),
    "mnf": Method("MNF", lambda bnn, most: guides.MNF(bnn, max_scale=most, sampling=_sampling(bnn))),
    "learned-dropout": Method("Dropout, learned rates", lambda bnn, _: guides.Dropout(bnn, 0.2, learn_rate=True)),
    "batch-norm": Method("BatchNorm", lambda bnn, _: guides.BatchNorm(bnn), batch_norm=True),
    "low-rank": Method("LowRank, rank 10", lambda bnn, _: guides.LowRank(bnn, rank=10, init_scale=0.02)),
    "laplace": Method("Laplace, last layer", lambda bnn, _: guides.Laplace(bnn, structure="last_layer")),
    "moments": Method("MomentPropagation", lambda bnn, _: guides.MomentPropagation(bnn)),
}
"""The paper's six, as in its Table 1, and further guides of the library."""

PAPER = ("map", "dropout", "ensemble", "mean-field", "fflu", "mnf")
"""The methods of the paper's Tables 1 and 2."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        network: Arguments of `models.LeNet`, by position.
        epochs: Passes over the training data.
        members: Of the ensemble.
        adversarial: ε of the ensemble's training; None is none.
        draws: Of the posterior, for predictions.
        hurried: Whether so few epochs need help: the KL's weight rises from 0 to 1 over half of them, the learning rate
            falls from 2e-3 to 0 along a cosine. Otherwise they are 1 and 1e-3, Adam's default, as in the paper.
    """

    network: tuple[Any, ...]
    epochs: int
    members: int
    adversarial: float | None
    draws: int
    hurried: bool = True


def size_of(context: Context, task: str, ensemble: bool = False) -> Size:
    """How much Table 2 takes at a scale.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
        ensemble: Whether it is for the ensemble, whose members are trained for fewer epochs at the scale `cpu`.
    """
    given = TASKS[task]
    channels, classes, _, _, pixels = given.network
    smoke = Size((channels, classes, (4, 4), 20), epochs=1, members=2, adversarial=None, draws=2)
    cpu = Size(given.network, epochs=2 if ensemble else 6, members=5, adversarial=None, draws=20)
    if task == "cifar5":
        small = (channels, classes, (32, 32), 200, pixels)
        cpu = replace(cpu, network=small, epochs=3 if ensemble else 8)
    paper = Size(given.network, 100, given.members, given.adversarial, draws=100, hurried=False)
    return context.pick(smoke, cpu, paper)


def images(context: Context, task: str) -> tuple[data.Dataset, data.Dataset]:
    """Training and test images of the classes that are not hidden; at the scale `smoke`, of embedded digits.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
    """
    smoke, given = context.scale == "smoke", TASKS[task]
    parts = enlarged_digits() if smoke else data.load(given.data).split()

    def known(part: data.Dataset) -> data.Dataset:
        part = part.subset(part.y < given.classes)
        return data.as_dataset((part.x.repeat(1, given.network[0], 1, 1), part.y)) if smoke else part

    return known(parts[0]), known(parts[1])


def posterior_of(
    context: Context, task: str, method: str, train: data.Dataset, size: Size, folder: Path | None = None
) -> Posterior:
    """A LeNet fitted by a method, or what an earlier call left; a fit that was interrupted goes on.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
        method: One of `METHODS`.
        train: Training images, such as those of `images`.
        size: How much to do, such as `size_of`.
        folder: Where it is kept; None is `context.fits`, for fits of the sizes of `size_of`.
    """
    how = METHODS[method]

    torch.manual_seed(context.seed)
    network = models.LeNet(*size.network, batch_norm=how.batch_norm)
    bnn = BayesianNetwork(network, likelihoods.Categorical(), how.prior or Normal(0.0, 1.0))
    guide = how.guide(bnn, TASKS[task].max_scale)
    return trained(
        (folder or context.fits) / f"lenet-{task}-{method}.bnn",
        bnn,
        guide,
        train,
        say=context.say,
        objective=guide.objective(objectives.KLAnnealing(0.5 * size.epochs) if size.hurried else 1.0),
        epochs=size.epochs,
        batch_size=100,
        lr=2e-3 if size.hurried else 1e-3,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=size.epochs) if size.hurried else None,
        chains=size.members if how.ensemble else 1,
        adversarial=size.adversarial if how.ensemble else None,
        seed=context.seed,
    )

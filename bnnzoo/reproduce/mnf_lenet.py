"""LeNet on MNIST, and on the first five classes of CIFAR-10, by the methods of the MNF paper's Table 1.

The fits behind Table 2 and Figures 1 to 5 (Louizos and Welling, 2017, section 4), each kept for all that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
    """A set of images and the network that the paper fits to it.

    Attributes:
        title: In tables.
        data: A name that `data.load` knows.
        classes: Only the first so many are used.
        max_scale: Bound on the standard deviations of MNF's weights.
        members: Of the deep ensemble.
        adversarial: ε of the deep ensemble's training.
        errors: Test errors in the paper's Table 2 by method, in percent.
        pruned: Of FFLU's four weights, the share that the paper prunes, in percent.
    """

    title: str
    data: str
    classes: int
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
        max_scale=0.5,
        members=10,
        adversarial=0.25,
        errors={"map": 0.6, "dropout": 0.5, "ensemble": 0.7, "mean-field": 0.9, "fflu": 0.9, "mnf": 0.7},
        pruned=(62, 95.2, 99.5, 93.3),
    ),
    # Airplane, automobile, bird, cat, deer; the others are hidden.
    "cifar5": Task(
        "CIFAR-10, first five classes",
        "cifar10",
        classes=5,
        max_scale=0.4,
        members=5,
        adversarial=0.1,
        errors={"map": 24, "dropout": 16, "ensemble": 21, "mean-field": 22, "fflu": 23, "mnf": 16},
        pruned=(94.9, 99.8, 99.9, 92.7),
    ),
}


@dataclass(frozen=True)
class Method:
    """A model of the paper's Table 1.

    Attributes:
        label: In tables and figures.
        guide: Builds the guide from the model and the task.
        prior: Of all weights; None is the standard normal.
        point: Whether a chain is one network, so that one draw is all there is.
        ensemble: Whether the chains are one posterior.
    """

    label: str
    guide: Callable[[BayesianNetwork, Task], guides.Guide]
    prior: Any = None
    point: bool = False
    ensemble: bool = False


def _map(bnn: BayesianNetwork, task: Task) -> guides.Guide:
    return guides.Map(bnn)


def _mean_field(bnn: BayesianNetwork, task: Task) -> guides.Guide:
    return guides.MeanField(bnn, init_scale=0.02, sampling=DENSE_CONV)


METHODS: dict[str, Method] = {
    "map": Method("Map (L2)", _map, point=True),
    "dropout": Method("Dropout", lambda bnn, task: guides.Dropout(bnn)),  # rate 0.5, but on the pixels none
    "ensemble": Method("ensemble of Maps", _map, point=True, ensemble=True),
    "mean-field": Method("MeanField (FFG)", _mean_field),
    "fflu": Method("MeanField, log-uniform prior (FFLU)", _mean_field, prior=priors.LogUniform()),
    "mnf": Method("MNF", lambda bnn, task: guides.MNF(bnn, max_scale=task.max_scale, sampling=DENSE_CONV)),
}


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        epochs: Passes over the training data.
        member_epochs: Passes of each member of the ensemble.
        members: Of the ensemble; None is as many as the paper has, trained on adversarial examples as there.
        draws: Posterior draws of predictions.
        network: Sizes of the LeNet, arguments of `models.LeNet`.
    """

    epochs: int
    member_epochs: int
    members: int | None
    draws: int
    network: Mapping[str, Any]


def size_of(context: Context, task: str) -> Size:
    """How much is done at a scale.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
    """
    color = {"in_channels": 3, "num_classes": 5}
    if task == "mnist":
        return context.pick(
            Size(1, 1, 2, 2, {"filters": (4, 4), "hidden": 20}), Size(6, 2, 5, 20, {}), Size(100, 100, None, 100, {})
        )
    return context.pick(
        Size(1, 1, 2, 2, {**color, "filters": (8, 8), "hidden": 20}),
        Size(8, 3, 5, 20, {**color, "filters": (32, 32), "hidden": 200, "image_size": 32}),
        Size(100, 100, None, 100, {**color, "filters": (192, 192), "hidden": 1000, "image_size": 32}),
    )


def images(context: Context, task: str) -> tuple[data.Dataset, data.Dataset]:
    """Training and test images of the classes that are not hidden; at the scale `smoke`, of embedded digits.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
    """
    smoke = context.scale == "smoke"
    parts = enlarged_digits() if smoke else data.load(TASKS[task].data).split()
    if task == "mnist":
        return parts[0], parts[1]

    def known(part: data.Dataset) -> data.Dataset:
        kept = (part.y < TASKS[task].classes).nonzero()[:, 0]
        x = part.x[kept]
        return data.as_dataset((x.repeat(1, 3, 1, 1) if smoke else x, part.y[kept]))

    return known(parts[0]), known(parts[1])


def posterior_of(context: Context, task: str, method: str) -> Posterior:
    """A LeNet fitted by a method, or what an earlier call left; a fit that was interrupted goes on.

    Args:
        context: Of the entry.
        task: One of `TASKS`.
        method: One of `METHODS`.
    """
    how, size = METHODS[method], size_of(context, task)
    train = images(context, task)[0]
    adversarial = how.ensemble and size.members is None
    epochs = size.member_epochs if how.ensemble else size.epochs
    paper = context.scale == "paper"

    def build() -> tuple[BayesianNetwork, guides.Guide]:
        torch.manual_seed(context.seed)
        prior = how.prior or Normal(0.0, 1.0)
        bnn = BayesianNetwork(models.LeNet(**size.network), likelihoods.Categorical(), prior)
        return bnn, how.guide(bnn, TASKS[task])

    return trained(
        context.fits / f"lenet-{task}-{method}.bnn",
        build,
        train,
        say=context.say,
        # In few epochs: the KL's weight rises from 0 to 1 over half of them, the rate falls to 0 along a cosine.
        objective=objectives.ELBO(kl_weight=1.0 if paper else objectives.KLAnnealing(0.5 * epochs)),
        epochs=epochs,
        batch_size=100,
        lr=1e-3 if paper else 2e-3,
        scheduler=None if paper else partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=(size.members or TASKS[task].members) if how.ensemble else 1,
        adversarial=TASKS[task].adversarial if adversarial else None,
        seed=context.seed,
    )

"""`Entry`, a complete recipe for a Bayesian neural network, and the short factories that recipes are written with.

An `Entry` says everything about a fit but the data's rows: network, prior, likelihood, guide, objective and
training settings, with a reference and the data set it is meant for. `bnnzoo.models.catalogue` holds them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions import Distribution
from pyro.nn import PyroModule
from torch import nn

from bnnzoo import guides, likelihoods, objectives, priors
from bnnzoo.data import Dataset, Split
from bnnzoo.likelihoods import Likelihood
from bnnzoo.models.encoder_decoder import EncoderDecoder, check_size
from bnnzoo.models.keras_cnn import KerasCNN
from bnnzoo.models.lenet import LeNet
from bnnzoo.models.mlp import MLP
from bnnzoo.models.resnet import ResNet
from bnnzoo.network import BayesianNetwork
from bnnzoo.priors import Prior


class Built(NamedTuple):
    """What `Entry.build` makes: `fit(bnn, guide, data, objective=objective, **training)` fits it.

    Attributes:
        bnn: The model.
        guide: The guide, or None for an entry that NUTS samples: `bnnzoo.sample(bnn, data, **training)`.
        objective: The objective, or None for NUTS.
        training: The keyword arguments of `fit` (of `bnnzoo.sample` for NUTS), own copy.
    """

    bnn: BayesianNetwork
    guide: PyroModule | None
    objective: Any
    training: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A named, complete recipe.

    Attributes:
        name: `guide/architecture-or-data`, as `bnnzoo list` shows it.
        description: One line.
        reference: The paper or source, or "" where there is none.
        data: The data set it is meant for, a name that `bnnzoo.data.load` knows; any data of the same kind do.
        network: Builds the network from (data, number of outputs).
        prior: Builds the prior.
        likelihood: Builds the likelihood for the data.
        guide: Builds the guide from the model; None samples with NUTS.
        objective: Builds the objective from its `kl_weight`: one of `bnnzoo.objectives`, or a `partial` that gives its
            numbers by name.
        kl_weight: The KL divergence's weight β, at the end of training if it is annealed.
        annealing: Share of the training, 0 to 1, over which the KL divergence's weight rises from 0.
        schedule: Builds `fit`'s `scheduler` from the number of epochs; None keeps the learning rate.
        training: Keyword arguments of `fit` (of `bnnzoo.sample` for NUTS).
    """

    name: str
    description: str
    reference: str
    data: str
    network: Callable[[Dataset, int], nn.Module]
    prior: Callable[[], Prior]
    likelihood: Callable[[Dataset], Likelihood]
    guide: Callable[[BayesianNetwork], PyroModule] | None
    objective: Callable[..., Any] = objectives.ELBO
    kl_weight: float = 1.0
    annealing: float = 0.0
    schedule: Callable[[int], Callable[..., Any]] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def build(self, data: Dataset | Split, **settings: Any) -> Built:
        """Builds the model, guide and objective for data.

        Args:
            data: The data, or a split of them (the training half decides the sizes, both halves the classes).
            **settings: Training settings that replace the entry's, or add to them.

        Returns:
            The model, guide, objective and the training settings.

        Raises:
            ValueError: The data's task is not the likelihood's, or the network does not fit the inputs.
        """
        parts = [data.train, data.test] if isinstance(data, Split) else [data]
        train = parts[0]
        likelihood = self.likelihood(train)
        if likelihood.task != train.task:
            raise ValueError(
                f"entry {self.name!r} is for {likelihood.task}; given: {train.name!r}, which is {train.task}"
            )
        outputs = max(likelihood.num_outputs(likelihood.prepare(part.y)) for part in parts)
        if likelihood.task == "classification" and outputs > 1 and train.class_names is not None:
            outputs = max(outputs, len(train.class_names))  # a class may be missing in a small split
        bnn = BayesianNetwork(self.network(train, outputs), likelihood=likelihood, prior=self.prior())
        training = {**self.training, **settings}
        if self.guide is None:
            return Built(bnn, None, None, training)
        if self.schedule is not None:
            training.setdefault("scheduler", self.schedule(training["epochs"]))
        weight: Any = self.kl_weight
        if self.annealing > 0:
            weight = objectives.KLAnnealing(self.annealing * training["epochs"], self.kl_weight)
        return Built(bnn, self.guide(bnn), self.objective(kl_weight=weight), training)


def mlp(
    *hidden: int, activation: str = "relu", batch_norm: bool = False, dropout: float = 0.0
) -> Callable[[Dataset, int], nn.Module]:
    """A factory of `MLP`s with these hidden layers, sized by the data."""

    def make(data: Dataset, outputs: int) -> nn.Module:
        return MLP(math.prod(data.input_shape), outputs, hidden, activation, batch_norm, dropout)

    return make


def lenet(
    filters: tuple[int, int] = (20, 50), hidden: int = 500, dropout: float = 0.0, batch_norm: bool = False
) -> Callable[[Dataset, int], nn.Module]:
    """A factory of `LeNet`s, sized by the data; a ValueError where they are no square images of 16 pixels or more."""

    def make(data: Dataset, outputs: int) -> nn.Module:
        channels, size = _square("LeNet", data)
        return LeNet(channels, outputs, filters, hidden, size, dropout, batch_norm)

    return make


def keras_cnn(filters: int = 32, hidden: int = 100, dropout: float = 0.5) -> Callable[[Dataset, int], nn.Module]:
    """A factory of `KerasCNN`s, sized by the data; a ValueError where they are no square images of 6 pixels or more."""

    def make(data: Dataset, outputs: int) -> nn.Module:
        channels, size = _square("KerasCNN", data)
        return KerasCNN(channels, outputs, filters, hidden, size, dropout)

    return make


def resnet(
    depth: int = 32, width: int = 16, shortcut: str = "A", slope: float = 0.1
) -> Callable[[Dataset, int], nn.Module]:
    """A factory of `ResNet`s, sized by the data; a ValueError where the data are no images."""

    def make(data: Dataset, outputs: int) -> nn.Module:
        return ResNet(_image("ResNet", data)[0], outputs, depth, width, shortcut, slope)

    return make


def encoder_decoder(width: int = 16, depth: int = 2, dropout: float = 0.0) -> Callable[[Dataset, int], nn.Module]:
    """A factory of `EncoderDecoder`s, sized by the data.

    A ValueError where the data are no images with a label for every pixel, or height or width cannot be halved `depth`
    times.
    """

    def make(data: Dataset, outputs: int) -> nn.Module:
        channels, rows, columns = _image("EncoderDecoder", data)
        if data.y.shape[1:] != (rows, columns):
            raise ValueError(
                f"EncoderDecoder needs a label for every pixel, [N, {rows}, {columns}]; targets of {data.name!r} have "
                f"shape {list(data.y.shape)}"
            )
        network = EncoderDecoder(channels, outputs, width, depth, dropout)
        check_size(rows, columns, network.depth)
        return network

    return make


def _image(network: str, data: Dataset) -> tuple[int, ...]:
    """Channels, height and width of images."""
    if len(data.input_shape) != 3:
        raise ValueError(
            f"{network} takes images [channels, height, width]; inputs of {data.name!r} have shape "
            f"{list(data.input_shape)}"
        )
    return data.input_shape


def _square(network: str, data: Dataset) -> tuple[int, int]:
    """Channels and size of square images."""
    shape = data.input_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"{network} takes square images [channels, size, size]; inputs of {data.name!r} have shape {list(shape)}"
        )
    return shape[0], shape[1]


def gaussian(noise: float | Distribution | None = None) -> Callable[[Dataset], Likelihood]:
    """A factory of `Gaussian` likelihoods, with a noise scale for each target.

    Args:
        noise: A number: the fixed standard deviation of the noise in the target's own units. None: learned by maximum
            likelihood. A distribution: the prior of the noise, in standard deviations of the target if the data carry
            a standardization.
    """

    def make(data: Dataset) -> Likelihood:
        targets = data.y.shape[1] if data.y.ndim > 1 else 1
        if isinstance(noise, int | float):
            unit = torch.as_tensor(1.0 if data.standardization is None else data.standardization.y_scale)
            return likelihoods.Gaussian((noise / unit).to(torch.get_default_dtype()))
        return likelihoods.Gaussian(noise, num_outputs=targets)

    return make


def heteroscedastic() -> Callable[[Dataset], Likelihood]:
    """A factory of `HeteroscedasticGaussian` likelihoods."""
    return lambda data: likelihoods.HeteroscedasticGaussian()


def categorical() -> Callable[[Dataset], Likelihood]:
    """A factory of `Categorical` likelihoods."""
    return lambda data: likelihoods.Categorical()


def bernoulli() -> Callable[[Dataset], Likelihood]:
    """A factory of `Bernoulli` likelihoods."""
    return lambda data: likelihoods.Bernoulli()


def poisson() -> Callable[[Dataset], Likelihood]:
    """A factory of `Poisson` likelihoods."""
    return lambda data: likelihoods.Poisson()


def normal(scale: float = 1.0) -> Callable[[], Prior]:
    """A factory of one Gaussian prior for all weights."""
    return lambda: priors.Normal(0.0, scale)


def mean_field(**options: Any) -> Callable[[BayesianNetwork], PyroModule]:
    """A factory of `MeanField` guides with these options."""
    return partial(guides.MeanField, **options)


def bb_alpha(alpha: float = 0.5, num_particles: int = 10) -> Callable[..., objectives.BBAlpha]:
    """A factory of `BBAlpha` objectives."""
    return partial(objectives.BBAlpha, alpha=alpha, num_particles=num_particles)


def cosine(epochs: int) -> Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    """A schedule: the learning rate falls to 0 along a cosine over the epochs."""
    return partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)

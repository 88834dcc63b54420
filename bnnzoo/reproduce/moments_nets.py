"""The networks whose moments are measured: MNIST and CIFAR-10, trained as the moment propagation paper has it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo import data, models, moments
from bnnzoo.moments import Moments
from bnnzoo.moments.propagation import Mode
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.fits import enlarged_digits

MomentNet = models.MomentLeNet | models.MomentCIFARNet
BATCH = 128
PAPER_EPOCHS = 50
"""At the scale `paper`: the paper does not say; by then its learning rate is 1e-6."""

CIFAR_WIDTH = {"smoke": 0.05, "cpu": 0.125, "paper": 1.0}
"""Of the network for CIFAR-10, as a factor on the paper's, by scale."""


@dataclass(frozen=True)
class Net:
    """A network to train.

    Attributes:
        kind: Its class.
        arguments: Of the class.
        epochs: Passes over the training data at the scale `cpu`.
    """

    kind: type[models.MomentLeNet] | type[models.MomentCIFARNet]
    arguments: Mapping[str, Any]
    epochs: int


NETS = {
    "leaky": Net(models.MomentLeNet, {}, 8),
    "dropout": Net(models.MomentLeNet, {"dropout": 0.2}, 8),
    "transform": Net(models.MomentLeNet, {"activation": "logistic"}, 8),
    "bernoulli": Net(models.MomentLeNet, {"activation": "bernoulli"}, 4),
    "cifar-leaky": Net(models.MomentCIFARNet, {}, 1),
    "cifar-dropout": Net(models.MomentCIFARNet, {"dropout": 0.2}, 1),
    "cifar-transform": Net(models.MomentCIFARNet, {"activation": "logistic"}, 1),
    "cifar-bernoulli": Net(models.MomentCIFARNet, {"activation": "bernoulli"}, 1),
}


def images_of(name: str, context: Context) -> tuple[data.Dataset, data.Dataset]:
    """Training and test images; at the scale `smoke` enlarged digits in their place.

    Args:
        name: `"mnist"` or `"cifar10"`.
        context: The scale.
    """
    if context.scale != "smoke":
        split = data.load(name).split()
        return split.train, split.test
    train, test = enlarged_digits()
    if name == "mnist":
        return train, test

    def colored(part: data.Dataset) -> data.Dataset:
        return data.as_dataset((F.interpolate(part.x, size=32).expand(-1, 3, -1, -1), part.y))

    return colored(train), colored(test)


@dataclass(frozen=True)
class Images:
    """Data to train on, to score every epoch on, and test data."""

    train: data.Dataset
    validation: data.Dataset
    test: data.Dataset


def held_out(parts: tuple[data.Dataset, data.Dataset]) -> Images:
    """A tenth of the training data held out for validation, as the paper has it.

    Args:
        parts: Training and test data.
    """
    split = parts[0].split(0.1, seed=0, standardize=False)
    return Images(split.train, split.test, parts[1])


def trained_net(name: str, parts: tuple[data.Dataset, data.Dataset], context: Context) -> MomentNet:
    """A network with the weights in a file; if there is none, those of a training, which goes on where it stopped.

    Args:
        name: One of `NETS`.
        parts: Training and test data.
        context: Where to keep it, for all entries that use it; the scale; the seed of weights and batches.

    Returns:
        The network, in eval mode.
    """
    torch.manual_seed(context.seed)
    net = NETS[name]
    width = CIFAR_WIDTH[context.scale] if net.kind is models.MomentCIFARNet else 1.0
    network = net.kind(width=width, **net.arguments)
    path = context.fits / f"moments-{name}.pt"
    if not path.exists():
        epochs = context.pick(1, net.epochs, PAPER_EPOCHS)
        seconds = train(network, parts[0], epochs, path.with_suffix(".checkpoint"))
        record = {"epochs": epochs, "seconds": seconds, "accuracy": accuracy(network, parts[1])}
        torch.save({"state": network.state_dict(), **record}, path)
        path.with_suffix(".checkpoint").unlink()
    record = torch.load(path)
    network.load_state_dict(record.pop("state"))
    context.say(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in record.items())}")
    return network.eval()


def train(network: MomentNet, part: data.Dataset, epochs: int, checkpoint: Path) -> float:
    """Minimize -log p(y): Adam, the learning rate 10^(-3 - 0.06 k) in epoch k, as the paper has it.

    Dropout is drawn; Bernoulli units have no gradient then, so that networks of them are trained on propagated moments
    and the simplified softmax (the paper's AP2 training).

    Args:
        network: One of `NETS`.
        part: The training data.
        epochs: Passes over them.
        checkpoint: Written after every epoch; if it exists, the training goes on from there.

    Returns:
        Processor time, in seconds.
    """
    analytic = network.activation == "bernoulli"
    optimizer = torch.optim.Adam(network.parameters())
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        first, seconds = state["epoch"], state["seconds"]
    for epoch in range(first, epochs):
        begin = time.process_time()
        optimizer.param_groups[0]["lr"] = 10 ** (-3 - 0.06 * epoch)
        network.train()
        for rows in torch.randperm(len(part)).split(BATCH):
            x, y = part.x[rows], part.y[rows]
            loss = F.nll_loss(analytic_log_probs(network, x) if analytic else network(x).log_softmax(1), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.process_time() - begin
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        torch.save({**state, "epoch": epoch + 1, "seconds": seconds}, checkpoint)
    return seconds


def analytic_log_probs(network: MomentNet, x: Tensor) -> Tensor:
    """Log class probabilities of propagated moments, normalized by the batch's mean and variance.

    Args:
        network: One of `NETS`; running statistics of its batch normalizations are updated.
        x: A batch, [N, C, H, W].
    """
    value = Moments(x)
    with moments.options("paper"):  # AP2b: 4 times as fast as the exact expectation
        for layer in network.layers:
            output = normalized(value, layer) if isinstance(layer, nn.BatchNorm2d) else layer(value)
            assert isinstance(output, Moments)
            value = output
    return moments.softmax.log_softmax(value.loc, value.variance, 1, "simplified")


def normalized(value: Moments, norm: nn.BatchNorm2d) -> Moments:
    """Batch normalization in training: by the mean and variance over the batch and over the noise.

    Args:
        value: Of a batch, [N, C, H, W].
        norm: Its running statistics are updated.
    """
    spread = value.variance.mean((0, 2, 3))
    mean, total = value.loc.mean((0, 2, 3)), value.loc.var((0, 2, 3), correction=0) + spread
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(total, norm.momentum)
    scale = norm.weight / (total + norm.eps).sqrt()
    scale, shift = scale.view(-1, 1, 1), (norm.bias - mean * scale).view(-1, 1, 1)
    return Moments(value.loc * scale + shift, None if value.certain else value.variance * scale.square())


def accuracy(network: MomentNet, part: data.Dataset) -> float:
    """Share of right classes: of moments where units are random, else of the ordinary pass; the first 2000 images."""
    right = 0
    for rows in torch.arange(min(2000, len(part))).split(500):
        with torch.no_grad():
            mode: Mode = "ap2" if network.activation == "bernoulli" else "ap1"
            output = moments.propagate(network, part.x[rows], mode=mode)
            log_probs = moments.softmax.log_softmax(output.loc, output.variance, 1)
        right += int((log_probs.argmax(1) == part.y[rows]).sum())
    return right / min(2000, len(part))

"""The networks whose moments are measured: MNIST and CIFAR-10, trained as the moment propagation paper has it."""

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

BATCH = 128


@dataclass(frozen=True)
class Net:
    """A network to train.

    Attributes:
        kind: Its class.
        arguments: Of the class.
        epochs: Passes over the training data.
    """

    kind: type[nn.Module]
    arguments: Mapping[str, Any]
    epochs: int


WIDTH = 0.125
"""Of the network for CIFAR-10, as a factor on the paper's."""

NETS = {
    "leaky": Net(models.MomentLeNet, {}, 8),
    "dropout": Net(models.MomentLeNet, {"dropout": 0.2}, 8),
    "transform": Net(models.MomentLeNet, {"activation": "logistic"}, 8),
    "bernoulli": Net(models.MomentLeNet, {"activation": "bernoulli"}, 4),
    "cifar-leaky": Net(models.MomentCIFARNet, {"width": WIDTH}, 1),
    "cifar-dropout": Net(models.MomentCIFARNet, {"width": WIDTH, "dropout": 0.2}, 1),
    "cifar-transform": Net(models.MomentCIFARNet, {"width": WIDTH, "activation": "logistic"}, 1),
    "cifar-bernoulli": Net(models.MomentCIFARNet, {"width": WIDTH, "activation": "bernoulli"}, 1),
}


def trained(
    name: str, parts: tuple[data.Dataset, data.Dataset], keep: Path, seed: int, epochs: int | None
) -> nn.Module:
    """A network with the weights in a file; if there is none, those of a training, written there.

    Args:
        name: One of `NETS`, and of the file.
        parts: Training and test data.
        keep: The folder.
        seed: Fixes initial weights and batches.
        epochs: Instead of the network's own.
    """
    torch.manual_seed(seed)
    net = NETS[name]
    network = net.kind(**net.arguments)
    path = keep / f"{name}.pt"
    if not path.exists():
        epochs = net.epochs if epochs is None else epochs
        begin = time.process_time()
        train(network, parts[0], epochs)
        seconds = time.process_time() - begin
        record = {"epochs": epochs, "seconds": seconds, "accuracy": accuracy(network, parts[1])}
        torch.save({"state": network.state_dict(), **record}, path)
    record = torch.load(path)
    network.load_state_dict(record.pop("state"))
    print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in record.items())}", flush=True)
    return network.eval()


def train(network: nn.Module, part: data.Dataset, epochs: int) -> None:
    """Minimize -log p(y): Adam, the learning rate 10^(-3 - 0.06 k) in epoch k, as the paper has it.

    Dropout is drawn; Bernoulli units have no gradient then, so that networks of them are trained on propagated moments
    and the simplified softmax (the paper's AP2 training).
    """
    analytic = network.activation == "bernoulli"
    optimizer = torch.optim.Adam(network.parameters())
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 10 ** (-3 - 0.06 * epoch)
        network.train()
        for rows in torch.randperm(len(part)).split(BATCH):
            x, y = part.x[rows], part.y[rows]
            loss = F.nll_loss(analytic_log_probs(network, x) if analytic else network(x).log_softmax(1), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def analytic_log_probs(network: nn.Module, x: Tensor) -> Tensor:
    """Log class probabilities of propagated moments, normalized by the batch's mean and variance."""
    value: Tensor = Moments(x)
    with moments.options("paper"):  # AP2b: 4 times as fast as the exact expectation
        for layer in network.layers:
            value = normalized(value, layer) if isinstance(layer, nn.BatchNorm2d) else layer(value)
    return moments.softmax.log_softmax(value.loc, value.variance, 1, "simplified")


def normalized(value: Moments, norm: nn.BatchNorm2d) -> Moments:
    """Batch normalization in training: by the mean and variance over the batch and over the noise."""
    spread = value.variance.mean((0, 2, 3))
    mean, total = value.loc.mean((0, 2, 3)), value.loc.var((0, 2, 3), correction=0) + spread
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(total, norm.momentum)
    scale = norm.weight / (total + norm.eps).sqrt()
    scale, shift = scale.view(-1, 1, 1), (norm.bias - mean * scale).view(-1, 1, 1)
    return Moments(value.loc * scale + shift, None if value.certain else value.variance * scale.square())


def accuracy(network: nn.Module, part: data.Dataset) -> float:
    """Share of right classes: of moments where units are random, else of the ordinary pass; the first 2000 images."""
    right = 0
    for rows in torch.arange(min(2000, len(part))).split(500):
        with torch.no_grad():
            mode = "ap2" if network.activation == "bernoulli" else "ap1"
            output = moments.propagate(network, part.x[rows], mode=mode)
            log_probs = moments.softmax.log_softmax(output.loc, output.variance, 1)
        right += int((log_probs.argmax(1) == part.y[rows]).sum())
    return right / min(2000, len(part))

"""Hand-written moment propagation, without any library: what a pass or a step costs when nothing is general."""

import math

import torch
import torch.nn.functional as F
from common import DATA_SIZE
from floors import Step
from torch import Tensor, nn


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the ReLU of Gaussians (Shekhovtsov & Flach 2018, eqs. 26 and 30)."""
    std = (variance + 1e-12).sqrt()
    a = (mean / std).clamp(-10, 10)
    cdf, pdf = 0.5 * torch.erfc(-a / math.sqrt(2)), torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    top = a * cdf + pdf
    spread = (a * pdf + (a * a + 1) * cdf - top * top).clamp_min(0)
    positive = mean > 10 * std
    return torch.where(positive, mean, std * top), torch.where(positive, variance, variance * spread)


def forward(layers: nn.Sequential, mean: Tensor, variance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Moments of the output of linear layers, ReLUs and dropout layers, whose noise counts; None: no variance."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            mean = F.linear(mean, layer.weight, layer.bias)
            variance = None if variance is None else F.linear(variance, layer.weight.square())
        elif isinstance(layer, nn.ReLU):
            mean, variance = (mean.relu(), None) if variance is None else relu_moments(mean, variance)
        else:
            assert isinstance(layer, nn.Dropout)
            noise = layer.p / (1 - layer.p)
            spread = noise * mean.square()
            variance = spread if variance is None else spread + (1 + noise) * variance
    return mean, variance


def analytic_dropout_loss(layers: nn.Sequential, x: Tensor, y: Tensor, size: int = DATA_SIZE) -> Tensor:
    """`-log q(y)` with the simplified softmax (eq. 52), scaled to `size` rows."""
    mean, variance = forward(layers, x)
    if variance is not None:
        mean = mean / (variance / (math.pi**2 / 3) + 1).sqrt()
    return F.cross_entropy(mean, y) * size


def analytic_dropout_step(layers: nn.Sequential, x: Tensor, y: Tensor, lr: float) -> Step:
    """A step of analytic dropout with one fused Adam."""
    optimizer = torch.optim.Adam(layers.parameters(), lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = analytic_dropout_loss(layers, x, y)
        loss.backward()
        optimizer.step()
        return loss

    return step

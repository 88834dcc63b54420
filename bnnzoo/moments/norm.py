"""`MomentNorm`: normalization by a data set's statistics that are propagated, not measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from bnnzoo.moments.channels import ChannelMoments, checked
from bnnzoo.moments.errors import located
from bnnzoo.moments.propagation import noise
from bnnzoo.moments.sites import site_moments
from bnnzoo.moments.watching import unheard
from bnnzoo.rules import RandomWeight

#: What a `MomentNorm` asks for its mean and variance, [C] each: called with the layer and its input.
_Source = Callable[["MomentNorm", Tensor], tuple[Tensor, Tensor]]
_source: ContextVar[_Source | None] = ContextVar("moment_norm_source", default=None)


class MomentNorm(nn.Module):
    """Normalizes each channel by its mean and variance over the data set, which are propagated through the network.

        y = (x - μ) / sqrt(σ² + eps) · weight + bias,

    with μ and σ² functions of the weights of the layers before and of the data's own mean and variance: no batch is
    looked at, training and eval mode are the same, and gradients go through μ and σ² (Shekhovtsov & Flach 2018,
    section 4, "analytic normalization"). It stands where batch normalization would, in a network within `Normalized`,
    which propagates.

    Args:
        num_features: Number C ≥ 1 of channels, dimension 1 of the input.
        affine: Whether there are a weight and a bias, [C], 1 and 0 at first.
        eps: Added to the variance, ≥ 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features must be a positive integer, not {num_features!r}")
        if not 0 <= eps < float("inf"):
            raise ValueError(f"eps must be at least 0 and finite, not {eps!r}")
        self.num_features = num_features
        self.affine = affine
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize.

        Args:
            input: [N, C, ...].

        Raises:
            RuntimeError: If no statistics are known: the network does not run within `Normalized`.
            ValueError: If the input has not C channels.
        """
        source = _source.get()
        if source is None:
            raise RuntimeError(
                "MomentNorm needs the data set's statistics at its place: wrap the network, "
                "moments.Normalized(network, mean, variance), and call that"
            )
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"MomentNorm({self.num_features}) normalizes inputs [N, {self.num_features}, ...], not "
                f"{list(input.shape)}"
            )
        mean, variance = source(self, input)
        shape = [-1, *[1] * (input.dim() - 2)]
        output = (input - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None or self.bias is None:
            return output
        return output * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Arguments, for `repr`."""
        return f"{self.num_features}, affine={self.affine}, eps={self.eps}"


class Normalized(nn.Module):
    """A network with `MomentNorm` layers, and the data set's mean and variance that they go by.

    Each call propagates the statistics (one pixel, see `bnnzoo.moments.statistics`) through the network as its weights
    are then, and after that the inputs; dropout counts in the statistics whether it is on or not. Weights may be drawn
    (each draw has its own statistics), or be known by mean and variance, or be sampled output by output (local
    reparameterization, dropout masks): then the statistics are those over the weights, too. Inputs may be `Moments`.

    Args:
        network: The network; kept, not copied.
        mean: The inputs' means, [C], or one number for all channels.
        variance: Their variances ≥ 0 over inputs and positions, as the mean.

    Attributes:
        network: The network.
        data_mean: The inputs' means, a buffer.
        data_variance: Their variances, a buffer.

    Raises:
        ValueError: If the network has no `MomentNorm`, or mean or variance are out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from bnnzoo import moments
        >>> network = nn.Sequential(nn.Linear(3, 8, bias=False), moments.MomentNorm(8), nn.ReLU(), nn.Linear(8, 1))
        >>> moments.Normalized(network, 0.0, 1.0)(torch.randn(5, 3)).shape
        torch.Size([5, 1])
    """

    data_mean: Tensor
    data_variance: Tensor

    def __init__(self, network: nn.Module, mean: Tensor | float, variance: Tensor | float) -> None:
        super().__init__()
        if not any(isinstance(module, MomentNorm) for module in network.modules()):
            raise ValueError(f"the network, a {type(network).__name__}, has no MomentNorm layer")
        self.network = network
        for name, value in zip(("data_mean", "data_variance"), checked(mean, variance, network), strict=True):
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: Inputs [N, C, ...], `Moments` too.
        """
        shape = [1, *x.shape[1:]]
        lead = [1, -1, *[1] * (x.dim() - 2)]
        pixel = ChannelMoments(self.data_mean.view(lead), self.data_variance.view(lead), shape)
        found: deque[tuple[MomentNorm, tuple[Tensor, Tensor]]] = deque()

        def measure(layer: MomentNorm, input: Tensor) -> tuple[Tensor, Tensor]:
            if not isinstance(input, ChannelMoments):
                raise RuntimeError("a MomentNorm's input does not depend on the network's: it has no statistics")
            moments = input.by_channel()
            found.append((layer, (moments.loc, moments.variance)))
            return found[-1][1]

        def recall(layer: MomentNorm, input: Tensor) -> tuple[Tensor, Tensor]:
            if not found or found[0][0] is not layer:
                raise RuntimeError("the network calls its MomentNorm layers in another order for its inputs")
            return found.popleft()[1]

        with _asking(measure), unheard(), noise(self.network, True), _known(self.network), located(self.network):
            self.network(pixel)
        with _asking(recall):
            return self.network(x)


@contextmanager
def _asking(source: _Source) -> Iterator[None]:
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


@contextmanager
def _known(network: nn.Module) -> Iterator[None]:
    """Weights that are still to be sampled replaced by their moments inside: sampling them is the data's."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in network.modules():
            for name, value in module._parameters.items():
                if isinstance(value, RandomWeight):
                    replaced.append((module._parameters, name, value))
                    distribution: Any = value.distribution
                    module._parameters[name] = site_moments(distribution.name, distribution)
        yield
    finally:
        for parameters, name, value in replaced:
            parameters[name] = value

"""`initialize`: weights whose outputs have mean 0 and variance 1 over the data set, without the data."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnnzoo.moments.channels import ChannelMoments, channel_dim, pixel_of
from bnnzoo.moments.errors import located
from bnnzoo.moments.propagation import noise
from bnnzoo.moments.value import Approximation, Fallback, Moments, options
from bnnzoo.moments.watching import watching


def initialize(
    network: nn.Module,
    mean: Tensor | float,
    variance: Tensor | float,
    size: Sequence[int] = (),
    *,
    skip: Sequence[str] = (),
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
) -> dict[str, Moments]:
    """Rescale a network's weights in place so that every layer's channels have mean 0 and variance 1 over a data set.

    Goes through the network layer by layer (Shekhovtsov & Flach 2018, section 4, "analytic normalization"): the
    statistics of a linear layer's or convolution's outputs are propagated as `statistics` does, its weights divided by
    their standard deviations, its biases shifted by their means, and the next layer's statistics are those after that.
    A layer without bias is only scaled, channels of variance 0 are only shifted. A layer that is called several times,
    or whose weight is another layer's too, is rescaled at the first call.

    What is random about the weights stays: their values before, drawn by the layers' own `reset_parameters`. To begin
    anew, reset and initialize again. For a `BayesianNetwork`, initialize the network before it is built: its guides
    start at the network's values (and several chains of `fit` at values that are drawn anew, which this does not see).

    Args:
        network: Any module that takes one tensor [N, C, ...] and returns one. Changed in place.
        mean: The inputs' means, as of `statistics`.
        variance: Their variances, as of `statistics`.
        size: The images' size, as of `statistics`.
        skip: Glob patterns of module paths to leave as they are, e.g. the last layer's.
        approximation: See `bnnzoo.moments.options`.
        fallback: See `bnnzoo.moments.options`.

    Returns:
        For each rescaled layer by its path the moments by channel that it had before, given the layers before it, [C].

    Raises:
        ValueError: If an argument is out of range or does not fit the network, a pattern of `skip` matches no linear
            layer or convolution, or there is none at all.
        NoRuleError: If an operation has no rule, and there is no fallback.

    Example:
        >>> from torch import nn
        >>> from bnnzoo import moments
        >>> network = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2))
        >>> before = moments.initialize(network, 0.0, 1.0)
        >>> moments.statistics(network, 0.0, 1.0)["2"].variance.detach()
        tensor([1.0000, 1.0000])
    """
    layers = {path for path, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    if not layers:
        raise ValueError(f"the network, a {type(network).__name__}, has no linear layer or convolution to initialize")
    skipped: set[str] = set()
    for pattern in skip:
        matched = {path for path in layers if fnmatchcase(path, pattern)}
        if not matched:
            raise ValueError(f"skip: {pattern!r} matches none of the layers {', '.join(sorted(layers))}")
        skipped |= matched
    before: dict[str, Moments] = {}
    done: set[int] = set()
    found: list[str] = []

    def listen(name: str, module: nn.Module, output: Any) -> None:
        if found or name not in layers - skipped or id(module.weight) in done or not isinstance(output, ChannelMoments):
            return
        found.append(name)
        done.add(id(module.weight))
        before[name] = output.by_channel(channel_dim(module))
        _rescale(module, before[name])

    x = pixel_of(network, mean, variance, size)
    # one layer a pass: whatever depends on it, the statistics of a MomentNorm too, is as it is after that
    with (
        torch.no_grad(),
        options(approximation, fallback),
        noise(network, True),
        located(network),
        watching(network, listen, containers=True),
    ):
        network(x)
        while found:
            found.clear()
            network(x)
    return before


def _rescale(module: nn.Module, moments: Moments) -> None:
    """Make a layer's outputs standard in place."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        raise ValueError(f"the weight of a {type(module).__name__} is no parameter of its own: it is reparametrized")
    scale = torch.where(moments.variance > 0, moments.variance, 1.0).sqrt()
    weight.div_(_by_output(module, scale, weight))
    if bias is not None:
        bias.sub_(moments.loc).div_(scale)


def _by_output(module: nn.Module, scale: Tensor, weight: Tensor) -> Tensor:
    """One number an output channel, in a shape that broadcasts with the weight's."""
    ones = [1] * (weight.dim() - 2)
    if not isinstance(module, _ConvTransposeNd):
        return scale.view(-1, 1, *ones)
    groups = module.groups
    by_group = scale.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return by_group.reshape(weight.shape[0], -1, *ones)

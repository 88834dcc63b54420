"""`statistics`: a data set's mean and variance by channel, in every layer, without the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.moments.errors import located
from bnnzoo.moments.propagation import noise
from bnnzoo.moments.table import spellings
from bnnzoo.moments.value import Approximation, Fallback, Moments, options, substituted
from bnnzoo.moments.watching import watching

_Value = TypeVar("_Value")

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}

#: What keeps the kernel's size as its second argument.
_POOLING: dict[Callable, int] = {
    F.max_pool1d: 1,
    F.max_pool2d: 2,
    F.max_pool3d: 3,
    F.avg_pool1d: 1,
    F.avg_pool2d: 2,
    F.avg_pool3d: 3,
}
_ADAPTIVE_POOLING: dict[Callable, int] = {
    F.adaptive_max_pool1d: 1,
    F.adaptive_max_pool2d: 2,
    F.adaptive_max_pool3d: 3,
    F.adaptive_avg_pool1d: 1,
    F.adaptive_avg_pool2d: 2,
    F.adaptive_avg_pool3d: 3,
}

#: Affine operations that act on each element by itself, so that one pixel stands for all.
_POINTWISE: set[Callable] = {
    *spellings("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative"),
    *spellings("positive", "addcmul", "lerp"),
    Tensor.__rsub__,
}


class ChannelMoments(Moments):
    """Random images whose pixels are independent and, in each channel, alike.

    It has the shape of a batch of one image, [1, C, ...], and holds a mean and a variance for each channel only.
    Convolutions, pooling and elementwise operations act on those ("a single pixel" of Shekhovtsov & Flach 2018, section
    4), as if the image had no edges; any other operation, as flattening, meets the whole image.

    Args:
        mean: Means, of a shape that broadcasts to `shape`: [1, C, 1, 1] where positions are alike.
        variance: Variances ≥ 0, of a shape that broadcasts with the mean's.
        shape: The image's shape; default the mean's.

    Attributes:
        pixel: The means and variances as they are held.
    """

    pixel: Moments

    @staticmethod
    def __new__(  # noqa: D102
        cls, mean: Tensor, variance: Tensor | float | None = None, shape: Sequence[int] | None = None
    ) -> ChannelMoments:
        if isinstance(variance, Tensor):
            mean, variance = torch.broadcast_tensors(mean, variance)
        pixel = Moments(mean, 0.0 if variance is None else variance)
        shape = torch.Size(mean.shape if shape is None else shape)
        value = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=mean.dtype, device=mean.device)
        value.pixel = pixel
        value.loc = pixel.loc.expand(shape)
        value._variance = pixel.variance.expand(shape)
        return value

    def __init__(
        self, mean: Tensor, variance: Tensor | float | None = None, shape: Sequence[int] | None = None
    ) -> None: ...

    @property
    def uniform(self) -> bool:
        """Whether all positions of a channel are alike."""
        return self.pixel.loc[0, 0].numel() == 1

    def by_channel(self, dim: int = 1) -> Moments:
        """Mean and variance of each channel, over all positions together.

        Args:
            dim: The dimension of channels.

        Returns:
            Moments, [C].
        """
        mean, variance = (x.movedim(dim, 0).flatten(1) for x in (self.pixel.loc, self.pixel.variance))
        return Moments(mean.mean(1), variance.mean(1) + mean.var(1, unbiased=False))

    def plus_noise(self, variance: Tensor, shape: Sequence[int] | None = None) -> Moments:
        """See `Moments.plus_noise`."""
        return type(self)(self.pixel.loc, self.pixel.variance + variance, self.shape)

    def times_noise(self, variance: Tensor | float, shape: Sequence[int] | None = None) -> Moments:
        """See `Moments.times_noise`."""
        pixel = self.pixel
        return type(self)(pixel.loc, variance * pixel.loc.square() + (1 + variance) * pixel.variance, self.shape)

    def plus_weight_noise(
        self, op: Callable, input: Moments, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> Moments:
        """See `Moments.plus_weight_noise`."""
        if not _slides(op, input):
            return super().plus_weight_noise(op, input, weight, bias, *args, **kwargs)
        assert isinstance(input, ChannelMoments)
        return self.plus_noise(_at_pixel(op, input.pixel.second_moment, weight, bias, *args, **kwargs))

    @classmethod
    def affine(cls, func: Callable, variance: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See `Moments.affine`."""
        if _slides(func, args[0]):
            x, weight, bias, *rest = args
            mean = _at_pixel(func, x.pixel.loc, weight, bias, *rest, **kwargs)
            spread = _at_pixel(func, x.pixel.variance, weight.square(), None, *rest, **kwargs)
            return cls(mean, spread, _shape(func, args, kwargs))
        if getattr(func, "func", func) in _POINTWISE:  # some of its arguments may be bound
            result = Moments.affine(func, variance, _pixels(args), _pixels(kwargs))
            return cls(result.loc, result.variance, _broadcast(*args, *kwargs.values()))
        return substituted(cls._whole, Moments.affine(func, variance, args, kwargs))

    @classmethod
    def elementwise(cls, moments: Callable[..., tuple[Tensor, Tensor]], args: Any, kwargs: Any) -> Moments:
        """See `Moments.elementwise`."""
        result = Moments.elementwise(moments, _pixels(args), _pixels(kwargs))
        return cls(result.loc, result.variance, _broadcast(*args, *kwargs.values()))

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pool one window for all; apply any other operation's rule."""
        kwargs = kwargs or {}
        if func in _POOLING or func in _ADAPTIVE_POOLING:
            x = args[0] if args else kwargs["input"]
            if isinstance(x, ChannelMoments) and x.uniform:
                return cls._pooled(func, x, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def _pooled(cls, func: Callable, x: ChannelMoments, args: Any, kwargs: Any) -> ChannelMoments:
        shape = _shape(func, args, kwargs)
        if func in _POOLING:
            size = args[1] if len(args) > 1 else kwargs["kernel_size"]
            window = tuple(size) if isinstance(size, tuple | list) else (size,) * _POOLING[func]
            argument: Any = size
        else:
            spatial = _ADAPTIVE_POOLING[func]
            window = tuple(math.ceil(n / m) for n, m in zip(x.shape[-spatial:], shape[-spatial:], strict=True))
            argument = 1
        pixel = x.pixel
        patch = [*pixel.shape[: -len(window)], *window]
        result = func(Moments(pixel.loc.expand(patch), pixel.variance.expand(patch)), argument)
        return cls(result.loc, result.variance, shape)

    @classmethod
    def _whole(cls, value: Any) -> Any:
        return cls(value.loc, value.variance) if isinstance(value, Moments) else value


def _pixels(arguments: Any) -> Any:
    return substituted(lambda value: value.pixel if isinstance(value, ChannelMoments) else value, arguments)


def _broadcast(*values: Any) -> torch.Size:
    """The shape of an elementwise result."""
    return torch.broadcast_shapes(*(value.shape for value in values if isinstance(value, Tensor)))


def _shape(func: Callable, args: Any, kwargs: Any) -> torch.Size:
    """The shape of what a function returns."""
    args, kwargs = substituted(_meta, (args, kwargs))
    return func(*args, **kwargs).shape


def _meta(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _slides(op: Callable, input: Any) -> bool:
    return op in _CONVOLUTIONS and isinstance(input, ChannelMoments) and input.uniform


def _at_pixel(
    op: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution of an image that is constant in each channel, [1, C, 1, ...], away from the edges."""
    kernel = weight.flatten(2).sum(-1).reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
    return op(input, kernel, bias, groups=groups)


def statistics(
    network: nn.Module,
    mean: Tensor | float,
    variance: Tensor | float,
    size: Sequence[int] = (),
    *,
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
) -> dict[str, Moments]:
    """Mean and variance over a data set of every layer's channels, from those of the inputs alone.

    They are propagated as those of one pixel, taken for independent of its neighbors and of other channels, and
    Gaussian in front of nonlinear layers (Shekhovtsov & Flach 2018, section 4, "dataset statistics"): no data are seen,
    and the cost is that of a fraction of one image. Edges are left out. The network's own noise (dropout) counts;
    everything else (batch normalization) acts as in eval mode. Differentiable in the network's parameters.

    Args:
        network: Any module that takes one tensor [N, C, ...] and returns one.
        mean: The inputs' means, [C], or one number for all channels.
        variance: Their variances ≥ 0 over inputs and positions, as the mean.
        size: Height and width of the images; () for inputs [N, C], whose features are the channels.
        approximation: See `bnnzoo.moments.options`.
        fallback: See `bnnzoo.moments.options`.

    Returns:
        For each layer (module without children) by its path, in the order of calls, its output's moments by channel,
        [C]; a further call of one is `act#2`.

    Raises:
        ValueError: If mean or variance are out of range, or do not fit the network.
        NoRuleError: If an operation has no rule, and there is no fallback.

    Example:
        >>> from torch import nn
        >>> from bnnzoo import moments
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU())
        >>> moments.statistics(network, 0.13, 0.095, (28, 28))["1"].loc.shape
        torch.Size([8])
    """
    layers: dict[str, Moments] = {}

    def listen(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, ChannelMoments):
            layers[name] = output.by_channel(channel_dim(module))

    x = pixel_of(network, mean, variance, size)
    with options(approximation, fallback), noise(network, True), located(network), watching(network, listen):
        network(x)
    return layers


def channel_dim(module: nn.Module) -> int:
    """The dimension of a layer's output that counts its units."""
    return -1 if isinstance(module, nn.Linear) else 1


def pixel_of(network: nn.Module, mean: Tensor | float, variance: Tensor | float, size: Sequence[int]) -> ChannelMoments:
    """The input that stands for a data set, see `statistics`."""
    parts = checked(mean, variance, network)
    size = tuple(size)
    if not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"size must be the images' height and width, positive integers, not {size}")
    channels = max((len(part) for part in parts if part.dim()), default=0) or _channels(network, math.prod(size))
    shape = [1, channels, *size]
    loc, spread = (part.expand(channels).reshape(1, channels, *[1] * len(size)) for part in parts)
    return ChannelMoments(loc, spread, shape)


def checked(mean: Tensor | float, variance: Tensor | float, network: nn.Module) -> tuple[Tensor, Tensor]:
    """A data set's mean and variance as tensors like the network's parameters, [C] or of no dimension."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    parts = []
    for name, value in (("mean", mean), ("variance", variance)):
        if not isinstance(value, Tensor | Real) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number or a tensor [C], not {type(value).__name__}")
        part = torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device)
        if part.dim() > 1 or not part.numel():
            raise ValueError(f"{name} must be a number or have one value a channel, [C], not {list(part.shape)}")
        parts.append(part)
    loc, spread = parts
    if not bool((spread >= 0).all()):
        raise ValueError(f"variances must be at least 0; the least is {spread.min().item():g}")
    if loc.dim() and spread.dim() and len(loc) != len(spread):
        raise ValueError(f"mean has {len(loc)} channels, variance {len(spread)}")
    return loc, spread


def _channels(network: nn.Module, positions: int) -> int:
    """How many channels a network's inputs have, by its first layer."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            return max(1, module.in_features // positions)
        count = getattr(module, "in_channels", None)
        if isinstance(count, int):
            return count
    raise ValueError("the network's first layer does not tell the number of channels: give mean or variance as [C]")

"""Maxima and minima of independent Gaussians: of two, over dimensions, and over the windows of max pooling.

The maximum of many is composed of maxima of two, each taken for Gaussian (Shekhovtsov & Flach 2018, section 3.2). Over
a dimension they form a balanced tree: neighbors first, (0, 1), (2, 3), ..., where an odd last element waits for the
next round; then the winners likewise. Of several dimensions the last comes first.

That is exact for two alone: of n standard normal variables the mean is off by 0.002, 0.02, 0.06, 0.3 and 1.4 true
standard deviations, and the standard deviation is 0.97, 0.92, 0.85, 0.70 and 0.42 times the true one, for n = 4, 9,
16, 64 and 1000 (measured).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations.paper import SHORTCUT
from bnnzoo.moments.fallbacks import fall_back
from bnnzoo.moments.table import apply_elementwise, rule, spellings
from bnnzoo.moments.value import Moments, NoRuleError, current

#: Standard scores beyond these count as these: the smaller one of two has no chance of 1e-33.
_FARTHEST = 12.0


def maximum(mean: Tensor, variance: Tensor, other: Tensor, other_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the maximum of two independent Gaussians X₁ and X₂, exact.

    With s² = σ₁² + σ₂² and a = (μ₁ - μ₂)/s (Shekhovtsov & Flach 2018, eqs. 33 and 35; Nadarajah & Kotz 2008):

        mean  μ₂ + s(aΦ(a) + φ(a))        variance  σ₁²Φ(a) + σ₂²Φ(-a) + s²(R(a) - Φ(a))

    The paper's shortcut under `options(approximation="paper")`: the variance `σ₁²S(a/t) + σ₂²S(-a/t)`, t = 0.3729.
    Where both variances are 0 it is the maximum of the means; a mean of -∞ never wins.

    Args:
        mean: Means of X₁.
        variance: Variances of X₁ ≥ 0.
        other: Means of X₂; everything broadcasts.
        other_variance: Variances of X₂ ≥ 0.

    Returns:
        Mean and variance.
    """
    total = variance + other_variance
    scale = total.clamp_min(1e-12).sqrt()  # finite gradients at 0, where what is multiplied with it is 0
    least = 0.25 * torch.finfo(mean.dtype).min
    lead = mean.clamp_min(least) - other.clamp_min(least)
    # a difference of 1e30 over a scale of 1e-6 has no gradient: bound the difference, not the ratio
    a = torch.maximum(torch.minimum(lead, _FARTHEST * scale), -_FARTHEST * scale) / scale
    wins, loses = torch.special.ndtr(a), torch.special.ndtr(-a)
    density = torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    gain = density - a.abs() * torch.minimum(wins, loses)
    top = torch.maximum(mean, other) + total / scale * gain
    if current().approximation == "paper":
        spread = variance * torch.sigmoid(a / SHORTCUT) + other_variance * torch.sigmoid(-a / SHORTCUT)
    else:
        # R(a) - Φ(a), even in a: negative
        less = a.square() * wins * loses + a * density * (loses - wins) - density.square()
        spread = (variance * wins + other_variance * loses + total * less).clamp_min(0.0)
    return top, spread


def minimum(mean: Tensor, variance: Tensor, other: Tensor, other_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the minimum of two independent Gaussians: minus the `maximum` of their negatives."""
    top, spread = maximum(-mean, variance, -other, other_variance)
    return -top, spread


def _of_two(moments: Callable, input: Any, other: Any) -> Moments:
    """The rule of a function of two values, at least one of them random."""
    if isinstance(input, Moments) and isinstance(other, Moments):
        return apply_elementwise(moments, input, other)
    if isinstance(input, Moments):
        return apply_elementwise(partial(_against, moments, other), input)
    return apply_elementwise(partial(_against, moments, input), other)


def _against(moments: Callable, certain: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    certain = torch.as_tensor(certain, dtype=mean.dtype, device=mean.device)
    return moments(mean, variance, certain, torch.zeros_like(certain))


_maximum, _minimum = partial(_of_two, maximum), partial(_of_two, minimum)
rule(*spellings("maximum", "fmax"))(_maximum)
rule(*spellings("minimum", "fmin"))(_minimum)


def _no_indices(*args: Any, **kwargs: Any) -> NoReturn:
    raise NoRuleError(
        "the position of a maximum of moments is random: there are values of maxima alone, no indices "
        "(fallback='linearize' takes those of the means)"
    )


def _with_indices(op: Callable, *args: Any, **kwargs: Any) -> Any:
    """Maxima with their positions, as the fallback has them."""
    return _no_indices() if current().fallback is None else fall_back(op, args, kwargs)


class NoIndices:
    """What stands for the positions of maxima, which are random: any use of it is a `NoRuleError`."""

    def __getattr__(self, name: str) -> NoReturn:
        _no_indices()

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """An operation that takes the positions."""
        _no_indices()


class Extremes(NamedTuple):
    """What `x.max(dim)` returns.

    Attributes:
        values: The maxima.
        indices: Any use of them is a `NoRuleError`.
    """

    values: Moments
    indices: NoIndices


def _over(op: Callable, input: Any, dim: int) -> Any:
    """The maximum over one dimension, which keeps size 1."""
    while (size := input.shape[dim]) > 1:
        pairs = input.narrow(dim, 0, size // 2 * 2).unflatten(dim, (size // 2, 2))
        after = dim + 1 if dim >= 0 else dim
        top = op(pairs.select(after, 0), pairs.select(after, 1))
        input = torch.cat([top, input.narrow(dim, size - 1, 1)], dim) if size % 2 else top
    return input


def _over_dims(op: Callable, input: Any, dim: int | Sequence[int] | None = (), keepdim: bool = False) -> Any:
    """The rule of `amax` and `amin`."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(input.dim()))
    torch.empty(input.shape, device="meta").amax(dims)  # its own checks
    dims = sorted((each % max(input.dim(), 1) for each in dims), reverse=True) if input.dim() else []
    for each in dims:
        input = _over(op, input, each)
        if not keepdim:
            input = input.squeeze(each)
    return input


def _max(op: Callable, of_two: Callable, input: Any, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
    """The rule of `max` and `min`: of all elements, over a dimension (with indices), or of two values."""
    second = dim if isinstance(dim, Tensor) else other
    if second is not None:
        return of_two(input, second)
    if dim is None:
        return _over_dims(op, input)
    return Extremes(_over_dims(op, input, dim, keepdim), NoIndices())


rule(*spellings("amax"))(partial(_over_dims, torch.maximum))
rule(*spellings("amin"))(partial(_over_dims, torch.minimum))
rule(*spellings("max"))(partial(_max, torch.maximum, _maximum))
rule(*spellings("min"))(partial(_max, torch.minimum, _minimum))


def _pooled(input: Moments, dim: int, windows: Sequence[Sequence[int]]) -> Moments:
    """The maxima over windows along a dimension.

    Args:
        input: The value, in whose range all positions are.
        dim: The dimension.
        windows: The j-th positions of all windows, for each j.
    """
    parts: list[Any] = [_taken(input, dim, positions) for positions in windows]
    while len(parts) > 1:
        rest = parts[len(parts) // 2 * 2 :]
        parts = [torch.maximum(*pair) for pair in zip(parts[::2], parts[1::2], strict=False)] + rest
    return parts[0]


def _taken(input: Moments, dim: int, positions: Sequence[int]) -> Any:
    """The elements at positions along a dimension, a slice where they are evenly spaced."""
    step = positions[1] - positions[0] if len(positions) > 1 else 1
    if step > 0 and list(positions) == list(range(positions[0], positions[-1] + 1, step)):
        place = [slice(None)] * (dim % input.dim()) + [slice(positions[0], positions[-1] + 1, step)]
        return input[tuple(place)]
    return input.index_select(dim, torch.tensor(positions, device=input.device))


def _padded(input: Moments, dim: int, before: int, after: int) -> Any:
    """With -∞ around it along a dimension, which never is a maximum."""
    if not before and not after:
        return input
    return F.pad(input, [0, 0] * (-dim - 1) + [before, after], value=-math.inf)


def max_pool(
    op: Callable, spatial: int, input: Moments, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Moments:  # fmt: skip
    """The rule of max pooling; padding takes no part. The last dimension is pooled first.

    Args:
        op: The operation.
        spatial: Number of spatial dimensions.
        input: [N, C, ...] or [C, ...].
        kernel_size: As of the operation.
        stride: As of the operation; None: the kernel size.
        padding: As of the operation.
        dilation: As of the operation.
        ceil_mode: As of the operation.
        return_indices: Left to the fallback.

    Raises:
        NoRuleError: If indices are asked for and there is no fallback.
    """
    if return_indices:
        return _with_indices(op, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    stride = kernel_size if stride is None or stride == [] else stride
    meta = torch.empty(input.shape, device="meta", dtype=input.dtype)
    sizes = op(meta, kernel_size, stride, padding, dilation, ceil_mode).shape[-spatial:]  # with torch's own checks
    each = [_by_dimension(value, spatial) for value in (kernel_size, stride, padding, dilation)]
    for dim in range(-1, -spatial - 1, -1):
        kernel, step, pad, gap = (values[dim] for values in each)
        count = sizes[dim]
        after = (count - 1) * step + (kernel - 1) * gap + 1 - pad - input.shape[dim]
        padded = _padded(input, dim, pad, max(after, 0))
        input = _pooled(padded, dim, [[i * step + j * gap for i in range(count)] for j in range(kernel)])
    return input


def adaptive_max_pool(
    op: Callable, spatial: int, input: Moments, output_size: Any, return_indices: bool = False
) -> Moments:
    """The rule of adaptive max pooling; windows of an output may overlap. The last dimension is pooled first.

    Args:
        op: The operation.
        spatial: Number of spatial dimensions.
        input: [N, C, ...] or [C, ...].
        output_size: As of the operation.
        return_indices: Left to the fallback.

    Raises:
        NoRuleError: If indices are asked for and there is no fallback.
    """
    if return_indices:
        return _with_indices(op, input, output_size, return_indices=True)
    sizes = op(torch.empty(input.shape, device="meta", dtype=input.dtype), output_size).shape[-spatial:]
    for dim in range(-1, -spatial - 1, -1):
        length, count = input.shape[dim], sizes[dim]
        starts = [i * length // count for i in range(count)]
        ends = [-((i + 1) * length // -count) for i in range(count)]
        longest = max(end - start for start, end in zip(starts, ends, strict=True))
        # shorter windows get an element of -∞ behind the last one
        windows = [
            [start + j if start + j < end else length for start, end in zip(starts, ends, strict=True)]
            for j in range(longest)
        ]
        uneven = any(length in positions for positions in windows)
        input = _pooled(_padded(input, dim, 0, int(uneven)), dim, windows)
    return input


def _by_dimension(value: Any, spatial: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * spatial if len(given) == 1 else given


for _spatial in (1, 2, 3):
    _pool, _adaptive = (getattr(F, f"{name}max_pool{_spatial}d") for name in ("", "adaptive_"))
    rule(*spellings(f"max_pool{_spatial}d"))(partial(max_pool, _pool, _spatial))
    rule(_adaptive)(partial(adaptive_max_pool, _adaptive, _spatial))
    for _op in spellings(f"max_pool{_spatial}d_with_indices", f"adaptive_max_pool{_spatial}d_with_indices"):
        rule(_op)(partial(_with_indices, _op))

"""Average pooling and interpolation: linear maps that act along each spatial dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.table import affine
from bnnzoo.moments.value import Moments


def _pooled(
    spatial: int,
    input: Moments,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Variances of averages: sums of k variances over k²."""
    settings = (stride, padding, ceil_mode, count_include_pad)
    given = (*settings, divisor_override) if spatial > 1 else settings
    average = _AVERAGES[spatial](input.variance, kernel_size, *given)
    if divisor_override is not None:
        return average / divisor_override
    kernel, pads = _each(kernel_size, spatial), _each(padding, spatial)
    if not ceil_mode and (count_include_pad or not any(pads)):
        return average / math.prod(kernel)
    steps = kernel if stride is None or stride == [] else _each(stride, spatial)
    for k in range(spatial):
        size = input.shape[k - spatial]
        starts = [n * steps[k] - pads[k] for n in range(average.shape[k - spatial])]
        windows = [(start, min(start + kernel[k], size + pads[k])) for start in starts]
        if not count_include_pad:
            windows = [(max(start, 0), min(stop, size)) for start, stop in windows]
        average = _over(average, [stop - start for start, stop in windows], spatial - k)
    return average


_AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
for _spatial, _op in _AVERAGES.items():
    affine(_op)(partial(_pooled, _spatial))


def _adapted(op: Callable, spatial: int, input: Moments, output_size: Any) -> Tensor:
    """Variances of averages over windows that cover the input, of sizes that differ by at most 2."""
    average = op(input.variance, output_size)
    for k in range(spatial):
        size, out = input.shape[k - spatial], average.shape[k - spatial]
        counts = [-(-(n + 1) * size // out) - n * size // out for n in range(out)]
        average = _over(average, counts, spatial - k)
    return average


affine(F.adaptive_avg_pool1d)(partial(_adapted, F.adaptive_avg_pool1d, 1))
affine(F.adaptive_avg_pool2d)(partial(_adapted, F.adaptive_avg_pool2d, 2))
affine(F.adaptive_avg_pool3d)(partial(_adapted, F.adaptive_avg_pool3d, 3))


def _over(average: Tensor, counts: list[int], position: int) -> Tensor:
    """Divided by the counts along the dimension at this position from the end."""
    if len(set(counts)) == 1:
        return average / counts[0]
    inverse = torch.tensor([1 / count for count in counts], dtype=average.dtype, device=average.device)
    return average * inverse.view(-1, *[1] * (position - 1))


def _each(value: Any, spatial: int) -> list[int]:
    values = [value] * spatial if isinstance(value, int) else [int(each) for each in value]
    return values * spatial if len(values) == 1 else values


_NEAREST = ("nearest", "nearest-exact")


def _interpolated(
    input: Moments, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args: Any, **kwargs: Any
) -> Tensor:
    """Variances under interpolation: by the squares of its weights, which are products of one for each dimension."""
    if mode in _NEAREST:
        return F.interpolate(input.variance, size, scale_factor, mode, *args, **kwargs)
    variance = input.variance
    spatial = variance.dim() - 2
    for k in range(spatial):
        length = variance.shape[2 + k]
        # two of every other dimension: torch's antialiasing fails at a width of 1
        alone = [length if each == k else 2 for each in range(spatial)]
        basis = torch.eye(length, dtype=variance.dtype, device=variance.device)
        basis = basis.view(length, 1, *[length if each == k else 1 for each in range(spatial)])
        sizes, scales = _at(size, k, spatial, 2), _at(scale_factor, k, spatial, 1.0)
        weights = F.interpolate(basis.expand(length, 1, *alone).contiguous(), sizes, scales, mode, *args, **kwargs)
        weights = weights[(slice(None), 0, *(slice(None) if each == k else 0 for each in range(spatial)))]
        variance = (variance.movedim(2 + k, -1) @ weights.square()).movedim(-1, 2 + k)
    return variance


affine(F.interpolate, F.upsample)(_interpolated)


def _at(setting: Any, k: int, spatial: int, other: Any) -> Any:
    """A size or a scale in one dimension, another in the others."""
    if setting is None:
        return None
    value = setting[k] if isinstance(setting, tuple | list) else setting
    return [value if each == k else other for each in range(spatial)]


@affine(F.upsample_bilinear)
def _upsample_bilinear(input: Moments, size: Any = None, scale_factor: Any = None) -> Tensor:
    return _interpolated(input, size, scale_factor, "bilinear", align_corners=True)


@affine(F.upsample_nearest)
def _upsample_nearest(input: Moments, size: Any = None, scale_factor: Any = None) -> Tensor:
    return F.interpolate(input.variance, size, scale_factor)

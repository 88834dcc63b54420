"""Quadrature for functions of a Gaussian variable that bend near 0 and are straight far from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

#: Standard deviations from the mean that the nodes cover.
_REACH = 6.5

#: Width of the bend at 0: nodes are even in asinh(x / width), dense there and sparse far away.
_WIDTH = 2.0

#: Elements of a piece, see `in_pieces`.
_PIECE = 2**14

#: Means beyond have their nodes placed as if they were here: what is dense for them lies many σ away, or σ is large.
_FAR = 40.0


def nodes(mean: Tensor, variance: Tensor, count: int, negative: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Standard scores z and weights w with `E f(x) = Σ w f(μ + σz)`, one after the other.

    Constants to autograd.

    Gauss-Legendre nodes in asinh(x / 2), so that for large σ they resolve what a function does near 0.

    Args:
        mean: Means μ.
        variance: Variances σ² > 0.
        count: How many.
        negative: Whether to integrate over x < 0 alone.

    Yields:
        z and w, of the mean's shape.
    """
    mean, variance = mean.detach(), variance.detach()
    std = variance.sqrt()
    center = mean.clamp(-_FAR, _FAR) / _WIDTH
    reach = _REACH / _WIDTH * std
    # the ends of the range from the mean
    right = torch.minimum(torch.maximum(mean / -_WIDTH, -reach), reach) if negative else reach
    low, high = _moved(center, -reach), _moved(center, right)
    half = (high - low) / 2
    middle = low + half
    scale = _WIDTH / std
    across, along = center * scale, (1 + center.square()).sqrt() * scale
    share = half / math.sqrt(2 * math.pi)
    # of twice the sinh and twice the cosh less 1
    halves = across / 2, along / 2
    for point, mass in _legendre(count):
        # x - μ by sinh of a sum, which does not cancel
        sinh = torch.expm1(torch.add(middle, half, alpha=point))
        shrunk = sinh / (sinh + 1)
        wing = sinh * shrunk
        sinh = sinh.add_(shrunk)
        z = torch.addcmul(halves[0] * wing, halves[1], sinh)
        slope = torch.addcmul(torch.addcmul(along, halves[0], sinh), halves[1], wing)
        yield z, (z * z).mul_(-0.5).exp_().mul_(slope).mul_(share).mul_(mass)


@lru_cache
def _legendre(count: int) -> list[tuple[float, float]]:
    points, mass = np.polynomial.legendre.leggauss(count)
    return list(zip(points.tolist(), mass.tolist(), strict=True))


def _moved(start: Tensor, step: Tensor) -> Tensor:
    """`asinh(start + step) - asinh(start)`, for small steps too."""
    here, there = (1 + start.square()).sqrt(), (1 + (start + step).square()).sqrt()
    sinh = step * (here - start * (2 * start + step) / (here + there))
    size = sinh.abs()
    return torch.log1p(size + sinh.square() / (1 + (1 + sinh.square()).sqrt())).copysign(sinh)


def in_pieces(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], mean: Tensor, variance: Tensor
) -> tuple[Tensor, ...]:
    """Elementwise results for large inputs, piece by piece: temporaries stay in the processor's cache.

    Args:
        function: From means and variances to any number of results.
        mean: Means, any shape.
        variance: Variances of the same shape.
    """
    if mean.numel() <= _PIECE or mean.is_cuda:
        return function(mean, variance)
    pieces = zip(mean.flatten().split(_PIECE), variance.flatten().split(_PIECE), strict=True)
    results = zip(*(function(*each) for each in pieces), strict=True)
    return tuple(torch.cat(each).view(mean.shape) for each in results)


def least_variance(dtype: torch.dtype) -> float:
    """Variances below leave nothing but rounding in a function's deviation from its tangent: 1e-6 in float32."""
    return torch.finfo(dtype).eps ** 0.85


def smooth(
    function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, count: int = 24
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a smooth function of a Gaussian variable: the tangent's exactly, the rest by quadrature.

    For functions that are analytic within 1 or more of the real line and straight beyond ±10 or so. Where the variance
    is below `least_variance` the function is a parabola for the mean and its tangent for the variance, so that
    derivatives too are right down to zero variance.

    Args:
        function: Elementwise, made of torch operations that have second derivatives.
        mean: Means.
        variance: Variances ≥ 0, broadcastable with the means.
        count: Nodes; each costs one pass of the function and some twenty multiplications.
    """
    mean, variance = torch.broadcast_tensors(mean, variance)
    # elements act on themselves alone: the derivatives of the sum
    slope = grad(lambda x: function(x).sum())
    value, first, second = function(mean), slope(mean), grad(lambda x: slope(x).sum())(mean)
    least = least_variance(mean.dtype)
    std = variance.clamp_min(least).sqrt()
    total, bend, lean, square = (torch.zeros_like(mean) for _ in range(4))
    for z, weight in nodes(mean, std.square(), count):
        step = std * z
        rest = function(mean + step) - value - first * step
        part = weight * rest
        total, bend = total + weight, bend + part
        lean, square = lean + part * step, square + part * rest
    bend, lean, square = bend / total, lean / total, square / total
    wide = variance > least
    spread = variance * first.square() + torch.where(wide, 2 * first * lean + square - bend.square(), 0.0)
    return value + torch.where(wide, bend, 0.5 * second * variance), spread.clamp_min(0.0)

"""Smooth steps that are mixtures of normal cdfs, and what is made of them: sigmoid, softplus, SiLU and GELU.

A step `F(x) = Σ_k w_k Φ(x/√v_k)` of a Gaussian x has the mean `Σ_k w_k Φ(μ/√(σ² + v_k))`, whose derivatives by μ are
the means of F's derivatives: everything here follows from these sums, by Stein's identity `E x g = μ E g + σ² E g'`.
The logistic sigmoid is such a mixture of 10 terms to 4e-9, its derivative to 5e-9; softplus to 3e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnzoo.moments.activations.gaussian import Elementwise
from bnnzoo.moments.activations.quadrature import in_pieces

#: Variance σ_S² of the standard logistic distribution.
LOGISTIC_VARIANCE = math.pi**2 / 3

# densities of scores beyond 8 count as 0, times whatever power of the mean
_LEAST_DENSITY = math.exp(-(8.0**2) / 2)
_LARGEST_MEAN = 1e7  # of those powers, which overflow


@dataclass(frozen=True)
class Mixture:
    """`F(x) = Σ_k w_k Φ(x/√v_k)`.

    Attributes:
        weights: w, which need not sum to 1.
        variances: v > 0.
    """

    weights: tuple[float, ...]
    variances: tuple[float, ...]


#: Variances of normal distributions: a logistic variable is normal given its variance (Andrews & Mallows 1974).
_VARIANCES = tuple((4 * np.geomspace(0.32, 2.34, 10) ** 2).tolist())


def _fit(function: Callable[[np.ndarray], np.ndarray], total: float | None = None) -> Mixture:
    """An even function as a density `Σ_k w_k N(x; 0, v_k)`, by least squares; `total` is its integral, if known."""
    x, variances = np.linspace(0, 40, 2001), np.array(_VARIANCES)
    densities = np.exp(-(x[:, None] ** 2) / (2 * variances)) / np.sqrt(2 * math.pi * variances)
    weights = np.linalg.lstsq(densities, function(x), rcond=None)[0]
    if total is not None:
        weights *= total / weights.sum()
    return Mixture(tuple(weights.tolist()), _VARIANCES)


def _normal_bump(count: int = 6) -> Mixture:
    """`Φ(x)Φ(-x)` as a density: Owen's `∫ exp(-x²(1 + t²)/2)/(1 + t²) dt / π` over [0, 1], to 4e-9."""
    points, mass = np.polynomial.legendre.leggauss(count)
    variances = 1 / (1 + np.square(0.5 + 0.5 * points))
    weights = 0.5 * mass * variances * np.sqrt(2 * math.pi * variances) / math.pi
    return Mixture(tuple(weights.tolist()), tuple(variances.tolist()))


#: The logistic sigmoid S.
LOGISTIC = _fit(lambda x: 0.25 / np.cosh(x / 2) ** 2, 1.0)
#: Of the density `log(2 cosh(x/2)) S'(x)`.
SOFTPLUS_BUMP = _fit(lambda x: 0.25 * np.log(2 * np.cosh(x / 2)) / np.cosh(x / 2) ** 2)
#: The normal cdf Φ.
NORMAL = Mixture((1.0,), (1.0,))
#: Of the density `Φ(x)Φ(-x)`.
NORMAL_BUMP = _normal_bump()


class _Smoothed(Elementwise):
    """Means of a mixture's derivatives; see `smoothed`. Their own derivatives are those of higher order."""

    @staticmethod
    def forward(
        mean: Tensor, variance: Tensor, mixture: Mixture, first: int, count: int, centered: bool
    ) -> tuple[Tensor, ...]:
        return in_pieces(lambda m, v: _smoothed(m, v, mixture, first, count, centered), mean, variance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], *output)
        ctx.save_for_forward(*inputs[:2], *output)
        ctx.mixture, ctx.first = inputs[2:4]
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, by_mean: Tensor | None, by_variance: Tensor | None, *rest: None) -> tuple[Tensor, ...]:
        count = len(ctx.saved_tensors) - 2
        own = _orders(ctx, count + 2)
        to_mean, to_variance = 0.0 if by_mean is None else by_mean, 0.0 if by_variance is None else 0.5 * by_variance
        return tuple(to_mean * own[k + 1] + to_variance * own[k + 2] for k in range(count))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {k: grad for k, grad in enumerate(grads) if grad is not None}
        own = _orders(ctx, max(given) + 3 if given else 0)
        to_mean: Tensor | None = None
        to_variance: Tensor | None = None
        for k, grad in given.items():
            by_mean, by_variance = grad * own[k + 1], grad * own[k + 2]
            to_mean = by_mean if to_mean is None else to_mean + by_mean
            to_variance = by_variance if to_variance is None else to_variance + by_variance
        return to_mean, None if to_variance is None else 0.5 * to_variance, None, None, None, None


def _orders(ctx: Any, count: int) -> list[Tensor]:
    """Means of as many derivatives, those that are known and further ones."""
    mean, variance, *own = ctx.saved_tensors
    if count > len(own):
        own += _Smoothed.apply(mean, variance, ctx.mixture, ctx.first + len(own), count - len(own), False)
    return own


def _smoothed(
    mean: Tensor, variance: Tensor, mixture: Mixture, first: int, count: int, centered: bool
) -> tuple[Tensor, ...]:
    # Few temporaries: their memory costs more than the arithmetic.
    opposite, twice = -mean, 2 * variance
    step = torch.zeros_like(opposite + twice)
    lift = torch.zeros_like(step)
    last, sign = first + count - 1, -0.5 if centered else 0.5
    # Σ w φ/√V V⁻ⁿ, of which the densities' derivatives are made
    sums = [torch.zeros_like(step) for _ in range(last if last > 0 else 1 if first < 0 else 0)]
    for weight, spread in zip(mixture.weights, mixture.variances, strict=True):
        inverse = (twice + 2 * spread).rsqrt_()
        score = opposite * inverse
        if first <= 0:  # erfc, so that small probabilities have their digits
            step.add_(torch.erf(score) if centered else torch.erfc(score), alpha=sign * weight)
        if not sums:
            continue
        part = torch.threshold_(score.mul_(score).neg_().exp_(), _LEAST_DENSITY, 0.0).mul_(inverse)
        factor = weight / math.sqrt(math.pi)
        if first < 0:
            lift.add_(part, alpha=spread * factor)
        sums[0].add_(part, alpha=factor)
        if len(sums) > 1:
            inverse.mul_(inverse)
        for n, total in enumerate(sums[1:], 1):
            total.add_(part.mul_(inverse), alpha=2**n * factor)
    near = mean.clamp(-_LARGEST_MEAN, _LARGEST_MEAN)
    low = [torch.addcmul(torch.addcmul(lift, mean, step), variance, sums[0])] if first < 0 else []
    low += [step] if first <= 0 <= last else []
    return *low, *(_derivative(near, sums, k) for k in range(max(first, 1), last + 1))


def _derivative(mean: Tensor, sums: list[Tensor], order: int) -> Tensor:
    """`Σ w dᵏ⁻¹/dμᵏ⁻¹ φ(μ/√V)/√V`, k the order: `(-1)ᵏ⁻¹` times the Hermite polynomial of k - 1, by powers of μ."""
    degree = order - 1
    square = mean.square()
    # the coefficient of μ^(degree - 2j) goes with sums[degree - j]
    value = sums[degree].clone()
    for j in range(1, degree // 2 + 1):
        share = (-1) ** j * math.factorial(degree) / (math.factorial(j) * math.factorial(degree - 2 * j) * 2**j)
        value = value.mul(square).add_(sums[degree - j], alpha=share)
    if degree % 2:
        value = value.mul(mean)
    return value.neg_() if degree % 2 else value


def smoothed(
    mixture: Mixture, mean: Tensor, variance: Tensor, first: int, count: int, centered: bool = False
) -> tuple[Tensor, ...]:
    """Means of F's derivatives of the orders from `first` on, of Gaussian x: closed forms, with closed derivatives.

    Args:
        mixture: F.
        mean: Means μ.
        variance: Variances σ² ≥ 0, broadcastable with the means.
        first: The least order, from -1 on: -1 is the integral of F from -∞, 0 is F itself.
        count: How many orders.
        centered: Whether to give order 0 less the half of the weights, accurate where it is small. For first = 0.
    """
    # two more are what the derivatives need
    more = count + 2 if torch.is_grad_enabled() else count
    return _Smoothed.apply(*torch.broadcast_tensors(mean, variance), mixture, first, more, centered)[:count]


def _mirrored(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a mean is above 0, and minus its magnitude: below 0 what is small keeps its digits."""
    above = mean > 0
    return above, torch.where(above, -mean, mean)


def _spread(variance: Tensor, value: Tensor, square: Tensor, slopes: list[Tensor]) -> Tensor:
    """The variance of f(x): `E f² - (E f)²`, or where this cancels the sum `Σ_k σ^(2k)/k! (E dᵏf/dxᵏ)²` to k = 3.

    No term of the sum is negative, so that it is a lower bound everywhere.

    Args:
        variance: Variances σ².
        value: E f.
        square: E f².
        slopes: Means of the first three derivatives.
    """
    first, second, third = slopes
    near = second.square() + (variance / 3) * third.square()
    near = variance * (first.square() + (0.5 * variance) * near)
    far = torch.maximum(square - value.square(), near)
    return torch.where(variance < torch.finfo(variance.dtype).eps ** 0.25, near, far)


def logistic(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of S(x): `S² = S - S'`."""
    mean, variance = torch.broadcast_tensors(mean, variance)
    above, low = _mirrored(mean)
    value, *slopes = smoothed(LOGISTIC, low, variance, 0, 4)
    return torch.where(above, 1 - value, value), _spread(variance, value, value - slopes[0], slopes)


def centered_logistic(mean: Tensor, variance: Tensor, rest: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance of `t(x) = 2S(x) - 1`, or of `x/2 - t(x)`, accurate where they are small: `t² = 1 - 4S'`."""
    mean, variance = torch.broadcast_tensors(mean, variance)
    half, *halves = smoothed(LOGISTIC, mean, variance, 0, 4, centered=True)
    value, slopes = 2 * half, [2 * each for each in halves]
    square = 1 - 2 * slopes[0]
    if rest:  # the cross term by Stein's identity
        square = 0.25 * (mean.square() + variance) - (mean * value + variance * slopes[0]) + square
        value, slopes = 0.5 * mean - value, [0.5 - slopes[0], -slopes[1], -slopes[2]]
    return value, _spread(variance, value, square, slopes)


def _ramp(
    variance: Tensor, above: Tensor, mean: Tensor, value: Tensor, square: Tensor, slopes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of f(x) from those of f(-x) where the mean is above 0, f with `f(x) - f(-x) = x`."""
    spread = _spread(variance, value, square, slopes)
    turned = spread + variance * (1 - 2 * slopes[0])
    return torch.where(above, mean + value, value), torch.where(above, turned, spread)


def softplus(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the integral f of S: `f² = (x - 2)f + 2R`, R'' being `log(2 cosh(x/2)) S'`."""
    mean, variance = torch.broadcast_tensors(mean, variance)
    above, low = _mirrored(mean)
    value, *slopes = smoothed(LOGISTIC, low, variance, -1, 4)
    bump = smoothed(SOFTPLUS_BUMP, low, variance, -1, 1)[0]
    square = (low - 2) * value + variance * slopes[0] + 2 * bump
    return _ramp(variance, above, mean, value.clamp_min(0.0), square, slopes)


def weighted(mixture: Mixture, bump: Mixture, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `x F(x)` for a symmetric F: `F² = F - B`.

    Args:
        mixture: F.
        bump: The mixture of which B is the density.
        mean: Means.
        variance: Variances.
    """
    mean, variance = torch.broadcast_tensors(mean, variance)
    above, low = _mirrored(mean)
    steps = smoothed(mixture, low, variance, 0, 5)
    b = steps[1:4] if bump is mixture else smoothed(bump, low, variance, 1, 3)
    value = low * steps[0] + variance * steps[1]
    slopes = [k * steps[k - 1] + low * steps[k] + variance * steps[k + 1] for k in (1, 2, 3)]
    # E x²B
    less = low * (low * b[0] + variance * b[1]) + variance * (b[0] + low * b[1] + variance * b[2])
    square = low * value + variance * slopes[0] - less
    return _ramp(variance, above, mean, value, square, slopes)

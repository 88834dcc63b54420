"""What every rule is made of: the tails of a standard Gaussian, and the moments of the kink of `max(0, x)`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Variances below count as this much in divisions and derivatives, which stay finite at zero variance.
LEAST_VARIANCE = 1e-16

#: Standard deviations from the mean beyond which a Gaussian has no mass (6e-16): exact zeros, and no denormal numbers,
#: which are up to 100 times slower.
REACH = 8.0

_INVERSE_ROOT = 1 / math.sqrt(2 * math.pi)
# a hair above φ(REACH), which rounds
_LEAST_DENSITY = 1.01 * math.exp(-(REACH**2) / 2) * _INVERSE_ROOT
_CENTER = 3.0  # of the variable of the tail's polynomial
_OFFSET = 1.35  # tail(t) (t + 1.35)³ is nearly constant: its polynomial has small coefficients, which round little


def inverse_scale(variance: Tensor) -> Tensor:
    """`1/σ`, with variances of at least `LEAST_VARIANCE`."""
    return variance.clamp_min(LEAST_VARIANCE).rsqrt()


def scale(variance: Tensor) -> Tensor:
    """`σ`, its derivative finite at 0: `σ²/10⁻⁸` where σ is below 10⁻⁸."""
    return variance * inverse_scale(variance)


def tail(t: Tensor) -> Tensor:
    """`E[(z - t)²; z > t] / φ(t)` of a standard Gaussian z, for t ≥ 0.

    It is `(1 + t²)M - t`, M being Mills' ratio `Φ(-t)/φ(t)`, but accurate where that cancels: to 1e-5, relative, in
    float32 and 2e-11 in float64, for all t. The other tails follow without cancellation:
    `E[z - t; z > t] / φ(t) = (1 - t·tail)/(1 + t²)` and `M = (t + tail)/(1 + t²)`. A polynomial in (t - 3)/(t + 3);
    torch's erfcx and log_ndtr take ten times as long.
    """
    y = (t + _CENTER).reciprocal_().mul_(-2 * _CENTER).add_(1)
    first, *others = _coefficients(torch.finfo(t.dtype).eps < 1e-10)
    value = y * first
    for each in others[:-1]:
        value = value.add_(each).mul_(y)
    shrink = torch.add(t, _OFFSET).reciprocal_()
    return value.add_(others[-1]).mul_(shrink).mul_(shrink).mul_(shrink)


@lru_cache
def _coefficients(precise: bool) -> list[float]:
    """Of the polynomial `tail(t) (t + 1.35)³`, highest power first: Chebyshev interpolation of the formula."""
    series: np.ndarray = np.polynomial.chebyshev.chebinterpolate(_scaled_tail, 20 if precise else 9)
    return [float(each) for each in np.polynomial.chebyshev.cheb2poly(series)[::-1]]


def _scaled_tail(y: Any) -> Any:
    t = _CENTER * (1 + y) / (1 - y)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(torch.from_numpy(t / math.sqrt(2))).numpy()
    # far out the formula cancels: its asymptotic series
    far = sum(
        (-0.5) ** n / math.factorial(n) * math.factorial(2 * n + 2) * np.maximum(t, 14.0) ** (-2.0 * n - 3)
        for n in range(15)
    )
    return np.where(t < 14, (1 + t**2) * mills - t, far) * (t + _OFFSET) ** 3


def _tails(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`φ(t)`, `Φ(-t)`, `E[z - t; z > t]` and `tail(t)` for t in [0, `REACH`], where the first three become 0."""
    # Few temporaries: their memory costs more than the arithmetic.
    second = tail(t)
    square = t.square()
    phi = torch.threshold_((square * -0.5).exp_().mul_(_INVERSE_ROOT), _LEAST_DENSITY, 0.0)
    share = square.add_(1).reciprocal_().mul_(phi)
    outside = torch.add(t, second).mul_(share)
    return phi, outside, t.mul(second).neg_().add_(1).mul_(share), second


class Elementwise(torch.autograd.Function):
    """A function of tensors of one shape, each element for itself, with derivatives of its own.

    Under vmap it acts on the whole stack at once: torch's own rule (`generate_vmap_rule`) costs milliseconds a call.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """The function of the stacks, whose first dimension vmap goes over."""
        stacks = [_stacked(value, dim, info.batch_size) for value, dim in zip(args, in_dims, strict=True)]
        return cls.apply(*stacks), 0


def _stacked(value: Any, dim: int | None, size: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


class _Kink(Elementwise):
    """Moments of `max(0, x)` in closed form, with closed derivatives; see `kink`."""

    @staticmethod
    def forward(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inverse = variance.clamp_min(LEAST_VARIANCE).rsqrt_()
        a = mean * inverse
        phi, outside, first, second = _tails(a.abs().clamp_max_(REACH))
        ratio = second.mul_(phi)
        ratio = ratio.sub_(first.square())
        # Φ(a) - Φ(-t), which is 0 below
        inside = (outside * -2).add_(1).mul_(a.sign_()).clamp_min_(0.0)
        ratio = ratio.add_(inside)
        mass = inside.add_(outside)
        density = phi.mul_(inverse)
        excess = first.mul_(inverse)
        return torch.addcmul(mean.clamp_min(0.0), excess, variance), ratio * variance, mass, density

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        mean, variance = inputs
        above, _, mass, dens = output
        ctx.save_for_backward(mean, variance, above, mass, dens)
        ctx.save_for_forward(mean, variance, above, mass, dens)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        mean, variance, above, mass, dens = ctx.saved_tensors
        by_mean, by_variance = (0.0 if each is None else each for each in tangents)
        least = variance.clamp_min(LEAST_VARIANCE)
        slope = mean / least * dens
        to_above = by_mean * mass + 0.5 * by_variance * dens
        to_spread = 2 * above * (by_mean - to_above) + by_variance * mass
        to_density = 0.5 * by_variance * (mean * slope - dens) / least - by_mean * slope
        return to_above, to_spread, by_mean * dens - 0.5 * by_variance * slope, to_density

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        mean, variance, above, mass, dens = ctx.saved_tensors
        by_above, by_spread, by_mass, by_density = grads
        to_mean: list[Tensor] = []
        to_variance: list[Tensor] = []
        by_mean = by_above
        if by_spread is not None:  # through E max(0, x)², and through the mean, whose square is subtracted
            by_square = 2 * by_spread * above
            to_mean.append(by_square)
            to_variance.append(by_spread * mass)
            by_mean = -by_square if by_above is None else by_above - by_square
        if by_mean is not None:
            to_mean.append(by_mean * mass)
            to_variance.append(0.5 * by_mean * dens)
        if by_mass is not None or by_density is not None:
            least = variance.clamp_min(LEAST_VARIANCE)
            slope = mean / least * dens
            if by_mass is not None:
                to_mean.append(by_mass * dens)
                to_variance.append(-0.5 * by_mass * slope)
            if by_density is not None:
                to_mean.append(-by_density * slope)
                to_variance.append(0.5 * by_density * (mean * slope - dens) / least)
        return _total(to_mean), _total(to_variance)


def _total(parts: list[Tensor]) -> Tensor | None:
    return sum(parts[1:], parts[0]) if parts else None


def kink(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the rules of functions with a kink at 0 are made of, for Gaussian x.

    With a = μ/σ: mean and variance of `max(0, x)`, `μΦ(a) + σφ(a)` and `σ²R(a)` (Shekhovtsov & Flach 2018, eqs. 26 and
    30), the probability Φ(a) that x > 0, and the density `φ(a)/σ` at 0.

    Exact where the tail beyond 0 counts, |a| < 8; from there on 0 is as if never crossed. In float32 the variance has a
    relative error below 1e-5 for all a > -8, and is never negative. Derivatives are closed forms, twice and more.

    Args:
        mean: Means μ.
        variance: Variances σ² ≥ 0, broadcastable with the means.
    """
    return _Kink.apply(*torch.broadcast_tensors(mean, variance))


def sides(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities that x > 0 and that x < 0, each accurate where it is small; both 0 where x is 0 for certain."""
    random = ((mean != 0) | (variance > 0)).to(mean.dtype)
    return kink(mean, variance)[2] * random, kink(-mean, variance)[2] * random


class _Beyond(Elementwise):
    """`φ(t)`, `Φ(-t)`, `E[z - t; z > t]` and `E[(z - t)²; z > t]` for t ≥ 0; each is the next one's derivative."""

    @staticmethod
    def forward(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        phi, outside, first, second = _tails(t.clamp(max=REACH))
        return phi, outside, first, second.mul_(phi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, ...]:
        t, phi, outside, first, _ = ctx.saved_tensors
        near = t.clamp(max=REACH)
        return -tangent * near * phi, -tangent * phi, -tangent * outside, -2 * tangent * first

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        t, phi, outside, first, _ = ctx.saved_tensors
        # t beyond the reach, which may be huge, meets φ = 0
        return -(grads[0] * t.clamp(max=REACH) * phi + grads[1] * phi + grads[2] * outside + 2 * grads[3] * first)


def beyond(t: Tensor, degree: int) -> list[Tensor]:
    """`E[(z - t)ⁿ; z > t]` of a standard Gaussian z for n = 0 ... degree, t ≥ 0; 0 from t = 8 on."""
    moments = list(_Beyond.apply(t)[1:])
    for n in range(3, degree + 1):
        moments.append((n - 1) * moments[n - 2] - t.clamp(max=REACH) * moments[n - 1])
    return moments[: degree + 1]

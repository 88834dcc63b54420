"""Smooth functions: exponentials, powers, sines, normal cdf and sigmoids in closed form, others by quadrature."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations import mixtures, paper
from bnnzoo.moments.activations.gaussian import Elementwise, kink
from bnnzoo.moments.activations.quadrature import in_pieces, least_variance, nodes, smooth
from bnnzoo.moments.table import UnknownMomentsError, elementwise, spellings
from bnnzoo.moments.value import current

#: Exponents of e beyond which a factor counts as 0.
_NOTHING = 60.0


@elementwise(*spellings("exp"))
def exp(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential, log-normal: mean `μ' = e^(μ + σ²/2)` and variance `μ'²(e^σ² - 1)`; exact, overflows like it."""
    value = torch.exp(mean + 0.5 * variance)
    return value, value.square() * torch.expm1(variance)


@elementwise(*spellings("expm1"))
def expm1(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`eˣ - 1`, exact, see `exp`."""
    return torch.expm1(mean + 0.5 * variance), exp(mean, variance)[1]


@elementwise(*spellings("square"))
def square(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`x²`: mean `μ² + σ²` and variance `4μ²σ² + 2σ⁴`; exact."""
    return power(mean, variance, 2)


@elementwise(*spellings("pow", "float_power"), Tensor.__pow__)
def power(mean: Tensor, variance: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """`xⁿ` for a whole n ≥ 0; exact.

    The variance is `Σ_k σ^(2k)/k! (E dᵏxⁿ/dxᵏ)²`, k = 1 ... n: no term is negative, none cancels.

    Args:
        mean: Means.
        variance: Variances.
        exponent: n, a whole number from 0 on.

    Raises:
        UnknownMomentsError: For other exponents, whose powers have no mean and variance, or none in closed form.
    """
    n = _whole(exponent)
    value, spread, factor = _moment(mean, variance, n), torch.zeros_like(mean), torch.ones_like(variance)
    for k in range(1, n + 1):
        factor = factor * variance / k
        slope = math.perm(n, k) * _moment(mean, variance, n - k)
        spread = spread + factor * slope.square()
    return value, spread


def _whole(exponent: object) -> int:
    number = exponent.item() if isinstance(exponent, Tensor) and exponent.dim() == 0 else exponent
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, Integral) or number < 0:
        raise UnknownMomentsError(
            f"powers of Gaussian variables have moments for whole exponents from 0 on, not {exponent!r}"
        )
    return int(number)


def _moment(mean: Tensor, variance: Tensor, n: int) -> Tensor:
    """`E xⁿ`, by the recurrence `E xⁿ = μ E xⁿ⁻¹ + (n - 1) σ² E xⁿ⁻²`."""
    before, value = torch.zeros_like(mean), torch.ones_like(mean + variance)
    for k in range(n):
        before, value = value, mean * value + k * variance * before
    return value


@elementwise(*spellings("sin"))
def sin(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`sin x`: with q = exp(-σ²) mean `√q sin μ` and variance `½(1-q)(1-q + 2q cos²μ)`; exact."""
    return _wave(torch.sin(mean), torch.cos(mean), variance)


@elementwise(*spellings("cos"))
def cos(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`cos x`: with q = exp(-σ²) mean `√q cos μ` and variance `½(1-q)(1-q + 2q sin²μ)`; exact."""
    return _wave(torch.cos(mean), torch.sin(mean), variance)


def _wave(value: Tensor, slope: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    variance = variance.clamp(max=_NOTHING)
    rest = -torch.expm1(-variance)
    return value * torch.exp(-0.5 * variance), 0.5 * rest * (rest + 2 * torch.exp(-variance) * slope.square())


@elementwise(torch.special.ndtr)
def ndtr(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The normal cdf Φ(x): mean `Φ(m)`, m = μ/√(1+σ²), and variance `Φ(m) - 2T(m, 1/√(1+2σ²)) - Φ(m)²`, exact.

    T is Owen's function. The variance is computed as the integral of the bivariate normal density,
    `∫ exp(-m²/(1 + sin θ)) dθ / 2π` over θ from 0 to `arctan(σ²/√(1+2σ²))`, in which nothing cancels: 16 Gauss-Legendre
    nodes, to 1e-10.
    """
    score = mean * (1 + variance).rsqrt()
    half = score.square().clamp(max=_NOTHING)
    angle = torch.atan(variance * (1 + 2 * variance).rsqrt())
    total = torch.zeros_like(half + angle)
    points, mass = np.polynomial.legendre.leggauss(16)
    for point, weight in zip(points.tolist(), mass.tolist(), strict=True):
        total = total + weight * torch.exp(-half / (1 + torch.sin(angle * (0.5 + 0.5 * point))))
    return torch.special.ndtr(score), angle * total / (4 * math.pi)


@elementwise(*spellings("erf"), torch.special.erf)
def erf(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The error function `2Φ(√2 x) - 1`, exact, see `ndtr`."""
    return torch.erf(mean * (1 + 2 * variance).rsqrt()), 4 * ndtr(math.sqrt(2) * mean, 2 * variance)[1]


@elementwise(*spellings("sigmoid"), torch.special.expit)
def sigmoid(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The logistic transform `S(x) = 1/(1 + e⁻ˣ)`, as a mixture of normal cdfs: to 1e-8, in float64.

    The paper's mean is `S(μ/√(σ²/σ_S² + 1))` and its variance `4/(1 + 4/σ²) (μ'(1-μ'))²` (AP2b and eq. 21).
    """
    if current().approximation == "paper":
        value = paper.sigmoid_mean_ap2b(mean, variance)
        return value, paper.sigmoid_variance(value, variance)
    return mixtures.logistic(mean, variance)


@elementwise(*spellings("tanh"))
def tanh(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`tanh x = 2S(2x) - 1`, see `sigmoid`, for the paper's too."""
    if current().approximation == "paper":
        value, spread = sigmoid(2 * mean, 4 * variance)
        return 2 * value - 1, 4 * spread
    return mixtures.centered_logistic(2 * mean, 4 * variance)


@elementwise(*spellings("tanhshrink"))
def tanhshrink(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`x - tanh x`, see `sigmoid`."""
    return mixtures.centered_logistic(2 * mean, 4 * variance, rest=True)


@elementwise(*spellings("silu"))
def silu(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`x S(x)` (swish), S being a mixture of normal cdfs: to 1e-7, relative to 1 + σ² in the variance."""
    return mixtures.weighted(mixtures.LOGISTIC, mixtures.LOGISTIC, mean, variance)


@elementwise(*spellings("gelu"))
def gelu(mean: Tensor, variance: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    """`x Φ(x)`: mean `μΦ(m) + σ²φ(m)/√(1+σ²)`, m = μ/√(1+σ²), exact; variance in closed form.

    The tanh form by quadrature.

    Args:
        mean: Means μ.
        variance: Variances σ².
        approximate: `"none"`, or `"tanh"` for `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    """
    if approximate == "tanh":
        rate = math.sqrt(2 / math.pi)
        return smooth(lambda x: 0.5 * x * (1 + torch.tanh(rate * (x + 0.044715 * x * x * x))), mean, variance)
    return mixtures.weighted(mixtures.NORMAL, mixtures.NORMAL_BUMP, mean, variance)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


@elementwise(*spellings("softplus"))
def softplus(mean: Tensor, variance: Tensor, beta: float = 1.0, threshold: float = 20.0) -> tuple[Tensor, Tensor]:
    """`log(1 + exp(βx))/β`, the integral of a sigmoid that is a mixture of normal cdfs: to 1e-7 in the mean.

    Args:
        mean: Means.
        variance: Variances.
        beta: β > 0.
        threshold: At least 10: above, torch takes βx for the function, which makes no difference to speak of.

    Raises:
        UnknownMomentsError: If the threshold is below 10.
    """
    if threshold < 10:
        raise UnknownMomentsError(f"softplus has moments for a threshold of at least 10, not {threshold!r}")
    value, spread = mixtures.softplus(beta * mean, beta**2 * variance)
    return value / beta, spread / beta**2


@elementwise(F.logsigmoid)
def logsigmoid(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`log S(x)`: minus the softplus of -x."""
    value, spread = mixtures.softplus(-mean, variance)
    return -value, spread


@elementwise(*spellings("mish"))
def mish(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`x tanh(softplus(x))`, by quadrature."""
    return smooth(lambda x: x * torch.tanh(_softplus(x)), mean, variance)


@elementwise(*spellings("elu"))
def elu(
    mean: Tensor, variance: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`x` above 0 and `α(exp(βx) - 1)` below, times a scale.

    What is above 0 is exact (Shekhovtsov & Flach 2018, eqs. 26 and 30); what is below has a closed form too, which
    cancels for small variances: half of a quadrature instead, to 1e-5.

    Args:
        mean: Means.
        variance: Variances.
        alpha: α > 0.
        scale: Of the result, > 0.
        input_scale: β > 0.
    """
    above, wide, _, _ = kink(mean, variance)
    below, narrow = _Below.apply(*torch.broadcast_tensors(input_scale * mean, input_scale**2 * variance))
    # x is on one side of 0 at a time
    spread = wide + alpha**2 * narrow - 2 * alpha * above * below
    return scale * (above + alpha * below), scale**2 * spread


@elementwise(*spellings("celu"))
def celu(mean: Tensor, variance: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """`x` above 0 and `α(exp(x/α) - 1)` below, see `elu`."""
    return elu(mean, variance, alpha, 1.0, 1 / alpha)


@elementwise(*spellings("selu"))
def selu(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """ELU of α = 1.6733 times 1.0507, see `elu`."""
    return elu(mean, variance, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


class _Below(Elementwise):
    """Mean and variance of `h = min(0, eˣ - 1)`, whose derivatives follow from `h' = h + 1` below 0."""

    @staticmethod
    def forward(mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        return in_pieces(_exponential_below, mean, variance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs, *output)

    @staticmethod
    def jvp(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, Tensor]:
        slopes = _slopes_below(*ctx.saved_tensors)
        return by_mean * slopes[0] + by_variance * slopes[1], by_mean * slopes[2] + by_variance * slopes[3]

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_spread: Tensor) -> tuple[Tensor, Tensor]:
        slopes = _slopes_below(*ctx.saved_tensors)
        return by_value * slopes[0] + by_spread * slopes[2], by_value * slopes[1] + by_spread * slopes[3]


def _slopes_below(mean: Tensor, variance: Tensor, value: Tensor, spread: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of value and spread, of each by the mean and by the variance."""
    _, _, mass, density = kink(mean, variance)
    slope = value + 1 - mass
    bend = 2 * spread + slope + value * (1 + value + mass + density)
    return slope, 0.5 * (slope - density), 2 * (spread + value * mass), bend


def _exponential_below(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `min(0, eˣ - 1)`: of its tangent at min(μ, 0) exactly, of the rest by quadrature."""
    start = mean.clamp_max(0.0)
    above, spread, _, _ = kink(-mean, variance)  # -min(0, x)
    mass = kink(mean, variance)[2]
    value, first = torch.expm1(start), torch.exp(start)
    least = least_variance(mean.dtype)
    std = variance.clamp_min(least).sqrt()
    # where x > 0 the function is 0, and its tangent at the start -start away
    edge = first * start - value
    bend = mass * edge
    lean, square = -bend * start, bend * edge
    offset = mean - start
    for z, weight in nodes(mean, std.square(), 17, negative=True):
        step = torch.addcmul(offset, std, z)
        rest = torch.expm1(step).sub_(step).mul_(first)
        part = weight.mul_(rest)
        bend = bend.add_(part)
        square = square.add_(rest.mul_(part))
        lean = lean.add_(step.mul_(part))
    lean = lean + (above + start) * bend
    wide = variance > least
    total = first.square() * spread + torch.where(wide, 2 * first * lean + square - bend.square(), 0.0)
    curved = 0.5 * first * variance * (1 - mass)
    return value - first * (above + start) + torch.where(wide, bend, curved), total.clamp_min(0.0)

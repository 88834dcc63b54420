"""Functions of two straight pieces that meet at 0: rectifiers, absolute value, step and sign."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations import paper
from bnnzoo.moments.activations.gaussian import kink, sides
from bnnzoo.moments.arithmetic import is_random
from bnnzoo.moments.table import apply_elementwise, elementwise, rule
from bnnzoo.moments.value import Moments, current, mean_of


@elementwise(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def relu(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`max(0, x)`: mean `μΦ(a) + σφ(a)` and variance `σ²R(a)`, a = μ/σ.

    Exact (Shekhovtsov & Flach 2018, eqs. 26 and 30), see `gaussian.kink` for the accuracy; the paper's variance is
    `σ²S(a/0.3729)`.
    """
    value, spread, _, _ = kink(mean, variance)
    return value, paper.relu_variance(mean, variance) if current().approximation == "paper" else spread


@elementwise(F.leaky_relu, F.leaky_relu_)
def leaky_relu(mean: Tensor, variance: Tensor, negative_slope: Tensor | float = 0.01) -> tuple[Tensor, Tensor]:
    """`max(0, x) + α min(0, x)`: mean `αμ + (1-α)E max(0, x)`, variance `σ²(α² + 2α(1-α)Φ(a) + (1-α)²R(a))`, a = μ/σ.

    Exact for any α (Shekhovtsov & Flach 2018, eqs. 36 and 38); the paper's variance is `σ²(α² + (1-α²)S(a/0.3729))`.

    Args:
        mean: Means μ.
        variance: Variances σ².
        negative_slope: α, broadcastable with the means.
    """
    above, spread, mass, _ = kink(mean, variance)
    slope, rest = negative_slope, 1 - negative_slope
    value = slope * mean + rest * above
    if current().approximation == "paper":
        return value, paper.relu_variance(mean, variance, slope)
    return value, variance * (slope**2 + 2 * slope * rest * mass) + rest**2 * spread


def rrelu(
    mean: Tensor, variance: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> tuple[Tensor, Tensor]:
    """Leaky ReLU whose slope is uniform in training, and the middle of its range in eval mode; exact.

    Args:
        mean: Means.
        variance: Variances.
        lower: Of the slope's range.
        upper: The same.
        training: Whether slopes are drawn, one for each element.
    """
    slope = (lower + upper) / 2
    if not training:
        return leaky_relu(mean, variance, slope)
    return _random_slope(mean, variance, slope, (upper - lower) ** 2 / 12)


@rule(F.rrelu, torch.rrelu, random=True)
def _rrelu(input: Moments, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    return apply_elementwise(partial(rrelu, lower=lower, upper=upper, training=True), input)


def prelu(mean: Tensor, variance: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Leaky ReLU of a learned slope, or of one for each channel (dimension 1).

    A random slope w, independent of x, adds `Var(w) E min(0, x)²` to the variance; exact.

    Args:
        mean: Means, [N, C, ...].
        variance: Variances.
        weight: Slopes, [1] or [C].
    """
    return leaky_relu(mean, variance, _by_channel(weight, mean))


def _by_channel(weight: Tensor, input: Tensor) -> Tensor:
    """Slopes that broadcast with their input."""
    return weight.view(-1, *[1] * (input.dim() - 2)) if input.dim() > 2 and weight.numel() > 1 else weight


def _random_slope(
    mean: Tensor, variance: Tensor, slope: Tensor | float, slope_variance: Tensor | float
) -> tuple[Tensor, Tensor]:
    value, spread = leaky_relu(mean, variance, slope)
    below, narrow, _, _ = kink(-mean, variance)  # -min(0, x)
    return value, spread + slope_variance * (below.square() + narrow)


@rule(F.prelu, torch.prelu, Tensor.prelu)
def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    slope = _by_channel(weight, input)
    if not is_random(input):
        return input.clamp_min(0.0) + input.clamp_max(0.0) * slope
    if is_random(slope):
        return apply_elementwise(_random_slope, input, slope)
    return apply_elementwise(leaky_relu, input, mean_of(slope))


@elementwise(torch.abs, torch.abs_, torch.absolute, Tensor.abs, Tensor.abs_, Tensor.absolute, Tensor.absolute_)
@elementwise(Tensor.__abs__)
def abs(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`|x|`: the leaky ReLU of slope -1; exact (Shekhovtsov & Flach 2018, appendix C.1)."""
    above, spread, mass, _ = kink(mean, variance)
    return 2 * above - mean, variance * (1 - 4 * mass) + 4 * spread


@elementwise(torch.heaviside, Tensor.heaviside, Tensor.heaviside_)
def heaviside(mean: Tensor, variance: Tensor, values: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """`[x > 0]`: mean `Φ(a)` and variance `Φ(a)Φ(-a)`, a = μ/σ, exact (Shekhovtsov & Flach 2018, eq. 18).

    Args:
        mean: Means μ.
        variance: Variances σ².
        values: The function at 0, for an x that is 0 for certain.
    """
    above, below = sides(mean, variance)
    return above + values * ((mean == 0) & (variance == 0)), above * below


@elementwise(torch.sign, torch.sgn, Tensor.sign, Tensor.sign_, Tensor.sgn, Tensor.sgn_)
def sign(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`[x > 0] - [x < 0]`: mean `2Φ(a) - 1` and variance `4Φ(a)Φ(-a)`, a = μ/σ; exact."""
    above, below = sides(mean, variance)
    return above - below, 4 * above * below

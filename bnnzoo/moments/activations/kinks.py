"""Functions of two straight pieces that meet at 0: rectifiers, absolute value, step and sign."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations import paper
from bnnzoo.moments.activations.gaussian import kink, sides
from bnnzoo.moments.table import elementwise
from bnnzoo.moments.value import current


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


@elementwise(F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_)
def rrelu(
    mean: Tensor, variance: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> tuple[Tensor, Tensor]:
    """Leaky ReLU with the mean of the slope's range, as in eval mode.

    Raises:
        ValueError: If it is in training mode, where it draws slopes.
    """
    if training:
        raise ValueError("rrelu has moments in eval mode only (training=False): in training it draws its slopes")
    return leaky_relu(mean, variance, (lower + upper) / 2)


@elementwise(F.prelu, torch.prelu, Tensor.prelu)
def prelu(mean: Tensor, variance: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Leaky ReLU of a learned slope, or of one for each channel (dimension 1).

    Args:
        mean: Means, [N, C, ...].
        variance: Variances.
        weight: Slopes, [1] or [C].
    """
    if mean.dim() > 2 and weight.numel() > 1:
        weight = weight.view(-1, *[1] * (mean.dim() - 2))
    return leaky_relu(mean, variance, weight)


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

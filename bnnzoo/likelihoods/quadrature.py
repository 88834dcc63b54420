"""Expectations over one Gaussian variable, elementwise."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bnnzoo.hermite import gauss_hermite

# E f(x) for x ~ N(m, s^2) is sum_i weight_i f(m + s node_i)
_HERMITE = gauss_hermite(32)
# The trapezoidal rule: Gauss-Hermite nodes are exact for polynomials, at the price of gaps between the nodes of the
# middle. Equidistant ones are better for functions with poles or steps, if they are where the integrand is.
_points = np.linspace(-7.5, 7.5, 64)
_mass = np.exp(-0.5 * _points**2)
_EQUIDISTANT = torch.from_numpy(_points), torch.from_numpy(_mass / _mass.sum())
_SCAN = torch.from_numpy(8.0 * np.sinh(np.linspace(-3.5, 3.5, 65)))


def expect(fn: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """E fn(x) for x ~ N(mean, variance), elementwise, by 32-point Gauss-Hermite quadrature."""
    nodes, weights = _rule(_HERMITE, mean)
    return fn(mean.unsqueeze(-1) + root(variance).unsqueeze(-1) * nodes) @ weights


def expect_power(
    fn: Callable[[Tensor], Tensor],
    mean: Tensor,
    variance: Tensor,
    power: float,
    tilt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`(1/power) log E exp(power · fn(x))` for x ~ N(mean, variance), elementwise, by quadrature where the mass is.

    Adaptive in the manner of Naylor and Smith (1982): a scan finds the peak of the integrand, a first pass about it the
    integrand's moments, and the 64 nodes of the second are laid for the Gaussian of these moments. Everything is kept
    as differences that shrink with the power, so that small powers do not cancel. Gradients take the nodes as fixed,
    on which the integral does not depend.

    Args:
        fn: Maps x, [..., nodes], to finite values of its shape, elementwise; what it closes over is [..., 1].
        mean: Means, [...].
        variance: Variances of the same shape, non-negative.
        power: A finite number, not 0.
        tilt: Where the first pass looks instead of scanning, which needs an integrand wider than a few hundredths of
            the standard deviation: (a, b) of the shape of the mean, for the mean `mean + power · a · std` and the
            variance `(1 + power · b) · variance`.
    """
    nodes, weights = _rule(_EQUIDISTANT, mean)
    std = root(variance)

    def values(shift: Tensor, spread: Tensor) -> Tensor:
        # x = mean + std z with z ~ N(0, 1), integrated as z ~ N(power · shift, 1 + power · spread): the log ratio of
        # these densities, divided by the power
        shift, spread = shift.unsqueeze(-1), spread.unsqueeze(-1)
        center, width = power * shift, (1.0 + power * spread).sqrt()
        ratio = torch.log1p(power * spread) / power - center * shift - (2.0 * shift * width + spread * nodes) * nodes
        return fn(mean.unsqueeze(-1) + std.unsqueeze(-1) * (center + width * nodes)) + 0.5 * ratio

    with torch.no_grad():
        if tilt is None:
            scan = _SCAN.to(device=mean.device, dtype=mean.dtype)
            height = power * fn(mean.unsqueeze(-1) + std.unsqueeze(-1) * scan) - 0.5 * scan.square()
            tilt = scan[height.argmax(-1)] / power, torch.zeros_like(mean)
        shift, spread = tilt
        first = values(shift, spread)
        # moments of the nodes under the integrand, less what they are under the weights (0 and 1), over the power
        about = weighted_power_mean(first, power, weights).unsqueeze(-1)
        excess = weights * torch.expm1(power * (first - about)) / power
        center = excess @ nodes
        width = (excess @ (nodes.square() - 1.0) - power * center.square()) * power
        width = width.clamp_min(-0.95) / power  # one node may hold all
        scale = 1.0 + power * spread
        shift, spread = shift + scale.sqrt() * center, spread + scale * width
    return weighted_power_mean(values(shift, spread), power, weights)


def weighted_power_mean(values: Tensor, power: float, weights: Tensor) -> Tensor:
    """`(1/power) log sum_i weights_i exp(power · values_i)` over the last dimension.

    `bnnzoo.power_mean` takes out the largest value; here that one may have next to no weight, and what is taken out is
    the mean itself, as good as logarithms of sums give it.
    """
    top = (values.amax(-1, keepdim=True) if power > 0 else values.amin(-1, keepdim=True)).detach()
    values = values - top
    about = (weights.log() + power * values).logsumexp(-1, keepdim=True).detach() / power
    about = torch.minimum(torch.maximum(about, values.amin(-1, keepdim=True)), values.amax(-1, keepdim=True)).detach()
    excess = (power * (values - about)).expm1() @ weights
    return (top + about).squeeze(-1) + excess.log1p() / power


def _rule(rule: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    nodes, weights = (values.to(device=like.device, dtype=like.dtype) for values in rule)
    return nodes, weights


def root(variance: Tensor) -> Tensor:
    """The standard deviation; never 0, where its gradient would blow up: 1e-4 at least in single precision."""
    return (variance + 0.1 * torch.finfo(variance.dtype).eps).sqrt()

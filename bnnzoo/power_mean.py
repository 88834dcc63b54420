"""Power means of probabilities, in log space."""

from __future__ import annotations

from torch import Tensor

#: Powers below are 0 and those above its inverse infinite, to any precision: single precision has no smaller products.
TINY = 1e-30


def log_power_mean(values: Tensor, power: float, dim: int = 0) -> Tensor:
    """The logarithm of a power mean, `(1/power) log mean exp(power · values)`; for power 0 its limit, the mean.

    Computed as `top + (1/power) log1p(mean expm1(power · (values - top)))`, with the `top` value whose exponential is
    the largest: nothing overflows, and small powers do not cancel, as they would in the logarithm of a mean that is
    nearly 1. With ε the precision of the numbers, rounding costs a few ε times the largest of `values`, and at most
    ε K / |power| more where `power · values` differ by more than 1. The derivatives are the weights
    `softmax(power · values)`; NaN where all values are -∞.

    Args:
        values: Logarithms of nonnegative numbers, [..., K, ...]; may be -∞.
        power: 0 for their geometric mean, 1 for the arithmetic one, ∞ (-∞) for the largest (least).
        dim: The dimension to average over, K ≥ 1 elements.

    Returns:
        The means, `values` without the dimension.
    """
    if values.shape[dim] == 1:
        return values.squeeze(dim)
    if abs(power) < TINY:
        return values.mean(dim)
    top = values.amax(dim) if power > 0 else values.amin(dim)
    if abs(power) > 1 / TINY:
        return top
    # The mean does not depend on what is taken out, which must be finite.
    top = top.detach().nan_to_num(0.0, 0.0, 0.0)
    return top + (power * (values - top.unsqueeze(dim))).expm1().mean(dim).log1p() / power

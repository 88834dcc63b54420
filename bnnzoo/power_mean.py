"""Power means of probabilities, in log space."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_power_mean(values: Tensor, power: float, dim: int = 0) -> Tensor:
    """The logarithm of a power mean, `(1/power) log mean exp(power · values)`; for power 0 its limit, the mean.

    Accurate for every power, small ones included, where the logarithm of a mean of exponentials would cancel: with the
    largest term taken out, the mean of the differences to it is above `1/K - 1`.

    Args:
        values: Logarithms of positive numbers, [..., K, ...].
        power: 0 for their geometric mean, 1 for the arithmetic one, ∞ (-∞) for the largest (least).
        dim: The dimension to average over, K ≥ 1 elements.
    """
    if values.shape[dim] == 1:
        return values.squeeze(dim)
    if power == 0:
        return values.mean(dim)
    top = values.amax(dim) if power > 0 else values.amin(dim)
    if math.isinf(power):
        return top
    top = top.detach()  # the mean does not depend on what is taken out
    return top + torch.expm1(power * (values - top.unsqueeze(dim))).mean(dim).log1p() / power

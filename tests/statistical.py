"""Comparisons of Monte Carlo estimates with exact values, at a stated probability of a false alarm."""

from statistics import NormalDist

import torch
from torch import Tensor

#: Probability that all comparisons of one test file together raise one false alarm.
FALSE_ALARM = 1e-6


def bound(comparisons: int) -> float:
    """Standard errors an estimate may be off (Bonferroni), and a tenth more: estimates are not quite normal."""
    return 1.1 * NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * comparisons))


def assert_mean(draws: Tensor, expected: Tensor, comparisons: int, what: str = "mean") -> None:
    """The mean of draws [S, ...] is `expected` [...], within standard errors estimated from them."""
    error = draws.mean(0) - expected
    standard_error = draws.std(0) / len(draws) ** 0.5
    _assert_within(error, standard_error, comparisons, what)


def assert_covariance(draws: Tensor, mean: Tensor, expected: Tensor, comparisons: int) -> None:
    """The covariance of draws [S, D] of known mean [D] is `expected` [D, D]."""
    centered = draws - mean
    centered[centered.abs() < 1e-30] = 0.0  # products of such numbers are denormal: slow
    products = centered.T @ centered / len(draws)
    variance = (centered.square().T @ centered.square() / len(draws) - products.square()).clamp_min(0)
    _assert_within(products - expected, (variance / len(draws)).sqrt(), comparisons, "covariance")


def assert_equal_means(a: Tensor, b: Tensor, comparisons: int, what: str = "means") -> None:
    """The draws [S, ...] and [T, ...] have one mean."""
    standard_error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    _assert_within(a.mean(0) - b.mean(0), standard_error, comparisons, what)


def _assert_within(error: Tensor, standard_error: Tensor, comparisons: int, what: str) -> None:
    # Where nothing is random the estimate must be exact up to rounding.
    z = error.abs() / (standard_error + 1e-12)
    z = torch.where(error.abs() < 1e-9, torch.zeros_like(z), z)
    worst = int(z.argmax())
    assert z.max() < bound(comparisons), (
        f"{what}: off by {error.flatten()[worst]:.4g}, {z.max():.1f} standard errors, at element {worst}"
    )

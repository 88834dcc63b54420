"""Piecewise polynomials: one mechanism, exact by truncated moments, for all of them."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from math import comb, isinf
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations.gaussian import beyond, inverse_scale, scale
from bnnzoo.moments.table import UnknownMomentsError, elementwise, spellings

Number = Tensor | float
Polynomial = Sequence[Number]
"""Coefficients, of x⁰ first."""


def piecewise(
    mean: Tensor, variance: Tensor, knots: Sequence[Number], pieces: Sequence[Polynomial]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a piecewise polynomial of a Gaussian variable.

    Exact for steps, straight and quadratic pieces; in float32 to 1e-6 of the piece's own spread. Seen from the mean,
    every knot changes the polynomial of the mean's own piece by one that counts beyond the knot only, so that all
    terms are tails, and what is far away counts nothing: no cancellation for small σ. For large σ, variances that are
    small against `(slope σ)²` lose digits: about 1e-6 (slope σ)² in float32.

    Args:
        mean: Means.
        variance: Variances ≥ 0.
        knots: c_1 < ... < c_K, numbers or tensors that broadcast with the mean.
        pieces: K + 1 polynomials, for `x ≤ c_1`, `c_1 < x ≤ c_2`, ..., `c_K < x`.
    """
    std, inverse = scale(variance), inverse_scale(variance)
    random = variance > 0
    own = [_at(mean, each) for each in pieces]
    value, places = own[0], [mean > knot for knot in knots]
    for place, each in zip(places, own[1:], strict=True):
        value = [torch.where(place, new, old) for new, old in zip(*_even(each, value), strict=True)]
    # of the polynomial that holds at the mean: it less its value there
    level, rest = value[0], [torch.zeros_like(mean), *value[1:]]
    shift, second = _gaussian(rest, variance), _gaussian(_product(rest, rest), variance)
    for knot, place, left, right in zip(knots, places, pieces[:-1], pieces[1:], strict=True):
        side = 1 - 2 * place.to(mean.dtype)  # where the knot is, seen from the mean
        before, after = _even(_at(knot, left), _at(knot, right))
        change = [b - a for a, b in zip(before, after, strict=True)]
        around = [a + b for a, b in zip(before, after, strict=True)]
        around[0] = around[0] - 2 * level
        squares = _product(change, around)
        tails = beyond(((knot - mean) * side * inverse).clamp_min(0.0), len(squares) - 1)
        step = torch.where(random, side, 0.0)  # a certain value is on one side of a knot for certain
        for n, moment in enumerate(tails):
            term = step * moment
            if n < len(change):
                shift = shift + term * change[n]
            second = second + term * squares[n]
            step = step * side * std
    return level + shift, (second - shift.square()).clamp_min(0.0)


def _at(x: Number, polynomial: Polynomial) -> list[Number]:
    """The polynomial's coefficients around x."""
    found: list[Number] = []
    for k in range(len(polynomial)):
        value: Number = 0.0
        for n in reversed(range(k, len(polynomial))):
            value = value * x + comb(n, k) * polynomial[n]
        found.append(value + 0 * x)
    return found


def _even(a: Sequence[Number], b: Sequence[Number]) -> tuple[list[Number], list[Number]]:
    """Two polynomials with as many coefficients each."""
    size = max(len(a), len(b))
    return [*a, *[0 * a[0]] * (size - len(a))], [*b, *[0 * b[0]] * (size - len(b))]


def _product(a: Sequence[Number], b: Sequence[Number]) -> list[Number]:
    return [
        builtins.sum(a[i] * b[n - i] for i in range(len(a)) if 0 <= n - i < len(b)) for n in range(len(a) + len(b) - 1)
    ]


def _gaussian(polynomial: Sequence[Number], variance: Tensor) -> Tensor:
    """The expectation of a polynomial of a Gaussian variable of mean 0."""
    total, power = 0 * variance, variance
    for n in range(2, len(polynomial), 2):
        total = total + polynomial[n] * power
        power = power * (n + 1) * variance
    return total


@elementwise(F.hardtanh)
def hardtanh(mean: Tensor, variance: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> tuple[Tensor, Tensor]:
    """`min(max(x, lowest), highest)`, exact, see `piecewise`."""
    return clamp(mean, variance, min_val, max_val)


@elementwise(*spellings("relu6"))
def relu6(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`min(max(x, 0), 6)`, exact, see `piecewise`."""
    return clamp(mean, variance, 0.0, 6.0)


@elementwise(*spellings("clamp", "clip"))
def clamp(
    mean: Tensor, variance: Tensor, min: Number | None = None, max: Number | None = None
) -> tuple[Tensor, Tensor]:
    """`x` between two bounds or from one on, exact, see `piecewise`.

    Args:
        mean: Means.
        variance: Variances.
        min: The lower bound, below the upper one, or None.
        max: The upper bound, or None.

    Raises:
        UnknownMomentsError: If there is no bound, or the lower one is above the upper one.
    """
    if min is None and max is None:
        raise UnknownMomentsError("clamp needs a lower bound, an upper one or both")
    if isinstance(min, Real) and isinstance(max, Real) and min > max:
        raise UnknownMomentsError(f"clamp needs a lower bound below the upper one, not min={min!r} and max={max!r}")
    low = [each for each in (min,) if each is not None and not _infinite(each)]
    high = [each for each in (max,) if each is not None and not _infinite(each)]
    return piecewise(mean, variance, low + high, [*([each] for each in low), [0.0, 1.0], *([each] for each in high)])


def _infinite(bound: Number) -> bool:
    return isinstance(bound, Real) and isinf(bound)


@elementwise(*spellings("clamp_min"))
def clamp_min(mean: Tensor, variance: Tensor, min: Number) -> tuple[Tensor, Tensor]:
    """`max(x, lowest)`, exact, see `piecewise`."""
    return clamp(mean, variance, min)


@elementwise(*spellings("clamp_max"))
def clamp_max(mean: Tensor, variance: Tensor, max: Number) -> tuple[Tensor, Tensor]:
    """`min(x, highest)`, exact, see `piecewise`."""
    return clamp(mean, variance, None, max)


@elementwise(*spellings("threshold", "_threshold"))
def threshold(mean: Tensor, variance: Tensor, threshold: float, value: float) -> tuple[Tensor, Tensor]:
    """`x` above the threshold, else the value; exact, see `piecewise`."""
    return piecewise(mean, variance, [threshold], [[value], [0.0, 1.0]])


@elementwise(*spellings("hardsigmoid"))
def hardsigmoid(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`min(max(x/6 + 1/2, 0), 1)`, exact, see `piecewise`."""
    return piecewise(mean, variance, [-3.0, 3.0], [[0.0], [0.5, 1 / 6], [1.0]])


@elementwise(*spellings("hardswish"))
def hardswish(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`x min(max(x/6 + 1/2, 0), 1)`, exact, see `piecewise`."""
    return piecewise(mean, variance, [-3.0, 3.0], [[0.0], [0.0, 0.5, 1 / 6], [0.0, 1.0]])


@elementwise(*spellings("softshrink"))
def softshrink(mean: Tensor, variance: Tensor, lambd: float = 0.5) -> tuple[Tensor, Tensor]:
    """`x - λ` above λ, `x + λ` below -λ, else 0; exact, see `piecewise`."""
    return piecewise(mean, variance, [-lambd, lambd], [[lambd, 1.0], [0.0], [-lambd, 1.0]])


@elementwise(*spellings("hardshrink"))
def hardshrink(mean: Tensor, variance: Tensor, lambd: float = 0.5) -> tuple[Tensor, Tensor]:
    """`x` where |x| > λ, else 0 (at -λ for certain: -λ); exact, see `piecewise`."""
    return piecewise(mean, variance, [-lambd, lambd], [[0.0, 1.0], [0.0], [0.0, 1.0]])

"""Sums, differences, products and averages. Two values are independent, unless they are the same object.

Products of views of one value, in which elements meet themselves, are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnnzoo.moments.fallbacks import fall_back
from bnnzoo.moments.origins import coincide, dependent
from bnnzoo.moments.table import affine, apply_affine, apply_elementwise, rearrangement, rule, spellings
from bnnzoo.moments.value import Moments, mean_of


def is_random(value: Any) -> bool:
    """Whether a value has a variance."""
    return isinstance(value, Moments) and not value.certain


def _weighted(a: Any, weight_a: float, b: Any, weight_b: float) -> Tensor:
    """Variance of `weight_a a + weight_b b`, up to broadcasting."""
    if a is b:
        return (weight_a + weight_b) ** 2 * a.variance
    parts = [w**2 * x.variance if w != 1 else x.variance for x, w in ((a, weight_a), (b, weight_b)) if is_random(x)]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


@affine(*spellings("add"))
def _add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted(input, 1, other, alpha)


@affine(*spellings("sub", "subtract"))
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted(input, 1, other, -alpha)


@affine(*spellings("rsub"), Tensor.__rsub__)
def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted(other, 1, input, -alpha)


@affine(*spellings("neg", "negative", "positive"))
def _neg(input: Moments) -> Tensor:
    return input.variance


def multiply(input: Any, other: Any) -> Any:
    """The product of a random value and a number, a tensor, an independent random value, or itself."""
    if input is other:
        return torch.square(input)
    if is_random(input) and is_random(other):
        if coincide(input.loc, other.loc):
            raise dependent("torch.mul")
        return apply_elementwise(product, input, other)
    return apply_affine(torch.mul, _scaled, input, other)


def product(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> tuple[Tensor, Tensor]:
    """`X₁X₂` of independents: `μ₁μ₂` and `σ₁²σ₂² + σ₁²μ₂² + μ₁²σ₂²` (Shekhovtsov & Flach 2018, eq. 8).

    Args:
        mean: μ₁.
        variance: σ₁².
        other_mean: μ₂, broadcastable with the first.
        other_variance: σ₂².
    """
    spread = variance * (other_variance + other_mean.square()) + mean.square() * other_variance
    return mean * other_mean, spread


def _scaled(input: Any, other: Any) -> Tensor:
    random, factor = (input, other) if is_random(input) else (other, input)
    return random.variance * mean_of(factor) ** 2


rule(*spellings("mul", "multiply"))(multiply)


@rule(*spellings("div", "divide", "true_divide"))
def divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """A quotient; one by a random value is the product with its reciprocal."""
    if rounding_mode is not None:
        return fall_back(torch.div, (input, other), {"rounding_mode": rounding_mode})
    if is_random(other):
        return torch.ones_like(input) if input is other else multiply(input, torch.reciprocal(other))
    return apply_affine(torch.div, _divided, input, other)


def _divided(input: Moments, other: Any) -> Tensor:
    return input.variance / mean_of(other) ** 2


@rule(Tensor.__rdiv__)
def _reciprocal_times(input: Moments, other: Any) -> Any:
    return divide(other, input)


@rule(*spellings("addcmul"))
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """`input + value tensor1 tensor2`."""
    both = torch.mul(tensor1, tensor2)
    return torch.add(input, both, alpha=value)


@rule(*spellings("addcdiv"))
def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """`input + value tensor1 / tensor2`."""
    return torch.add(input, torch.div(tensor1, tensor2), alpha=value)


@rule(*spellings("lerp"))
def _lerp(input: Any, end: Any, weight: Any) -> Any:
    """`(1 - weight) input + weight end`."""
    if is_random(weight):
        return fall_back(torch.lerp, (input, end, weight), {})
    return apply_affine(torch.lerp, _between, input, end, weight)


def _between(input: Any, end: Any, weight: Any) -> Tensor:
    weight = mean_of(weight)
    if input is end:
        return input.variance
    parts = [w**2 * x.variance for x, w in ((input, 1 - weight), (end, weight)) if is_random(x)]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


# Of sums of independents: the sums of their variances.
rearrangement(*spellings("sum", "nansum", "cumsum", "trace"))


def _averages(func: Callable, input: Moments, *args: Any, **kwargs: Any) -> Tensor:
    """Variance of averages of k independent elements: their average variance over k."""
    average = func(input.variance, *args, **kwargs)
    return average * (average.numel() / max(input.numel(), 1))


for _mean in spellings("mean"):
    affine(_mean)(partial(_averages, _mean))


@affine(*spellings("diff"))
def _differences(input: Moments, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """Variances of the nth differences, whose coefficients are binomial."""
    ends = [_border(input, prepend, dim), input.variance, _border(input, append, dim)]
    variance = torch.cat([each for each in ends if each is not None], dim)
    length = variance.shape[dim] - n
    if length <= 0:
        return variance.narrow(dim, 0, 0)
    row = [1]
    for k in range(n):
        row.append(row[-1] * (n - k) // (k + 1))
    parts = [coefficient**2 * variance.narrow(dim, k, length) for k, coefficient in enumerate(row)]
    return torch.stack(parts).sum(0)


def _border(input: Moments, value: Any, dim: int) -> Tensor | None:
    if value is None:
        return None
    shape = list(input.shape)
    shape[dim] = value.shape[dim]
    return (value.variance if isinstance(value, Moments) else torch.zeros_like(value)).expand(shape)

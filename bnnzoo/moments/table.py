"""The rules by which operations propagate moments: `RULES`, from a torch function to its rule.

A rule takes the function's own arguments, `Moments` among them, and returns moments. Three kinds cover everything, so
that one rule serves all ways to propagate (independent elements, sensitivities, full covariances):

- `affine`: the function is affine in its random arguments; the rule adds what becomes of the variances.
- `elementwise`: the rule is a function from a mean and a variance, of the first argument, to a mean and a variance.
- any other function: written in terms of operations on moments that have rules.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.value import Moments, family, random_values, substituted, variances

RULES: dict[Callable, Callable[..., Any]] = {}

#: Operations that are random themselves: they get their rule even where their arguments are certain.
RANDOM: set[Callable] = set()

#: Operations that read no values, only shapes: they are applied to the means.
PLAIN: set[Callable] = {
    torch.zeros_like,
    torch.ones_like,
    torch.full_like,
    torch.empty_like,
    Tensor.new_zeros,
    Tensor.new_ones,
    Tensor.new_full,
    Tensor.new_empty,
    Tensor.new_tensor,
}

#: Operations in place and those that do the same out of place: `torch.Tensor.add_` and `torch.Tensor.add`, ...
IN_PLACE: dict[Callable, Callable] = {
    getattr(place, name): getattr(place, name[:-1])
    for place in (torch, Tensor, F)
    for name in dir(place)
    if name.endswith("_")
    and not name.startswith("_")
    and name != "bernoulli_"  # its argument is the probability, that of `bernoulli` is self
    and callable(getattr(place, name[:-1], None))
}

_Rule = TypeVar("_Rule", bound=Callable[..., Any])


def rule(*functions: Callable, random: bool = False) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the rule of torch functions.

    Args:
        functions: The torch functions, methods too: `torch.relu, torch.Tensor.relu, ...`.
        random: Whether they are random themselves, as dropout is.
    """

    def register(function: _Rule) -> _Rule:
        for each in functions:
            RULES[each] = function
        if random:
            RANDOM.update(functions)
        return function

    return register


def spellings(*names: str) -> list[Callable]:
    """The functions of these names in `torch`, `torch.Tensor` and `torch.nn.functional`, wherever there are any."""
    places = (torch, Tensor, F)
    return [getattr(place, name) for name in names for place in places if callable(getattr(place, name, None))]


def apply_affine(func: Callable, variance: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Apply a function that is affine in its random arguments, see `Moments.affine`."""
    return family(args, kwargs).affine(func, variance, args, kwargs)


def apply_elementwise(moments: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kwargs: Any) -> Moments:
    """Apply an elementwise function by its moments, see `Moments.elementwise`."""
    return family(args).elementwise(moments, args, kwargs)


def affine(*functions: Callable) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the variances of torch functions that are affine in their random arguments.

    It takes the function's arguments, moments among them, and returns the result's variances.
    """

    def register(variance: _Rule) -> _Rule:
        for each in functions:
            RULES[each] = partial(apply_affine, each, variance)
        return variance

    return register


def elementwise(*functions: Callable) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the moments of torch functions that act on each element.

    It takes the function's arguments, a mean and a variance in place of the first one, and returns the result's mean
    and variance. Where another argument is random, or the rule raises `UnknownMomentsError`, the fallback is applied
    instead; for functions of two random arguments see `apply_elementwise`. `inplace` is not its concern.
    """

    def register(moments: _Rule) -> _Rule:
        for each in functions:
            RULES[each] = partial(_elementwise, moments, each)
        return moments

    return register


class UnknownMomentsError(ValueError):
    """Raised by elementwise rules for arguments of which they know no moments; says which they know."""


def _elementwise(moments: Callable[..., tuple[Tensor, Tensor]], func: Callable, *args: Any, **kw: Any) -> Any:
    if "input" in kw:  # torch's name of the first argument
        args = (kw.pop("input"), *args)
    args, kw = (args[0], *substituted(_settled, args[1:])), substituted(_settled, kw)
    reason = "it has moments for one random argument, the first, alone"
    if isinstance(args[0], Moments) and not random_values(args[1:], kw):
        try:
            return apply_elementwise(moments, *args, **kw)
        except UnknownMomentsError as error:
            reason = str(error)
    from bnnzoo.moments.fallbacks import fall_back

    return fall_back(func, args, kw, reason)


def _settled(value: Any) -> Any:
    return value.loc if isinstance(value, Moments) and value.certain else value


def rearrangement(*functions: Callable) -> None:
    """Give the rule of functions that move, copy or drop elements: the same is done to means and to variances."""
    for each in functions:
        affine(each)(partial(rearranged, each))


def rearranged(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """The variances of a function that moves, copies or drops elements."""
    return func(*variances(args), **variances(kwargs))

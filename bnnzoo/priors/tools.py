"""What the library needs to know of, and do to, any distribution."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import Distribution as TorchBase
from torch.distributions import constraints
from torch.distributions.transforms import Transform


def element_support(distribution: Any) -> Any:
    """The constraint that one element of a distribution's values satisfies; `None` if it declares none."""
    try:
        support = distribution.support
    except NotImplementedError:
        return None
    while hasattr(support, "base_constraint"):  # independent dimensions and mixtures wrap it
        support = support.base_constraint
    return support


def is_real(support: object) -> bool:
    """Whether a constraint is the whole real line."""
    return isinstance(support, type(constraints.real))


def check_parameters(distribution: Any, where: str) -> None:
    """Check the parameters of a distribution and of those nested in it, even while Pyro's validation is off.

    Args:
        distribution: Any distribution.
        where: Begins the message, such as `The prior of 'layers.0.weight'`.

    Raises:
        ValueError: A parameter violates its constraint; says which and what it is.
    """
    for name, constraint in getattr(distribution, "arg_constraints", {}).items():
        value = vars(distribution).get(name)
        if isinstance(value, Tensor) and not constraints.is_dependent(constraint) and not constraint.check(value).all():
            raise ValueError(f"{where} has {name} = {value}, which must satisfy {constraint}.")
    for nested in vars(distribution).values():
        if isinstance(nested, Distribution | TorchBase):
            check_parameters(nested, where)


def map_tensors(distribution: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """Copy a distribution with a function applied to every tensor it holds.

    Nested distributions (independent, expanded, masked, mixtures, transformed), transforms (those that are modules too)
    and lazily computed values are followed; a tensor held twice is mapped once; transforms forget their last call.
    Distributions are not modules, so this is how priors follow `.to(device)` and `.double()`: a module's `_apply` maps
    the distributions it holds.

    Args:
        distribution: Any distribution; it stays as it is.
        fn: Applied to tensors of every dtype, integer ones included, as `nn.Module._apply` does.

    Returns:
        The copy, of the same class and shape.
    """
    return _map(distribution, fn, {})


def _map(value: Any, fn: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = fn(value)
    elif isinstance(value, nn.Module):  # flows hold their parameters as modules do
        memo[id(value)] = _copied(value)._apply(fn)
    elif isinstance(value, Distribution | TorchBase | Transform):
        new = object.__new__(type(value))
        memo[id(value)] = new  # before the fields: a transform and its inverse hold each other
        for name, field in vars(value).items():
            if name == "_cached_x_y":
                field = (None, None)
            new.__dict__[name] = None if isinstance(field, weakref.ref) else _map(field, fn, memo)
    elif isinstance(value, dict):
        return type(value)((key, _map(item, fn, memo)) for key, item in value.items())
    elif type(value) in (list, tuple):  # not torch.Size
        return type(value)(_map(item, fn, memo) for item in value)
    else:
        return value
    return memo[id(value)]


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy without what flows remember of their last call, which may hang on a graph and so refuse to copy."""
    forgotten: dict[int, Any] = {}
    for part in module.modules():
        for name, field in vars(part).items():
            if name.startswith("_cached"):
                forgotten |= {id(each): None for each in (field if isinstance(field, tuple) else (field,))}
    return copy.deepcopy(module, forgotten)

"""Where a random value came from: weights, each of which may meet the data once, and views of the same memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnnzoo.moments.covariance import JointMoments
from bnnzoo.moments.sensitivity import TracedMoments
from bnnzoo.moments.value import Moments, NoRuleError, family, random_values, substituted
from bnnzoo.moments.watching import passing_unheard


@dataclass(eq=False)
class Origin:
    """The random weight that a value is, or is made of alone.

    Attributes:
        name: Its site.
        used: Means of the parts of it that have been used in this pass.
    """

    name: str
    used: list[Tensor] = field(default_factory=list)

    def use(self, part: Tensor) -> None:
        """Count one use of a part of the weight.

        Raises:
            NoRuleError: If some of its elements have been used before: both results would depend on them, and moments
                would take the results for independent.
        """
        if passing_unheard():
            return
        if any(overlap(part, each) for each in self.used):
            raise NoRuleError(
                f"the random weight {self.name!r} is used more than once in one pass (it is tied, its layer is called "
                "again, or it is reparametrized by an expression that has it twice), and what its uses have in common "
                "is lost to moments: train by draws (objectives.ELBO) and predict by them (method='draws')"
            )
        self.used.append(part)


def applied(apply: Callable[[Any, Any], Any], func: Callable, args: Any, kwargs: Any) -> Any:
    """Apply an operation to weights: count their use, and pass on what their result is made of.

    Operations that give a view of a weight do not use it.

    Args:
        apply: Applies the operation to its positional arguments and those by name.
        func: The operation.
        args: Its positional arguments, some of them with an `origin` or an `input_noise`.
        kwargs: Those by name.

    Raises:
        NoRuleError: If a weight is used again; or if covariances are asked for, and one with noise on its input units
            is not that of a layer.
    """
    from bnnzoo.moments.linear import LAYERS

    values = {id(each): each for each in random_values(args, kwargs)}
    weights = [each for each in values.values() if not each.certain and _is_weight(each)]
    layer = func in LAYERS
    consumed = (args[1] if len(args) > 1 else kwargs.get("weight")) if layer else None
    shared = [each for each in weights if each.shares_noise or (each.input_noise is not None and each is not consumed)]
    if shared and issubclass(family(args, kwargs), TracedMoments | JointMoments):
        raise NoRuleError(
            "the weights of an input unit share the noise of dropout, and covariances through "
            f"{getattr(func, '__name__', func)} have no rule for it: use covariance='diagonal', or give the weight to "
            "its layer as it is"
        )
    bare = {id(each): _bare(each, keep=each is consumed) for each in weights}
    result = apply(*(substituted(lambda each: bare.get(id(each), each), given) for given in (args, kwargs)))
    made = random_values(result) if weights and len(values) == len(weights) else []  # of weights alone
    origins = [each.origin for each in weights if each.origin is not None]
    views = len(weights) == 1 and any(same_memory(part.loc, weights[0].loc) for part in made)
    for part in made:
        if origins:
            part.origin = origins[0] if views else Origin(" and ".join(each.name for each in origins))
        if len(weights) == 1 and weights[0].input_noise is not None and _scales(func, args, kwargs):
            part.input_noise = weights[0].input_noise
        else:
            part.shares_noise = bool(shared)
    for each in () if views else weights:
        if each.origin is not None:
            each.origin.use(each.loc)
    return result


def _is_weight(value: Moments) -> bool:
    return value.origin is not None or value.input_noise is not None or value.shares_noise


def _bare(weight: Moments, keep: bool) -> Moments:
    """The weight for the inside of a rule, which may use it several times for one."""
    value = type(weight)(weight.loc, weight.variance)
    if keep:
        value.input_noise = weight.input_noise
    return value


def _scales(func: Callable, args: Any, kwargs: Any) -> bool:
    """Whether an operation multiplies its random argument by one number, so that its noise stays as it is."""
    others = [each for each in [*args, *kwargs.values()] if isinstance(each, Tensor) and not isinstance(each, Moments)]
    name = getattr(func, "__name__", "")
    return name in ("mul", "multiply", "__rmul__", "div", "neg", "clone") and not any(each.dim() for each in others)


def dependent(name: str) -> NoRuleError:
    """The error of a product of factors that have elements in common."""
    return NoRuleError(
        f"both factors of {name} are the same random value, or views of it that have elements in common, and moments "
        "have no rule for such a product: write it as an operation on one value twice (torch.einsum, torch.matmul; not "
        "on a view of it) and choose fallback='linearize', 'quadrature' or 'sample', or give it a rule by the "
        "decorators of bnnzoo.moments.table. Independent values of equal means need means of their own (clone)"
    )


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same memory, within `torch.func` too."""
    a, b = _unwrapped(a), _unwrapped(b)
    return a is b or bool(a.numel() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have an element in common, by its place in memory."""
    if not same_memory(a, b):
        return False
    a, b = _unwrapped(a), _unwrapped(b)
    if a is b:
        return True
    # places are marked on the CPU, so that no device has to be waited for
    marks = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool, device="cpu")
    marks.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(marks.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def coincide(a: Tensor, b: Tensor) -> bool:
    """Whether some element of two tensors is the same as the one that it meets in an elementwise operation."""
    if not same_memory(a, b):
        return False
    a, b = torch.broadcast_tensors(_places(_unwrapped(a)), _places(_unwrapped(b)))
    return bool((a == b).any())


def _places(x: Tensor) -> Tensor:
    """Where its elements are in memory."""
    place = torch.as_tensor(int(x.storage_offset()), device="cpu")
    for size, stride in zip(x.shape, x.stride(), strict=True):
        place = place.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return place


def _unwrapped(x: Tensor) -> Tensor:
    """What `torch.func` computes with."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x

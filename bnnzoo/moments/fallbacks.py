"""What operations without a rule do: raise, or be approximated as the user chooses (`bnnzoo.moments.options`).

- None: `NoRuleError`, which names the operation.
- `"linearize"`: the operation at the means, and the variances `Σ_i J_oi² σ_i²` with its exact Jacobian J there: first
  order in σ, right for any differentiable operation. It costs as many forward or backward passes of the operation as
  one example has inputs or outputs, whichever are fewer; where examples [N, ...] depend on each other, which is found
  out by about 2 log₂ N passes, N times that.
- `"quadrature"`: for operations that act on each element of one random argument, which is found out at the means by
  2 log₂ of its size passes: Gauss-Hermite quadrature of 32 nodes, each a pass. Exact for polynomials of degree 31,
  close for smooth functions; a kink costs about σ/100 of the mean.
- `"sample"`: mean and variance over 512 draws of the random arguments, each a pass: always the same 256 standard
  normal draws and their negatives, so that results repeat, and are smooth in means and variances. Relative standard
  errors: 9% of the variance; of the mean, 6% of σ for an even function, none for a linear one.

All of them take the elements of the arguments for independent, and are differentiable. Results that are no real
numbers (the indices beside sorted values) are those of the means. An operation of one's own, or
one whose closed form is known, gets a rule instead, in a line or two:

    >>> import torch
    >>> from bnnzoo.moments import Moments, table
    >>> @table.elementwise(torch.sinc)
    ... def sinc(mean, variance):
    ...     slope = torch.where(mean == 0, 0.0, (torch.cos(torch.pi * mean) - torch.sinc(mean)) / mean)
    ...     return torch.sinc(mean), slope.square() * variance
    >>> torch.sinc(Moments(torch.zeros(1), torch.ones(1))).loc
    tensor([1.])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from bnnzoo._vectorize import seeded
from bnnzoo.hermite import gauss_hermite
from bnnzoo.moments.table import RANDOM, apply_affine, apply_elementwise
from bnnzoo.moments.value import Moments, NoRuleError, current, family, mean_of, paired, random_values, substituted

NODES = 32
"""Of the quadrature."""

DRAWS = 512
"""Of the arguments, half of them negatives of the other half."""

#: Elements that the tangents of one chunk may have.
_BLOCK = 2**24

#: A function of the random arguments' values.
_Call = Callable[..., Any]


def fall_back(func: Callable, args: Any, kwargs: Any, reason: str = "") -> Any:
    """Apply an operation that has no rule, or none for these arguments, as the options say.

    Args:
        func: The operation.
        args: Its positional arguments, moments among them.
        kwargs: And those by name.
        reason: Why its rule does not hold for them, if it has one.

    Raises:
        NoRuleError: If there is no fallback, or it does not suit the operation.
    """
    name, fallback = _name(func), current().fallback
    if fallback is None:
        detail = f" ({reason})" if reason else ""
        raise NoRuleError(
            f"moments have no rule for the operation {name}{detail}: choose fallback='linearize', 'quadrature' or "
            "'sample' (bnnzoo.moments.fallbacks), replace the operation, or give it a rule by the decorators of "
            "bnnzoo.moments.table"
        )
    inputs = [value for value in random_values(args, kwargs) if not value.certain]
    inputs = list({id(value): value for value in inputs}.values())

    def call(*values: Tensor) -> Any:
        given = {id(value): new for value, new in zip(inputs, values, strict=True)}

        def put(value: Any) -> Any:
            return given.get(id(value), mean_of(value))

        return func(*substituted(put, args), **substituted(put, kwargs))

    if fallback == "sample":
        if family(args, kwargs) is not Moments:
            raise NoRuleError(
                f"fallback='sample' finds variances alone, no covariances, for the operation {name}: choose "
                "fallback='linearize'"
            )
        return _sampled(call, inputs)
    if func in RANDOM:
        raise NoRuleError(f"the operation {name} is random itself: fallback={fallback!r} cannot; choose 'sample'")
    result = call(*(value.loc for value in inputs))
    outputs = _outputs(name, result)
    if fallback == "linearize":
        return apply_affine(func, lambda *args, **kwargs: _linearized(call, inputs, result), *args, **kwargs)
    if len(inputs) != 1 or outputs[0] is not result or not _elementwise(call, inputs[0], outputs[0]):
        raise NoRuleError(
            f"fallback='quadrature' is for operations that act on each element of one random argument, and {name} does "
            "not: choose fallback='linearize' or 'sample'"
        )
    return apply_elementwise(lambda mean, variance: _quadrature(call, mean, variance), inputs[0])


def _name(func: Callable) -> str:
    """`Tensor.cumprod`, `torch.nn.functional.lp_pool2d`, ..."""
    owner, name = getattr(func, "__module__", None), getattr(func, "__qualname__", None) or repr(func)
    name = name.replace("TensorBase.", "Tensor.").replace("_VariableFunctionsClass.", "torch.")
    return f"{owner}.{name}" if owner and owner.startswith("torch.nn") else name


def _outputs(name: str, result: Any) -> list[Tensor]:
    """The tensors of a result, one or several."""
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    if not any(isinstance(each, Tensor) and each.is_floating_point() for each in outputs):
        raise NoRuleError(
            f"the operation {name} gives no real numbers for moments to be of: decisions and indices that depend on "
            "random values have no rule"
        )
    return outputs


# Linearization


def _linearized(call: _Call, inputs: Sequence[Moments], result: Any, index: int | None = None) -> Any:
    """The variances of a result, or of one of several; None where it is not real."""
    if isinstance(result, tuple | list):
        return [_linearized(call, inputs, each, index) for index, each in enumerate(result)]
    if not (isinstance(result, Tensor) and result.is_floating_point()):
        return None
    total = torch.zeros_like(result)
    for k, value in enumerate(inputs):
        total = total + _first_order(_alone(call, inputs, k, index), value, result)
    return total


def _alone(call: _Call, inputs: Sequence[Moments], k: int = 0, index: int | None = None) -> Callable[[Tensor], Tensor]:
    """The result, or one of several, as a function of one argument, the others at their means."""

    def function(x: Tensor) -> Tensor:
        result = call(*(x if j == k else value.loc for j, value in enumerate(inputs)))
        return result if index is None else result[index]

    return function


def _first_order(function: Callable[[Tensor], Tensor], value: Moments, output: Tensor) -> Tensor:
    """`Σ_i J_oi² σ_i²` for every element o of the output."""
    x = value.loc
    batch = _examples(function, x, output)
    ins, outs = x.numel() // batch, output.numel() // batch
    # one tangent, or cotangent, serves all examples at once: they do not depend on each other
    seeds_of, shape = (x, ins) if ins <= outs else (output, outs)
    basis = torch.eye(shape, dtype=x.dtype, device=x.device)
    chunk = max(1, _BLOCK // max(x.numel(), output.numel(), 1))
    total = torch.zeros_like(output).reshape(batch, outs)
    spread = value.variance.reshape(batch, ins)
    pull = None if ins <= outs else vjp(function, x)[1]
    for start in range(0, shape, chunk):
        rows = basis[start : start + chunk]
        seeds = rows.unsqueeze(1).expand(len(rows), batch, shape).reshape(len(rows), *seeds_of.shape)
        if pull is None:
            columns = vmap(lambda t: _along(function, x, t))(seeds).reshape(len(rows), batch, outs)
            total = total + torch.einsum("rbo,br->bo", columns.square(), spread[:, start : start + len(rows)])
        else:
            jacobian = vmap(lambda t: pull(t)[0])(seeds).reshape(len(rows), batch, ins)
            part = torch.einsum("rbi,bi->br", jacobian.square(), spread)
            total = torch.cat([total[:, :start], part, total[:, start + len(rows) :]], 1)
    return total.reshape(output.shape)


def _examples(function: Callable[[Tensor], Tensor], x: Tensor, output: Tensor) -> int:
    """The size N of the first dimension, if examples [N, ...] do not depend on each other, else 1."""
    if not (x.dim() and output.dim() and x.shape[0] == output.shape[0] > 1):
        return 1
    size = x.shape[0]

    def rows(marks: Tensor, like: Tensor) -> Tensor:
        return marks.view(size, *[1] * (like.dim() - 1))

    return size if _separate(function, x, output, size, rows) else 1


def _separate(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    output: Tensor,
    size: int,
    shaped: Callable[[Tensor, Tensor], Tensor],
) -> bool:
    """Whether part k of the output, of `size` parts, depends on part k of x alone.

    Two different numbers differ in some binary digit: for each digit, what changes where it is 1 must not reach where
    it is 0, nor the other way round.
    """
    numbers = torch.arange(size, device=x.device)
    # changes of no common measure, which do not cancel
    change = torch.cos(torch.arange(x.numel(), device=x.device, dtype=x.dtype)).view(x.shape)
    for digit in range((size - 1).bit_length()):
        ones = (numbers >> digit) & 1
        for marks in (ones, 1 - ones):
            moved = _along(function, x, change * shaped(marks.to(x.dtype), x))
            stray = moved * shaped((1 - marks).to(moved.dtype), moved)
            if _any(stray != 0):
                return False
    return True


def _along(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of a function along a tangent."""
    _load_forward_mode()
    return jvp(function, (x,), (tangent,))[1]


@cache
def _load_forward_mode() -> None:
    """Let torch load its forward differentiation: it calls a function then that it itself calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


def _any(flags: Tensor) -> bool:
    """Whether any is true, over all that `torch.func` maps over too."""
    # decisions about structure, the same for all that is mapped over
    while torch._C._functorch.is_functorch_wrapped_tensor(flags):
        flags = torch._C._functorch.get_unwrapped(flags)
    return bool(flags.any())


# Quadrature


def _elementwise(call: _Call, value: Moments, output: Tensor) -> bool:
    """Whether the operation acts on each element, as far as its derivatives at the means tell."""

    def flat(marks: Tensor, like: Tensor) -> Tensor:
        return marks.view(like.shape)

    x = value.loc
    return output.shape == x.shape and _separate(_alone(call, [value]), x, output, x.numel(), flat)


def _quadrature(call: _Call, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a function of Gaussians."""
    points, weights = (each.tolist() for each in gauss_hermite(NODES))
    std = _root(variance)
    values = [call(mean + point * std) for point in points]
    expected = sum((w * f for w, f in zip(weights, values, strict=True)), torch.zeros_like(values[0]))
    spread = sum((w * (f - expected).square() for w, f in zip(weights, values, strict=True)), torch.zeros_like(mean))
    return expected, spread


def _root(variance: Tensor) -> Tensor:
    """Its square root, with finite gradients at 0, and 0 there."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


# Sampling


def _sampled(call: _Call, inputs: Sequence[Moments]) -> Any:
    """Mean and variance over draws; what is not real is that of the means."""
    generator = np.random.default_rng(0)
    scales = [_root(value.variance) for value in inputs]
    with seeded(0, inputs[0].device if inputs else "cpu"):
        first = call(*(value.loc for value in inputs))
        outputs = _outputs("", first)
        real = [k for k, each in enumerate(outputs) if isinstance(each, Tensor) and each.is_floating_point()]
        # deviations from the first do not cancel
        sums, squares = ([torch.zeros_like(outputs[k]) for k in real] for _ in range(2))
        for _ in range(DRAWS // 2):
            # NumPy's, which vmap does not mind
            noise = [s * torch.as_tensor(generator.standard_normal(s.shape)).to(s) for s in scales]
            for sign in (1, -1):
                draw = _outputs("", call(*(value.loc + sign * z for value, z in zip(inputs, noise, strict=True))))
                deviations = [draw[k] - outputs[k] for k in real]
                sums = [total + each for total, each in zip(sums, deviations, strict=True)]
                squares = [total + each.square() for total, each in zip(squares, deviations, strict=True)]
    means: list[Any] = list(outputs)
    variances: list[Any] = [None] * len(outputs)
    for k, total, square in zip(real, sums, squares, strict=True):
        means[k] = outputs[k] + total / DRAWS
        variances[k] = (square / DRAWS - (total / DRAWS).square()).clamp_min(0.0)
    several = isinstance(first, tuple | list)
    return paired(type(first)(means), variances) if several else paired(means[0], variances[0])

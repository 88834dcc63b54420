"""Sums of products: matrix products and `einsum`, of certain and of random factors."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.arithmetic import is_random
from bnnzoo.moments.fallbacks import fall_back
from bnnzoo.moments.origins import dependent, overlap
from bnnzoo.moments.table import apply_affine, rule, spellings
from bnnzoo.moments.value import Moments, NoRuleError, current, family, mean_of


def contract(op: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """A contraction of independent factors, each output a sum of products of one element of each, all distinct.

    Mean and variance are those of a linear layer (Shekhovtsov & Flach 2018, eqs. 7 and 8): `op(μ_a, μ_b)` and
    `op(σ_a², μ_b²) + op(μ_a² + σ_a², σ_b²)`.

    Args:
        op: The operation, linear in each factor.
        a: The first factor, a tensor or moments.
        b: The second factor, at least one of them random.

    Raises:
        NoRuleError: If they have elements in common, and there is no fallback.
    """
    if is_random(a) and is_random(b) and overlap(a.loc, b.loc):
        if a is b and current().fallback is not None:
            return fall_back(op, (a, b), {})
        raise dependent("a matrix product or an einsum")
    way = family(a, b)
    if is_random(b) and type(b) is Moments is not way:  # its elements are independent noise to any way of propagating
        return contract(op, a, b.loc).plus_weight_noise(_weighted(op), a, b.variance, None)
    if is_random(a) and type(a) is Moments is not way:
        return contract(op, a.loc, b).plus_weight_noise(_weighted(lambda x, y: op(y, x)), b, a.variance, None)
    if not (is_random(a) or is_random(b)):
        return way(op(mean_of(a), mean_of(b)))
    if not is_random(b):
        return apply_affine(op, partial(_variance, op), a, mean_of(b))
    if not is_random(a):
        return apply_affine(op, partial(_variance, op), mean_of(a), b)
    if way is Moments:
        return contract(op, a, b.loc).plus_noise(op(a.second_moment, b.variance))
    both: Any = torch.add(contract(op, a, b.loc), contract(op, a.loc, torch.sub(b, b.loc)))
    return both.plus_noise(op(a.variance, b.variance))


def _variance(op: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Tensor:
    return op(a.variance, b.square()) if isinstance(a, Moments) else op(a.square(), b.variance)


def _weighted(op: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda input, weight, bias: op(input, weight)


def _matmul(op: Callable, input: Any, other: Any) -> Any:
    if type(other) is Moments and isinstance(input, Moments) and input.dim() == other.dim() == 2 and input is not other:
        return F.linear(input, other.t())  # every output has weights of its own
    return contract(op, input, other)


for _name in ("matmul", "mm", "bmm", "mv"):
    for _op in spellings(_name):
        rule(_op)(partial(_matmul, getattr(torch, _name)))
rule(Tensor.__rmatmul__)(lambda self, other: contract(torch.matmul, other, self))


@rule(*spellings("dot", "vdot"))
def _dot(input: Any, other: Any) -> Any:
    return torch.square(input).sum() if input is other else contract(torch.dot, input, other)


@rule(*spellings("outer", "ger"))
def _outer(input: Any, vec2: Any) -> Any:
    return contract(torch.outer, input, vec2)


@rule(*spellings("addmm", "addmv", "baddbmm"))
def _add_product(input: Any, factor: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """`beta input + alpha factor @ other`."""
    return torch.add(torch.mul(torch.matmul(factor, other), alpha), input, alpha=beta)


@rule(torch.tensordot)
def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    """By `einsum`."""
    if isinstance(dims, int):
        dims = (list(range(a.dim() - dims, a.dim())), list(range(dims)))
    over_a, over_b = ([int(d) for d in each] for each in dims)
    names = iter(string.ascii_letters)
    left = [next(names) for _ in range(a.dim())]
    right = [next(names) for _ in range(b.dim())]
    for i, j in zip(over_a, over_b, strict=True):
        right[j] = left[i]
    kept = [n for n in left if n not in right] + [n for n in right if n not in left]
    return torch.einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", a, b)


@rule(F.bilinear)
def _bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    """By `einsum`."""
    output = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return output if bias is None else torch.add(output, bias)


@rule(torch.einsum)
def _einsum(equation: str, *operands: Any) -> Any:
    """Sums of products of any number of factors.

    The certain factors count as one. One random factor, and two of them, are exact; of more, the first two are
    multiplied first, and the elements of the result count as independent.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, output = _parsed(equation, operands)
    way = family(operands)
    # what is certain gives the result its way of propagating, where all that is random are plain moments
    keep = way is not Moments and all(type(x) is Moments for x in operands if is_random(x))
    chosen = [is_random(x) or (keep and type(x) is way) for x in operands]
    every = list(zip(terms, operands, chosen, strict=True))
    random = [(term, x) for term, x, is_chosen in every if is_chosen]
    if any(overlap(a.loc, b.loc) for (_, a), (_, b) in combinations(random, 2) if is_random(a) and is_random(b)):
        if len({id(x) for _, x in random}) == 1 and current().fallback is not None:
            return fall_back(torch.einsum, (equation, *operands), {})
        raise dependent("torch.einsum")
    return _contracted(random, [(term, mean_of(x)) for term, x, is_chosen in every if not is_chosen], output)


_Factor = tuple[str, Any]  # an operand and its indices


def _contracted(random: list[_Factor], fixed: list[_Factor], output: str) -> Any:
    random = [_summed(factor, [*random[:k], *random[k + 1 :], *fixed], output) for k, factor in enumerate(random)]
    if len(random) > 2:
        (s, a), (t, b), *rest = random
        kept = _needed(s + t, [*rest, *fixed], output)
        return _contracted([(kept, _contracted([(s, a), (t, b)], [], kept)), *rest], fixed, output)
    if fixed:
        # one factor of the indices that the others have too
        kept = _needed("".join(term for term, _ in fixed), random, output)
        fixed = [(kept, _plain(fixed, kept))]
    if len(random) == 1:
        ((s, a),) = random
        return apply_affine(
            lambda x: _plain([(s, x), *fixed], output),
            lambda x: _plain([(s, x.variance), *_squared(fixed)], output),
            a,
        )
    (s, a), (t, b) = random
    if fixed and (type(a) is Moments) != (type(b) is Moments):
        raise NoRuleError(
            "covariances have no rule for an einsum of a random weight with three and more factors: multiply the "
            "others with the data first"
        )
    if not fixed:
        return contract(lambda x, y: _plain([(s, x), (t, y)], output), a, b)
    both: Any = torch.add(
        _contracted([(s, a)], [*fixed, (t, b.loc)], output),
        _contracted([(t, torch.sub(b, b.loc))], [*fixed, (s, a.loc)], output),
    )
    return both.plus_noise(_plain([(s, a.variance), (t, b.variance), *_squared(fixed)], output))


def _plain(factors: list[_Factor], output: str) -> Tensor:
    return torch.einsum(f"{','.join(term for term, _ in factors)}->{output}", *(x for _, x in factors))


def _squared(factors: list[_Factor]) -> list[_Factor]:
    return [(term, x.square()) for term, x in factors]


def _needed(term: str, others: list[_Factor], output: str) -> str:
    """The indices of a product that other factors or the output have, each once."""
    wanted = output + "".join(each for each, _ in others)
    return "".join(dict.fromkeys(name for name in term if name in wanted))


def _summed(factor: _Factor, others: list[_Factor], output: str) -> _Factor:
    """A random factor summed over the indices that it alone has."""
    term, x = factor
    kept = _needed(term, others, output)
    dims = [k for k, name in enumerate(term) if name not in kept]
    return kept, torch.sum(x, dims) if dims else x


def _parsed(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The indices of the operands and of the output, ellipses spelled out by letters of their own."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [name for name in string.ascii_letters if name not in left]
    extra = 0
    for k, (term, x) in enumerate(zip(terms, operands, strict=True)):
        if "..." in term:
            count = x.dim() - (len(term) - 3)
            extra = max(extra, count)
            terms[k] = term.replace("...", "".join(free[:count][::-1]))
    names = "".join(free[:extra][::-1])
    if arrow:
        output = output.replace("...", names)
    else:
        once = sorted(name for name in left if name.isalpha() and left.count(name) == 1)
        output = names + "".join(once)
    if any(len(set(term)) < len(term) for term in terms):
        raise NoRuleError(f"moments have no rule for an index that occurs twice in one operand: {equation!r}")
    return terms, output

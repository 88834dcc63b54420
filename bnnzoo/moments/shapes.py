"""Operations that move, copy, drop or choose elements: moments go where their elements go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.table import affine, apply_affine, rearranged, rearrangement, rule, spellings
from bnnzoo.moments.value import Moments, NoRuleError, family, mean_of, variance_of, variances

_NAMES = """
    reshape reshape_as view view_as flatten unflatten ravel squeeze unsqueeze atleast_1d atleast_2d atleast_3d
    permute transpose t adjoint movedim moveaxis swapaxes swapdims flip fliplr flipud roll rot90
    contiguous clone detach float double half bfloat16 cpu cuda
    expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile
    cat concat concatenate stack hstack vstack dstack column_stack block_diag
    chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind
    __getitem__ narrow select index_select gather take take_along_dim unfold fold
    diagonal diag diag_embed diagflat tril triu index_copy index_put masked_scatter select_scatter slice_scatter
    pixel_shuffle pixel_unshuffle channel_shuffle
"""

rearrangement(*spellings(*_NAMES.split()))
rearrangement(*(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data")))


def _cast(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Casts between real types; whole numbers would have other moments."""
    result = apply_affine(func, partial(rearranged, func), *args, **kwargs)
    if isinstance(result, Tensor) and not result.is_floating_point():
        raise NoRuleError(f"moments have no rule for a cast to {result.dtype}: rounded values have other variances")
    return result


for _func in spellings("to", "type", "type_as"):
    rule(_func)(partial(_cast, _func))


@rule(Tensor.__iter__)
def _rows(input: Moments) -> Any:
    """Iterate over the rows."""
    return iter(input.unbind(0))


@rule(F.embedding)
def _embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of a random table."""
    if isinstance(input, Moments) and not input.certain:
        raise NoRuleError("moments have no rule for an embedding of random indices")

    def rows(table: Tensor) -> Tensor:
        return F.embedding(mean_of(input), table, *args, **kwargs)

    if family(input, weight) is not type(weight) and not input.is_floating_point():
        # rows that an example has twice share their noise: those of a linear layer, which knows
        one_hot = (input.loc.unsqueeze(-1) == torch.arange(len(weight), device=weight.device)).to(weight.dtype)
        return F.linear(type(input)(one_hot), weight.t())
    return apply_affine(rows, lambda table: rows(table.variance), weight)


@affine(*spellings("pad"), torch.constant_pad_nd)
def _padded(input: Moments, pad: Any, mode: Any = "constant", value: Any = None) -> Tensor:
    """Variances between borders; constants have none."""
    return F.pad(input.variance, pad, mode if isinstance(mode, str) else "constant")


@affine(*spellings("masked_fill"))
def _masked_fill(input: Any, mask: Tensor, value: Any) -> Tensor:
    """Variances where nothing is filled in; those of the filling elsewhere."""
    return variance_of(input).masked_fill(mean_of(mask), _spread(value))


@affine(*spellings("index_fill"))
def _index_fill(input: Any, dim: int, index: Tensor, value: Any) -> Tensor:
    """Variances where nothing is filled in; those of the filling elsewhere."""
    return variance_of(input).index_fill(dim, mean_of(index), _spread(value))


@affine(torch.fill)
def _filled(input: Any, value: Any) -> Tensor:
    """Those of the filling."""
    return torch.fill(variance_of(input), _spread(value))


@affine(*spellings("index_add"))
def _index_add(input: Any, dim: int, index: Tensor, source: Any, *, alpha: float = 1) -> Tensor:
    """Variances of sums."""
    return variance_of(input).index_add(dim, mean_of(index), variance_of(source), alpha=alpha**2)


@affine(*spellings("scatter"))
def _scatter(input: Any, dim: int, index: Tensor, src: Any = None, *, value: float | None = None) -> Tensor:
    """Variances, overwritten where values are."""
    return variance_of(input).scatter(dim, mean_of(index), 0.0 if src is None else _spread(src))


@affine(*spellings("scatter_add"))
def _scatter_add(input: Any, dim: int, index: Tensor, src: Any) -> Tensor:
    """Variances of sums."""
    return variance_of(input).scatter_add(dim, mean_of(index), variance_of(src))


@affine(torch.where)
def _where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """Variances of what is chosen."""
    return torch.where(mean_of(condition), _spread(input), _spread(other))


@affine(Tensor.where)
def _self_where(self: Any, condition: Tensor, other: Any) -> Tensor:
    return _where(condition, self, other)


@rule(Tensor.__setitem__)
def _assign(self: Any, index: Any, value: Any) -> None:
    """Write elements in place: moments take the place of moments."""
    if not isinstance(self, Moments):
        raise NoRuleError(
            "moments cannot be written into a plain tensor: build it by torch.cat, torch.stack or torch.where"
        )

    def assigned(into: Tensor, value: Any) -> Tensor:
        result = into.clone()
        result[index] = value
        return result

    def spread(into: Any, value: Any) -> Tensor:
        return assigned(*variances((into, value if isinstance(value, Tensor) else 0.0)))

    self.become(apply_affine(assigned, spread, self, value))


def _spread(value: Any) -> Any:
    """The variance of a value, which may be a number."""
    return variance_of(value) if isinstance(value, Tensor) else 0.0

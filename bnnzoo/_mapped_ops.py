"""Operations that `torch.func.vmap` has no batching rule for, or a slow one, written with operations that have one.

Recurrent layers fail under vmap; attention, bilinear and weight-normalized layers fall back to a loop and a warning;
batch normalization at inference takes three passes over its input where one will do, half of a dense network's time.
`MAPPED_OPS` is what `bnnzoo._vectorize` answers them with. Random weights get one dense sample, as everywhere that no
rule is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from bnnzoo.rules import _densify

State = tuple[Tensor, ...]


def _affine(h: Tensor, weights: list[Tensor], biases: bool) -> Tensor:
    return F.linear(h, weights[1], weights[3] if biases else None)


def _lstm_cell(x: Tensor, state: State, weights: list[Tensor], biases: bool) -> State:
    h, c = state
    i, f, g, o = (x + _affine(h, weights, biases)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    projected = len(weights) == (5 if biases else 3)
    return (F.linear(h, weights[-1]) if projected else h), c


def _gru_cell(x: Tensor, state: State, weights: list[Tensor], biases: bool) -> State:
    (h,) = state
    reset_x, update_x, new_x = x.chunk(3, -1)
    reset_h, update_h, new_h = _affine(h, weights, biases).chunk(3, -1)
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    update = (update_x + update_h).sigmoid()
    return ((1 - update) * new + update * h,)


def _elman_cell(act: Callable, x: Tensor, state: State, weights: list[Tensor], biases: bool) -> State:
    return (act(x + _affine(state[0], weights, biases)),)


def _recurrent(cell: Callable[..., State], original: Callable, *args: Any) -> tuple[Tensor, ...]:
    """A stack of recurrent layers, with the arguments of torch's own `torch._VF.lstm`, `torch._VF.gru` and so on."""
    if not isinstance(args[3], bool):  # packed sequences have their batch sizes second, which shifts the rest
        return original(*args)
    input, hx, weights, biases, num_layers, dropout, train, bidirectional, batch_first = tree_map(_densify, args)
    states = hx if isinstance(hx, tuple | list) else (hx,)
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    steps = input.transpose(0, 1) if batch_first else input
    finals = []
    for layer in range(num_layers):
        outputs = []
        for backwards in range(directions):
            index = layer * directions + backwards
            own = weights[index * each : (index + 1) * each]
            state = tuple(part[index] for part in states)
            projected = F.linear(steps, own[0], own[2] if biases else None)
            hidden = []
            for x in projected.flip(0) if backwards else projected:
                state = cell(x, state, own, biases)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if backwards else hidden))
            finals.append(state)
        steps = torch.cat(outputs, -1)
        if dropout and train and layer < num_layers - 1:
            steps = F.dropout(steps, dropout)
    output = steps.transpose(0, 1) if batch_first else steps
    return output, *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _lone(cell: Callable[..., State], *args: Any) -> State:
    """One step of a recurrent cell, with the arguments of `torch._VF.gru_cell` and so on."""
    x, hx, *weights = tree_map(_densify, args)
    biases = len(weights) == 4 and weights[2] is not None
    state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    return cell(F.linear(x, weights[0], weights[2] if biases else None), state, weights[: 4 if biases else 2], biases)


def _bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = torch.einsum("...i,oij,...j->...o", a, weight, b)
    return output if bias is None else output + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    v, g = _densify(v), _densify(g)
    return v * (g / torch.linalg.vector_norm(v, dim=[i for i in range(v.dim()) if i != dim], keepdim=True))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    input, weight, bias = tree_map(_densify, (input, weight, bias))
    scale = (running_var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    channels = (-1, *[1] * (input.dim() - 2))
    return torch.addcmul(shift.view(channels), input, scale.view(channels))


def _by_products(attention: Callable, *args: Any, **kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return attention(*args, **kwargs)


#: What to call in place of an operation under vmap.
MAPPED_OPS: dict[Callable, Callable[..., Any]] = {
    torch._VF.lstm: partial(_recurrent, _lstm_cell, torch._VF.lstm),
    torch._VF.gru: partial(_recurrent, _gru_cell, torch._VF.gru),
    torch._VF.rnn_tanh: partial(_recurrent, partial(_elman_cell, torch.tanh), torch._VF.rnn_tanh),
    torch._VF.rnn_relu: partial(_recurrent, partial(_elman_cell, torch.relu), torch._VF.rnn_relu),
    torch._VF.lstm_cell: partial(_lone, _lstm_cell),
    torch._VF.rnn_tanh_cell: lambda *args: _lone(partial(_elman_cell, torch.tanh), *args)[0],
    torch._VF.rnn_relu_cell: lambda *args: _lone(partial(_elman_cell, torch.relu), *args)[0],
    torch._VF.gru_cell: lambda *args: _lone(_gru_cell, *args)[0],
    torch._weight_norm: _weight_norm,
    F.batch_norm: _batch_norm,
    F.bilinear: _bilinear,
    F.scaled_dot_product_attention: partial(_by_products, F.scaled_dot_product_attention),
    F.multi_head_attention_forward: partial(_by_products, F.multi_head_attention_forward),
}

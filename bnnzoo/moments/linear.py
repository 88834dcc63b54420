"""Linear layers and convolutions, of random or certain weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.arithmetic import is_random
from bnnzoo.moments.origins import dependent, overlap
from bnnzoo.moments.table import apply_affine, rule
from bnnzoo.moments.value import Moments, mean_of
from bnnzoo.rules import per_example


def _layer(
    op: Callable, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Moments:
    """The rule of a layer `op(input, weight, bias, ...)`.

    Of independent input and weights,

        mean  op(μ, μ_W, μ_b)     variance  op(σ², μ_W², 0) + op(μ² + σ², σ_W², σ_b²)

    (Shekhovtsov & Flach 2018, eqs. 7 and 8).

    Args:
        op: The operation.
        spatial: Number of spatial dimensions behind the channels; 0 for a linear layer, whose channels come last.
        input: [N, C, ...], or [..., C] for a linear layer; batch dimensions may be missing.
        weight: A tensor, or moments.
        bias: A tensor, moments, or None.
        args: Further arguments of the operation (stride, padding, ...).
        kwargs: The same by name.
    """
    x = input if isinstance(input, Moments) else Moments(input)
    if is_random(weight) and is_random(x) and overlap(x.loc, mean_of(weight)):
        raise dependent(op.__name__)
    noise = weight.input_noise if isinstance(weight, Moments) else None
    if noise is not None:
        x = x.times_noise(noise, per_example(x, spatial))
    mean, shift = mean_of(weight), mean_of(bias)
    if x.certain:
        output = type(x)(op(x.loc, mean, shift, *args, **kwargs))
    else:
        output = apply_affine(op, partial(_from_input, op, spatial), x, mean, shift, *args, **kwargs)
    bias_variance = bias.variance if isinstance(bias, Moments) and not bias.certain else None
    if isinstance(weight, Moments) and not weight.certain and noise is None:
        return output.plus_weight_noise(op, x, weight.variance, bias_variance, *args, **kwargs)
    if bias_variance is not None:
        shared = bias_variance.view(-1, *[1] * spatial)
        return output.plus_noise(shared, shared.shape)
    return output


def _from_input(
    op: Callable, spatial: int, input: Moments, weight: Tensor, bias: Any, *args: Any, **kwargs: Any
) -> Tensor:
    variance = input.variance
    batched = variance.dim() > spatial + 1 and len(variance) > 1
    if batched and variance.stride(0) == 0:  # one for all examples, as of noise of one variance: computed once
        shared = op(variance[:1], weight.square(), None, *args, **kwargs)
        return shared.expand(len(variance), *shared.shape[1:])
    return op(variance, weight.square(), None, *args, **kwargs)


LAYERS: dict[Callable, int] = {
    F.linear: 0,
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
for _op, _spatial in LAYERS.items():
    rule(_op)(partial(_layer, _op, _spatial))

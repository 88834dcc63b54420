"""Normalization: by running statistics, which are certain, and by those of each example, which are random.

Batch normalization in eval mode is affine. Layer, group, instance and RMS normalization divide by statistics of the
example itself: `(x - m) / s` over D elements. Their rule is the linear approximation around the means, with

    s² = E[sample variance] + ε = Var(μ) + (1 - 1/D) mean(σ²) + ε,    z = (μ - mean(μ)) / s,

    mean  z        variance  Σ_j (δ_ij - (1 + z_i z_j) / D)² σ_j² / s².

It is exact as σ² goes to 0; for any σ² what it neglects, how far the statistics stray from their expectation, is of
relative size 1/D in the mean and the variance. For RMS normalization `s² = mean(μ² + σ²) + ε`, and the 1 in
`1 + z_i z_j` is 0.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.arithmetic import is_random
from bnnzoo.moments.table import apply_affine, rule
from bnnzoo.moments.value import Moments, NoRuleError, mean_of


@rule(F.batch_norm, torch.batch_norm)
def _batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Running statistics make it affine; those of a batch depend on every example."""
    if training or running_mean is None or running_var is None:
        raise NoRuleError(
            "moments have no rule for batch normalization by the batch's own statistics, which training needs: use "
            "moments.MomentNorm, or train by draws (objectives.ELBO); elsewhere call .eval() on the network "
            "or the layer, so that it takes its running statistics (a layer with track_running_stats=False has none)"
        )
    scale = (running_var + eps).rsqrt()
    shift = -running_mean * scale
    if not is_random(weight):
        # all in one map
        scale = scale if weight is None else scale * weight
        shift = shift if weight is None else shift * weight
        weight = None
        if bias is not None and not is_random(bias):
            shift, bias = shift + bias, None
    channels = (-1, *[1] * (input.dim() - 2))
    scale, shift = mean_of(scale).view(channels), mean_of(shift).view(channels)
    if is_random(input):
        output = apply_affine(partial(torch.addcmul, shift), lambda x, scale: x.variance * scale.square(), input, scale)
    else:
        output = torch.add(torch.mul(input, scale), shift)
    return _affine(output, weight, bias, channels)


@rule(F.layer_norm, torch.layer_norm)
def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    dims = _trailing(normalized_shape)
    return _affine(_standardized(input, dims, eps), weight, bias)


@rule(F.rms_norm, torch.rms_norm)
def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_standardized(input, _trailing(normalized_shape), eps, centered=False), weight, None)


@rule(F.group_norm, torch.group_norm)
def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    groups = torch.reshape(input, (input.shape[0], num_groups, -1))
    output = torch.reshape(_standardized(groups, [-1], eps), input.shape)
    return _affine(output, weight, bias, (-1, *[1] * (input.dim() - 2)))


@rule(F.instance_norm, torch.instance_norm)
def _instance_norm(
    input: Any,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        raise NoRuleError(
            "moments have no rule for instance normalization that updates running statistics: call .eval() on the "
            "network or the layer"
        )
    output = _standardized(input, list(range(2 - input.dim(), 0)), eps)
    return _affine(output, weight, bias, (-1, *[1] * (input.dim() - 2)))


def _standardized(input: Any, dims: list[int], eps: float, centered: bool = True) -> Any:
    """The linear approximation of `(x - m) / s`, see above."""
    if not is_random(input):  # the statistics are certain, a weight is not
        centers = torch.mean(input, dims, keepdim=True) if centered else torch.zeros_like(input)
        deviation = torch.sub(input, centers)
        return torch.div(deviation, (torch.square(deviation).mean(dims, keepdim=True) + eps).sqrt())
    mean, variance = input.loc, input.variance
    size = math.prod(input.shape[d] for d in dims)
    deviation = mean - mean.mean(dims, keepdim=True) if centered else mean
    free = (size - 1) / size if centered else 1.0
    inverse = (deviation.square().mean(dims, keepdim=True) + free * variance.mean(dims, keepdim=True) + eps).rsqrt()
    z = deviation * inverse

    def linear(x: Tensor) -> Tensor:
        change = x - mean
        along = z * (z * change).mean(dims, keepdim=True)
        if centered:
            along = along + change.mean(dims, keepdim=True)
        return z + (change - along) * inverse

    def spread(x: Moments) -> Tensor:
        own = 1 + z.square() if centered else z.square()
        shared = z.square() * (z.square() * variance).mean(dims, keepdim=True)
        if centered:
            shared = shared + variance.mean(dims, keepdim=True) + 2 * z * (z * variance).mean(dims, keepdim=True)
        return (variance * (1 - 2 * own / size) + shared / size).clamp_min(0.0) * inverse.square()

    return apply_affine(linear, spread, input)


def _affine(output: Any, weight: Any, bias: Any, shape: Any = None) -> Any:
    """Times the weight, plus the bias, random ones too."""
    for op, value in ((torch.mul, weight), (torch.add, bias)):
        if value is not None:
            output = op(output, value if shape is None else torch.reshape(value, shape))
    return output


def _trailing(shape: Any) -> list[int]:
    return list(range(-len(shape), 0)) if isinstance(shape, tuple | list) else [-1]

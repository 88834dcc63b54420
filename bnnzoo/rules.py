"""Random weights that are not sampled yet, and the rules by which operations consume them.

`RandomWeight` is the value that flows into the network in place of a weight. It speaks torch's override protocol
(`__torch_function__`), so networks are neither rewritten nor told that they are Bayesian. `RULES` maps an operation to
the function that consumes random weights there; an operation that is not in the table gets one dense sample, the same
for every use in a pass.

On convolutions, and on linear layers applied along extra dimensions, `"local"` keeps the exact mean and variance of
every output but draws positions independently, as the papers do; `"flipout"` and `"dense"` keep the correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map


class Structured(Protocol):
    """What a distribution over a weight offers the rules.

    Attributes:
        name: Site name, for messages.
        loc: Mean of the weight given its multiplicative noise without that noise, in the weight's shape.
        sampling: The rule, see `bnnzoo.weights`.
    """

    name: str
    loc: Tensor
    sampling: str

    @property
    def variance(self) -> Tensor | None:
        """Variances given the multiplicative noise, in the weight's shape; None where there are none."""

    @property
    def scale(self) -> Tensor:
        """Square roots of the variances, in the weight's shape."""

    def rsample(self) -> Tensor:
        """A dense draw, reparameterized."""

    def scale_input(self, input: Tensor, spatial: int) -> Tensor:
        """The operation's input times the weight's multiplicative noise, if it has any on its inputs.

        Args:
            input: [N, C, ...], or [..., C] for a linear layer.
            spatial: Number of spatial dimensions behind the channels; 0 for a linear layer.
        """


class RandomWeight(torch.Tensor):
    """A weight that is not sampled yet: it looks like a tensor of the weight's shape and carries its distribution.

    The first operation to use it decides what happens: one with a rule in `RULES` applies the weight's sampling rule,
    any other one gets a dense sample, drawn once, and so do all later ones. Reading shape, dtype or device draws
    nothing.

    Raises:
        RuntimeError: When a weight consumed by a local or flipout rule is used again in the same pass: the second use
            would draw noise that disagrees with the first.
    """

    distribution: Structured
    _sample: Tensor | None
    _consumed: bool

    @staticmethod
    def __new__(cls, distribution: Structured) -> RandomWeight:  # noqa: D102
        loc = distribution.loc
        weight = torch.Tensor._make_wrapper_subclass(cls, loc.shape, dtype=loc.dtype, device=loc.device)
        weight.distribution = distribution
        weight._sample = None
        weight._consumed = False
        return weight

    def __init__(self, distribution: Structured) -> None: ...

    def dense(self) -> Tensor:
        """One sample of the weight, the same at every call."""
        if self._sample is None:
            self._sample = self.distribution.rsample()
        return self._sample

    def consume(self, structured: bool) -> Structured:
        """Record a use, and return the distribution."""
        if self._consumed:
            raise RuntimeError(
                f"weight {self.distribution.name!r} is used more than once in one forward pass, and sampling="
                f"{self.distribution.sampling!r} would draw different noise at each use; "
                f"give it dense samples: sampling={{{self.distribution.name!r}: 'dense', '*': "
                f"{self.distribution.sampling!r}}}"
            )
        self._consumed = structured
        return self.distribution

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply the operation's rule, or the operation itself to a dense sample."""
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is not None:
            return rule(*args, **kwargs)
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map(_densify, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Never reached through Python: operations are answered by `__torch_function__`."""
        raise NotImplementedError(f"{func} reached a random weight below torch's Python API")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"RandomWeight({self.distribution.name!r}, shape={tuple(self.shape)}, {self.distribution.sampling})"


METADATA = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_sparse",
        "is_quantized",
        "is_nested",
        "requires_grad",
        "is_cuda",
        "is_cpu",
    )
    if hasattr(getattr(torch.Tensor, name), "__get__")
) | {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_complex,
    torch.Tensor.stride,
    torch.Tensor.is_contiguous,
    torch.Tensor.get_device,
    torch.Tensor.__len__,
}


def _densify(value: Any) -> Any:
    if isinstance(value, RandomWeight):
        value.consume(structured=False)
        return value.dense()
    return value


def _if_drawn(value: Any) -> Any:
    """A weight's dense sample if some operation has drawn one already: later uses must agree with it."""
    return _densify(value) if isinstance(value, RandomWeight) and value._sample is not None else value


def _affine(
    op: Callable, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """The rules of an operation that is linear in its input and in its weight.

    Args:
        op: The operation, `op(input, weight, bias, ...)`.
        spatial: Number of spatial dimensions behind the channels; 0 for a linear layer, whose channels come last.
        input: [N, C, ...], or [..., C] for a linear layer; batch dimensions may be missing.
        weight: A tensor or a random weight.
        bias: A tensor, a random weight, or None.
        args: Further arguments of the operation (stride, padding, ...).
        kwargs: The same by name.
    """
    input, weight, bias = _densify(input), _if_drawn(weight), _if_drawn(bias)
    random = [value for value in (weight, bias) if isinstance(value, RandomWeight)]
    for value in random:
        value.consume(structured=True)
    if not random:
        return op(input, weight, bias, *args, **kwargs)
    if any(value.distribution.sampling == "flipout" for value in random):
        return _flipout(op, spatial, input, weight, bias, *args, **kwargs)
    mean = op(_scaled(weight, input, spatial), _loc(weight), _loc(bias), *args, **kwargs)
    weight_variance, bias_variance = _variance(weight), _variance(bias)
    if weight_variance is not None:
        variance = op(input * input, weight_variance, bias_variance, *args, **kwargs)
        if bias_variance is None:
            # A dead input has variance 0, where the square root has no derivative: clamping makes it 0 there. The noise
            # that is left must not be so small that its square is denormal: that makes the next layer ten times slower.
            variance = variance.clamp_min(torch.finfo(variance.dtype).eps * torch.finfo(variance.dtype).tiny ** 0.5)
    elif bias_variance is not None:
        variance = bias_variance.view(-1, *[1] * spatial)
    else:
        return mean
    return torch.addcmul(mean, variance.sqrt(), torch.randn_like(mean))


def _flipout(
    op: Callable, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    mean = op(_scaled(weight, input, spatial), _loc(weight), _loc(bias), *args, **kwargs)
    noise = op(input * _signs(input, spatial), _perturbation(weight), _perturbation(bias), *args, **kwargs)
    return torch.addcmul(mean, noise, _signs(mean, spatial))


def per_example(like: Tensor, spatial: int) -> list[int]:
    """Shape of noise that is drawn once an example and channel and broadcasts over every other dimension.

    Args:
        like: [N, C, ...], or [..., C] for a linear layer; [C, ...] or [C] for a single example.
        spatial: Number of spatial dimensions behind the channels; 0 for a linear layer.
    """
    if spatial:
        return [*like.shape[:-spatial], *[1] * spatial]
    if like.dim() > 1:
        return [like.shape[0], *[1] * (like.dim() - 2), like.shape[-1]]
    return [*like.shape]


def _signs(like: Tensor, spatial: int) -> Tensor:
    """Random signs, one an example and channel, broadcast over every other dimension."""
    return torch.randint(0, 2, per_example(like, spatial), dtype=like.dtype, device=like.device) * 2 - 1


def _loc(value: Tensor | None) -> Tensor | None:
    return value.distribution.loc if isinstance(value, RandomWeight) else value


def _variance(value: Tensor | None) -> Tensor | None:
    return value.distribution.variance if isinstance(value, RandomWeight) else None


def _scaled(weight: Tensor, input: Tensor, spatial: int) -> Tensor:
    return weight.distribution.scale_input(input, spatial) if isinstance(weight, RandomWeight) else input


def _perturbation(value: Tensor | None) -> Tensor | None:
    if isinstance(value, RandomWeight):
        return value.distribution.scale * torch.randn_like(value.distribution.loc)
    return None if value is None else torch.zeros_like(value)


#: How an operation consumes random weights. An operation that is missing here is given a dense sample.
RULES: dict[Callable, Callable[..., Tensor]] = {
    F.linear: partial(_affine, F.linear, 0),
    F.conv1d: partial(_affine, F.conv1d, 1),
    F.conv2d: partial(_affine, F.conv2d, 2),
    F.conv3d: partial(_affine, F.conv3d, 3),
    F.conv_transpose1d: partial(_affine, F.conv_transpose1d, 1),
    F.conv_transpose2d: partial(_affine, F.conv_transpose2d, 2),
    F.conv_transpose3d: partial(_affine, F.conv_transpose3d, 3),
}

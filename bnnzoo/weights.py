"""Structured random weights, and the rules by which operations consume them.

A guide need not hand the model a dense weight sample: a Gaussian weight knows its `loc` and `scale`, and the operation
that consumes it can apply a cheaper or less noisy exact rule:

============  ======================================================================================================
`"dense"`     one weight sample for the whole batch; any operation.
`"local"`     local reparameterization (Kingma, Salimans & Welling 2015, section 2.3): the pre-activation is sampled,
              `N(op(x, m), op(x², s²))`, independently for every output element; linear and (transposed) convolutions.
`"flipout"`   pseudo-independent weight noise for every example (Wen et al. 2018, eq. 4): one shared perturbation,
              multiplied by random signs per example, input and output channel; linear and (transposed) convolutions.
============  ======================================================================================================

`RandomWeight` is the value that flows into the network. It speaks torch's override protocol (`__torch_function__`), so
networks are neither rewritten nor told that they are Bayesian. `RULES` maps an operation to the function that consumes
random weights there; an operation that is not in the table gets one dense sample, the same for every use in a pass.

On convolutions, and on linear layers applied along extra dimensions, `"local"` keeps the exact mean and variance of
every output but draws positions independently, as the papers do; `"flipout"` and `"dense"` keep the correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl
from torch.utils._pytree import tree_map

from bnnzoo._types import Distribution

Sampling = Literal["dense", "local", "flipout"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)


class Layout:
    """The order and shapes of sites inside one flat vector.

    Attributes:
        names: Site names, in the order of the vector.
        shapes: The sites' shapes.
        sizes: The sites' numbers of elements.
        size: Length of the vector.
    """

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.names = tuple(shapes)
        self.shapes = tuple(torch.Size(shape) for shape in shapes.values())
        self.sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self.sizes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector [size], one a site, in the sites' shapes."""
        parts = zip(flat.split(self.sizes), self.shapes, strict=True)
        # A view of a vector as itself would still be a node of the graph.
        return [part if len(shape) == 1 else part.view(shape) for part, shape in parts]

    def join(self, values: dict[str, Tensor]) -> Tensor:
        """The flat vector [size] of the sites' values."""
        return torch.cat([values[name].reshape(-1) for name in self.names])


class Block:
    """A distribution over several sites at once, as one flat factorized distribution.

    Both a prior shared by many weights and a factorized guide are blocks; an objective that meets a guide's block and
    a prior's block over the same sites evaluates one KL divergence over the flat vector rather than one a site.

    Attributes:
        joint: Distribution with scalar events; its batch shape is () (the same for all elements) or [layout.size].
        layout: The sites.
    """

    def __init__(self, joint: Distribution, layout: Layout) -> None:
        self.joint = joint
        self.layout = layout

    def sites(self) -> Iterator[tuple[str, Distribution]]:
        """The distribution of each site, marked (`.block`) as a part of this block."""
        for index, (name, shape) in enumerate(zip(self.layout.names, self.layout.shapes, strict=True)):
            site = self._part(index, shape)
            site.block = self
            yield name, site

    def _part(self, index: int, shape: torch.Size) -> Distribution:
        if not self.joint.batch_shape:
            return self.joint.expand(shape).to_event(len(shape))
        arguments = {name: self.layout.split(getattr(self.joint, name))[index] for name in self.joint.arg_constraints}
        return type(self.joint)(**arguments).to_event(len(shape))


class FlatNormal(dist.Normal):
    """A factorized Gaussian that keeps the logarithm of its scale, so that its KL needs none.

    Args:
        loc: Means, [D].
        log_scale: Logarithms of the standard deviations, [D].
    """

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.loc = loc
        self.log_scale = log_scale
        TorchDistribution.__init__(self, loc.shape, validate_args=False)  # Normal's own would ask for the scale

    @cached_property
    def scale(self) -> Tensor:  # type: ignore[override]  # computed when asked for
        """Standard deviations, [D]."""
        return self.log_scale.exp()

    @cached_property
    def variance(self) -> Tensor:
        """Variances, [D]; local reparameterization and the KL need these alone."""
        return (2 * self.log_scale).exp()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> dist.Normal:
        """An ordinary `Normal`, expanded."""
        return dist.Normal(self.loc, self.scale).expand(torch.Size(batch_shape))


class ScalarNormal(dist.Normal):
    """One Gaussian for all elements of a block, as most priors are; it knows the constants of its KL as numbers.

    Args:
        loc: Mean, a scalar.
        scale: Standard deviation, a scalar.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.centered = loc.item() == 0.0
        self.half_precision = 0.5 / scale.item() ** 2
        self.log_scale = math.log(scale.item())

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> dist.Normal:
        """An ordinary `Normal`, expanded."""
        return dist.Normal(self.loc, self.scale).expand(torch.Size(batch_shape))


@register_kl(FlatNormal, dist.Normal)
def _kl_flat_normal(q: FlatNormal, p: dist.Normal) -> Tensor:
    squares = (q.loc - p.loc).square() + q.variance
    return (0.5 * squares / p.scale**2 - q.log_scale + p.scale.log() - 0.5).sum()


@register_kl(FlatNormal, ScalarNormal)
def _kl_flat_scalar_normal(q: FlatNormal, p: ScalarNormal) -> Tensor:
    # Summed before it is scaled, and the norm has the cheapest derivative: half the general form's passes over [D].
    deviation = q.loc if p.centered else q.loc - p.loc
    squares = torch.linalg.vector_norm(deviation).square() + q.variance.sum()
    return squares * p.half_precision - q.log_scale.sum() + (p.log_scale - 0.5) * q.loc.numel()


class NormalWeight(TorchDistribution):
    """An independent Gaussian over one weight tensor, `event_shape` its shape; a part of a `NormalBlock`.

    An ordinary reparameterized Pyro distribution. An objective that needs no joint draw of weights and outputs asks it
    for `structured()` instead of a sample.

    Args:
        name: Site name, for messages.
        loc: Means, any shape.
        block: The block the weight belongs to.
        index: Its position there.
        sampling: The rule by which operations consume the structured value.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch declares it so)
    has_rsample = True

    def __init__(self, name: str, loc: Tensor, block: NormalBlock, index: int, sampling: Sampling) -> None:
        self.name = name
        self.loc = loc
        self.block = block
        self.sampling = sampling
        self._index = index
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real, with the weight's dimensions as event dimensions."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def scale(self) -> Tensor:
        """Standard deviations, in the weight's shape."""
        return self.block.scales[self._index]

    @property
    def variance(self) -> Tensor:
        """Variances, in the weight's shape."""
        return self.block.variances[self._index]

    @property
    def mean(self) -> Tensor:
        """Means, in the weight's shape."""
        return self.loc

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws, [*sample_shape, *event_shape]."""
        noise = torch.randn((*sample_shape, *self.event_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def as_independent(self) -> dist.Independent:
        """The same distribution in torch's own terms."""
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of a weight, summed over its elements."""
        return self.as_independent().log_prob(value)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TorchDistribution:
        """Independent copies, as torch's own distribution."""
        return self.as_independent().expand(torch.Size(batch_shape))

    def structured(self) -> Tensor:
        """What a network consumes under the weight's sampling rule: a `RandomWeight`, or a sample if it is dense."""
        return self.rsample() if self.sampling == "dense" else RandomWeight(self)


@register_kl(NormalWeight, dist.Distribution)
def _kl_normal_weight(q: NormalWeight, p: Distribution) -> Tensor:
    return kl_divergence(q.as_independent(), p)


class NormalBlock(Block):
    """A factorized Gaussian over several weights.

    Args:
        loc: Means, [layout.size].
        log_scale: Logarithms of the standard deviations, [layout.size].
        layout: The sites.
        sampling: The sampling rule of each site, in the layout's order.
    """

    joint: FlatNormal

    def __init__(self, loc: Tensor, log_scale: Tensor, layout: Layout, sampling: Sequence[Sampling]) -> None:
        super().__init__(FlatNormal(loc, log_scale), layout)
        self.sampling = sampling
        self._locs = layout.split(loc)

    @cached_property
    def scales(self) -> list[Tensor]:
        """Standard deviations, one tensor a site."""
        return self.layout.split(self.joint.scale)

    @cached_property
    def variances(self) -> list[Tensor]:
        """Variances, one tensor a site."""
        return self.layout.split(self.joint.variance)

    def _part(self, index: int, shape: torch.Size) -> NormalWeight:
        return NormalWeight(self.layout.names[index], self._locs[index], self, index, self.sampling[index])


class DeltaBlock(Block):
    """A point over several weights.

    Args:
        loc: The point, [layout.size].
        layout: The sites.
    """

    def __init__(self, loc: Tensor, layout: Layout) -> None:
        super().__init__(dist.Delta(loc), layout)
        self._locs = layout.split(loc)

    def _part(self, index: int, shape: torch.Size) -> Distribution:
        return dist.Delta(self._locs[index], event_dim=len(shape))


class RandomWeight(torch.Tensor):
    """A weight that is not sampled yet: it looks like a tensor of the weight's shape and carries its distribution.

    The first operation to use it decides what happens: one with a rule in `RULES` applies the weight's sampling rule,
    any other one gets a dense sample, drawn once, and so do all later ones. Reading shape, dtype or device draws
    nothing.

    Raises:
        RuntimeError: When a weight consumed by a local or flipout rule is used again in the same pass: the second use
            would draw noise that disagrees with the first.
    """

    distribution: NormalWeight
    _sample: Tensor | None
    _consumed: bool

    @staticmethod
    def __new__(cls, distribution: NormalWeight) -> RandomWeight:  # noqa: D102
        loc = distribution.loc
        weight = torch.Tensor._make_wrapper_subclass(cls, loc.shape, dtype=loc.dtype, device=loc.device)
        weight.distribution = distribution
        weight._sample = None
        weight._consumed = False
        return weight

    def __init__(self, distribution: NormalWeight) -> None: ...

    def dense(self) -> Tensor:
        """One sample of the weight, the same at every call."""
        if self._sample is None:
            self._sample = self.distribution.rsample()
        return self._sample

    def consume(self, structured: bool) -> NormalWeight:
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
        if func in _METADATA:
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


_METADATA = frozenset(
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
    mean = op(input, _loc(weight), _loc(bias), *args, **kwargs)
    if isinstance(weight, RandomWeight):
        squared_bias = bias.distribution.variance if isinstance(bias, RandomWeight) else None
        variance = op(input * input, weight.distribution.variance, squared_bias, *args, **kwargs)
        if squared_bias is None:
            # A dead input has variance 0, where the square root has no derivative: clamping makes it 0 there. The noise
            # that is left must not be so small that its square is denormal: that makes the next layer ten times slower.
            variance = variance.clamp_min(torch.finfo(variance.dtype).eps * torch.finfo(variance.dtype).tiny ** 0.5)
    else:
        variance = bias.distribution.variance.view(-1, *[1] * spatial)  # type: ignore[union-attr]
    return torch.addcmul(mean, variance.sqrt(), torch.randn_like(mean))


def _flipout(
    op: Callable, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    mean = op(input, _loc(weight), _loc(bias), *args, **kwargs)
    noise = op(input * _signs(input, spatial), _perturbation(weight), _perturbation(bias), *args, **kwargs)
    return torch.addcmul(mean, noise, _signs(mean, spatial))


def _signs(like: Tensor, spatial: int) -> Tensor:
    """Random signs, one an example and channel, broadcast over every other dimension."""
    if spatial:
        shape = [*like.shape[:-spatial], *[1] * spatial]
    elif like.dim() > 1:
        shape = [like.shape[0], *[1] * (like.dim() - 2), like.shape[-1]]
    else:
        shape = [*like.shape]
    return torch.randint(0, 2, shape, dtype=like.dtype, device=like.device) * 2 - 1


def _loc(value: Tensor | None) -> Tensor | None:
    return value.distribution.loc if isinstance(value, RandomWeight) else value


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

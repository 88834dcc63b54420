"""Distributions of weights: flat blocks that guides and priors share, and weights that know how they are distributed.

A guide need not hand the model a dense weight sample: a Gaussian weight knows its `loc` and `scale`, and the operation
that consumes it can apply a cheaper or less noisy exact rule (`bnnzoo.rules`):

============  ======================================================================================================
`"dense"`     one weight sample for the whole batch; any operation.
`"local"`     local reparameterization (Kingma, Salimans & Welling 2015, section 2.3): the pre-activation is sampled,
              `N(op(x, m), op(x², s²))`, independently for every output element; linear and (transposed) convolutions.
`"flipout"`   pseudo-independent weight noise for every example (Wen et al. 2018, eq. 4): one shared perturbation,
              multiplied by random signs per example, input and output channel; linear and (transposed) convolutions.
============  ======================================================================================================

Multiplicative noise on the inputs of a weight (dropout, multiplicative flows) goes with any of them: the rule
multiplies the operation's input by it, `scale_input`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from bnnzoo._types import Distribution
from bnnzoo.moments import Moments
from bnnzoo.rules import RandomWeight

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

    def scale_input(self, input: Tensor, spatial: int) -> Tensor:
        """The input as it is: no multiplicative noise."""
        return input

    def moments(self) -> Moments:
        """Means and variances, for a pass without draws."""
        return Moments(self.loc, self.variance)

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

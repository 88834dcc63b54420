"""`PrunedMeanField`: a factorized Gaussian some of whose weights are fixed at 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from bnnzoo._types import Distribution
from bnnzoo.guides.mean_field import MeanField
from bnnzoo.network import BayesianNetwork
from bnnzoo.weights import Layout, NormalBlock, NormalWeight, Sampling


class PrunedMeanField(MeanField):
    """A `MeanField` some of whose weights are fixed at 0: what `Posterior.prune` makes.

    A pruned weight is 0 in every draw and has no density: `log_prob` counts those that are kept, and so do KL
    divergences, as if the others were no random weights of the model. Training goes on with those that are kept.

    Args:
        bnn: The model.
        init_scale: As of `MeanField`.
        sampling: As of `MeanField`.

    Attributes:
        kept: Whether each element of `layout` is random, a buffer [layout.size]; all are until it is written to.

    Raises:
        ValueError: As of `MeanField`.
    """

    bounds_evidence: ClassVar[bool] = False

    kept: Tensor

    def __init__(
        self, bnn: BayesianNetwork, init_scale: float = 0.1, sampling: Sampling | dict[Any, Sampling] = "local"
    ) -> None:
        super().__init__(bnn, init_scale, sampling)
        self.register_buffer("kept", torch.ones_like(self.loc, dtype=torch.bool))

    def _block(self, index: int, loc: Tensor, log_scale: Tensor) -> PrunedBlock:
        kept = self.split_blocks(self.kept)[0][index]
        return PrunedBlock(loc, log_scale, kept, self._blocks[index], self._samplings[index])


class PrunedNormal(TorchDistribution):
    """Independent Gaussians, some of them replaced by a point at 0.

    Args:
        loc: Means, any shape.
        log_scale: Logarithms of the standard deviations, same shape.
        kept: False where there is a point at 0, same shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch declares it so)
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, kept: Tensor) -> None:
        self.loc = loc * kept
        self.log_scale = log_scale
        self.kept = kept
        super().__init__(loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means, 0 where pruned."""
        return self.loc

    @cached_property
    def scale(self) -> Tensor:
        """Standard deviations, 0 where pruned."""
        return self.log_scale.exp() * self.kept

    @cached_property
    def variance(self) -> Tensor:
        """Variances; as good as 0 where pruned, but positive: local reparameterization divides by their roots."""
        limits = torch.finfo(self.log_scale.dtype)
        return torch.where(self.kept, (2 * self.log_scale).exp(), limits.eps * limits.tiny**0.5)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws, [*sample_shape, *batch_shape]."""
        noise = torch.randn((*sample_shape, *self.batch_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of what is kept; of a pruned element 0 at 0 and -inf elsewhere."""
        point = torch.where(value == 0, 0.0, -torch.inf)
        return torch.where(self.kept, self.whole.log_prob(value), point)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PrunedNormal:
        """Independent copies."""
        shape = torch.Size(batch_shape)
        return PrunedNormal(self.loc.expand(shape), self.log_scale.expand(shape), self.kept.expand(shape))

    @property
    def whole(self) -> dist.Normal:
        """The Gaussians, those behind pruned elements too."""
        return dist.Normal(self.loc, self.log_scale.exp())


@register_kl(PrunedNormal, dist.Distribution)
def _kl_pruned_normal(q: PrunedNormal, p: Distribution) -> Tensor:
    return torch.where(q.kept, kl_divergence(q.whole, p), 0.0)


class PrunedBlock(NormalBlock):
    """A `NormalBlock` some of whose elements are points at 0.

    Args:
        loc: Means, [layout.size].
        log_scale: Logarithms of the standard deviations, [layout.size].
        kept: False where there is a point at 0, [layout.size].
        layout: The sites.
        sampling: The sampling rule of each site, in the layout's order.
    """

    joint: PrunedNormal  # no FlatNormal, whose divergences sum over all elements

    def __init__(
        self, loc: Tensor, log_scale: Tensor, kept: Tensor, layout: Layout, sampling: Sequence[Sampling]
    ) -> None:
        joint = PrunedNormal(loc, log_scale, kept)
        super().__init__(joint.loc, log_scale, layout, sampling)
        self.joint = joint

    def part(self, index: int) -> PrunedNormal:
        """The elements of one site, in its shape."""
        joint = self.joint
        loc, log_scale, kept = (self.layout.split(flat)[index] for flat in (joint.loc, joint.log_scale, joint.kept))
        return PrunedNormal(loc, log_scale, kept)

    def _part(self, index: int, shape: torch.Size) -> PrunedWeight:
        return PrunedWeight(self.layout.names[index], self._locs[index], self, index, self.sampling[index])


class PrunedWeight(NormalWeight):
    """A `NormalWeight` some of whose elements are points at 0; a part of a `PrunedBlock`."""

    block: PrunedBlock

    def as_independent(self) -> dist.Independent:
        """The same distribution over independent elements."""
        return self.block.part(self._index).to_event(len(self.event_shape))

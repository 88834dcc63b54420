"""The distributions of `guides.MNF`: of z0, and Gaussian weights `q(W | z)` whose means a vector multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from bnnzoo._types import Distribution
from bnnzoo.moments import Moments, NoMomentsError
from bnnzoo.weights import FlatNormal, Layout, NormalBlock, NormalWeight, Sampling, ScalarNormal


@dataclass(frozen=True)
class Factors:
    """Which elements of a weight a mixing vector z multiplies.

    Attributes:
        name: The weight's site.
        dim: Dimension of the weight that z runs along: inputs of a linear layer, output filters of a convolution.
        size: Length D of z.
        per_row: Whether structured draws have one z for each row of the batch.
    """

    name: str
    dim: int
    size: int
    per_row: bool

    def align(self, z: Tensor, weight: Tensor) -> Tensor:
        """The vector z [D] in a shape that multiplies the weight."""
        return z.view(-1, *[1] * (weight.dim() - self.dim - 1))

    def columns(self, weight: Tensor) -> Tensor:
        """The weight as a matrix [K, D] whose columns z multiplies."""
        if weight.dim() == 2:  # of a linear layer: it is that matrix
            return weight
        return weight.movedim(self.dim, -1).reshape(-1, self.size)


class Mixing(TorchDistribution):
    """The factorized Gaussian of z0, whose structured draw has one vector for each row of a batch.

    The density of its own last draw is computed from the noise that made it, which costs less.

    Args:
        loc: Means, [D].
        log_scale: Logarithms of the standard deviations, [D].
        rows: Number B of rows; None for one vector in structured draws too.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch declares it so)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, rows: int | None = None) -> None:
        self.loc = loc
        self.log_scale = log_scale
        self.rows = rows
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws, [*sample_shape, D]."""
        noise = torch.randn((*sample_shape, *self.event_shape), dtype=self.loc.dtype, device=self.loc.device)
        value = torch.addcmul(self.loc, self.log_scale.exp(), noise)
        self._drawn = value, noise
        return value

    def structured(self) -> Tensor:
        """One draw for each row, [B, D]; or one, [D]."""
        return self.rsample(() if self.rows is None else (self.rows,))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of vectors [..., D]."""
        known = self._drawn is not None and self._drawn[0] is value
        noise = self._drawn[1] if known and self._drawn else (value - self.loc) * (-self.log_scale).exp()
        constant = 0.5 * math.log(2 * math.pi) * self.loc.numel()
        return -0.5 * noise.square().sum(-1) - (self.log_scale.sum() + constant)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TorchDistribution:
        """Independent copies, as torch's own distribution."""
        normal = dist.Normal(self.loc, self.log_scale.exp())
        return normal.expand(torch.Size(batch_shape) + self.event_shape).to_event(1)


class MultiplicativeWeight(NormalWeight):
    """One weight tensor given its mixing vector, `N(z ⊙ loc, scale²)` (Louizos & Welling 2017, eqs. 4 and 5).

    z does not touch the scale. In a structured draw each row of the batch may have its own z, which operations multiply
    their input by (linear layers); where one weight must do for all rows, it is that of the first z.

    Args:
        name: Site name.
        loc: Means before the multiplication, any shape.
        block: The block the weight belongs to.
        index: Its position there.
        sampling: The rule by which operations consume the structured value.
        factors: What z multiplies.
        z: [D], or [B, D] for one a row.
    """

    block: MultiplicativeBlock

    def __init__(
        self,
        name: str,
        loc: Tensor,
        block: MultiplicativeBlock,
        index: int,
        sampling: Sampling,
        factors: Factors,
        z: Tensor,
    ) -> None:
        self.factors = factors
        self.raw = loc
        self.z = z
        super().__init__(name, loc if z.dim() == 2 else factors.align(z, loc) * loc, block, index, sampling)

    @cached_property
    def mean(self) -> Tensor:  # computed when asked for
        """Means given (the first) z, in the weight's shape."""
        return self.factors.align(self.z[0], self.raw) * self.raw if self.z.dim() == 2 else self.loc

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws given (the first) z, [*sample_shape, *event_shape]."""
        noise = torch.randn((*sample_shape, *self.event_shape), dtype=self.raw.dtype, device=self.raw.device)
        return torch.addcmul(self.mean, self.scale, noise)

    def as_independent(self) -> dist.Independent:
        """The same distribution, given (the first) z, in torch's own terms."""
        return dist.Normal(self.mean, self.scale).to_event(len(self.event_shape))

    def moments(self) -> Moments:
        """Refused: the flow's noise has no moments in closed form.

        Raises:
            NoMomentsError: Always.
        """
        raise NoMomentsError(
            f"site {self.name!r} is a {type(self).__name__}: what a flow does to its weights has no mean and variance "
            "in closed form (give it draws: objectives.ELBO, and no MomentNorm, or sampling='dense')"
        )

    def scale_input(self, input: Tensor, spatial: int) -> Tensor:
        """The input times z, each row its own; the first z for all if the input's first dimension is not the batch."""
        if self.z.dim() == 1:  # in the means already
            return input
        if input.dim() > 1 and input.shape[0] == len(self.z):
            return input * self.z.view(len(self.z), *[1] * (input.dim() - 2), -1)
        return input * self.z[0]

    def project(self, c: Tensor) -> Tensor:
        """`cᵀW` drawn given z without drawing W, [K], or [B, K] for one z a row.

        Args:
            c: [D].
        """
        mean = F.linear(self.z * c, self.factors.columns(self.raw))
        variance = self.factors.columns(self.variance) @ c.square()
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)  # c may be 0, where the root has no derivative
        return torch.addcmul(mean, variance.sqrt(), torch.randn_like(mean))

    @property
    def unclipped(self) -> dist.Independent:
        """The distribution given (the first) z without the bound on its scale."""
        log_scale = self.block.layout.split(self.block.joint.log_scale)[self._index]
        return dist.Normal(self.mean, log_scale.exp()).to_event(len(self.event_shape))


class FlatMultiplicative(FlatNormal):
    """All weights of a `MultiplicativeBlock` as one flat Gaussian, given (the first) z, for KL divergences.

    From a normal prior the registered divergence is the mean over the rows' z. Scales are without the bound.

    Args:
        raw: Means before the multiplication, [size].
        log_scale: Logarithms of the standard deviations, [size].
        parts: The weights in their order.
    """

    def __init__(self, raw: Tensor, log_scale: Tensor, parts: Sequence[NormalWeight]) -> None:
        self.log_scale = log_scale
        self.parts = parts
        TorchDistribution.__init__(self, raw.shape, validate_args=False)

    @cached_property
    def loc(self) -> Tensor:  # type: ignore[override]  # computed when asked for
        """Means given (the first) z, [size]."""
        return torch.cat([part.mean.reshape(-1) for part in self.parts])

    @cached_property
    def row_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over the rows of the weights' means, [size] each."""
        means, variances = [], []
        for part in self.parts:
            if isinstance(part, MultiplicativeWeight) and part.z.dim() == 2:
                variance, mean = torch.var_mean(part.z, 0, correction=0)
                means.append(part.factors.align(mean, part.raw) * part.raw)
                variances.append(part.factors.align(variance, part.raw) * part.raw.square())
            else:
                means.append(part.mean)
                variances.append(torch.zeros_like(part.mean))
        return torch.cat([m.reshape(-1) for m in means]), torch.cat([v.reshape(-1) for v in variances])

    def sum_of_squares(self) -> Tensor:
        """Sum of the weights' squared means, averaged over the rows, a scalar."""
        squares = []
        for part in self.parts:
            if isinstance(part, MultiplicativeWeight):
                # (Σ_i z_i² Σ_j μ_ij²): the sums of squares by column are all that meets z.
                z2 = part.z.square() if part.z.dim() == 1 else part.z.square().mean(0)
                squares.append(z2 @ part.factors.columns(part.raw).square().sum(0))
            else:
                squares.append(part.loc.square().sum())
        return torch.stack(squares).sum()


class MultiplicativeBlock(NormalBlock):
    """Gaussians over several weights, the means of some of them multiplied by mixing vectors.

    Args:
        loc: Means before the multiplication, [layout.size].
        log_scale: Logarithms of the standard deviations, [layout.size].
        layout: The sites.
        sampling: The sampling rule of each site, in the layout's order.
        factors: What is multiplied, by site.
        z: The mixing vectors, [D] or [B, D], by site.
        max_scale: Bound of the standard deviations in draws; the KL divergence does without.
    """

    joint: FlatMultiplicative

    def __init__(
        self,
        loc: Tensor,
        log_scale: Tensor,
        layout: Layout,
        sampling: Sequence[Sampling],
        factors: dict[str, Factors],
        z: dict[str, Tensor],
        max_scale: float | None,
    ) -> None:
        self.layout = layout
        self.sampling = sampling
        self.max_scale = max_scale
        self._locs = layout.split(loc)
        self._parts = [self._make(index, factors, z) for index in range(len(layout.names))]
        self.joint = FlatMultiplicative(loc, log_scale, self._parts)

    @cached_property
    def scales(self) -> list[Tensor]:
        """Standard deviations, bounded, one tensor a site."""
        scale = self.joint.scale
        return self.layout.split(scale if self.max_scale is None else scale.clamp_max(self.max_scale))

    @cached_property
    def variances(self) -> list[Tensor]:
        """Variances, bounded, one tensor a site."""
        variance = self.joint.variance
        return self.layout.split(variance if self.max_scale is None else variance.clamp_max(self.max_scale**2))

    def _make(self, index: int, factors: dict[str, Factors], z: dict[str, Tensor]) -> NormalWeight:
        name, loc, sampling = self.layout.names[index], self._locs[index], self.sampling[index]
        if name in factors:
            return MultiplicativeWeight(name, loc, self, index, sampling, factors[name], z[name])
        return NormalWeight(name, loc, self, index, sampling)

    def _part(self, index: int, shape: torch.Size) -> NormalWeight:
        return self._parts[index]


@register_kl(FlatMultiplicative, dist.Normal)
def _kl_flat_multiplicative(q: FlatMultiplicative, p: dist.Normal) -> Tensor:
    mean, spread = q.row_moments
    squares = (mean - p.loc).square() + spread + q.variance
    return (0.5 * squares / p.scale**2 - q.log_scale + p.scale.log() - 0.5).sum()


@register_kl(FlatMultiplicative, ScalarNormal)
def _kl_flat_multiplicative_scalar(q: FlatMultiplicative, p: ScalarNormal) -> Tensor:
    if not p.centered:
        return _kl_flat_multiplicative(q, p)
    squares = q.sum_of_squares() + q.variance.sum()
    return squares * p.half_precision - q.log_scale.sum() + (p.log_scale - 0.5) * q.log_scale.numel()


@register_kl(MultiplicativeWeight, dist.Distribution)
def _kl_multiplicative_weight(q: MultiplicativeWeight, p: Distribution) -> Tensor:
    return kl_divergence(q.unclipped, p)

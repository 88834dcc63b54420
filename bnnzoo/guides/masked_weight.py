"""Weights with multiplicative noise on their input units: the distributions of `guides.Dropout` and their KLs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution as TorchBase
from torch.distributions import constraints, register_kl

from bnnzoo._types import Distribution
from bnnzoo.moments import Moments
from bnnzoo.rules import RandomWeight, per_example
from bnnzoo.weights import Block, Layout, ScalarNormal

Noise = Literal["bernoulli", "gaussian"]
MaskSampling = Literal["mask", "dense"]

_LOG_2PI = math.log(2 * math.pi)

#: How far, relatively, a weight may be from one that a mask makes: rounding.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class InputUnits:
    """Where the input units of a layer are in its weight.

    Attributes:
        shape: The weight's shape: [O, I] of a linear layer, [O, I / groups, ...] of a convolution, [I, O / groups, ...]
            of a transposed one.
        groups: Groups of channels.
        first: Whether the inputs are the first dimension.
    """

    shape: torch.Size
    groups: int = 1
    first: bool = False

    @property
    def count(self) -> int:
        """Number I of input units."""
        return self.shape[0] if self.first else self.shape[1] * self.groups

    def spread(self, units: Tensor) -> Tensor:
        """One number an input unit, [..., I], in a shape that broadcasts with the weight's."""
        lead, ones = units.shape[:-1], [1] * (len(self.shape) - 2)
        if self.first:
            return units.reshape(*lead, -1, 1, *ones)
        if self.groups == 1:
            return units.reshape(*lead, 1, -1, *ones)
        outputs, inputs = self.shape[0] // self.groups, self.shape[1]
        by_group = units.reshape(*lead, self.groups, 1, inputs).expand(*lead, self.groups, outputs, inputs)
        return by_group.reshape(*lead, self.shape[0], inputs, *ones)

    def fold(self, weights: Tensor) -> Tensor:
        """Weights [..., *shape] summed over everything but their input unit, [..., I]."""
        lead = weights.shape[: weights.dim() - len(self.shape)]
        if self.first:
            return weights.reshape(*lead, self.shape[0], -1).sum(-1)
        outputs, inputs = self.shape[0] // self.groups, self.shape[1]
        return weights.reshape(*lead, self.groups, outputs, inputs, -1).sum((-3, -1)).reshape(*lead, -1)


class UnitNoise:
    """The multiplicative noise on one weight's input units, independent, of mean 1 and variance α = p / (1 - p).

    Args:
        kind: `"bernoulli"` or `"gaussian"`.
        units: Where the units are in the weight.
        logit: `log(p / (1 - p)) = log α`, a scalar.
        temperature: Of relaxed Bernoulli masks; None for hard ones.
        elsewhere: Whether somebody else (a dropout layer) draws it, so that this noise is 1.
        sampling: `"mask"` or `"dense"`, see `Dropout`.
    """

    def __init__(
        self,
        kind: Noise,
        units: InputUnits,
        logit: Tensor,
        temperature: float | None = None,
        elsewhere: bool = False,
        sampling: MaskSampling = "mask",
    ) -> None:
        self.kind = kind
        self.units = units
        self.logit = logit
        self.temperature = temperature
        self.elsewhere = elsewhere
        self.sampling = sampling

    @cached_property
    def variance(self) -> Tensor:
        """α, a scalar."""
        return self.logit.exp()

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Noise of any shape, reparameterized; hard Bernoulli masks have no gradients."""
        like = self.logit.new_empty(()).expand(shape)
        if self.kind == "gaussian":
            return 1 + self.variance.sqrt() * torch.randn_like(like)
        uniform = torch.rand_like(like)
        if self.temperature is None:
            mask = (uniform >= self.logit.sigmoid()).to(self.logit.dtype)
        else:
            mask = ((uniform.logit() - self.logit) / self.temperature).sigmoid()
        return mask * (1 + self.variance)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of Gaussian noise, or log probability of Bernoulli noise (linear in a relaxed mask), elementwise.

        -inf where a mask is not 0 or 1, or a relaxed one not between.
        """
        if self.kind == "gaussian":
            return -0.5 * ((z - 1).square() / self.variance + self.logit + _LOG_2PI)
        mask = z / (1 + self.variance)
        distance = torch.minimum(mask.abs(), (mask - 1).abs())
        allowed = distance < _TOLERANCE
        if self.temperature is not None:
            allowed = allowed | ((mask > 0) & (mask < 1))
        log_prob = -F.softplus(self.logit) + (1 - mask) * self.logit
        return torch.where(allowed, log_prob, -math.inf)

    def entropy(self) -> Tensor:
        """Entropy of the noise of all units together, in nats, a scalar."""
        if self.kind == "gaussian":
            each = 0.5 * (self.logit + 1 + _LOG_2PI)
        else:
            each = F.softplus(self.logit) - self.logit.sigmoid() * self.logit
        return self.units.count * each


class MaskedWeight(TorchDistribution):
    """The distribution of `M diag(z)`: a weight tensor, `event_shape` its shape, with noise on its input units.

    Args:
        name: Site name, for messages.
        loc: M, the weight without noise, which is the mean.
        noise: The distribution of z.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch declares it so)
    has_rsample = True

    def __init__(self, name: str, loc: Tensor, noise: UnitNoise) -> None:
        self.name = name
        self.loc = loc
        self.noise = noise
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real, with the weight's dimensions as event dimensions; what of it has probability, `log_prob` says."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """M."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """`α M²`, in the weight's shape; elements of one input unit are fully correlated."""
        return self.noise.variance * self.loc.square()

    def entropy(self) -> Tensor:
        """Entropy of the noise, in nats, a scalar."""
        return self.noise.entropy()

    def draw(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws, [*sample_shape, *event_shape], whoever else may draw the noise."""
        units = self.noise.units
        return self.loc * units.spread(self.noise.draw((*sample_shape, units.count)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterized draws, [*sample_shape, *event_shape]; M where a dropout layer draws the noise."""
        if self.noise.elsewhere:
            return self.loc.expand(*sample_shape, *self.event_shape)
        return self.draw(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability (Gaussian noise: log density) of the noise z that turns M into the value, [...].

        -inf where no such noise makes the value. Units whose weights are all 0 tell nothing and count as certain. Where
        a dropout layer draws the noise it is unknown here, and this is its expectation, minus the entropy.

        Args:
            value: [..., *event_shape].
        """
        if self.noise.elsewhere:
            return -self.noise.entropy().expand(value.shape[: value.dim() - len(self.event_shape)])
        units, loc = self.noise.units, self.loc
        squares = units.fold(loc.square())
        known = squares > 0
        z = units.fold(value * loc) / torch.where(known, squares, 1.0)
        off = units.fold((value - loc * units.spread(z)).square())
        fits = off <= _TOLERANCE**2 * units.fold(value.square())
        terms = torch.where(known, self.noise.log_prob(z), 0.0)
        return torch.where(fits, terms, -math.inf).sum(-1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TorchDistribution:
        """Independent copies."""
        return ExpandedDistribution(self, torch.Size(batch_shape))

    def moments(self) -> Moments:
        """Means and variances, for a pass without draws; M alone where a dropout layer has the noise."""
        if self.noise.elsewhere:
            return Moments(self.loc)
        moments = Moments(self.loc, self.variance)
        moments.input_noise = self.noise.variance
        return moments

    def structured(self) -> Tensor:
        """What a network consumes: a `RandomWeight` that masks each row's input, a draw, or M if a layer masks it."""
        if self.noise.elsewhere or self.noise.sampling == "dense":
            return self.rsample()
        return RandomWeight(_MaskedInputs(self))


class _MaskedInputs:
    """A `MaskedWeight` as the rules of `bnnzoo.rules` consume it: given its noise, it is M and not random."""

    sampling = "mask"
    variance = None

    def __init__(self, weight: MaskedWeight) -> None:
        self.weight = weight
        self.name = weight.name
        self.loc = weight.loc

    @property
    def scale(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.loc)

    def rsample(self) -> Tensor:
        """A dense draw."""
        return self.weight.rsample()

    def moments(self) -> Moments:
        """Means and variances over the noise."""
        return self.weight.moments()

    def scale_input(self, input: Tensor, spatial: int) -> Tensor:
        """The input times a mask of each row's own."""
        return input * self.weight.noise.draw(per_example(input, spatial))


class MaskedPoint(TorchDistribution):
    """Several weights as one flat vector, some with noise on their input units: the joint of a `MaskedBlock`.

    Args:
        loc: The weights without noise, [D].
        parts: Each site's distribution, in the vector's order: a `MaskedWeight`, or a `Delta`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, parts: Sequence[Distribution]) -> None:
        self.loc = loc
        self.parts = parts
        self.masked = [part for part in parts if isinstance(part, MaskedWeight)]
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def variance(self) -> Tensor:
        """Variances, [D]."""
        return torch.cat([part.variance.reshape(-1) for part in self.parts])

    def draw(self) -> Tensor:
        """One draw, [D], whoever else may draw the noise."""
        draws = [part.draw() if isinstance(part, MaskedWeight) else part.v for part in self.parts]
        return torch.cat([draw.reshape(-1) for draw in draws])

    def entropy(self) -> Tensor:
        """Entropy of all noise, a scalar."""
        return sum((part.entropy() for part in self.masked), self.loc.new_zeros(()))


class MaskedBlock(Block):
    """Points over several weights, some of them with noise on their input units.

    Args:
        loc: The weights without noise, [layout.size].
        layout: The sites.
        noises: The noise of those that have it, by site.
    """

    joint: MaskedPoint

    def __init__(self, loc: Tensor, layout: Layout, noises: dict[str, UnitNoise]) -> None:
        self._parts = [
            MaskedWeight(name, value, noises[name]) if name in noises else dist.Delta(value, event_dim=value.dim())
            for name, value in zip(layout.names, layout.split(loc), strict=True)
        ]
        super().__init__(MaskedPoint(loc, self._parts), layout)

    def _part(self, index: int, shape: torch.Size) -> Distribution:
        return self._parts[index]


@register_kl(MaskedPoint, ScalarNormal)
def _kl_masked_scalar_normal(q: MaskedPoint, p: ScalarNormal) -> Tensor:
    # As the general form, with a single pass over all weights.
    squares = torch.linalg.vector_norm(q.loc if p.centered else q.loc - p.loc).square()
    for part in q.masked:
        squares = squares + part.noise.variance * torch.linalg.vector_norm(part.loc).square()
    return squares * p.half_precision + (p.log_scale + 0.5 * _LOG_2PI) * q.loc.numel() - q.entropy()


@register_kl(MaskedPoint, TorchBase)
@register_kl(MaskedWeight, TorchBase)
def _kl_masked(q: MaskedWeight | MaskedPoint, p: Distribution) -> Tensor:
    """`E[log q(z)] - E[log p(W)]`; the second exact for normal priors, else estimated from one draw."""
    base = p.base_dist if isinstance(p, torch.distributions.Independent) else p
    if isinstance(base, torch.distributions.Normal):
        # E (w - μ)² = (m - μ)² + Var w
        energy = 0.5 * q.variance / base.scale.square() - base.log_prob(q.loc)
    else:
        energy = -p.log_prob(q.draw())
    return energy.sum() - q.entropy()

"""Named priors: distributions of weights beyond Pyro's own, and rules that scale a Gaussian by fan-in."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Cauchy, Distribution, Laplace, Normal, StudentT, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn.modules.conv import _ConvTransposeNd

from bnnzoo.weights import FlatNormal


class ScaleMixture(TorchDistribution):
    """Mixture of two centered Gaussians, a wide one and a narrow spike (Blundell et al. 2015).

    The density is `weight * N(0, scale1^2) + (1 - weight) * N(0, scale2^2)`. It has no analytic KL with a Gaussian and
    no reparameterized sampler.

    Args:
        weight: Probability of the first component, in [0, 1]; a number or a tensor.
        scale1: Standard deviation of the first component, positive.
        scale2: Standard deviation of the second component, positive.
        validate_args: As in `torch.distributions`.
    """

    arg_constraints = {  # noqa: RUF012 (as torch declares it)
        "weight": constraints.unit_interval,
        "scale1": constraints.positive,
        "scale2": constraints.positive,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        weight: float | Tensor = 0.5,
        scale1: float | Tensor = 1.0,
        scale2: float | Tensor = 0.1,
        validate_args: bool | None = None,
    ) -> None:
        self.weight, self.scale1, self.scale2 = broadcast_all(weight, scale1, scale2)
        super().__init__(self.weight.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Zero, of the batch shape."""
        return torch.zeros_like(self.weight)

    @property
    def variance(self) -> Tensor:
        """`weight * scale1^2 + (1 - weight) * scale2^2`."""
        return self.weight * self.scale1.square() + (1 - self.weight) * self.scale2.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, computed by log-add-exp: finite wherever that of the wider component is."""
        if self._validate_args:
            self._validate_sample(value)
        first = self.weight.log() + Normal(0.0, self.scale1, validate_args=False).log_prob(value)
        second = torch.log1p(-self.weight) + Normal(0.0, self.scale2, validate_args=False).log_prob(value)
        return torch.logaddexp(first, second)

    def cdf(self, value: Tensor) -> Tensor:
        """Cumulative distribution function."""
        first, second = torch.special.ndtr(value / self.scale1), torch.special.ndtr(value / self.scale2)
        return self.weight * first + (1 - self.weight) * second

    def sample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            shape = self.shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.weight.dtype, device=self.weight.device)
            noise = torch.randn(shape, dtype=self.weight.dtype, device=self.weight.device)
            return noise * torch.where(uniform < self.weight, self.scale1, self.scale2)

    def expand(self, batch_shape: Iterable[int], _instance: "ScaleMixture | None" = None) -> "ScaleMixture":
        """Broadcast to a larger batch shape."""
        new = self._get_checked_instance(ScaleMixture, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class LogUniform(TorchDistribution):
    """The improper log-uniform prior, `p(w)` proportional to `1 / |w|` (Kingma et al. 2015).

    `log_prob` is `-log |w|`, unnormalized; |w| is floored at the smallest normal number of its dtype, so the value at
    zero is finite (87.3 in single precision) and its gradient there is zero. There is nothing to sample from.

    The KL divergence of a Gaussian `N(μ, σ²)` from it depends on `α = σ² / μ²` alone, up to the constant that an
    improper prior leaves open. It is registered, for every guide that has Gaussian sites, in the approximation of
    Molchanov, Ashukha & Vetrov 2017 (eq. 14, there as -KL), with the constant that makes a weight without signal free,
    `KL → 0` as `α → ∞`:

        KL(α) ≈ k₁ S(-(k₂ + k₃ log α)) + ½ log(1 + 1/α),    S the logistic function, k = 0.63576, 1.87320, 1.48695

    With this constant it is `E_q[log q(w) - log p(w)] + 2.0541` for the `log_prob` of this class. Largest errors, of
    the value and of its derivative with respect to `log α`, against numerical integration:

    ==============  =======  ==========
    log α           value    derivative
    ==============  =======  ==========
    -10 to -4       0.0085   0.0038
    -4 to -2        0.0094   0.0137
    -2 to 0         0.0046   0.0066
    0 to 2          0.0054   0.0033
    2 to 4          0.0023   0.0023
    4 to 10         0.0003   0.0003
    ==============  =======  ==========

    (The exact values run from 5.64 at -10 to 0.00002 at 10, the derivatives from -0.5 to 0.)

    Args:
        batch_shape: Shape of independent copies.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = False

    def __init__(self, batch_shape: Iterable[int] = ()) -> None:
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Unnormalized log density `-log |value|`."""
        floored = value.abs().clamp_min(torch.finfo(value.dtype).tiny)
        return -floored.log().expand(torch.broadcast_shapes(value.shape, self.batch_shape))

    def sample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        """Raises: NotImplementedError, always."""
        raise NotImplementedError(
            "LogUniform is improper (its density 1/|w| has no finite integral): it has no samples. Draw from the "
            "posterior instead, or use a proper prior such as Normal or ScaleMixture where prior samples are needed."
        )

    rsample = sample

    def expand(self, batch_shape: Iterable[int], _instance: "LogUniform | None" = None) -> "LogUniform":
        """Broadcast to a larger batch shape."""
        new = self._get_checked_instance(LogUniform, _instance)
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        return new


@register_kl(Normal, LogUniform)
def _kl_normal_log_uniform(q: Normal, p: LogUniform) -> Tensor:
    return _log_uniform_divergence(q.loc, q.scale.log()).expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(FlatNormal, LogUniform)
def _kl_flat_normal_log_uniform(q: FlatNormal, p: LogUniform) -> Tensor:
    return _log_uniform_divergence(q.loc, q.log_scale)


def _log_uniform_divergence(loc: Tensor, log_scale: Tensor) -> Tensor:
    # A mean of 0, where the divergence is 0 and flat, gets a finite logarithm and no gradient through it.
    log_signal = loc.abs().clamp_min(torch.finfo(loc.dtype).tiny).log()
    log_ratio = 2 * (log_signal - log_scale)  # -log α
    return 0.63576 * torch.sigmoid(1.48695 * log_ratio - 1.87320) + 0.5 * F.softplus(log_ratio)


# layers of which each output takes one input, whatever the shape of their weights
_ONE_INPUT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def fan_in(name: str, parameter: Tensor, module: nn.Module) -> float:
    """How many inputs one output of a layer sums over.

    - linear, bilinear and convolution weights: `in_features`, `in1 * in2`, `in_channels / groups * kernel size` (as in
      `torch.nn.init`);
    - transposed convolutions: `in_channels / groups` times, a dimension, `max(kernel / stride, 1)`: the mean number of
      taps that reach an output. (`torch.nn.init` takes the output channels there.) It need not be whole;
    - a bias (any name with `bias`): that of its layer's weight (the name with `weight` instead), if there is one;
    - embeddings (each output is looked up), layer normalization, and everything else with fewer than two dimensions,
      such as the gains and biases of other normalization layers: 1;
    - other parameters: the product of all dimensions but the first.

    Args:
        name: The parameter's name; only its last part is read.
        parameter: The parameter.
        module: The module that owns it.

    Returns:
        The fan-in, at least 1.
    """
    local = name.rpartition(".")[2]
    weight: object = parameter
    if "bias" in local:
        weight = getattr(module, local.replace("bias", "weight"), None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(module, _ONE_INPUT):
        return 1.0
    if isinstance(module, _ConvTransposeNd):
        taps = math.prod(max(k / s, 1.0) for k, s in zip(module.kernel_size, module.stride, strict=True))
        return module.in_channels / module.groups * taps
    return float(max(math.prod(weight.shape[1:]), 1))


class FanIn:
    """Prior rule `Normal(0, scale / sqrt(fan_in))`: layers keep the size of what they pass on.

    Biases take the fan-in of their weight; `fan_in` says how it is counted, and that it is 1 for normalization layers.

    Args:
        scale: Standard deviation at a fan-in of 1, positive.

    Raises:
        ValueError: The scale is not a positive finite number.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"FanIn(scale={scale!r}): the scale must be a positive finite number.")
        self.scale = float(scale)

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Distribution:
        """The prior of one parameter, on its device and in its dtype."""
        scale = self.scale / math.sqrt(fan_in(name, parameter, module))
        return Normal(parameter.new_zeros(()), parameter.new_full((), scale))

    def __repr__(self) -> str:
        return f"FanIn(scale={self.scale})"


class He:
    """Prior rule `Normal(0, sqrt(2 / fan_in))` of He et al. 2015: `FanIn` for ReLU networks."""

    def __init__(self) -> None:
        self._rule = FanIn(math.sqrt(2.0))

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Distribution:
        """The prior of one parameter, on its device and in its dtype."""
        return self._rule(name, parameter, module)

    def __repr__(self) -> str:
        return "He()"


PRIORS: dict[str, Callable[..., Any]] = {
    "normal": partial(Normal, loc=0.0, scale=1.0),
    "laplace": partial(Laplace, loc=0.0, scale=1.0),
    "student-t": partial(StudentT, df=3.0, loc=0.0, scale=1.0),
    "cauchy": partial(Cauchy, loc=0.0, scale=1.0),
    "scale-mixture": ScaleMixture,
    "log-uniform": LogUniform,
    "fan-in": FanIn,
    "he": He,
}
"""Constructors of the named priors; each may be called without arguments, or with some by keyword."""

"""Stochastic units as modules: each runs in the three modes of `bnnzoo.moments.propagate`.

A unit is an activation with noise of its own, `f(x - Z)` for an independent Z (Shekhovtsov & Flach 2018, eq. 9):

- a tensor in eval mode gets the unit's mean (AP1): that of a Bernoulli unit is its probability, others take Z's mean;
- a tensor in training mode meets a draw of the noise;
- moments in training mode meet the noise's moments (AP2), and in eval mode, as tensors do, its mean.

Noise before any other activation is `nn.Sequential(InputNoise(variance), activation)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.moments import gates
from bnnzoo.moments.gates import LOGISTIC_VARIANCE, Gate
from bnnzoo.moments.table import apply_elementwise
from bnnzoo.moments.value import Moments, current

Noise = Literal["normal", "logistic"]


class StochasticUnit(nn.Module):
    """A layer with noise of its own.

    In training mode a tensor meets a draw of the noise and moments meet its moments; in eval mode the noise is replaced
    by its mean, as dropout's is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the unit."""
        if not self.training:
            return self.mean(input)
        return self.noisy(input)

    def mean(self, input: Tensor) -> Tensor:
        """The unit without its noise."""
        raise NotImplementedError

    def noisy(self, input: Tensor) -> Tensor:
        """The unit with its noise: a draw for a tensor, moments for moments."""
        raise NotImplementedError


class InputNoise(StochasticUnit):
    """Subtracts independent noise: `x - Z`, the noise of eq. 9.

    Draws are reparameterized: gradients reach the input.

    Args:
        variance: Of Z, ≥ 0: a number, or a tensor that broadcasts with the input.
        mean: Of Z, the same.
        noise: The distribution that Z is drawn from, `"normal"` or `"logistic"`; its moments are all that AP2 uses.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from bnnzoo.moments import propagate
        >>> network = torch.nn.Sequential(InputNoise(0.25), torch.nn.ReLU())
        >>> propagate(network, torch.zeros(1)).loc
        tensor([0.1995])
    """

    noise_mean: Tensor | float
    noise_variance: Tensor | float

    def __init__(self, variance: Tensor | float, mean: Tensor | float = 0.0, noise: Noise = "normal") -> None:
        super().__init__()
        _hold(self, "noise_variance", "variance", variance)
        _hold(self, "noise_mean", "mean", mean)
        self.noise = _one_of("noise", noise, get_args(Noise))

    def mean(self, input: Tensor) -> Tensor:
        """`x - E Z`."""
        return _less(input, self.noise_mean)

    def noisy(self, input: Tensor) -> Tensor:
        """`x - Z`."""
        centered = _less(input, self.noise_mean)
        variance = torch.as_tensor(self.noise_variance, dtype=input.dtype, device=input.device)
        if isinstance(centered, Moments):
            return centered.plus_noise(variance)
        return centered + variance.sqrt() * _standard(self.noise, centered)

    def extra_repr(self) -> str:
        """The noise."""
        return f"{_noise(self)}, noise={self.noise!r}"


class StochasticReLU(InputNoise):
    """A rectifier with noise: `max(0, x - Z)` (Bengio et al. 2013; Shekhovtsov & Flach 2018, appendix B.1).

    Args:
        variance: As of `InputNoise`.
        mean: As of `InputNoise`.
        noise: As of `InputNoise`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def mean(self, input: Tensor) -> Tensor:
        """`max(0, x - E Z)`."""
        return F.relu(super().mean(input))

    def noisy(self, input: Tensor) -> Tensor:
        """`max(0, x - Z)`."""
        return F.relu(super().noisy(input))


class BernoulliUnit(StochasticUnit):
    """A unit of the two values 0 and 1: 1 with a probability that is a function of the input.

    Under moments the probability is propagated as any activation, and the draw adds independent noise of mean 0, so
    that the unit has the mean μ' of the probability and the variance μ'(1 - μ') (Shekhovtsov & Flach 2018, eq. 4).

    A draw has no gradient: training through these units takes moments, not samples. The base class takes inputs in
    [0, 1] for the probabilities themselves: put first, it makes binary inputs of a network random.
    """

    def probability(self, input: Tensor) -> Tensor:
        """The probability of 1 given the input, of moments the moments of this function of them."""
        return input

    def mean(self, input: Tensor) -> Tensor:
        """The probability of 1."""
        return self.probability(input)

    def noisy(self, input: Tensor) -> Tensor:
        """0 or 1, drawn; of moments, the moments of such draws."""
        probability = self.probability(input)
        if isinstance(probability, Moments):
            total = probability.loc * (1 - probability.loc)
            return probability.plus_noise((total - probability.variance).clamp_min(0.0))
        return (torch.rand_like(probability) < probability).to(probability.dtype)


class Heaviside(BernoulliUnit):
    """A threshold with noise: 1 where `x ≥ Z`, else 0. Without noise the step function, `1` at 0.

    Its probability of 1 given x is the noise's distribution function, of normal noise Φ((x - E Z)/√(Var Z)).

    Args:
        variance: Of Z, ≥ 0: a number, or a tensor that broadcasts with the input.
        mean: Of Z, the same.
        noise: Its distribution: `"normal"` or `"logistic"`.
        approximation: The mean under moments, see `bnnzoo.moments.gates.mean`: `"exact"` for Gaussian x; `"normal"` or
            `"logistic"` for `x - Z` of that distribution; `"pea"`, for logistic noise of a variance above 0. None:
            `"exact"`, and `"logistic"` under `options(approximation="paper")`, as the paper's implementation.

    Raises:
        ValueError: If an argument is out of range.
    """

    noise_mean: Tensor | float
    noise_variance: Tensor | float

    def __init__(
        self,
        variance: Tensor | float = 0.0,
        mean: Tensor | float = 0.0,
        noise: Noise = "normal",
        approximation: Gate | None = None,
    ) -> None:
        super().__init__()
        _hold(self, "noise_variance", "variance", variance)
        _hold(self, "noise_mean", "mean", mean)
        self.noise = _one_of("noise", noise, get_args(Noise))
        if approximation is not None:
            _one_of("approximation", approximation, get_args(Gate))
        if approximation == "pea" and (noise != "logistic" or not bool((torch.as_tensor(variance) > 0).all())):
            raise ValueError("approximation='pea' is for logistic noise of a variance above 0")
        self.approximation = approximation

    def probability(self, input: Tensor) -> Tensor:
        """The noise's distribution function at the input."""
        return self._gate(input, gates.moments)

    def noisy(self, input: Tensor) -> Tensor:
        """See `BernoulliUnit`."""
        if isinstance(input, Moments) and not input.certain:
            return self._gate(input, _drawn)  # spares the variance of the probability, which drops out
        return super().noisy(input)

    def _gate(self, input: Tensor, rule: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        centered = _less(input, self.noise_mean)
        variance = torch.as_tensor(self.noise_variance, dtype=input.dtype, device=input.device)
        if not isinstance(centered, Moments):
            return gates.cdf(centered, variance, self.noise)
        if centered.certain:
            return type(centered)(gates.cdf(centered.loc, variance, self.noise))
        kind = self.approximation or ("exact" if current().approximation == "exact" else "logistic")

        def moments(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
            return rule(mean, spread, variance, self.noise, kind)

        return apply_elementwise(moments, centered)

    def extra_repr(self) -> str:
        """Noise and approximation."""
        chosen = "" if self.approximation is None else f", approximation={self.approximation!r}"
        return f"{_noise(self)}, noise={self.noise!r}{chosen}"


class LogisticBernoulli(Heaviside):
    """1 with probability S(x), the logistic sigmoid: the unit of sigmoid belief networks.

    The same as `Heaviside` with standard logistic noise.

    Args:
        approximation: The mean under moments: `"normal"` (AP2a), `"logistic"` (AP2b), `"pea"` (the piecewise
            exponential approximation) or `"exact"` for Gaussian inputs; None: see `Heaviside`.

    Raises:
        ValueError: If the approximation is unknown.

    Example:
        >>> import torch
        >>> from bnnzoo.moments import Moments
        >>> y = LogisticBernoulli()(Moments(torch.ones(1), torch.ones(1)))
        >>> y.loc, y.variance
        (tensor([0.6967]), tensor([0.2113]))
    """

    def __init__(self, approximation: Gate | None = None) -> None:
        super().__init__(LOGISTIC_VARIANCE, noise="logistic", approximation=approximation)

    def extra_repr(self) -> str:
        """The approximation."""
        return "" if self.approximation is None else f"approximation={self.approximation!r}"


class ProbitBernoulli(Heaviside):
    """1 with probability Φ(x), the normal distribution function: `Heaviside` with standard normal noise.

    Its mean under moments, Φ(μ/√(σ² + 1)), is exact for Gaussian inputs (Shekhovtsov & Flach 2018, eq. 60).
    """

    def __init__(self) -> None:
        super().__init__(1.0, approximation="exact")

    def extra_repr(self) -> str:
        """Nothing."""
        return ""


def _drawn(*args: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of a draw, from the arguments of `gates.moments`."""
    probability = gates.probability(*args)
    return probability, probability * (1 - probability)


def _less(input: Tensor, noise_mean: Tensor | float) -> Tensor:
    """The input less the noise's mean; most noise has mean 0, which costs nothing."""
    return input - noise_mean if isinstance(noise_mean, Tensor) or noise_mean else input


def _standard(noise: str, like: Tensor) -> Tensor:
    """Draws of mean 0 and variance 1."""
    if noise == "normal":
        return torch.randn_like(like)
    tiny = torch.finfo(like.dtype).eps
    return torch.rand_like(like).clamp(tiny, 1 - tiny).logit() / math.sqrt(LOGISTIC_VARIANCE)


def _hold(unit: nn.Module, name: str, given: str, value: Tensor | float) -> None:
    """Keep a number as it is, a tensor as a buffer."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number or (isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, Moments))):
        raise ValueError(f"{type(unit).__name__}: {given} must be a number or a floating-point tensor, not {value!r}")
    values = torch.as_tensor(value)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{type(unit).__name__}: {given} must be finite; given: {value!r}")
    if given == "variance" and not bool((values >= 0).all()):
        raise ValueError(f"{type(unit).__name__}: variance must be at least 0; the least is {values.min().item():g}")
    if isinstance(value, Tensor):
        unit.register_buffer(name, value.detach().clone())
    else:
        setattr(unit, name, float(value))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def _noise(unit: InputNoise | Heaviside) -> str:
    """Variance and mean of a unit's noise, for its `repr`."""

    def short(value: Tensor | float) -> str:
        return f"<tensor {list(value.shape)}>" if isinstance(value, Tensor) else f"{value:g}"

    return f"variance={short(unit.noise_variance)}, mean={short(unit.noise_mean)}"

"""Approximations of Shekhovtsov & Flach (2018) by name, for comparisons.

The rules take some of them under `options(approximation="paper")`, and none under `"exact"`: see each rule.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.activations.gaussian import LEAST_VARIANCE, inverse_scale, scale
from bnnzoo.moments.activations.mixtures import LOGISTIC_VARIANCE

#: Fitted scale t of the shortcut S(a/t) for the variance of max(0, x), and of the maximum of two.
SHORTCUT = 0.3729

#: Standard scores beyond these count as these: probabilities of 1e-33 differ from 0 for nobody, denormals are slow.
_FARTHEST = 12.0


def sigmoid_mean_ap2a(mean: Tensor, variance: Tensor) -> Tensor:
    """Of a logistic Bernoulli unit or transform: mean `Φ(μ/√(σ² + σ_S²))` (AP2a, section 3.3)."""
    return torch.special.ndtr(mean / (variance + LOGISTIC_VARIANCE).sqrt())


def sigmoid_mean_ap2b(mean: Tensor, variance: Tensor) -> Tensor:
    """Of a logistic Bernoulli unit or transform: mean `S(μ/√(σ²/σ_S² + 1))` (AP2b, section 3.3)."""
    return torch.sigmoid(mean / (variance / LOGISTIC_VARIANCE + 1).sqrt())


def sigmoid_mean_pea(mean: Tensor, variance: Tensor) -> Tensor:
    """Of a logistic Bernoulli unit or transform: mean of the Laplace cdf of scale 1/ln 2 in S's place (PEA, eq. 20).

    It is `Φ(a) + ½ 2^(σ² ln2 / 2) (2^μ Φ(-(μ + σ² ln2)/σ) - 2^(-μ) Φ((μ - σ² ln2)/σ))`, a = μ/σ.
    """
    std, rate = variance.clamp_min(LEAST_VARIANCE).sqrt(), math.log(2)

    def side(sign: float) -> Tensor:
        # 2^(±μ-1) e^(σ² ln²2 / 2) Φ(b), b = (∓μ - σ² ln 2)/σ, where what is before Φ overflows as Φ vanishes: with
        # erfcx(-b/√2) = 2 e^(b²/2) Φ(b) that is e^(-μ²/2σ²) erfcx(-b/√2) / 4
        score = (-sign * mean - rate * variance) / std
        near = (0.5 * rate**2 * variance + sign * rate * mean).clamp_max(0.0).exp() * torch.special.ndtr(score)
        peak = (-0.5 * (mean / std).clamp(-_FARTHEST, _FARTHEST).square()).exp()
        far = 0.5 * peak * torch.special.erfcx(-score.clamp_max(0.0) / math.sqrt(2.0))
        return 0.5 * torch.where(score > 0, near, far)

    return (torch.special.ndtr(mean / std) + side(1.0) - side(-1.0)).clamp(0.0, 1.0)


def sigmoid_variance(mean: Tensor, variance: Tensor) -> Tensor:
    """Of the logistic transform: variance `4/(1 + 4/σ²) (μ'(1 - μ'))²`, best for small σ (eq. 21).

    Args:
        mean: The transform's mean μ', in (0, 1).
        variance: The variance σ² of its input.
    """
    return 4 * variance / (variance + 4) * (mean * (1 - mean)).square()


def sigmoid_variance_large(mean: Tensor, variance: Tensor) -> Tensor:
    """Of the logistic transform: variance `Φ((μ - 1)/√(σ² + σ_S² - 1)) - μ'²`, for σ ≥ 2 (eq. 22); μ' is AP2a's.

    At smaller σ it is rough, and may be below 0.
    """
    second = torch.special.ndtr((mean - 1) / (variance + LOGISTIC_VARIANCE - 1).sqrt())
    return second - sigmoid_mean_ap2a(mean, variance).square()


def relu_variance(mean: Tensor, variance: Tensor, slope: Tensor | float = 0.0) -> Tensor:
    """Of the (leaky) ReLU: variance `σ²(α² + (1 - α²) S(a/0.3729))` (appendix C.1), off by up to about half.

    Args:
        mean: Of the input.
        variance: Of the input.
        slope: α, the slope below 0.
    """
    return variance * (slope**2 + (1 - slope**2) * torch.sigmoid(mean * inverse_scale(variance) / SHORTCUT))


def heaviside_logistic(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Of `[x ≥ 0]`, x logistic: mean `μ' = S(μ/s)`, s = σ/σ_S, and variance `μ'(1 - μ')` (eq. 19)."""
    odds = mean * inverse_scale(variance) * math.sqrt(LOGISTIC_VARIANCE)
    p = torch.sigmoid(odds)
    return p, p * torch.sigmoid(-odds)


def relu_logistic(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Of `max(0, x)`, x logistic: mean `μ' = s log(1 + exp(μ/s))`, s = σ/σ_S, variance `-2s² Li₂(-exp(μ/s)) - μ'²`.

    Li₂ is the dilogarithm (appendix C.1).
    """
    s = scale(variance) / math.sqrt(LOGISTIC_VARIANCE)
    u = mean * inverse_scale(variance) * math.sqrt(LOGISTIC_VARIANCE)
    v = u.abs().clamp(max=60.0)  # beyond, exponentials are 0
    log = torch.log1p(torch.exp(-v))
    dilog = _dilogarithm(log)
    # for u > 0 by the inversion -Li₂(-eᵘ) = π²/6 + u²/2 + Li₂(-e⁻ᵘ), where squares of u cancel
    below = 2 * dilog - log.square()
    above = LOGISTIC_VARIANCE - 2 * dilog - 2 * v * log - log.square()
    return F.relu(mean) + s * log, s.square() * torch.where(u > 0, above, below)


def _dilogarithm(log: Tensor) -> Tensor:
    """`-Li₂(-y)` for y in [0, 1], of `w = log(1 + y)`: the series of Bernoulli numbers, to 1e-13."""
    w2 = log.square()
    terms = 1 / 36, -1 / 3600, 1 / 211680, -1 / 10886400, 1 / 526901760, -691 / 16999766784000
    series = torch.zeros_like(log)
    for term in reversed(terms):
        series = (series + term) * w2
    return log * (1 + 0.25 * log + series)

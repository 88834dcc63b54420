"""Probabilities that a noisy threshold is passed: what Bernoulli units need.

Y = 1 where X - Z ≥ 0, for noise Z of mean 0 and X of known mean and variance. Given X the probability of 1 is Z's
distribution function F(X), as `Heaviside`, the normal cdf and the logistic sigmoid are (Shekhovtsov & Flach 2018,
observation 1).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bnnzoo.moments.activations.mixtures import LOGISTIC, LOGISTIC_VARIANCE, smoothed

Gate = Literal["exact", "normal", "logistic", "pea"]

#: Below this a total variance counts as this much, so that gradients stay finite; at 0 the step is exact.
_LEAST = 1e-12

#: Standard scores beyond these count as these: probabilities of 1e-33 differ from 0 for nobody, denormals are slow.
_FARTHEST = 12.0


_points, _mass = np.polynomial.legendre.leggauss(16)
_LEGENDRE = tuple(zip((0.5 + 0.5 * _points).tolist(), (0.5 * _mass).tolist(), strict=True))


def cdf(x: Tensor, variance: Tensor, noise: str) -> Tensor:
    """Distribution function of noise of mean 0; a step that is 1 at 0 where the variance is 0.

    Args:
        x: Where, any shape.
        variance: The noise's, ≥ 0, broadcastable with x.
        noise: `"normal"` or `"logistic"`.
    """
    score = x / variance.clamp_min(_LEAST).sqrt()
    smooth = torch.special.ndtr(score) if noise == "normal" else torch.sigmoid(score * math.sqrt(LOGISTIC_VARIANCE))
    return torch.where(variance > 0, smooth, (x >= 0).to(x.dtype))


def moments(mean: Tensor, variance: Tensor, noise_variance: Tensor, noise: str, kind: Gate) -> tuple[Tensor, Tensor]:
    """Mean and variance of F(X), F the noise's distribution function.

    Args:
        mean: Means of X less those of the noise, any shape.
        variance: Variances of X.
        noise_variance: Variances of the noise.
        noise: `"normal"` or `"logistic"`.
        kind: What the mean is, see `probability`. For logistic noise the variance is exact for Gaussian X with
            `"exact"`, else the paper's `4/(1 + 4/σ²) (μ'(1 - μ'))²` (eq. 21); for normal noise it is exact.
    """
    p = probability(mean, variance, noise_variance, noise, kind)
    most = p * (1 - p)
    if noise == "normal":
        own = normal_noise(mean, variance, noise_variance)
    elif kind == "exact":
        own = _logistic_noise(mean, variance, noise_variance)
    else:
        four = 4 * noise_variance / LOGISTIC_VARIANCE
        return p, 4 * variance / (variance + four).clamp_min(_LEAST) * most.square()
    # all of the variance of a draw that is not the draw's own
    return p, (most - own).clamp_min(0.0)


def probability(mean: Tensor, variance: Tensor, noise_variance: Tensor, noise: str, kind: Gate) -> Tensor:
    """Probability that X - Z ≥ 0, the expectation of F(X).

    With σ² and s² the variances of X and of the noise, σ_S² = π²/3 (Shekhovtsov & Flach 2018, section 3.3 and appendix
    C.3, where s = σ_S; σ = 0 gives F(μ) for `"exact"` alone and, where it is the noise's, for the kind of its name):

    - `"exact"`: for Gaussian X; logistic noise is a mixture of normal ones, to 4e-9;
    - `"normal"`: `Φ(μ/√(σ² + s²))` (AP2a; exact for normal noise);
    - `"logistic"`: `S(μ σ_S/√(σ² + s²))` (AP2b);
    - `"pea"`: of Gaussian X and the piecewise exponential approximation of the sigmoid (Astudillo & Neto 2011), for
      logistic noise of a variance above 0.

    Args:
        mean: Means of X less those of the noise.
        variance: Variances of X.
        noise_variance: Variances of the noise.
        noise: `"normal"` or `"logistic"`.
        kind: See above.
    """
    if kind == "exact" and noise == "logistic":
        return _logistic(mean, variance, noise_variance)
    if kind == "pea":
        scale = (noise_variance / LOGISTIC_VARIANCE).sqrt()
        return _piecewise_exponential(mean / scale, variance / scale.square())
    total = variance + noise_variance
    return cdf(mean, total, "logistic" if kind == "logistic" else "normal")


def normal_noise(mean: Tensor, variance: Tensor, noise_variance: Tensor) -> Tensor:
    """`E[F(X)(1 - F(X))]` for normal noise and Gaussian X: twice Owen's T(μ/√(σ²+s²), s/√(s²+2σ²))."""
    score = (mean / (variance + noise_variance).clamp_min(_LEAST).sqrt()).clamp(-_FARTHEST, _FARTHEST)
    slope = (noise_variance / (noise_variance + 2 * variance).clamp_min(_LEAST)).clamp_min(_LEAST).sqrt()
    half = -0.5 * score.square()
    total = torch.zeros_like(score)
    for point, weight in _LEGENDRE:
        stretch = 1 + (point * slope).square()
        total = total + weight * (half * stretch).exp() / stretch
    return total * slope / math.pi


def _logistic(mean: Tensor, variance: Tensor, noise_variance: Tensor) -> Tensor:
    """`E F(X)` for logistic noise and Gaussian X."""
    step = (variance + noise_variance > 0).to(mean.dtype)
    return step * _standard(mean, variance, noise_variance, 0).clamp(0.0, 1.0) + (1 - step) * (mean >= 0)


def _logistic_noise(mean: Tensor, variance: Tensor, noise_variance: Tensor) -> Tensor:
    """`E[F(X)(1 - F(X))]` for logistic noise and Gaussian X: the expectation of the density, times its scale."""
    return _standard(mean, variance, noise_variance, 1)


def _standard(mean: Tensor, variance: Tensor, noise_variance: Tensor, order: int) -> Tensor:
    """Mean of S or S' of Gaussian X, in units of the noise's scale."""
    rate = (noise_variance / LOGISTIC_VARIANCE).clamp_min(_LEAST).rsqrt()
    return smoothed(LOGISTIC, mean * rate, variance * rate.square(), order, 1)[0]


def _piecewise_exponential(mean: Tensor, variance: Tensor) -> Tensor:
    """`E L(X)` for Gaussian X and L(x) = 2^(x-1) for x < 0, 1 - 2^(-x-1) else (equation PEA)."""
    variance = variance.clamp_min(_LEAST)
    std, rate = variance.sqrt(), math.log(2.0)

    def tail(sign: float) -> Tensor:
        # 2^(±μ-1) e^(σ² ln²2 / 2) Φ(b), b = (∓μ - σ² ln 2)/σ, where what is before Φ overflows as Φ vanishes: with
        # erfcx(-b/√2) = 2 e^(b²/2) Φ(b) that is e^(-μ²/2σ²) erfcx(-b/√2) / 4
        score = (-sign * mean - rate * variance) / std
        near = (0.5 * rate**2 * variance + sign * rate * mean).clamp_max(0.0).exp() * torch.special.ndtr(score)
        peak = (-0.5 * (mean / std).clamp(-_FARTHEST, _FARTHEST).square()).exp()
        far = 0.5 * peak * torch.special.erfcx(-score.clamp_max(0.0) / math.sqrt(2.0))
        return 0.5 * torch.where(score > 0, near, far)

    return (torch.special.ndtr(mean / std) + tail(1.0) - tail(-1.0)).clamp(0.0, 1.0)

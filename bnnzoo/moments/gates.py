"""Probabilities that a noisy threshold is passed: what Bernoulli units need.

Y = 1 where X - Z ≥ 0, for noise Z of mean 0 and X of known mean and variance. Given X the probability of 1 is Z's
distribution function F(X), as `Heaviside`, the normal cdf and the logistic sigmoid are (Shekhovtsov & Flach 2018,
observation 1).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bnnzoo.moments.activations import mixtures, paper
from bnnzoo.moments.activations.curves import ndtr
from bnnzoo.moments.activations.mixtures import LOGISTIC_VARIANCE

Gate = Literal["exact", "normal", "logistic", "pea"]

#: Below this a total variance counts as this much, so that gradients stay finite; at 0 the step is exact.
_LEAST = 1e-12


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
    mean, variance = _in_units(mean, variance, noise_variance, noise)
    if noise == "normal":
        own = ndtr(mean, variance)[1]
    elif kind == "exact":
        own = mixtures.logistic(mean, variance)[1]
    else:
        own = paper.sigmoid_variance(p, variance)
    # no more than that of a draw, where variances count as more than they are
    return p, torch.minimum(own, p * (1 - p))


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
        return paper.sigmoid_mean_pea(mean / scale, variance / scale.square())
    total = variance + noise_variance
    return cdf(mean, total, "logistic" if kind == "logistic" else "normal")


def _logistic(mean: Tensor, variance: Tensor, noise_variance: Tensor) -> Tensor:
    """`E F(X)` for logistic noise and Gaussian X."""
    step = (variance + noise_variance > 0).to(mean.dtype)
    value = mixtures.smoothed(mixtures.LOGISTIC, *_in_units(mean, variance, noise_variance, "logistic"), 0, 1)[0]
    return step * value.clamp(0.0, 1.0) + (1 - step) * (mean >= 0)


def _in_units(mean: Tensor, variance: Tensor, noise_variance: Tensor, noise: str) -> tuple[Tensor, Tensor]:
    """Mean and variance of X in units in which the noise is the standard one of its kind."""
    unit = noise_variance if noise == "normal" else noise_variance / LOGISTIC_VARIANCE
    rate = unit.clamp_min(_LEAST).rsqrt()
    return mean * rate, variance * rate.square()

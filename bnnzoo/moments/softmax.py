"""Class probabilities of Gaussian logits."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Softmax = Literal["normal", "logistic", "simplified"]

#: Variance σ_S² of the standard logistic distribution.
LOGISTIC_VARIANCE = math.pi**2 / 3


def log_softmax(mean: Tensor, variance: Tensor, dim: int, kind: Softmax = "logistic") -> Tensor:
    """Logarithms of approximate class probabilities `E softmax(x)` of independent Gaussian logits, normalized.

    With σ_S² = π²/3 (Shekhovtsov & Flach 2018, appendix C.7):

    - `"normal"`: `q(y) ∝ Π_{k≠y} Φ((μ_y - μ_k) / √(σ_y² + σ_k² + σ_S²))` (eq. 47);
    - `"logistic"`: `q(y) ∝ (Σ_k exp((μ_k - μ_y) / √((σ_k² + σ_y²)/σ_S² + 1)))⁻¹`, where k = y counts 1 (eq. 49);
    - `"simplified"`: softmax of `μ_k / √(σ_k²/σ_S² + 1)` (eq. 52).

    At zero variance the last two are the softmax.

    Args:
        mean: Means of the logits.
        variance: Their variances.
        dim: The dimension of classes.
        kind: See above.

    Returns:
        Log probabilities, of the mean's shape.
    """
    if kind == "simplified":
        return (mean / (variance / LOGISTIC_VARIANCE + 1).sqrt()).log_softmax(dim)
    mean, variance = mean.movedim(dim, -1), variance.movedim(dim, -1)
    margin = mean.unsqueeze(-1) - mean.unsqueeze(-2)  # [..., y, k]
    spread = (variance.unsqueeze(-1) + variance.unsqueeze(-2)) / LOGISTIC_VARIANCE + 1
    if kind == "logistic":
        same = torch.eye(mean.shape[-1], dtype=torch.bool, device=mean.device)
        # a class against itself is no contest: 0, whatever its variance
        log_q = -torch.where(same, 0.0, -margin / spread.sqrt()).logsumexp(-1)
    else:
        same = torch.eye(mean.shape[-1], dtype=torch.bool, device=mean.device)
        log_q = torch.where(same, 0.0, torch.special.log_ndtr(margin / (spread * LOGISTIC_VARIANCE).sqrt())).sum(-1)
    return log_q.log_softmax(-1).movedim(-1, dim)

"""Dropout of all kinds: multiplication by independent noise of mean 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnnzoo.moments.table import rule, spellings
from bnnzoo.moments.value import Moments

#: Minus the value that alpha dropout puts in place of what it drops: λα of the SELU (Klambauer et al. 2017).
_SATURATED = 1.7580993408473766


@rule(F.dropout, torch.dropout, random=True)
def _dropout(input: Moments, p: float = 0.5, training: bool = True) -> Any:
    """Elements are kept with probability 1 - p, and divided by it."""
    return _dropped(input, p, None) if training else input


def _per_channel(input: Moments, p: float = 0.5, training: bool = True) -> Any:
    """Whole channels [N, C] are kept or dropped together."""
    return _dropped(input, p, _channels(input, batched=True)) if training else input


rule(F.dropout2d, *spellings("feature_dropout"), random=True)(_per_channel)


@rule(F.dropout1d, random=True)
def _dropout1d(input: Moments, p: float = 0.5, training: bool = True) -> Any:
    """Whole channels; [C, L] is one example."""
    return _dropped(input, p, _channels(input, batched=input.dim() == 3)) if training else input


@rule(F.dropout3d, random=True)
def _dropout3d(input: Moments, p: float = 0.5, training: bool = True) -> Any:
    """Whole channels; [C, D, H, W] is one example."""
    return _dropped(input, p, _channels(input, batched=input.dim() == 5)) if training else input


# `training` has another default in torch.nn.functional than in torch, which asks for it
@rule(F.alpha_dropout, *spellings("alpha_dropout"), random=True)
def _alpha_dropout(input: Moments, p: float = 0.5, training: bool = False) -> Any:
    return _saturated(input, p, None) if training else input


@rule(F.feature_alpha_dropout, *spellings("feature_alpha_dropout"), random=True)
def _feature_alpha_dropout(input: Moments, p: float = 0.5, training: bool = False) -> Any:
    return _saturated(input, p, _channels(input, batched=True)) if training else input


def _dropped(input: Moments, p: float, shape: Sequence[int] | None) -> Any:
    """`m x / (1 - p)`, m of Bernoulli(1 - p): noise of mean 1 and variance p / (1 - p)."""
    if p == 0:
        return input
    return torch.mul(input, 0.0) if p == 1 else input.times_noise(p / (1 - p), shape)


def _saturated(input: Moments, p: float, shape: Sequence[int] | None) -> Any:
    """`a (m x + (1 - m) s) + b`, s the value of saturation, a and b such that mean 0 and variance 1 stay."""
    if p == 0:
        return input
    if p == 1:
        return torch.mul(input, 0.0)
    a = 1 / math.sqrt((1 - p) * (1 + p * _SATURATED**2))
    shifted: Any = torch.add(input, _SATURATED)
    noisy = shifted.times_noise(p / (1 - p), shape)
    return torch.mul(torch.sub(noisy, _SATURATED), a * (1 - p))


def _channels(input: Moments, batched: bool) -> list[int]:
    """Shape of noise that is drawn once a channel."""
    leading = 2 if batched else 1
    return [*input.shape[:leading], *[1] * (input.dim() - leading)]

"""Dropout of all kinds, multiplication by independent noise of mean 1; and noise that a network draws itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnnzoo.moments.table import RANDOM, rule, spellings
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


@rule(torch.randn_like, random=True)
def _standard_normal(input: Moments, **_: Any) -> Moments:
    """Noise of mean 0 and variance 1."""
    return type(input)(torch.zeros_like(input.loc)).plus_noise(torch.ones_like(input.loc))


@rule(torch.rand_like, random=True)
def _uniform(input: Moments, **_: Any) -> Moments:
    """Noise between 0 and 1."""
    return type(input)(torch.full_like(input.loc, 0.5)).plus_noise(torch.full_like(input.loc, 1 / 12))


@rule(*spellings("bernoulli"), random=True)
def _bernoulli(input: Moments, **_: Any) -> Moments:
    """0 or 1, of the probability μ of 1 in all, whatever the variance of the probability: variance μ(1 - μ)."""
    return input.plus_noise((input.loc * (1 - input.loc) - input.variance).clamp_min(0.0))


# They would draw where their arguments are certain.
RANDOM.update(spellings("normal", "poisson", "multinomial", "gumbel_softmax"))


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

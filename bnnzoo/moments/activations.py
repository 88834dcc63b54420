"""Elementwise functions of a Gaussian variable: mean and variance of the result from mean and variance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnzoo.moments.table import elementwise


@elementwise(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def relu(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """`max(0, x)`: mean `μΦ(a) + σφ(a)` and variance `σ²R(a)`, exact (Shekhovtsov & Flach 2018, eqs. 26 and 30)."""
    std = (variance + 1e-12).sqrt()
    a = mean / std
    cdf, pdf = torch.special.ndtr(a), torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    top = a * cdf + pdf
    ratio = a * pdf + (a.square() + 1) * cdf - top.square()
    return std * top, variance * ratio.clamp_min(0.0)

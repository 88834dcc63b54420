"""The contract of scalar rules: every rule with the plain function that it is about, and how close it must be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Rule(NamedTuple):
    """One rule.

    Attributes:
        function: The torch function, called with moments and with tensors alike.
        knots: Where it is not smooth.
        relative: Error allowed, as a share of the truth, where that is more than `absolute`.
        absolute: Error allowed, times 1 + σ for the mean and 1 + σ² for the variance.
        widest: The largest σ: beyond, results overflow.
        reach: How many σ from the mean the reference goes.
    """

    function: Callable[[Tensor], Tensor]
    knots: tuple[float, ...] = ()
    relative: float = 1e-5
    absolute: float = 1e-6
    widest: float = 10.0
    reach: float = 9.0


SLOPE = torch.tensor([0.25], dtype=torch.float64)


def quadrature(function, knots=()):
    """A rule by quadrature, to the bounds that the package states."""
    return Rule(function, knots, 1e-5, 1e-5)


RULES = {
    "relu": Rule(F.relu, (0,)),
    "leaky_relu": Rule(lambda x: F.leaky_relu(x, 0.1), (0,)),
    "leaky_relu of negative slope": Rule(lambda x: F.leaky_relu(x, -0.7), (0,)),
    "rrelu": Rule(F.rrelu, (0,)),
    "prelu": Rule(lambda x: F.prelu(x, SLOPE.to(x.dtype)), (0,)),
    "abs": Rule(torch.abs, (0,)),
    "sign": Rule(torch.sign, (0,)),
    "heaviside": Rule(lambda x: torch.heaviside(x, torch.ones((), dtype=x.dtype)), (0,)),
    "hardtanh": Rule(lambda x: F.hardtanh(x, -0.5, 1.5), (-0.5, 1.5)),
    "relu6": Rule(F.relu6, (0, 6)),
    "clamp": Rule(lambda x: torch.clamp(x, -2, 3), (-2, 3)),
    "clamp from one side": Rule(lambda x: torch.clamp(x, min=1.5), (1.5,)),
    "clamp_min": Rule(lambda x: x.clamp_min(-2.0), (-2,)),
    "clamp_max": Rule(lambda x: x.clamp_max(2.0), (2,)),
    "threshold": Rule(lambda x: F.threshold(x, 0.7, -1.0), (0.7,)),
    "hardsigmoid": Rule(F.hardsigmoid, (-3, 3)),
    "hardswish": Rule(F.hardswish, (-3, 3)),
    "softshrink": Rule(F.softshrink, (-0.5, 0.5)),
    "hardshrink": Rule(lambda x: F.hardshrink(x, 0.3), (-0.3, 0.3)),
    "exp": Rule(torch.exp, widest=3.0, reach=16.0),
    "expm1": Rule(torch.expm1, widest=3.0, reach=16.0),
    "square": Rule(torch.square),
    "cube": Rule(lambda x: x**3),
    "fifth power": Rule(lambda x: torch.pow(x, 5)),
    "sin": Rule(torch.sin),
    "cos": Rule(torch.cos),
    "ndtr": Rule(torch.special.ndtr),
    "erf": Rule(torch.erf),
    "sigmoid": quadrature(torch.sigmoid),
    "tanh": quadrature(torch.tanh),
    "tanhshrink": quadrature(F.tanhshrink),
    "silu": quadrature(F.silu),
    "gelu": quadrature(F.gelu),
    "gelu of tanh": quadrature(lambda x: F.gelu(x, approximate="tanh")),
    "softplus": quadrature(F.softplus),
    "softplus of beta": quadrature(lambda x: F.softplus(x, beta=0.5)),
    "logsigmoid": quadrature(F.logsigmoid),
    "mish": quadrature(F.mish),
    "elu": quadrature(lambda x: F.elu(x, 0.7), (0,)),
    "celu": quadrature(lambda x: F.celu(x, 2.0), (0,)),
    "selu": quadrature(F.selu, (0,)),
}


def points(rule: Rule, mean: float, variance: float) -> tuple[Tensor, Tensor]:
    """Nodes x and weights w of a Gaussian variable, float64: Gauss-Legendre on short pieces between all knots.

    Pieces are at most σ and 1 long, and 16 nodes each leave rounding alone: a test compares with scipy.
    """
    std = variance**0.5
    reach = rule.reach * std
    ends = sorted({mean - reach, mean + reach} | {float(k) for k in rule.knots if abs(k - mean) < reach})
    places, mass = np.polynomial.legendre.leggauss(16)
    nodes, weights = [], []
    for low, high in pairwise(ends):
        edges = np.linspace(low, high, int(np.ceil((high - low) / min(std, 1.0))) + 1)
        half = np.diff(edges)[:, None] / 2
        nodes.append((edges[:-1, None] + half * (1 + places)).ravel())
        weights.append((half * mass).ravel())
    x, w = np.concatenate(nodes), np.concatenate(weights)
    w = w * np.exp(-0.5 * ((x - mean) / std) ** 2)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


class Truth(NamedTuple):
    """Mean and variance of a function of a Gaussian variable, and their derivatives by the input's."""

    mean: float
    variance: float
    mean_by_mean: float
    mean_by_variance: float
    variance_by_mean: float
    variance_by_variance: float


def truth(rule: Rule, mean: float, variance: float) -> Truth:
    """By quadrature; derivatives by Stein's identities, `d E g/dμ = E g z/σ` and `d E g/dσ² = E g (z² - 1)/2σ²`."""
    x, w = points(rule, mean, variance)
    y = rule.function(x)
    center = (w * y).sum()
    y = y - center
    z = (x - mean) / variance**0.5
    first, second = w * z / variance**0.5, w * (z**2 - 1) / (2 * variance)
    # the variance's derivatives are those of E (f - E f)² with E f held: the square's own derivative is 0
    values = (
        center,
        (w * y**2).sum(),
        (first * y).sum(),
        (second * y).sum(),
        (first * y**2).sum(),
        (second * y**2).sum(),
    )
    return Truth(*(each.item() for each in values))

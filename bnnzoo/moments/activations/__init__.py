"""Elementwise functions of a Gaussian variable: mean and variance of the result from mean and variance.

All are differentiable, twice and more, run under vmap, give no negative variance, and become the plain function at zero
variance, with finite derivatives. In float64 closed forms are right to 1e-5 of their value or 1e-6, whichever is more,
for means in [-10, 10] and standard deviations up to 10. Sigmoids (sigmoid, tanh, tanhshrink, silu, gelu, softplus,
logsigmoid), by mixtures of normal cdfs, and what is done by quadrature (mish, gelu of tanh, elu: 17 to 24 passes of the
function) are right to 1e-5 (1 + σ) in the mean, sigmoids to 1e-6 (1 + σ), and 1e-5 (1 + σ²) in the variance.
"""

from bnnzoo.moments.activations import paper
from bnnzoo.moments.activations.curves import (
    celu,
    cos,
    elu,
    erf,
    exp,
    expm1,
    gelu,
    logsigmoid,
    mish,
    ndtr,
    power,
    selu,
    sigmoid,
    silu,
    sin,
    softplus,
    square,
    tanh,
    tanhshrink,
)
from bnnzoo.moments.activations.kinks import abs, heaviside, leaky_relu, prelu, relu, rrelu, sign
from bnnzoo.moments.activations.pieces import (
    clamp,
    clamp_max,
    clamp_min,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    piecewise,
    relu6,
    softshrink,
    threshold,
)
from bnnzoo.moments.activations.quadrature import smooth

__all__ = [
    "abs",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "cos",
    "elu",
    "erf",
    "exp",
    "expm1",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "heaviside",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "ndtr",
    "paper",
    "piecewise",
    "power",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "smooth",
    "softplus",
    "softshrink",
    "square",
    "tanh",
    "tanhshrink",
    "threshold",
]

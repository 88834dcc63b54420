"""Elementwise functions of a Gaussian variable: mean and variance of the result from mean and variance.

Every rule is exact in `bnnzoo.moments.options(approximation="exact")`, or quadrature with its accuracy stated.
"""

from bnnzoo.moments.activations import paper
from bnnzoo.moments.activations.kinks import abs, heaviside, leaky_relu, prelu, relu, rrelu, sign

__all__ = ["abs", "heaviside", "leaky_relu", "paper", "prelu", "relu", "rrelu", "sign"]

"""Moment propagation: mean and variance through any network."""

from bnnzoo.moments import activations, linear, softmax, table, units
from bnnzoo.moments.propagation import per_layer, propagate
from bnnzoo.moments.sites import Nodes, gaussian_nodes, site_moments
from bnnzoo.moments.value import Moments, NoRuleError, options

__all__ = [
    "Moments",
    "NoRuleError",
    "Nodes",
    "activations",
    "gaussian_nodes",
    "linear",
    "options",
    "per_layer",
    "propagate",
    "site_moments",
    "softmax",
    "table",
    "units",
]

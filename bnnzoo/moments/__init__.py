"""Moment propagation: mean and variance through any network."""

from bnnzoo.moments import (
    activations,
    arithmetic,
    dropout,
    fallbacks,
    linear,
    maxima,
    normalization,
    pooling,
    products,
    shapes,
    softmax,
    table,
    units,
)
from bnnzoo.moments.calibration import Calibration, calibrate, load_calibration, uncalibrate
from bnnzoo.moments.channels import statistics
from bnnzoo.moments.covariance import JointMoments
from bnnzoo.moments.initialization import initialize
from bnnzoo.moments.norm import MomentNorm, Normalized
from bnnzoo.moments.propagation import entering, leaving, per_layer, propagate
from bnnzoo.moments.sensitivity import TracedMoments
from bnnzoo.moments.sites import Nodes, NoMomentsError, gaussian_nodes, site_moments
from bnnzoo.moments.value import Moments, NoRuleError, options

__all__ = [
    "Calibration",
    "JointMoments",
    "MomentNorm",
    "Moments",
    "NoMomentsError",
    "NoRuleError",
    "Nodes",
    "Normalized",
    "TracedMoments",
    "activations",
    "arithmetic",
    "calibrate",
    "dropout",
    "entering",
    "fallbacks",
    "gaussian_nodes",
    "initialize",
    "leaving",
    "linear",
    "load_calibration",
    "maxima",
    "normalization",
    "options",
    "per_layer",
    "pooling",
    "products",
    "propagate",
    "shapes",
    "site_moments",
    "softmax",
    "statistics",
    "table",
    "uncalibrate",
    "units",
]

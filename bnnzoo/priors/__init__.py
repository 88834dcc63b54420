"""Priors over the weights of a network, declared by rule.

A prior is one distribution for every parameter, a callable `(name, parameter, module) -> distribution or None`, a dict
whose keys select parameters (exact name, glob pattern, module type, or `"*"`) and whose values are priors again, or
`None`: the parameter stays deterministic and is learned by maximum likelihood. `resolve` turns any of these into one
distribution (or `None`) a parameter.

    resolve(Normal(0.0, 1.0), network)
    resolve({"*.bias": None, nn.Conv2d: He(), "*": FanIn(scale=1.0)}, network)
"""

from pyro.distributions import Cauchy, Laplace, Normal, StudentT

from bnnzoo.priors.named import PRIORS, FanIn, He, LogUniform, ScaleMixture, fan_in
from bnnzoo.priors.rules import Prior, resolve
from bnnzoo.priors.tools import map_tensors

__all__ = [
    "PRIORS",
    "Cauchy",
    "FanIn",
    "He",
    "Laplace",
    "LogUniform",
    "Normal",
    "Prior",
    "ScaleMixture",
    "StudentT",
    "fan_in",
    "map_tensors",
    "resolve",
]

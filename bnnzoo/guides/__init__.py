"""Guides: families of approximate posteriors, built from a `BayesianNetwork`."""

from bnnzoo.guides.base import Guide
from bnnzoo.guides.batch_norm import BatchNorm
from bnnzoo.guides.dropout import Dropout
from bnnzoo.guides.empirical import Empirical
from bnnzoo.guides.laplace import Laplace
from bnnzoo.guides.low_rank import LowRank
from bnnzoo.guides.map import Map
from bnnzoo.guides.mean_field import MeanField
from bnnzoo.guides.mnf import MNF
from bnnzoo.guides.moment_propagation import MomentPropagation
from bnnzoo.guides.pruned import PrunedMeanField

__all__ = [
    "MNF",
    "BatchNorm",
    "Dropout",
    "Empirical",
    "Guide",
    "Laplace",
    "LowRank",
    "Map",
    "MeanField",
    "MomentPropagation",
    "PrunedMeanField",
]

"""Guides: families of approximate posteriors, built from a `BayesianNetwork`."""

from bnnzoo.guides.base import Guide
from bnnzoo.guides.empirical import Empirical
from bnnzoo.guides.map import Map
from bnnzoo.guides.mean_field import MeanField

__all__ = ["Empirical", "Guide", "Map", "MeanField"]

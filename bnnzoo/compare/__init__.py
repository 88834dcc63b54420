"""Comparisons of methods: random splits, seeds, hyperparameters by cross-validation, tables and a forest plot.

compare                    all cells, data sets times methods, resumable, over processes or a cluster
Protocol                   splits, seeds, folds, the network and its training
Method, METHODS            what is compared: a guide, a grid of hyperparameters; PAPER_METHODS has the MCBN paper's
markdown, plot_forest, write, table, over_splits, significance      what comes of the results
load_results               the results of a folder, as far as they are finished
"""

from bnnzoo.compare.forest import plot_forest
from bnnzoo.compare.method import METHODS, PAPER_METHODS, Method
from bnnzoo.compare.protocol import Protocol
from bnnzoo.compare.results import load_results, markdown, over_splits, significance, stars, table, write
from bnnzoo.compare.running import BACKENDS, compare

__all__ = [
    "BACKENDS",
    "METHODS",
    "PAPER_METHODS",
    "Method",
    "Protocol",
    "compare",
    "load_results",
    "markdown",
    "over_splits",
    "plot_forest",
    "significance",
    "stars",
    "table",
    "write",
]

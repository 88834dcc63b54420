"""Objectives: what a fit minimizes, as `pyro.infer.ELBO`s.

Each is used as Pyro uses its own: `objective(model, guide)` is a module whose call with the model's arguments returns
the loss on that batch, scaled to the whole data set; `SVI(model, guide, optim, loss=objective)` works too. Any Pyro
guide will do whose draws are reparameterized. One of your own is a subclass of `Objective`.
"""

from bnnzoo.objectives.base import KLAnnealing, Objective, total_log_likelihood
from bnnzoo.objectives.bb_alpha import BBAlpha, Predictive
from bnnzoo.objectives.divergence import kl_terms, log_ratio
from bnnzoo.objectives.elbo import ELBO
from bnnzoo.objectives.moment_elbo import MomentELBO
from bnnzoo.objectives.renyi import ImportanceWeighted, Renyi
from bnnzoo.objectives.sites import Sites, log_prob

__all__ = [
    "ELBO",
    "BBAlpha",
    "ImportanceWeighted",
    "KLAnnealing",
    "MomentELBO",
    "Objective",
    "Predictive",
    "Renyi",
    "Sites",
    "kl_terms",
    "log_prob",
    "log_ratio",
    "total_log_likelihood",
]

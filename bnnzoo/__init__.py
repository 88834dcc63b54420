"""bnnzoo: a zoo of Bayesian neural networks as Pyro programs.

network            any `torch.nn.Module`
BayesianNetwork    network + prior + likelihood: a Pyro model
guides             families of approximate posteriors, built from the model
moments            mean and variance through any network, nothing sampled
objectives         what is minimized
fit -> Posterior   samples, predicts, saves, exports to ArviZ
"""

from importlib.metadata import version

from bnnzoo import data, evaluation, guides, likelihoods, models, moments, objectives, priors
from bnnzoo.mcmc import sample
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction
from bnnzoo.serialization import load
from bnnzoo.training import Task, fit, fit_each

__version__ = version("bnnzoo")

__all__ = [
    "BayesianNetwork",
    "Posterior",
    "Prediction",
    "Task",
    "__version__",
    "data",
    "evaluation",
    "fit",
    "fit_each",
    "guides",
    "likelihoods",
    "load",
    "models",
    "moments",
    "objectives",
    "priors",
    "sample",
]

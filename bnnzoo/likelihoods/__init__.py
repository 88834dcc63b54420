"""Likelihoods: the distribution of a target given the output of the network.

Every likelihood is a module whose hyperparameters are buffers or parameters, written for one draw of the weights and
fit to run under `torch.func.vmap`: `conditional`, `distribution`, `log_prob`, `expected_log_prob` and `log_power_mean`
never look at values. What a user can get wrong is caught before, by `prepare` (targets) and `check` (targets against
outputs).

Shapes: N examples, C outputs, K classes. A network with one output gives [N, 1], its targets are [N].
"""

from bnnzoo.likelihoods.base import Likelihood
from bnnzoo.likelihoods.discrete import Bernoulli, Categorical, Poisson
from bnnzoo.likelihoods.gaussian import Gaussian, HeteroscedasticGaussian
from bnnzoo.likelihoods.moment_targets import MomentTargets

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "MomentTargets",
    "Poisson",
]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic": HeteroscedasticGaussian,
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
}
"""The likelihoods by name; each constructor may be called without arguments."""

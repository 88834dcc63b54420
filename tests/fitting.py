"""Small fits that tests of training share."""

import torch
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors
from bnnzoo._vectorize import seeded

N = 40


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, 3, generator=gen())
Y = X.sum(1) + 0.1 * torch.randn(N, generator=gen(1))
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network(out=1, seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, out))


def model(net=None, likelihood=None, prior=None):
    prior = priors.Normal(0.0, 1.0) if prior is None else prior
    return BayesianNetwork(net or network(), likelihood or likelihoods.Gaussian(0.3), prior)


def quick(bnn=None, guide=guides.Map, dataset=(X, Y), **settings):
    bnn = bnn or model()
    return fit(bnn, guide(bnn), dataset, **{"epochs": 3, "lr": 0.01, **settings})


def parameters(posterior):
    return {name: value.clone() for name, value in {**posterior._parameters, **posterior._buffers}.items()}


def assert_equal(first, second, chains=slice(None)):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value[chains], second[name][chains]), name


class Record:
    """A callback that keeps what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, progression):
        self.seen.append(
            (
                progression.epoch,
                {name: value.copy() for name, value in progression.history.items()},
                {name: value.clone() for name, value in progression.parameters.items()},
                progression.active.clone(),
            )
        )

"""Small posteriors to be saved, and what loading must bring back."""

import numpy as np
import torch
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, load

N = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, 3, generator=generator())
Y = X.sum(1) + 0.1 * torch.randn(N, generator=generator(1))


def mlp(out=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out))


def fitted(network=None, likelihood=None, prior=None, guide=guides.MeanField, data=(X, Y), **settings):
    prior = {} if prior is None else {"prior": prior}
    bnn = BayesianNetwork(network or mlp(), likelihood or likelihoods.Gaussian(), **prior)
    return fit(bnn, guide(bnn), data, **{"epochs": 2, "lr": 0.01, **settings})


def same(first, second, x=X[:5]):
    a, b = first.predict(x, num_samples=4, seed=3), second.predict(x, num_samples=4, seed=3)
    assert a.parameters.keys() == b.parameters.keys()
    for name, value in a.parameters.items():
        assert torch.equal(value, b.parameters[name])
    draws, again = first.sample(3, seed=1), second.sample(3, seed=1)
    assert draws.keys() == again.keys()
    for name, value in draws.items():
        assert torch.equal(value, again[name])
    priors_of = [posterior.log_prior(draws) for posterior in (first, second)]
    assert torch.equal(*priors_of)
    assert first.info == second.info
    assert first.history.keys() == second.history.keys()
    for name, value in first.history.items():
        np.testing.assert_array_equal(value, second.history[name])


def round_trip(posterior, tmp_path, **settings):
    posterior.save(tmp_path / "posterior.bnn")
    return load(tmp_path / "posterior.bnn", **settings)

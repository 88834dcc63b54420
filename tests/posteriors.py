"""Small posteriors that tests share."""

import pyro.distributions as dist
import torch
from torch import nn
from torch.func import functional_call

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors
from bnnzoo._vectorize import seeded

N = 40


X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))


Y = X.sum(1) + 0.2 * torch.randn(N, generator=torch.Generator().manual_seed(1))


LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network(out=1):
    with seeded(0):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out))


def fitted(net=None, likelihood=None, guide=guides.MeanField, dataset=(X, Y), prior=None, **settings):
    bnn = BayesianNetwork(net or network(), likelihood or likelihoods.Gaussian(0.3), prior or priors.Normal(0.0, 1.0))
    return fit(bnn, guide(bnn), dataset, **{"epochs": 3, "lr": 0.01, **settings})


NOISE = likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5))


def by_hand(fit_, x, num_samples, seed):
    """Outputs of the plain network for each of the sampled weights, [chain, draw, N, C]."""
    draws = fit_.sample(num_samples, seed)
    net = fit_.bnn.network.eval()
    names = dict(net.named_parameters())
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack(
                    [
                        functional_call(net, {n: v[c, s] for n, v in draws.items() if n in names}, (x,))
                        for s in range(num_samples)
                    ]
                )
                for c in range(fit_.chains)
            ]
        ), draws

"""Small networks with batch norm that tests share, and what torch makes of them."""

import copy

import torch
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import seeded

COMPARISONS = 1000
N = 48


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, 3, generator=gen())
Y = X.sum(1) + 0.3 * torch.randn(N, generator=gen(1))


def dense(out=1, seed=0):
    with seeded(seed):
        return nn.Sequential(
            *(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh()),
            *(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU()),
            nn.Linear(4, out),
        )


def convolutional(dims=2, seed=0):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    with seeded(seed):
        return nn.Sequential(
            *(conv(1, 3, 2), norm(3), nn.ReLU()),
            *(conv(3, 2, 2), norm(2), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(2 * 2**dims, 1)),
        )


def images(dims, count=N):
    return torch.randn(count, 1, *[4] * dims, generator=gen(dims))


def model(network=None, likelihood=None, **settings):
    return BayesianNetwork(network or dense(), likelihood or likelihoods.Gaussian(0.3), **settings)


def fitted(network=None, x=X, y=Y, statistics="batches", num_statistics=20, likelihood=None, **settings):
    bnn = model(network, likelihood)
    guide = guides.BatchNorm(bnn, statistics, num_statistics)
    return fit(bnn, guide, (x, y), **{"epochs": 3, "lr": 0.02, "batch_size": 16, **settings})


def point(posterior, chain=0):
    """The trained network of a chain, as an ordinary module in eval mode."""
    network = copy.deepcopy(posterior.bnn.network)
    values = posterior.guide.layout.split(posterior.state()[0]["guide.loc"][chain])
    with torch.no_grad():
        for name, value in zip(posterior.guide.layout.names, values, strict=True):
            if name != "noise":
                network.get_parameter(name).copy_(value)
        for name, value in network.named_buffers():
            value.copy_(posterior.state()[1][f"model.network.{name}"][chain])
    return network.eval()


def by_statistics(network, statistics):
    """A network that normalizes by given means and standard deviations: torch itself, these as running statistics."""
    network = copy.deepcopy(network).eval()
    for path, (mean, std) in statistics.items():
        layer = network.get_submodule(path)
        layer.running_mean, layer.running_var = mean, std.square()
    return network


def train_mode_statistics(network, x):
    """Mean and standard deviation of every batch norm layer's input when torch trains on one batch."""
    network, found, handles = copy.deepcopy(network).train(), {}, []
    for path, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):

            def record(_, args, path=path):
                h = args[0].transpose(0, 1).flatten(1)
                found[path] = (h.mean(1), h.std(1, correction=0))

            handles.append(layer.register_forward_pre_hook(record))
    with torch.no_grad():
        network(x)
    return found

"""Networks with batch norm: trained ones that become posteriors, and those that `guides.BatchNorm` cannot treat."""

import copy

import pyro.distributions as dist
import pytest
import torch
from batch_norms import (
    COMPARISONS,
    N,
    X,
    Y,
    convolutional,
    dense,
    gen,
    images,
    model,
    train_mode_statistics,
)
from saving import round_trip
from statistical import bound
from torch import nn

from bnnzoo import fit, guides, likelihoods
from bnnzoo._vectorize import seeded
from bnnzoo.chains import chain_seed
from bnnzoo.data import Dataset
from bnnzoo.guides.batch_statistics import random_batches

# Trained networks


def trained(network, x=X, y=Y, steps=30):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(steps):
        rows = torch.randperm(len(x), generator=gen(step))[:16]
        optimizer.zero_grad()
        (network.train()(x[rows]).squeeze(1) - y[rows]).square().mean().backward()
        optimizer.step()
    return network


@pytest.mark.parametrize(("affine", "mode"), [(True, "train"), (False, "eval")])
def test_a_trained_network_gives_the_posterior_of_the_papers_algorithm(affine, mode):
    network = dense()
    for i in (1, 4):
        network[i] = nn.BatchNorm1d(network[i].num_features, affine=affine)
    network = getattr(trained(network), mode)()
    before = copy.deepcopy(network.state_dict())
    state = torch.random.get_rng_state()
    posterior = guides.BatchNorm.from_trained(network, (X, Y), batch_size=16, num_statistics=200, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.training == (mode == "train")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    query = torch.randn(5, 3, generator=gen(5))
    draws = posterior.predict(query, num_samples=4000).draws[0].double()
    # Algorithm 1, by hand, on batches of its own.
    by_hand = []
    for step in range(600):
        batch, h = X[torch.randperm(N, generator=gen(step))[:16]], query
        with torch.no_grad():
            for layer in network.eval():
                if isinstance(layer, nn.BatchNorm1d):
                    var, mean = torch.var_mean(batch, 0, correction=0)
                    batch, h = ((value - mean) / (var + layer.eps).sqrt() for value in (batch, h))
                    if affine:
                        batch, h = (value * layer.weight + layer.bias for value in (batch, h))
                else:
                    batch, h = layer(batch), layer(h)
        by_hand.append(h.squeeze(1))
    by_hand = torch.stack(by_hand).double()
    standard_error = (by_hand.var(0) * (1 / 200 + 1 / 600 + 1 / 4000)).sqrt()
    assert ((draws.mean(0) - by_hand.mean(0)).abs() < bound(COMPARISONS) * standard_error).all()
    squares = (by_hand - by_hand.mean(0)).square()
    standard_error = (squares.var(0) * (1 / 200 + 1 / 600 + 1 / 4000)).sqrt()
    assert ((draws.var(0) - by_hand.var(0)).abs() < bound(COMPARISONS) * standard_error).all()
    assert by_hand.var(0).min() > 1e-4
    stored = posterior.state()[1]["guide.means"][0]
    with seeded(chain_seed(4, 0) + 2):
        first = random_batches(N, 16, 200)[0]
    found = train_mode_statistics(network, X[first])
    torch.testing.assert_close(stored[0], torch.cat([found["1"][0], found["4"][0]]), rtol=1e-4, atol=1e-5)


def test_a_trained_networks_sites_are_its_batch_norms_alone(tmp_path):
    posterior = guides.BatchNorm.from_trained(trained(dense()), (X, Y))
    assert set(posterior.bnn.sites) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert posterior.info["batch_size"] == N
    loaded = round_trip(posterior, tmp_path)
    assert torch.equal(loaded.predict(X, num_samples=3).draws, posterior.predict(X, num_samples=3).draws)
    exported = posterior.to_arviz((X, Y), num_samples=3)
    assert exported.posterior.attrs["fitted_to_these_data"] in (True, 1)
    everything = nn.Sequential(nn.BatchNorm1d(3))  # nothing but batch norm, and a network that is one layer
    guides.BatchNorm.from_trained(everything, (X, X))
    assert guides.BatchNorm.from_trained(nn.BatchNorm1d(3), (X, X)).guide.auxiliary.keys() == {"mean", "std"}


def test_a_trained_networks_standardization_and_likelihood():
    scaled = Dataset(100 * X + 7, 50 * Y - 20).with_standardization()
    network = trained(dense(), *scaled.standardized())
    posterior = guides.BatchNorm.from_trained(network, scaled, batch_size=16)
    prediction = posterior.predict(scaled.x)
    assert (prediction.mean - scaled.y).square().mean().sqrt() < 40  # of 90
    assert 5 < prediction.aleatoric.mean().sqrt() < 25
    raw = guides.BatchNorm.from_trained(network, scaled.standardized(), batch_size=16)
    torch.testing.assert_close(raw.bnn.likelihood.scale, posterior.bnn.likelihood.scale, rtol=1e-3, atol=1e-5)
    labels = (Y > 0).long()
    assert isinstance(guides.BatchNorm.from_trained(dense(2), (X, labels)).bnn.likelihood, likelihoods.Categorical)
    counts = Dataset(X, labels, task="counts")
    assert isinstance(guides.BatchNorm.from_trained(dense(1), counts).bnn.likelihood, likelihoods.Poisson)
    several = guides.BatchNorm.from_trained(dense(2), (X, torch.stack([Y, 3 * Y], 1)))
    assert several.bnn.likelihood.scale.shape == (2,)
    given = guides.BatchNorm.from_trained(dense(1), (X, labels), likelihood=likelihoods.Bernoulli())
    assert given.predict(X).probs.shape == (N, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": nn.Linear(3, 1)}, ValueError, "this Linear has none: its layers are Linear"),
        ({"network": "net"}, TypeError, "network must be a torch.nn.Module, not str"),
        ({"batch_size": N + 1}, ValueError, f"batch_size must be from 1 to the number of data, {N}, not {N + 1}"),
        ({"batch_size": 0}, ValueError, "batch_size must be from 1"),
        ({"batch_size": 1}, ValueError, "in batches of 1 leave a batch of one row"),
        ({"data": (X[:, :2], Y)}, ValueError, "the network fails on inputs of shape"),
        ({"data": (X, (Y > 0).long())}, ValueError, "Categorical likelihood"),
        ({"statistics": "batch"}, ValueError, "statistics must be one of 'batches', 'gaussian', not 'batch'"),
        ({"num_statistics": 0}, ValueError, "num_statistics must be an integer of at least 1, not 0"),
    ],
)
def test_what_from_trained_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        guides.BatchNorm.from_trained(**{"network": dense(), "data": (X, Y), **arguments})


# Networks that it cannot treat


def without(**changes):
    network = dense()
    network[4] = nn.BatchNorm1d(4, **changes)
    return network


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.norm(self.norm(x).exp()))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(self.second(self.first(x).exp()))


class Folded(nn.Module):
    """Normalizes positions as if they were rows."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(1), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.norm(x.reshape(-1, 1)).view(x.shape))


class Idle(nn.Module):
    """Has a layer that does not run."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.out = nn.BatchNorm1d(3), nn.BatchNorm1d(2), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.used(x))


@pytest.mark.parametrize(
    ("network", "prior", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), None, "has none: its layers are Linear, ReLU"),
        (without(affine=False), None, r"4 \(BatchNorm1d\) has affine=False"),
        (without(track_running_stats=False), None, r"4 \(BatchNorm1d\) keeps no running statistics"),
        (dense(), {"4.bias": None, "*": dist.Normal(0.0, 1.0)}, r"4 \(BatchNorm1d\): the prior of 4.bias is None"),
        (
            dense(),
            {"1.*": None, "*": dist.Normal(0.0, 1.0)},
            r"1 \(BatchNorm1d\): the prior of 1.weight is None",
        ),
        (Shared(), None, r"first \(BatchNorm1d\): first.weight is shared with another layer"),
    ],
)
def test_networks_that_it_cannot_treat(network, prior, message):
    bnn = model(network, **({} if prior is None else {"prior": prior}))
    with pytest.raises(ValueError, match=message):
        guides.BatchNorm(bnn)


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
def test_a_layer_that_runs_twice_is_refused_by_path(statistics):
    with pytest.raises(ValueError, match=r"norm \(BatchNorm1d\) runs more than once in one pass"):
        guides.BatchNorm.from_trained(Twice(), (X, Y), statistics=statistics)


def test_a_last_batch_of_one_row_is_refused_before_training():
    bnn = model()
    with pytest.raises(
        ValueError, match="48 data in batches of 47 leave a batch of one row, of which batch normalization"
    ):
        fit(bnn, guides.BatchNorm(bnn), (X, Y), batch_size=47)
    with pytest.raises(ValueError, match="48 data in batches of 1 leave"):
        fit(bnn, guides.Map(bnn), (X, Y), batch_size=1)
    bnn = model(convolutional(2))  # one image has statistics, too
    posterior = fit(bnn, guides.BatchNorm(bnn), (images(2), Y), batch_size=47, epochs=1)
    assert posterior.predict(images(2)).draws.isfinite().all()


def test_layers_whose_rows_are_not_examples():
    with pytest.raises(ValueError, match=r"norm \(BatchNorm1d\) gets 144 rows for 48 examples"):
        guides.BatchNorm.from_trained(Folded(), (X, Y), statistics="gaussian")
    posterior = guides.BatchNorm.from_trained(Folded(), (X, Y), batch_size=16)
    with seeded(chain_seed(0, 0) + 2):
        batches = random_batches(N, 16, 200)
    expected = X[batches].flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(posterior.state()[1]["guide.means"][0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
def test_a_layer_that_does_not_run_keeps_its_running_statistics(statistics):
    network = Idle()
    network.idle.running_mean.fill_(3.0)
    network.idle.running_var.fill_(4.0)
    drawn = guides.BatchNorm.from_trained(network, (X, Y), statistics=statistics).sample(5, auxiliary=True)
    assert (drawn["idle.mean"] == 3.0).all()
    assert (drawn["idle.std"] == 2.0).all()
    assert drawn["used.mean"].std(1).min() > 0 or statistics == "gaussian"  # one batch of all data is no random one

"""`guides.BatchNorm`: draws, training, and what it does together with the rest."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_norms import (
    COMPARISONS,
    N,
    X,
    Y,
    by_statistics,
    convolutional,
    dense,
    fitted,
    images,
    model,
    point,
    train_mode_statistics,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from saving import round_trip
from statistical import assert_mean
from torch import nn

from bnnzoo import fit, guides, likelihoods, objectives, priors
from bnnzoo._vectorize import seeded
from bnnzoo.chains import chain_seed
from bnnzoo.data import Dataset
from bnnzoo.guides.batch_statistics import random_batches

# The draw and what it does


@pytest.mark.parametrize(("network", "x"), [(dense(), X), *((convolutional(d), images(d)) for d in (1, 2, 3))])
def test_one_batch_of_all_data_gives_what_torch_gives_in_train_mode(network, x):
    posterior = fitted(network, x, batch_size=N, num_statistics=1)
    expected = point(posterior).train()(x).squeeze(1)
    prediction = posterior.predict(x, num_samples=3)
    torch.testing.assert_close(prediction.draws, expected.detach().expand(1, 3, -1), rtol=1e-4, atol=1e-5)
    # The check can fail: ordinary batch norm says something else.
    assert (point(posterior)(x).squeeze(1) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
@pytest.mark.parametrize("network", [dense(), convolutional(2)], ids=["dense", "conv"])
def test_a_draw_is_the_network_that_normalizes_by_the_drawn_statistics(network, statistics):
    x = X if isinstance(network[0], nn.Linear) else images(2)
    posterior = fitted(network, x, statistics=statistics, chains=2, epochs=2)
    drawn = posterior.sample(4, seed=3, auxiliary=True)
    prediction = posterior.predict(x[:7], num_samples=4, seed=3)
    paths = {name.removesuffix(".mean") for name in posterior.guide.auxiliary if name.endswith(".mean")}
    assert paths == {path for path, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    seen = []
    for chain in range(2):
        for draw in range(4):
            given = {path: (drawn[f"{path}.mean"][chain, draw], drawn[f"{path}.std"][chain, draw]) for path in paths}
            with torch.no_grad():
                seen.append(by_statistics(point(posterior, chain), given)(x[:7]).squeeze(1))
    seen = torch.stack(seen).view(2, 4, 7)
    torch.testing.assert_close(prediction.draws, seen, rtol=1e-4, atol=1e-5)
    assert seen.std(1).min() > 1e-4  # draws differ


def test_training_is_that_of_the_network_under_weight_decay():
    network, x, y = dense(), X.double(), Y.double()
    bnn = model(network.double(), likelihoods.Gaussian(0.5), prior=priors.Normal(0.0, 2.0))
    posterior = fit(
        bnn, guides.BatchNorm(bnn), (x, y), epochs=20, batch_size=N, lr=1e-3, optimizer=torch.optim.SGD, clip_norm=10.0
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(20):
        optimizer.zero_grad()
        loss = (network(x).squeeze(1) - y).square().sum() / (2 * 0.5**2)
        loss = loss + sum(p.square().sum() for p in network.parameters()) / (2 * 2.0**2)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    torch.testing.assert_close(dict(point(posterior).state_dict()), dict(network.state_dict()), rtol=1e-8, atol=1e-8)
    mapped = fit(
        bnn, guides.BatchNorm(bnn), (x, y), epochs=20, batch_size=N, lr=1e-3, optimizer=torch.optim.SGD, clip_norm=10.0,
        chains=2,
    )  # fmt: skip
    torch.testing.assert_close(dict(point(mapped).state_dict()), dict(network.state_dict()), rtol=1e-8, atol=1e-8)


def test_before_statistics_are_collected_it_is_ordinary_batch_norm():
    bnn = model()
    with torch.no_grad():
        bnn.network.train()(X)  # running statistics of its own
    for statistics in ("batches", "gaussian"):
        guide = guides.BatchNorm(bnn, statistics).eval()
        bnn.eval()
        values = guide()
        torch.testing.assert_close(bnn.output(values, X), bnn.network(X))
        bnn.network[1].running_mean += 0.5  # it goes with them
        torch.testing.assert_close(bnn.output(guide(), X), bnn.network(X))


def test_draws_pick_every_batch_alike_and_all_layers_together():
    posterior = fitted(num_statistics=5)
    drawn = posterior.sample(4000, auxiliary=True)
    stored = posterior.state()[1]["guide.means"][0]
    assert stored.shape == (5, 10)
    together = torch.cat([drawn["1.mean"], drawn["4.mean"]], -1)[0]
    match = (together[:, None] == stored).all(-1)
    assert (match.sum(1) == 1).all()
    assert_mean(match.double(), torch.full((5,), 0.2, dtype=torch.float64), COMPARISONS)
    stds = torch.cat([drawn["1.std"], drawn["4.std"]], -1)[0]
    assert torch.equal(stds, posterior.state()[1]["guide.stds"][0][match.int().argmax(1)])


# Together with the rest


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
def test_a_loaded_posterior_predicts_without_training_data(tmp_path, statistics):
    network = dense()
    x, y = X.clone(), Y.clone()
    data = Dataset(x, y).with_standardization()
    bnn = model(network)
    posterior = fit(bnn, guides.BatchNorm(bnn, statistics, 7), data, epochs=2, batch_size=16, chains=2)
    expected = posterior.predict(X[:5], num_samples=6).draws
    drawn = posterior.sample(6, auxiliary=True)
    for value in (x, y, data.x, data.y):
        value.fill_(torch.nan)
    loaded = round_trip(posterior, tmp_path)
    assert loaded.guide.statistics == statistics
    assert loaded.guide.num_statistics == 7
    assert torch.equal(loaded.predict(X[:5], num_samples=6).draws, expected)
    for name, value in loaded.sample(6, auxiliary=True).items():
        assert torch.equal(value, drawn[name]), name


def test_chains_have_statistics_of_their_own():
    posterior = fitted(chains=3)
    means = posterior.state()[1]["guide.means"]
    assert all((means[a] - means[b]).abs().min() > 0 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_further_training_collects_again():
    posterior = fitted()
    further = posterior.fit((X, Y), epochs=2, lr=0.05, batch_size=16, seed=9)
    with seeded(chain_seed(9, 0) + 2):
        batches = random_batches(N, 16, 20)
    found = train_mode_statistics(point(further), X[batches[0]])
    expected = torch.cat([found["1"][0], found["4"][0]])
    torch.testing.assert_close(further.state()[1]["guide.means"][0, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_statistics_reach_arviz():
    posterior = fitted()
    exported = posterior.to_arviz((X, Y), num_samples=12)
    drawn = posterior.sample(12, auxiliary=True)
    for name in ("1.mean", "4.std"):
        torch.testing.assert_close(torch.as_tensor(exported.posterior[name].values), drawn[name])


def test_classes_and_a_noise_with_a_prior():
    posterior = fitted(dense(3), y=(Y > 0).long() + (Y > 1).long(), likelihood=likelihoods.Categorical())
    assert posterior.predict(X).probs.shape == (N, 3)
    posterior = fitted(likelihood=likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)))
    assert posterior.sample(3)["noise"].shape == (1, 3)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), objectives.ELBO(), objectives.ELBO(num_particles=2)])
def test_pyros_svi_trains_it_and_scores_it_in_eval_mode(elbo):
    bnn = model(likelihood=likelihoods.Gaussian(0.5))
    guide = guides.BatchNorm(bnn)
    svi = SVI(bnn, guide, Adam({"lr": 0.05}), loss=elbo)
    losses = [svi.step(X, Y) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        values = {name: q.mean for name, q in guide.distributions().items()}
        bnn.train()
        output = bnn.output(values, X).squeeze(1)
        expected = -dist.Normal(output, 0.5).log_prob(Y).sum()
        expected -= sum(prior.log_prob(values[name]).sum() for name, prior in bnn.sites.items())
    assert elbo.loss(bnn, guide, X, Y) == pytest.approx(expected.item(), rel=1e-4)
    guide.eval()
    bnn.eval()
    assert torch.isfinite(torch.tensor(elbo.loss(bnn, guide, X, Y)))
    pyro.clear_param_store()


def test_other_precisions():
    bnn = model().double()
    posterior = fit(bnn, guides.BatchNorm(bnn, "gaussian"), (X.double(), Y.double()), epochs=1, batch_size=16)
    assert posterior.predict(X).draws.dtype == torch.float64

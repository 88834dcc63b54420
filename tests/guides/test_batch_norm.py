"""`guides.BatchNorm`: draws, collected statistics, their Gaussian form, and trained networks."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from saving import round_trip
from statistical import assert_mean, bound
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives, priors
from bnnzoo import posterior as posterior_module
from bnnzoo._vectorize import seeded
from bnnzoo.chains import chain_seed
from bnnzoo.data import Dataset
from bnnzoo.guides.batch_statistics import gaussian_form, of_batches, random_batches

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


# What is collected


def test_random_batches_are_uniform_and_hold_no_row_twice():
    torch.manual_seed(1)
    batches = random_batches(11, 4, 4000)
    assert batches.shape == (4000, 4)
    assert all(len(set(batch.tolist())) == 4 for batch in batches)
    counts = torch.nn.functional.one_hot(batches, 11).sum(1).double()
    # Batches of one shuffle exclude each other's rows, so that the mean is closer than if they were independent.
    assert_mean(counts, torch.full((11,), 4 / 11, dtype=torch.float64), COMPARISONS)


@pytest.mark.parametrize(("network", "x"), [(dense(), X), (convolutional(2), images(2))], ids=["dense", "conv"])
def test_collected_statistics_are_those_of_the_batches_by_hand(network, x, monkeypatch):
    monkeypatch.setattr("bnnzoo.guides.batch_statistics._MEMORY", 200_000)  # several blocks
    posterior = fitted(network, x, chains=2, seed=5, num_statistics=9, batch_size=10)
    for chain in range(2):
        with seeded(chain_seed(5, chain) + 2):
            batches = random_batches(N, 10, 9)
        found = [train_mode_statistics(point(posterior, chain), x[batch]) for batch in batches]
        means = torch.stack([torch.cat([each[path][0] for path in sorted(each)]) for each in found])
        stds = torch.stack([torch.cat([each[path][1] for path in sorted(each)]) for each in found])
        buffers = posterior.state()[1]
        torch.testing.assert_close(buffers["guide.means"][chain], means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffers["guide.stds"][chain], stds, rtol=1e-4, atol=1e-5)
        assert buffers["guide.collected"][chain]


def test_collecting_moves_no_running_statistics():
    posterior = fitted()
    before = posterior.state()[1]
    with torch.no_grad():
        posterior.guide.eval()
        posterior.bnn.eval()
        posterior.guide.collect(X, Y, 16)
    after = dict(posterior.bnn.network.named_buffers())
    for name, value in before.items():
        if name.startswith("model.network."):
            assert torch.equal(value[0], after[name.removeprefix("model.network.")]), name


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
def test_patience_returns_the_best_epochs_statistics(statistics):
    posterior = fitted(statistics=statistics, epochs=8, lr=0.2, validation=(X[:9], Y[:9]), patience=2, seed=2, chains=2)
    buffers = posterior.state()[1]
    for chain in range(2):
        network = point(posterior, chain)
        layers = {path: network.get_submodule(path) for path in ("1", "4")}
        with seeded(chain_seed(2, chain) + 2), torch.no_grad():
            found = (
                of_batches(network, layers, X, random_batches(N, 16, 20))
                if statistics == "batches"
                else gaussian_form(network, layers, X, 16)
            )
        for name in ("means", "stds"):
            expected = torch.cat([getattr(found[path], name) for path in layers], -1)
            torch.testing.assert_close(buffers[f"guide.{name}"][chain], expected, rtol=1e-4, atol=1e-5)


# The Gaussian form


def population(network, x):
    """A network that normalizes every layer by its input's exact moments over all data, layer by layer."""
    network = copy.deepcopy(network).double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            inputs = []
            handle = layer.register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0]))
            with torch.no_grad():
                network(x.double())
            handle.remove()
            h = inputs[0].transpose(0, 1).flatten(1)
            layer.running_mean, layer.running_var = h.mean(1), h.var(1, correction=0)
    return network


def layer_inputs(network, path, x):
    inputs = []
    handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        network(x)
    handle.remove()
    return inputs[0]


def test_the_gaussian_form_of_a_dense_layer_is_the_papers():
    network = dense()
    posterior = fitted(network, statistics="gaussian", batch_size=16)
    exact = population(point(posterior), X)
    h = torch.cat([layer_inputs(exact, path, X.double()) for path in ("1", "4")], 1)
    mean, var = h.mean(0), h.var(0, correction=0)
    fourth = (h - mean).pow(4).mean(0)
    without_replacement = (N - 16) / (N - 1)
    buffers = {name.removeprefix("guide."): value[0].double() for name, value in posterior.state()[1].items()}
    torch.testing.assert_close(buffers["means"], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(buffers["stds"], var.sqrt(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(buffers["mean_scales"] ** 2, var / 16 * without_replacement, rtol=1e-5, atol=1e-7)
    expected = (fourth - var.square()) / (4 * var * 16) * without_replacement
    torch.testing.assert_close(buffers["std_scales"] ** 2, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_gaussian_form_against_many_random_batches(kind):
    size, batch_size, draws = 2000, 500, 4000
    if kind == "dense":
        network, x = dense(), torch.randn(size, 3, generator=gen(7)).exp()
    else:
        # Images of one brightness each: positions of one image are alike.
        brightness = torch.randn(size, 1, 1, 1, generator=gen(7))
        network, x = convolutional(2), brightness + 0.3 * torch.randn(size, 1, 4, 4, generator=gen(8))
    exact = population(network, x)
    layers = {path: network.get_submodule(path) for path in ("1", "4")}
    with torch.no_grad():
        form = gaussian_form(network.eval(), layers, x, batch_size)
    torch.manual_seed(3)
    batches = random_batches(size, batch_size, draws)
    # Batches of one shuffle are dependent: take the first of each.
    batches = torch.stack([torch.randperm(size)[:batch_size] for _ in batches])
    for path, layer in form.items():
        h = layer_inputs(exact, path, x.double()).transpose(0, 1).flatten(2) if kind == "conv" else None
        h = layer_inputs(exact, path, x.double()).T[..., None] if h is None else h
        examples_mean, examples_square = h.mean(-1), h.square().mean(-1)
        means = examples_mean[:, batches].mean(-1).T
        stds = (examples_square[:, batches].mean(-1).T - means.square()).sqrt()
        for values, center, scale in ((means, layer.means, layer.mean_scales), (stds, layer.stds, layer.std_scales)):
            values, center, scale = values, center.double(), scale.double()
            error = (values.mean(0) - center).abs() / scale
            # Of order 1/M the standard deviation is below its center.
            assert (error < bound(COMPARISONS) / draws**0.5 + (0 if values is means else 0.15)).all(), (path, error)
            squares = (values - values.mean(0)).square()
            error = squares.mean(0) - scale.square()
            standard_error = squares.std(0) / draws**0.5
            slack = 0 if values is means else 0.03 * scale.square()  # of order 1/M
            assert (error.abs() < bound(COMPARISONS) * standard_error + slack).all(), (path, error / scale.square())


def test_draws_of_the_gaussian_form_have_its_moments():
    posterior = fitted(statistics="gaussian", batch_size=40)
    buffers = posterior.state()[1]
    drawn = posterior.sample(4000, auxiliary=True)
    for name in ("mean", "std"):
        values = torch.cat([drawn[f"{path}.{name}"] for path in ("1", "4")], -1)[0].double()
        center, scale = (buffers[f"guide.{name}{end}"][0].double() for end in ("s", "_scales"))
        z = (values - center) / scale
        assert_mean(z, torch.zeros(10, dtype=torch.float64), COMPARISONS)
        assert_mean(z.square(), torch.ones(10, dtype=torch.float64), COMPARISONS)
        correlation = z.T @ z / len(z) - torch.eye(10, dtype=torch.float64) * z.square().mean(0)
        assert correlation.abs().max() < bound(COMPARISONS) / len(z) ** 0.5


def test_drawn_standard_deviations_are_never_negative():
    posterior = fitted(statistics="gaussian")
    posterior._buffers["guide.std_scales"].fill_(10.0)
    assert (posterior.sample(500, auxiliary=True)["1.std"] >= 0).all()
    assert posterior.predict(X).draws.isfinite().all()


@pytest.mark.parametrize("statistics", ["batches", "gaussian"])
def test_a_unit_that_never_changes(statistics):
    network = dense()
    with torch.no_grad():
        network[0].weight[0] = 0.0
    posterior = guides.BatchNorm.from_trained(network, (X, Y), statistics=statistics, batch_size=16)
    drawn = posterior.sample(50, auxiliary=True)
    assert (drawn["1.std"][..., 0].abs() < 1e-6).all()
    assert posterior.predict(X).draws.isfinite().all()


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


# Draws that share weights


@pytest.mark.parametrize("kind", ["dense", "conv", "map"])
def test_what_all_draws_share_is_computed_once_to_the_same_result(kind, monkeypatch):
    network, x = (convolutional(2), images(2)) if kind == "conv" else (dense(), X)
    bnn = model(network, likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)))
    guide = guides.Map(bnn) if kind == "map" else guides.BatchNorm(bnn)
    posterior = fit(bnn, guide, (x, Y), epochs=2, batch_size=16, chains=2)
    shapes = []
    linear = torch.nn.functional.linear

    def record(input, weight, bias=None):
        shapes.append(torch._C._functorch.maybe_get_level(weight))
        return linear(input, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", record)
    once = posterior.predict(x, num_samples=6)
    levels, shapes = shapes, []
    monkeypatch.setattr(posterior_module, "_is_repeated", lambda value: False)
    each = posterior.predict(x, num_samples=6)
    assert max(levels) < max(shapes)  # not mapped over draws; mapped over them
    for name, value in each.parameters.items():
        torch.testing.assert_close(once.parameters[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.log_prior(posterior.sample(6)), posterior.log_prior(posterior.sample(6)))


def test_a_network_that_is_random_by_itself_draws_anew_for_every_draw():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x):
            return self.linear(nn.functional.dropout(x, 0.5, training=True))

    bnn = model(Noisy())
    posterior = fit(bnn, guides.Map(bnn), (X, Y), epochs=1)
    assert posterior.predict(X, num_samples=4).draws.std(1).max() > 0.01

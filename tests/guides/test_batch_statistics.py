"""Statistics that `guides.BatchNorm` collects: those of random batches, and their Gaussian form."""

import copy

import pytest
import torch
from batch_norms import (
    COMPARISONS,
    N,
    X,
    Y,
    convolutional,
    dense,
    fitted,
    gen,
    images,
    point,
    train_mode_statistics,
)
from statistical import assert_mean, bound
from torch import nn

from bnnzoo import guides
from bnnzoo._vectorize import seeded
from bnnzoo.chains import chain_seed
from bnnzoo.guides.batch_statistics import gaussian_form, of_batches, random_batches

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

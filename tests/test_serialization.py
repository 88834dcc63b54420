"""Posteriors in files: every kind round trips."""

import os
import subprocess
import sys

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from saving import N, X, Y, fitted, generator, mlp, round_trip, same
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods, load, models, priors, sample, serialization
from bnnzoo import data as bnndata

GUIDES = {
    "map": guides.Map,
    "mean field": guides.MeanField,
    "mean field with options": lambda bnn: guides.MeanField(
        bnn, init_scale=0.03, sampling={"0.*": "flipout", nn.Linear: "dense"}
    ),
    "auto normal": AutoNormal,
    "auto normal with options": lambda bnn: AutoNormal(bnn, init_scale=0.03),
    "auto diagonal": AutoDiagonalNormal,
    "auto low rank": lambda bnn: AutoLowRankMultivariateNormal(bnn, rank=2),
    "auto full rank": AutoMultivariateNormal,
    "auto delta": AutoDelta,
}


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("name", GUIDES)
def test_guides(tmp_path, name, chains):
    posterior = fitted(guide=GUIDES[name], chains=chains, likelihood=likelihoods.Gaussian(dist.HalfNormal(1.0)))
    again = round_trip(posterior, tmp_path)
    same(posterior, again)
    assert again.chains == chains
    assert type(again.guide) is type(posterior.guide)
    draws = posterior.sample(3)
    if posterior.log_q(draws) is None:
        assert again.log_q(draws) is None
    else:
        assert torch.equal(posterior.log_q(draws), again.log_q(draws))


def test_options_of_guides_are_kept(tmp_path):
    again = round_trip(fitted(guide=GUIDES["mean field with options"]), tmp_path)
    assert again.guide.init_scale == 0.03
    assert again.guide.sampling == {"0.*": "flipout", nn.Linear: "dense"}


COUNTS = torch.poisson(torch.full((N,), 3.0), generator=generator())


LABELS = torch.arange(N) % 3


TWO = torch.stack([Y, -2 * Y], 1)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (likelihoods.Gaussian(0.3), 1, Y),
        (likelihoods.Gaussian(), 1, Y),
        (likelihoods.Gaussian(num_outputs=2), 2, TWO),
        (likelihoods.Gaussian(torch.tensor([0.3, 0.6])), 2, TWO),
        (likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)), 1, Y),
        (likelihoods.Gaussian(dist.HalfCauchy(1.0), num_outputs=2), 2, TWO),
        (likelihoods.Gaussian(dist.Gamma(2.0, 3.0)), 1, Y),
        (likelihoods.HeteroscedasticGaussian(min_scale=0.02), 2, Y),
        (likelihoods.Categorical(), 3, LABELS),
        (likelihoods.Bernoulli(), 1, (Y > 0).float()),
        (likelihoods.Poisson(), 1, COUNTS),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else repr(value),
)
def test_likelihoods(tmp_path, likelihood, outputs, y):
    posterior = fitted(mlp(outputs), likelihood, data=(X, y), chains=2)
    same(posterior, round_trip(posterior, tmp_path))


PRIORS = {
    "normal": priors.Normal(0.0, 2.0),
    "laplace": priors.Laplace(0.0, 0.5),
    "student": priors.StudentT(4.0, 0.0, 1.5),
    "cauchy": priors.Cauchy(0.0, 1.0),
    "mixture": priors.ScaleMixture(0.3, 1.0, 0.05),
    "log uniform": priors.LogUniform(),
    "fan in": priors.FanIn(2.0),
    "he": priors.He(),
    "by layer": {"0.*": priors.Normal(0.0, 3.0), "*.bias": None, "2.weight": priors.Laplace(0.0, 1.0)},
    "some deterministic": {"0.*": None, "*": priors.Normal(0.0, 1.0)},
    "elementwise": {"0.weight": priors.Normal(torch.zeros(4, 3), torch.rand(4, 3) + 0.5), "*": priors.He()},
    "independent": {"0.weight": priors.Normal(torch.zeros(4, 3), 2.0).to_event(2), "*": priors.He()},
    "joint": {"0.bias": dist.MultivariateNormal(torch.zeros(4), 2 * torch.eye(4)), "*": priors.He()},
    "expanded": {"0.weight": priors.ScaleMixture().expand((4, 3)), "*": priors.He()},
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors(tmp_path, name):
    prior = dict(PRIORS[name]) if isinstance(PRIORS[name], dict) else PRIORS[name]
    if name == "by layer":
        prior = {"0.weight": prior["0.*"], "*.bias": None, "2.weight": prior["2.weight"]}
    posterior = fitted(prior=prior, chains=2)
    again = round_trip(posterior, tmp_path)
    same(posterior, again)
    assert {n: str(p) for n, p in again.bnn.priors.items()} == {n: str(p) for n, p in posterior.bnn.priors.items()}


IMAGES = torch.randn(N, 1, 16, 16, generator=generator())


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.LeakyReLU(0.2),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Identity()),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def named():
    network = nn.Sequential()
    network.add_module("first", nn.Linear(3, 4))
    network.add_module("squash", nn.Sigmoid())
    network.add_module("last", nn.Linear(4, 1, bias=False))
    return network


class User(nn.Module):
    """A class that no file can name, with an LSTM and a learned scale."""

    def __init__(self, hidden=4):
        super().__init__()
        self.lstm = nn.LSTM(3, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.head(self.lstm(x.unsqueeze(1))[0][:, -1])


NETWORKS = {
    "sequential": (mlp, X, Y),
    "named": (named, X, Y),
    "mlp": (lambda: models.MLP(3, 1, hidden=(4, 5), activation="tanh"), X, Y),
    "lenet": (lambda: models.LeNet(1, 3, (2, 3), 5, 16), IMAGES, LABELS),
    "conv with batch norm": (conv, IMAGES, LABELS),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 1)),
        torch.arange(3 * N).view(N, 3) % 5,
        Y,
    ),
    "activations": (
        lambda: nn.Sequential(
            nn.Linear(3, 4),
            nn.PReLU(4),
            nn.GELU("tanh"),
            nn.Softplus(2.0),
            nn.GroupNorm(2, 4),
            nn.ELU(),
            nn.Linear(4, 1),
        ),
        X,
        Y,
    ),
}


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(tmp_path, name, chains):
    make, x, y = NETWORKS[name]
    likelihood = likelihoods.Gaussian() if y is Y else likelihoods.Categorical()
    posterior = fitted(make(), likelihood, prior=priors.He(), data=(x, y), chains=chains)
    again = round_trip(posterior, tmp_path)
    same(posterior, again, x[:5])
    assert repr(again.bnn.network) == repr(posterior.bnn.network)
    assert not again.bnn.training


def test_double_precision(tmp_path):
    posterior = fitted(mlp().double(), likelihoods.Gaussian(dist.HalfNormal(1.0)), chains=2)
    again = round_trip(posterior, tmp_path)
    same(posterior, again)
    assert again.predict(X[:2]).mean.dtype == torch.float64
    assert again.sample(2)["0.weight"].dtype == torch.float64


def test_frozen_parameters(tmp_path):
    network = mlp()
    network[0].requires_grad_(False)
    posterior = fitted(network, chains=2)
    again = round_trip(posterior, tmp_path)
    same(posterior, again)
    assert torch.equal(again.bnn.network[0].weight, network[0].weight)
    assert not again.bnn.network[0].weight.requires_grad


def test_standardization_comes_along(tmp_path):
    split = bnndata.Dataset(100 + 10 * X, 1000 + 50 * Y).split(0.2)
    posterior = fitted(data=split.train, epochs=20)
    again = round_trip(posterior, tmp_path)
    same(posterior, again, split.test.x)
    assert again.predict(split.test.x).mean.mean() > 900


def test_drawn_posterior(tmp_path):
    bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(dist.HalfNormal(1.0)))
    posterior = sample(bnn, (X, Y), num_samples=8, warmup_steps=8, chains=2)
    again = round_trip(posterior, tmp_path)
    same(posterior, again)
    assert torch.equal(again.sample(8)["noise"], posterior.sample(8)["noise"])
    assert again.guide.num_draws == 8


def test_user_network_is_passed_in(tmp_path):
    posterior = fitted(User(), chains=2)
    posterior.save(tmp_path / "p")
    with pytest.raises(ValueError, match=r"network is a test_serialization\.User, which a file cannot hold.*network="):
        load(tmp_path / "p")
    mine = User()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    again = load(tmp_path / "p", network=mine)
    same(posterior, again)
    for name, value in mine.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in mine.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_network_passed_in_is_left_alone(tmp_path, precision):
    network = mlp().to(precision)
    network[0].requires_grad_(False)
    fitted(network).save(tmp_path / "p")
    mine = mlp()
    before = mine[0].weight.clone()
    with torch.no_grad():
        mine[0].weight.add_(1)
    again = load(tmp_path / "p", network=mine)
    assert torch.equal(mine[0].weight, before + 1)
    assert mine[0].weight.dtype == torch.float32
    assert mine[0].weight.requires_grad
    assert torch.equal(again.bnn.network[0].weight, network[0].weight)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: User(5), r"parameter 'lstm\.weight_ih_l0' has shape \[20, 3\], the file's shape \[16, 3\]"),
        (mlp, r"parameter 'lstm\.weight_ih_l0' has none, the file's shape"),
    ],
)
def test_another_network_than_the_files(tmp_path, network, message):
    fitted(User()).save(tmp_path / "p")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "p", network=network())


def test_another_network_with_as_many_weights(tmp_path):
    # 4 * 3 + 3 = 2 * 5 + 5: the guide's flat parameters would fit.
    class Wide(nn.Linear):
        pass

    posterior = fitted(Wide(4, 3), likelihoods.Categorical(), data=(torch.randn(N, 4), LABELS))
    posterior.save(tmp_path / "p")
    with pytest.raises(ValueError, match=r"'weight' has shape \[5, 2\], the file's shape \[3, 4\]"):
        load(tmp_path / "p", network=Wide(2, 5))


def test_user_guide_is_passed_in(tmp_path):
    class Mine(guides.MeanField):
        pass

    posterior = fitted(guide=Mine)
    posterior.save(tmp_path / "p")
    with pytest.raises(ValueError, match=r"guide is a .*Mine, which a file cannot hold.*guide="):
        load(tmp_path / "p")
    same(posterior, load(tmp_path / "p", guide=Mine))
    with pytest.raises(ValueError, match=r"do not fit the file: parameter 'guide\.log_scale' has none"):
        load(tmp_path / "p", guide=guides.Map)


def tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
    network[2].weight = network[0].weight
    return network


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    nn.utils.parametrize.register_parametrization(network[0], "weight", Doubled())
    return network


def changed():
    network = models.MLP(3, 1, hidden=(4,))
    network.layers[1] = nn.Tanh()
    return network


@pytest.mark.parametrize("make", [tied, parametrized, changed])
def test_networks_that_their_constructor_does_not_determine(tmp_path, make):
    posterior = fitted(make(), chains=2)
    posterior.save(tmp_path / "p")
    with pytest.raises(ValueError, match="which a file cannot hold"):
        load(tmp_path / "p")
    same(posterior, load(tmp_path / "p", network=make()))


def test_loading_draws_nothing_from_the_global_generator(tmp_path):
    posterior = fitted(guide=AutoNormal)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    round_trip(posterior, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_twice_is_saved_the_same(tmp_path):
    posterior = fitted(chains=2)
    posterior.save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    same(posterior, load(tmp_path / "b"))


def test_saving_changes_nothing(tmp_path):
    posterior = fitted(chains=2)
    before = posterior.predict(X).mean
    round_trip(posterior, tmp_path)
    assert torch.equal(posterior.predict(X).mean, before)


PROCESS = """
import sys, torch
from bnnzoo import load
x = torch.load("x")
for name in sys.argv[1:]:
    posterior = load(name)
    parameters = posterior.predict(x, num_samples=4, seed=3).parameters
    torch.save({**parameters, "draws": posterior.sample(3, seed=1)["0.weight"]}, name + ".out")
"""


def test_another_process_predicts_the_same(tmp_path):
    split = bnndata.Dataset(100 + 10 * X, 1000 + 50 * Y).split(0.2)
    noise = likelihoods.Gaussian(dist.HalfNormal(1.0))
    kinds = {"ours": guides.MeanField, "pyro": AutoNormal}
    posteriors = {name: fitted(None, noise, None, kind, split.train, chains=2) for name, kind in kinds.items()}
    for name, posterior in posteriors.items():
        posterior.save(tmp_path / name)
    torch.save(split.test.x, tmp_path / "x")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", PROCESS, *posteriors]
    subprocess.run(command, check=True, timeout=120, env=environment, cwd=tmp_path)
    for name, posterior in posteriors.items():
        theirs = torch.load(tmp_path / f"{name}.out")
        for key, value in posterior.predict(split.test.x, num_samples=4, seed=3).parameters.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(theirs["draws"], posterior.sample(3, seed=1)["0.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_moves(tmp_path):
    posterior = fitted(chains=2, likelihood=likelihoods.Gaussian(dist.HalfNormal(1.0)))
    there = round_trip(posterior, tmp_path, device="cuda")
    assert there.device.type == "cuda"
    there.predict(X[:5])
    back = round_trip(there, tmp_path)
    assert back.device.type == "cpu"
    same(posterior, back)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_device_is_not_called_damage(tmp_path):
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):
        round_trip(fitted(), tmp_path, device="cuda")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        [1, [2, "x"]],
        (1, (2,)),
        {"a": {"b": 1}, nn.Linear: (1, 2), 3: None},
        nn.Linear,
        priors.FanIn(3.0),
        dist.Normal(torch.zeros(2), torch.ones(2)),
    ],
    ids=repr,
)
def test_descriptions_round_trip(tmp_path, value):
    torch.save(serialization.encode(value), tmp_path / "x")
    back = serialization.decode(torch.load(tmp_path / "x"))
    if isinstance(value, priors.FanIn | dist.Distribution):
        assert repr(back) == repr(value)
    else:
        assert back == value
        assert type(back) is type(value)


def test_numpy_numbers_become_plain():
    assert serialization.encode({"a": np.float64(2.5)}) == {"dict": [["a", 2.5]]}

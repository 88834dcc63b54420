"""Posteriors in files: every kind round trips, nothing foreign runs or passes."""

import contextlib
import os
import random
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
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, load, models, priors, sample, serialization
from bnnzoo import data as bnndata

N = 24


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("bnnzoo.files.os.fsync", lambda descriptor: None)


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
    ids=repr,
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


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What a file of a posterior holds."""
    path = tmp_path_factory.mktemp("content") / "p"
    fitted().save(path)
    return torch.load(path)


@pytest.fixture
def tampered(tmp_path, content):
    """Writes such a file with some of its fields changed."""

    def write(**changes):
        torch.save({**content, **changes}, tmp_path / "p")
        return tmp_path / "p"

    return write


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.nn.functional.relu",
        "torch.nn.init.zeros_",
        "torch.nn.nowhere.Linear",
        "torch.nn.modules.linear.Nothing",
        "torch.nn.modules.linear.math.sqrt",
        "torch.nn.modules.os.system",
        "bnnzoo.load",
        "bnnzoo.serialization.load",
        "bnnzoo.data.dataset.Dataset",
        "bnnzoo.files.Path",
        "pyro.distributions.torch.torch.save",
        "Linear",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["module", "object", "class"])
def test_files_name_nothing_but_modules_distributions_and_priors(tampered, name, kind):
    description = {kind: name} if kind == "class" else {kind: name, "arguments": {}}
    for field in ("network", "likelihood", "guide"):
        with pytest.raises(ValueError, match=r"the file names|damaged"):
            load(tampered(**{field: description}))
    with pytest.raises(ValueError, match=r"the file names|damaged"):
        load(tampered(prior={"0.weight": {"distribution": name, "arguments": {}}}))


def test_loading_imports_nothing(tmp_path, monkeypatch, tampered):
    # The import of such a module would run a program.
    package = tmp_path / "folder"
    package.mkdir()
    (package / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(serialization, "_ALLOWED", (*serialization._ALLOWED, "trap."))
    with pytest.raises(ValueError, match=r"the file names 'trap\.Trap'"):
        load(tampered(network={"module": "trap.Trap", "arguments": {}}))
    for name in ("bnnzoo.cli.__main__.main", "bnnzoo.__main__.main"):
        with pytest.raises(ValueError, match="the file names"):
            load(tampered(network={"module": name, "arguments": {}}))
    assert not (tmp_path / "ran").exists()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_does_not_run(tmp_path, tampered):
    for key in ("network", "info", "history"):
        with pytest.raises(ValueError, match="damaged"):
            load(tampered(**{key: Attack(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_posterior(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    torch.save(mlp().state_dict(), path)
    with pytest.raises(ValueError, match=r"is not a bnnzoo\.posterior file$"):
        load(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"file is not a bnnzoo\.posterior file, or is damaged"):
        load(path)


def test_checkpoint_is_no_posterior(tmp_path):
    fitted(checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"not a bnnzoo\.posterior file but a bnnzoo\.checkpoint file"):
        load(tmp_path / "c")


def test_truncated_file(tmp_path):
    fitted().save(tmp_path / "p")
    raw = (tmp_path / "p").read_bytes()
    for length in (10, len(raw) // 2, len(raw) - 1):
        (tmp_path / "p").write_bytes(raw[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(tmp_path / "p")


def test_later_version(tampered):
    with pytest.raises(ValueError, match="layout version 99, this bnnzoo reads up to 1: update bnnzoo"):
        load(tampered(version=99))


FIELDS = [
    "network",
    "shapes",
    "likelihood",
    "likelihood_state",
    "prior",
    "guide",
    "frozen",
    "parameters",
    "buffers",
    "standardization",
    "history",
    "info",
    "dtype",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("wrong", [{"absent": 1}, 7, "text", [1, 2]])
def test_nonsense_in_a_field(tampered, field, wrong):
    with contextlib.suppress(ValueError):  # and no other error
        load(tampered(**{field: wrong}))


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field(tmp_path, content, field):
    torch.save({name: value for name, value in content.items() if name != field}, tmp_path / "p")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "p")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    posterior = fitted()
    posterior.save(tmp_path / "p")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bnnzoo.files.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            fitted(epochs=3).save(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]
    same(posterior, load(tmp_path / "p"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        posterior.save(tmp_path / "nowhere" / "p")


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

"""The benchmarks run, and what they time against computes the same thing as the library."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnnzoo import BayesianNetwork, guides, likelihoods, objectives

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DRAWING = ("product_model", "alpha", "uci_moments", "quality")
TABULATING = (
    "step_time",
    "predict_time",
    "conjugate",
    "compare_speed",
    "particles",
    "matrix",
    "moments_time",
    "moment_covariance",
    "logistic_units",
)


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DRAWING, *TABULATING])
def test_smoke(name, tmp_path):
    out, figure = tmp_path / "results" / "smoke.json", tmp_path / "figure.png"
    drawn = ["--figure", str(figure)] if name in DRAWING else []
    result = run(name, "--smoke", *drawn, "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert figure.exists() == bool(drawn)
    assert "| --- |" in result.stdout
    assert f"python benchmarks/{name}.py --smoke" in result.stdout
    written = json.loads(out.read_text())
    assert written["environment"]["seed"] == 0
    assert written["results"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("quality", ["--replications", "0"], "--replications must be at least 1, got 0"),
        ("quality", ["--only", "nuts", "--figure", "x.png"], "--only nuts leaves it out"),
        ("step_time", ["--rounds", "0"], "--rounds must be at least 1, got 0"),
        ("step_time", ["--only", "resnet"], "invalid choice: 'resnet'"),
        ("compare_speed", ["--splits", "0"], "--splits must be at least 1, got 0"),
        ("particles", ["--rounds", "0"], "--rounds must be at least 1, got 0"),
        ("uci_moments", ["--steps", "0"], "--steps must be at least 1, got 0"),
        ("moments_time", ["--draws", "0"], "--draws must be at least 1, got 0"),
        ("moment_covariance", ["--images", "0"], "--images must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(name, arguments, message):
    result = run(name, *arguments)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common
    import floors

    yield common, floors
    for name in ("common", "floors"):
        sys.modules.pop(name, None)


def average(step, count: int = 1500) -> tuple[float, float]:
    """Mean of a random loss, and its standard error."""
    losses = torch.stack([step().detach() for _ in range(count)]).double()
    return losses.mean().item(), losses.std().item() / math.sqrt(count)


def assert_same_mean(one: tuple[float, float], other: tuple[float, float]) -> None:
    # Beyond five standard errors with a probability of 6e-7.
    assert abs(one[0] - other[0]) < 5 * math.hypot(one[1], other[1])


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_floors_minimize_the_same_bound_as_the_library(modules, task):
    common, floors = modules
    torch.manual_seed(0)
    regression = task == "regression"
    network = common.mlp(3, 6, 1 if regression else 4)
    x, y = torch.randn(8, 3), torch.randn(8) if regression else torch.randint(4, (8,))
    likelihood = likelihoods.Gaussian(scale=common.NOISE) if regression else likelihoods.Categorical()
    bnn = BayesianNetwork(network, likelihood)
    elbo = objectives.ELBO()(bnn, guides.MeanField(bnn, init_scale=0.2))
    mean, error = average(lambda: elbo(x, y, size=common.DATA_SIZE))
    if regression:  # the floors leave out the density's constant
        mean -= common.DATA_SIZE * (math.log(common.NOISE) + 0.5 * math.log(2 * math.pi))
    settings = {"init_scale": 0.2, "lr": 1e-12}
    for step in (floors.flat_step, floors.tensor_step):
        assert_same_mean(average(step(network, x, y, **settings)), (mean, error))
    if regression:
        total, spread = average(floors.chains_step(network, x.repeat(3, 1, 1), y.repeat(3, 1), **settings))
        assert_same_mean((total / 3, spread / 3), (mean, error))


def test_dense_convolutions_of_the_floor_keep_the_bound(modules):
    common, floors = modules
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 3))
    x, y = torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    guide = guides.MeanField(bnn, init_scale=0.2, sampling={torch.nn.Conv2d: "dense", "*": "local"})
    elbo = objectives.ELBO()(bnn, guide)
    expected = average(lambda: elbo(x, y, size=common.DATA_SIZE))
    step = floors.flat_step(network, x, y, local_conv=False, lr=1e-12, init_scale=0.2)
    assert_same_mean(average(step), expected)


@pytest.mark.parametrize("local_conv", [False, True])
def test_the_floor_of_mnf_minimizes_the_same_bound_as_the_guide(modules, local_conv):
    common, floors = modules
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 3))
    x, y = torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    guide = guides.MNF(
        bnn, sampling={torch.nn.Conv2d: "local" if local_conv else "dense", "*": "local"}, init_scale=0.2
    )
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    elbo = objectives.ELBO()(bnn, guide)
    expected = average(lambda: elbo(x, y, size=common.DATA_SIZE), 400)
    start = [parameter.detach() for parameter in guide.parameters()]
    start[1] = 2 * start[1]  # log variances
    assert_same_mean(average(floors.mnf_step(network, x, y, local_conv, lr=1e-12, start=start), 400), expected)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_floor_of_dropout_minimizes_the_same_energy_as_the_library(modules, monkeypatch, task, shared):
    common, floors = modules
    torch.manual_seed(0)
    regression = task == "regression"
    network = common.mlp(3, 6, 5, 1 if regression else 4)
    x, y = torch.randn(8, 3), torch.randn(8) if regression else torch.randint(4, (8,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    bnn = BayesianNetwork(
        network, likelihoods.Gaussian(scale=common.NOISE) if regression else likelihoods.Categorical()
    )
    guide = guides.Dropout(bnn, {"0.weight": 0.0, "*": 0.3})
    energy = objectives.BBAlpha(0.5, 3, kl_weight=0)(bnn, guide)
    mean, error = average(lambda: energy(x, y, size=common.DATA_SIZE), 400)
    with torch.random.fork_rng():
        whole = objectives.BBAlpha(0.5, 3)(bnn, guide)(x, y, size=8)
    with torch.random.fork_rng():
        penalty = whole - energy(x, y, size=8)
    # The floors leave out the densities' constants; entropy of each of the 6 + 5 units' masks.
    penalty -= 0.5 * math.log(2 * math.pi) * sum(parameter.numel() for parameter in network.parameters())
    penalty += 11 * -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    if regression:
        mean -= common.DATA_SIZE * (math.log(common.NOISE) + 0.5 * math.log(2 * math.pi))
    step = floors.dropout_step(network, x, y, 3, 0.5, shared, rate=0.3, lr=1e-12)
    assert_same_mean(average(step, 2000), (mean + penalty.item(), error))
    monkeypatch.setattr(floors, "DATA_SIZE", 0)
    assert step().item() == pytest.approx(penalty.item(), rel=1e-4)


def test_drawn_predictions_of_the_floor_have_the_posterior_moments(modules):
    common, floors = modules
    torch.manual_seed(0)
    network, x, scale, count = common.mlp(3, 1), torch.randn(4, 3), 0.3, 20_000
    outputs = floors.bmm_draws(network, scale, count)(x)[..., 0].double()
    exact = scale * (x.square().sum(1) + 1).sqrt().double()
    error = (outputs.mean(0) - network(x)[:, 0].detach()) / (exact / math.sqrt(count))
    assert error.abs().max() < 5.5
    assert ((outputs.std(0) / exact - 1) * math.sqrt(2 * count)).abs().max() < 5.5


def test_contenders_take_turns_inside_their_contexts(modules):
    from contextlib import contextmanager

    common, _ = modules
    log = []

    @contextmanager
    def context():
        log.append("in")
        yield
        log.append("out")

    first = common.Contender("first", lambda: log.append("first"), context)
    second = common.Contender("second", lambda: log.append("second"))
    common.interleave([first, second], rounds=3, slot=0.0, warmup=1)
    assert log[:4] == ["in", "first", "out", "second"]  # warming up
    assert log[4:8] == ["in", "first", "out", "second"]
    assert log[8:12] == ["second", "in", "first", "out"]
    assert len(first.times) == len(second.times) == 3
    first.times, second.times = [2.0, 3.0, 8.0], [1.0, 1.0, 2.0]
    assert common.ratio(first, second) == 3.0

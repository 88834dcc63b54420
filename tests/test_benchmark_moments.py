"""What the benchmarks of the time of moments report is what it says."""

import math
import sys
from pathlib import Path

import pytest
import torch

from bnnzoo import BayesianNetwork, guides, likelihoods, models, objectives
from bnnzoo.moments import Moments, propagate

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("moments_time", "floors_moments")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import floors_moments
    import moments_time

    yield {"moments_time": moments_time, "floors_moments": floors_moments}
    for name in (*SCRIPTS, "common", "floors", "step_time", "peers"):
        sys.modules.pop(name, None)


def test_the_floor_of_analytic_dropout_minimizes_the_same_energy_as_the_library(modules):
    floor = modules["floors_moments"]
    torch.manual_seed(0)
    network = models.MLP(6, 4, hidden=(9, 8), dropout=0.3).double()
    x, y = torch.randn(7, 6).double(), torch.randint(4, (7,))
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    energy = objectives.MomentELBO(1.0, softmax="simplified", kl_weight=0)(bnn, guides.Map(bnn))
    loss = floor.analytic_dropout_loss(network.layers, x, y, size=70)
    assert energy(x, y, size=70).item() == pytest.approx(loss.item(), rel=1e-6)
    step = floor.analytic_dropout_step(network.layers, x, y, lr=1e-2)
    first = step().item()
    assert first > step().item() > step().item()


def test_reference_moments_are_those_of_all_passes(modules):
    timing = modules["moments_time"]
    torch.manual_seed(0)
    network = models.MLP(6, 3, hidden=(8, 8), dropout=0.5).eval()
    x, draws = torch.rand(4, 6), 8000
    found = timing.sampled(network, x, draws, seed=1)
    plain = propagate(network, x, mode="sample", num_samples=draws, seed=2)
    scale = plain.scale
    # differences of two estimates: beyond 6 standard errors, of normal outputs, 2e-9 each
    assert ((found.loc - plain.loc).abs() / scale).max() < 6 * math.sqrt(2 / draws)
    assert (found.scale / scale - 1).abs().max() < 6 * math.sqrt(1 / draws)
    assert not network.training
    # one pass of each copy of the images: all of the variance is between the copies
    assert (timing.sampled(network, x, timing.REPEATS, seed=1).scale > 0.3 * scale).all()


def test_passes_that_an_error_is_worth(modules):
    worth, draws = modules["moments_time"].worth, 400
    reference = Moments(torch.zeros(2, 3), torch.full((2, 3), 4.0))
    # off by a tenth of σ in the mean and by a twentieth in σ, of which the reference may itself be 1/20 and 1/28
    found = worth(Moments(torch.full((2, 3), 0.2), torch.full((2, 3), 4 * 1.05**2)), reference, draws)
    assert found["mean_passes"] == pytest.approx(1 / (0.01 - 1 / 400))
    assert found["std_passes"] == pytest.approx(1 / (2 * (0.0025 - 1 / 800)), rel=1e-4)
    assert found["bias"] == pytest.approx(1.05)
    same = worth(reference, reference, draws)
    assert (same["mean"], same["std"]) == (0.0, 0.0)
    assert math.isinf(same["mean_passes"])


def test_errors_of_sampled_passes_are_worth_as_many_passes(modules):
    timing = modules["moments_time"]
    torch.manual_seed(0)
    outputs, draws, passes = 4000, 100_000, 50
    reference = Moments(torch.randn(outputs) / math.sqrt(draws), 1 + torch.randn(outputs) * math.sqrt(2 / draws))
    sample = torch.randn(passes, outputs)
    found = timing.worth(Moments(sample.mean(0), sample.var(0)), reference, draws)
    # relative standard errors of mean squares over the outputs: √(2 / outputs) = 0.022
    assert found["mean_passes"] == pytest.approx(passes, rel=0.11)
    assert found["std_passes"] == pytest.approx(passes, rel=0.13)

"""What the benchmarks of training with moments report is what it says."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods, models, objectives
from bnnzoo.moments import Moments, propagate

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("analytic_dropout", "stability", "moments_time", "floors_moments")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import analytic_dropout
    import floors_moments
    import moments_time
    import stability

    yield {
        "analytic_dropout": analytic_dropout,
        "stability": stability,
        "moments_time": moments_time,
        "floors_moments": floors_moments,
    }
    for name in (*SCRIPTS, "common", "floors", "mnist_alpha", "step_time", "peers"):
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


def test_the_convolutional_network_starts_where_batch_normalization_would(modules):
    torch.manual_seed(0)
    images = torch.rand(40, 3, 32, 32)
    network = modules["analytic_dropout"].convolutional(0.3, 0.05, images).eval()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network)
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == 8
    x, count = images, 0
    with torch.no_grad():
        for layer in network:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                count += 1
                torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
                torch.testing.assert_close(x.var((0, 2, 3)), torch.ones(x.shape[1]), atol=0.02, rtol=0)
    assert count == 9


def test_curves_go_on_where_they_ended_and_finished_ones_stay(modules, tmp_path, monkeypatch):
    dropout = modules["analytic_dropout"]
    images = dropout.images_of(None)
    job = dropout.Job("mlp", 5, 1.0, "analytic", 0.5, 0)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir(), parted.mkdir()
    scores = [dropout.run(job, 3, images, whole)["curve"]]
    for epochs in (1, 3):
        record = dropout.run(job, epochs, images, parted)
        assert list(record["curve"]) == [str(epoch) for epoch in range(1, epochs + 1)]
    scores.append(record["curve"])
    for mode in ("ap1", "ap2"):
        one, other = ([each[mode] for each in curve.values()] for curve in scores)
        assert one == other
    assert scores[0]["3"]["ap1"] != scores[0]["3"]["ap2"]
    monkeypatch.setattr(dropout.bnnzoo, "fit", None)
    assert dropout.run(job, 2, images, parted) == json.loads(json.dumps(record))
    with pytest.raises(SystemExit, match="is of the setting"):
        dropout.run(replace(job, seed=1), 3, images, parted)


def test_methods_start_at_one_point(modules):
    dropout = modules["analytic_dropout"]
    starts = [job.model(torch.rand(2, 1, 28, 28)) for job in dropout.jobs("mlp", 5, 1.0, [0.2, 0.5], 0)]
    assert [bnn.network.dropout for bnn in starts] == [0.0, 0.2, 0.2, 0.5, 0.5, 0.5]
    weights = [[p for p in bnn.network.parameters()] for bnn in starts]
    for others in weights[1:]:
        for one, other in zip(weights[0], others, strict=True):
            assert torch.equal(one, other)


class Known(nn.Module):
    """Logits that are the inputs times 10."""

    def forward(self, x):
        return 10 * x


def test_scores_of_known_logits(modules):
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.0]]).double()
    y = torch.tensor([0, 0, 1])
    scores = modules["stability"].scored(Known(), "ap1", x, y)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["odds"][1] == pytest.approx((10 + 3) / 2 / math.log(10))  # of the two errors
    assert scores["nll"] == pytest.approx((0 + 10 + 3 + math.log1p(2 * math.exp(-3))) / 3, abs=2e-4)
    right = modules["stability"].scored(Known(), "ap1", x[:1], y[:1])
    assert all(math.isnan(value) for value in right["odds"])


@pytest.mark.parametrize("mode", ["ap1", "ap2"])
def test_attacks_raise_the_loss_of_the_true_class(modules, mode):
    stability = modules["stability"]
    torch.manual_seed(0)
    network = stability.bernoulli(8).double()
    x, y = torch.rand(5, 1, 28, 28).double(), torch.randint(10, (5,))
    direction = stability.attacked(network, mode, x, y)
    assert set(direction.unique().tolist()) == {-1.0, 1.0}
    steps = [stability.scored(network, mode, x + size * direction, y)["nll"] for size in (-1e-3, 0.0, 1e-3)]
    assert steps[0] < steps[1] < steps[2]
    # of first order: no direction of this size does more
    slope = (steps[2] - steps[0]) / 2e-3
    z = x.clone().requires_grad_()
    loss = nn.functional.nll_loss(stability.log_probabilities(network, z, mode), y)
    assert slope == pytest.approx(torch.autograd.grad(loss, z)[0].abs().sum().item(), rel=1e-4)


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

"""The benchmark of covariances measures what it says."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("moment_covariance", "moments_time", "common", "floors", "floors_moments")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import moment_covariance

    yield moment_covariance
    for name in (*SCRIPTS, "step_time", "peers"):
        sys.modules.pop(name, None)


def test_errors_of_moments(module):
    covariance = torch.tensor([[[4.0, 1.0], [1.0, 1.0]], [[4.0, 0.0], [0.0, 4.0]]])
    reference = module.Sampled(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), covariance)
    found = module.errors(reference.mean + 0.5, 2 * reference.scale, None, reference)
    assert found["mean"] == pytest.approx(0.5 / 1.75)
    assert found["ratio"] == pytest.approx(2.0)
    assert found["std"] == pytest.approx(1.0)
    # margins: 16 + 4 against 4 + 1 - 2, and 32 against 8
    assert found["margin"] == pytest.approx(((20 / 3) ** 0.5 - 1 + 1) / 2)
    first = (12**2 + 3**2 + 2) ** 0.5 / (16 + 1 + 2) ** 0.5
    assert found["covariance"] == pytest.approx((first + 3) / 2)
    exact = module.errors(reference.mean, reference.scale, covariance, reference)
    assert exact == pytest.approx({"mean": 0, "ratio": 1, "std": 0, "covariance": 0, "margin": 0})


def test_sampled_passes_draw_all_noise(module):
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    x = torch.ones(3, 2)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        network[0].bias.zero_()
    found = module.sampled(network, x, 0.5, 40_000, 0)
    # dropout of 1 + noise: E x² of its square less the square of the mean; the noise is shared
    expected = torch.tensor([[2 * 1.5 - 1, 0.5], [0.5, 2 * 5.0 - 4]]).double()
    assert (found.covariance - expected).abs().max() < 0.5  # 6 standard errors of the largest
    assert (found.mean - torch.tensor([1.0, 2.0])).abs().max() < 0.1
    assert not network.training

"""Stability: scores of known logits, and attacks that no direction of their size beats."""

import math

import pytest
import torch
from torch import nn

from bnnzoo.reproduce import moments_stability as stability
from bnnzoo.reproduce.moments_dropout import log_probabilities


class Known(nn.Module):
    """Logits that are the inputs times 10."""

    def forward(self, x):
        return 10 * x


def test_scores_of_known_logits():
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.0]]).double()
    y = torch.tensor([0, 0, 1])
    scores = stability.scored(Known(), "ap1", x, y)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["odds"][1] == pytest.approx((10 + 3) / 2 / math.log(10))  # of the two errors
    assert scores["pll"] == pytest.approx(-(0 + 10 + 3 + math.log1p(2 * math.exp(-3))) / 3, abs=2e-4)
    right = stability.scored(Known(), "ap1", x[:1], y[:1])
    assert all(math.isnan(value) for value in right["odds"])


@pytest.mark.parametrize("mode", ["ap1", "ap2"])
def test_attacks_lower_the_log_probability_of_the_true_class(mode):
    torch.manual_seed(0)
    network = stability.bernoulli(8).double()
    x, y = torch.rand(5, 1, 28, 28).double(), torch.randint(10, (5,))
    direction = stability.attacked(network, mode, x, y)
    assert set(direction.unique().tolist()) == {-1.0, 1.0}
    steps = [stability.scored(network, mode, x + size * direction, y)["pll"] for size in (-1e-3, 0.0, 1e-3)]
    assert steps[0] > steps[1] > steps[2]
    # of first order: no direction of this size does more
    slope = (steps[0] - steps[2]) / 2e-3
    z = x.clone().requires_grad_()
    loss = nn.functional.nll_loss(log_probabilities(network, z, mode), y)
    assert slope == pytest.approx(torch.autograd.grad(loss, z)[0].abs().sum().item(), rel=1e-4)


def test_noise_is_of_the_variance_that_is_said_and_the_same_for_all(monkeypatch):
    seen = []
    monkeypatch.setattr(stability, "scored", lambda network, mode, x, y: seen.append(x) or {})
    monkeypatch.setattr(stability, "attacked", lambda network, mode, x, y: torch.full_like(x, 2.0))
    test = type("Part", (), {"x": torch.zeros(40, 784), "y": torch.zeros(40, dtype=torch.long)})
    found = stability.curves(Known(), "ap1", test, 0)
    assert [scores["level"] for scores in found["noise"]] == list(stability.NOISES)
    noise, attack = seen[: len(stability.NOISES)], seen[len(stability.NOISES) :]
    for level, x in zip(stability.NOISES, noise, strict=True):
        # 31,360 draws: a relative standard error of 0.008
        assert x.var().item() == pytest.approx(level, rel=0.04)
        torch.testing.assert_close(x, level**0.5 * noise[-1])
    assert [x[0, 0].item() for x in attack] == pytest.approx([2 * level for level in stability.ATTACKS])

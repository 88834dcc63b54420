"""Sigmoids as mixtures of normal cdfs: closer than the contract of all scalar rules asks, and small variances."""

import pytest
import torch

from bnnzoo.moments import activations
from bnnzoo.moments.activations.mixtures import LOGISTIC, smoothed
from tests.moments.scalar_rules import RULES, truth

NAMES = ["sigmoid", "tanh", "tanhshrink", "silu", "gelu", "softplus", "logsigmoid"]


def grid(stds, means=(-4.0, -1.0, -0.3, 0.0, 0.7, 2.0, 5.0)):
    pairs = torch.cartesian_prod(torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64))
    return pairs[:, 0], pairs[:, 1].square()


def expected(name, mean, variance):
    pairs = zip(mean.tolist(), variance.tolist(), strict=True)
    return torch.tensor([truth(RULES[name], *each)[:2] for each in pairs], dtype=torch.float64).T


@pytest.mark.parametrize("name", NAMES)
def test_means_and_variances_are_closer_than_those_by_quadrature(name):
    mean, variance = grid((0.02, 0.3, 1.0, 4.0, 10.0))
    value, spread = getattr(activations, name)(mean, variance)
    want = expected(name, mean, variance)
    std = variance.sqrt()
    assert ((value - want[0]).abs() <= 1e-7 * (1 + std)).all()
    assert ((spread - want[1]).abs() <= 1e-6 * (1 + variance)).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu", "gelu", "softplus"])
def test_variances_keep_their_digits_in_float32(name):
    """On both sides of where the sum of squares takes over from the difference; where the function is not flat."""
    mean, variance = grid((1e-3, 0.03, 0.13, 0.14, 0.3, 1.0), (-0.6, 0.3, 1.5))
    spread = getattr(activations, name)(mean.float(), variance.float())[1]
    want = expected(name, mean, variance)[1]
    assert ((spread.double() - want).abs() <= 3e-4 * want).all()


def test_a_large_input_is_done_in_pieces_all_the_same():
    mean, variance = torch.randn(3, 20000, dtype=torch.float64), torch.rand(3, 20000, dtype=torch.float64)
    for rule in activations.sigmoid, activations.elu:
        whole, rows = rule(mean, variance), [rule(*each) for each in zip(mean, variance, strict=True)]
        for i in range(2):
            torch.testing.assert_close(whole[i], torch.stack([row[i] for row in rows]))


@pytest.mark.parametrize("first", [-1, 0, 1, 2])
def test_derivatives_are_the_means_of_higher_order(first):
    mean = torch.tensor([-3.0, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    orders = smoothed(LOGISTIC, mean, variance, first, 4)
    for n in range(2):
        by_mean, by_variance = torch.autograd.grad(orders[n].sum(), (mean, variance), retain_graph=True)
        torch.testing.assert_close(by_mean, orders[n + 1])
        torch.testing.assert_close(by_variance, 0.5 * orders[n + 2])
    inside = variance.detach()[1:].requires_grad_()
    low = mean.detach()[1:].requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: smoothed(LOGISTIC, m, v, first, 3), (low, inside))

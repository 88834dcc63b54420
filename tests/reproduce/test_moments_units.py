"""The paper's Table 1 to its digits, divergences in bits, and sums against enumeration by other means."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bnnzoo.reproduce import moments_units as units
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.moments_paper import TABLE_1


def test_table_1_is_the_papers_but_for_two_last_digits():
    for row, (both, expectation, ap1) in zip(units.conjunctions(), TABLE_1.values(), strict=True):
        assert row["AND"] == pytest.approx(both, abs=0.005)
        # the digits that are printed, and one of the last more
        assert row["E[Y]"] == pytest.approx(expectation, rel=0.05)
        assert row["AP1"] == pytest.approx(ap1, rel=0.05)


def test_the_and_of_uncertain_inputs_is_that_of_draws():
    row = next(row for row in units.conjunctions() if row["p1"] == 0.25)
    a = 2 * math.log(19)
    x = np.random.default_rng(0).random((200_000, 2)) < 0.25
    y = 1 / (1 + np.exp(-(a * x.sum(1) - 1.5 * a)))
    assert row["E[Y]"] == pytest.approx(y.mean(), abs=5 * y.std() / math.sqrt(len(y)))


def test_divergence_in_bits():
    p, q = torch.tensor([0.5, 1.0, 0.25]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
    expected = [0.5 * math.log2(2) + 0.5 * math.log2(0.5 / 0.75), 1.0, 0.0]
    assert units.bits(p, q).tolist() == pytest.approx(expected)
    assert torch.isfinite(units.bits(torch.ones(1).double(), torch.zeros(1).double()))


def test_divergences_of_one_input():
    found = units.divergences(biases=5, trials=4, seed=3)
    weight = found["weights"][0].item()
    for shift, divergence in zip(found["shift"].tolist(), found["curves"]["AP1"][0].tolist(), strict=True):
        truth = 0.5 * (stats.logistic.cdf(shift + weight / 2) + stats.logistic.cdf(shift - weight / 2))
        q = stats.logistic.cdf(shift)
        expected = truth * math.log2(truth / q) + (1 - truth) * math.log2((1 - truth) / (1 - q))
        assert divergence == pytest.approx(expected, abs=1e-9)
    low, mean, high = (found["curves"][name] for name in ("low", "samples", "high"))
    assert (low <= high).all()
    assert (mean >= 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_sums_are_those_of_a_convolution(count):
    weights = torch.tensor([2.0, 5.0, 3.0]).double()
    at = torch.linspace(-3, 3, 7).double()
    density, cdf = units.sums(count, weights, at)
    scale = math.sqrt(0.25 * weights[:count].square().sum() + math.pi**2 / 3)
    generator = np.random.default_rng(0)
    draws = ((generator.random((100_000, count)) < 0.5) - 0.5) @ weights[:count].numpy()
    draws = (draws + generator.logistic(size=100_000)) / scale
    for point, each in zip(at.tolist(), cdf.tolist(), strict=True):
        assert each == pytest.approx((draws <= point).mean(), abs=5 * 0.5 / math.sqrt(100_000))
    fine = torch.linspace(-12, 12, 4001).double()
    total = integrate.trapezoid(units.sums(count, weights, fine)[0].numpy(), fine.numpy())
    assert total == pytest.approx(1.0, abs=1e-6)
    step = 1e-4
    slope = (units.sums(count, weights, at + step)[1] - units.sums(count, weights, at - step)[1]) / (2 * step)
    torch.testing.assert_close(density, slope, atol=1e-7, rtol=1e-5)


def test_sums_become_normal(tmp_path):
    distances = units.figure_c3(Context("cpu", tmp_path)).values["distances"]
    assert distances["1"] > 5 * distances["5"] > 5 * distances["10"] > 0


def test_the_piecewise_exponential_is_a_laplace_distribution_function(tmp_path):
    values = list(units.figure_c1(Context("cpu", tmp_path)).values.values())
    assert 0.01 < values[0] < 0.03
    assert values[1] < 1e-12

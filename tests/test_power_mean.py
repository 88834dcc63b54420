"""Power means in log space: against sums in 60 digits, their gradients, order and limits."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

from bnnzoo._vectorize import vectorize
from bnnzoo.power_mean import log_power_mean

POWERS = [0.0, 1e-300, 1e-40, 1e-20, 1e-8, 1e-3, 0.1, 0.5, 1.0, 2.0, 30.0, 1e6, 1e20, 1e40, 1e300]
POWERS += [-power for power in POWERS[1:]]


def exact(values: Tensor, power: float) -> float:
    """The definition, in as many digits as it takes."""
    with mpmath.workdps(60 + max(0, round(-math.log10(abs(power) or 1)))):
        terms, p = [mpmath.mpf(value) for value in values.double().tolist()], mpmath.mpf(power)
        if p == 0:
            return float(sum(terms) / len(terms))
        top = max(terms) if p > 0 else min(terms)
        exponents = [p * (term - top) for term in terms]
        total = sum(mpmath.exp(exponent) for exponent in exponents if exponent > -1000)
        return float(top + mpmath.log(total / len(terms)) / p)


def rounding(values: Tensor, power: float) -> float:
    """What the function states."""
    spread = power != 0 and abs(power) * (values.max() - values.min()) > 1
    more = len(values) / abs(power) if spread else 0.0
    limits = torch.finfo(values.dtype)
    return limits.eps * (8 * values.abs().max().item() + more) + limits.tiny


def assert_exact(values: Tensor, power: float) -> None:
    error = abs(log_power_mean(values, power).item() - exact(values, power))
    assert error <= rounding(values, power), f"{len(values)} {values.dtype}, power {power}: off by {error:g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", POWERS)
def test_random_values(power, dtype):
    for count in (1, 2, 10, 100):
        for offset, scale in ((0.0, 1.0), (-1.0, 1e-6), (-40.0, 3.0), (-3000.0, 900.0), (1e6, 1e3)):
            assert_exact(offset + scale * torch.randn(count, dtype=dtype), power)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", [1e-3, 0.5, 1.0, -1.0])
def test_a_thousand_values(power, dtype):
    for scale in (0.01, 1.0, 30.0, 1e4):
        assert_exact(-2 * scale + scale * torch.randn(1000, dtype=dtype), power)


ADVERSARIAL = {
    "ties": [2.5] * 7,
    "ties at the top": [-3.0, 1.0, 1.0, -1e4],
    "zeros": [0.0, 0.0],
    "one far above": [-1e30] * 99 + [1.0],
    "one far below": [1.0] * 99 + [-1e30],
    "far apart": [1e30, -1e30, 0.0],
    "the range of single precision": [3e38, -3e38, 1.0],
    "neighbours": [1.0, 1.0 + 2**-23, 1.0 - 2**-24],
    "denormal": [1e-42, -1e-44, 0.0],
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("power", [power for power in POWERS if 1e-29 < abs(power) < 1e29] + [0.0])
def test_adversarial_values(power, name):
    """Without the powers that count as 0 or infinite: the larger of these products are no smaller than one."""
    values = torch.tensor(ADVERSARIAL[name])
    if abs(power) * (values.max() - values.min()) < 1e37:  # else it is the largest, and single precision cannot tell
        assert_exact(values, power)
    assert_exact(values.double(), power)


INFINITE = {  # values, power: log power mean
    "one impossible": ([-math.inf, 0.0], 2.0, -0.5 * math.log(2)),
    "all impossible": ([-math.inf] * 3, 2.0, -math.inf),
    "all impossible, mean": ([-math.inf] * 3, 0.0, -math.inf),
    "one impossible, mean": ([-math.inf, 0.0], 0.0, -math.inf),
    "one impossible, negative": ([-math.inf, 0.0, 1e4], -0.5, -math.inf),
    "all impossible, negative": ([-math.inf] * 3, -0.5, -math.inf),
    "one impossible, largest": ([-math.inf, 4.0], math.inf, 4.0),
    "one impossible, least": ([-math.inf, 4.0], -math.inf, -math.inf),
    "all impossible, largest": ([-math.inf] * 3, math.inf, -math.inf),
    "one infinite": ([math.inf, 0.0], 0.5, math.inf),
    "one infinite, negative": ([math.inf, 0.0], -2.0, 0.5 * math.log(2)),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinite_values(name):
    values, power, expected = INFINITE[name]
    assert log_power_mean(torch.tensor(values), power).item() == pytest.approx(expected)


def test_an_impossible_particle_has_no_gradient():
    values = torch.tensor([-math.inf, 1.0, 0.0], requires_grad=True)
    log_power_mean(values, 0.5).backward()
    torch.testing.assert_close(values.grad, torch.tensor([-math.inf, 0.5, 0.0]).softmax(0))


def test_not_a_number_stays():
    for power in (-math.inf, -1.0, 0.0, 1e-40, 0.5, 1e40, math.inf):
        assert log_power_mean(torch.tensor([math.nan, 1.0]), power).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", POWERS)
def test_gradients_are_softmax_weights(power, dtype):
    """Of the sum over columns, so that every column has its own; a factor on each, as of a minibatch."""
    for scale in (1e-3, 1.0, 100.0):
        values = (scale * torch.randn(30, 5, dtype=dtype) - scale).requires_grad_()
        factors = torch.tensor([1.0, 2.0, 0.5, 10.0, 3.0], dtype=dtype)
        (factors * log_power_mean(values, power)).sum().backward()
        # in double precision, as single cannot hold large powers; those above count as infinite
        weights = (max(-1e40, min(1e40, power)) * values.detach().double()).softmax(0) * factors
        tolerance = 100 * torch.finfo(dtype).eps
        torch.testing.assert_close(values.grad, weights.to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("power", [math.inf, -math.inf])
def test_infinite_powers(power):
    values = torch.tensor([[1.0, 5.0, 5.0, -2.0], [3.0, -1.0, 0.0, -1.0]], requires_grad=True)
    mean = log_power_mean(values, power, dim=1)
    chosen = values.amax(1) if power > 0 else values.amin(1)
    assert torch.equal(mean, chosen)
    mean.sum().backward()
    # ties share, as they do in the limit of the softmax weights
    largest = torch.tensor([[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]])
    least = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.5]])
    assert torch.equal(values.grad, largest if power > 0 else least)


def test_means_rise_with_the_power():
    """Hundreds of random sets of values, and all powers in order; equal only where the values are."""
    ascending = [-math.inf, *sorted(POWERS), math.inf]
    for count in (2, 3, 17, 200):
        values = torch.randn(100, count, dtype=torch.float64) * torch.rand(100, 1).double().mul(20).sub(10).exp()
        means = torch.stack([log_power_mean(values, power, dim=1) for power in ascending])
        slack = 1e-13 * values.abs().amax(1)
        assert (means.diff(dim=0) >= -slack).all()
        assert torch.equal(means[0], values.amin(1))
        assert torch.equal(means[-1], values.amax(1))
        ordinary = [log_power_mean(values / values.std(1, keepdim=True), power, dim=1) for power in (-1, 0, 0.5, 1, 2)]
        assert (torch.stack(ordinary).diff(dim=0) > 1e-4).all()


def test_means_move_with_the_values():
    """Adding a constant adds it; scaling by c divides the power by c; a mean of copies is the value."""
    values = torch.randn(12, 50, dtype=torch.float64)
    for power in (-2.0, -1e-5, 0.0, 1e-5, 0.5, 1.0, 7.0):
        mean = log_power_mean(values, power)
        torch.testing.assert_close(log_power_mean(values - 1234.5, power), mean - 1234.5)
        torch.testing.assert_close(log_power_mean(4.0 * values, power / 4.0), 4.0 * mean)
        torch.testing.assert_close(log_power_mean(torch.cat([values, values]), power), mean)
        torch.testing.assert_close(log_power_mean(-values, -power), -mean)
        shuffled = values[torch.randperm(len(values))]
        torch.testing.assert_close(log_power_mean(shuffled, power), mean)


def test_continuous_at_zero():
    """Near 0 it is mean + power · variance / 2, to the next order, in either direction."""
    values = torch.randn(9, dtype=torch.float64)
    mean, variance = values.mean(), values.var(correction=0)
    for power in (1e-3, 1e-5, 1e-7, 1e-9, 1e-14):
        for signed in (power, -power):
            error = log_power_mean(values, signed) - (mean + signed * variance / 2)
            assert error.abs() < power**2 + 1e-15
    single = values.float()
    differences = [(log_power_mean(single, power) - single.mean()).abs() for power in (1e-7, 1e-12, 1e-25, 1e-35)]
    assert max(differences) < 3e-7


@pytest.mark.parametrize("power", [-math.inf, -0.5, 0.0, 1e-35, 0.5, 1.0, 1e35, math.inf])
def test_any_dimension_and_one_value(power):
    values = torch.randn(3, 4, 5, dtype=torch.float64)
    for dim in (0, 1, 2, -1, -2):
        expected = torch.stack(
            [log_power_mean(each, power) for each in values.movedim(dim, -1).reshape(-1, values.shape[dim])]
        )
        torch.testing.assert_close(log_power_mean(values, power, dim).flatten(), expected)
    assert torch.equal(log_power_mean(values[:1], power), values[0])
    assert torch.equal(log_power_mean(values[:, :1], power, 1), values[:, 0])


@pytest.mark.parametrize("power", [-math.inf, -0.5, 0.0, 1e-35, 0.5, 1.0, 1e35, math.inf])
def test_mapped(power):
    """Under two of them, as chains of particles are: values and gradients."""
    values = torch.randn(4, 3, 10, 6, dtype=torch.float64, requires_grad=True)
    values.data[0, 0, 0, 0] = -math.inf if power >= 0.5 else -1e4
    mapped = vectorize(vectorize(lambda value: log_power_mean(value, power)))(values)
    direct = log_power_mean(values, power, dim=2)
    torch.testing.assert_close(mapped, direct)
    gradients = [torch.autograd.grad(mean.sin().sum(), values)[0] for mean in (mapped, direct)]
    torch.testing.assert_close(*gradients)


def test_second_derivatives():
    """Laplace approximations and the like differentiate twice."""
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    for power in (-1.0, 0.0, 1e-3, 0.5, 3.0):
        assert torch.autograd.gradcheck(lambda v, p=power: log_power_mean(v, p), values)
        assert torch.autograd.gradgradcheck(lambda v, p=power: log_power_mean(v, p), values)

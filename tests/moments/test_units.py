"""Stochastic units: their three modes against each other, their means against quadrature, Table 1 of the paper."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from bnnzoo.moments import Moments, gates, options, propagate
from bnnzoo.moments.units import (
    BernoulliUnit,
    Heaviside,
    InputNoise,
    LogisticBernoulli,
    ProbitBernoulli,
    StochasticReLU,
)
from tests.statistical import assert_mean

LOGISTIC = math.pi**2 / 3
PER_UNIT = torch.tensor([0.1, 0.0, 0.5, 1.0, 2.0, 0.3])

UNITS = {
    "probabilities": BernoulliUnit,
    "logistic": LogisticBernoulli,
    "probit": ProbitBernoulli,
    "step": Heaviside,
    "noisy step": lambda: Heaviside(0.5, 0.3),
    "noisy step, logistic": lambda: Heaviside(0.5, -0.3, "logistic"),
    "noisy step by unit": lambda: Heaviside(PER_UNIT, -PER_UNIT),
    "relu": lambda: StochasticReLU(0.5, 0.2),
    "relu by unit": lambda: StochasticReLU(PER_UNIT),
    "noise": lambda: InputNoise(0.3, 0.1),
    "logistic noise": lambda: InputNoise(0.3, PER_UNIT, "logistic"),
}


def inputs(name):
    if name == "probabilities":
        return torch.tensor([0.1, 0.5, 0.9, 1.0, 0.0, 0.3]), torch.tensor([0.01, 0.0, 0.002, 0.0, 0.0, 0.01])
    return torch.tensor([0.1, -1.0, 2.0, 0.4, -0.2, 1.1]), torch.tensor([0.5, 1.0, 0.2, 4.0, 0.1, 0.3])


@pytest.mark.parametrize("name", UNITS)
def test_moments_are_those_of_draws_and_ap1_is_eval(name):
    unit = UNITS[name]()
    mean, variance = inputs(name)
    assert unit.training
    torch.manual_seed(0)
    given = mean + variance.sqrt() * torch.randn(60_000, 6)
    draws, moments = unit(given), unit(Moments(mean, variance))
    assert draws.shape == given.shape
    assert moments.shape == mean.shape
    assert_mean(draws, moments.loc, 200)
    assert_mean((draws - moments.loc).square(), moments.variance, 200, "variance")
    certain = unit(Moments(mean))
    at_mean = unit(mean.expand(60_000, 6))
    assert_mean(at_mean, certain.loc, 200)
    assert_mean((at_mean - certain.loc).square(), certain.variance, 200, "variance")
    unit.eval()
    first = unit(mean)
    assert torch.equal(first, unit(mean))
    torch.testing.assert_close(propagate(unit, mean, mode="ap1").loc, first)
    if isinstance(unit, BernoulliUnit):
        assert ((draws == 0) | (draws == 1)).all()
        torch.testing.assert_close(first, certain.loc)
        torch.testing.assert_close(moments.variance, moments.loc * (1 - moments.loc))
    # without the unit's own noise: less variance; the probability's alone
    still = unit(Moments(mean, variance))
    assert (still.variance <= moments.variance + 1e-6).all()
    torch.testing.assert_close(unit(Moments(mean)).loc, first)


@pytest.mark.parametrize("name", UNITS)
def test_units_are_modules(name):
    unit = UNITS[name]()
    twin = copy.deepcopy(unit)
    assert repr(twin) == repr(unit)
    assert repr(unit).startswith(type(unit).__name__)
    other = UNITS[name]()
    other.load_state_dict(unit.state_dict())
    assert bool(unit.state_dict()) == ("unit" in name or name == "logistic noise")
    x = Moments(*inputs(name))
    torch.testing.assert_close(other(x).variance, unit(x).variance)
    assert unit.double()(Moments(x.loc.double(), x.variance.double())).dtype == torch.float64


def test_noise_is_told_by_the_repr():
    assert repr(Heaviside(0.5, 0.3)) == "Heaviside(variance=0.5, mean=0.3, noise='normal')"
    assert repr(InputNoise(PER_UNIT)) == "InputNoise(variance=<tensor [6]>, mean=0, noise='normal')"
    assert repr(LogisticBernoulli("normal")) == "LogisticBernoulli(approximation='normal')"
    assert repr(ProbitBernoulli()) == "ProbitBernoulli()"


def test_draws_and_moments_run_under_vmap():
    unit = LogisticBernoulli()
    x = torch.zeros(4, 1000)
    draws = torch.func.vmap(unit, randomness="different")(x)
    assert draws.mean() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(draws[0], draws[1])
    mapped = torch.func.vmap(lambda m: unit(Moments(m, torch.ones_like(m))).loc)(x + 1)
    torch.testing.assert_close(mapped, unit(Moments(x + 1, torch.ones_like(x))).loc)


def test_draws_of_noise_have_gradients_and_draws_of_ones_have_none():
    x = torch.zeros(5, requires_grad=True)
    assert torch.equal(torch.autograd.grad(InputNoise(1.0)(x).sum(), x)[0], torch.ones(5))
    assert not LogisticBernoulli()(x).requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InputNoise(-1.0), "InputNoise: variance must be at least 0; the least is -1"),
        (lambda: StochasticReLU(torch.tensor([1.0, -2.0])), "variance must be at least 0; the least is -2"),
        (lambda: Heaviside(math.inf), "variance must be finite"),
        (lambda: Heaviside(1.0, torch.tensor([math.nan])), "mean must be finite"),
        (lambda: InputNoise(True), "variance must be a number or a floating-point tensor, not True"),
        (lambda: InputNoise("1"), "variance must be a number or a floating-point tensor"),
        (lambda: InputNoise(1.0, noise="cauchy"), "noise must be one of 'normal', 'logistic', not 'cauchy'"),
        (lambda: LogisticBernoulli("ap2a"), "approximation must be one of 'exact', 'normal', 'logistic', 'pea'"),
        (lambda: Heaviside(1.0, approximation="pea"), "'pea' is for logistic noise of a variance above 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def gaussian(mean, std, fn):
    """The expectation of a function of a Gaussian variable, by a fine trapezoidal rule."""
    z = np.linspace(-9, 9, 40_001)
    weights = stats.norm.pdf(z)
    return float((fn(mean + std * z) * weights).sum() / weights.sum())


def points():
    rng = np.random.default_rng(0)
    grid = [(m, s) for m in (-10.0, -3.0, -0.2, 0.0, 1.0, 6.0) for s in (1e-4, 0.1, 1.0, 3.0, 10.0)]
    return grid + [(rng.uniform(-10, 10), 10 ** rng.uniform(-4, 1)) for _ in range(10)]


@pytest.mark.parametrize(
    ("noise", "noise_variance", "cdf"),
    [
        ("normal", 1.0, special.ndtr),
        ("normal", 0.04, lambda x: special.ndtr(5 * x)),
        ("logistic", LOGISTIC, special.expit),
        ("logistic", LOGISTIC / 25, lambda x: special.expit(5 * x)),
    ],
)
def test_exact_moments_of_gates_are_those_of_quadrature(noise, noise_variance, cdf):
    mean, std = torch.tensor(points(), dtype=torch.float64).T
    pairs = list(zip(mean.tolist(), std.tolist(), strict=True))
    first = torch.tensor([gaussian(*each, cdf) for each in pairs], dtype=torch.float64)
    second = torch.tensor([gaussian(*each, lambda x: cdf(x) ** 2) for each in pairs], dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-6)):
        given = mean.to(dtype), std.square().to(dtype), torch.tensor(noise_variance, dtype=dtype)
        p, v = gates.moments(*given, noise, "exact")
        torch.testing.assert_close(p.double(), first, rtol=0, atol=tolerance)
        torch.testing.assert_close(v.double(), second - first.square(), rtol=0, atol=2 * tolerance)


def test_the_papers_approximations_of_the_logistic_unit():
    mean, variance = torch.tensor([1.3, -0.4]), torch.tensor([2.0, 0.7])
    x = Moments(mean, variance)
    expected = {
        "normal": torch.special.ndtr(mean / (variance + LOGISTIC).sqrt()),
        "logistic": torch.sigmoid(mean / (variance / LOGISTIC + 1).sqrt()),
    }
    for kind, probability in expected.items():
        y = LogisticBernoulli(kind)(x)
        torch.testing.assert_close(y.loc, probability)
        torch.testing.assert_close(y.variance, probability * (1 - probability))
        still = LogisticBernoulli(kind).eval()(x)
        slope = (probability * (1 - probability)).square()
        torch.testing.assert_close(still.variance, 4 / (1 + 4 / variance) * slope)
    with options(approximation="paper"):
        assert torch.equal(LogisticBernoulli()(x).loc, LogisticBernoulli("logistic")(x).loc)


@pytest.mark.parametrize("std", [1e-4, 0.1, 1.0, 3.0, 10.0])
def test_the_piecewise_exponential_approximation_is_its_expectation(std):
    def pieces(x):
        return np.where(x < 0, 2.0 ** np.minimum(x - 1, 0), 1 - 2.0 ** np.minimum(-x - 1, 0))

    for mean in (-10.0, -1.0, -0.1, 0.0, 0.5, 8.0):
        y = LogisticBernoulli("pea")(Moments(torch.tensor([mean]), std**2))
        assert y.loc.item() == pytest.approx(gaussian(mean, std, pieces), abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_are_finite_everywhere(dtype):
    mean = torch.tensor([0.0, 1e-3, 1.0, -1.0, 30.0, 1e4, -1e4], dtype=dtype)
    for variance in (0.0, 1e-30, 1e-12, 1.0, 1e8):
        for noise, noise_variance in (("normal", 0.0), ("normal", 1.0), ("logistic", 0.0), ("logistic", LOGISTIC)):
            for kind in ("exact", "normal", "logistic", "pea"):
                if kind == "pea" and not (noise == "logistic" and noise_variance):
                    continue
                m, v = mean.clone().requires_grad_(), torch.full_like(mean, variance).requires_grad_()
                p, spread = gates.moments(m, v, torch.tensor(noise_variance, dtype=dtype), noise, kind)
                gradients = torch.autograd.grad(p.sum() + spread.sum(), (m, v))
                assert all(each.isfinite().all() for each in (p, spread, *gradients))
                assert ((p >= 0) & (p <= 1 + 1e-6) & (spread >= 0) & (spread <= p * (1 - p) + 1e-6)).all()
                if not noise_variance and not variance:
                    assert torch.equal(p, (mean >= 0).to(dtype))


@pytest.mark.parametrize("unit", [LogisticBernoulli, lambda: LogisticBernoulli("pea"), lambda: Heaviside(0.3, 0.1)])
def test_gradients_are_those_of_differences(unit):
    unit = unit().double()

    def moments(mean, variance):
        y = unit(Moments(mean, variance))
        return y.loc, y.variance

    mean, variance = (each.double().requires_grad_() for each in inputs("any"))
    assert torch.autograd.gradcheck(moments, (mean, variance))


@pytest.mark.parametrize("way", ["sensitivity", "full"])
def test_units_are_sources_of_noise_to_covariances(way):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), LogisticBernoulli(), nn.Linear(8, 4))
    x = torch.randn(2, 3)
    found = propagate(network, x, 0.2, covariance=way)
    truth = network(x + 0.2**0.5 * torch.randn(20_000, 2, 3)).detach()
    for n in range(2):
        expected = truth[:, n].T.cov()
        assert (found.covariance[n] - expected).norm() < 0.06 * expected.norm()


# p(X1=1), p(X2=1), E[X1 and X2], E[Y] and AP1, as printed
TABLE_1 = [
    ("0", "0", "0", "0.00015", "0.00015"),
    ("0", "1", "0", "0.05", "0.05"),
    ("1", "1", "1", "0.95", "0.95"),
    ("0.25", "0.25", "0.0625", "0.077", "0.0027"),
    ("0.5", "0.5", "0.25", "0.26", "0.05"),
    ("0.75", "0.75", "0.56", "0.55", "0.5"),
]


def conjunction(a, b):
    """The logistic model S(a(X1 + X2) + b) of the logic AND, of two binary inputs given by their probabilities."""
    network = nn.Sequential(BernoulliUnit(), nn.Linear(2, 1), LogisticBernoulli()).double()
    network[1].weight.data.fill_(a)
    network[1].bias.data.fill_(b)
    return network


def table_1(network):
    """E[Y] over the inputs, and AP1, row by row."""
    corners = torch.cartesian_prod(*2 * [torch.tensor([0.0, 1.0], dtype=torch.float64)])
    conditional = propagate(network, corners, mode="ap1").loc[:, 0]  # p(Y = 1 | X)
    rows = []
    for first, second, *_ in TABLE_1:
        p = torch.tensor([[float(first), float(second)]], dtype=torch.float64)
        weights = (p * corners + (1 - p) * (1 - corners)).prod(1)
        rows.append(((weights @ conditional).item(), propagate(network, p, mode="ap1").loc.item()))
    return rows


def units_off(value, printed):
    """How many units of the last printed digit a rounded value is off."""
    digits = len(printed.partition(".")[2])
    return round(abs(round(value, digits) - float(printed)) * 10**digits)


def test_table_1():
    """The logic AND with a = 2 log 19 and b = -(3/2) a (for which b = -3/2 is a misprint).

    All printed digits but the last ones of 0.077 and 0.0027, which are 0.0782 and 0.00276.
    """
    a = 2 * math.log(0.95 / 0.05)
    off = [
        (units_off(mean, row[3]), units_off(ap1, row[4]))
        for (mean, ap1), row in zip(table_1(conjunction(a, -1.5 * a)), TABLE_1, strict=True)
    ]
    assert off == [(0, 0), (0, 0), (0, 0), (1, 1), (0, 0), (0, 0)]


def test_table_1_to_its_digits():
    """Parameters a hundredth from the stated ones give all printed digits."""
    for (mean, ap1), row in zip(table_1(conjunction(5.845, -8.838)), TABLE_1, strict=True):
        assert units_off(float(row[0]) * float(row[1]), row[2]) == 0
        assert (units_off(mean, row[3]), units_off(ap1, row[4])) == (0, 0)


def test_moments_know_what_the_conjunction_of_uncertain_inputs_is():
    a = 2 * math.log(0.95 / 0.05)
    network = conjunction(a, -1.5 * a)
    expected, ap1 = (torch.tensor(each) for each in zip(*table_1(network)[3:], strict=True))
    p = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.75]], dtype=torch.float64)
    ap2 = propagate(network, p).loc[:, 0]
    assert ((ap2 - expected).abs() <= (ap1 - expected).abs() + 1e-6).all()
    assert ((ap2 - expected).abs()[:2] < 0.15 * (ap1 - expected).abs()[:2]).all()


def test_the_noise_is_subtracted():
    x = torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(InputNoise(0.0, 0.3)(x), x - 0.3)
    torch.testing.assert_close(StochasticReLU(0.0, 0.3)(x), (x - 0.3).relu())
    assert Heaviside(0.0, 0.3)(x).tolist() == [0.0, 1.0, 1.0]
    assert Heaviside(0.0, 0.3)(Moments(x, 1e-6)).loc[0] < 1e-3

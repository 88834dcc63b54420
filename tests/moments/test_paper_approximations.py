"""The approximations of Shekhovtsov & Flach (2018) that are there by name, against quadrature."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad

from bnnzoo.moments.activations import paper
from tests.moments.scalar_rules import RULES, truth

PLACES = [(-2.0, 0.3), (-0.4, 1.0), (0.0, 2.0), (0.7, 0.05), (3.0, 4.0)]
every_place = pytest.mark.parametrize(("mean", "std"), PLACES)


def at(mean, std, dtype=torch.float64):
    return torch.tensor([mean], dtype=dtype), torch.tensor([std**2], dtype=dtype)


def logistic_moments(function, mean, std):
    """Mean and variance of a function of a logistic variable, by scipy; with a knot at 0."""
    s = std * math.sqrt(3) / math.pi

    def density(x):
        return 1 / (4 * s * math.cosh((x - mean) / (2 * s)) ** 2)

    def integral(f):
        ends = sorted({mean - 45 * s, mean, mean + 45 * s, *([0.0] if abs(mean) < 45 * s else [])})
        return sum(
            quad(lambda x: f(x) * density(x), a, b, limit=400, epsabs=1e-13)[0] for a, b in itertools.pairwise(ends)
        )

    first = integral(function)
    return first, integral(lambda x: (function(x) - first) ** 2)


@every_place
def test_relu_and_step_of_a_logistic_variable(mean, std):
    for rule, function in (
        (paper.relu_logistic, lambda x: max(x, 0.0)),
        (paper.heaviside_logistic, lambda x: float(x > 0)),
    ):
        got = [each.item() for each in rule(*at(mean, std))]
        assert got == pytest.approx(logistic_moments(function, mean, std), rel=1e-7, abs=1e-10)


@every_place
def test_pea_is_the_mean_of_the_laplace_cdf(mean, std):
    def cdf(x):
        return torch.where(x < 0, 2.0 ** (x.clamp(max=0) - 1), 1 - 2.0 ** (-x.clamp(min=0) - 1))

    rule = RULES["sigmoid"]._replace(function=cdf, knots=(0,))
    assert paper.sigmoid_mean_pea(*at(mean, std)).item() == pytest.approx(truth(rule, mean, std**2).mean, abs=1e-10)


@every_place
def test_means_of_the_logistic_transform(mean, std):
    """All three within 0.02 of the truth: AP2a replaces S by a normal cdf, 0.0226 off at most."""
    want = truth(RULES["sigmoid"], mean, std**2).mean
    for approximation in paper.sigmoid_mean_ap2a, paper.sigmoid_mean_ap2b, paper.sigmoid_mean_pea:
        assert approximation(*at(mean, std)).item() == pytest.approx(want, abs=0.024)
    s2 = math.pi**2 / 3
    cdf = 0.5 * (1 + math.erf(mean / math.sqrt(2 * (std**2 + s2))))
    assert paper.sigmoid_mean_ap2a(*at(mean, std)).item() == pytest.approx(cdf)


def test_variances_of_the_logistic_transform():
    """Error of the standard deviation: 14% at mean 0 and 26% for σ ≤ 1, as the paper says; eq. 22 for σ ≥ 2."""
    for mean, std in [(0.0, 0.1), (0.0, 1.0), (0.0, 3.0), (0.0, 30.0), (2.0, 0.5), (-3.0, 1.0), (4.0, 1.0)]:
        _, want, *_ = truth(RULES["sigmoid"], mean, std**2)
        value = paper.sigmoid_mean_ap2b(*at(mean, std))
        got = paper.sigmoid_variance(value, torch.tensor(std**2, dtype=torch.float64)).item()
        assert math.sqrt(got / want) == pytest.approx(1.0, abs=0.15 if mean == 0 else 0.27)
    for mean, std in [(0.0, 3.0), (1.0, 5.0), (-4.0, 6.0)]:
        _, want, *_ = truth(RULES["sigmoid"], mean, std**2)
        assert paper.sigmoid_variance_large(*at(mean, std)).item() == pytest.approx(want, rel=0.1)


def test_the_shortcut_for_rectifiers_is_rough():
    """It is right far from 0 and off by up to half in between."""
    for mean in (-4.0, -1.0, -0.5, 0.0, 0.5, 1.0, 4.0):
        want = truth(RULES["relu"], mean, 1.0).variance
        got = paper.relu_variance(*at(mean, 1.0)).item()
        assert abs(got - want) < 0.25
        leaky = truth(RULES["leaky_relu"], mean, 1.0).variance
        assert paper.relu_variance(*at(mean, 1.0), 0.1).item() == pytest.approx(leaky, abs=0.25)
    assert paper.relu_variance(*at(9.0, 1.0)).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_finite_with_finite_derivatives(dtype):
    mean = torch.tensor([0.0, 0.0, 1.0, -1.0, 1e4, -1e4, 1e-6], dtype=dtype, requires_grad=True)
    variance = torch.tensor([0.0, 1.0, 0.0, 1e-16, 1e-4, 1e-4, 0.0], dtype=dtype, requires_grad=True)
    slope = torch.tensor(0.1, dtype=dtype)
    functions = (
        paper.relu_logistic,
        paper.heaviside_logistic,
        paper.sigmoid_mean_ap2a,
        paper.sigmoid_mean_ap2b,
        paper.sigmoid_mean_pea,
        paper.sigmoid_variance_large,
        lambda mean, variance: paper.relu_variance(mean, variance, slope),
        lambda mean, variance: paper.sigmoid_variance(paper.sigmoid_mean_ap2b(mean, variance), variance),
    )
    for function in functions:
        outputs = function(mean, variance)
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            assert output.isfinite().all()
            for grad in torch.autograd.grad(output.sum(), (mean, variance), retain_graph=True):
                assert grad.isfinite().all()
    value, spread = paper.relu_logistic(mean.detach(), torch.zeros_like(variance))
    torch.testing.assert_close(value, F.relu(mean.detach()), atol=1e-7, rtol=1e-6)
    assert (spread == 0).all()

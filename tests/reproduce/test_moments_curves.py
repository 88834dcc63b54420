"""Moments through activations: the integration that the rules are measured by, against closed forms."""

import numpy as np
import pytest
from scipy import stats

from bnnzoo.reproduce import moments_curves as curves

MEAN = np.array([-2.5, 0.0, 0.7, 3.0])


def test_integration_of_a_step_and_a_rectifier():
    mean, std = curves.integrated("Heaviside", MEAN, 1.5)
    p = stats.norm.cdf(MEAN / 1.5)
    np.testing.assert_allclose(mean, p, atol=1e-9)
    np.testing.assert_allclose(std, np.sqrt(p * (1 - p)), atol=1e-8)
    a = MEAN / 1.5
    mean, std = curves.integrated("ReLU", MEAN, 1.5)
    first = MEAN * stats.norm.cdf(a) + 1.5 * stats.norm.pdf(a)
    second = (MEAN**2 + 1.5**2) * stats.norm.cdf(a) + 1.5 * MEAN * stats.norm.pdf(a)
    np.testing.assert_allclose(mean, first, atol=1e-9)
    np.testing.assert_allclose(std, np.sqrt(second - first**2), atol=1e-8)


@pytest.mark.parametrize("name", ["Bernoulli-logistic", "logistic transform", "leaky ReLU"])
def test_integration_is_that_of_draws(name):
    x = 0.7 + 1.5 * np.random.default_rng(0).standard_normal(400_000)
    y = curves.FUNCTIONS[name](x)
    mean, std = curves.integrated(name, np.array([0.7]), 1.5)
    assert mean[0] == pytest.approx(y.mean(), abs=5 * y.std() / np.sqrt(len(y)))
    expected = np.sqrt(y.mean() * (1 - y.mean())) if name == "Bernoulli-logistic" else y.std()
    assert std[0] == pytest.approx(expected, rel=0.006)  # five standard errors of 1/√(2 · 400,000)


@pytest.mark.parametrize("name", curves.LAYERS)
def test_exact_rules_are_exact_and_the_papers_are_not(name):
    truth = curves.integrated(name, MEAN, 1.0)
    exact, paper = (curves.propagated(name, MEAN, 1.0, kind) for kind in ("exact", "paper"))
    for ours, true in zip(exact, truth, strict=True):
        np.testing.assert_allclose(ours, true, atol=1e-6)
    assert 1e-3 < max(np.abs(a - b).max() for a, b in zip(paper, truth, strict=True)) < 0.2


def test_the_papers_errors_of_the_logistic_transform():
    found = {where: curves.logistic_error(*where, 13) for where in curves.ERRORS}
    assert 0.11 < found[0.0, 50.0] <= 0.14
    assert 0.18 < found[8.0, 1.0] <= 0.26
    assert found[12.0, 1.0] > 0.8

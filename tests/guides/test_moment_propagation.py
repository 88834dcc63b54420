"""`guides.MomentPropagation`: its own objective, start, way to predict and options; draws as of `MeanField`."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bnnzoo
from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives
from bnnzoo._vectorize import seeded
from bnnzoo.moment_prediction import MomentPrediction
from bnnzoo.moments import NoRuleError

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Odd(nn.Module):
    """An operation that has no rule."""

    def forward(self, x):
        return torch.special.i0e(x)


def model(likelihood=None, outputs=1, odd=False):
    with seeded(1):
        network = nn.Sequential(nn.Linear(3, 16), Odd() if odd else nn.ReLU(), nn.Linear(16, outputs))
    return BayesianNetwork(network, likelihood or likelihoods.Gaussian(0.3), dist.Normal(0.0, 1.0))


def test_fit_minimizes_its_own_objective():
    bnn = model()
    guide = guides.MomentPropagation(bnn, approximation="paper", fallback="quadrature")
    posterior = fit(bnn, guide, (X, Y), epochs=2)
    assert posterior.info["objective"] == repr(objectives.MomentELBO(approximation="paper", fallback="quadrature"))
    again = fit(bnn, guide, (X, Y), epochs=2, objective=objectives.ELBO())
    assert again.info["objective"] == repr(objectives.ELBO())
    assert fit(bnn, guides.MeanField(bnn), (X, Y), epochs=1).info["objective"] == repr(objectives.ELBO())


def test_training_goes_on_with_it():
    bnn = model()
    posterior = fit(bnn, guides.MomentPropagation(bnn), (X, Y), epochs=2)
    assert posterior.fit((X, Y), epochs=1).info["objective"] == repr(objectives.MomentELBO())


def test_the_start_is_narrow_beside_the_width_of_a_layer():
    bnn = model()
    guide = guides.MomentPropagation(bnn, init_scale=0.2)
    scales = {name: q.variance.sqrt() for name, q in guide.distributions().items()}
    for name, inputs in {"0.weight": 3, "0.bias": 3, "2.weight": 16, "2.bias": 16}.items():
        assert torch.allclose(scales[name], torch.tensor(0.2 / math.sqrt(inputs))), name
    with torch.no_grad():
        guide.log_scale.fill_(3.0)
    guide.reset_parameters()
    assert torch.allclose(guide.distributions()["2.weight"].variance, torch.tensor(0.04 / 16))
    noisy = guides.MomentPropagation(model(likelihoods.Gaussian(dist.LogNormal(0.0, 1.0))), init_scale=0.2)
    assert noisy.log_scale[-1].item() == pytest.approx(math.log(0.2))


def test_it_predicts_by_moments_unless_it_is_asked_for_draws():
    bnn = model()
    posterior = fit(bnn, guides.MomentPropagation(bnn), (X, Y), epochs=2)
    assert isinstance(posterior.predict(X), MomentPrediction)
    assert posterior.predict(X, num_samples=7).shape == (1, 7, 24)
    assert posterior.predict(X, method="draws").shape == (1, 200, 24)
    other = fit(bnn, guides.MeanField(bnn), (X, Y), epochs=2)
    assert other.predict(X).shape == (1, 200, 24)
    assert isinstance(other.predict(X, method="moments"), MomentPrediction)


def test_the_options_are_those_of_objective_and_predictions():
    bnn = model(odd=True)
    with pytest.raises(NoRuleError, match="i0e"):
        fit(bnn, guides.MomentPropagation(bnn), (X, Y), epochs=1)
    posterior = fit(bnn, guides.MomentPropagation(bnn, fallback="quadrature"), (X, Y), epochs=1)
    assert posterior.predict(X).mean.isfinite().all()
    unlike = fit(bnn, guides.MeanField(bnn), (X, Y), epochs=1)
    with pytest.raises(NoRuleError, match="i0e"):
        unlike.predict(X, method="moments")
    assert unlike.predict(X, method="moments", fallback="quadrature").mean.isfinite().all()


def test_class_probabilities_as_the_guide_says():
    bnn = model(likelihoods.Categorical(), 3)
    posterior = fit(bnn, guides.MomentPropagation(bnn, init_scale=2.0, softmax="normal"), (X, LABELS), epochs=1)
    assert torch.equal(posterior.predict(X).probs, posterior.predict(X, softmax="normal").probs)
    assert not torch.allclose(posterior.predict(X).probs, posterior.predict(X, softmax="simplified").probs, atol=1e-3)


def test_validation_needs_no_draws():
    bnn = model()
    settings = {"epochs": 3, "validation": (X[:6], Y[:6]), "patience": 2, "chains": 2}
    posterior = fit(bnn, guides.MomentPropagation(bnn), (X[6:], Y[6:]), **settings)
    last = [-posterior.predict(X[:6]).chain(c).log_prob(Y[:6]).mean().item() for c in range(2)]
    assert posterior.history["validation"].min(1) == pytest.approx(last, rel=1e-4)


def test_it_is_saved_with_its_options(tmp_path):
    bnn = model()
    guide = guides.MomentPropagation(bnn, init_scale=0.3, approximation="paper", fallback="quadrature")
    posterior = fit(bnn, guide, (X, Y), epochs=2, chains=2)
    posterior.save(tmp_path / "p.bnn")
    loaded = bnnzoo.load(tmp_path / "p.bnn")
    assert isinstance(loaded.guide, guides.MomentPropagation)
    options = ("init_scale", "approximation", "fallback", "softmax")
    assert [getattr(loaded.guide, name) for name in options] == [0.3, "paper", "quadrature", None]
    assert torch.equal(loaded.predict(X).mean, posterior.predict(X).mean)
    assert torch.equal(loaded.predict(X).std, posterior.predict(X).std)


def test_what_pruning_would_make_of_it_is_refused():
    bnn = model()
    posterior = fit(bnn, guides.MomentPropagation(bnn), (X, Y), epochs=2)
    assert 0 < posterior.sparsity(-1.0).total[0] <= 1
    with pytest.raises(TypeError, match="train and predict by draws again"):
        posterior.prune(-1.0)


def test_arguments():
    bnn = model()
    with pytest.raises(ValueError, match="init_scale must be positive"):
        guides.MomentPropagation(bnn, init_scale=0.0)
    with pytest.raises(ValueError, match="approximation must be"):
        guides.MomentPropagation(bnn, approximation="rough")
    with pytest.raises(ValueError, match="fallback must be"):
        guides.MomentPropagation(bnn, fallback="guess")
    with pytest.raises(ValueError, match="softmax must be one of"):
        guides.MomentPropagation(bnn, softmax="probit")

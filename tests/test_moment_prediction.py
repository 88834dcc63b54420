"""Predictions by moments: against closed forms, scipy and predictions by many draws; their whole interface."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate
from gaussian_losses import set_guide
from scipy import integrate, stats
from statistical import bound
from torch import nn

import bnnzoo
from bnnzoo import BayesianNetwork, evaluation, fit, guides, likelihoods, objectives
from bnnzoo._vectorize import seeded
from bnnzoo.data import Dataset, Standardization
from bnnzoo.moment_families import BernoulliTargets, CategoricalTargets, NormalTargets, PoissonTargets, expected
from bnnzoo.posterior import Posterior


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(24, 3)
Y = X.sum(1)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
NOISE = dist.LogNormal(-1.0, 0.5)

#: Likelihood, targets and number of outputs.
TASKS = {
    "known noise": (likelihoods.Gaussian(0.3), Y, 1),
    "learned noise": (likelihoods.Gaussian(), Y, 1),
    "random noise": (likelihoods.Gaussian(NOISE), Y, 1),
    "two targets": (likelihoods.Gaussian(NOISE), torch.stack([Y, 3 - 2 * Y], 1), 2),
    "two noises": (likelihoods.Gaussian(NOISE, num_outputs=2), torch.stack([Y, 3 - 2 * Y], 1), 2),
    "predicted noise": (likelihoods.HeteroscedasticGaussian(), Y, 2),
    "two predicted noises": (likelihoods.HeteroscedasticGaussian(), torch.stack([Y, -Y], 1), 4),
    "yes or no": (likelihoods.Bernoulli(), (Y > 0).float(), 1),
    "classes": (likelihoods.Categorical(), LABELS, 3),
    "counts": (likelihoods.Poisson(), LABELS.float(), 1),
}


def fitted(task="known noise", guide=guides.MomentPropagation, hidden=8, **settings):
    likelihood, y, outputs = TASKS[task]
    with seeded(1):
        layers = [nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, outputs)] if hidden else [nn.Linear(3, outputs)]
        bnn = BayesianNetwork(nn.Sequential(*layers), likelihood, dist.Normal(0.0, 1.0))
    settings = {"epochs": 10, "lr": 0.02, "chains": 2, "objective": objectives.MomentELBO(), **settings}
    return fit(bnn, guide(bnn), (X, y), **settings), y


def wide(bnn):
    return guides.MeanField(bnn, init_scale=0.4)


def within(found, draws, comparisons):
    """The mean of draws [S, ...] within its standard errors."""
    error = (found - draws.mean(0)).abs() / (draws.std(0) / len(draws) ** 0.5 + 1e-6)
    assert error.max() < bound(comparisons), error.max()


class TestAgainstDraws:
    @pytest.mark.parametrize("task", ["known noise", "random noise", "predicted noise", "two noises"])
    def test_one_hidden_layer_has_exact_means_and_variances(self, task):
        posterior, _ = fitted(task, wide)
        x = X[:6]
        drawn = posterior.predict(x, num_samples=4000)
        found = posterior.predict(x, method="moments")
        draws = drawn.draws  # of two chains, each with its own mean
        for chain in range(2):
            own = found.chain(chain)
            within(own.mean, draws[chain], 1000)
            # the variance's own draws
            within(own.epistemic, (draws[chain] - own.mean).square(), 1000)
        spread = drawn.distribution.variance.expand(drawn.shape)
        within(found.aleatoric, spread.flatten(0, 1), 1000)
        between = found.chain(0).mean - found.chain(1).mean
        parts = 0.5 * (found.chain(0).epistemic + found.chain(1).epistemic) + between.square() / 4
        assert torch.allclose(found.epistemic, parts, rtol=1e-4)
        assert torch.allclose(found.variance, found.epistemic + found.aleatoric)

    @pytest.mark.parametrize("task", ["yes or no", "classes", "counts"])
    def test_linear_networks_have_exact_predictives(self, task):
        posterior, y = fitted(task, wide, hidden=0)
        x, y = X[:6], y[:6]
        drawn = posterior.predict(x, num_samples=20000)
        found = posterior.predict(x, method="moments")
        draws = drawn.draws.flatten(0, 1)
        slack = 2e-3 if task == "classes" else 0.0  # of quasi-Monte Carlo
        if task == "counts":
            within(found.mean, draws, 100)
            within(found.epistemic, (draws - found.mean).square(), 100)
            within(found.aleatoric, draws, 100)
        else:
            assert (found.probs - drawn.probs).abs().max() < 0.01
            assert (found.mutual_information - drawn.mutual_information).abs().max() < 0.005 + slack
            assert torch.allclose(found.probs.sum(-1), torch.ones(6), atol=1e-5)
        likelihood = drawn.distribution.log_prob(y).exp().flatten(0, 1)
        error = (found.log_prob(y).exp() - likelihood.mean(0)).abs()
        assert (error < bound(100) * likelihood.std(0) / len(likelihood) ** 0.5 + slack).all()

    @pytest.mark.parametrize("make", [guides.Map, lambda bnn: guides.Dropout(bnn, rate=0.3), guides.Laplace])
    def test_other_guides(self, make):
        posterior, _ = fitted(guide=make, hidden=0, epochs=40)
        found, drawn = posterior.predict(X, method="moments"), posterior.predict(X, num_samples=4000)
        for chain in range(2):
            draws = drawn.draws[chain]
            within(found.chain(chain).mean, draws, 1000)
            within(found.chain(chain).epistemic, (draws - found.chain(chain).mean).square(), 1000)

    def test_dropout_layers_are_off_but_for_a_guide_that_takes_them(self):
        with seeded(1):
            network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 1))
        bnn = BayesianNetwork(network, likelihoods.Gaussian(0.3), dist.Normal(0.0, 1.0))
        point = fit(bnn, guides.Map(bnn), (X, Y), objective=objectives.MomentELBO(), epochs=3)
        found, drawn = point.predict(X, method="moments"), point.predict(X, num_samples=2)
        assert torch.allclose(found.mean, drawn.mean, atol=1e-6)
        assert not found.epistemic.any()
        taken = fit(
            bnn, guides.Dropout(bnn, from_dropout_layers=True), (X, Y), objective=objectives.MomentELBO(), epochs=3
        )
        found, draws = taken.predict(X, method="moments"), taken.predict(X, num_samples=4000).draws[0]
        within(found.mean, draws, 1000)
        within(found.epistemic, (draws - found.mean).square(), 1000)
        assert found.epistemic.min() > 0


class TestClosedForms:
    def test_linear_regression(self):
        model = Conjugate()
        bnn = model.bnn()
        guide = guides.MeanField(bnn)
        set_guide(guide, model.mean.float(), model.mean_field_scale.float())
        posterior = fit(bnn, guide, model.data, epochs=1, lr=1e-12)
        found = posterior.predict(model.x, method="moments")
        mean = model.design @ model.mean
        epistemic = model.design.square() @ model.mean_field_scale.square()
        std = (epistemic + model.noise**2).sqrt()
        assert torch.allclose(found.mean.double(), mean, atol=1e-4)
        assert torch.allclose(found.epistemic.double(), epistemic, rtol=1e-4)
        assert torch.allclose(found.std.double(), std, rtol=1e-4)
        exact = stats.norm(mean.numpy(), std.numpy())
        assert np.allclose(found.log_prob(model.y), exact.logpdf(model.y), atol=1e-4)
        assert np.allclose(found.cdf(model.y), exact.cdf(model.y), atol=1e-4)
        for q in (0.025, 0.5, 0.9):
            assert np.allclose(found.quantile(q), exact.ppf(q), atol=1e-4)
        low, high = found.interval(0.9)
        assert np.allclose(low, exact.ppf(0.05), atol=1e-4)
        assert np.allclose(high, exact.ppf(0.95), atol=1e-4)

    def test_random_noise_is_a_mixture(self):
        loc, variance = torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.2], [0.7]])
        points, mass = np.polynomial.hermite_e.hermegauss(9)
        scale = torch.from_numpy(np.exp(-0.5 + 0.3 * points)).float().expand(1, 1, 9)
        probs = torch.from_numpy(mass / mass.sum()).float().expand(1, 1, 9)
        found = NormalTargets(loc, variance, scale, probs)

        def averaged(fn, row):
            spread = lambda z: math.sqrt(variance[row].item() + math.exp(2 * (-0.5 + 0.3 * z)))  # noqa: E731
            return integrate.quad(lambda z: stats.norm.pdf(z) * fn(loc[row].item(), spread(z)), -8, 8)[0]

        for row in range(2):
            assert found.log_prob(torch.tensor([[0.9], [0.9]]))[row].exp().item() == pytest.approx(
                averaged(lambda m, s: stats.norm.pdf(0.9, m, s), row), rel=1e-4
            )
            assert found.cdf(torch.tensor([[0.9], [0.9]]))[row].item() == pytest.approx(
                averaged(lambda m, s: stats.norm.cdf(0.9, m, s), row), rel=1e-4
            )
        assert torch.allclose(found.within, torch.tensor(math.exp(-1.0 + 2 * 0.09)), rtol=1e-5)
        draws = found.sample((100_000,))
        assert torch.allclose(draws.var(0), found.variance, rtol=0.05)

    @pytest.mark.parametrize("std", [0.0, 0.5, 3.0, 20.0])
    def test_yes_or_no_by_quadrature(self, std):
        mean = 0.7
        found = BernoulliTargets(torch.tensor([mean]).double(), torch.tensor([std**2]).double())

        def average(fn):
            if std == 0:
                return fn(mean)
            breaks = [-mean / std] if abs(mean / std) < 9 else None
            return integrate.quad(
                lambda z: stats.norm.pdf(z) * fn(mean + std * z), -10, 10, points=breaks, limit=300, epsabs=1e-12
            )[0]

        p = average(lambda f: 1 / (1 + math.exp(-f)))
        assert found.probs.item() == pytest.approx(p, abs=1e-6)
        assert found.between.item() == pytest.approx(average(lambda f: (1 / (1 + math.exp(-f)) - p) ** 2), abs=1e-6)
        assert found.within.item() == pytest.approx(average(lambda f: 1 / (2 + 2 * math.cosh(f))), abs=1e-6)
        entropy = average(lambda f: math.log1p(math.exp(-abs(f))) + abs(f) / (1 + math.exp(abs(f))))
        assert found.expected_entropy.item() == pytest.approx(entropy, abs=1e-6)

    def test_counts(self):
        mean, std = 1.2, 0.6
        found = PoissonTargets(torch.tensor([mean]).double(), torch.tensor([std**2]).double())
        rate = stats.lognorm(std, scale=math.exp(mean))
        assert found.mean.item() == pytest.approx(rate.mean())
        assert found.between.item() == pytest.approx(rate.var())
        assert found.variance.item() == pytest.approx(rate.var() + rate.mean())
        for count in (0, 3, 9):
            mass = integrate.quad(lambda r, k=count: stats.poisson.pmf(k, r) * rate.pdf(r), 0, 60, limit=200)[0]
            below = integrate.quad(lambda r, k=count: stats.poisson.cdf(k, r) * rate.pdf(r), 0, 60, limit=200)[0]
            assert found.log_prob(torch.tensor([count]).double()).exp().item() == pytest.approx(mass, rel=1e-6)
            assert found.cdf(torch.tensor([count]).double()).item() == pytest.approx(below, abs=1e-3)
        draws = found.sample((40_000,))
        assert abs(draws.mean().item() - rate.mean()) < 6 * draws.std().item() / 200

    def test_means_over_logits(self):
        """Against long Monte Carlo: probabilities and entropies of ten wide logits, independent and not."""
        mean, root = normal(10, seed=3), normal(10, 10, seed=4)
        for covariance in (None, root @ root.T):
            variance = torch.full((10,), 9.0) if covariance is None else covariance.diagonal()
            half = variance.sqrt().diag() if covariance is None else torch.linalg.cholesky(covariance)
            logits = mean + normal(400_000, 10, seed=5) @ half.T
            joint = None if covariance is None else covariance[None]
            found = expected(lambda f: f.softmax(-1), mean[None], variance[None], joint)[0]
            assert (found - logits.softmax(-1).mean(0)).abs().max() < 4e-3
            targets = CategoricalTargets(mean[None], variance[None], found.log()[None], joint)
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1).mean()
            assert (targets.expected_entropy - entropy).abs() < 1e-2

    def test_joint_densities_of_two_targets(self):
        loc, variance = torch.tensor([[0.3, -0.2]]).double(), torch.tensor([[0.5, 0.8]]).double()
        covariance = torch.tensor([[[0.5, 0.4], [0.4, 0.8]]]).double()
        y = torch.tensor([[0.1, 1.0]]).double()
        whole = stats.multivariate_normal(loc[0], covariance[0].numpy() + 0.09 * np.eye(2))
        one = torch.ones(1, 1, 1).double()
        found = NormalTargets(loc, variance, 0.3 * one, one, covariance)
        assert found.joint_log_prob(y).item() == pytest.approx(whole.logpdf(y[0]), rel=1e-8)
        free = NormalTargets(loc, variance, 0.3 * one, one)
        assert free.joint_log_prob(y).item() == pytest.approx(free.log_prob(y).sum().item(), rel=1e-8)
        scales, probs = torch.tensor([[[0.2, 0.9]]]).double(), torch.tensor([0.3, 0.7]).double()
        each = [
            math.prod(stats.norm.pdf(y[0, c], loc[0, c], math.sqrt(variance[0, c] + s**2)) for c in range(2))
            for s in (0.2, 0.9)
        ]
        shared = NormalTargets(loc, variance, scales, probs.view(1, 1, 2)).joint_log_prob(y)
        assert shared.item() == pytest.approx(math.log(0.3 * each[0] + 0.7 * each[1]), rel=1e-8)
        own = NormalTargets(loc, variance, scales, probs.expand(1, 2, 2))
        assert own.joint_log_prob(y).item() == pytest.approx(own.log_prob(y).sum().item(), rel=1e-8)
        assert abs(own.joint_log_prob(y) - shared) > 0.005


class TestInterface:
    @pytest.mark.parametrize("task", TASKS)
    def test_everything_that_predictions_offer(self, task):
        posterior, y = fitted(task, epochs=2)
        found, drawn = posterior.predict(X), posterior.predict(X, num_samples=5)
        assert found.shape == (2, 1, *drawn.shape[2:])
        assert len(found) == 24
        assert found.draws.shape == (2, 1, *drawn.draws.shape[2:])
        assert repr(found) == f"MomentPrediction(2 chains of {list(drawn.shape[2:])} targets)"
        assert found.log_prob(y).shape == (24,)
        assert torch.equal(found.sample(3), found.sample(3))
        assert found.sample(3, num_samples=4).shape == (2, 4, *drawn.shape[2:])
        names = ["classes", "probs", "entropy", "mutual_information"]
        if found.task != "classification":
            names = ["mean", "epistemic", "aleatoric", "variance", "std"]
            assert found.quantile(0.3).shape == drawn.quantile(0.3).shape
            assert (found.quantile(0.1) <= found.quantile(0.9)).all()
            with pytest.raises(TypeError, match="not classes"):
                found.mutual_information  # noqa: B018
        for name in names:
            value = getattr(found, name)
            assert value.shape == getattr(drawn, name).shape, name
            assert value.isfinite().all(), name
            assert torch.equal(value, getattr(posterior.predict(X), name)), name
        scores = evaluation.score(found, y)
        assert all(np.isfinite(value).all() and value.shape == (2,) for value in scores.values())
        with pytest.raises(IndexError, match="no chain 2"):
            found.chain(2)
        both = torch.stack([found.chain(c).log_prob(y) for c in range(2)])
        assert torch.allclose(both.logsumexp(0) - math.log(2), found.log_prob(y), atol=1e-5)

    @pytest.mark.parametrize("task", TASKS)
    def test_pooled_chains_are_one_mixture(self, task):
        posterior, y = fitted(task, epochs=2)
        found = posterior.predict(X)
        pooled = found.pooled
        assert pooled.shape == (1, 2, *found.shape[2:])
        assert repr(pooled) == f"MomentPrediction(2 pooled chains of {list(found.shape[2:])} targets)"
        assert len(pooled) == 24
        torch.testing.assert_close(pooled.log_prob(y), found.log_prob(y))
        assert torch.equal(pooled.draws, found.draws.reshape(pooled.draws.shape))
        for name, value in found.outputs.items():
            assert torch.equal(pooled.outputs[name], value.reshape(1, 2, *value.shape[2:])), name
        names = (
            ["probs", "mutual_information"] if found.task == "classification" else ["mean", "epistemic", "aleatoric"]
        )
        for name in names:
            torch.testing.assert_close(getattr(pooled, name), getattr(found, name))
        sample = pooled.sample(3, num_samples=4)
        assert sample.shape == (1, 8, *found.shape[2:])
        assert evaluation.score(pooled, y).sizes == {"chain": 1}
        again = pooled.pooled
        assert again.shape == pooled.shape
        assert all(torch.equal(again.outputs[name], value) for name, value in pooled.outputs.items())
        one = found.chain(1)
        assert all(torch.equal(one.pooled.outputs[name], value) for name, value in one.outputs.items())

    def test_samples_have_the_moments(self):
        posterior, _ = fitted("two noises", wide, epochs=2)
        found = posterior.predict(X[:4], method="moments")
        within(found.mean, found.sample(0, 8000).flatten(0, 1), 100)

    def test_quantiles_of_counts_are_the_least_counts_that_reach_them(self):
        posterior, _ = fitted("counts", wide)
        found = posterior.predict(X, method="moments")
        for q in (0.05, 0.5, 0.99):
            count = found.quantile(q).float()
            cdf = lambda y: found.distribution.cdf(y.expand(found.shape)).mean((0, 1))  # noqa: E731
            assert (cdf(count) >= q - 1e-6).all()
            assert ((cdf(count - 1) < q) | (count == 0)).all()

    def test_units(self):
        """A standardized fit predicts as one of data in other units, up to them."""
        x, y = 10 * X + 3, torch.stack([100 * Y - 7, 0.01 * Y], 1)

        def predicted(likelihood):
            with seeded(1):
                network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, likelihood.num_outputs(y)))
            bnn = BayesianNetwork(network, likelihood, dist.Normal(0.0, 1.0))
            own = Dataset(x, y, standardization=Standardization.fit(x, y))
            posterior = fit(bnn, wide(bnn), own, epochs=3, chains=2, objective=objectives.MomentELBO())
            return posterior.predict(x[:5], method="moments"), posterior.predict(x[:5], num_samples=4000)

        for likelihood in (likelihoods.Gaussian(NOISE), likelihoods.HeteroscedasticGaussian()):
            found, drawn = predicted(likelihood)
            for chain in range(2):
                within(found.chain(chain).mean, drawn.draws[chain], 1000)
                within(found.chain(chain).epistemic, (drawn.draws[chain] - found.chain(chain).mean).square(), 1000)
            assert torch.allclose(found.aleatoric, drawn.aleatoric, rtol=0.2)
            assert torch.allclose(found.log_prob(y[:5]), drawn.log_prob(y[:5]), atol=0.6)

    def test_units_of_covariances(self):
        """Joint densities of a standardized fit are those in standard units, over the units."""
        y = torch.stack([100 * Y - 7, 0.01 * Y + normal(24, seed=2) / 100], 1)
        with seeded(1):
            network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        bnn = BayesianNetwork(network, likelihoods.Gaussian(0.3), dist.Normal(0.0, 1.0))
        own = Dataset(X, y, standardization=Standardization.fit(y=y))
        posterior = fit(bnn, wide(bnn), own, epochs=1, objective=objectives.MomentELBO())
        found = posterior.predict(X, method="moments", covariance="sensitivity")
        means, covariances = (found.outputs[name][0, 0].double().numpy() for name in ("mean", "covariance"))
        scale = y.std(0, correction=0)
        standard = ((y - y.mean(0)) / scale).double().numpy()
        expected = [
            stats.multivariate_normal(mean, covariance + 0.09 * np.eye(2)).logpdf(row) - scale.log().sum().item()
            for row, mean, covariance in zip(standard, means, covariances, strict=True)
        ]
        assert np.abs(covariances[:, 0, 1]).min() > 0, "the outputs share their hidden units"
        assert found.log_prob(y).tolist() == pytest.approx(expected, abs=1e-3)

    def test_gradients_by_inputs(self):
        posterior, y = fitted("classes", wide)
        posterior = Posterior(
            posterior._pair.double(), *({n: v.double() for n, v in p.items()} for p in posterior.state())
        )
        x = X[:2].double().requires_grad_()
        (found,) = torch.autograd.grad(posterior.predict(x, method="moments").log_prob(y[:2]).sum(), x)
        for index in ((0, 1), (1, 2)):
            moved = []
            for step in (1e-5, -1e-5):
                other = x.detach().clone()
                other[index] += step
                moved.append(posterior.predict(other, method="moments").log_prob(y[:2]).sum().item())
            assert found[index].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-7)

    def test_saved_and_loaded(self, tmp_path):
        posterior, y = fitted("random noise")
        posterior.save(tmp_path / "p.bnn")
        loaded = bnnzoo.load(tmp_path / "p.bnn")
        assert torch.equal(loaded.predict(X).log_prob(y), posterior.predict(X).log_prob(y))

    def test_blocks_of_rows(self):
        posterior, y = fitted("random noise", hidden=64)
        x = X.repeat(40, 1)
        whole, parts = posterior.predict(x), posterior.predict(x, max_memory=400_000)
        assert torch.allclose(whole.mean, parts.mean, atol=1e-5)
        assert torch.allclose(whole.log_prob(y.repeat(40)), parts.log_prob(y.repeat(40)), atol=1e-4)
        with pytest.raises(ValueError, match="max_memory is too small"):
            posterior.predict(x, max_memory=10)

    @pytest.mark.parametrize("covariance", ["sensitivity", "full"])
    def test_covariances(self, covariance):
        """Behind two hidden layers units are dependent, and covariances come closer to the draws."""
        with seeded(1):
            network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        bnn = BayesianNetwork(network, likelihoods.Gaussian(0.3), dist.Normal(0.0, 1.0))
        y = torch.stack([Y, -Y], 1)
        posterior = fit(bnn, wide(bnn), (X, y), epochs=30, lr=0.02, objective=objectives.MomentELBO())
        drawn = posterior.predict(X, num_samples=4000)
        draws = drawn.draws[0] - drawn.mean
        true = torch.einsum("snc,snd->ncd", draws, draws) / len(draws)
        found = posterior.predict(X, method="moments", covariance=covariance)
        plain = posterior.predict(X, method="moments")
        assert torch.allclose(found.outputs["covariance"][0, 0].diagonal(dim1=-2, dim2=-1), found.epistemic, rtol=1e-4)
        error = (found.outputs["covariance"][0, 0] - true).norm()
        assert error < 0.45 * (torch.diag_embed(plain.epistemic) - true).norm()
        assert found.log_prob(y).mean() != plain.log_prob(y).mean()

    def test_summaries_are_by_draws(self):
        posterior, _ = fitted()
        assert posterior.summarize(X, num_samples=7).num_samples == 14


class TestRefusals:
    @pytest.mark.parametrize("make", [guides.MNF, guides.LowRank])
    def test_guides_without_moments(self, make):
        posterior, _ = fitted(guide=make, objective=None, epochs=1)
        with pytest.raises(ValueError, match=f"guides.{make.__name__} has no .* predict by draws"):
            posterior.predict(X, method="moments")

    def test_options(self):
        posterior, _ = fitted(epochs=1)
        with pytest.raises(ValueError, match="method must be one of"):
            posterior.predict(X, method="magic")
        with pytest.raises(ValueError, match="num_samples=5 belongs to method='draws'"):
            posterior.predict(X, num_samples=5, method="moments")
        with pytest.raises(ValueError, match="softmax belongs to method='moments'"):
            posterior.predict(X, num_samples=5, softmax="normal")
        with pytest.raises(ValueError, match="no option 'sotfmax'"):
            posterior.predict(X, sotfmax="normal")
        with pytest.raises(ValueError, match="is for class labels"):
            posterior.predict(X, softmax="normal")
        with pytest.raises(ValueError, match="covariance must be one of"):
            posterior.predict(X, covariance="some")
        with pytest.raises(ValueError, match="the network fails on inputs of shape"):
            posterior.predict(X[:, :2])
        classes, _ = fitted("classes", epochs=1)
        with pytest.raises(ValueError, match="softmax must be one of"):
            classes.predict(X, softmax="probit")
        with pytest.raises(ValueError, match="is for independent logits"):
            classes.predict(X, softmax="normal", covariance="full")

    def test_likelihoods_of_ones_own(self):
        class Own(likelihoods.Likelihood):
            family, task = dist.Laplace, "regression"

            def conditional(self, output, **sites):
                loc = output.squeeze(-1)
                return {"loc": loc, "scale": torch.ones_like(loc[:1])}

        bnn = BayesianNetwork(nn.Linear(3, 1), Own(), dist.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn), (X, Y), epochs=1)
        with pytest.raises(TypeError, match="Own needs method='draws'"):
            posterior.predict(X, method="moments")

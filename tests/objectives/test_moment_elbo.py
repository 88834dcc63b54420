"""`MomentELBO` against closed forms, scipy's quadrature and long Monte Carlo; what it refuses, and when."""

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, gaussian_of
from gaussian_losses import set_guide
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from scipy import integrate, stats
from statistical import assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, models, objectives, priors
from bnnzoo._contract.measure import call
from bnnzoo._vectorize import Pair, seeded
from bnnzoo.moments import Moments, NoMomentsError
from bnnzoo.objectives import ELBO, KLAnnealing, MomentELBO

N, D = 12, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(N, D)
Y = X.sum(1) + 0.3 * normal(N, seed=1)


def linear(outputs, likelihood, prior=None):
    with seeded(3):
        return BayesianNetwork(nn.Linear(D, outputs), likelihood, prior or dist.Normal(0.0, 1.3)).double()


def wide(bnn, seed=5, scale=0.6):
    """A `MeanField` of unequal scales."""
    guide = guides.MeanField(bnn)
    with torch.no_grad():
        guide.loc.add_(0.3 * normal(len(guide.loc), seed=seed))
        guide.log_scale.copy_(math.log(scale) + 0.3 * normal(len(guide.loc), seed=seed + 1))
    return guide


def output_moments(bnn, guide, x):
    """Of a linear network, [N, C] each: exact."""
    q = guide.distributions()
    mean = x @ q["weight"].mean.T + q["bias"].mean
    variance = x.square() @ q["weight"].variance.T + q["bias"].variance
    return mean.detach().numpy(), variance.detach().numpy()


def data_term(objective, bnn, guide, x, y, **kwargs):
    """The loss without the divergence."""
    return call(
        Pair(bnn, guide), type(objective)(**_arguments(objective), kl_weight=0.0).differentiable_loss, x, y, **kwargs
    )


def _arguments(objective):
    return {"alpha": objective.alpha, "softmax": objective.softmax}


def loss(objective, bnn, guide, x, y, **kwargs):
    return call(Pair(bnn, guide), objective.differentiable_loss, x, y, **kwargs)


def log_normal(y, mean, std):
    return -0.5 * ((y - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def power_mean(log_prob, mean, variance, alpha):
    """`(1/α) log E exp(α log_prob(f))` by adaptive quadrature of scipy; E log_prob at α = 0."""
    std = math.sqrt(variance)

    def integrand(z):
        value = log_prob(mean + std * z)
        return math.exp(log_normal(z, 0.0, 1.0)) * (value if alpha == 0 else math.exp(alpha * value))

    total = integrate.quad(integrand, -10, 10, epsabs=1e-12, epsrel=1e-10, limit=200)[0]
    return total if alpha == 0 else math.log(total) / alpha


class TestLinearGaussian:
    """Outputs of a linear network are Gaussian: everything is in closed form."""

    def conjugate(self):
        model = Conjugate()
        bnn = model.bnn()
        guide = guides.MeanField(bnn)
        set_guide(guide, model.mean.float() + 0.1, 1.5 * model.mean_field_scale.float())
        return model, bnn, guide

    def test_the_elbo_is_exact(self):
        model, bnn, guide = self.conjugate()
        expected = -model.elbo(*gaussian_of(guide)).item()
        assert loss(MomentELBO(), bnn, guide, model.x, model.y).item() == pytest.approx(expected, rel=1e-5)

    def test_minibatches_stand_for_the_data_and_the_divergence_is_weighed(self):
        model, bnn, guide = self.conjugate()
        mean, covariance = gaussian_of(guide)
        rows = slice(4, 11)
        data = -model.n / 7 * model.expected_log_likelihood(mean, covariance, rows)
        for weight in (1.0, 0.3):
            expected = (data + weight * model.kl(mean, covariance)).item()
            found = loss(MomentELBO(kl_weight=weight), bnn, guide, model.x[rows], model.y[rows], size=model.n)
            assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_annealing_follows_the_epoch(self):
        model, bnn, guide = self.conjugate()
        objective = MomentELBO(kl_weight=KLAnnealing(10))
        found = []
        for epoch in (0.0, 5.0, 20.0):
            objective.epoch = epoch
            found.append(loss(objective, bnn, guide, model.x, model.y).item())
        divergence = model.kl(*gaussian_of(guide)).item()
        assert found[1] - found[0] == pytest.approx(0.5 * divergence, rel=1e-4)
        assert found[2] - found[0] == pytest.approx(divergence, rel=1e-4)

    @pytest.mark.parametrize("alpha", [-0.2, 0.5, 1.0, 2.0])
    def test_bb_alpha_is_exact(self, alpha):
        bnn = linear(1, likelihoods.Gaussian(0.7))
        guide = wide(bnn, scale=0.3)
        mean, variance = output_moments(bnn, guide, X.double())
        expected = -sum(
            power_mean(lambda f, y=y: log_normal(y, f, 0.7), m, v, alpha)
            for m, v, y in zip(mean[:, 0], variance[:, 0], Y.double().tolist(), strict=True)
        )
        found = data_term(MomentELBO(alpha), bnn, guide, X.double(), Y.double())
        assert found.item() == pytest.approx(expected, rel=1e-7)

    def test_a_learned_scale_gets_the_gradient_of_the_closed_form(self):
        bnn = linear(1, likelihoods.Gaussian())
        guide = wide(bnn)
        mean, variance = output_moments(bnn, guide, X.double())
        square = ((Y.numpy() - mean[:, 0]) ** 2 + variance[:, 0]).sum()
        scale = bnn.likelihood.scale.item()
        value = loss(MomentELBO(), bnn, guide, X.double(), Y.double())
        (found,) = torch.autograd.grad(value, bnn.likelihood.log_scale)
        assert found.item() == pytest.approx(N - square / scale**2, rel=1e-8)

    def test_pyros_autonormal_is_exact_too(self):
        model = Conjugate()
        bnn = model.bnn()
        guide = AutoNormal(bnn, init_scale=0.4)
        guide(model.x, model.y)
        expected = -model.elbo(*gaussian_of(guide)).item()
        assert loss(MomentELBO(), bnn, guide, model.x, model.y).item() == pytest.approx(expected, rel=1e-5)

    def test_training_finds_the_optimal_factorized_gaussian(self):
        model = Conjugate()
        bnn = model.bnn()
        schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=80, gamma=0.2)
        settings = {"objective": MomentELBO(), "epochs": 400, "lr": 0.1, "scheduler": schedule, "batch_size": model.n}
        posterior = fit(bnn, guides.MeanField(bnn), model.data, **settings)
        mean, covariance = gaussian_of(posterior.guide)
        assert torch.allclose(mean, model.mean, atol=1e-3)
        assert torch.allclose(covariance.diag().sqrt(), model.mean_field_scale, rtol=1e-3)


class TestRandomNoise:
    """A noise scale with a prior: a log-normal q, of which nodes go to the likelihood."""

    prior = dist.LogNormal(-0.5, 0.4)

    def problem(self, std, outputs=1, scales=1):
        bnn = linear(outputs, likelihoods.Gaussian(self.prior, num_outputs=scales))
        guide = wide(bnn, scale=0.3)
        with torch.no_grad():
            guide.loc[-scales:] = torch.linspace(-0.6, -0.2, scales)
            guide.log_scale[-scales:] = math.log(std)
        return bnn, guide, guide.loc[-scales:].tolist()

    @pytest.mark.parametrize("std", [0.01, 0.2, 0.5, 1.0])
    def test_the_elbo(self, std):
        # E s^-2 = exp(-2 μ + 2 σ²); nine nodes lose 2e-6 of it at σ = 1, and 1e-11 at 0.5
        bnn, guide, (center,) = self.problem(std)
        mean, variance = output_moments(bnn, guide, X.double())
        square = ((Y.numpy() - mean[:, 0]) ** 2 + variance[:, 0]).sum()
        expected = N * (center + 0.5 * math.log(2 * math.pi)) + 0.5 * square * math.exp(-2 * center + 2 * std**2)
        found = data_term(MomentELBO(), bnn, guide, X.double(), Y.double())
        assert found.item() == pytest.approx(expected, rel=1e-5 if std == 1.0 else 1e-9)

    def test_its_divergence_is_that_of_the_logarithms(self):
        bnn, guide, (center,) = self.problem(0.3)
        x, y = X.double(), Y.double()
        found = loss(MomentELBO(), bnn, guide, x, y) - data_term(MomentELBO(), bnn, guide, x, y)
        weights = sum(
            torch.distributions.kl_divergence(dist.Normal(q.mean, q.variance.sqrt()), dist.Normal(0.0, 1.3)).sum()
            for name, q in guide.distributions().items()
            if name != "noise"
        )
        noise = torch.distributions.kl_divergence(dist.Normal(center, 0.3), dist.Normal(-0.5, 0.4))
        assert found.item() == pytest.approx((weights + noise).item(), rel=1e-8)

    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_one_scale_that_two_targets_share(self, alpha):
        bnn, guide, (center,) = self.problem(0.2, outputs=2)
        y = torch.stack([Y, -Y], 1).double()
        mean, variance = output_moments(bnn, guide, X.double())

        def given_scale(log_scale, row):
            # each target's own power mean, closed
            scale2 = math.exp(2 * log_scale)
            residual2 = (y[row].numpy() - mean[row]) ** 2
            ratio = 1 + alpha * variance[row] / scale2
            each = -0.5 * (residual2 / (scale2 * ratio) + math.log(2 * math.pi * scale2) + np.log(ratio) / alpha)
            return each.sum()

        expected = -sum(power_mean(partial(given_scale, row=n), center, 0.2**2, alpha) for n in range(N))
        found = data_term(MomentELBO(alpha), bnn, guide, X.double(), y)
        assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_a_scale_for_each_target_is_integrated_by_itself(self):
        bnn, guide, centers = self.problem(0.2, outputs=2, scales=2)
        y = torch.stack([Y, -Y], 1).double()
        mean, variance = output_moments(bnn, guide, X.double())
        expected = 0.0
        for row in range(N):
            for c, center in enumerate(centers):

                def predictive(log_scale, row=row, c=c):
                    spread = math.sqrt(variance[row, c] + math.exp(2 * log_scale))
                    return log_normal(y[row, c].item(), mean[row, c], spread)

                expected -= power_mean(predictive, center, 0.2**2, 1.0)
        found = data_term(MomentELBO(1.0), bnn, guide, X.double(), y)
        assert found.item() == pytest.approx(expected, rel=1e-5)


class TestOtherLikelihoods:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("kind", ["bernoulli", "poisson"])
    def test_one_output(self, kind, alpha):
        likelihood = likelihoods.Bernoulli() if kind == "bernoulli" else likelihoods.Poisson()
        y = (Y > 0).double() if kind == "bernoulli" else (Y.exp().clamp_max(6)).round().double()
        bnn = linear(1, likelihood)
        guide = wide(bnn, scale=0.4)
        mean, variance = output_moments(bnn, guide, X.double())

        def log_prob(f, target):
            if kind == "bernoulli":
                return target * f - np.logaddexp(0.0, f)
            return target * f - math.exp(f) - math.lgamma(target + 1)

        expected = -sum(
            power_mean(partial(log_prob, target=target), m, v, alpha)
            for m, v, target in zip(mean[:, 0], variance[:, 0], y.tolist(), strict=True)
        )
        found = data_term(MomentELBO(alpha), bnn, guide, X.double(), y)
        assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_a_predicted_scale(self):
        bnn = linear(2, likelihoods.HeteroscedasticGaussian())
        guide = wide(bnn, scale=0.3)
        mean, variance = output_moments(bnn, guide, X.double())

        def given_scale(raw, row):
            scale = 1e-3 + np.logaddexp(0.0, raw)
            square = (Y[row].item() - mean[row, 0]) ** 2 + variance[row, 0]
            return -0.5 * square / scale**2 - math.log(scale) - 0.5 * math.log(2 * math.pi)

        expected = -sum(power_mean(partial(given_scale, row=n), mean[n, 1], variance[n, 1], 0) for n in range(N))
        found = data_term(MomentELBO(), bnn, guide, X.double(), Y.double())
        assert found.item() == pytest.approx(expected, rel=1e-6)

    def test_classes_have_a_bound_close_to_the_elbo(self):
        y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
        bnn = linear(3, likelihoods.Categorical())
        guide = wide(bnn, scale=0.4)
        mean, variance = (torch.from_numpy(each) for each in output_moments(bnn, guide, X.double()))
        logits = mean + variance.sqrt() * normal(50_000, 1, 3, seed=9)
        exact = -logits.log_softmax(-1).mean(0)[torch.arange(N), y]
        error = logits.log_softmax(-1).std(0).max() / len(logits) ** 0.5 * N
        found = data_term(MomentELBO(), bnn, guide, X.double(), y)
        assert exact.sum() - 6 * error < found < exact.sum() + 0.1 * N

    @pytest.mark.parametrize("kind", ["normal", "logistic", "simplified"])
    def test_the_papers_probabilities_at_alpha_1(self, kind):
        y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
        bnn = linear(3, likelihoods.Categorical())
        guide = wide(bnn, scale=0.5)
        mean, variance = output_moments(bnn, guide, X.double())
        unit = math.pi**2 / 3
        if kind == "simplified":
            log_q = mean / np.sqrt(variance / unit + 1)
        else:
            margins = mean[:, :, None] - mean[:, None, :]
            spread = np.sqrt(variance[:, :, None] + variance[:, None, :] + unit)
            others = ~np.eye(3, dtype=bool)
            if kind == "normal":
                log_q = np.where(others, stats.norm.logcdf(margins / spread), 0.0).sum(-1)
            else:
                log_q = -np.log(1 + np.where(others, np.exp(-margins * math.sqrt(unit) / spread), 0.0).sum(-1))
        log_q = log_q - np.logaddexp.reduce(log_q, axis=1, keepdims=True)
        expected = -log_q[np.arange(N), y.numpy()].sum()
        found = data_term(MomentELBO(1.0, softmax=kind), bnn, guide, X.double(), y)
        assert found.item() == pytest.approx(expected, rel=1e-8)


class TestNetworks:
    def one_hidden_layer(self, likelihood):
        with seeded(3):
            network = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, 1))
        return BayesianNetwork(network, likelihood, dist.Normal(0.0, 1.0))

    def test_one_hidden_layer_of_a_gaussian_likelihood_is_exact(self):
        """Its units are independent given a certain input, so that the output's mean and variance are exact."""
        bnn = self.one_hidden_layer(likelihoods.Gaussian(0.8))
        guide = wide(bnn, scale=0.4)
        q = {name: (each.mean.detach(), each.variance.sqrt().detach()) for name, each in guide.distributions().items()}
        count = 100_000
        draws = {n: m + s * normal(count, *m.shape, seed=20 + i) for i, (n, (m, s)) in enumerate(q.items())}
        hidden = (torch.einsum("sij,nj->sni", draws["0.weight"], X) + draws["0.bias"][:, None]).relu()
        output = torch.einsum("soi,sni->sn", draws["2.weight"], hidden) + draws["2.bias"]
        terms = -dist.Normal(output, 0.8).log_prob(Y).double()
        found = data_term(MomentELBO(), bnn, guide, X, Y).detach().double()
        assert_mean(terms.sum(1), found, comparisons=1)

    def test_random_slopes_of_its_activation_are_exact_too(self):
        with seeded(3):
            network = nn.Sequential(nn.Linear(D, 6), nn.PReLU(6, init=0.3), nn.Linear(6, 1))
        bnn = BayesianNetwork(network, likelihoods.Gaussian(0.8), dist.Normal(0.0, 1.0))
        guide = wide(bnn, scale=0.4)
        q = {name: (each.mean.detach(), each.variance.sqrt().detach()) for name, each in guide.distributions().items()}
        draws = {n: m + s * normal(100_000, *m.shape, seed=20 + i) for i, (n, (m, s)) in enumerate(q.items())}
        hidden = torch.einsum("sij,nj->sni", draws["0.weight"], X) + draws["0.bias"][:, None]
        hidden = hidden.relu() - draws["1.weight"][:, None] * (-hidden).relu()
        output = torch.einsum("soi,sni->sn", draws["2.weight"], hidden) + draws["2.bias"]
        terms = -dist.Normal(output, 0.8).log_prob(Y).double()
        found = data_term(MomentELBO(), bnn, guide, X, Y).detach().double()
        assert_mean(terms.sum(1), found, comparisons=1)

    def test_no_draw_no_noise(self):
        bnn = self.one_hidden_layer(likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)))
        guide = wide(bnn)
        state = torch.get_rng_state()
        gradients = [torch.autograd.grad(loss(MomentELBO(), bnn, guide, X, Y), guide.loc)[0] for _ in range(2)]
        assert torch.equal(*gradients)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize("prior", [priors.StudentT(3.0, 0.0, 1.0), priors.Laplace(0.0, 1.0), priors.ScaleMixture()])
    def test_priors_without_a_known_divergence_by_quadrature(self, prior):
        bnn = linear(1, likelihoods.Gaussian(0.5), prior)
        guide = wide(bnn, scale=0.3)
        state = torch.get_rng_state()
        x, y = X.double(), Y.double()
        found = loss(MomentELBO(), bnn, guide, x, y) - data_term(MomentELBO(), bnn, guide, x, y)
        assert torch.equal(state, torch.get_rng_state())
        expected = 0.0
        for name in ("weight", "bias"):
            q = guide.distributions()[name]
            for m, v in zip(q.mean.flatten().tolist(), q.variance.flatten().tolist(), strict=True):

                def log_prior(w):
                    return prior.log_prob(torch.tensor(w, dtype=torch.float64)).item()

                entropy = 0.5 * math.log(2 * math.pi * math.e * v)
                points = power_mean(log_prior, m, v, 0)
                expected += -entropy - points
        assert found.item() == pytest.approx(expected, abs=0.05 * 4)

    def test_a_point_has_the_value_of_the_elbo(self):
        bnn = self.one_hidden_layer(likelihoods.Gaussian(0.8))
        guide = guides.Map(bnn)
        expected = loss(ELBO(), bnn, guide, X, Y)
        for alpha in (0.0, 0.5, 1.0):
            assert torch.allclose(loss(MomentELBO(alpha), bnn, guide, X, Y), expected, rtol=1e-5)

    def test_pruned_weights_are_points(self):
        bnn = self.one_hidden_layer(likelihoods.Gaussian(0.8))
        guide, whole = guides.PrunedMeanField(bnn), wide(bnn)
        with torch.no_grad():
            guide.loc.copy_(whole.loc)
            guide.log_scale.copy_(whole.log_scale)
        assert torch.allclose(loss(MomentELBO(), bnn, guide, X, Y), loss(MomentELBO(), bnn, whole, X, Y), rtol=1e-5)
        guide.kept[:] = False
        zero = guides.Map(bnn)
        with torch.no_grad():
            zero.loc.zero_()
        found = data_term(MomentELBO(), bnn, guide, X, Y)
        assert torch.allclose(found, data_term(MomentELBO(), bnn, zero, X, Y), rtol=1e-4)

    def test_chains_are_those_of_single_fits(self):
        bnn = self.one_hidden_layer(likelihoods.Gaussian())
        settings = {"objective": MomentELBO(), "epochs": 3, "batch_size": 8, "lr": 0.01}
        one = fit(bnn, guides.MeanField(bnn), (X, Y), **settings)
        several = fit(bnn, guides.MeanField(bnn), (X, Y), chains=3, **settings)
        assert several.history["loss"].shape == (3, 3)
        assert several.history["loss"][0] == pytest.approx(one.history["loss"][0], rel=1e-4)


class TestDropout:
    @pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
    def test_masks_on_the_inputs_of_a_linear_network(self, noise):
        bnn = linear(1, likelihoods.Gaussian(0.7))
        guide = guides.Dropout(bnn, rate=0.3, noise=noise)
        weight, bias = bnn.network.weight.detach(), bnn.network.bias.detach()
        mean = (X.double() @ weight.T + bias)[:, 0]
        variance = 0.3 / 0.7 * (X.double().square() @ weight.square().T)[:, 0]
        expected = (0.5 * ((Y - mean).square() + variance) / 0.49 + 0.5 * math.log(2 * math.pi * 0.49)).sum()
        found = data_term(MomentELBO(), bnn, guide, X.double(), Y.double())
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_the_divergence_is_the_one_of_the_elbo(self):
        bnn = linear(1, likelihoods.Gaussian(0.7))
        guide = guides.Dropout(bnn, rate=0.3)
        x, y = X.double(), Y.double()
        found = loss(MomentELBO(), bnn, guide, x, y) - data_term(MomentELBO(), bnn, guide, x, y)
        with seeded(0):
            whole = loss(ELBO(), bnn, guide, x, y)
        with seeded(0):
            data = loss(ELBO(kl_weight=0.0), bnn, guide, x, y)
        assert found.item() == pytest.approx((whole - data).item(), rel=1e-6)

    def test_channels_of_a_convolution(self):
        """Masks of channels, shared by all positions; each output here sees one position."""
        images = normal(6, 2, 3, 3, seed=4).double()
        y = torch.arange(54).view(6, 3, 3) % 3
        with seeded(3):
            network = nn.Conv2d(2, 3, 1)
        bnn = BayesianNetwork(network, likelihoods.Categorical(), dist.Normal(0.0, 1.0)).double()
        guide = guides.Dropout(bnn, rate=0.4)
        weight, bias = bnn.network.weight.detach(), bnn.network.bias.detach()
        mean = torch.conv2d(images, weight, bias)
        variance = 0.4 / 0.6 * torch.conv2d(images.square(), weight.square())
        expected = -likelihoods.Categorical().expected_log_prob(mean, variance, y).sum()
        assert data_term(MomentELBO(), bnn, guide, images, y).item() == pytest.approx(expected.item(), rel=1e-9)

    def test_layers_that_drop_are_as_masks_of_the_guide(self):
        def bnn(rate):
            with seeded(3):
                network = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Dropout(rate), nn.Linear(6, 1))
            return BayesianNetwork(network, likelihoods.Gaussian(0.5), dist.Normal(0.0, 1.0))

        by_layer = bnn(0.3)
        own = bnn(0.0)
        left = loss(MomentELBO(), by_layer, guides.Dropout(by_layer, from_dropout_layers=True), X, Y)
        right = loss(MomentELBO(), own, guides.Dropout(own, rate=0.3), X, Y)
        assert torch.allclose(left, right, rtol=1e-5)
        assert not torch.allclose(left, loss(MomentELBO(), own, guides.Map(own), X, Y), rtol=1e-2)

    def test_rates_are_learned(self):
        bnn = linear(1, likelihoods.Gaussian(0.3)).float()
        guide = guides.Dropout(bnn, rate=0.5, learn_rate=True)
        posterior = fit(bnn, guide, (X, Y), objective=MomentELBO(), epochs=100, lr=0.05)
        assert posterior.guide.rates()["weight"] < 0.1  # the data are all but linear


class TestRefusals:
    def network(self, norm=False):
        with seeded(3):
            layers = [nn.BatchNorm1d(4)] if norm else []
            return nn.Sequential(nn.Linear(D, 4), *layers, nn.ReLU(), nn.Linear(4, 1))

    @pytest.mark.parametrize("make", [guides.MNF, guides.LowRank, guides.BatchNorm, AutoLowRankMultivariateNormal])
    def test_guides_without_moments_are_refused_before_training(self, make):
        bnn = BayesianNetwork(self.network(make is guides.BatchNorm), likelihoods.Gaussian(0.5), dist.Normal(0.0, 1.0))
        guide = make(bnn)
        steps = []
        with pytest.raises(ValueError, match=r"no mean and variance to propagate.*: use objectives\.ELBO") as error:
            fit(bnn, guide, (X, Y), objective=MomentELBO(), epochs=1, callback=steps.append)
        assert f"guides.{make.__name__}" in str(error.value)
        assert not steps

    def test_a_noise_known_by_moments_alone(self):
        """As Pyro's AutoNormal has it."""
        noise = Moments(torch.ones(()), torch.ones(()))
        likelihood = likelihoods.Gaussian(dist.LogNormal(0.0, 1.0))
        with pytest.raises(NoMomentsError, match="'noise'"):
            likelihoods.MomentTargets(likelihood, Moments(torch.ones(N, 1)), {"noise": noise})

    def test_priors_that_do_not_factorize(self):
        """A MeanField's divergence from a Gaussian is known; a point of Pyro's that is known by moments needs nodes."""
        covariance = torch.tensor([[1.0, 0.7], [0.7, 2.0]])
        prior = {"weight": dist.Normal(0.0, 1.0), "bias": dist.MultivariateNormal(torch.zeros(2), covariance)}
        bnn = BayesianNetwork(nn.Linear(D, 2), likelihoods.HeteroscedasticGaussian(), prior)
        guide = wide(bnn)
        q = guide.distributions()
        whole = torch.distributions.MultivariateNormal
        expected = torch.distributions.kl_divergence(
            whole(q["bias"].mean, q["bias"].variance.diag()), whole(torch.zeros(2), covariance)
        ) + torch.distributions.kl_divergence(
            q["weight"].as_independent(), dist.Normal(0.0, 1.0).expand([2, D]).to_event(2)
        )
        found = loss(MomentELBO(), bnn, guide, X, Y) - data_term(MomentELBO(), bnn, guide, X, Y)
        assert torch.allclose(found, expected, rtol=1e-4)
        with pytest.raises(ValueError, match=r"MultivariateNormal of site 'bias' does not factorize.*objectives\.ELBO"):
            fit(bnn, AutoNormal(bnn), (X, Y), objective=MomentELBO(), epochs=1)

    def test_other_models(self):
        def model(x, y):
            return None

        with pytest.raises(TypeError, match="BayesianNetwork"):
            MomentELBO().differentiable_loss(model, lambda x, y: None, X, Y)

    def test_arguments(self):
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            MomentELBO(math.inf)
        with pytest.raises(ValueError, match="softmax must be one of"):
            MomentELBO(1.0, softmax="probit")
        with pytest.raises(ValueError, match="which is alpha=1, not alpha=0"):
            MomentELBO(softmax="normal")
        with pytest.raises(ValueError, match="approximation must be"):
            MomentELBO(approximation="rough")
        with pytest.raises(ValueError, match="fallback must be"):
            MomentELBO(fallback="guess")
        bnn = linear(1, likelihoods.Gaussian(0.5))
        with pytest.raises(ValueError, match="is for class labels"):
            loss(MomentELBO(1.0, softmax="normal"), bnn, guides.MeanField(bnn), X.double(), Y.double())

    def test_an_operation_without_a_rule_is_named_with_its_module(self):
        class Odd(nn.Module):
            def forward(self, x):
                return torch.special.zeta(x.abs() + 2, torch.ones_like(x))

        network = nn.Sequential(nn.Linear(D, 2), Odd(), nn.Linear(2, 1))
        bnn = BayesianNetwork(network, likelihoods.Gaussian(0.5), dist.Normal(0.0, 1.0))
        with pytest.raises(NotImplementedError, match=r"'1', a Odd"):
            fit(bnn, guides.MeanField(bnn), (X, Y), objective=MomentELBO(), epochs=1)


def test_a_mnist_like_classifier_trains():
    """The loss falls, and few of the network's gradients are denormal."""
    x, y = normal(64, 1, 8, 8, seed=2), torch.arange(64) % 10
    bnn = BayesianNetwork(models.MLP(64, 10, (30,)), likelihoods.Categorical(), priors.FanIn())
    objective = objectives.MomentELBO(1.0, softmax="simplified")
    posterior = fit(bnn, guides.MeanField(bnn, init_scale=0.02), (x, y), objective=objective, epochs=30, lr=0.01)
    history = posterior.history["loss"][0]
    assert history[-1] < history[0]

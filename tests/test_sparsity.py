"""Sparsity of factorized Gaussian posteriors, and pruning."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from posteriors import NOISE, X, Y, fitted
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from saving import round_trip, same
from torch import nn
from torch.optim import lr_scheduler

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors, sample
from bnnzoo._vectorize import pyro_settings, seeded
from bnnzoo.objectives import Sites, divergence, kl_terms

SITES = ("0.weight", "0.bias", "2.weight", "2.bias")


def drowned(chains=2, likelihood=NOISE, **settings):
    """A posterior some of whose weights have log σ² - log μ² = 6, the others -2; and which ones, [chain, D]."""
    posterior = fitted(likelihood=likelihood, chains=chains, **settings)
    loc, log_scale = posterior._parameters["guide.loc"], posterior._parameters["guide.log_scale"]
    below = torch.rand(loc.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    with torch.no_grad():
        loc.copy_(0.2 + loc.abs()).mul_(torch.where(torch.arange(loc.shape[1]) % 2 == 0, 1.0, -1.0))
        log_scale.copy_(loc.abs().log() + torch.where(below, 3.0, -1.0))
    return posterior, below


def split(posterior, flat):
    """A flat tensor [chain, D] by site."""
    layout = posterior.guide.layout
    return dict(zip(layout.names, flat.split(layout.sizes, dim=1), strict=True))


class TestSparsity:
    @pytest.mark.parametrize("chains", [1, 2])
    def test_shares_are_counted_by_chain_and_site(self, chains):
        posterior, below = drowned(chains)
        sparsity = posterior.sparsity()
        parts = split(posterior, below)
        assert tuple(sparsity.sites) == SITES
        for name in SITES:
            np.testing.assert_allclose(sparsity.sites[name], parts[name].double().mean(1).numpy())
        weights = torch.cat([parts[name] for name in SITES], 1)
        np.testing.assert_allclose(sparsity.total, weights.double().mean(1).numpy())
        assert sparsity.total.shape == (chains,)
        assert 0 < sparsity.total.min() < sparsity.total.max() + 1e-9 < 1

    def test_the_threshold_is_on_the_logarithm_of_squares(self):
        posterior, below = drowned()
        share = below[:, :-1].double().mean(1).numpy()  # the last is the noise, no weight
        for threshold, expected in ((5.99, share), (6.01, 0 * share), (-1.99, share), (-2.01, 0 * share + 1)):
            np.testing.assert_allclose(posterior.sparsity(threshold).total, expected)
        assert posterior.sparsity(5.99).threshold == 5.99

    def test_a_mean_of_zero_has_no_signal(self):
        posterior, _ = drowned()
        assert (posterior.sparsity(math.inf).total == 0).all()
        with torch.no_grad():
            posterior._parameters["guide.loc"].zero_()
            posterior._parameters["guide.log_scale"].fill_(-80.0)
        assert (posterior.sparsity(math.inf).total == 1).all()

    def test_other_guides_have_no_signal_to_noise(self):
        stored = sample(fitted().bnn, (X, Y), num_samples=2, warmup_steps=2)
        for posterior in (fitted(guide=guides.Map), fitted(guide=AutoNormal), stored):
            name = type(posterior.guide).__name__
            for method in (posterior.sparsity, posterior.prune):
                with pytest.raises(TypeError, match=rf"guides\.MeanField has .*this posterior's guide is a {name}"):
                    method()

    @pytest.mark.parametrize("threshold", [math.nan, "5", None])
    def test_thresholds_are_numbers(self, threshold):
        with pytest.raises(ValueError, match="threshold must be a number"):
            fitted().sparsity(threshold)


class TestPruning:
    @pytest.mark.parametrize("chains", [1, 2])
    def test_pruned_weights_are_zero_in_every_draw_and_the_others_as_before(self, chains):
        posterior, below = drowned(chains)
        before = posterior.state()
        pruned = posterior.prune()
        draws, kept = posterior.sample(300, seed=2), pruned.sample(300, seed=2)
        parts = split(posterior, below)
        for name, value in draws.items():
            zero = parts[name].view(chains, 1, *value.shape[2:]) & (name != "noise")
            assert (value != 0).all()
            assert torch.equal(kept[name], torch.where(zero, 0.0, value))
        for old, new in zip(before, posterior.state(), strict=True):  # the old posterior is as it was
            assert all(torch.equal(value, new[name]) for name, value in old.items())
        assert type(posterior.guide) is guides.MeanField
        assert pruned.history is posterior.history
        np.testing.assert_allclose(pruned.info["pruned"]["share"], posterior.sparsity().total)
        assert pruned.info["pruned"]["threshold"] == 5.0
        assert "pruned" not in posterior.info

    @pytest.mark.parametrize("chains", [1, 2])
    def test_predictions_are_those_of_the_pruned_draws(self, chains):
        pruned = drowned(chains)[0].prune()
        draws = pruned.sample(3, seed=1)
        prediction = pruned.predict(X[:4], 3, seed=1)
        for chain in range(chains):
            for draw in range(3):
                one, two, three, four = (draws[name][chain, draw] for name in SITES)
                output = torch.tanh(X[:4] @ one.T + two) @ three.T + four
                torch.testing.assert_close(prediction.parameters["loc"][chain, draw], output[:, 0])

    def test_what_is_pruned_stays_pruned(self):
        posterior, below = drowned()
        pruned = posterior.prune()
        np.testing.assert_array_equal(pruned.sparsity(math.inf).total, posterior.sparsity().total)
        again = pruned.prune(-3.0).prune(100.0)
        assert all((value == 0).all() for name, value in again.sample(3).items() if name != "noise")
        assert torch.equal(pruned._buffers["guide.kept"][:, :-1], ~below[:, :-1])

    def test_density_of_draws_is_that_of_the_weights_that_are_kept(self):
        posterior, below = drowned(likelihood=likelihoods.Gaussian(0.3))
        pruned = posterior.prune()
        draws = pruned.sample(5)
        flat = torch.cat([draws[name].flatten(2) for name in SITES], 2)
        loc, scale = (posterior._parameters[f"guide.{name}"][:, None] for name in ("loc", "log_scale"))
        each = dist.Normal(loc, scale.exp()).log_prob(flat)
        expected = torch.where(below[:, None], 0.0, each).sum(2)
        torch.testing.assert_close(pruned.log_q(draws), expected, rtol=1e-4, atol=1e-4)
        assert pruned.log_prior(draws).isfinite().all()
        assert (pruned.log_q(posterior.sample(5)) == -math.inf).all()  # not zero where it should be

    @pytest.mark.parametrize("by", ["block", "site"])
    @pytest.mark.parametrize("prior", [priors.Normal(0.3, 0.8), priors.Laplace(0.0, 1.0), priors.LogUniform(), "t"])
    def test_divergences_count_what_is_kept(self, prior, by, monkeypatch):
        monte_carlo = prior == "t"
        prior = dist.StudentT(3.0, 0.0, 1.0) if monte_carlo else prior
        posterior, below = drowned(1, likelihoods.Gaussian(0.3), prior=prior)
        pruned = posterior.prune()
        if by == "site":
            monkeypatch.setattr(divergence, "_shared_block", lambda *_: None)
        guide_sites = Sites(form="structured")
        with pyro_settings(pruned.guide):
            q = guide_sites.run(pruned.guide, X, Y)
            terms = kl_terms(q, Sites(guide_sites.drawn).run(pruned.bnn, X, Y))
        total = sum(terms)
        assert len(terms) == (1 if by == "block" else 4)
        gradients = torch.autograd.grad(total, [pruned.guide.loc, pruned.guide.log_scale])
        for gradient in gradients:
            assert (gradient[below[0]] == 0).all()
            assert gradient[~below[0]].isfinite().all()
            assert (gradient[~below[0]] != 0).all()
        if not monte_carlo:
            whole = dist.Normal(pruned.guide.loc, pruned.guide.log_scale.exp())
            expected = torch.distributions.kl_divergence(whole, prior.expand(whole.batch_shape))
            torch.testing.assert_close(total, expected[~below[0]].sum(), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_files_keep_it(self, tmp_path, chains):
        pruned = drowned(chains)[0].prune()
        loaded = round_trip(pruned, tmp_path)
        assert isinstance(loaded.guide, guides.PrunedMeanField)
        same(pruned, loaded, X[:5])
        np.testing.assert_array_equal(loaded.sparsity(math.inf).total, pruned.sparsity(math.inf).total)

    @pytest.mark.parametrize("sampling", ["local", "flipout", "dense"])
    @pytest.mark.parametrize("chains", [1, 2])
    def test_training_goes_on_with_what_is_kept(self, chains, sampling):
        posterior, _ = drowned(chains, guide=lambda bnn: guides.MeanField(bnn, sampling=sampling))
        with torch.no_grad():  # the whole second layer, whose outputs then have no variance
            posterior._parameters["guide.log_scale"][:, -7:-1] = 5.0
        pruned = posterior.prune()
        further = pruned.fit((X, Y), epochs=3, lr=0.01)
        assert np.isfinite(further.history["loss"]).all()
        assert torch.equal(further._buffers["guide.kept"], pruned._buffers["guide.kept"])
        draws = further.sample(3)
        assert (draws["2.weight"] == 0).all()
        assert (draws["2.bias"] == 0).all()
        moved = further._parameters["guide.loc"] != pruned._parameters["guide.loc"]
        kept = pruned._buffers["guide.kept"]
        assert moved[kept].all()
        assert not moved[~kept].any()

    @pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO()])
    def test_pyros_objectives(self, objective):
        pruned = drowned(1, likelihoods.Gaussian(0.3))[0].prune()
        with pyro_settings(pruned.bnn, pruned.guide):
            objective.differentiable_loss(pruned.bnn, pruned.guide, X, Y).backward()
        assert pruned.guide.loc.grad.isfinite().all()
        assert pruned.guide.log_scale.grad.isfinite().all()

    def test_convolutions_and_deterministic_layers(self):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        prior = {"0.*": priors.LogUniform(), "*": None}
        images, labels = torch.randn(20, 1, 4, 4), torch.arange(20) % 2
        posterior = fitted(net, likelihoods.Categorical(), dataset=(images, labels), prior=prior)
        assert set(posterior.sparsity().sites) == {"0.weight", "0.bias"}
        everything = posterior.prune(-1e3)
        flat = everything.predict(images, 3).probs
        torch.testing.assert_close(flat, everything.predict(torch.zeros_like(images), 1).probs)


def test_the_log_uniform_prior_prunes_inputs_that_do_not_matter():
    """Five of eight orthogonal inputs have an estimate below its standard error: no signal, however long the run."""
    columns = torch.linalg.qr(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))[0]
    x = 10 * columns  # standard errors of the coefficients: 0.1 for a noise of 1
    y = x @ torch.tensor([2.0, -1.0, 1.0, 0.05, -0.06, 0.07, -0.06, 0.05])

    def fitted_with(prior):
        with seeded(0):
            bnn = BayesianNetwork(nn.Linear(8, 1, bias=False), likelihoods.Gaussian(1.0), prior)
        decay = lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.987)  # noqa: E731
        settings = {"epochs": 300, "lr": 0.06, "batch_size": 100, "chains": 2, "scheduler": decay}
        return fit(bnn, guides.MeanField(bnn), (x, y), **settings)

    sparse, dense = fitted_with(priors.LogUniform()), fitted_with(priors.Normal(0.0, 1.0))
    np.testing.assert_allclose(sparse.sparsity(2.0).total, 5 / 8)
    np.testing.assert_allclose(dense.sparsity(2.0).total, 0)
    draws = sparse.prune(2.0).sample(50)["weight"]
    assert (draws[..., 3:] == 0).all()
    # The others keep their estimate, less the variance over it, and its standard error.
    loc, scale = sparse._parameters["guide.loc"][:, :3], sparse._parameters["guide.log_scale"][:, :3].exp()
    torch.testing.assert_close(loc, torch.tensor([1.995, -0.99, 0.99]).expand(2, 3), atol=0.05, rtol=0)
    torch.testing.assert_close(scale, torch.full((2, 3), 0.1), atol=0.02, rtol=0)

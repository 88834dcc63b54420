"""`BayesianNetwork` and our guides under Pyro's own SVI, MCMC and Predictive, unmodified."""

import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from pyro.optim import Adam, ClippedAdam
from statistical import assert_covariance, assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods

MODEL = Conjugate(n=20, d=2)


def train(bnn, guide, steps: int, elbo=None, data=MODEL.data, lr: float = 0.05, **options) -> SVI:
    """SVI with a learning rate that falls a hundredfold."""
    optimizer = ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(bnn, guide, optimizer, elbo or Trace_ELBO())
    for _ in range(steps):
        svi.step(*data, **options)
    return svi


@pytest.mark.slow
def test_autonormal_reaches_the_optimal_factorized_gaussian():
    bnn = MODEL.bnn()
    guide = AutoNormal(bnn)
    train(bnn, guide, 1500)
    loc = MODEL.flat({"weight": guide.locs.weight, "bias": guide.locs.bias}).squeeze(0)
    scale = MODEL.flat({"weight": guide.scales.weight, "bias": guide.scales.bias}).squeeze(0)
    # The last steps, at learning rates near 0.0005, move in steps of 1 % of a posterior standard deviation.
    assert ((loc - MODEL.mean).abs() < 0.2 * MODEL.mean_field_scale).all()
    assert ((scale / MODEL.mean_field_scale).log().abs() < 0.15).all()


@pytest.mark.slow
def test_autolowrank_reaches_the_exact_posterior():
    bnn = MODEL.bnn()
    guide = AutoLowRankMultivariateNormal(bnn, rank=2)
    train(bnn, guide, 2500)
    posterior = guide.get_posterior()
    assert ((posterior.loc.double() - MODEL.mean).abs() < 0.3 * MODEL.covariance.diag().sqrt()).all()
    whitened = torch.linalg.solve(MODEL.covariance, posterior.covariance_matrix.double())
    assert (torch.linalg.eigvals(whitened).real.log().abs() < 0.35).all()


@pytest.mark.slow
def test_nuts_samples_the_exact_posterior():
    torch.manual_seed(3)
    mcmc = MCMC(NUTS(MODEL.bnn()), num_samples=400, warmup_steps=150, disable_progbar=True)
    mcmc.run(*MODEL.data)
    draws = MODEL.flat(mcmc.get_samples())
    assert draws.shape == (400, 3)
    # NUTS draws are at least as good as one in four independent ones here: five standard errors of 100.
    sd = MODEL.covariance.diag().sqrt()
    assert ((draws.mean(0) - MODEL.mean).abs() < 5 * sd / 10).all()
    whitened = torch.linalg.solve(MODEL.covariance, draws.T.cov())
    assert (torch.linalg.eigvals(whitened).real.log().abs() < 0.7).all()


def test_nuts_samples_a_noise_scale_on_its_support():
    bnn = BayesianNetwork(
        nn.Linear(2, 1),
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
        {"bias": dist.Laplace(0.0, 1.0), "*": dist.Normal(0.0, 1.0)},
    )
    mcmc = MCMC(NUTS(bnn, max_tree_depth=4), num_samples=30, warmup_steps=60, disable_progbar=True)
    mcmc.run(*MODEL.data)
    draws = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "weight": (30, 1, 2),
        "bias": (30, 1),
        "noise": (30,),
    }
    assert (draws["noise"] > 0).all()
    assert 0.2 < draws["noise"].mean() < 1.2  # 0.5 made the data


def test_prior_predictive():
    bnn = MODEL.bnn()
    draws = Predictive(bnn, num_samples=1000)(MODEL.x[:4])
    # Pyro puts the plate's dimension, of size 1, in front of what is outside of the plate.
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "weight": (1000, 1, 1, 2),
        "bias": (1000, 1, 1),
        "y": (1000, 4),
    }
    design = MODEL.design[:4]
    covariance = MODEL.prior_scale**2 * design @ design.T + MODEL.noise**2 * torch.eye(4)
    assert_mean(draws["y"].double(), torch.zeros(4), 1000)
    assert_covariance(draws["y"].double(), torch.zeros(4), covariance, 1000)


@pytest.mark.parametrize("sampling", ["local", "dense"])
def test_posterior_predictive_with_our_guide(sampling):
    bnn = MODEL.bnn()
    guide = guides.MeanField(bnn, sampling=sampling)
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean)
        guide.log_scale.copy_(MODEL.mean_field_scale.log())
    draws = Predictive(bnn, guide=guide, num_samples=1000)(MODEL.x[:4])
    assert draws["y"].shape == (1000, 4)
    design, variance = MODEL.design[:4], MODEL.mean_field_scale.square()
    mean = design @ MODEL.mean
    # The draws of a Predictive share their weights over all rows, whatever the guide samples in training.
    covariance = design @ variance.diag() @ design.T + MODEL.noise**2 * torch.eye(4)
    assert_mean(draws["y"].double(), mean, 1000)
    assert_covariance(draws["y"].double(), mean, covariance, 1000)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("kind", [guides.MeanField, guides.Map])
def test_our_guides_train_under_pyros_svi(kind, elbo):
    bnn = MODEL.bnn()
    guide = kind(bnn)
    train(bnn, guide, 400, elbo())
    assert ((guide.loc.detach() - MODEL.mean).abs() < 0.5 * MODEL.mean_field_scale).all()
    if kind is guides.MeanField:
        assert ((guide.log_scale.detach() - MODEL.mean_field_scale.log()).abs() < 0.4).all()


def test_deterministic_parameters_train_under_svi():
    """Pyro's store trains what it is told of; a network's own parameters are easily forgotten."""
    torch.manual_seed(0)
    x = torch.randn(100, 2)
    y = x @ torch.tensor([1.0, -1.0]) + 3.0 + 0.2 * torch.randn(100)
    prior = {"bias": None, "*": dist.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), prior)
    guide = guides.MeanField(bnn)
    train(bnn, guide, 400, data=(x, y), lr=0.1)
    assert abs(bnn.network.bias.item() - 3.0) < 0.2
    assert 0.1 < bnn.likelihood.scale.item() < 0.4
    assert ((guide.loc.detach() - torch.tensor([1.0, -1.0])).abs() < 0.2).all()


def test_deterministic_parameters_train_with_pyros_guides_too():
    prior = {"bias": None, "*": dist.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), prior)
    before = {name: p.clone() for name, p in bnn.named_parameters() if p.requires_grad}
    train(bnn, AutoDiagonalNormal(bnn), 5)
    assert set(before) == {"network.bias", "likelihood.log_scale"}
    assert all(not torch.equal(bnn.get_parameter(name), value) for name, value in before.items())


def test_models_and_guides_of_one_process_share_nothing():
    """What a second model learns is what it learns alone, whatever was trained before it."""

    def learn(shift: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        prior = {"bias": None, "*": dist.Normal(0.0, 1.0)}
        bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), prior)
        guide = guides.MeanField(bnn)
        train(bnn, guide, 20, data=(MODEL.x, MODEL.y + shift))
        return guide.loc.detach().clone(), bnn.network.bias.detach().clone()

    alone = learn(2.0)
    pyro.clear_param_store()
    other = learn(-5.0)
    after = learn(2.0)
    assert all(torch.equal(a, b) for a, b in zip(alone, after, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(alone, other, strict=True))


def test_a_copy_in_the_global_store_is_refused_rather_than_not_trained():
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), {"bias": None, "*": dist.Normal(0.0, 1.0)})
    guide = guides.MeanField(bnn)
    train(bnn, guide, 1)
    with pytest.raises(RuntimeError, match="of a copy of this program"):
        copy.deepcopy(bnn)(*MODEL.data)
    with pytest.raises(RuntimeError, match="of a copy of this program"):
        copy.deepcopy(guide)(*MODEL.data)
    pyro.clear_param_store()
    train(copy.deepcopy(bnn), copy.deepcopy(guide), 1)


def test_conditioning_on_a_weight():
    """The exact posterior of the rest given the weight."""
    weight = torch.tensor([[1.0, -0.5]])
    bnn = MODEL.bnn()
    conditioned = poutine.condition(bnn, {"weight": weight})
    guide = AutoNormal(conditioned)
    train(conditioned, guide, 500)
    precision = MODEL.n / MODEL.noise**2 + 1 / MODEL.prior_scale**2
    mean = (MODEL.y - MODEL.x @ weight[0]).sum() / MODEL.noise**2 / precision
    assert set(guide.median()) == {"bias"}
    assert abs(guide.locs.bias.item() - mean) < 0.3 * precision**-0.5
    assert abs(torch.log(guide.scales.bias.detach() * precision**0.5)) < 0.2


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoLowRankMultivariateNormal])
def test_minibatches_of_any_size_and_another_test_size(guide_type):
    bnn = MODEL.bnn()
    guide = guide_type(bnn)
    svi = SVI(bnn, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for start in (0, 8, 16):  # 8, 8 and the last 4
        svi.step(MODEL.x[start : start + 8], MODEL.y[start : start + 8], size=MODEL.n)
    for rows in (1, 5, 50):
        x = torch.randn(rows, 2)
        assert Predictive(bnn, guide=guide, num_samples=3)(x)["y"].shape == (3, rows)
        assert guide(x)["weight"].shape == (1, 2)


@pytest.mark.slow
def test_minibatches_estimate_the_same_posterior():
    """With the N/B scale, batches of 5 lead to where all 20 do; without it the posterior would be twice as wide."""
    bnn = MODEL.bnn()
    guide = guides.MeanField(bnn)
    optimizer = ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / 1600)})
    svi = SVI(bnn, guide, optimizer, TraceMeanField_ELBO())
    for _ in range(400):
        for rows in torch.randperm(MODEL.n).split(5):
            svi.step(MODEL.x[rows], MODEL.y[rows], size=MODEL.n)
    assert ((guide.log_scale.detach() - MODEL.mean_field_scale.log()).abs() < 0.3).all()
    assert ((guide.loc.detach() - MODEL.mean).abs() < 0.5 * MODEL.mean_field_scale).all()


def test_elbo_modules_with_a_torch_optimizer_and_local_parameters():
    with pyro.settings.context(module_local_params=True):
        bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), {"bias": None, "*": dist.Normal(0.0, 1.0)})
        loss = Trace_ELBO()(bnn, AutoNormal(bnn))
        loss(*MODEL.data)
        trainable = [p for p in loss.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=0.05)
        first = [p.detach().clone() for p in trainable]
        for _ in range(3):
            optimizer.zero_grad()
            loss(*MODEL.data).backward()
            optimizer.step()
    assert len(trainable) == 4
    assert all(not torch.equal(a, b) for a, b in zip(first, trainable, strict=True))
    assert not list(pyro.get_param_store())

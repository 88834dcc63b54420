"""`fit` and `sample` end to end on linear regression with known noise, where everything is known."""

from functools import partial

import pytest
import torch
from conjugate import Conjugate
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors, sample
from bnnzoo.objectives import ELBO

MODEL = Conjugate(n=30, d=3)
EPOCHS = 1200


def decaying(optimizer: torch.optim.Optimizer, epochs: int = EPOCHS) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that falls by 1000: the noise of the last steps is far below what is asserted."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.001 ** (1 / epochs))


def trained(sampling: str, particles: int = 8, **settings) -> list[tuple[Tensor, Tensor]]:
    """Means and standard deviations of each chain."""
    bnn = MODEL.bnn()
    settings = {"epochs": EPOCHS, "batch_size": MODEL.n, "scheduler": decaying, **settings}
    posterior = fit(
        bnn, guides.MeanField(bnn, sampling=sampling), MODEL.data, objective=ELBO(particles), lr=0.05, **settings
    )
    parameters, _ = posterior.state()
    pairs = zip(parameters["guide.loc"], parameters["guide.log_scale"].exp(), strict=True)
    return [(loc.double(), scale.double()) for loc, scale in pairs]


def check(loc: Tensor, scale: Tensor, tolerance: float = 0.05) -> None:
    optimum = MODEL.elbo(MODEL.mean, MODEL.mean_field_scale.square().diag())
    deviation = (loc - MODEL.mean).abs() / MODEL.mean_field_scale
    assert (deviation < tolerance).all(), deviation
    assert (scale / MODEL.mean_field_scale - 1).abs().max() < 0.03
    assert optimum - 0.1 < MODEL.elbo(loc, scale.square().diag()) <= optimum + 1e-9


def test_the_closed_forms_agree_with_each_other():
    """At the exact posterior the bound is tight; the optimal factorized Gaussian is a maximum of it, below that."""
    torch.testing.assert_close(MODEL.elbo(MODEL.mean, MODEL.covariance), MODEL.evidence())
    mean, scale = MODEL.mean.clone().requires_grad_(), MODEL.mean_field_scale.clone().requires_grad_()
    best = MODEL.elbo(mean, scale.square().diag())
    assert best < MODEL.evidence() - 0.05
    assert all(gradient.abs().max() < 1e-9 for gradient in torch.autograd.grad(best, (mean, scale)))


@pytest.mark.parametrize(
    "sampling",
    ["local", pytest.param("flipout", marks=pytest.mark.slow), pytest.param("dense", marks=pytest.mark.slow)],
)
def test_mean_field_reaches_the_optimal_factorized_gaussian(sampling):
    # Dense noise is common to all rows, and so has more variance: more draws a step.
    ((loc, scale),) = trained(sampling, particles=8 if sampling == "local" else 40)
    check(loc, scale)


@pytest.mark.slow
def test_every_chain_reaches_it_from_minibatches():
    """Batches of 7 of 30, the last of an epoch with 2: with the wrong scale each would end elsewhere."""
    for loc, scale in trained("local", epochs=800, batch_size=7, chains=3, scheduler=partial(decaying, epochs=800)):
        check(loc, scale, tolerance=0.1)


def test_the_objective_estimates_the_optimal_bound():
    bnn = MODEL.bnn()
    guide = guides.MeanField(bnn)
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean)
        guide.log_scale.copy_(MODEL.mean_field_scale.log())
    losses = torch.stack([ELBO(2000)(bnn, guide)(*MODEL.data).detach() for _ in range(10)]).double()
    optimum = MODEL.elbo(MODEL.mean, MODEL.mean_field_scale.square().diag())
    assert losses.std() / 10**0.5 < 0.02
    assert abs(losses.mean() + optimum) < 0.1


def test_map_reaches_the_mode():
    bnn = MODEL.bnn()
    posterior = fit(
        bnn, guides.Map(bnn), MODEL.data, epochs=400, lr=0.1, chains=2, scheduler=partial(decaying, epochs=400)
    )
    for loc in posterior.state()[0]["guide.loc"].double():
        assert ((loc - MODEL.mean).abs() < 1e-3 * MODEL.mean_field_scale).all()


def test_learned_noise_is_the_expected_residual():
    """At the maximum over the noise scale, its square is the mean of E (y - f)²."""
    torch.manual_seed(1)
    bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(), priors.Normal(0.0, MODEL.prior_scale))
    guide = guides.MeanField(bnn)
    schedule = partial(decaying, epochs=800)
    settings = {"objective": ELBO(8), "epochs": 800, "batch_size": MODEL.n, "lr": 0.1, "scheduler": schedule}
    posterior = fit(bnn, guide, MODEL.data, **settings)
    parameters = {name: value[0].double() for name, value in posterior.state()[0].items()}
    mean, variance = parameters["guide.loc"], (2 * parameters["guide.log_scale"]).exp()
    residual = (MODEL.y - MODEL.design @ mean).square() + MODEL.design.square() @ variance
    noise = parameters["model.likelihood.log_scale"].exp()
    assert abs(noise.square() / residual.mean() - 1) < 0.02
    assert 0.3 < noise < 0.8  # 0.5 made the data


@pytest.mark.slow
def test_nuts_samples_the_exact_posterior():
    posterior = sample(MODEL.bnn(), MODEL.data, num_samples=300, warmup_steps=150, chains=2, seed=1)
    draws = posterior.sample(300)
    assert draws["weight"].shape == (2, 300, 1, 3)
    draws = MODEL.flat(draws)
    # At least one draw in four counts as independent here: 150 of them, five standard errors.
    assert ((draws.mean(0) - MODEL.mean).abs() < 5 * MODEL.covariance.diag().sqrt() / 150**0.5).all()
    whitened = torch.linalg.solve(MODEL.covariance, draws.T.cov())
    assert (torch.linalg.eigvals(whitened).real.log().abs() < 5 * (2 / 150) ** 0.5).all()
    assert posterior.info["divergences"] == [0, 0]

"""`BBAlpha`: its loss against closed forms and quadrature, and where it must agree with the ELBO."""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate
from gaussian_losses import Gaussian, Quadratic, energies, evaluations, exact_model, set_guide
from statistical import assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods
from bnnzoo.objectives import ELBO, BBAlpha, KLAnnealing, Predictive
from bnnzoo.weights import SAMPLINGS

MODEL = Conjugate(n=7, d=1, noise=0.7)
EXACT = exact_model(MODEL)
LOC, SCALE = MODEL.mean + torch.tensor([0.1, 0.5]).double(), torch.tensor([0.1, 0.25]).double()
Q = Gaussian(LOC, SCALE.log())
COMPARISONS = 1000


def mean_field(bnn: BayesianNetwork, sampling: str = "local") -> guides.MeanField:
    guide = guides.MeanField(bnn, sampling=sampling)
    set_guide(guide, LOC, SCALE)
    return guide


def likelihood_powers(alpha: float) -> Tensor:
    """(1/α) log E_q N(y_n | f_n, s²)^α, from the mean and the variance of f_n, by hand."""
    noise = MODEL.noise**2
    mean, variance = EXACT.design @ LOC, EXACT.design.square() @ SCALE.square()
    spread = noise + alpha * variance
    log_volume = (spread / noise).log() / (2 * alpha) + 0.5 * math.log(2 * math.pi * noise)
    return -log_volume - (EXACT.y - mean).square() / (2 * spread)


@pytest.mark.parametrize("alpha", [-0.5, 0.01, 0.5, 1.0, 3.0])
def test_the_closed_form_is_the_likelihoods_own_and_that_of_a_quadrature(alpha):
    torch.testing.assert_close(EXACT.log_likelihoods.power_mean(alpha, Q), likelihood_powers(alpha))
    w, weights = Q.nodes(60)
    q, p = (dist.Normal(each.loc, each.log_scale.exp()).log_prob(w).sum(1) for each in (Q, EXACT.prior))
    log_likelihoods = dist.Normal(w @ EXACT.design.T, MODEL.noise).log_prob(EXACT.y).T
    values = log_likelihoods - (q - p) / MODEL.n
    loss = -(alpha * values + weights.log()).logsumexp(1).sum() / alpha
    torch.testing.assert_close(EXACT.loss(BBAlpha(alpha, exact=True), Q, limit=True), loss)
    approximate = (q - p) @ weights - likelihood_powers(alpha).sum()
    torch.testing.assert_close(EXACT.loss(BBAlpha(alpha), Q, limit=True), approximate)


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.0])
def test_the_quadrature_for_a_few_particles_is_that_of_all_their_tuples(alpha):
    w, weights = Gaussian(torch.zeros(1).double(), torch.zeros(1).double()).nodes(60)
    values = torch.stack([-0.5 * (w[:, 0] - 1.0) ** 2, -0.1 * w[:, 0] ** 2 + w[:, 0]])
    pairs = torch.stack(torch.broadcast_tensors(values[:, :, None], values[:, None, :]), -1)
    brute = ((alpha * pairs).logsumexp(-1) - math.log(2)) / alpha @ weights @ weights
    torch.testing.assert_close(energies.mean_of_few(values, weights, alpha, 2), brute, rtol=1e-5, atol=1e-7)
    # for many it is the limit and the leading term of the bias, -Var[Z] / (2 α K E[Z]²)
    few, limit = (EXACT.log_likelihoods.few(alpha, Q, 10_000), EXACT.log_likelihoods.power_mean(alpha, Q))
    double = EXACT.log_likelihoods.power_mean(2 * alpha, Q)
    leading = -(2 * alpha * (double - limit)).expm1() / (2 * alpha)
    torch.testing.assert_close(10_000 * (few - limit), leading, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.0])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_loss_on_average_is_that_of_the_quadrature_for_any_number_of_particles(sampling, alpha):
    bnn = MODEL.bnn()
    guide = mean_field(bnn, sampling)
    for particles, count in ((1, 10_000), (10, 10_000), (100, 3000), (1000, 300)):
        objective = BBAlpha(alpha, particles)
        losses = evaluations(objective, bnn, guide, *MODEL.data, count=count)
        assert_mean(losses, EXACT.loss(objective, Q), COMPARISONS, f"loss of {particles} particles")
    # at 10 particles the bias can be told from nothing
    assert abs(EXACT.loss(BBAlpha(alpha, 10), Q) - EXACT.loss(objective, Q, limit=True)) > 0.02


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sampling", ["local", "dense"])
def test_the_error_falls_as_one_over_the_root_of_the_number_of_particles(sampling, exact):
    """K times the mean squared error tends to a constant that is known: 2000 losses tell it to a fifth.

    The constant counts the covariances of data that share their particles, and of others only the variances.
    """
    alpha, size = 0.5, MODEL.n
    bnn = MODEL.bnn()
    guide = mean_field(bnn, sampling)
    terms = EXACT.log_likelihoods
    if exact:
        terms = terms - (Q.log_density - EXACT.prior.log_density) * (1 / size)
    pairs = Quadratic(*(each[:, None] + each[None] for each in (terms.precision, terms.linear, terms.constant)))
    means = terms.power_mean(alpha, Q)
    covariance = (alpha * (pairs.power_mean(alpha, Q) - means[:, None] - means[None])).expm1() / alpha**2
    # of `exact`, weights are the same for all data whatever the guide's sampling
    expected = covariance.sum() if exact or sampling == "dense" else covariance.diagonal().sum()
    assert covariance.diagonal().sum() < 0.5 * covariance.sum()
    for particles in (100, 1000):
        objective = BBAlpha(alpha, particles, exact=exact)
        limit = EXACT.loss(objective, Q, limit=True)
        losses = evaluations(objective, bnn, guide, *MODEL.data, count=2000)
        # up to terms of order 1/K, smaller than what is allowed
        assert_mean(particles * (losses - limit).square(), expected, COMPARISONS, "K times the squared error")


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("rows", [slice(None), slice(3)], ids=["all data", "minibatch"])
def test_the_exact_energy_on_average_is_that_of_the_quadrature(alpha, weight, rows):
    bnn = MODEL.bnn()
    guide = mean_field(bnn)
    model = exact_model(MODEL, rows)
    for particles, count in ((1, 20_000), (10, 20_000), (300, 1000)):
        objective = BBAlpha(alpha, particles, weight, exact=True)
        losses = evaluations(objective, bnn, guide, MODEL.x[rows], MODEL.y[rows], count=count, size=MODEL.n)
        assert_mean(losses, model.loss(objective, Q, size=MODEL.n), COMPARISONS, f"loss of {particles} particles")


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_minibatch_stands_for_all_data(sampling, weight):
    bnn = MODEL.bnn()
    guide = mean_field(bnn, sampling)
    objective = BBAlpha(0.5, 10, weight)
    losses = evaluations(objective, bnn, guide, MODEL.x[:3], MODEL.y[:3], count=20_000, size=MODEL.n)
    expected = exact_model(MODEL, slice(3)).loss(objective, Q, size=MODEL.n)
    assert_mean(losses, expected, COMPARISONS, "loss")


def test_the_two_energies_agree_for_many_data():
    """At the best factorized Gaussian of N data their difference falls as 1/N; the library's is the closed form's."""
    gaps = []
    for size in (30, 300, 3000):
        model = Conjugate(n=size, d=1, noise=1.5)
        exact, bnn = exact_model(model), model.bnn()
        guide = guides.MeanField(bnn, sampling="dense")
        q = set_guide(guide, model.mean, model.mean_field_scale)
        both = [BBAlpha(1.0, 100, exact=each) for each in (False, True)]
        limits = [exact.loss(objective, q, limit=True) for objective in both]
        gaps.append(float(limits[0] - limits[1]))
        if size < 1000:
            losses = []
            for objective in both:
                torch.manual_seed(1)  # the same weights for both
                losses.append(evaluations(objective, bnn, guide, *model.data, count=200))
            # 100 particles are a hundredth off, of what there is to see
            assert_mean(losses[0] - losses[1], limits[0] - limits[1], COMPARISONS, f"difference at N = {size}")
    assert 0.01 < gaps[0] < 0.1
    assert 0 < gaps[1] < gaps[0] / 4
    assert 0 < gaps[2] < gaps[1] / 4


def seeded_loss(objective, bnn: BayesianNetwork, guide: nn.Module, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """The loss at a fixed seed, and its gradient by the guide's parameters."""
    torch.manual_seed(7)
    guide.zero_grad()
    loss = objective(bnn, guide)(*args, **kwargs)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in guide.parameters()])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_alpha_zero_is_the_elbo(sampling, weight):
    bnn = MODEL.bnn()
    guide = mean_field(bnn, sampling)
    for particles in (1, 10):
        ours, elbo = (
            seeded_loss(each, bnn, guide, MODEL.x[:3], MODEL.y[:3], size=MODEL.n)
            for each in (BBAlpha(0, particles, weight), ELBO(particles, weight))
        )
        torch.testing.assert_close(ours, elbo, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("alpha", [-2.0, 1e-8, 0.5, 1.0, 30.0])
def test_one_particle_is_the_elbo_for_every_alpha(alpha):
    bnn = MODEL.bnn()
    guide = mean_field(bnn)
    elbo = seeded_loss(ELBO(), bnn, guide, *MODEL.data)
    torch.testing.assert_close(seeded_loss(BBAlpha(alpha, 1), bnn, guide, *MODEL.data), elbo, rtol=1e-6, atol=1e-5)
    exact = seeded_loss(BBAlpha(alpha, 1, exact=True), bnn, guide, *MODEL.data)
    torch.testing.assert_close(exact, seeded_loss(BBAlpha(0, 1, exact=True), bnn, guide, *MODEL.data))


@pytest.mark.parametrize("exact", [False, True])
def test_alpha_one_is_predictive(exact):
    bnn = MODEL.bnn()
    guide = mean_field(bnn)
    ours, predictive = (seeded_loss(each, bnn, guide, *MODEL.data) for each in (BBAlpha(1, 5), Predictive(5)))
    torch.testing.assert_close(ours, predictive, rtol=0, atol=0)
    assert (Predictive(5).alpha, Predictive(5).exact) == (1.0, False)


def by_hand(values: Tensor, alpha: float, divergence: Tensor, exact: bool) -> float:
    """The loss of log likelihoods [K, N], each datum for itself, to 50 digits."""
    with mpmath.workdps(50):
        ratios = [mpmath.mpf(each) for each in divergence.tolist()]
        particles, size = values.shape
        loss = 0 if exact else sum(ratios) / particles
        for column in values.T.tolist():
            terms = [mpmath.mpf(v) - (r / size if exact else 0) for v, r in zip(column, ratios, strict=True)]
            if alpha == 0:
                loss -= sum(terms) / particles
            else:
                loss -= mpmath.log(sum(mpmath.exp(mpmath.mpf(alpha) * t) for t in terms) / particles) / alpha
        return float(loss)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("particles", [1, 2, 1000])
@pytest.mark.parametrize("alpha", [0.0, *(s * 10.0**-e for e in (8, 6, 4, 2) for s in (1, -1)), 0.5, 1.0, -1.0, 100.0])
def test_float32_is_accurate_for_all_alphas_and_likelihoods(alpha, particles, exact):
    """Small α, where the logarithm of a mean would cancel; likelihoods from e^-10000 to nearly 1."""
    values = torch.stack([
        -2 + torch.randn(particles),
        -1e4 + torch.randn(particles),
        -1e-4 * torch.rand(particles),
        torch.where(torch.arange(particles) % 2 == 0, -1e4, -1e-4),
    ], 1)  # fmt: skip
    divergence = 3 + torch.randn(particles)
    values.requires_grad_(), divergence.requires_grad_()
    loss = BBAlpha(alpha, particles, exact=exact).combine([(values, 1.0)], divergence)
    assert loss.dtype == torch.float32
    expected = by_hand(values, alpha, divergence, exact)
    assert math.isclose(loss.item(), expected, rel_tol=3e-7)  # a few units in the last place
    gradients = torch.autograd.grad(loss, [values, divergence])
    assert all(each.isfinite().all() for each in gradients)
    # the weights of a datum's particles sum to 1, whatever α
    torch.testing.assert_close(gradients[0].sum(0), -torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradients[1].sum(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_a_thousand_particles_train_on_outliers():
    """Log likelihoods about -1e4 and -1e-4 from one network; float32."""
    bnn = BayesianNetwork(nn.Linear(1, 1), likelihoods.Gaussian(1 / math.sqrt(2 * math.pi)))
    x, y = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0.0, 56.0, -56.0])
    guide = guides.MeanField(bnn, init_scale=1e-3)
    nn.init.zeros_(guide.loc)
    for alpha in (-1.0, 1e-6, 0.5, 1.0):
        for exact in (False, True):
            loss, gradient = seeded_loss(BBAlpha(alpha, 1000, exact=exact), bnn, guide, x, y)
            assert 1.9e4 < loss < 2.1e4
            assert gradient.isfinite().all()


def test_likelihoods_of_classes_are_averaged_as_powers_datum_by_datum():
    """Two sites, of which the second's data stand for different numbers of data."""
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(5, n, 4, generator=generator).log_softmax(-1)[..., 0] for n in (3, 2))
    divergence, counts = torch.randn(5, generator=generator), torch.tensor([1.0, 4.0])
    for alpha in (-0.5, 0.5, 1.0):
        expected = exact = divergence.mean().item()
        ratios = (divergence - divergence.mean()) / 11
        for values, count in ((first, [2.0] * 3), (second, counts.tolist())):
            for n, c in enumerate(count):
                p = values[:, n].exp()
                expected -= c / alpha * math.log(sum(each**alpha for each in p.tolist()) / 5)
                weighed = (p * (-ratios).exp()).tolist()
                exact -= c / alpha * math.log(sum(each**alpha for each in weighed) / 5)
        for objective, value in ((BBAlpha(alpha, 5), expected), (BBAlpha(alpha, 5, exact=True), exact)):
            loss = objective.combine([(first, 2.0), (second, counts)], divergence)
            torch.testing.assert_close(loss.item(), value, rtol=1e-5, atol=1e-5)


def test_kl_weights_and_annealing_count_in_both_forms():
    bnn = MODEL.bnn()
    guide = mean_field(bnn)
    kl = MODEL.kl(LOC, SCALE.square().diag()).float()

    def loss(weight, exact: bool, epoch: float = 0.0) -> Tensor:
        objective = BBAlpha(0.5, 10, weight, exact)
        objective.epoch = epoch
        return seeded_loss(objective, bnn, guide, *MODEL.data)[0]

    torch.testing.assert_close(loss(0.3, False) - loss(0.0, False), 0.3 * kl, rtol=1e-4, atol=1e-5)
    for exact in (False, True):
        assert loss(0.3, exact) != loss(1.0, exact)
        torch.testing.assert_close(loss(KLAnnealing(10), exact, epoch=3.0), loss(0.3, exact))
        torch.testing.assert_close(loss(KLAnnealing(10), exact, epoch=30.0), loss(1.0, exact))


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf, "0.5", None, True])
def test_alpha_must_be_a_finite_number(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number, not"):
        BBAlpha(alpha)

"""`Renyi` and `ImportanceWeighted`: Gaussian integrals, their gradients, bounds of a known evidence, refusals."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, gaussian_of
from gaussian_losses import evaluations, gradients
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from statistical import assert_equal_means, assert_mean, bound
from torch import Tensor, nn

import bnnzoo.guides.mnf as mnf
from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors
from bnnzoo._contract.measure import mapped
from bnnzoo._vectorize import pyro_settings
from bnnzoo.objectives import ELBO, BBAlpha, ImportanceWeighted, Renyi, total_log_likelihood

MODEL = Conjugate(n=8, d=2, seed=18)  # nearly uncorrelated: weights under a mean-field q have a small variance
X, Y = (each.double() for each in MODEL.data)
COMPARISONS = 1000


class Integrals:
    """Integrals over the weights of powers of likelihood, prior and a Gaussian q, by completing the square.

    With W = p(y | w)^(N/B) (p₀(w) / q(w))^β for B rows of the N data.
    """

    def __init__(self, model: Conjugate = MODEL, rows: slice = slice(None), beta: float = 1.0) -> None:
        self.model, self.beta = model, beta
        self.design, self.y = model.design[rows], model.y[rows].double()
        self.repeats = model.n / len(self.y)

    def _likelihood(self) -> tuple[Tensor, Tensor, Tensor]:
        precision = 1 / self.model.noise**2
        constant = -0.5 * precision * self.y.square().sum() + 0.5 * len(self.y) * math.log(precision / (2 * math.pi))
        return precision * self.design.T @ self.design, precision * self.design.T @ self.y, constant

    @staticmethod
    def _gaussian(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        precision = covariance.inverse()
        constant = -0.5 * (mean @ precision @ mean + covariance.logdet() + len(mean) * math.log(2 * math.pi))
        return precision, precision @ mean, constant

    def log_integral(self, likelihood: float, prior: float, q: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """log ∫ p(y | w)^likelihood p₀(w)^prior q(w)^q dw."""
        size = len(mean)
        priors = self._gaussian(torch.zeros(size).double(), self.model.prior_scale**2 * torch.eye(size).double())
        forms = [self._likelihood(), priors, self._gaussian(mean, covariance)]
        precision, linear, constant = (
            sum(power * form[i] for power, form in zip((likelihood, prior, q), forms, strict=True)) for i in range(3)
        )
        if not (torch.linalg.eigvalsh(precision) > 0).all():
            return torch.tensor(math.inf)
        square = linear @ torch.linalg.solve(precision, linear)
        return constant + 0.5 * (square + size * math.log(2 * math.pi) - precision.logdet())

    def log_moment(self, power: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """log E_q W^power."""
        own = power * self.beta
        return self.log_integral(power * self.repeats, own, 1 - own, mean, covariance)

    def bound(self, alpha: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """The variational Rényi bound."""
        if alpha != 1:
            return self.log_moment(1 - alpha, mean, covariance) / (1 - alpha)
        rows = slice(len(self.y))
        likelihood = self.model.expected_log_likelihood(mean, covariance, rows)
        return self.repeats * likelihood - self.beta * self.model.kl(mean, covariance)

    def bias(self, alpha: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """K times what the estimate by K draws is below the bound, for large K: half the squared variation, / power.

        log of a mean is low by Var[W^power] / (2 K E[W^power]²), up to terms of K⁻².
        """
        if alpha == 1:
            return torch.zeros(()).double()
        first, second = (self.log_moment(times * (1 - alpha), mean, covariance) for times in (1, 2))
        assert second.isfinite(), "the powers have no variance: nothing to take standard errors of"
        return (second - 2 * first).expm1() / (2 * (1 - alpha))

    def loss(self, alpha: float, particles: int, mean: Tensor, covariance: Tensor) -> Tensor:
        """The expectation of the loss, up to terms of K⁻²."""
        return -self.bound(alpha, mean, covariance) + self.bias(alpha, mean, covariance) / particles

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the q under which W is the same everywhere."""
        precision, linear, _ = self._likelihood()
        power = self.repeats / self.beta
        covariance = (power * precision + torch.eye(len(linear)).double() / self.model.prior_scale**2).inverse()
        return covariance @ (power * linear), covariance


EXACT = Integrals()


def network() -> BayesianNetwork:
    return MODEL.bnn().double()


def low_rank(mean: Tensor, covariance: Tensor, bnn: BayesianNetwork | None = None) -> guides.LowRank:
    """Any Gaussian."""
    guide = guides.LowRank(bnn or network(), rank=len(mean))
    rest = 0.5 * torch.linalg.eigvalsh(covariance).min()
    with torch.no_grad():
        guide.loc.copy_(mean)
        guide.log_scale.fill_(0.5 * rest.log())
        guide.factor.copy_(torch.linalg.cholesky(covariance - rest * torch.eye(len(mean)).double()))
    return guide


def mean_field(bnn: BayesianNetwork, sampling: str) -> guides.MeanField:
    guide = guides.MeanField(bnn, sampling=sampling)
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean + 0.2 * MODEL.mean_field_scale)
        guide.log_scale.copy_((1.15 * MODEL.mean_field_scale).log())
    return guide


def of_pyro(kind: type, bnn: BayesianNetwork) -> nn.Module:
    """Started near the posterior, with the parameters made."""
    mean = MODEL.mean + 0.2 * MODEL.mean_field_scale
    start = init_to_value(values={"weight": mean[None, :2], "bias": mean[2:]})
    scale = 1.15 * MODEL.mean_field_scale.mean().item()
    low_rank = kind is AutoLowRankMultivariateNormal
    # half of whose initial variance is for a factor of random size
    options = {"rank": 1, "init_scale": math.sqrt(2) * scale} if low_rank else {"init_scale": scale}
    guide = kind(bnn, init_loc_fn=start, **options)
    with pyro_settings(guide, bnn):
        guide(X, Y)
    if low_rank:
        with torch.no_grad():
            guide.cov_factor.mul_(0.3)
    return guide


#: Off the posterior, by half a standard deviation and by a tenth of the variance, up or down.
SHIFTED = MODEL.mean + 0.5 * MODEL.covariance.diag().sqrt() * torch.tensor([1.0, -1.0, 0.5]).double()
GUIDES: dict[str, Callable[[BayesianNetwork], nn.Module]] = {
    "wider": lambda bnn: low_rank(SHIFTED, 1.1 * MODEL.covariance, bnn),
    "narrower": lambda bnn: low_rank(SHIFTED, 0.9 * MODEL.covariance, bnn),
    "mean field, dense": lambda bnn: mean_field(bnn, "dense"),
    "mean field, local": lambda bnn: mean_field(bnn, "local"),
    "AutoNormal": lambda bnn: of_pyro(AutoNormal, bnn),
    "AutoDiagonalNormal": lambda bnn: of_pyro(AutoDiagonalNormal, bnn),
    "AutoLowRankMultivariateNormal": lambda bnn: of_pyro(AutoLowRankMultivariateNormal, bnn),
    "AutoMultivariateNormal": lambda bnn: of_pyro(AutoMultivariateNormal, bnn),
}
#: The powers 1 - α must have a variance: q as wide as the posterior or wider for those above 1, not much for negative.
CASES = [(name, alpha) for name in GUIDES for alpha in (1.0, 0.5, 0.0)]
CASES += [("wider", -0.5), ("wider", 2.0), ("narrower", 1.5), ("narrower", 3.0)]


@pytest.mark.parametrize("rows", [slice(None), slice(3)], ids=["all data", "minibatch"])
@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0, -0.5, 2.0])
def test_the_closed_form_is_that_of_a_quadrature(alpha, beta, rows):
    """In one dimension, from log densities alone."""
    model = Conjugate(n=6, d=0)
    integrals = Integrals(model, rows, beta)
    mean, covariance = (model.mean + 0.1).detach(), 0.9 * model.covariance
    q = dist.Normal(mean, covariance.sqrt()[0])
    w = mean + 12 * covariance.sqrt()[0] * torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    step = w[1] - w[0]
    y = model.y[rows].double()
    log_likelihood = dist.Normal(w[:, None], model.noise).log_prob(y).sum(1) * (6 / len(y))
    log_w = log_likelihood + beta * (dist.Normal(0.0, model.prior_scale).log_prob(w) - q.log_prob(w))
    if alpha == 1:
        expected = (q.log_prob(w).exp() * log_w).sum() * step
    else:
        expected = (q.log_prob(w) + (1 - alpha) * log_w).logsumexp(0) + step.log()
        expected = expected / (1 - alpha)
    torch.testing.assert_close(integrals.bound(alpha, mean, covariance), expected)


def test_bounds_of_the_closed_form():
    """Of the evidence: below for α > 0, above for α < 0, falling with α, equal at α = 0 and for the posterior."""
    evidence = MODEL.evidence()
    values = torch.stack([EXACT.bound(alpha, SHIFTED, MODEL.covariance) for alpha in (-1, -0.3, 0, 0.3, 1, 1.5)])
    assert (values.diff() < -1e-3).all()
    torch.testing.assert_close(values[2], evidence)
    torch.testing.assert_close(EXACT.bound(0.5, *EXACT.posterior()), evidence)


@pytest.mark.parametrize(("name", "alpha"), CASES)
def test_the_loss_on_average_is_the_bound(name, alpha):
    """With 100 particles a mean; what the logarithm's bias leaves out of the expectation is far below the tolerance."""
    bnn = network()
    guide = GUIDES[name](bnn)
    losses = evaluations(Renyi(alpha, 100), bnn, guide, X, Y, count=1000)
    with torch.no_grad():
        mean, covariance = gaussian_of(guide)
        expected = EXACT.loss(alpha, 100, mean, covariance)
        assert EXACT.bias(alpha, mean, covariance).abs() < 3, "far off: terms of K⁻² would count"
    assert_mean(losses, expected, COMPARISONS, "loss")
    assert losses.std() / 1000**0.5 < 0.02


@pytest.mark.parametrize("alpha", [0.5, 0.0, -0.5, 2.0])
def test_the_loss_converges_to_the_bound(alpha):
    """The bias falls as 1/K (by the constant of the closed form), the spread as 1/√K."""
    bnn = network()
    mean, covariance = SHIFTED, 1.1 * MODEL.covariance
    guide = low_rank(mean, covariance, bnn)
    limit, constant = -EXACT.bound(alpha, mean, covariance), EXACT.bias(alpha, mean, covariance)
    errors, spreads = [], []
    for particles, count in ((1, 4000), (10, 10_000), (100, 1000), (1000, 200)):
        losses = evaluations(Renyi(alpha, particles), bnn, guide, X, Y, count=count)
        errors.append(losses.mean() - limit)
        spreads.append(losses.std())
        if particles >= 10:
            tolerance = bound(COMPARISONS) * losses.std() / count**0.5 + 2 * constant.abs() / particles**1.5
            assert (errors[-1] - constant / particles).abs() < tolerance
            expected = (2 * constant / ((1 - alpha) * particles)).sqrt()
            assert 0.7 < spreads[-1] / expected < 1.4
    assert errors[0] / constant > 0.3  # of the constant's sign: not 0 by mistake
    assert errors[0].abs() > 3 * errors[1].abs()


@pytest.mark.parametrize("beta", [1.0, 0.6, 3.0])
@pytest.mark.parametrize("rows", [slice(None), slice(3)], ids=["all data", "minibatch"])
@pytest.mark.parametrize("alpha", [-math.inf, -4.0, 0.0, 0.5, 1.0, 2.5])
def test_under_the_exact_posterior_every_draw_has_the_log_evidence(alpha, rows, beta):
    """Of the data that the batch stands for, all weights are equal; of kl_weight, under the tempered posterior."""
    integrals = Integrals(rows=rows, beta=beta)
    bnn = network()
    guide = low_rank(*integrals.posterior(), bnn)
    constant = integrals.log_moment(1.0, *integrals.posterior())
    if beta == 1 and rows == slice(None):
        torch.testing.assert_close(constant, MODEL.evidence())
    for particles in (1, 6):
        objective = Renyi(alpha, particles, kl_weight=beta)
        losses = evaluations(objective, bnn, guide, X[rows], Y[rows], size=MODEL.n, count=30)
        torch.testing.assert_close(losses, -constant.expand(30), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("rows", [slice(None), slice(5)], ids=["all data", "minibatch"])
@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_the_power_of_the_likelihood_and_the_weight_of_the_divergence(alpha, rows, beta):
    integrals = Integrals(rows=rows, beta=beta)
    mean, covariance = integrals.posterior()
    mean, covariance = mean + 0.3 * covariance.diag().sqrt(), 1.2 * covariance
    bnn = network()
    objective = Renyi(alpha, 100, kl_weight=beta)
    losses = evaluations(objective, bnn, low_rank(mean, covariance, bnn), X[rows], Y[rows], size=MODEL.n, count=1000)
    assert_mean(losses, integrals.loss(alpha, 100, mean, covariance), COMPARISONS, "loss")


@pytest.mark.parametrize("alpha", [-math.inf, -1.0, 0.0, 0.5, 1.0, 3.0])
def test_one_particle_is_the_elbo(alpha):
    """Every α has the same value at the same draw, the log ratio of the densities: the ELBO's, sampled."""
    bnn = network()
    guide = mean_field(bnn, "local")
    losses = []
    for each in (alpha, 0.25):
        torch.manual_seed(1)
        losses.append(evaluations(Renyi(each, 1), bnn, guide, X, Y, count=2000))
    assert torch.equal(*losses)
    with torch.no_grad():
        assert_mean(losses[0], -MODEL.elbo(*gaussian_of(guide)), COMPARISONS, "loss")


class LogWeights(Renyi):
    """Hands out minus the particles' log weights, [K]."""

    def combine(self, data, divergence):
        return divergence - total_log_likelihood(data)


def test_the_estimate_is_the_power_mean_of_the_particles_weights():
    """At one seed, so of the same particles; largest of them for -∞ (VR-max), their mean log for 1."""
    bnn = network()
    guide = mean_field(bnn, "local")

    def loss(objective) -> Tensor:
        torch.manual_seed(5)
        return objective(bnn, guide)(X, Y).detach()

    log_weights = -loss(LogWeights(0.5, 20))
    assert log_weights.shape == (20,)
    assert log_weights.std() > 0.3
    torch.testing.assert_close(loss(Renyi(-math.inf, 20)), -log_weights.max())
    torch.testing.assert_close(loss(Renyi(1.0, 20)), -log_weights.mean())
    for alpha in (-3.0, 0.0, 0.5, 0.999, 1.001, 4.0):
        power_mean = (log_weights.mul(1 - alpha).logsumexp(0) - math.log(20)) / (1 - alpha)
        torch.testing.assert_close(loss(Renyi(alpha, 20)), -power_mean)
    assert torch.equal(loss(ImportanceWeighted(20)), loss(Renyi(0.0, 20)))


GRADIENTS = [("wider", alpha) for alpha in (1.0, 0.5, 0.0, -0.5, 2.0)]
GRADIENTS += [(name, 0.5) for name in GUIDES if name != "wider"]


@pytest.mark.parametrize(("name", "alpha"), GRADIENTS)
def test_gradients_on_average_are_finite_differences_of_the_bound(name, alpha):
    """In every parameter of q; of what the expectation for 100 particles is, bias included."""
    bnn = network()
    guide = GUIDES[name](bnn)
    drawn = gradients(Renyi(alpha, 100), bnn, guide, X, Y, count=500)
    expected = []
    for _, parameter in sorted(guide.named_parameters()):
        for element in parameter.data.view(-1):
            value, losses = element.item(), []
            for step in (1e-5, -1e-5):
                element.fill_(value + step)
                with torch.no_grad():
                    losses.append(EXACT.loss(alpha, 100, *gaussian_of(guide)))
            element.fill_(value)
            expected.append((losses[0] - losses[1]) / 2e-5)
    assert len(expected) == drawn.shape[1]
    assert max(each.abs() for each in expected) > (0.05 if alpha == 0 else 0.4)  # for 0 the bound is the evidence
    assert_mean(drawn, torch.stack(expected), COMPARISONS, "gradient")


@pytest.mark.parametrize("alpha", [-math.inf, -2.0, 0.0, 0.5, 1.0, 3.0])
def test_gradients_are_self_normalized_weights_times_those_of_log_weights(alpha):
    """Li & Turner 2016, section 4.2, on tensors made by hand: two observed sites of different shapes and counts."""
    first, second, divergence = (torch.randn(5, *shape).double().requires_grad_() for shape in ((4,), (2, 3), ()))
    counts = torch.tensor([[1.0, 0.0, 2.0], [1.0, 1.0, 0.5]]).double()
    loss = Renyi(alpha, 5).combine([(first, 2.5), (second, counts)], divergence)
    log_weights = (2.5 * first).sum(1) + (counts * second).sum((1, 2)) - divergence
    if alpha == -math.inf:
        weights = (log_weights == log_weights.max()).double()
    else:
        weights = ((1 - alpha) * log_weights).softmax(0)
    found = torch.autograd.grad(loss, (first, second, divergence))
    expected = torch.autograd.grad(-(weights.detach() * log_weights).sum(), (first, second, divergence))
    torch.testing.assert_close(found, expected)


def test_the_importance_weighted_bound_rises_to_the_evidence():
    """From a q that is far off, in steps that are significant; a bound for every number of particles."""
    bnn = network()
    guide = low_rank(SHIFTED, 2.5 * MODEL.covariance, bnn)
    evidence = MODEL.evidence()
    last = None
    for particles in (1, 2, 4, 16):
        bounds = -evaluations(ImportanceWeighted(particles), bnn, guide, X, Y, count=1500)
        error = bounds.std() / 1500**0.5
        assert bounds.mean() < evidence + 3 * error
        if last is not None:
            assert bounds.mean() > last[0] + error + last[1]  # by six standard errors of the difference or more
        last = bounds.mean(), error
    bounds = -evaluations(ImportanceWeighted(1000), bnn, guide, X, Y, count=100)
    assert_mean(bounds, evidence - EXACT.bias(0.0, SHIFTED, 2.5 * MODEL.covariance) / 1000, COMPARISONS, "bound")


def test_the_order_of_the_bounds():
    """Falling with α at any number of particles, and between the ELBO and the limit."""
    bnn = network()
    guide = low_rank(SHIFTED, 1.1 * MODEL.covariance, bnn)
    means = []
    for alpha in (-math.inf, -1.0, 0.0, 0.5, 1.0, 2.0):
        torch.manual_seed(3)
        means.append(-evaluations(Renyi(alpha, 8), bnn, guide, X, Y, count=2000).mean())
    assert (torch.stack(means).diff() < 0).all()  # of the same particles: no chance in it
    assert means[1] < EXACT.bound(-1.0, SHIFTED, 1.1 * MODEL.covariance)  # α < 0: a bound from above in the limit only
    assert means[5] > EXACT.bound(2.0, SHIFTED, 1.1 * MODEL.covariance)


@pytest.mark.parametrize(("name", "alpha"), [("mean field, dense", 0.0), ("AutoNormal", 0.5), ("AutoNormal", -1.0)])
def test_pyros_renyi_elbo_has_the_same_expectation(name, alpha):
    bnn = network()
    guide = GUIDES[name](bnn)
    theirs = RenyiELBO(alpha=alpha, num_particles=3)
    with torch.no_grad(), pyro_settings(bnn, guide):
        losses = torch.tensor([theirs.loss(bnn, guide, X[:5], Y[:5], size=8) for _ in range(120)]).double()
    ours = evaluations(Renyi(alpha, 3), bnn, guide, X[:5], Y[:5], size=8, count=5000)
    assert_equal_means(ours, losses, COMPARISONS, "losses")


FLOWS = ["masked", "realnvp", "iaf"]


def mnf_posterior(flow: str):
    """Trained a little under the importance-weighted bound."""
    bnn = MODEL.bnn()
    guide = guides.MNF(bnn, flow=flow, hidden=10, r_hidden=10, init_scale=0.1)
    return fit(bnn, guide, MODEL.data, objective=ImportanceWeighted(5), epochs=60, batch_size=MODEL.n, lr=0.03)


def bounds_of(posterior, objective, draws: int) -> Tensor:
    losses = mapped(posterior._pair, posterior.state(), draws, objective.differentiable_loss, *MODEL.data)
    return -losses.double()[0]


@pytest.mark.parametrize("flow", FLOWS)
def test_mnf_has_a_bound_by_its_auxiliary_variables_too(flow):
    """No higher than the evidence, and higher than its ELBO."""
    posterior = mnf_posterior(flow)
    single, several = (bounds_of(posterior, ImportanceWeighted(k), 2000) for k in (1, 8))
    errors = [values.std() / 2000**0.5 for values in (single, several)]
    evidence = MODEL.evidence()
    assert several.mean() < evidence + 3 * errors[1]
    assert several.mean() > single.mean() + 3 * (errors[0] + errors[1])
    assert single.mean() > evidence - 5  # a short fit comes near
    assert_equal_means(single, bounds_of(posterior, ELBO(), 2000), COMPARISONS, "bounds")


def test_mnf_with_a_wrong_density_breaks_the_bound(monkeypatch):
    original = mnf._log_r
    monkeypatch.setattr(mnf, "_log_r", lambda *args: -original(*args))
    bounds = bounds_of(mnf_posterior("realnvp"), ImportanceWeighted(8), 1000)
    assert bounds.mean() > MODEL.evidence() + 10 * bounds.std() / 1000**0.5


def batch_normalized() -> BayesianNetwork:
    return BayesianNetwork(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), likelihoods.Gaussian(0.5)
    )


JOINT = [Renyi(0.5, 4), ImportanceWeighted(1), BBAlpha(0.5, 4, exact=True)]


@pytest.mark.parametrize("objective", JOINT, ids=repr)
@pytest.mark.parametrize("kind", [guides.Map, guides.Dropout, guides.BatchNorm, guides.Laplace])
def test_guides_without_a_density_are_refused(kind, objective):
    bnn = batch_normalized() if kind is guides.BatchNorm else MODEL.bnn()
    guide = kind(bnn)
    message = (
        rf"^{type(objective).__name__}\(.*\) weighs draws by p\(w\) / q\(w\), and what guides\.{kind.__name__} trains "
        r"has no density of the weights to divide by: use objectives.ELBO or objectives.BBAlpha$"
    )
    for program in (guide, pyro.poutine.scale(guide, scale=0.5)):  # Pyro's handlers hide nothing
        with pytest.raises(ValueError, match=message):
            objective(bnn, program)(*MODEL.data)
    with pytest.raises(ValueError, match=message):
        fit(bnn, guide, MODEL.data, objective=objective, epochs=1, chains=2)


@pytest.mark.parametrize("objective", JOINT, ids=repr)
def test_pyros_points_are_refused(objective):
    bnn = MODEL.bnn()
    message = r"the guide is a point, which has no density to weigh draws by: use objectives.ELBO or BBAlpha"
    with pytest.raises(ValueError, match=message):
        objective(bnn, AutoDelta(bnn))(*MODEL.data)


@pytest.mark.parametrize("objective", JOINT, ids=repr)
@pytest.mark.parametrize("prior", [priors.LogUniform(), {"bias": priors.LogUniform(), "*": dist.Normal(0.0, 1.0)}])
def test_a_prior_of_infinite_mass_is_refused(prior, objective):
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(0.5), prior)
    name = "bias" if isinstance(prior, dict) else "weight"
    with pytest.raises(ValueError, match=rf"the prior of '{name}' is LogUniform.*draws cannot be weighed by it"):
        objective(bnn, guides.MeanField(bnn))(*MODEL.data)


@pytest.mark.parametrize("objective", JOINT, ids=repr)
def test_guides_that_do_not_fit_are_refused(objective):
    bnn = MODEL.bnn()

    def one_site(*args) -> None:
        pyro.sample("weight", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

    def counting(*args) -> None:
        one_site()
        pyro.sample("bias", dist.Poisson(torch.ones(1)).to_event(1))

    def unknown(*args) -> None:
        guides.MeanField(bnn)()
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    for guide, message in (
        (one_site, "the guide has no site for the model's latent 'bias'"),
        (counting, r"the guide's site 'bias' \(Independent\) cannot be reparameterized.*TraceGraph_ELBO"),
        (unknown, "the guide's site 'extra' is not in the model; mark it infer={'is_auxiliary': True}"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.differentiable_loss(bnn, guide, *MODEL.data)


WRONG = [True, math.nan, math.inf, "0.5", None, 1j, torch.tensor(0.5)]


@pytest.mark.parametrize("alpha", WRONG, ids=repr)
def test_alpha_must_be_a_number(alpha):
    with pytest.raises(ValueError, match=r"^alpha must be a finite number or -inf, not "):
        Renyi(alpha)
    for other in (alpha, -math.inf):
        with pytest.raises(ValueError, match=r"^alpha must be a finite number, not "):
            BBAlpha(other)


@pytest.mark.parametrize("kind", [Renyi, ImportanceWeighted])
def test_particles_and_the_weight_of_the_divergence_are_checked(kind):
    for number in (0, -1, 2.0, True, "3", None):
        with pytest.raises(ValueError, match=r"^num_particles must be an integer of at least 1, not "):
            kind(num_particles=number)
    for weight in (*WRONG, -0.1):
        with pytest.raises(ValueError, match=r"^kl_weight must be a finite number of at least 0, or a function of the"):
            kind(kl_weight=weight)

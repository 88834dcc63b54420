"""`ELBO`: closed forms on linear-Gaussian models, divergences by quadrature, any Pyro guide, handlers, errors."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate, gaussian_of
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuide, AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from statistical import assert_equal_means, assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.objectives import ELBO, KLAnnealing, Sites, kl_terms
from bnnzoo.rules import RandomWeight
from bnnzoo.weights import SAMPLINGS

MODEL = Conjugate(n=8, d=2)
COMPARISONS = 1000


def evaluations(elbo, model, guide, *args, count: int = 2000, **kwargs) -> Tensor:
    """Independent evaluations of the loss, [count]."""
    with torch.no_grad(), pyro_settings(guide):
        if isinstance(guide, AutoGuide):
            guide(*args, **kwargs)  # makes its parameters
        once = vectorize(lambda _: elbo.differentiable_loss(model, guide, *args, **kwargs))
        return once(torch.arange(count)).double()


class Sampled:
    """What `Trace_ELBO` estimates, log q - log p of Pyro's own traces, for it calls `.item()` and cannot be mapped."""

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        q = poutine.trace(guide).get_trace(*args, **kwargs)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args, **kwargs)
        return q.log_prob_sum() - p.log_prob_sum()


def mean_field(bnn: BayesianNetwork, sampling: str = "dense") -> tuple[guides.MeanField, Tensor, Tensor]:
    """A guide somewhere near the posterior, its mean and its covariance."""
    guide = guides.MeanField(bnn, sampling=sampling)
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean + 0.05)
        guide.log_scale.copy_(torch.tensor([-2.0, -2.5, -3.0]))  # small: the loss varies little, errors show
    return guide, guide.loc.detach().double(), (2 * guide.log_scale.detach()).exp().double().diag()


@pytest.mark.parametrize("rows", [slice(None), slice(3)], ids=["all data", "minibatch"])
@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_loss_is_the_closed_form_on_average(sampling, particles, rows):
    bnn = MODEL.bnn()
    guide, mean, covariance = mean_field(bnn, sampling)
    x, y = MODEL.x[rows], MODEL.y[rows]
    losses = evaluations(ELBO(particles), bnn, guide, x, y, size=MODEL.n)
    likelihood = MODEL.expected_log_likelihood(mean, covariance, rows) * MODEL.n / len(x)
    assert_mean(losses, MODEL.kl(mean, covariance) - likelihood, COMPARISONS, "loss")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_particles_are_independent(sampling):
    """Five of them have a fifth of the variance: a standard error of 6 %, six of which are allowed."""
    bnn = MODEL.bnn()
    guide, *_ = mean_field(bnn, sampling)
    one, five = (evaluations(ELBO(particles), bnn, guide, *MODEL.data, count=3000).var() for particles in (1, 5))
    assert 0.64 < 5 * five / one < 1.36


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_network_is_handed_structured_weights(sampling):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(self.weight))
            return super().forward(x)

    bnn = BayesianNetwork(Watched(2, 1), likelihoods.Gaussian(0.5))
    guide = guides.MeanField(bnn, sampling=sampling)
    for elbo in (ELBO(), ELBO(3)):
        elbo(bnn, guide)(*MODEL.data)
        bnn(*MODEL.data)  # any other call of the model draws plain tensors
    assert set(seen) == ({Tensor} if sampling == "dense" else {Tensor, RandomWeight})
    assert seen[0] is (Tensor if sampling == "dense" else RandomWeight)


def test_the_divergence_is_exact_in_every_evaluation():
    bnn = MODEL.bnn()
    guide, mean, covariance = mean_field(bnn, "local")
    q, p = runs(bnn, guide)
    torch.testing.assert_close(sum(kl_terms(q, p)).double(), MODEL.kl(mean, covariance), rtol=1e-5, atol=1e-5)


def runs(bnn, guide, x=MODEL.x, y=MODEL.y):
    guide_sites = Sites(form="structured")
    q = guide_sites.run(guide, x, y)
    return q, Sites(guide_sites.drawn).run(bnn, x, y)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_pyros_guides_have_the_closed_form_on_average(kind, particles):
    bnn = MODEL.bnn()
    guide = kind(bnn, init_scale=0.05)
    losses = evaluations(ELBO(particles), bnn, guide, *MODEL.data)
    with torch.no_grad():
        assert_mean(losses, -MODEL.elbo(*gaussian_of(guide)), COMPARISONS, "loss")


@pytest.mark.parametrize("kind", [AutoDelta, guides.Map])
def test_points_have_the_negative_joint_density(kind):
    bnn = MODEL.bnn()
    guide = kind(bnn)
    losses = evaluations(ELBO(), bnn, guide, *MODEL.data, count=2)
    w = MODEL.flat(guide())[0]
    joint = (
        MODEL.expected_log_likelihood(w, torch.zeros(3, 3).double())
        + dist.Normal(0.0, MODEL.prior_scale).log_prob(w).sum()
    )
    torch.testing.assert_close(losses, (-joint).expand(2), rtol=1e-5, atol=1e-5)


class Spelled(PyroModule):
    """N(loc, scale²) over both weights by a transformed standard normal, its Jacobian told in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.loc, self.scale = MODEL.mean.float() + 0.1, torch.tensor([0.1, 0.2, 0.05])

    def forward(self, *args, **kwargs) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(3), 1.0).to_event(1), infer={"is_auxiliary": True})
        w = self.loc + self.scale * u
        jacobian = -self.scale.log().sum()
        hidden = {"density": (jacobian, 0.0), "densities": (0.75 * jacobian, 0.25 * jacobian)}.get(self.way, (0.0, 0.0))
        pyro.sample("weight", dist.Delta(w[None, :2], log_density=torch.as_tensor(hidden[0]), event_dim=2))
        pyro.sample("bias", dist.Delta(w[2:], log_density=torch.as_tensor(hidden[1]), event_dim=1))
        if self.way == "factor":
            pyro.factor("jacobian", jacobian, has_rsample=True)


@pytest.mark.parametrize("way", ["density", "densities", "factor"])
def test_auxiliary_sites_factors_and_log_densities_count_with_the_right_sign(way):
    bnn, guide = MODEL.bnn(), Spelled(way)
    expected = -MODEL.elbo(guide.loc.double(), guide.scale.double().square().diag())
    for elbo in (ELBO(), ELBO(3), Sampled()):
        assert_mean(evaluations(elbo, bnn, guide, *MODEL.data), expected, COMPARISONS, "loss")


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("model_scale", "guide_scale"), [(0.3, 0.3), (0.3, 1.0), (1.0, 0.3), (0.5, 2.0)])
def test_scales_of_handlers_multiply_their_own_program(model_scale, guide_scale, sampling):
    bnn = MODEL.bnn()
    guide, mean, covariance = mean_field(bnn, sampling)
    entropy = 0.5 * covariance.logdet() + 1.5 * math.log(2 * math.pi * math.e)
    joint = MODEL.expected_log_likelihood(mean, covariance) - MODEL.kl(mean, covariance) - entropy
    expected = -model_scale * joint - guide_scale * entropy
    model = poutine.scale(bnn, scale=model_scale) if model_scale != 1 else bnn
    scaled = poutine.scale(guide, scale=guide_scale) if guide_scale != 1 else guide
    for elbo in (ELBO(), ELBO(3)):
        with pyro_settings(guide), torch.no_grad():
            once = vectorize(lambda _, elbo=elbo: elbo.differentiable_loss(model, scaled, *MODEL.data))
            assert_mean(once(torch.arange(2000)).double(), expected, COMPARISONS, "loss")


def test_masked_targets_do_not_count():
    bnn = MODEL.bnn()
    guide = guides.Map(bnn)
    mask = torch.arange(MODEL.n) < 5

    def masked(x, y):
        with poutine.mask(mask=mask):
            return bnn(x, y)

    values = guide()
    prior = sum(bnn.sites[name].log_prob(value) for name, value in values.items())
    log_likelihood = dist.Normal(bnn.output(values, MODEL.x).squeeze(1), MODEL.noise).log_prob(MODEL.y)
    # the mask holds for all sites of the model; those without a batch are multiplied by all of it
    loss = ELBO().differentiable_loss(masked, guide, *MODEL.data)
    torch.testing.assert_close(loss, -log_likelihood[:5].sum() - 5 * prior)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal, guides.MeanField, guides.Map])
def test_the_loss_of_pyros_svi(kind, particles):
    """Under the global store SVI finds the parameters of model and guide, and steps all of them."""
    prior = {"bias": None, "*": dist.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), prior)
    guide = kind(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.05}), loss=ELBO(particles))
    first = svi.evaluate_loss(*MODEL.data)
    parameters = {name: p.clone() for part in (bnn, guide) for name, p in part.named_parameters() if p.requires_grad}
    assert {"network.bias", "likelihood.log_scale"} < set(parameters)
    for _ in range(30):
        assert isinstance(svi.step(*MODEL.data), float)
    assert svi.evaluate_loss(*MODEL.data) < first
    after = {name: p for part in (bnn, guide) for name, p in part.named_parameters() if p.requires_grad}
    assert all(not torch.equal(after[name], value) for name, value in parameters.items())


def test_the_gradient_of_several_particles_is_that_of_their_mean():
    bnn = MODEL.bnn()
    guide, *_ = mean_field(bnn, "local")
    gradients = []
    for _ in range(400):
        guide.zero_grad()
        ELBO(5)(bnn, guide)(*MODEL.data).backward()
        gradients.append(torch.cat([guide.loc.grad, guide.log_scale.grad]).double())
    loc, log_scale = (p.detach().double().requires_grad_() for p in (guide.loc, guide.log_scale))
    (-MODEL.elbo(loc, (2 * log_scale).exp().diag())).backward()
    assert_mean(torch.stack(gradients), torch.cat([loc.grad, log_scale.grad]), COMPARISONS, "gradient")


def test_kl_weights():
    """A point guide draws nothing, so the two parts of the loss can be told apart exactly."""
    bnn = MODEL.bnn()
    guide = guides.Map(bnn)

    def loss(weight, epoch: float = 0.0) -> Tensor:
        elbo = ELBO(kl_weight=weight)
        elbo.epoch = epoch
        return elbo(bnn, guide)(*MODEL.data).detach()

    likelihood, full = loss(0.0), loss(1.0)
    w = MODEL.flat(guide())[0]
    torch.testing.assert_close(-likelihood.double(), MODEL.expected_log_likelihood(w, torch.zeros(3, 3).double()))
    prior = full - likelihood
    torch.testing.assert_close(-prior.double(), dist.Normal(0.0, MODEL.prior_scale).log_prob(w).sum())
    torch.testing.assert_close(loss(0.25), likelihood + 0.25 * prior)
    torch.testing.assert_close(loss(2), likelihood + 2 * prior)
    torch.testing.assert_close(loss(lambda epoch: epoch / 3, epoch=1.5), likelihood + 0.5 * prior)
    annealing = KLAnnealing(10)
    for epoch, weight in ((0.0, 0.0), (2.5, 0.25), (10.0, 1.0), (30.0, 1.0)):
        assert annealing(epoch) == weight
        torch.testing.assert_close(loss(annealing, epoch), likelihood + weight * prior)


def test_fit_tells_the_objective_its_epoch_by_steps():
    seen = []

    def weight(epoch: float) -> float:
        seen.append(epoch)
        return 1.0

    bnn = MODEL.bnn()
    fit(bnn, guides.MeanField(bnn), MODEL.data, objective=ELBO(kl_weight=weight), epochs=2, batch_size=4)
    assert seen == [0.0, 0.5, 1.0, 1.5]


NOISES = [
    dist.HalfNormal(1.0),
    dist.Gamma(2.0, 2.0),
    dist.LogNormal(0.0, 1.0),
    dist.HalfCauchy(0.5),
    dist.InverseGamma(3.0, 1.0),
]


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("kind", [guides.MeanField, guides.Map, AutoNormal])
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_noise_sites_count_as_in_pyros_elbo(noise, kind, outputs):
    bnn = BayesianNetwork(nn.Linear(2, outputs), likelihoods.Gaussian(noise, num_outputs=outputs))
    guide = kind(bnn)
    y = MODEL.y if outputs == 1 else torch.stack([MODEL.y, -MODEL.y], 1)
    ours, pyros = (evaluations(elbo, bnn, guide, MODEL.x, y) for elbo in (ELBO(), Sampled()))
    if kind is guides.Map:
        torch.testing.assert_close(ours, pyros, rtol=1e-5, atol=1e-5)
    else:
        assert_equal_means(ours, pyros, COMPARISONS, "losses")


@pytest.mark.parametrize("kind", [AutoNormal, guides.MeanField])
@pytest.mark.parametrize("noise", NOISES[:3], ids=lambda noise: type(noise).__name__)
def test_chains_with_noise_sites_train(noise, kind):
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(noise))
    posterior = fit(bnn, kind(bnn), MODEL.data, objective=ELBO(2), epochs=40, lr=0.05, chains=3)
    loss = posterior.history["loss"]
    assert loss.shape == (3, 40)
    assert (loss[:, -5:].mean(1) < loss[:, :5].mean(1)).all()
    draws = posterior.sample(10)
    assert draws["noise"].shape == (3, 10)
    assert (draws["noise"] > 0).all()


def test_running_statistics_move_once_a_particle():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(0.5))
    guide = guides.MeanField(bnn)
    ELBO(4)(bnn, guide)(*MODEL.data).backward()
    assert bnn.network[1].num_batches_tracked == 4
    bnn.eval()
    ELBO(4)(bnn, guide)(*MODEL.data).backward()
    assert bnn.network[1].num_batches_tracked == 4


@pytest.mark.parametrize("particles", [1, 3])
def test_a_conditioned_model_and_a_function_are_models_too(particles):
    bnn = MODEL.bnn()
    conditioned = poutine.condition(bnn, {"bias": torch.zeros(1)})
    for model, names in ((conditioned, ["weight"]), (lambda x, y: bnn(x, y), ["weight", "bias"])):
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=ELBO(particles))
        assert math.isfinite(svi.step(*MODEL.data))
        assert list(guide.median()) == names
        pyro.clear_param_store()


class Faulty(PyroModule):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, *args, **kwargs) -> None:
        weight = dist.Normal(torch.zeros(1, 2), 1.0).to_event(2)
        if self.fault == "score function":
            components = dist.Normal(torch.zeros(1, 2, 2), 1.0)
            weight = dist.MixtureSameFamily(dist.Categorical(torch.ones(1, 2, 2)), components).to_event(2)
        pyro.sample("weight", weight)
        if self.fault != "missing":
            pyro.sample("bias", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        if self.fault == "unknown":
            pyro.sample("extra", dist.Normal(0.0, 1.0))
        if self.fault == "auxiliary":
            pyro.sample("extra", dist.Bernoulli(0.5), infer={"is_auxiliary": True})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "the guide has no site for the model's latent 'bias'"),
        ("unknown", "the guide's site 'extra' is not in the model; mark it infer={'is_auxiliary': True}"),
        ("score function", r"the guide's site 'weight' \(Independent\) cannot be reparameterized"),
        ("auxiliary", r"the guide's site 'extra' \(Bernoulli\) cannot be reparameterized"),
    ],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_guides_that_do_not_fit_are_refused(fault, message, particles):
    with pytest.raises(ValueError, match=message):
        ELBO(particles)(MODEL.bnn(), Faulty(fault))(*MODEL.data)


def test_a_site_that_the_model_observes_must_not_be_sampled():
    bnn = MODEL.bnn()
    model = poutine.condition(bnn, {"bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="site 'bias' is observed in the model and sampled by the guide"):
        ELBO().differentiable_loss(model, guides.MeanField(bnn), *MODEL.data)


@pytest.mark.parametrize("number", [0, -1, 1.5, 2.0, True, "3"])
def test_a_number_of_particles_must_be_a_positive_integer(number):
    with pytest.raises(ValueError, match=r"num_particles must be an integer of at least 1, not"):
        ELBO(num_particles=number)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_kl_weight_must_not_be_negative_nor_infinite(weight):
    with pytest.raises(ValueError, match=r"kl_weight must be a finite number of at least 0"):
        ELBO(kl_weight=weight)


@pytest.mark.parametrize("epochs", [0, -1.0, float("nan")])
def test_annealing_takes_a_positive_time(epochs):
    with pytest.raises(ValueError, match="epochs must be positive"):
        KLAnnealing(epochs)

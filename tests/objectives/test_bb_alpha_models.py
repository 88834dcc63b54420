"""`BBAlpha` under all that a model, a guide or a handler can do to it; its gradients and its optimum."""

import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate
from gaussian_losses import Gaussian, LinearModel, Quadratic, energies, evaluations, exact_model, gradients, set_guide
from statistical import assert_equal_means, assert_mean
from torch import Tensor, nn
from torch.nn import functional as F

from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import Pair, pyro_settings
from bnnzoo.chains import Trainer, stack
from bnnzoo.objectives import ELBO, BBAlpha, Objective
from bnnzoo.weights import SAMPLINGS

MODEL = Conjugate(n=7, d=1, noise=0.7)
EXACT = exact_model(MODEL)
LOC, SCALE = MODEL.mean + torch.tensor([0.1, 0.5]).double(), torch.tensor([0.1, 0.25]).double()
Q = Gaussian(LOC, SCALE.log())
LINE = energies.line()
COMPARISONS = 1000

FORMS = [BBAlpha(alpha, 10, exact=exact) for alpha in (0.5, 1.0) for exact in (False, True)]


def mean_field(bnn: BayesianNetwork, sampling: str = "local") -> guides.MeanField:
    guide = guides.MeanField(bnn, sampling=sampling)
    set_guide(guide, LOC, SCALE)
    return guide


class Recorded(BBAlpha):
    """Keeps the log likelihoods [K, N] that it saw last."""

    def combine(self, data, divergence: Tensor) -> Tensor:
        (self.seen, self.count), *_ = data
        return super().combine(data, divergence)


@pytest.mark.parametrize("objective", FORMS, ids=repr)
def test_a_noise_with_a_prior_is_one_of_the_particles(objective):
    """q is Gaussian in the weight and the logarithm of the noise, where the Jacobians of q and p cancel."""
    prior = dist.LogNormal(-0.5, 0.4)
    bnn = BayesianNetwork(nn.Linear(1, 1, bias=False), likelihoods.Gaussian(prior), dist.Normal(0.0, 1.5))
    guide = guides.MeanField(bnn)
    q = set_guide(guide, torch.tensor([0.8, -0.3]), torch.tensor([0.15, 0.25]))
    nodes, weights = q.nodes(60)
    weight, log_noise = nodes.unbind(1)
    normals = [(weight, 0.0, 1.5), (log_noise, -0.5, 0.4)]
    log_p = sum(dist.Normal(mean, scale).log_prob(value) for value, mean, scale in normals)
    log_ratio = dist.Normal(q.loc, q.log_scale.exp()).log_prob(nodes).sum(1) - log_p
    mean = EXACT.design[:, :1] * weight
    values = dist.Normal(mean, log_noise.exp().expand_as(mean)).log_prob(EXACT.y[:, None].expand_as(mean))
    values = values - log_ratio / MODEL.n if objective.exact else values
    expected = -energies.mean_of_few(values, weights, objective.alpha, objective.num_particles).sum()
    expected = expected if objective.exact else expected + log_ratio @ weights
    assert_mean(evaluations(objective, bnn, guide, *MODEL.data, count=8000), expected, COMPARISONS, "loss")


class Twice(nn.Module):
    """Two outputs of one layer: they share all their randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return torch.cat([h, -2 * h], 1)


@pytest.mark.parametrize("objective", FORMS, ids=repr)
def test_a_datum_of_several_outputs_is_one_datum(objective):
    bnn = BayesianNetwork(Twice(), likelihoods.Gaussian(MODEL.noise), dist.Normal(0.0, MODEL.prior_scale))
    both = torch.stack([MODEL.y, 0.5 - MODEL.y], 1)
    parts = [
        LinearModel(factor * EXACT.design, both[:, c].double(), MODEL.noise, MODEL.prior_scale).log_likelihoods
        for c, factor in enumerate((1, -2))
    ]

    class Joint(LinearModel):
        @property
        def log_likelihoods(self) -> Quadratic:
            return parts[0] - parts[1] * -1

    expected = Joint(EXACT.design, EXACT.y, MODEL.noise, MODEL.prior_scale).loss(objective, Q)
    losses = evaluations(objective, bnn, mean_field(bnn), MODEL.x, both, count=8000)
    assert_mean(losses, expected, COMPARISONS, "loss")


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("particles", [1, 5])
def test_dropout_classifies_by_all_of_its_masks(particles, alpha):
    """Three units have eight masks; the divergence is as the guide's docstring has it."""
    rate = 0.4
    bnn = BayesianNetwork(nn.Linear(3, 4), likelihoods.Categorical())
    guide = guides.Dropout(bnn, rate)
    nn.init.normal_(guide.loc, generator=torch.Generator().manual_seed(5))
    weight, bias = guide.loc.detach().double().split([12, 4])
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(6)), torch.tensor([0, 1, 2, 3, 0, 1])
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    probabilities = ((1 - rate) * masks + rate * (1 - masks)).prod(1)
    outputs = (x.double()[:, None] * masks / (1 - rate)) @ weight.view(4, 3).T + bias
    values = -F.cross_entropy(outputs.flatten(0, 1), y.repeat_interleave(8), reduction="none").view(6, 8)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    squares = 0.5 * (weight.square().sum() / (1 - rate) + bias.square().sum())
    kl = squares + 0.5 * 16 * math.log(2 * math.pi) - 3 * entropy
    expected = kl - 2 * energies.mean_of_few(values, probabilities, alpha, particles).sum()
    losses = evaluations(BBAlpha(alpha, particles), bnn, guide, x, y, count=8000, size=12)
    assert_mean(losses, expected, COMPARISONS, "loss")


def different(values: Tensor) -> int:
    return len(values.flatten().unique())


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "mask", "one mask"])
def test_draws_differ_by_particle_and_by_row_where_the_guide_can(sampling):
    """On rows that are all alike; thirty units have 10^9 masks."""
    bnn = BayesianNetwork(nn.Linear(30, 1), likelihoods.Gaussian(1.0))
    if sampling in SAMPLINGS:
        guide = guides.MeanField(bnn, sampling=sampling)
    else:
        guide = guides.Dropout(bnn, sampling="mask" if sampling == "mask" else "dense")
    objective = Recorded(0.5, 6)
    objective(bnn, guide)(torch.linspace(0.5, 1, 30).expand(5, 30), torch.zeros(5))
    assert objective.seen.shape == (6, 5)
    if sampling in ("dense", "one mask"):
        assert different(objective.seen[:, 0]) == 6
        torch.testing.assert_close(objective.seen, objective.seen[:, :1].expand(6, 5))
    else:
        # of flipout the rows share the noise's magnitudes, here thirty and a bias in random signs
        assert different(objective.seen) == 30


def regression(x: Tensor, y: Tensor, mask: Tensor | bool = True, scale: float = 1.0) -> None:
    """The model by hand, with handlers around its data only."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 1), MODEL.prior_scale).to_event(2))
    bias = pyro.sample("bias", dist.Normal(torch.zeros(1), MODEL.prior_scale).to_event(1))
    mean = F.linear(x, weight, bias).squeeze(-1)
    with pyro.plate("data", len(x)), poutine.mask(mask=mask), poutine.scale(scale=scale):
        pyro.sample("y", dist.Normal(mean, MODEL.noise), obs=y)


@pytest.mark.parametrize("objective", [ELBO(10), *FORMS], ids=repr)
def test_masks_and_scales_of_the_data(objective):
    """Masked data are not there, not even in the number that shares out q and the prior; a scale multiplies them."""
    guide = mean_field(MODEL.bnn())
    mask = torch.arange(MODEL.n) % 2 == 0
    kept = exact_model(MODEL, slice(None, None, 2))
    spoiled = torch.where(mask, MODEL.y, math.inf)  # whatever is behind a mask
    for options, expected in (
        ({"mask": mask}, kept.loss(objective, Q)),
        ({"scale": 3.0}, EXACT.loss(objective, Q, size=3 * MODEL.n)),
        ({"mask": mask, "scale": 3.0}, kept.loss(objective, Q, size=3 * len(kept.y))),
    ):
        y = spoiled if "mask" in options and options["mask"] is mask else MODEL.y
        losses = evaluations(objective, partial(regression, **options), guide, MODEL.x, y, count=5000)
        assert_mean(losses, expected, COMPARISONS, f"loss under {list(options)}")
    # of the same weights the losses are the same, which shows how they are shared out more finely
    losses = []
    for options, rows in (({"mask": mask, "scale": 3.0}, slice(None)), ({"scale": 3.0}, mask)):
        torch.manual_seed(7)
        dense = mean_field(MODEL.bnn(), "dense")
        model = partial(regression, **options)
        losses.append(objective.differentiable_loss(model, dense, MODEL.x[rows], MODEL.y[rows]))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("objective", [ELBO(10), *FORMS], ids=repr)
def test_a_scale_of_both_programs_multiplies_the_loss(objective):
    bnn = MODEL.bnn()
    model, guide = (poutine.scale(program, scale=0.25) for program in (bnn, mean_field(bnn)))
    losses = evaluations(objective, model, guide, *MODEL.data, count=5000)
    assert_mean(losses, 0.25 * EXACT.loss(objective, Q), COMPARISONS, "loss")


@pytest.mark.parametrize("objective", FORMS[:2], ids=repr)
def test_mapped_chains_have_the_losses_of_single_ones(objective):
    pairs, expected = [], []
    for shift in (-0.2, 0.0, 0.3):
        bnn = MODEL.bnn()
        guide = mean_field(bnn)
        expected.append(EXACT.loss(objective, set_guide(guide, LOC + shift, SCALE * (1 + shift))))
        pairs.append(Pair(bnn, guide))
    adam = partial(torch.optim.Adam, lr=1e-3)
    every = torch.arange(MODEL.n)
    with pyro_settings(*pairs), torch.no_grad():
        trainer = Trainer(pairs[0], stack(pairs), objective, MODEL.data, adam)
        mapped = torch.stack([trainer.losses(every.expand(3, -1)) for _ in range(300)]).double()
        alone = [Trainer(pair, stack([pair]), objective, MODEL.data, adam) for pair in pairs]
        single = torch.stack([torch.cat([each.losses(every[None]) for each in alone]) for _ in range(200)]).double()
    assert_mean(mapped, torch.stack(expected), COMPARISONS, "losses of mapped chains")
    assert_equal_means(mapped, single, COMPARISONS, "losses")
    center = torch.stack(expected)
    assert_equal_means((mapped - center).square(), (single - center).square(), COMPARISONS, "variances")
    # independent of each other
    products = torch.combinations(torch.arange(3)).T
    centered = mapped - mapped.mean(0)
    assert_mean(centered[:, products[0]] * centered[:, products[1]], torch.zeros(3).double(), COMPARISONS, "covariance")


GRADIENTS = [
    (ELBO(10), "local"),
    (BBAlpha(-0.5, 10), "local"),
    (BBAlpha(0.5, 10), "local"),
    (BBAlpha(0.5, 10), "flipout"),
    (BBAlpha(1.0, 10, kl_weight=0.3), "dense"),
    (BBAlpha(0.5, 300), "dense"),
    (BBAlpha(1.0, 300), "local"),
    (BBAlpha(0.5, 10, kl_weight=0.3, exact=True), "dense"),
    (BBAlpha(-0.5, 10, exact=True), "dense"),
    (BBAlpha(1.0, 10, exact=True), "dense"),
    (BBAlpha(1.0, 300, exact=True), "dense"),
]


def differences(objective: Objective, limit: bool, step: float = 1e-4) -> Tensor:
    """Central differences of the expected loss by means, logarithms of scales, and that of the noise."""

    def loss(values: Tensor) -> Tensor:
        model = LinearModel(EXACT.design, EXACT.y, values[-1].exp().item(), MODEL.prior_scale)
        return model.loss(objective, Gaussian(*values[:-1].chunk(2)), limit)

    center = torch.cat([LOC, SCALE.log(), torch.tensor([math.log(MODEL.noise)])])
    moves = step * torch.eye(len(center), dtype=center.dtype)
    return torch.stack([loss(center + move) - loss(center - move) for move in moves]) / (2 * step)


@pytest.mark.parametrize(("objective", "sampling"), GRADIENTS, ids=repr)
def test_gradients_are_those_of_the_quadrature(objective, sampling):
    """By every parameter of q and by the learned noise."""
    likelihood = likelihoods.Gaussian()
    nn.init.constant_(likelihood.log_scale, math.log(MODEL.noise))
    bnn = BayesianNetwork(nn.Linear(1, 1), likelihood, dist.Normal(0.0, MODEL.prior_scale))
    count = 8000 if objective.num_particles == 10 else 1000
    drawn = gradients(objective, bnn, mean_field(bnn, sampling), *MODEL.data, count=count)
    expected = differences(objective, limit=False)
    assert_mean(drawn, expected, COMPARISONS, "gradient")
    if objective.num_particles == 300:  # many
        assert_mean(drawn, differences(objective, limit=True), COMPARISONS, "gradient in the limit")
    assert expected.abs().min() > 0.03  # none is trivially right


ALPHAS = (0.0, 0.5, 1.0)


def test_larger_alphas_have_wider_optima():
    """From zero-forcing, narrower than the posterior's marginals, towards mass-covering; the mean field of α = 0."""
    found = [LINE.optimum(BBAlpha(alpha), limit=True) for alpha in (-0.3, *ALPHAS)]
    torch.testing.assert_close(found[1].loc, LINE.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].variance, 1 / LINE.precision.diagonal(), rtol=1e-5, atol=0)
    scales = torch.stack([each.log_scale.exp() for each in found])
    assert (scales[1:] > 1.05 * scales[:-1]).all()
    assert (scales[-1] < LINE.precision.inverse().diagonal().sqrt()).all()
    exact = [LINE.optimum(BBAlpha(alpha, exact=True), limit=True).log_scale.exp() for alpha in (-0.3, *ALPHAS)]
    assert all((after > 1.05 * before).all() for before, after in pairwise(exact))


def trained(objective: Objective, epochs: int, chains: int) -> Tensor:
    """Means and scales that chains arrive at, [chain, 4]."""
    bnn = BayesianNetwork(nn.Linear(1, 1), likelihoods.Gaussian(LINE.noise), dist.Normal(0.0, LINE.prior_scale))
    x, y = LINE.design[:, :1].float(), LINE.y.float()
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    settings = {"epochs": epochs, "lr": 0.1, "chains": chains, "scheduler": cosine, "progress": False}
    posterior = fit(bnn, guides.MeanField(bnn, init_scale=0.3), (x, y), objective=objective, **settings)
    parameters, _ = posterior.state()
    return torch.cat([parameters["guide.loc"], parameters["guide.log_scale"].exp()], 1).double()


@pytest.mark.parametrize(
    "objective", [*(BBAlpha(alpha, 30) for alpha in ALPHAS), BBAlpha(1.0, 30, exact=True)], ids=repr
)
def test_training_ends_in_the_optimum_of_the_quadrature(objective):
    found = trained(objective, epochs=400, chains=32)
    best = LINE.optimum(objective)
    expected = torch.cat([best.loc, best.log_scale.exp()])
    assert_mean(found, expected, COMPARISONS, "optimum")
    # the standard errors are small beside what distinguishes one α from another
    assert (found.std(0) / 32**0.5 < 0.003).all()

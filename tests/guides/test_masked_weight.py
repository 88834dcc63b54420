"""Weights with noise on their input units: draws, structured passes, densities and KLs, against closed forms."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import kl_divergence

from bnnzoo import BayesianNetwork, likelihoods
from bnnzoo._vectorize import vectorize
from bnnzoo.guides.dropout_layers import input_units
from bnnzoo.guides.masked_weight import InputUnits, MaskedBlock, MaskedWeight, UnitNoise
from bnnzoo.rules import RandomWeight
from bnnzoo.weights import Layout, ScalarNormal
from tests.statistical import assert_covariance, assert_mean

NOISES = ["bernoulli", "gaussian"]
RATE = 0.3
ALPHA = RATE / (1 - RATE)
COMPARISONS = 2000  # an upper bound of this file's

LAYERS = [
    (nn.Linear(4, 3), (6, 4)),
    (nn.Linear(4, 3), (6, 5, 4)),
    (nn.Conv1d(4, 3, 2), (6, 4, 5)),
    (nn.Conv2d(4, 6, 2, groups=2), (6, 4, 5, 5)),
    (nn.Conv2d(4, 4, 2, groups=4), (6, 4, 5, 5)),
    (nn.Conv3d(4, 3, 2), (6, 4, 3, 3, 3)),
    (nn.ConvTranspose1d(4, 3, 2), (6, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 2, groups=2), (6, 4, 5, 5)),
    (nn.ConvTranspose3d(4, 3, 2), (6, 4, 3, 3, 3)),
]


def logit(rate=RATE, dtype=torch.float64):
    return torch.tensor(rate / (1 - rate), dtype=dtype).log()


def masked(loc, noise="bernoulli", rate=RATE, **settings):
    return MaskedWeight("w", loc, UnitNoise(noise, InputUnits(loc.shape), logit(rate, loc.dtype), **settings))


def units_of(layer):
    return input_units(BayesianNetwork(layer, likelihoods.Gaussian(1.0)))["weight"]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_noise_on_the_weight_is_noise_on_its_input_units(layer, shape):
    x, z = torch.randn(shape), torch.randn(4)
    units = units_of(layer)
    assert units.count == 4
    scaled = x * (z if isinstance(layer, nn.Linear) else z.view(1, 4, *[1] * (len(shape) - 2)))
    expected = layer(scaled)
    with torch.no_grad():
        layer.weight.mul_(units.spread(z))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    # folding is the adjoint of spreading, with leading dimensions too
    w, u = torch.randn(2, 3, *layer.weight.shape), torch.randn(2, 3, 4)
    torch.testing.assert_close((w * units.spread(u)).flatten(2).sum(-1), (units.fold(w) * u).sum(-1))


@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_one_noise_a_unit_of_the_right_distribution(noise):
    q = masked(torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]]).double(), noise)
    draws = q.rsample((40_000,))
    z = draws / q.loc
    torch.testing.assert_close(z[:, 0], z[:, 1])
    assert_mean(draws, q.mean, COMPARISONS)
    assert_mean((draws - q.mean).square(), q.variance, COMPARISONS)
    assert_covariance(z[:, 0].clone(), torch.ones(3).double(), ALPHA * torch.eye(3).double(), COMPARISONS)
    if noise == "bernoulli":
        keep = 1 - RATE
        assert ((z.abs() < 1e-12) | ((z - 1 / keep).abs() < 1e-12)).all()
        assert_mean((z[:, 0] > 0).double(), torch.full((3,), keep).double(), COMPARISONS)
    else:  # the fourth moment of a Gaussian
        assert_mean((z[:, 0] - 1) ** 4, torch.full((3,), 3 * ALPHA**2).double(), COMPARISONS)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["linear", "extra", "conv"])
def test_a_structured_pass_draws_a_mask_a_row_shared_within_it(noise, kind):
    rows = 10_000
    # the identity hands the masked input on
    if kind == "conv":
        q = masked(torch.eye(2).view(2, 2, 1, 1), noise)
        output = F.conv2d(torch.ones(rows, 2, 3, 2), q.structured()).flatten(2)
        assert (output == output[..., :1]).all()
        z = output[..., 0]
    elif kind == "extra":
        output = F.linear(torch.ones(rows, 3, 2), masked(torch.eye(2), noise).structured())
        assert (output == output[:, :1]).all()
        z = output[:, 0]
    else:
        z = F.linear(torch.ones(rows, 2), masked(torch.eye(2), noise).structured())
    pairs = z.reshape(rows // 2, 4).double()  # two units of two rows: all independent
    assert_covariance(pairs, torch.ones(4).double(), ALPHA * torch.eye(4).double(), COMPARISONS)


def test_particles_and_lone_rows_have_masks_of_their_own():
    q = masked(torch.eye(8), "gaussian")
    z = vectorize(lambda _: F.linear(torch.ones(3, 8), q.structured()))(torch.arange(4)).reshape(12, 8)
    assert len(z.flatten().unique()) == 96
    assert F.linear(torch.ones(8), q.structured()).shape == (8,)
    one = masked(torch.eye(8).view(8, 8, 1), "gaussian")
    assert (F.conv1d(torch.ones(8, 5), one.structured()).std(1) < 1e-6).all()


def test_what_a_network_gets():
    loc = torch.randn(3, 2)
    value = masked(loc).structured()
    assert isinstance(value, RandomWeight)
    assert "mask" in repr(value)
    dense = masked(loc, sampling="dense").structured()
    assert type(dense) is torch.Tensor
    assert not torch.equal(dense, loc) or not torch.equal(masked(loc, sampling="dense").structured(), loc)
    assert masked(loc, elsewhere=True).structured().equal(loc)
    assert masked(loc, elsewhere=True).rsample((5,)).equal(loc.expand(5, 3, 2))
    # an operation without a rule gets a draw of the whole weight
    drawn = torch.relu(masked(torch.ones(3, 2)).structured())
    assert (drawn == drawn[:1]).all()
    again = masked(loc).structured()
    F.linear(torch.ones(4, 2), again)
    with pytest.raises(RuntimeError, match=r"'w' is used more than once.*sampling={'w': 'dense', '\*': 'mask'}"):
        F.linear(torch.ones(4, 2), again)


def enumerated(loc, rate):
    """Probability and weight of every mask."""
    keep = 1 - rate
    for mask in itertools.product([0.0, 1.0], repeat=loc.shape[1]):
        mask = torch.tensor(mask).double()
        probability = torch.where(mask > 0, keep, rate).prod()
        yield probability, loc * mask / keep


def gaussian_energy(loc, alpha, prior):
    """E[-log p(M z)] of a factorized prior by quadrature over each unit's z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = 1 + math.sqrt(alpha) * torch.tensor(nodes)
    weights = torch.tensor(weights / weights.sum())
    densities = prior.expand(loc.shape).log_prob(loc * z.view(-1, 1, 1))  # [node, O, I]
    return -(weights.view(-1, 1, 1) * densities).sum()


PRIORS = {
    "standard": dist.Normal(torch.tensor(0.0).double(), 1.0),
    "located": dist.Normal(torch.tensor(0.7).double(), 0.4),
    "tensors": dist.Normal(
        torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double(), torch.rand(2, 3) + 0.3
    ),
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("noise", NOISES)
def test_the_kl_is_exact_for_normal_priors(noise, name):
    prior = PRIORS[name]
    loc = torch.randn(2, 3).double()
    q = masked(loc, noise)
    if noise == "bernoulli":
        expected = sum(p * (p.log() - prior.expand((2, 3)).log_prob(w).sum()) for p, w in enumerated(loc, RATE))
    else:
        expected = gaussian_energy(loc, ALPHA, prior) - 3 * dist.Normal(1.0, math.sqrt(ALPHA)).entropy().double()
    torch.testing.assert_close(kl_divergence(q, prior.expand((2, 3)).to_event(2)), expected)
    torch.testing.assert_close(kl_divergence(q, prior.expand((2, 3))), expected)


@pytest.mark.parametrize("noise", NOISES)
def test_the_kl_in_gals_terms(noise):
    loc, s = torch.randn(2, 3).double(), 0.6
    kl = kl_divergence(masked(loc, noise), dist.Normal(torch.zeros(2, 3).double(), s).to_event(2))
    keep = 1 - RATE
    constant = 6 * math.log(s * math.sqrt(2 * math.pi))
    if noise == "bernoulli":
        units = loc.square().sum(0) / (2 * s**2 * keep) + keep * math.log(keep) + RATE * math.log(RATE)
        # the paper's weights are not rescaled: p_i |M_i|²
        torch.testing.assert_close(loc.square() / keep, keep * (loc / keep).square())
    else:
        units = (1 + ALPHA) * loc.square().sum(0) / (2 * s**2) - 0.5 * math.log(2 * math.pi * math.e * ALPHA)
    torch.testing.assert_close(kl, units.sum() + constant)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("joint", [False, True])
def test_the_kl_is_estimated_for_other_priors(noise, joint):
    loc = torch.randn(2, 3).double()
    prior = dist.Laplace(torch.tensor(0.2).double(), 0.8)
    q = masked(loc, noise)
    if noise == "bernoulli":
        expected = sum(p * (p.log() - prior.log_prob(w).sum()) for p, w in enumerated(loc, RATE))
    else:
        grid = torch.linspace(-9, 9, 20_001).double()
        density = dist.Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
        z = 1 + math.sqrt(ALPHA) * grid
        expected = -(density.view(-1, 1, 1) * prior.log_prob(loc * z.view(-1, 1, 1))).sum()
        expected = expected - 3 * (0.5 * math.log(2 * math.pi * math.e * ALPHA))
    if joint:
        block = MaskedBlock(loc.reshape(-1), Layout({"w": loc.shape}), {"w": q.noise})
        draw = lambda _: kl_divergence(block.joint, prior).sum()  # noqa: E731
    else:
        draw = lambda _: kl_divergence(q, prior.expand((2, 3)).to_event(2))  # noqa: E731
    assert_mean(vectorize(draw)(torch.arange(20_000)), expected, COMPARISONS)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_kl_of_a_block_is_the_sum_of_its_sites(noise, elsewhere):
    layout = Layout({"a": torch.Size([2, 3]), "b": torch.Size([2]), "c": torch.Size([4, 2, 1, 1])})
    loc = torch.randn(layout.size).double().requires_grad_()
    rates = torch.tensor([-1.4, 0.4]).double().requires_grad_()
    noises = {
        "a": UnitNoise(noise, InputUnits(layout.shapes[0]), rates[0], elsewhere=elsewhere),
        "c": UnitNoise(noise, InputUnits(layout.shapes[2]), rates[1], elsewhere=elsewhere),
    }
    block = MaskedBlock(loc, layout, noises)
    for m, s in ((0.0, 1.5), (0.4, 0.7)):
        m, s = torch.tensor(m).double(), torch.tensor(s).double()
        together = [kl_divergence(block.joint, p).sum() for p in (ScalarNormal(m, s), dist.Normal(m, s))]
        flat = dist.Normal(m.expand(layout.size), s.expand(layout.size))
        together.append(kl_divergence(block.joint, flat).sum())
        each = 0.0
        for name, site in block.sites():
            prior = dist.Normal(m, s).expand(site.event_shape)
            each = each + (kl_divergence(site, prior) if name in noises else -prior.log_prob(site.v).sum())
        gradients = torch.autograd.grad(each, (loc, rates), retain_graph=True)
        for value in together:
            torch.testing.assert_close(value, each)
            torch.testing.assert_close(torch.autograd.grad(value, (loc, rates), retain_graph=True), gradients)


@pytest.mark.parametrize("noise", NOISES)
def test_the_log_prob_of_a_draw_is_that_of_its_noise(noise):
    loc = torch.tensor([[1e-6, -2.0, 0.5], [3e-6, 1.0, -1.0]]).double()
    q = masked(loc, noise)
    draws = q.rsample((50,))
    z = draws[:, 0] / loc[0]
    if noise == "bernoulli":
        expected = dist.Bernoulli(1 - RATE).log_prob((z > 0).double()).sum(-1)
    else:
        expected = dist.Normal(1.0, math.sqrt(ALPHA)).log_prob(z).sum(-1)
    torch.testing.assert_close(q.log_prob(draws), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(q.expand((50,)).log_prob(draws), expected, rtol=1e-5, atol=1e-6)
    assert q.expand((4,)).rsample((2,)).shape == (2, 4, 2, 3)
    off = draws.clone()
    off[:, 0, 1] += 0.1
    assert (q.log_prob(off) == -math.inf).all()
    if noise == "bernoulli":
        assert q.log_prob(loc) == -math.inf  # the mean is no draw
    assert (q.log_prob(q.rsample((50,)).float().double()) > -math.inf).all()  # rounding is none
    q32 = masked(loc.float(), noise)
    assert (q32.log_prob(q32.rsample((500,))) > -math.inf).all()


def test_a_unit_without_weights_tells_nothing():
    loc = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    q = masked(loc)
    torch.testing.assert_close(q.log_prob(loc * 0), torch.tensor(RATE).log())
    assert q.log_prob(torch.ones(2, 2)) == -math.inf


def test_the_log_prob_of_draws_is_minus_the_entropy_on_average():
    for noise in NOISES:
        q = masked(torch.randn(2, 3).double(), noise)
        assert_mean(q.log_prob(q.rsample((20_000,))), -q.noise.entropy(), COMPARISONS)
        elsewhere = masked(q.loc, noise, elsewhere=True)
        torch.testing.assert_close(elsewhere.log_prob(q.loc.expand(4, 2, 3)), -q.noise.entropy().expand(4))


def test_relaxed_masks_are_nearly_hard_have_gradients_and_a_density():
    parameter = logit().requires_grad_()
    noise = UnitNoise("bernoulli", InputUnits(torch.Size([2, 3])), parameter, temperature=0.1)
    z = noise.draw((20_000,))
    mask = z / (1 + noise.variance)
    assert ((mask >= 0) & (mask <= 1)).all()
    # above 1/2 exactly where the hard mask is 1
    assert_mean((mask > 0.5).double(), torch.tensor(1 - RATE).double(), COMPARISONS)
    assert ((mask > 0.01) & (mask < 0.99)).double().mean() < 0.25
    (gradient,) = torch.autograd.grad(mask.mean(), parameter)
    torch.testing.assert_close(gradient, torch.tensor(-RATE * (1 - RATE)).double(), rtol=0.1, atol=0)
    q = MaskedWeight("w", torch.randn(2, 3).double(), noise)
    value = q.rsample()
    inner = value[0] / q.loc[0] * (1 - RATE)
    expected = (inner * math.log(1 - RATE) + (1 - inner) * math.log(RATE)).sum()
    torch.testing.assert_close(q.log_prob(value), expected)
    assert q.log_prob(q.loc * 2) == -math.inf

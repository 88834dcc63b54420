"""What guides have in common beyond the contract (`test_contract`): starting points, flat parameters, their model."""

import copy
import math

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods, priors
from bnnzoo.guides import Empirical, Guide, Map, MeanField

KINDS = [MeanField, Map]


def net(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs))


def mixed(outputs: int = 1) -> BayesianNetwork:
    """Several blocks, a deterministic parameter, a correlated prior, a noise site."""
    prior = {
        "0.weight": dist.Normal(0.0, 1.0),
        "0.bias": dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        "2.weight": dist.Laplace(0.0, 1.0),
        "2.bias": None,
    }
    return BayesianNetwork(net(outputs), likelihoods.Gaussian(dist.HalfNormal(2.0), num_outputs=outputs), prior)


def values(guide: Guide) -> dict[str, torch.Tensor]:
    return dict(zip(guide.layout.names, guide.layout.split(guide.loc.detach()), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_at_the_networks_own_values(kind):
    network = net()
    bnn = BayesianNetwork(network, likelihoods.Gaussian(dist.HalfNormal(2.0)))
    guide = kind(bnn)
    start = values(guide)
    for name, parameter in network.named_parameters():
        assert torch.equal(start[name], parameter.detach())
    mean = 2.0 * math.sqrt(2 / math.pi)
    torch.testing.assert_close(start["noise"].exp(), torch.tensor(mean))


@pytest.mark.parametrize("kind", KINDS)
def test_new_values_of_the_model_are_taken_up_on_reset(kind):
    bnn = mixed()
    guide = kind(bnn)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(7.0)
    guide.reset_parameters()
    assert all(torch.equal(p, before[name]) for name, p in guide.named_parameters())
    bnn.reset_parameters()
    guide.reset_parameters()
    assert not torch.equal(guide.loc, before["loc"])
    assert torch.equal(values(guide)["0.weight"], bnn.network[0].weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prior", "start"),
    [
        (dist.HalfCauchy(1.0), 1.0),
        (dist.Uniform(0.0, 3.0), 1.5),
        (dist.Pareto(2.0, 0.5), 3.0),
        (dist.InverseGamma(3.0, 1.0), 0.5),
        (dist.InverseGamma(0.5, 1.0), 1.0),
        (dist.TransformedDistribution(dist.Normal(0.5, 1.0), [torch.distributions.ExpTransform()]), 1.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_noise_prior_of_any_kind_has_a_starting_point_in_its_support(kind, prior, start):
    bnn = BayesianNetwork(net(), likelihoods.Gaussian(prior))
    guide = kind(bnn)
    noise = torch.distributions.biject_to(prior.support)(values(guide)["noise"])
    torch.testing.assert_close(noise, torch.tensor(start))
    for _ in range(20):
        assert prior.support.check(guide()["noise"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_no_part_of_the_guide(kind):
    bnn = mixed()
    guide = kind(bnn)
    assert guide.model is bnn
    size = 6 + 3 + 3 + 1
    assert {name: p.shape for name, p in guide.named_parameters()} == dict.fromkeys(
        ["loc", "log_scale"] if kind is MeanField else ["loc"], torch.Size([size])
    )
    assert list(guide.modules()) == [guide]
    other_bnn, other = copy.deepcopy((bnn, guide))
    assert other.model is other_bnn
    with torch.no_grad():
        other.loc.zero_()
    assert guide.loc.abs().sum() > 0


@pytest.mark.parametrize("kind", [*KINDS, lambda bnn: Empirical(bnn, {})])
@pytest.mark.parametrize("what", [net(), dist.Normal(0.0, 1.0), None])
def test_a_guide_is_built_from_a_bayesian_network_only(kind, what):
    with pytest.raises(TypeError, match=rf"is built from a BayesianNetwork, not from {type(what).__name__}"):
        kind(what)


def test_only_what_has_a_density_says_so():
    assert MeanField.has_density
    assert not Map.has_density
    assert not Empirical.has_density
    assert set(guides.__all__) >= {"Empirical", "Guide", "Map", "MeanField"}


def test_map_is_a_point():
    bnn = mixed(outputs=2)
    guide = Map(bnn)
    first, second = guide(), guide()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["0.weight"], bnn.network[0].weight)
    assert first["noise"].shape == (2,)
    assert (first["noise"] > 0).all()
    trace = poutine.trace(guide).get_trace()
    assert trace.log_prob_sum() == 0.0


def draws(bnn: BayesianNetwork, count: int) -> dict[str, torch.Tensor]:
    """Draws whose every element is the number of the draw."""
    return {
        name: torch.arange(float(count)).view(-1, *[1] * len(prior.shape())).expand(count, *prior.shape()).contiguous()
        for name, prior in bnn.sites.items()
    }


def test_empirical_picks_one_draw_for_all_sites_each_as_often():
    bnn = mixed()
    guide = Empirical(bnn, draws(bnn, 4))
    seen = torch.zeros(4)
    for _ in range(2000):
        index = {value.unique().item() for value in guide().values()}
        assert len(index) == 1
        seen[int(index.pop())] += 1
    # 500 each; 5.5 standard deviations
    assert (seen - 500).abs().max() < 5.5 * (2000 * 0.25 * 0.75) ** 0.5
    predicted = Predictive(bnn, guide=guide, num_samples=3)(torch.zeros(5, 2))
    assert predicted["y"].shape == (3, 5)
    assert [name for name, _ in guide.named_parameters()] == []


@pytest.mark.parametrize(
    ("count", "wanted", "picked"),
    [(10, 10, list(range(10))), (10, 1, [0]), (11, 3, [0, 5, 10]), (3, 2, [0, 2]), (1000, 999, None)],
)
def test_empirical_picks_evenly_spaced_draws(count, wanted, picked):
    bnn = mixed()
    index = Empirical(bnn, draws(bnn, count)).pick(wanted)
    assert len(index.unique()) == wanted
    assert index.dtype == torch.long
    if picked is not None:
        assert index.tolist() == picked


def test_empirical_refuses_what_does_not_fit():
    bnn = mixed()
    with pytest.raises(ValueError, match="holds 3 draws a chain; 4 were asked for"):
        Empirical(bnn, draws(bnn, 3)).pick(4)
    with pytest.raises(
        ValueError, match=r"draws are needed for the sites \['0\.bias', '0\.weight', '2\.weight', 'noise'\], not"
    ):
        Empirical(bnn, {"0.bias": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"same number of draws, not \[2, 3\]"):
        Empirical(bnn, {**draws(bnn, 3), "noise": torch.ones(2)})
    with pytest.raises(ValueError, match=r"draws of '0\.bias' must have shape \[draw, 3\], not \[3, 2\]"):
        Empirical(bnn, {**draws(bnn, 3), "0.bias": torch.ones(3, 2)})


def test_fan_in_priors_share_one_block_and_one_flat_vector():
    bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5), priors.FanIn())
    guide = MeanField(bnn)
    ((block,), rest) = guide.split_blocks(guide.loc)
    assert rest == []
    assert block is guide.loc


@pytest.mark.parametrize("kind", [guides.MNF, guides.LowRank])
def test_where_a_guide_starts_does_not_depend_on_the_global_generator(kind):
    bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5))
    before = torch.random.get_rng_state()
    first = dict(kind(bnn).named_parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert all(torch.equal(p, first[name]) for name, p in kind(bnn).named_parameters())

"""Mapped Pyro programs: in-place draws answered out of place, seeds, settings left as they were."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroParam
from scipy import stats
from torch import nn

from bnnzoo import BayesianNetwork
from bnnzoo._vectorize import OutOfPlaceDraws, Pair, pyro_settings, seeded, vectorize
from bnnzoo.guides import MeanField
from bnnzoo.likelihoods import Gaussian

N = 20_000
# 24 comparisons below: a Kolmogorov-Smirnov p-value under 1e-8 would come up once in 10^6 correct runs.
SIGNIFICANT = 1e-8


def mapped_draws(draw, n=N):
    with seeded(1):
        return vectorize(lambda _: draw())(torch.zeros(n)).double().numpy()


@pytest.mark.parametrize(
    ("draw", "reference"),
    [
        (lambda: torch.empty(3).normal_(), stats.norm()),
        (lambda: torch.empty(3).normal_(2.0, 3.0), stats.norm(2, 3)),
        (lambda: torch.empty(3).normal_(mean=2.0, std=3.0), stats.norm(2, 3)),
        (lambda: torch.empty(3).uniform_(), stats.uniform()),
        (lambda: torch.empty(3).uniform_(-1.0, 4.0), stats.uniform(-1, 5)),
        (lambda: torch.empty(3).uniform_(**{"from": -1.0, "to": 4.0}), stats.uniform(-1, 5)),
        (lambda: torch.empty(3).uniform_(to=4.0), stats.uniform(0, 4)),
        (lambda: torch.empty(3).exponential_(), stats.expon()),
        (lambda: torch.empty(3).exponential_(2.0), stats.expon(scale=0.5)),
        (lambda: torch.empty(3).exponential_(lambd=2.0), stats.expon(scale=0.5)),
        (lambda: torch.empty(3).cauchy_(), stats.cauchy()),
        (lambda: torch.empty(3).cauchy_(1.0, 2.0), stats.cauchy(1, 2)),
        (lambda: torch.empty(3).cauchy_(median=1.0, sigma=2.0), stats.cauchy(1, 2)),
    ],
)
def test_in_place_draws_have_their_distribution(draw, reference):
    values = mapped_draws(draw)
    assert values.shape == (N, 3)
    for column in values.T:
        assert stats.kstest(column, reference.cdf).pvalue > SIGNIFICANT
    assert abs(np.corrcoef(stats.rankdata(values[:, 0]), stats.rankdata(values[:, 1]))[0, 1]) < 6 / N**0.5


@pytest.mark.parametrize("p", [0.3, torch.tensor([0.3, 0.3, 0.3])])
def test_in_place_bernoulli(p):
    values = mapped_draws(lambda: torch.empty(3).bernoulli_(p))
    assert set(np.unique(values)) == {0.0, 1.0}
    assert np.abs(values.mean(0) - 0.3).max() < 6 * (0.21 / N) ** 0.5


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        (dist.Normal(1.0, 2.0), stats.norm(1, 2)),
        (dist.LogNormal(0.0, 0.5), stats.lognorm(0.5)),
        (dist.HalfNormal(2.0), stats.halfnorm(scale=2)),
        (dist.HalfCauchy(1.0), stats.halfcauchy()),
        (dist.Laplace(1.0, 2.0), stats.laplace(1, 2)),
        (dist.Cauchy(0.0, 1.0), stats.cauchy()),
        (dist.Exponential(2.0), stats.expon(scale=0.5)),
        (dist.Uniform(-1.0, 3.0), stats.uniform(-1, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_distributions_draw_independently_under_vmap(distribution, reference):
    with pyro.validation_enabled(False):
        values = mapped_draws(lambda: distribution.sample((2,)))
    for column in values.T:
        assert stats.kstest(column, reference.cdf).pvalue > SIGNIFICANT
    assert abs(np.corrcoef(stats.rankdata(values[:, 0]), stats.rankdata(values[:, 1]))[0, 1]) < 6 / N**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_keep_dtype_and_shape(dtype):
    like = torch.empty(2, 3, dtype=dtype)
    with OutOfPlaceDraws():
        draws = [like.normal_(1.0, 2.0), like.uniform_(-1.0, 1.0), like.exponential_(3.0), like.cauchy_()]
        draws.append(like.bernoulli_(0.5))
    for draw in draws:
        assert draw.dtype == dtype
        assert draw.shape == (2, 3)


def test_uniform_stays_below_its_upper_end():
    # log1p(-|u|) of Laplace is infinite at u = ±1.
    with seeded(0), OutOfPlaceDraws():
        u = torch.empty(2_000_000).uniform_(torch.finfo(torch.float32).eps - 1, 1)
    assert u.abs().max() < 1


def test_calls_of_one_map_draw_different_numbers():
    def program(scale):
        return pyro.sample("x", dist.Normal(0.0, scale))

    with seeded(0), pyro.validation_enabled(False):
        x = vectorize(program)(torch.ones(100))
    assert len(x.unique()) == 100


def test_nested_maps_draw_different_numbers():
    with seeded(0):
        inner = vectorize(lambda _: torch.empty(()).normal_())
        values = vectorize(lambda row: inner(row))(torch.zeros(7, 11))
    assert len(values.unique()) == 77


def test_same_seed_same_draws_and_global_state_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.randn(4)
    with seeded(3):
        second = torch.randn(4)
    with seeded(4):
        third = torch.randn(4)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), seeded(3):
        torch.randn(4) + torch.randn(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_none_uses_the_global_generator():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    with seeded(None):
        assert torch.equal(torch.randn(3), expected)


class Program(PyroModule):
    def __init__(self):
        super().__init__("program")
        self.loc = PyroParam(torch.tensor(1.0))

    def forward(self):
        return pyro.sample("x", dist.Normal(self.loc, 1.0))


def test_settings_are_restored_and_parameters_stay_out_of_the_store():
    pyro.clear_param_store()
    program = Program()
    validation, local = dist.is_validation_enabled(), pyro.settings.get("module_local_params")
    with pyro_settings(program):
        assert pyro.settings.get("module_local_params")
        program()
    assert pyro.settings.get("module_local_params") == local
    assert dist.is_validation_enabled() == validation
    assert not list(pyro.get_param_store().keys())
    with pytest.raises(KeyError), pyro_settings(program):
        raise KeyError
    assert pyro.settings.get("module_local_params") == local
    assert dist.is_validation_enabled() == validation


def test_pair_maps_over_stacked_parameters():
    pair = Pair(nn.Linear(2, 1), nn.Linear(2, 1))
    stacked = {name: torch.stack([value.detach(), 2 * value.detach()]) for name, value in pair.named_parameters()}
    x = torch.randn(5, 2)

    def call(parameters):
        return torch.func.functional_call(pair, parameters, (lambda model, guide, x: model(x) + guide(x), x))

    outputs = vectorize(call)(stacked)
    assert torch.allclose(outputs[1], 2 * outputs[0], atol=1e-6)
    assert torch.allclose(outputs[0], pair.model(x) + pair.guide(x))


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta])
def test_copied_pair_belongs_together_and_leaves_the_original(kind):
    bnn = BayesianNetwork(nn.Linear(2, 1), Gaussian(0.5))
    values = {"weight": torch.full((1, 2), 7.0), "bias": torch.full((1,), 5.0)}
    guide = kind(bnn, init_loc_fn=init_to_value(values=values))
    program = guide.model
    twin = Pair(bnn, guide).copy()
    assert guide.model is program
    assert twin.guide.model.args[1] is twin.model  # a partial of Pyro's handler
    assert twin.model is not bnn
    with pyro_settings(twin):
        twin.guide(torch.zeros(3, 2), torch.zeros(3))
    median = twin.guide.median()
    assert torch.allclose(median["weight"], values["weight"])
    assert torch.allclose(median["bias"], values["bias"])
    assert guide.prototype_trace is None


def test_copied_guide_of_ours_belongs_to_the_copied_model():
    bnn = BayesianNetwork(nn.Linear(2, 1), Gaussian(0.5))
    twin = Pair(bnn, MeanField(bnn)).copy()
    assert twin.guide.model is twin.model
    assert twin.model is not bnn


def test_copied_guide_of_guides():
    bnn = BayesianNetwork(nn.Linear(2, 1), Gaussian(0.5))
    guide = AutoGuideList(bnn)
    guide.append(AutoNormal(poutine.block(bnn, hide=["bias"])))
    guide.append(AutoDelta(poutine.block(bnn, hide=["weight"])))
    twin = Pair(bnn, guide).copy()
    assert guide[0].master() is guide
    assert twin.guide[0].master() is twin.guide
    with pyro_settings(twin):
        assert set(twin.guide(torch.zeros(3, 2), torch.zeros(3))) == {"weight", "bias"}

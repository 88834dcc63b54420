"""`MeanField`: its distribution, sampling rules and errors."""

import math

import pyro.distributions as dist
import pytest
import torch
from statistical import assert_covariance, assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, likelihoods
from bnnzoo.guides import MeanField
from bnnzoo.objectives import Sites
from bnnzoo.rules import RandomWeight

COMPARISONS = 1000


def convolutional() -> BayesianNetwork:
    network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    return BayesianNetwork(network, likelihoods.Gaussian(dist.HalfNormal(1.0)))


def rules(guide: MeanField) -> dict[str, str]:
    return {name: q.sampling for name, q in guide.distributions().items() if hasattr(q, "sampling")}


def randomized(guide: MeanField) -> MeanField:
    with torch.no_grad():
        guide.loc.normal_()
        guide.log_scale.uniform_(-2.0, 0.5)
    return guide


@pytest.mark.parametrize("sampling", ["local", "dense", "flipout"])
def test_draws_have_the_factorized_gaussian_distribution(sampling):
    bnn = BayesianNetwork(nn.Linear(2, 2), likelihoods.Gaussian(dist.HalfNormal(1.0)))
    guide = randomized(MeanField(bnn, sampling=sampling))
    drawn = [guide() for _ in range(1500)]
    drawn = torch.stack([guide.layout.join({**each, "noise": each["noise"].log()}) for each in drawn]).detach().double()
    loc, variance = guide.loc.detach().double(), (2 * guide.log_scale.detach()).exp().double()
    assert_mean(drawn, loc, COMPARISONS)
    assert_covariance(drawn, loc, variance.diag(), COMPARISONS)


def test_draws_do_not_depend_on_the_sampling_rule():
    bnn = convolutional()
    seen = []
    for sampling in ("local", "dense", "flipout"):
        torch.manual_seed(4)
        seen.append(MeanField(bnn, sampling=sampling)())
    assert all(torch.equal(seen[0][name], other[name]) for other in seen[1:] for name in seen[0])


def test_densities_are_those_of_torchs_distributions():
    bnn = convolutional()
    guide = randomized(MeanField(bnn))
    locs, scales = (guide.layout.split(flat) for flat in (guide.loc, guide.log_scale.exp()))
    exact = {
        name: dist.Normal(loc, scale).to_event(loc.dim())
        for name, loc, scale in zip(guide.layout.names, locs, scales, strict=True)
    }
    exact["noise"] = dist.LogNormal(locs[-1], scales[-1])
    for name, q in guide.distributions().items():
        value = torch.rand(q.shape()) + 0.1
        torch.testing.assert_close(q.log_prob(value), exact[name].log_prob(value))


@pytest.mark.parametrize("init_scale", [1e-3, 0.5, 2])
def test_every_scale_starts_at_init_scale(init_scale):
    guide = MeanField(convolutional(), init_scale=init_scale)
    torch.testing.assert_close(guide.log_scale.exp(), torch.full_like(guide.loc, float(init_scale)))
    assert guide.loc.requires_grad
    assert guide.log_scale.requires_grad


@pytest.mark.parametrize("init_scale", [0.0, -1.0, math.nan, math.inf])
def test_init_scale_must_be_positive(init_scale):
    with pytest.raises(ValueError, match="init_scale must be positive, not"):
        MeanField(convolutional(), init_scale=init_scale)


WEIGHTS = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("local", ["local"] * 6),
        ("flipout", ["flipout"] * 6),
        ({nn.Conv1d: "dense", "*": "local"}, ["dense"] * 2 + ["local"] * 4),
        ({"2.*": "flipout", nn.Linear: "dense", "*": "local"}, ["local"] * 2 + ["flipout"] * 2 + ["dense"] * 2),
        ({nn.Linear: "dense", "2.weight": "flipout", "*": "local"}, None),  # the first match wins, so nothing is left
        ({"*.bias": "dense", "*": "local"}, ["local", "dense"] * 3),
        ({nn.Module: "dense"}, ["dense"] * 6),
    ],
)
def test_sampling_by_name_and_type(sampling, expected):
    guide = MeanField(convolutional(), sampling=sampling)
    if expected is None:
        expected = ["local"] * 2 + ["dense"] * 4
    assert rules(guide) == dict(zip(WEIGHTS, expected, strict=True))
    values = Sites(form="structured").run(guide)
    for name, rule in rules(guide).items():
        assert isinstance(values[name]["value"], Tensor)
        assert isinstance(values[name]["value"], RandomWeight) == (rule != "dense")
    assert type(values["noise"]["value"]) is Tensor


def test_tied_weights_are_dense():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    guide = MeanField(BayesianNetwork(Tied(), likelihoods.Gaussian(0.5)), sampling="local")
    assert rules(guide) == {"a.weight": "dense", "a.bias": "local", "b.bias": "local"}


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("loca", "sampling must be one of 'dense', 'local', 'flipout', not 'loca'"),
        (None, "sampling must be one of 'dense', 'local', 'flipout', not None"),
        ({"*": "Local"}, "sampling must be one of 'dense', 'local', 'flipout', not 'Local'"),
        (
            {"1.*": "dense", "*": "local"},
            r"sampling names '1\.\*', which matches no random weight; they are 0\.weight, ",
        ),
        ({nn.Conv2d: "dense", "*": "local"}, "sampling names .*Conv2d.* matches no random weight"),
        ({"0.*": "dense"}, r"sampling says nothing of '2\.weight': add a '\*' for the rest"),
        ({}, r"sampling says nothing of '0\.weight'"),
        ({3: "dense", "*": "local"}, r"sampling: keys are glob patterns on names or module types, not 3"),
    ],
)
def test_sampling_that_does_not_fit_is_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        MeanField(convolutional(), sampling=sampling)

"""Weights that make every layer's channels standard over a data set that is not seen."""

import pytest
import torch
from statistical import assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods
from bnnzoo.moments import initialize, statistics


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(
            nn.Conv2d(2, 6, 3),
            nn.LeakyReLU(0.1),
            nn.Conv2d(6, 4, 3, groups=2, bias=False),
            nn.MaxPool2d(2),
            nn.Flatten(),
        ),
        nn.Linear(16, 3),
    )


def test_every_layer_has_mean_0_and_variance_1():
    network = convolutional()
    names, weight = list(network.state_dict()), network[0].weight
    before = initialize(network, torch.tensor([0.1, 2.0]), 0.3, (9, 9))
    assert list(before) == ["0", "2", "5"]
    assert list(network.state_dict()) == names
    assert network[0].weight is weight
    assert weight.requires_grad
    after = statistics(network, torch.tensor([0.1, 2.0]), 0.3, (9, 9))
    for name in before:
        torch.testing.assert_close(after[name].variance, torch.ones_like(after[name].variance), rtol=1e-4, atol=0)
        assert (before[name].variance < 0.8).all()
        if name != "2":
            assert after[name].loc.abs().max() < 1e-5
    # without bias the mean is scaled with the rest
    torch.testing.assert_close(after["2"].loc, statistics_before_scaling(network, before)["2"])
    again = initialize(network, torch.tensor([0.1, 2.0]), 0.3, (9, 9))
    torch.testing.assert_close(again["0"].variance, torch.ones(6))


def statistics_before_scaling(network, before):
    return {name: moments.loc / moments.scale for name, moments in before.items()}


def test_what_goes_out_is_what_the_data_have():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.LeakyReLU(0.1), nn.Conv2d(3, 3, 2, stride=2, groups=3))
    initialize(network, 0.5, 4.0, (16, 16))
    x = 0.5 + 2 * torch.randn(5000, 1, 16, 16)
    for layer in network:
        x = layer(x).detach()
        if isinstance(layer, nn.Conv2d):
            assert_mean(x.flatten(2).mean(2), torch.zeros(3), 20)
            assert_mean(x.square().flatten(2).mean(2), torch.ones(3), 20, "variance")


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups):
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.ReLU())
    initialize(network, torch.randn(4), torch.rand(4), (5, 5))
    after = statistics(network, torch.zeros(4), 1.0, (5, 5))  # other data
    assert not torch.allclose(after["0"].variance, torch.ones(6), rtol=0.1)
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.ReLU())
    initialize(network, 0.3, 2.0, (5, 5))
    torch.testing.assert_close(statistics(network, 0.3, 2.0, (5, 5))["0"].variance, torch.ones(6))


def test_some_layers_stay_as_they_are():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    expected = network[1][1].weight.clone()
    assert list(initialize(network, 0.0, 1.0, skip=["1.*"])) == ["0"]
    assert torch.equal(network[1][1].weight, expected)


def test_layers_are_initialized_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(self.first(x).relu()).relu())

    network = Twice()
    assert list(initialize(network, 0.0, 1.0)) == ["first"]
    torch.testing.assert_close(statistics(network, 0.0, 1.0)["first"].variance, torch.ones(3))


def test_channels_that_do_not_vary_are_only_shifted():
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight[0] = 0.0
    initialize(network, 0.0, 1.0)
    assert network.weight[0].abs().max() == network.bias[0] == 0
    assert statistics(network, 0.0, 1.0)[""].variance.tolist() == pytest.approx([0.0, 1.0])


def test_a_bayesian_network_starts_where_it_was_initialized():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    initialize(network, 0.0, 1.0)
    guide = guides.MeanField(BayesianNetwork(network, likelihoods.Categorical()))
    torch.testing.assert_close(guide.distributions()["2.weight"].mean, network[2].weight)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (nn.ReLU(), {}, "has no linear layer or convolution"),
        (nn.Linear(2, 2), {"skip": ["head"]}, "skip: 'head' matches none of the layers"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), {}, "it is reparametrized"),
    ],
)
def test_mistakes_are_named(network, settings, message):
    with pytest.raises(ValueError, match=message):
        initialize(network, 0.0, 1.0, **settings)

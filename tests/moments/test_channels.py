"""A data set's statistics by channel, propagated from one pixel."""

import time

import pytest
import torch
import torch.nn.functional as F
from statistical import assert_mean
from torch import nn

from bnnzoo.moments import Moments, NoRuleError, per_layer, propagate, statistics
from bnnzoo.moments.channels import ChannelMoments

COMPARISONS = 200


def patches() -> nn.Sequential:
    """A network for which a pixel tells all, if pixels are Gaussian: windows do not overlap, channels do not mix."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Dropout(0.3)),
        *(nn.Conv2d(4, 4, 2, stride=2, groups=4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    )
    with torch.no_grad():
        for filters in network[0].weight.view(2, 2, 4):
            nn.init.orthogonal_(filters)
        network[1].running_mean.uniform_(-1, 1), network[1].running_var.uniform_(0.5, 2)
    return network.eval()


def channels_of(value: torch.Tensor) -> torch.Tensor:
    """Draws by example, averaged over positions, [N, C]."""
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def test_statistics_are_those_of_a_large_data_set():
    network, mean, variance = patches(), torch.tensor([0.3, -0.5]), torch.tensor([0.8, 1.7])
    found = statistics(network, mean, variance, (16, 16))
    assert list(found) == [str(index) for index in range(8)]
    x = mean.view(2, 1, 1) + variance.sqrt().view(2, 1, 1) * torch.randn(6000, 2, 16, 16)
    network[3].train()
    for (_, moments), layer in zip(found.items(), network, strict=True):
        x = layer(x).detach()
        assert moments.loc.shape == moments.variance.shape == x.shape[1:2]
        assert_mean(channels_of(x), moments.loc.detach(), COMPARISONS)
        square = (x - moments.loc.detach().view(-1, *[1] * (x.dim() - 2))).square()
        assert_mean(channels_of(square), moments.variance.detach(), COMPARISONS, "variance")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=1),
        nn.AvgPool2d((2, 3)),
        nn.AdaptiveAvgPool2d(4),
        nn.AdaptiveMaxPool2d(1),
        nn.LeakyReLU(0.2),
        nn.PReLU(4, 0.3),
        nn.BatchNorm2d(4),
        nn.Dropout2d(0.2),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 3)),
    ],
    ids=repr,
)
def test_a_pixel_is_an_image_of_pixels_that_are_alike(layer):
    """What is done to one pixel for all is what is done to each of them."""
    torch.manual_seed(0)
    layer.eval()
    mean, variance = torch.randn(1, 4, 1, 1), torch.rand(1, 4, 1, 1)
    pixel = layer(ChannelMoments(mean, variance, (1, 4, 8, 8)))
    image = layer(Moments(mean.expand(1, 4, 8, 8), variance.expand(1, 4, 8, 8)))
    assert isinstance(pixel, ChannelMoments)
    assert pixel.shape == image.shape
    torch.testing.assert_close(pixel.loc, image.loc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pixel.variance, image.variance, rtol=1e-4, atol=1e-5)
    if not isinstance(layer, nn.Sequential | nn.ConvTranspose2d):
        assert pixel.uniform


def test_edges_are_left_out():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    found = statistics(layer, 0.5, 2.0, (6, 6))[""]
    image = propagate(layer, torch.full((1, 2, 6, 6), 0.5), 2.0)
    torch.testing.assert_close(found.loc, image.loc[0, :, 3, 3])
    torch.testing.assert_close(found.variance, image.variance[0, :, 3, 3])


def test_random_weights_are_part_of_the_statistics():
    layer = nn.Conv2d(2, 3, 3)
    layer.requires_grad_(False)
    weight, bias = (Moments(p, 0.1 * torch.rand_like(p)) for p in (layer.weight, layer.bias))
    x = ChannelMoments(torch.randn(1, 2, 1, 1), torch.rand(1, 2, 1, 1), (1, 2, 5, 5))
    found = F.conv2d(x, weight, bias)
    assert found.uniform
    image = F.conv2d(Moments(x.loc, x.variance), weight, bias)
    torch.testing.assert_close(found.loc, image.loc)
    torch.testing.assert_close(found.variance, image.variance)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        x = F.relu(2 * x + self.norm(self.conv(x)) / 3 - 1)
        assert getattr(x, "uniform", True)
        return self.head(torch.cat([x, torch.zeros_like(x)], 1).mean([2, 3])[:, :3])


def test_networks_of_their_own_kind():
    torch.manual_seed(0)
    network = Residual().eval()
    found = statistics(network, torch.randn(3), torch.rand(3), (9, 9))
    assert list(found) == ["conv", "norm", "head"]
    assert found["head"].loc.shape == (2,)
    assert (found["head"].variance > 0).all()


def test_positions_that_differ_count_together():
    mean, variance = torch.randn(1, 3, 4, 1), torch.rand(1, 3, 4, 1)
    moments = ChannelMoments(mean, variance, (1, 3, 4, 5)).by_channel()
    torch.testing.assert_close(moments.loc, mean[0, :, :, 0].mean(1))
    second = (variance + mean.square())[0, :, :, 0].mean(1)
    torch.testing.assert_close(moments.second_moment, second)


def test_dense_networks_have_features_for_channels():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    mean, variance = torch.randn(5), torch.rand(5)
    found = statistics(network, mean, variance)
    expected = per_layer(network, mean[None], variance[None])
    for name, moments in found.items():
        torch.testing.assert_close(moments.variance, expected[name].variance[0])
    scalars = statistics(network, 0.3, 2.0)["2"]
    torch.testing.assert_close(scalars.loc, propagate(network, torch.full((1, 5), 0.3), 2.0).loc[0])


def test_gradients_go_through():
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 2)).double()

    def output(*weights):
        names = [name for name, _ in network.named_parameters()]
        x = ChannelMoments(*(torch.ones(1, 1, 1, 1, dtype=torch.float64) for _ in range(2)), (1, 1, 6, 6))
        result = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (x,)).by_channel()
        return result.loc, result.variance

    assert torch.autograd.gradcheck(output, tuple(network.parameters()))


def test_maps_over_weights():
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    states = [{name: p + torch.randn_like(p) for name, p in network.named_parameters()} for _ in range(3)]

    def output(state):
        x = ChannelMoments(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), (1, 1, 5, 5))
        return torch.func.functional_call(network, state, (x,)).variance

    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    torch.testing.assert_close(torch.func.vmap(output)(stacked), torch.stack([output(state) for state in states]))


def test_the_size_of_images_costs_nothing():
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AvgPool2d(2))

    def seconds(size: int) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            statistics(network, 0.0, 1.0, (size, size))
            times.append(time.process_time() - begin)
        return min(times)

    seconds(8)
    # one image of 1000x1000 alone would take seconds
    assert seconds(1000) < 3 * seconds(10) + 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], 1.0), "mean must be a number or a tensor"),
        ((0.0, True), "variance must be a number or a tensor"),
        ((torch.zeros(1, 3), 1.0), r"mean must be a number or have one value a channel, \[C\], not \[1, 3\]"),
        ((0.0, -1.0), "variances must be at least 0; the least is -1"),
        ((torch.zeros(3), torch.ones(2)), "mean has 3 channels, variance 2"),
        ((0.0, 1.0, (8, 0)), r"size must be the images' height and width, positive integers, not \(8, 0\)"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics(nn.Conv2d(3, 2, 3), *arguments)


def test_what_the_network_does_not_tell_must_be_said():
    with pytest.raises(ValueError, match=r"does not tell the number of channels: give mean or variance as \[C\]"):
        statistics(nn.ReLU(), 0.0, 1.0)
    assert statistics(nn.ReLU(), 0.0, torch.ones(2))[""].loc.shape == (2,)


def test_an_operation_without_a_rule_is_located():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real

    with pytest.raises(NoRuleError, match="'1', a Odd"):
        statistics(nn.Sequential(nn.Linear(2, 3), Odd()), 0.0, 1.0)

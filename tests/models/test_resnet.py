"""ResNet: He et al.'s sizes, what a block computes, shortcuts, and clear errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import models
from bnnzoo.models.resnet import ResidualBlock


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_sizes_are_the_known_ones(depth, parameters):
    """Published counts of the CIFAR networks with option A and ten classes."""
    net = models.ResNet(depth=depth)
    assert count(net) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


def test_projections_add_their_weights_only():
    extra = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(models.ResNet(shortcut="B")) == 464_154 + extra


def test_three_stages_of_halved_size_and_doubled_channels():
    net = models.ResNet(depth=14)
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    net(torch.zeros(2, 3, 32, 32))
    assert seen == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


def test_a_block_adds_its_shortcut_before_the_last_activation():
    block = ResidualBlock(3, 3, stride=1, shortcut="A", slope=0.1).double().eval()
    for norm in (block.norm1, block.norm2):  # the running statistics are not 0 and 1
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)

    def normed(h, norm):
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        return (h - mean) / (variance + norm.eps).sqrt()

    def leaky(h):
        return torch.where(h > 0, h, 0.1 * h)

    h = leaky(normed(F.conv2d(x, block.conv1.weight, padding=1), block.norm1))
    h = normed(F.conv2d(h, block.conv2.weight, padding=1), block.norm2)
    torch.testing.assert_close(block(x), leaky(h + x))


@pytest.mark.parametrize("size", [8, 7, 1])
def test_shortcut_a_keeps_every_other_pixel_and_pads_channels_with_zeros(size):
    block = ResidualBlock(4, 8, stride=2, shortcut="A", slope=0.0)
    nn.init.zeros_(block.norm2.weight)
    nn.init.zeros_(block.norm2.bias)
    x = torch.rand(2, 4, size, size)
    expected = torch.zeros(2, 8, (size + 1) // 2, (size + 1) // 2)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block.eval()(x), expected)


def test_shortcut_b_is_a_projection_with_batch_normalization():
    block = ResidualBlock(4, 8, stride=2, shortcut="B", slope=0.0)
    nn.init.zeros_(block.norm2.weight)
    nn.init.zeros_(block.norm2.bias)
    x = torch.randn(16, 4, 6, 6)
    h = F.conv2d(x, block.shortcut[0].weight, stride=2)
    expected = F.relu(
        (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    )
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_the_slope_is_that_of_every_activation(slope):
    net = models.ResNet(depth=8, width=2, slope=slope)
    assert [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)] == [slope] * 7


def test_every_convolution_is_normalized_and_has_no_bias():
    net = models.ResNet(depth=8, width=2, shortcut="B")
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.out_channels for m in convolutions] == [m.num_features for m in norms]
    assert all(m.bias is None for m in convolutions)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 28, 20), (3, 5, 5)])
def test_images_of_any_size(shape):
    assert models.ResNet(depth=8, width=2, num_classes=7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 30}, r"ResNet: depth must be 6n \+ 2 .* given: 30"),
        ({"depth": 2}, "depth must be a whole number of at least 8; given: 2"),
        ({"shortcut": "C"}, "shortcut must be one of A, B; given: 'C'"),
        ({"slope": 1.0}, "slope must be a number from 0 to below 1; given: 1.0"),
        ({"width": 0}, "width .* given: 0"),
        ({"in_channels": 0}, "in_channels .* given: 0"),
        ({"num_classes": 2.5}, "num_classes .* given: 2.5"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.ResNet(**arguments)

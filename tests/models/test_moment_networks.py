"""The moment propagation paper's two networks: sizes, places, columns, and clear errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import models, moments
from bnnzoo.moments.units import LogisticBernoulli

ARGUMENTS = ("in_channels", "num_classes", "activation", "dropout", "width")


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_lenet_is_that_of_the_paper():
    net = models.MomentLeNet()
    assert [tuple(c.weight.shape) for c in convolutions(net)] == [
        (32, 1, 5, 5),
        (64, 32, 5, 5),
        (50, 64, 4, 4),
        (10, 50, 1, 1),
    ]
    assert [c.stride for c in convolutions(net)] == [(2, 2), (2, 2), (1, 1), (1, 1)]
    kinds = [type(m).__name__ for m in net.layers]
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == [*block, *block, *block, "Conv2d", "BatchNorm2d", "AdaptiveAvgPool2d", "Flatten"]
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}
    # one pixel is left of an image of 28x28: nothing is averaged
    seen = []
    net.layers[-2].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    net(torch.zeros(2, 1, 28, 28))
    assert seen == [(2, 10, 1, 1)]


def test_the_cifar_network_is_that_of_the_paper():
    net = models.MomentCIFARNet()
    assert [c.weight.shape[2] for c in convolutions(net)] == [3, 3, 3, 3, 3, 3, 3, 1, 1]
    assert [c.stride[0] for c in convolutions(net)] == [1, 1, 2, 1, 1, 2, 1, 1, 1]
    assert [c.out_channels for c in convolutions(net)] == [96, 96, 96, 192, 192, 192, 192, 192, 10]
    assert [c.in_channels for c in convolutions(net)] == [3, 96, 96, 96, 192, 192, 192, 192, 192]
    narrow = models.MomentCIFARNet(width=0.125)
    assert [c.out_channels for c in convolutions(narrow)] == [12, 12, 12, 24, 24, 24, 24, 24, 10]
    seen = []
    narrow.layers[-2].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    narrow(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 10, 2, 2)]


@pytest.mark.parametrize("kind", [models.MomentLeNet, models.MomentCIFARNet])
def test_norm_after_every_convolution_activation_and_dropout_after_all_but_the_last(kind):
    net = kind(dropout=0.2, activation="bernoulli", width=0.05)
    layers = list(net.layers)[:-2]
    assert isinstance(layers[-1], nn.BatchNorm2d)
    assert isinstance(layers[-2], nn.Conv2d)
    for block in zip(*[iter(layers[:-2])] * 4, strict=True):
        assert list(map(type, block)) == [nn.Conv2d, nn.BatchNorm2d, LogisticBernoulli, nn.Dropout]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert all(c.bias is None for c in convolutions(net))


def test_columns_end_at_the_normalization_and_at_the_dropout():
    net = models.MomentLeNet(dropout=0.2)
    assert list(net.columns) == ["C1", "A1", "C2", "A2", "C3", "A3", "C4"]
    modules = dict(net.named_modules())
    for name, path in net.columns.items():
        assert isinstance(modules[path], nn.BatchNorm2d if name[0] == "C" else nn.Dropout)
    plain = models.MomentCIFARNet(width=0.05, activation="logistic")
    kinds = {name[0]: type(dict(plain.named_modules())[path]) for name, path in plain.columns.items()}
    assert kinds == {"C": nn.BatchNorm2d, "A": nn.Sigmoid}
    assert len(plain.columns) == 17


def test_what_it_computes():
    torch.manual_seed(0)
    net = models.MomentLeNet(num_classes=3, width=0.1).double().eval()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    h, layers = x, list(net.layers)
    for index in range(0, 12, 3):
        norm = layers[index + 1]
        h = F.conv2d(h, layers[index].weight, stride=2 if index < 6 else 1)
        h = (h - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        h = torch.where(h > 0, h, 0.01 * h) if index < 9 else h
    torch.testing.assert_close(net(x), h.flatten(1))


@pytest.mark.parametrize(
    "net",
    [
        models.MomentLeNet(3, 5, "logistic", 0.1, 0.2),
        models.MomentCIFARNet(1, 4, "leaky_relu", 0.0, 0.1),
        models.MomentLeNet(activation="bernoulli", width=0.1),
    ],
)
def test_attributes_of_the_arguments_names_rebuild_the_network(net):
    again = type(net)(**{name: getattr(net, name) for name in ARGUMENTS})
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, net.in_channels, 32, 32)
    torch.testing.assert_close(again.eval()(x), net.eval()(x))
    assert str(again) == str(net)


def test_moments_go_through_with_bernoulli_units():
    torch.manual_seed(0)
    net = models.MomentLeNet(activation="bernoulli", width=0.2).eval()
    output = moments.propagate(net, torch.rand(2, 1, 28, 28))
    assert output.shape == (2, 10)
    assert (output.variance > 0).all()
    assert math.isfinite(output.loc.sum().item())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.MomentLeNet(in_channels=0), "MomentLeNet: in_channels must be a whole .* given: 0"),
        (lambda: models.MomentCIFARNet(num_classes=2.5), r"MomentCIFARNet: num_classes .* given: 2\.5"),
        (
            lambda: models.MomentLeNet(activation="relu"),
            "activation must be one of leaky_relu, logistic, bernoulli; giv",
        ),
        (lambda: models.MomentLeNet(dropout=1.0), "dropout must be a number from 0 to below 1"),
        (lambda: models.MomentLeNet(width=0), "width must be a number above 0; given: 0"),
        (lambda: models.MomentLeNet(width=True), "width must be a number above 0; given: True"),
        (lambda: models.MomentLeNet(width=math.inf), "width must be a number above 0; given: inf"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

"""MLP and LeNet: shapes, names, parameters that rebuild them, and clear errors."""

import pytest
import torch
from torch import nn

from bnnzoo import models

ATTRIBUTES = {
    "MLP": ("in_features", "out_features", "hidden", "activation"),
    "LeNet": ("in_channels", "num_classes", "filters", "hidden", "image_size"),
}


def test_mlp_weights_are_named_by_layer_and_shaped_by_the_arguments():
    net = models.MLP(8, 3, hidden=(50, 40))
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes == {
        "layers.0.weight": (50, 8),
        "layers.0.bias": (50,),
        "layers.2.weight": (40, 50),
        "layers.2.bias": (40,),
        "layers.4.weight": (3, 40),
        "layers.4.bias": (3,),
    }


def test_mlp_computes_affine_maps_and_activations():
    torch.manual_seed(0)
    net = models.MLP(4, 2, hidden=(5,), activation="tanh")
    x = torch.randn(7, 4)
    first, last = net.layers[0], net.layers[2]
    expected = torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(net(x), expected)


def test_mlp_without_hidden_layers_is_linear():
    net = models.MLP(4, 2, hidden=())
    a, b = torch.randn(2, 3, 4)
    zero = net(torch.zeros(3, 4))
    torch.testing.assert_close(net(a + b) - zero, net(a) - zero + net(b) - zero)


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_every_activation_builds(activation):
    assert models.MLP(4, 2, hidden=[3], activation=activation)(torch.zeros(5, 4)).shape == (5, 2)


def test_mlp_takes_images_and_leading_dimensions():
    net = models.MLP(64, 10, hidden=(5,))
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(net(images), net(images.reshape(3, 64)))
    assert net(torch.randn(2, 3, 64)).shape == (2, 3, 10)


def test_lenet_is_that_of_the_mnf_paper():
    net = models.LeNet()
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert sum(p.numel() for p in net.parameters()) == 431_080
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("size", [16, 17, 28, 29, 32, 33])
def test_lenet_fits_any_image_size(size):
    net = models.LeNet(3, 5, filters=(4, 6), hidden=7, image_size=size)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    "net",
    [
        models.MLP(3, 2, hidden=[4, 5], activation="gelu"),
        models.LeNet(3, 5, filters=(4, 6), hidden=7, image_size=20),
    ],
)
def test_attributes_of_the_arguments_names_rebuild_the_network(net):
    arguments = {name: getattr(net, name) for name in ATTRIBUTES[type(net).__name__]}
    again = type(net)(**arguments)
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 20, 20) if isinstance(net, models.LeNet) else torch.randn(2, 3)
    torch.testing.assert_close(again(x), net(x))
    assert str(again) == str(net)


def test_raw_outputs_no_softmax():
    assert not [m for m in models.LeNet().modules() if isinstance(m, nn.Softmax | nn.LogSoftmax)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.MLP(0, 1), "in_features must be a whole number of at least 1; given: 0"),
        (lambda: models.MLP(2.5, 1), "in_features .* given: 2.5"),
        (lambda: models.MLP(True, 1), "in_features .* given: True"),
        (lambda: models.MLP(2, -1), "out_features .* given: -1"),
        (lambda: models.MLP(2, 1, hidden=(5, 0)), r"hidden\[1\] .* given: 0"),
        (lambda: models.MLP(2, 1, hidden=50), "hidden must be a sequence .* given: 50"),
        (lambda: models.MLP(2, 1, hidden="50,50"), "hidden must be a sequence .* given: '50,50'"),
        (lambda: models.MLP(2, 1, activation="rleu"), "activation must be one of relu, .* given: 'rleu'"),
        (lambda: models.LeNet(image_size=15), "image_size must be a whole number of at least 16; given: 15"),
        (lambda: models.LeNet(filters=(20,)), r"filters must be the sizes of two layers .* given: \(20,\)"),
        (lambda: models.LeNet(filters=(20, 0)), r"filters\[1\] .* given: 0"),
        (lambda: models.LeNet(in_channels=0), "in_channels .* given: 0"),
        (lambda: models.LeNet(num_classes=0), "num_classes .* given: 0"),
        (lambda: models.LeNet(hidden=-5), "hidden .* given: -5"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

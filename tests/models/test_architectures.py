"""MLP, LeNet and KerasCNN: shapes, names, parameters that rebuild them, and clear errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import models

ATTRIBUTES = {
    "MLP": ("in_features", "out_features", "hidden", "activation", "batch_norm", "dropout"),
    "LeNet": ("in_channels", "num_classes", "filters", "hidden", "image_size", "dropout", "batch_norm"),
    "KerasCNN": ("in_channels", "num_classes", "filters", "hidden", "image_size", "dropout"),
}


def kinds(layers):
    """The types of a sequence's modules, in short."""
    return [type(m).__name__ for m in layers]


def shapes(net):
    """The shapes of weights, biases and scales left out."""
    return [tuple(p.shape) for p in net.parameters() if p.ndim > 1]


def test_mlp_weights_are_named_by_layer_and_shaped_by_the_arguments():
    net = models.MLP(8, 3, hidden=(50, 40))
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
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


def test_mlp_normalizes_before_the_activation_and_drops_what_hidden_units_say():
    """The places of the MCBN paper; the inputs are not dropped, the outputs neither dropped nor normalized."""
    net = models.MLP(8, 1, hidden=(5, 4), batch_norm=True, dropout=0.2)
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds(net.layers) == [*hidden, *hidden, "Linear"]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert kinds(models.MLP(8, 1, hidden=(5,), dropout=0.2).layers) == ["Linear", "ReLU", "Dropout", "Linear"]


def test_mlp_with_batch_norm_normalizes_by_the_batch_and_has_no_bias_there():
    net = models.MLP(4, 2, hidden=(5,), activation="tanh", batch_norm=True).double()
    assert [name for name, _ in net.named_parameters()] == [
        "layers.0.weight",
        "layers.1.weight",
        "layers.1.bias",
        "layers.3.weight",
        "layers.3.bias",
    ]
    x = torch.randn(7, 4, dtype=torch.float64)
    h = x @ net.layers[0].weight.T
    h = torch.tanh((h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(net(x), h @ net.layers[3].weight.T + net.layers[3].bias)


def test_mlp_with_batch_norm_takes_images_and_leading_dimensions():
    net = models.MLP(64, 10, hidden=(5,), batch_norm=True)
    images = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(net(images), net(images.reshape(6, 64)))
    torch.testing.assert_close(net(images.reshape(2, 3, 64)), net(images.reshape(6, 64)).reshape(2, 3, 10))


def test_lenet_is_that_of_the_mnf_paper():
    net = models.LeNet()
    assert shapes(net) == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert [name for name, p in net.named_parameters() if p.ndim > 1] == [
        "layers.0.weight",
        "layers.3.weight",
        "layers.7.weight",
        "layers.9.weight",
    ]
    assert sum(p.numel() for p in net.parameters()) == 431_080
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_lenet_for_five_classes_of_cifar_is_that_of_the_mnf_paper():
    net = models.LeNet(3, 5, (192, 192), 1000, 32)
    assert shapes(net) == [(192, 3, 5, 5), (192, 192, 5, 5), (1000, 192 * 5 * 5), (5, 1000)]


def test_lenet_drops_inputs_of_all_layers_but_the_first_and_normalizes_before_relu():
    convolution, dense = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"], ["Linear", "BatchNorm1d", "ReLU"]
    net = models.LeNet(filters=(2, 3), hidden=4, dropout=0.3, batch_norm=True)
    expected = [*convolution, "Dropout2d", *convolution, "Flatten", "Dropout", *dense, "Dropout", "Linear"]
    assert kinds(net.layers) == expected
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)} == {0.3}
    biased = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert biased == [net.layers[-1]]
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_keras_cnn_is_that_of_the_bb_alpha_paper():
    net = models.KerasCNN()
    assert shapes(net) == [(32, 1, 3, 3), (32, 32, 3, 3), (100, 32 * 12 * 12), (10, 100)]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    x = torch.randn(2, 1, 28, 28)
    w = dict(net.named_parameters())
    h = F.relu(F.conv2d(x, w["layers.0.weight"], w["layers.0.bias"]))
    h = F.max_pool2d(F.relu(F.conv2d(h, w["layers.2.weight"], w["layers.2.bias"])), 2).flatten(1)
    h = F.relu(F.linear(h, w["layers.7.weight"], w["layers.7.bias"]))
    torch.testing.assert_close(net.eval()(x), F.linear(h, w["layers.10.weight"], w["layers.10.bias"]))


def test_keras_cnn_drops_inputs_of_both_dense_layers():
    convolutions = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Flatten"]
    drops = [*convolutions, "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert kinds(models.KerasCNN().layers) == drops
    assert kinds(models.KerasCNN(dropout=0).layers) == [*convolutions, "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("size", [6, 7, 28, 32])
def test_keras_cnn_fits_any_image_size(size):
    net = models.KerasCNN(3, 5, filters=4, hidden=7, image_size=size)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("size", [16, 17, 28, 29, 32, 33])
def test_lenet_fits_any_image_size(size):
    net = models.LeNet(3, 5, filters=(4, 6), hidden=7, image_size=size)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    "net",
    [
        models.MLP(3, 2, hidden=[4, 5], activation="gelu"),
        models.MLP(3, 2, hidden=[4, 5], batch_norm=True, dropout=0.1),
        models.LeNet(3, 5, filters=(4, 6), hidden=7, image_size=20),
        models.LeNet(3, 5, filters=(4, 6), hidden=7, image_size=20, batch_norm=True, dropout=0.1),
        models.KerasCNN(3, 5, filters=4, hidden=7, image_size=20),
    ],
)
def test_attributes_of_the_arguments_names_rebuild_the_network(net):
    arguments = {name: getattr(net, name) for name in ATTRIBUTES[type(net).__name__]}
    again = type(net)(**arguments)
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3) if isinstance(net, models.MLP) else torch.randn(2, 3, 20, 20)
    torch.testing.assert_close(again.eval()(x), net.eval()(x))
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
        (lambda: models.MLP(2, 1, batch_norm=1), "MLP: batch_norm must be True or False; given: 1"),
        (lambda: models.MLP(2, 1, dropout=1.0), "MLP: dropout must be a number from 0 to below 1; given: 1.0"),
        (lambda: models.MLP(2, 1, dropout=-0.1), "dropout .* given: -0.1"),
        (lambda: models.MLP(2, 1, dropout=True), "dropout .* given: True"),
        (lambda: models.MLP(2, 1, dropout=float("nan")), "dropout .* given: nan"),
        (lambda: models.MLP(2, 1, dropout="0.5"), "dropout .* given: '0.5'"),
        (lambda: models.MLP(2, 1, hidden=(), batch_norm=True), r"act on hidden layers, and hidden=\(\) has none"),
        (lambda: models.MLP(2, 1, hidden=(), dropout=0.1), r"act on hidden layers, and hidden=\(\) has none"),
        (lambda: models.LeNet(dropout=1.5), "LeNet: dropout .* given: 1.5"),
        (lambda: models.LeNet(batch_norm=None), "LeNet: batch_norm must be True or False; given: None"),
        (lambda: models.KerasCNN(image_size=5), "image_size must be a whole number of at least 6; given: 5"),
        (lambda: models.KerasCNN(filters=(32, 32)), r"filters must be a whole .* given: \(32, 32\)"),
        (lambda: models.KerasCNN(hidden=0), "KerasCNN: hidden .* given: 0"),
        (lambda: models.KerasCNN(dropout=1), "KerasCNN: dropout .* given: 1"),
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

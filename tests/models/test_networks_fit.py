"""Every architecture as a Bayesian network: vmap over weights, chains, files, and factories sized by the data."""

import inspect

import numpy as np
import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from bnnzoo import BayesianNetwork, data, fit, guides, likelihoods, load, models
from bnnzoo.data import Dataset
from bnnzoo.models.entry import Entry, categorical, encoder_decoder, keras_cnn, lenet, mlp, normal, resnet

N = 8
GRAY, COLOR = (1, 16, 16), (3, 8, 8)

NETWORKS = {
    "mlp": (lambda: models.MLP(256, 3, (6,), batch_norm=True), GRAY),
    "mlp-dropout": (lambda: models.MLP(256, 3, (6,), dropout=0.2), GRAY),
    "lenet": (lambda: models.LeNet(1, 3, (2, 3), 5, 16, batch_norm=True), GRAY),
    "lenet-dropout": (lambda: models.LeNet(1, 3, (2, 3), 5, 16, dropout=0.2), GRAY),
    "keras-cnn": (lambda: models.KerasCNN(3, 3, filters=2, hidden=5, image_size=8), COLOR),
    "resnet-a": (lambda: models.ResNet(3, 3, depth=8, width=2), COLOR),
    "resnet-b": (lambda: models.ResNet(3, 3, depth=8, width=2, shortcut="B"), COLOR),
    "encoder-decoder": (lambda: models.EncoderDecoder(3, 3, width=2, depth=2, dropout=0.2), COLOR),
}


def examples(name):
    """A network, and images with labels that it can be trained on."""
    make, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, *shape, generator=generator)
    labels = (N, *shape[1:]) if name == "encoder-decoder" else (N,)
    return make(), x, torch.randint(3, labels, generator=generator)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in NETWORKS if "dropout" not in name])
def test_vmap_over_weights_is_a_loop(name, training):
    make, shape = NETWORKS[name]
    nets = [make().train(training) for _ in range(2)]
    for module in (m for net in nets for m in net.modules()):
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0  # masks would differ
    parameters, buffers = stack_module_state(nets)
    buffers = {k: v.clone() for k, v in buffers.items()}
    x = torch.randn(5, *shape)
    mapped = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)), randomness="different")(parameters, buffers)
    torch.testing.assert_close(mapped, torch.stack([net(x) for net in nets]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guide", [guides.Map, guides.MeanField])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_with_two_chains_and_a_file(name, guide, tmp_path):
    network, x, y = examples(name)
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    start = {site: value.clone() for site, value in bnn.initial_values().items()}
    posterior = fit(bnn, guide(bnn), (x, y), lr=0.01, epochs=1, batch_size=N, chains=2, seed=0, progress=False)
    assert np.isfinite(posterior.history["loss"]).all()
    draws = posterior.sample(2, seed=0)
    assert draws.keys() == start.keys()
    for site, value in draws.items():
        assert value.shape == (2, 2, *start[site].shape)
    posterior.save(tmp_path / "posterior.bnn")
    again = load(tmp_path / "posterior.bnn")
    assert type(again.bnn.network) is type(network)
    for argument in inspect.signature(type(network)).parameters:
        assert getattr(again.bnn.network, argument) == getattr(network, argument)
    first, second = (p.predict(x, num_samples=2, seed=1).parameters["logits"] for p in (posterior, again))
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())


def test_the_state_of_each_chain_s_batch_normalization_is_its_own():
    network, x, y = examples("resnet-a")
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    posterior = fit(bnn, guides.Map(bnn), (x, y), lr=0.01, epochs=1, batch_size=N, chains=2, seed=0, progress=False)
    means = posterior.state()[1]["model.network.norm.running_mean"]
    assert means.shape == (2, 2)
    assert not torch.equal(means[0], means[1])


IMAGES = Dataset(torch.rand(6, 3, 16, 16), torch.arange(6) % 2, name="pictures")
WIDE = Dataset(torch.rand(6, 3, 16, 20), torch.arange(6) % 2, name="wide")
PIXELS = Dataset(torch.rand(6, 3, 12, 8), torch.arange(6 * 96).reshape(6, 12, 8) % 4, name="street")
TABLE = Dataset(torch.rand(6, 5), torch.arange(6) % 2, name="table")


@pytest.mark.parametrize(
    ("factory", "dataset", "expected"),
    [
        (
            mlp(7, activation="tanh", batch_norm=True, dropout=0.1),
            IMAGES,
            models.MLP(768, 2, (7,), "tanh", batch_norm=True, dropout=0.1),
        ),
        (
            lenet((2, 3), 4, dropout=0.1, batch_norm=True),
            IMAGES,
            models.LeNet(3, 2, (2, 3), 4, 16, dropout=0.1, batch_norm=True),
        ),
        (keras_cnn(2, 4, dropout=0.1), IMAGES, models.KerasCNN(3, 2, 2, 4, 16, dropout=0.1)),
        (keras_cnn(), IMAGES, models.KerasCNN(3, 2, image_size=16)),
        (resnet(8, 2, shortcut="B", slope=0.0), WIDE, models.ResNet(3, 2, 8, 2, shortcut="B", slope=0.0)),
        (resnet(), IMAGES, models.ResNet(3, 2)),
        (encoder_decoder(2, 1, dropout=0.1), PIXELS, models.EncoderDecoder(3, 2, 2, 1, dropout=0.1)),
    ],
)
def test_factories_size_networks_by_the_data(factory, dataset, expected):
    net = factory(dataset, 2)
    assert str(net) == str(expected)
    assert net.eval()(dataset.x).shape[:2] == (6, 2)


@pytest.mark.parametrize(
    ("factory", "dataset", "words"),
    [
        (lenet(), WIDE, r"LeNet takes square images .* 'wide' have shape \[3, 16, 20\]"),
        (keras_cnn(), TABLE, r"KerasCNN takes square images .* 'table' have shape \[5\]"),
        (keras_cnn(), WIDE, r"KerasCNN takes square images .* 'wide' have shape \[3, 16, 20\]"),
        (keras_cnn(), Dataset(torch.rand(6, 1, 5, 5), torch.arange(6)), "image_size .* at least 6; given: 5"),
        (resnet(), TABLE, r"ResNet takes images \[channels, height, width\]; inputs of 'table' have shape \[5\]"),
        (resnet(depth=9), IMAGES, "depth must be 6n"),
        (encoder_decoder(), TABLE, r"EncoderDecoder takes images .* 'table' have shape \[5\]"),
        (encoder_decoder(), IMAGES, r"a label for every pixel, \[N, 16, 16\]; targets of 'pictures' .* \[6\]"),
        (encoder_decoder(depth=3), PIXELS, "divisible by 8; given: 12 x 8"),
        (mlp(batch_norm=True), TABLE, "hidden layers"),
    ],
)
def test_data_that_do_not_fit_are_refused(factory, dataset, words):
    with pytest.raises(ValueError, match=words):
        factory(dataset, 2)


def test_a_recipe_for_dense_classification_trains():
    entry = Entry(
        "map/pixels", "", "", "", encoder_decoder(2, 1), normal(), categorical(), guides.Map, training={"epochs": 2}
    )
    bnn, guide, objective, settings = entry.build(PIXELS)
    assert bnn.network.num_classes == 4
    posterior = fit(bnn, guide, PIXELS, objective=objective, lr=0.01, batch_size=3, progress=False, **settings)
    prediction = posterior.predict(PIXELS.x, num_samples=2)
    assert prediction.parameters["logits"].shape[-3:] == (12, 8, 4)
    assert prediction.log_prob(PIXELS.y).shape == (6,)


def test_resnet_factory_fits_cifar():
    net = resnet(depth=8)(Dataset(torch.zeros(4, *data.info("cifar10").input_shape), torch.arange(4)), 10)
    assert (net.in_channels, net.num_classes) == (3, 10)

"""A data set's statistics: those of all images, and the paper's table of their errors."""

import numpy as np
import torch

from bnnzoo import moments
from bnnzoo.reproduce import moments_normalization as normalization
from bnnzoo.reproduce.moments_paper import TABLE_4


def test_the_printed_table_has_every_layer():
    for by_init in TABLE_4.values():
        assert list(by_init) == ["None", "BN", "AP2"]
        for mu, sigma in by_init.values():
            assert len(mu) == len(sigma) == len(normalization.LAYERS)
            assert all(0 <= each < 0.6 for each in mu)  # "less than the true standard deviation"
            assert all(0.7 < each < 1.5 for each in sigma)


def test_statistics_are_over_all_images_and_positions():
    torch.manual_seed(0)
    x, network = torch.rand(7, 1, 28, 28), normalization.lenet("leaky ReLU")
    found = normalization.measured(network, x, batch=3)
    assert set(normalization.LAYERS) <= set(found)
    with torch.no_grad():
        output = network.A1(network.C1(x)).double()
    torch.testing.assert_close(found["A1"].loc, output.mean((0, 2, 3)))
    torch.testing.assert_close(found["A1"].variance, output.var((0, 2, 3), correction=0))


def test_initialization_by_the_data_makes_every_convolution_standard():
    torch.manual_seed(0)
    x, network = torch.rand(50, 1, 28, 28), normalization.lenet("logistic transform")
    normalization.initialize_by_data(network, x)
    found = normalization.measured(network, x)
    for name in normalization.LINEAR:
        np.testing.assert_allclose(found[name].loc, 0.0, atol=1e-3)
        np.testing.assert_allclose(found[name].variance, 1.0, atol=1e-3)


def test_errors_of_means_and_of_standard_deviations():
    truth = {name: moments.Moments(torch.zeros(2), torch.tensor([1.0, 9.0])) for name in normalization.LAYERS}
    found = {name: moments.Moments(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 9.0])) for name in truth}
    mu, sigma = normalization.errors(found, truth)
    np.testing.assert_allclose(mu, 1.5 / 2)  # over the mean of 1 and 3
    np.testing.assert_allclose(sigma, 2**0.5, rtol=1e-6)  # of 2 and 1


def test_kinds_of_normalization_are_in_the_network():
    for kind, layer in normalization.KINDS.items():
        network = normalization.normalized(normalization.lenet("leaky ReLU", layer), 0.1, 0.2)
        counts = [
            sum(isinstance(each, type_) for each in network.modules())
            for type_ in (torch.nn.BatchNorm2d, moments.MomentNorm)
        ]
        assert counts == {"none": [0, 0], "batch norm": [4, 0], "MomentNorm": [0, 4]}[kind]

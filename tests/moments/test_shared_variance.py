"""A variance that all examples share goes through a layer once, with the same result."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo.moments import Moments, propagate

LAYERS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "conv1d": (nn.Conv1d(4, 3, 2), (4, 5)),
    "conv2d": (nn.Conv2d(4, 3, 2, padding=1), (4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 3, 2, stride=2), (4, 3, 3)),
}


@pytest.mark.parametrize("batch", [(), (1,), (6,)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_shared_variance_is_the_same_for_each_example(name, batch):
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, *shape, generator=generator)
    for variance in (torch.rand(shape, generator=generator), torch.tensor(0.3)):
        shared, dense = variance.clone().requires_grad_(), variance.clone().requires_grad_()
        one = layer(Moments(x, shared))
        other = layer(Moments(x, dense.expand(x.shape).clone()))
        torch.testing.assert_close(one.variance, other.variance)
        torch.testing.assert_close(one.loc, other.loc)
        by_weight = torch.autograd.grad(one.variance.square().sum(), [shared, layer.weight])
        expected = torch.autograd.grad(other.variance.square().sum(), [dense, layer.weight])
        torch.testing.assert_close(by_weight, expected, rtol=1e-4, atol=1e-5)


def test_a_channel_dimension_is_no_batch():
    # [C, L] without a batch: channels may share their variance, but not their weights
    layer, x = nn.Conv1d(4, 3, 2), Moments(torch.zeros(4, 5), torch.rand(5))
    dense = Moments(x.loc, x.variance.clone())
    torch.testing.assert_close(layer(x).variance, layer(dense).variance)


def test_a_number_goes_through_one_row_and_ends_where_examples_differ():
    layer, x = nn.Linear(4, 3), Moments(torch.randn(50, 4), 0.1)
    output = layer(x)
    assert output.variance.stride(0) == 0
    torch.testing.assert_close(output.variance, F.linear(torch.full((50, 4), 0.1), layer.weight.square()))
    assert F.relu(output).variance.stride(0) == 3


def test_variances_of_a_map_are_not_taken_for_shared():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x, variances = torch.randn(5, 7, 4), torch.rand(5)
    mapped = torch.func.vmap(lambda mean, variance: network(Moments(mean, variance)).variance)(x, variances)
    each = torch.func.vmap(lambda mean, variance: network(Moments(mean, variance)).variance)(
        x, variances.view(5, 1, 1).expand(5, 7, 4).clone()
    )
    torch.testing.assert_close(mapped, each)
    for k in range(5):
        torch.testing.assert_close(mapped[k], propagate(network, x[k], variances[k].item()).variance)

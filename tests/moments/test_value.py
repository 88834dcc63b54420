"""`Moments` as a tensor: what it looks like, and what may be done to it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bnnzoo.moments import Moments, NoRuleError, options
from bnnzoo.moments.value import current
from tests.affine_maps import random_tensor


def test_it_looks_like_a_tensor():
    x = random_tensor(2, 3)
    assert torch.is_tensor(x)
    assert isinstance(x, torch.Tensor)
    assert x.shape == x.size() == (2, 3)
    assert (x.dim(), x.ndim, x.numel(), len(x)) == (2, 2, 6, 2)
    assert x.size(-1) == 3
    assert x.dtype == torch.float64
    assert x.is_floating_point()
    assert x.device == x.loc.device
    assert not x.is_cuda


def test_it_has_mean_variance_scale_and_second_moment():
    mean, variance = torch.randn(2, 3), torch.rand(2, 3)
    x = Moments(mean, variance)
    assert x.loc is mean
    assert x.variance is variance
    assert not x.certain
    torch.testing.assert_close(x.scale, variance.sqrt())
    torch.testing.assert_close(x.second_moment, mean**2 + variance)
    certain = Moments(mean)
    assert certain.certain
    assert certain.variance.eq(0).all()
    torch.testing.assert_close(certain.second_moment, mean**2)
    with pytest.raises(AttributeError, match="variances alone"):
        x.covariance  # noqa: B018


@pytest.mark.parametrize("variance", [0.5, torch.tensor(0.5), torch.full((3,), 0.5), torch.full((2, 1), 0.5)])
def test_the_variance_broadcasts(variance):
    x = Moments(torch.zeros(2, 3), variance)
    assert x.variance.shape == (2, 3)
    assert x.variance.eq(0.5).all()


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3), (3, 3)])
def test_a_variance_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"does not broadcast to the mean's shape \[2, 3\]"):
        Moments(torch.zeros(2, 3), torch.ones(shape))


def test_its_representation_tells_both():
    assert repr(Moments(torch.zeros(1), 2.0)) == "Moments(mean=tensor([0.]), variance=tensor([2.]))"
    assert repr(Moments(torch.zeros(1))) == "Moments(mean=tensor([0.]), variance=None)"
    assert str(Moments(torch.zeros(1))).startswith("Moments(")


def test_rows_and_tensor_methods():
    x = random_tensor(3, 2, 4, 4)
    rows = list(x)
    assert len(rows) == 3
    torch.testing.assert_close(rows[1].variance, x.variance[1])
    pooled = x.mean([2, 3])
    torch.testing.assert_close(pooled.loc, x.loc.mean([2, 3]))
    torch.testing.assert_close(pooled.variance, x.variance.sum([2, 3]) / 256)
    first, *_ = x
    assert isinstance(first, Moments)


@pytest.mark.parametrize("certain", [False, True])
def test_copies(certain):
    x = random_tensor(2, 3)
    x = Moments(x.loc) if certain else x
    x.input_noise = torch.ones(2)
    for copied in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), copy.copy(x)):
        assert type(copied) is Moments
        assert copied.certain == certain
        assert torch.equal(copied.loc, x.loc)
        assert torch.equal(copied.variance, x.variance)
        assert torch.equal(copied.input_noise, x.input_noise)
    assert copy.deepcopy(x).loc is not x.loc
    assert copy.copy(x).loc is x.loc


def test_what_is_certain_needs_no_rule():
    x = torch.randn(3)
    found = torch.special.bessel_j0(Moments(x))
    assert found.certain
    assert torch.equal(found.loc, torch.special.bessel_j0(x))
    values, indices = Moments(x).sort()
    assert torch.equal(indices.loc, x.sort().indices)
    assert values.certain


def test_shapes_alone_are_read_of_the_means():
    x = random_tensor(2, 3)
    for made in (torch.zeros_like(x), x.new_ones(2, 3), torch.empty_like(x), x.new_zeros(())):
        assert type(made) is torch.Tensor
        assert made.dtype == torch.float64


def test_noise():
    x = random_tensor(2, 3)
    torch.testing.assert_close(x.plus_noise(torch.ones(3)).variance, x.variance + 1)
    found = x.times_noise(0.3, (2, 1))
    torch.testing.assert_close(found.loc, x.loc)
    torch.testing.assert_close(found.variance, x.variance * 1.3 + 0.3 * x.loc**2)
    certain = Moments(x.loc)
    torch.testing.assert_close(certain.times_noise(0.3).variance, 0.3 * x.loc**2)
    torch.testing.assert_close(certain.plus_noise(torch.ones(2, 3)).variance, torch.ones(2, 3).double())


def test_values_do_not_leave_for_numpy_unseen():
    for use in (lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.sum().item(), float, bool):
        with pytest.raises(NoRuleError, match="no rule for the operation Tensor"):
            use(random_tensor(1))


def test_options_hold_inside_alone():
    assert current().fallback is None
    with options("paper", "sample"):
        assert (current().approximation, current().fallback) == ("paper", "sample")
        with options():
            assert current().approximation == "exact"
        assert current().approximation == "paper"
    assert current().fallback is None
    for wrong in ({"approximation": "rough"}, {"fallback": "guess"}):
        with pytest.raises(ValueError, match="must be"), options(**wrong):
            pass


def test_modules_take_it_unchanged():
    x = random_tensor(2, 3).float()
    layer = nn.Linear(3, 2)
    torch.testing.assert_close(layer(x).variance, (x.variance @ layer.weight.square().T))
    assert nn.Identity()(x) is x

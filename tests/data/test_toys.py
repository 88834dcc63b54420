import numpy as np
import pytest
import torch

from bnnzoo.data import toys


@pytest.mark.parametrize("make", [toys.cubic, toys.gap, toys.moons, toys.counts, toys.shapes])
def test_seeds(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, other.x)
    assert len(make(num_samples=7)) == 7
    with pytest.raises(ValueError, match="num_samples"):
        make(num_samples=0)


def test_cubic_is_that_of_the_paper():
    data = toys.cubic()
    assert data.x.shape == (20, 1)
    assert data.y.shape == (20,)
    data = toys.cubic(num_samples=20000)
    x = data.x.squeeze(1)
    assert x.abs().max() <= 4
    residual = (data.y - x**3).double()
    assert abs(residual.mean()) < 5 * 3 / np.sqrt(20000)
    assert abs(residual.std() - 3) < 5 * 3 / np.sqrt(40000)
    np.testing.assert_allclose((toys.cubic(noise=0).x ** 3).squeeze(1), toys.cubic(noise=0).y, rtol=1e-5)


def test_gap_has_no_data_in_the_middle_and_the_noise_it_says():
    data = toys.gap(num_samples=20000)
    x = data.x.squeeze(1)
    assert x.abs().min() >= 0.7 - 1e-6
    assert x.abs().max() <= 2 + 1e-6
    assert int((x < 0).sum()) == 10000
    z = ((data.y - toys.gap_mean(x)) / toys.gap_scale(x)).double()
    for side in (x < 0, x > 0):
        assert abs(z[side].mean()) < 5 / np.sqrt(10000)
        assert abs(z[side].std() - 1) < 5 / np.sqrt(20000)
    assert toys.gap_scale(torch.tensor([-2.0, 2.0])).tolist() == pytest.approx([0.05, 0.25])


def test_moons():
    data = toys.moons(num_samples=301, noise=0)
    assert torch.bincount(data.y).tolist() == [151, 150]
    upper, lower = data.x[data.y == 0], data.x[data.y == 1]
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(151))
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(150))
    assert upper[:, 1].min() >= -1e-6
    assert lower[:, 1].max() <= 0.5 + 1e-6
    assert data.class_names == ("upper", "lower")


def test_counts_follow_their_rate():
    data = toys.counts(num_samples=20000)
    rate = toys.counts_rate(data.x.squeeze(1))
    assert data.task == "counts"
    assert torch.equal(data.y, data.y.round())
    z = ((data.y - rate) / rate.sqrt()).double()
    assert abs(z.mean()) < 5 / np.sqrt(20000)
    # Var(z²) = 2 + 1/rate is at most 3.
    assert abs(z.square().mean() - 1) < 5 * np.sqrt(3 / 20000)

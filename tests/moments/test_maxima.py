"""Maxima of moments: of two against quadrature, over dimensions and windows against torch and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from torch import nn

from bnnzoo.moments import Moments, NoRuleError, options, propagate
from bnnzoo.moments.maxima import maximum, minimum
from tests.statistical import assert_mean

VALUES = [-10.0, -1.3, 0.0, 0.4, 10.0]
SCALES = [1e-4, 0.03, 1.0, 10.0]


def by_quadrature(m1, s1, m2, s2):
    """Mean and variance of the maximum of two Gaussians, from the density of the maximum."""
    low, high = max(m1 - 12 * s1, m2 - 12 * s2), max(m1 + 12 * s1, m2 + 12 * s2)
    center = max(m1, m2)

    def density(x):
        return stats.norm.pdf(x, m1, s1) * special.ndtr((x - m2) / s2) + stats.norm.pdf(x, m2, s2) * special.ndtr(
            (x - m1) / s1
        )

    inner = [m + s * np.linspace(-12, 12, 25) for m, s in ((m1, s1), (m2, s2))]
    edges = np.unique([low, high, *(p for part in inner for p in part if low < p < high)])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (1 + nodes)
    mass = half * weights * density(x)
    shift = (mass * (x - center)).sum()
    return center + shift, (mass * (x - center) ** 2).sum() - shift**2


def cases():
    rng = np.random.default_rng(0)
    grid = [(m1, s1, m2, s2) for m1 in VALUES for m2 in VALUES[1:4] for s1 in SCALES for s2 in SCALES[1::2]]
    loose = [(*rng.uniform(-10, 10, 2), *10 ** rng.uniform(-4, 1, 2)) for _ in range(20)]
    return grid + [(m1, s1, m2, s2) for m1, m2, s1, s2 in loose]


def test_the_maximum_of_two_is_that_of_quadrature():
    given = cases()
    expected = torch.tensor([by_quadrature(*each) for each in given], dtype=torch.float64)
    m1, s1, m2, s2 = torch.tensor(given, dtype=torch.float64).T
    for dtype, tolerance in (
        (torch.float64, {"rtol": 1e-5, "atol": 1e-9}),
        (torch.float32, {"rtol": 1e-4, "atol": 2e-5}),
    ):
        arguments = [each.to(dtype) for each in (m1, s1.square(), m2, s2.square())]
        found = torch.stack(maximum(*arguments), 1)
        torch.testing.assert_close(found, expected.to(dtype), **tolerance)
        mean, variance = minimum(-arguments[0], arguments[1], -arguments[2], arguments[3])
        torch.testing.assert_close(torch.stack([-mean, variance], 1), found)


def test_the_papers_shortcut_is_taken_by_name():
    a, b = Moments(torch.tensor([1.0]), 0.5), Moments(torch.tensor([0.2]), 0.3)
    with options(approximation="paper"):
        short = torch.maximum(a, b)
    exact = torch.maximum(a, b)
    ratio = 0.8 / math.sqrt(0.8) / 0.3729
    expected = 0.5 / (1 + math.exp(-ratio)) + 0.3 / (1 + math.exp(ratio))
    assert short.variance.item() == pytest.approx(expected, rel=1e-6)
    assert short.loc == exact.loc
    assert abs(short.variance / exact.variance - 1) < 0.5


@pytest.mark.parametrize("approximation", ["exact", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_everywhere(dtype, approximation):
    means = torch.tensor([0.0, 1e-8, 1.0, -3.0, 1e4, -1e4, 1e30, -math.inf], dtype=dtype)
    variances = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 1.0, 1e6], dtype=dtype)
    grid = torch.cartesian_prod(torch.arange(8), torch.arange(6), torch.arange(8), torch.arange(6)).T
    parts = [means[grid[0]], variances[grid[1]], means[grid[2]], variances[grid[3]]]
    for each in parts:
        each.requires_grad_()
    with options(approximation):
        mean, variance = maximum(*parts)
    assert not mean.isnan().any()
    assert variance.isfinite().all()
    assert (variance >= 0).all()
    assert (mean >= torch.maximum(parts[0], parts[2])).all()
    finite = mean.isfinite()
    gradients = torch.autograd.grad(mean[finite].sum() + variance.sum(), parts)
    assert all(each.isfinite().all() for each in gradients)
    certain = (parts[1] == 0) & (parts[3] == 0)
    assert torch.equal(mean[certain], torch.maximum(parts[0], parts[2])[certain])
    assert (variance[certain] == 0).all()


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    parts = [torch.randn(8), torch.rand(8) + 0.1, torch.randn(8), torch.rand(8) + 0.1]
    parts = [each.double().requires_grad_() for each in parts]
    assert torch.autograd.gradcheck(maximum, parts)


def value(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Moments(torch.randn(*shape, generator=generator), torch.rand(*shape, generator=generator))


SELECTIONS = {
    "maximum": lambda x, y: torch.maximum(x, y),
    "maximum of a tensor": lambda x, y: torch.maximum(x, y).fmax(torch.zeros(9)),
    "tensor first": lambda x, y: torch.fmax(torch.zeros(9), x),
    "minimum": lambda x, y: torch.fmin(x, y),
    "max of two": lambda x, y: torch.max(x, y),
    "min of two": lambda x, y: x.min(y),
    "max of all": lambda x, y: x.max(),
    "min over a dimension": lambda x, y: x.min(1).values,
    "max, first of a pair": lambda x, y: x.max(dim=-1, keepdim=True)[0],
    "amax": lambda x, y: x.amax((1, -1)),
    "amax of all": lambda x, y: torch.amax(x),
    "amin": lambda x, y: torch.amin(x, 2, keepdim=True),
    "maxout": lambda x, y: x.unflatten(1, (2, 2)).amax(2),
    "pool": lambda x, y: F.max_pool2d(x, 2),
    "pool 3, stride 2, padded": lambda x, y: F.max_pool2d(x, 3, 2, 1),
    "pool, rounded up": lambda x, y: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "pool, dilated": lambda x, y: F.max_pool2d(x, (2, 3), (1, 2), (1, 1), (2, 1)),
    "torch's pool": lambda x, y: torch.max_pool2d(x, 2),
    "pool 1d": lambda x, y: F.max_pool1d(x[0], 2, 1, dilation=2),
    "pool 3d": lambda x, y: nn.MaxPool3d(2, padding=1)(x),
    "adaptive": lambda x, y: F.adaptive_max_pool2d(x, (3, 4)),
    "adaptive, global": lambda x, y: nn.AdaptiveMaxPool2d(1)(x),
    "adaptive 1d": lambda x, y: F.adaptive_max_pool1d(x[0], 4),
    "adaptive 3d": lambda x, y: F.adaptive_max_pool3d(x, (2, None, 3)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_where_nothing_is_random_it_is_torchs(name):
    select = SELECTIONS[name]
    x, y = value(3, 4, 7, 9), value(3, 4, 7, 9, seed=1)
    found = select(Moments(x.loc, 0.0), Moments(y.loc, 0.0))
    torch.testing.assert_close(found.loc, select(x.loc, y.loc), rtol=0, atol=0)
    assert (found.variance == 0).all()
    certain = select(Moments(x.loc), Moments(y.loc))
    torch.testing.assert_close(certain.loc, found.loc, rtol=0, atol=0)


@pytest.mark.parametrize("name", SELECTIONS)
def test_moments_are_close_to_those_of_draws(name):
    """Exact for two; the more are composed, the less Gaussian their maximum is."""
    select = SELECTIONS[name]
    x, y = (Moments(0.5 * each.loc, 0.5 + each.variance) for each in (value(3, 4, 7, 9), value(3, 4, 7, 9, seed=1)))
    found = select(x, y)
    torch.manual_seed(0)
    draws = torch.stack([
        select(x.loc + x.scale * torch.randn(x.shape), y.loc + y.scale * torch.randn(y.shape)) for _ in range(800)
    ])  # fmt: skip
    spread = draws.std(0)
    error = (found.loc - draws.mean(0)).abs() / spread
    many = "all" in name or "global" in name
    assert error.max() < (1.3 if many else 0.12) + 5.5 / math.sqrt(800)
    assert (found.scale / spread - 1).abs().mean() < (0.65 if many else 0.25)


def test_a_pair_of_many_draws():
    x, y = value(50), value(50, seed=1)
    torch.manual_seed(0)
    draws = torch.maximum(*(each.loc + each.scale * torch.randn(40_000, 50) for each in (x, y)))
    found = torch.maximum(x, y)
    assert_mean(draws, found.loc, 100)
    assert_mean((draws - found.loc).square(), found.variance, 100, "variance")


def test_the_tree_takes_neighbors_first():
    x = value(5)
    pair = torch.maximum
    expected = pair(pair(pair(x[0], x[1]), pair(x[2], x[3])), x[4])
    for found in (x.amax(0), F.max_pool1d(x[None], 5)[0, 0], F.adaptive_max_pool1d(x[None], 1)[0, 0]):
        torch.testing.assert_close(found.loc, expected.loc)
        torch.testing.assert_close(found.variance, expected.variance)


def test_padding_takes_no_part():
    x = Moments(torch.full((1, 1, 4), -5.0), torch.ones(1, 1, 4))
    padded = F.max_pool1d(x, 3, 3, 1)
    torch.testing.assert_close(padded.loc[..., 0], x[..., :2].amax(-1).loc)
    torch.testing.assert_close(padded.variance[..., 0], x[..., :2].amax(-1).variance)
    uneven = F.adaptive_max_pool1d(x, 3)
    torch.testing.assert_close(uneven.variance[..., 1], x[..., 1:3].amax(-1).variance)


def test_maxima_run_under_vmap_and_are_differentiable():
    x = value(3, 2, 5, 4)

    def pooled(mean, variance):
        y = F.max_pool2d(Moments(mean, variance), 3, 2, 1).amax(1)
        return y.loc, y.variance

    mapped = torch.func.vmap(pooled)(x.loc[:, None], x.variance[:, None])
    torch.testing.assert_close(mapped[0][:, 0], pooled(x.loc, x.variance)[0])
    torch.testing.assert_close(mapped[1][:, 0], pooled(x.loc, x.variance)[1])
    parts = [x.loc[:1].double().requires_grad_(), x.variance[:1].double().requires_grad_()]
    assert torch.autograd.gradcheck(pooled, parts)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.max(1).indices.shape,
        lambda x: torch.gather(x.loc, 1, x.max(1)[1]),
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True),
        lambda x: nn.MaxPool2d(2, return_indices=True)(x),
    ],
)
def test_indices_make_no_sense_and_say_so(use):
    with pytest.raises(NoRuleError, match="position of a maximum of moments is random"):
        use(value(1, 2, 4, 4))


def test_the_error_of_indices_names_the_module():
    network = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(NoRuleError, match=r"no indices .*\(in '1', a MaxPool2d\)"):
        propagate(network, torch.zeros(1, 1, 4, 4), 1.0)


def test_indices_of_the_means_are_a_fallback():
    x = value(1, 2, 4, 4)
    with options(fallback="linearize"):
        for pool in (F.max_pool2d, F.adaptive_max_pool2d):
            found, indices = pool(x, 2, return_indices=True)
            expected, positions = pool(x.loc, 2, return_indices=True)
            assert torch.equal(found.loc, expected)
            assert torch.equal(indices.loc, positions)
            chosen = x.variance.flatten(2).gather(2, positions.flatten(2)).view(found.shape)
            torch.testing.assert_close(found.variance, chosen)


def test_wrong_arguments_are_refused_as_torch_does():
    x = value(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        F.max_pool2d(x, 2, padding=2)
    with pytest.raises(IndexError, match="Dimension out of range"):
        x.amax(7)
    with pytest.raises(RuntimeError, match="size"):
        F.max_pool2d(x, 9)


def test_networks_with_pooling_propagate():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    x = torch.randn(3, 1, 10, 10)
    ap2, ap1 = propagate(network, x, 0.3), propagate(network, x, mode="ap1")
    truth = propagate(network, x, 0.3, "sample", num_samples=2000)
    assert (ap2.loc - truth.loc).abs().mean() < 0.2 * (ap1.loc - truth.loc).abs().mean()

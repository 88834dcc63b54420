"""Full covariances: linear maps exactly, activations by the series of Price's theorem."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import nn
from torch.func import functional_call, vmap

from bnnzoo.moments import JointMoments, Moments, NoRuleError, options, propagate
from bnnzoo.moments.table import apply_elementwise

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


def joint(size=4, examples=3, scale=1.0):
    """Correlated Gaussians."""
    factor = draw(examples, size, size, seed=3) * scale
    return JointMoments.with_covariance(draw(examples, size, seed=4), factor @ factor.mT / size)


def power(x, n):
    """Squares and cubes, whose moments are polynomials."""
    if n == 2:
        return apply_elementwise(lambda m, v: (m**2 + v, 4 * m**2 * v + 2 * v**2), x)
    return apply_elementwise(lambda m, v: (m**3 + 3 * m * v, 9 * m**4 * v + 36 * m**2 * v**2 + 15 * v**3), x)


def outer(a, b):
    return a.unsqueeze(-1) * b.unsqueeze(-2)


AFFINE = {
    "dense": nn.Linear(16, 5),
    "dense, extra dimension": nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 3)),
    "convolution": nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2)),
    "normalization": nn.BatchNorm1d(16).eval(),
    "scale": nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Flatten(0, -1), nn.Unflatten(0, (3, 16))),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_maps_are_exact(name):
    layer, x = AFFINE[name].double(), joint(16)
    found = layer(x)
    basis = torch.eye(16, dtype=DOUBLE)
    rows = layer.eval()(torch.cat([torch.zeros(2, 16, dtype=DOUBLE), basis]))[:18] if name != "scale" else None
    matrix = basis if rows is None else (rows[2:] - rows[:1]).flatten(1).T
    close(found.covariance, matrix @ x.covariance @ matrix.T)
    close(found.variance.flatten(1), found.covariance.diagonal(dim1=1, dim2=2))


def test_independent_elements_become_dependent():
    layer = nn.Linear(4, 6).double()
    x, v = draw(5, 4), draw(5, 4, seed=1).square()
    found = propagate(nn.Sequential(layer, nn.Linear(6, 2).double()), x, v, covariance="full")
    assert found.covariance.shape == (5, 2, 2)
    hidden = layer(JointMoments(x, v))
    close(hidden.covariance, (layer.weight * v.unsqueeze(1)) @ layer.weight.T)
    close(JointMoments(x, v).covariance, torch.diag_embed(v))


@pytest.mark.parametrize(("n", "order"), [(2, 2), (2, 3), (3, 3)])
def test_the_series_of_a_polynomial_ends(n, order):
    x = joint()
    with options(order=order):
        found = power(x, n)
    m, c, v = x.loc, x.covariance, x.variance
    exact = 4 * c * outer(m, m) + 2 * c**2
    if n == 3:
        square = m**2 + v
        exact = 9 * c * outer(square, square) + 18 * c**2 * outer(m, m) + 6 * c**3
    close(found.covariance, exact)
    with options(order=1):
        first = power(x, n)
    close(first.variance, exact.diagonal(dim1=1, dim2=2))  # exact whatever the order
    assert (first.covariance - exact).abs().max() > 0.1


def test_rectified_pairs_against_quadrature():
    m, c = np.array([0.3, -0.4]), np.array([[1.0, 0.6], [0.6, 0.8]])
    inverse, root = np.linalg.inv(c), 2 * math.pi * math.sqrt(np.linalg.det(c))

    def integrand(b, a):
        d = np.array([a, b]) - m
        return a * b * math.exp(-0.5 * d @ inverse @ d) / root

    product, _ = integrate.dblquad(integrand, 0, 9, 0, 9, epsabs=1e-9)
    errors = []
    for order in (1, 2, 3):
        with options(order=order):
            y = F.relu(JointMoments.with_covariance(torch.tensor(m).view(1, 2), torch.tensor(c).unsqueeze(0)))
        exact = product - (y.loc[0, 0] * y.loc[0, 1]).item()
        errors.append(abs(y.covariance[0, 0, 1].item() / exact - 1))
    assert 0.1 < errors[0] < 0.2
    assert max(errors[1:]) < 0.005


@pytest.mark.parametrize("order", [1, 2, 3])
def test_covariances_stay_positive_semi_definite(order):
    x = joint(8, 20, scale=2.0)
    with options(order=order):
        found = F.relu(x).covariance
    diagonal = F.relu(Moments(x.loc, x.variance)).variance
    close(found.diagonal(dim1=1, dim2=2), diagonal)
    close(found, found.mT)
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_noise_of_units_and_of_channels():
    x = joint(12)
    own = F.dropout(x, 0.2)
    square = outer(x.loc, x.loc) + x.covariance
    close(own.covariance, x.covariance + 0.25 * torch.diag_embed(square.diagonal(dim1=1, dim2=2)))
    shared = F.dropout2d(x.view(3, 3, 2, 2), 0.2)
    same = torch.block_diag(*[torch.ones(4, 4, dtype=DOUBLE)] * 3)
    close(shared.covariance, x.covariance + 0.25 * same * square)
    bias = Moments(torch.zeros(3, dtype=DOUBLE), torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))
    kernel = torch.ones(3, 1, 1, 1, dtype=DOUBLE)
    shifted = F.conv2d(x.view(3, 3, 2, 2), kernel, bias, groups=3)
    blocks = torch.block_diag(*[torch.full((4, 4), each, dtype=DOUBLE) for each in (1.0, 2.0, 3.0)])
    close(shifted.covariance, x.covariance + blocks)
    start = F.dropout(JointMoments(x.loc), 0.2)
    close(start.covariance, torch.diag_embed(0.25 * x.loc.square()))


def test_random_dense_weights():
    layer, x = nn.Linear(4, 3).double(), joint()
    weights = {name: Moments(value.detach(), 0.1 + value.detach().square()) for name, value in layer.named_parameters()}
    weight, bias = weights["weight"], weights["bias"]
    own = (x.loc.square() + x.variance) @ weight.variance.T + bias.variance
    exact = weight.loc @ x.covariance @ weight.loc.T + torch.diag_embed(own)
    close(functional_call(layer, weights, (x,)).covariance, exact)


def test_random_scales_and_shifts_of_channels():
    x, factor = joint(12), Moments(draw(3, 1, 1, seed=1), draw(3, 1, 1, seed=2).square())
    shifted = x.view(3, 3, 2, 2) + factor
    same = torch.block_diag(*[torch.full((4, 4), each, dtype=DOUBLE) for each in factor.variance.flatten()])
    close(shifted.covariance, x.covariance + same)
    scaled = x.view(3, 3, 2, 2) * factor
    by = factor.loc.expand(3, 2, 2).flatten()
    exact = x.covariance * outer(by, by) + same * (outer(x.loc, x.loc) + x.covariance)
    close(scaled.variance.flatten(1), exact.diagonal(dim1=1, dim2=2))
    first_order = x.covariance * outer(by, by) + same * outer(x.loc, x.loc)
    rest = torch.diag_embed((exact - first_order).diagonal(dim1=1, dim2=2))
    close(scaled.covariance, first_order + rest)


def test_deep_network_against_sampling():
    """A network whose hidden units are strongly dependent; the diagonal way is 15 times as far off."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(20, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 3)
    )
    x, draws = torch.randn(4, 20), 30_000
    with torch.no_grad():
        rows = x.repeat_interleave(draws, 0)
        y = network(rows + 0.3 * torch.randn_like(rows)).view(4, draws, 3).double()
        found = {
            order: propagate(network.eval(), x, 0.09, covariance="full", order=order).covariance for order in (1, 3)
        }
        diagonal = propagate(network, x, 0.09).variance
    centered = y - y.mean(1, keepdim=True)
    exact = centered.mT @ centered / draws
    scale = exact.diagonal(dim1=1, dim2=2).sqrt()

    def distance(other):
        return ((other - exact) / outer(scale, scale)).square().mean().sqrt()

    assert distance(found[1]) < 0.04
    assert distance(found[3]) < 0.03  # standard errors: 0.006
    assert distance(torch.diag_embed(diagonal)) > 0.1


def test_chains_are_mapped_and_covariances_differentiable():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)).double()
    chains = {name: draw(2, *value.shape, seed=5) for name, value in network.named_parameters()}
    x = draw(2, 3)

    def one(weights):
        return functional_call(network, weights, (JointMoments(x, 0.5),)).covariance

    mapped = vmap(one)(chains)
    for chain in range(2):
        close(mapped[chain], one({name: value[chain] for name, value in chains.items()}))
    names, values = zip(*chains.items(), strict=True)
    weights = tuple(value[0].requires_grad_() for value in values)
    assert torch.autograd.gradcheck(lambda *given: one(dict(zip(names, given, strict=True))), weights)


@pytest.mark.parametrize(
    "function",
    [lambda x: x + F.relu(x), lambda x: F.max_pool1d(x.unsqueeze(1), 2), lambda x: x[:, :2] * x[:, 2:]],
    ids=["residual", "max pooling", "product"],
)
def test_two_random_values_that_meet(function):
    class Network(nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(NoRuleError, match=r"two random values meet in .* use covariance='sensitivity' \(in the net"):
        propagate(Network(), draw(2, 4), 1.0, covariance="full")


def test_the_same_value_may_meet_itself_in_an_affine_function():
    x = joint()
    close((x + x).covariance, 4 * x.covariance)


def test_users_mistakes():
    layer = nn.Conv1d(1, 2, 2).double()
    weights = {name: Moments(value.detach(), 0.1) for name, value in layer.named_parameters()}
    with pytest.raises(NoRuleError, match="covariance='full' has no rule for conv1d of random weights"):
        functional_call(layer, weights, (JointMoments(draw(2, 1, 5), 1.0),))
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, not 4"):
        propagate(nn.ReLU(), draw(2, 4), 1.0, covariance="full", order=4)

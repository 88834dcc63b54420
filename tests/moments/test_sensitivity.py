"""Sensitivities: covariances pulled back to the sources of noise, against closed forms and long sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap

from bnnzoo.moments import JointMoments, Moments, NoRuleError, TracedMoments, entering, propagate, units

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Function(nn.Module):
    """A network that is a function of its input and of one linear map."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(draw(*shape, seed=7)) if shape else None

    def forward(self, x):
        return self.function(x) if self.weight is None else self.function(x, self.weight)


def sensitivity(function, mean, variance=None, *shape):
    return propagate(Function(function, *shape), mean, variance, covariance="sensitivity")


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


def relu_slope(mean, variance):
    return torch.special.ndtr(mean / variance.sqrt())


def test_linear_networks_are_exact():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x, v = draw(5, 4), draw(5, 4, seed=1).square()
    found = propagate(network, x, v, covariance="sensitivity")
    w = network[1].weight @ network[0].weight
    close(found.loc, network(x))
    close(found.covariance, (w * v.unsqueeze(1)) @ w.T)
    close(found.variance, found.covariance.diagonal(dim1=1, dim2=2))
    diagonal = propagate(network, x, v)
    close(found.loc, diagonal.loc)
    assert (diagonal.variance / found.variance - 1).abs().max() > 0.3  # which takes the hidden units for independent


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (lambda x: x + x, 4.0),
        (lambda x: x - x, 0.0),
        (lambda x: 2 * x - (x - 1) * 3, 1.0),
        (lambda x: torch.cat([x, x], 1)[:, 1:4] + x[:, :3], None),
        (lambda x: x.sum(1, keepdim=True) - x.mean(1, keepdim=True), None),
    ],
)
def test_a_value_that_is_met_again_is_the_same_value(function, factor):
    x, v = draw(2, 3), draw(2, 3, seed=1).square()
    found = sensitivity(function, x, v)
    close(found.loc, function(x))
    jacobian = torch.stack([jacrev(lambda row: function(row.unsqueeze(0)).squeeze(0))(each) for each in x])
    close(found.covariance, (jacobian * v.unsqueeze(1)) @ jacobian.mT)
    if factor is not None:
        close(found.variance, factor * v)


def test_a_residual_block_of_a_linear_map():
    x, v = draw(2, 3), draw(2, 3, seed=1).square()
    found = sensitivity(lambda x, w: x - F.linear(x, w), x, v, 3, 3)
    block = torch.eye(3, dtype=DOUBLE) - draw(3, 3, seed=7)
    close(found.covariance, (block * v.unsqueeze(1)) @ block.T)
    diagonal = propagate(Function(lambda x, w: x - F.linear(x, w), 3, 3), x, v)
    assert (diagonal.variance / found.variance - 1).abs().max() > 0.3


def test_a_function_and_its_own_argument_by_steins_lemma():
    x, v = draw(3, 4), draw(3, 4, seed=1).square()
    found = sensitivity(lambda x: torch.stack([F.relu(x), x], -1), x, v).covariance.view(3, 4, 2, 4, 2)
    diagonal = propagate(nn.ReLU(), x, v)
    for unit in range(4):
        own = found[:, unit, :, unit]
        close(own[:, 0, 0], diagonal.variance[:, unit])
        close(own[:, 1, 1], v[:, unit])
        close(own[:, 0, 1], relu_slope(x, v)[:, unit] * v[:, unit])  # Cov(f(X), X) = E f'(X) Var X
        assert not found[:, unit, :, (unit + 1) % 4].any()


def test_independent_units_behind_an_activation_are_exact():
    x, v = draw(3, 4), draw(3, 4, seed=1).square()
    found = sensitivity(lambda x, w: F.linear(F.relu(x), w), x, v, 5, 4)
    hidden, w = propagate(nn.ReLU(), x, v), draw(5, 4, seed=7)
    close(found.covariance, (w * hidden.variance.unsqueeze(1)) @ w.T)


def test_a_product_and_one_of_its_factors():
    x, v = draw(3, 4), draw(3, 4, seed=1).square()

    def function(x):
        a, b = x.chunk(2, 1)
        return torch.stack([a * b, a, b], -1)

    found = sensitivity(function, x, v).covariance.view(3, 2, 3, 2, 3)
    (a, b), (s, t) = x.chunk(2, 1), v.chunk(2, 1)
    for unit in range(2):
        own = found[:, unit, :, unit]
        close(own[:, 0, 0], (s * t + a**2 * t + b**2 * s)[:, unit])
        close(own[:, 0, 1], (b * s)[:, unit])
        close(own[:, 0, 2], (a * t)[:, unit])
        close(own[:, 1, 2], torch.zeros(3, dtype=DOUBLE))


def test_dropout_of_random_units():
    x, v = draw(3, 4), draw(3, 4, seed=1).square()
    found = sensitivity(lambda x, w: F.linear(F.dropout(x, 0.3), w), x, v, 5, 4)
    w, spread = draw(5, 4, seed=7), v + 0.3 / 0.7 * (x.square() + v)
    close(found.covariance, (w * spread.unsqueeze(1)) @ w.T)


def test_dropout_of_whole_channels_is_shared_by_their_positions():
    x = draw(3, 4, 5, 5).abs()
    found = sensitivity(lambda x, w: F.linear(F.dropout2d(x, 0.2).flatten(1), w), x, None, 2, 100)
    w = draw(2, 100, seed=7).view(2, 4, 25)
    channels = torch.einsum("kcp,ncp->nkc", w, x.flatten(2))
    close(found.covariance, 0.25 * channels @ channels.mT)
    diagonal = propagate(Function(lambda x, w: F.linear(F.dropout2d(x, 0.2).flatten(1), w), 2, 100), x)
    positive = propagate(Function(lambda x: F.dropout2d(x, 0.2).mean((1, 2, 3)).unsqueeze(1)), x)
    right = sensitivity(lambda x: F.dropout2d(x, 0.2).mean((1, 2, 3)).unsqueeze(1), x)
    assert (diagonal.variance / found.variance - 1).abs().max() > 0.3
    assert (positive.variance < 0.1 * right.variance).all()  # 25 positions of a channel count as independent


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(2, 4, 3, padding=1), (2, 8)),
    "conv2d": (nn.Conv2d(2, 4, 3, stride=2), (2, 7, 7)),
    "groups": (nn.Conv2d(4, 4, 3, groups=2), (4, 5, 5)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 3, 3)),
    "dense, extra dimension": (nn.Linear(4, 3), (5, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_noise_of_weights_is_shared_by_positions(name):
    layer, shape = CONVOLUTIONS[name]
    layer = layer.double()
    x = draw(3, *shape)
    size = layer(x)[0].numel()
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(size, 2).double())
    values = {key: value.detach() for key, value in network.named_parameters()}
    random = {key: Moments(values[key], values[key].square() + 0.1) for key in ("0.weight", "0.bias")}
    found = functional_call(network, {**values, **random}, (TracedMoments(x),)).resolved()

    def output(weights, row):
        return functional_call(network, {**values, **weights}, (row.unsqueeze(0),)).squeeze(0)

    expected = torch.zeros(3, 2, 2, dtype=DOUBLE)
    for key, weight in random.items():
        jacobian = torch.stack([jacrev(output)({key: weight.loc}, row)[key].flatten(1) for row in x])
        expected += (jacobian * weight.variance.flatten()) @ jacobian.mT
    close(found.covariance, expected)
    close(found.loc, network(x))
    diagonal = functional_call(network, {**values, **random}, (Moments(x),))
    assert (diagonal.variance / found.variance - 1).abs().max() > 0.1


def test_dropout_of_whole_channels_of_random_values():
    x, v = draw(3, 2, 2, 2), draw(3, 2, 2, 2, seed=1).square()
    found = sensitivity(lambda x: F.dropout2d(x, 0.2).flatten(1), x, v)
    rows, spread = x.flatten(1), v.flatten(1)
    same = torch.block_diag(torch.ones(4, 4, dtype=DOUBLE), torch.ones(4, 4, dtype=DOUBLE))
    exact = torch.diag_embed(1.25 * spread) + 0.25 * same * rows.unsqueeze(1) * rows.unsqueeze(2)
    close(found.covariance, exact)


def test_noise_of_weights_and_of_the_input_of_a_convolution():
    layer = nn.Conv1d(1, 2, 3, bias=False).double()
    weight = Moments(layer.weight.detach(), layer.weight.detach().square() + 0.1)
    x, v = draw(3, 1, 5), draw(3, 1, 5, seed=1).square()
    found = F.conv1d(TracedMoments(x, v), weight)
    by_weight = torch.stack([jacrev(F.conv1d, 1)(row, weight.loc).flatten(2).flatten(0, 1) for row in x])
    by_input = jacrev(lambda row: F.conv1d(row, weight.loc))(x[0]).flatten(2).flatten(0, 1)
    exact = (by_weight * weight.variance.flatten()) @ by_weight.mT + (by_input * v) @ by_input.T
    exact += torch.diag_embed(F.conv1d(v, weight.variance).flatten(1))  # δw δx of two outputs have no factor in common
    close(found.covariance, exact)


def test_noise_of_dense_weights_and_of_the_input_add_up():
    layer = nn.Linear(3, 4).double()
    w = {key: Moments(value.detach(), 0.1 + value.detach().square()) for key, value in layer.named_parameters()}
    x, v = draw(5, 3), draw(5, 3, seed=1).square()
    found = functional_call(layer, w, (TracedMoments(x, v),)).resolved()
    weight, bias = w["weight"], w["bias"]
    own = (x.square() + v) @ weight.variance.T + bias.variance
    close(found.covariance, (weight.loc * v.unsqueeze(1)) @ weight.loc.T + torch.diag_embed(own))


def test_random_weights_that_scale_a_channel_are_shared_by_its_positions():
    x, scale = draw(2, 3, 4), Moments(draw(3, 1, seed=1), draw(3, 1, seed=2).square())
    found = sensitivity(lambda x: (x * scale).sum((1, 2)).unsqueeze(1), x)
    close(found.covariance.view(2), (x.sum(2).square() * scale.variance.view(3)).sum(1))
    shift = Moments(scale.loc, scale.variance)
    found = sensitivity(lambda x: (F.relu(x) + shift).sum((1, 2)).unsqueeze(1), x)
    close(found.covariance.view(2), 16 * scale.variance.sum().expand(2))


def test_stochastic_units_are_sources():
    x = draw(3, 4)
    network = nn.Sequential(units.LogisticBernoulli(), nn.Linear(4, 2)).double()
    found = propagate(network, x, covariance="sensitivity")
    p, w = torch.sigmoid(x), network[1].weight
    close(found.covariance, (w * (p * (1 - p)).unsqueeze(1)) @ w.T, 1e-6)


def sampled(network, x, std, draws):
    """Covariance over draws of all noise, [N, K, K]."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    network.train()
    rows = x.repeat_interleave(draws, 0)
    with torch.no_grad():
        y = network(rows + std * torch.randn(rows.shape, generator=generator)).view(len(x), draws, -1).double()
    centered = y - y.mean(1, keepdim=True)
    return centered.mT @ centered / draws


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        x = x + 0  # not to write over the caller's
        x += self.inner(x)
        return x


def deep(kind):
    torch.manual_seed(0)
    if kind == "dropout":
        hidden = [nn.Linear(20, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 40), nn.ReLU(inplace=True)]
        return nn.Sequential(*hidden, nn.Dropout(0.2), nn.Linear(40, 3)), torch.randn(4, 20)
    if kind == "residual":
        inner = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20))
        return nn.Sequential(Residual(inner), nn.ReLU(), nn.Linear(20, 3)), torch.randn(4, 20)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2), nn.Conv2d(6, 6, 3), nn.ReLU()]
    layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(*layers), torch.randn(4, 1, 10, 10)


@pytest.mark.parametrize("kind", ["dropout", "residual", "pooling"])
def test_deep_networks_against_sampling(kind):
    """An approximation, within a bound that the diagonal variances break."""
    network, x = deep(kind)
    covariance = sampled(network, x, 0.3, 20_000)  # its standard errors: 0.008 of what it is measured in below
    with torch.no_grad():
        found = propagate(network, x, 0.09, covariance="sensitivity")
        diagonal = propagate(network, x, 0.09)
    limit = {"dropout": 0.04, "residual": 0.02, "pooling": 0.13}[kind]

    def distance(other):
        scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
        return ((other - covariance) / (scale.unsqueeze(1) * scale.unsqueeze(2))).square().mean().sqrt()

    assert distance(found.covariance) < limit
    assert distance(torch.diag_embed(diagonal.variance)) > 3 * limit
    torch.testing.assert_close(found.loc, diagonal.loc)
    assert torch.linalg.eigvalsh(found.covariance).min() > 0


def test_operations_in_place_do_not_cut_the_tape():
    x, v = draw(2, 3), draw(2, 3, seed=1).square()

    def in_place(x, w):
        y = F.linear(x, w)
        F.relu_(y)
        y += x
        return y.mul_(2)

    def out_of_place(x, w):
        return 2 * (F.relu(F.linear(x, w)) + x)

    expected = sensitivity(out_of_place, x, v, 3, 3)
    close(sensitivity(in_place, x, v, 3, 3).covariance, expected.covariance)


def test_chains_are_mapped():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(18, 2)).double()
    x = draw(3, 1, 5, 5)
    chains = {name: draw(2, *value.shape, seed=5) for name, value in network.named_parameters()}

    def one(means):
        weights = {name: Moments(mean, 0.01 * mean.square()) for name, mean in means.items()}
        found = functional_call(network, weights, (entering(x, 0.1, "sensitivity"),)).resolved()
        return found.loc, found.covariance

    loc, covariance = vmap(one)(chains)
    for chain in range(2):
        expected = one({name: value[chain] for name, value in chains.items()})
        close(loc[chain], expected[0])
        close(covariance[chain], expected[1])


def test_covariances_are_differentiable():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    names, values = zip(*network.named_parameters(), strict=True)

    def covariance(*weights):
        given = dict(zip(names, weights, strict=True))
        return functional_call(network, given, (TracedMoments(draw(2, 3), 0.5),)).covariance

    assert torch.autograd.gradcheck(covariance, tuple(value.detach().requires_grad_() for value in values))


def test_certain_outputs_have_no_covariance():
    found = sensitivity(lambda x: x * 2, draw(2, 3))
    assert isinstance(found, JointMoments)
    assert not found.covariance.any()
    assert not found.variance.any()
    assert not sensitivity(lambda x: torch.zeros(2, 3), draw(2, 3)).covariance.any()


def test_outputs_of_any_shape():
    x, v = draw(2, 3, 4), draw(2, 3, 4, seed=1).square()
    found = sensitivity(lambda x: x.mT, x, v)
    assert found.covariance.shape == (2, 12, 12)
    close(found.variance, v.mT)
    one = sensitivity(lambda x: x.sum((1, 2)), x, v)
    assert one.covariance.shape == (2, 1, 1)
    close(one.variance, v.sum((1, 2)))


def test_nothing_underflows_or_overflows_in_single_precision():
    x = torch.tensor([[-30.0, -3.0, 0.0, 3.0, 1e4]])
    for variance in (0.0, 1e-12, 1.0, 1e6):
        found = sensitivity(lambda x: F.relu(x), x, variance)
        assert found.covariance.isfinite().all()
        assert (found.variance >= 0).all()
        torch.testing.assert_close(found.variance, propagate(nn.ReLU(), x, variance).variance, rtol=1e-4, atol=1e-12)


def test_users_mistakes():
    x = draw(2, 3)
    with pytest.raises(ValueError, match=r"covariance must be one of 'diagonal', 'sensitivity', 'full', not 'all'"):
        propagate(nn.Identity(), x, covariance="all")
    with pytest.raises(ValueError, match=r"covariance must be one of .* not 'all'"):
        entering(x, None, "all")
    with pytest.raises(ValueError, match="goes with mode='ap2', not 'sample'"):
        propagate(nn.Identity(), x, mode="sample", covariance="full")
    with pytest.raises(ValueError, match="needs a batch dimension"):
        propagate(nn.Identity(), torch.zeros(()), covariance="sensitivity")
    with pytest.raises(AttributeError, match="covariance='sensitivity'"):
        _ = propagate(nn.Identity(), x, 1.0).covariance
    with pytest.raises(ValueError, match=r"shape \[6\].* first dimension"):
        sensitivity(lambda x: F.dropout(x.flatten()).view(2, 3), x, 1.0)
    with pytest.raises(NoRuleError, match="covariance was lost"):
        sensitivity(lambda x: Moments(x.loc, x.variance), x, 1.0)


def test_what_a_pass_remembers_is_an_elements_gate():
    """The mean's slope at the variance: of the sign of X, `2φ(a)/σ`, which no derivative at the mean could tell."""
    x = TracedMoments(torch.tensor([[0.5]], dtype=DOUBLE), 0.25)
    step = units.Heaviside()(x)
    both = torch.cat([step, x], 1).covariance
    close(both[0, 0, 1], torch.tensor(math.exp(-0.5) / math.sqrt(2 * math.pi) / 0.5 * 0.25, dtype=DOUBLE), 1e-8)

"""Linear layers, convolutions, matrix products, dropout and normalization, of certain and of random weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn.utils.parametrizations import weight_norm

from bnnzoo.moments import Moments, NoRuleError
from bnnzoo.moments.sensitivity import TracedMoments
from tests.affine_maps import assert_affine, random_tensor
from tests.statistical import assert_mean

DOUBLE = {"dtype": torch.float64}


def of(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer in double precision with parameters, and buffers, of a seed, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in layer.double().eval().state_dict().items():
        if value.is_floating_point():
            value.normal_(generator=generator)
        if name.endswith("running_var"):
            value.abs_().add_(0.1)
    return layer.requires_grad_(False)


LAYERS = {
    "Linear": (nn.Linear(3, 4), (2, 3)),
    "Linear, no batch": (nn.Linear(3, 4, bias=False), (3,)),
    "Linear, sequences": (nn.Linear(3, 2), (2, 3, 3)),
    "Conv1d": (nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2), (2, 4, 5)),
    "Conv2d": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 2, 5, 4)),
    "Conv2d, no batch": (nn.Conv2d(2, 3, 2, bias=False), (2, 3, 3)),
    "Conv2d, same": (nn.Conv2d(2, 2, 3, padding="same", groups=2), (1, 2, 4, 3)),
    "Conv2d, circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 4, 3)),
    "Conv3d": (nn.Conv3d(1, 2, 2), (1, 1, 3, 2, 3)),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1, groups=2), (2, 2, 3)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1), (1, 2, 3, 3)),
    "ConvTranspose3d": (nn.ConvTranspose3d(1, 2, 2, dilation=2), (1, 1, 2, 2, 2)),
    "BatchNorm1d": (nn.BatchNorm1d(3), (2, 3)),
    "BatchNorm1d, sequences": (nn.BatchNorm1d(3), (2, 3, 4)),
    "BatchNorm2d": (nn.BatchNorm2d(3), (2, 3, 2, 2)),
    "BatchNorm2d, no weights": (nn.BatchNorm2d(3, affine=False), (2, 3, 2, 2)),
    "InstanceNorm2d, running statistics": (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (2, 3, 2, 2)),
    "weight norm": (weight_norm(nn.Linear(3, 4)), (2, 3)),
    "Dropout, in eval mode": (nn.Dropout(), (2, 3)),
}

MATRIX = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), **DOUBLE)

CUBE = torch.arange(24.0, **DOUBLE).view(2, 4, 3)

# of one tensor [2, 3, 4]
PRODUCTS = {
    "x @ W": lambda x: x @ MATRIX.T,
    "W @ x": lambda x: MATRIX.T @ x,
    "W @ vector": lambda x: MATRIX @ x[0, 0],
    "matmul": lambda x: torch.matmul(x, MATRIX[0]),
    "mm": lambda x: torch.mm(x[0], MATRIX.T),
    "bmm": lambda x: x.bmm(MATRIX.T.expand(2, 4, 3)),
    "mv": lambda x: MATRIX.mv(x[1, 2]),
    "dot": lambda x: torch.dot(x[0, 0], MATRIX[0]),
    "outer": lambda x: torch.outer(MATRIX[0], x[0, 0]),
    "addmm": lambda x: torch.addmm(MATRIX[:, :3], x[0], MATRIX.T, beta=2, alpha=3),
    "baddbmm": lambda x: torch.baddbmm(x[:, :, :3], MATRIX.expand(2, 3, 4), MATRIX.T.expand(2, 4, 3)),
    "tensordot": lambda x: torch.tensordot(x, MATRIX, [[1, 2], [0, 1]]),
    "tensordot over one": lambda x: torch.tensordot(MATRIX.T, x[0], 1),
    "einsum": lambda x: torch.einsum("bij,kj->bki", x, MATRIX),
    "einsum, summed over": lambda x: torch.einsum("bij,kj->b", x, MATRIX),
    "einsum of one": lambda x: torch.einsum("bij->jb", x),
    "einsum, implicit": lambda x: torch.einsum("bij,ij", x, MATRIX),
    "einsum, three": lambda x: torch.einsum("...i,ki,kj->...j", x, MATRIX, MATRIX),
    "bilinear": lambda x: F.bilinear(x[:, 0], MATRIX[:2, :3], CUBE, CUBE[0, 0, :2]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_certain_weights(name):
    layer, shape = LAYERS[name]
    assert_affine(of(layer), random_tensor(*shape))


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_certain_factors(name):
    assert_affine(PRODUCTS[name], random_tensor(2, 3, 4))


def draws_of(value: Moments, generator: torch.Generator, count: int) -> Tensor:
    return value.loc + value.scale * torch.randn(count, *value.shape, generator=generator, **DOUBLE)


def assert_by_draws(op, *values: Moments, count: int = 30_000) -> None:
    """`op(*values)` has the mean and the variance of op at draws of independent Gaussians."""
    generator = torch.Generator().manual_seed(5)
    found = op(*values)
    draws = torch.func.vmap(op)(*(draws_of(value, generator, count) for value in values))
    assert_mean(draws, found.loc, 1000, "mean")
    assert_mean((draws - found.loc).square(), found.variance, 1000, "variance")


def assert_multilinear(op, *values: Moments) -> None:
    """`op(*values)` has the moments of a function that is affine in each of two factors, and of third parts alone."""
    sizes = [value.numel() for value in values]
    variance = torch.cat([value.variance.flatten() for value in values])

    def at(x: Tensor) -> Tensor:
        parts = [part.view(value.shape) for part, value in zip(x.split(sizes), values, strict=True)]
        return op(*parts).flatten()

    # differences are derivatives: the function is linear in each element
    x = torch.cat([value.loc.flatten() for value in values])
    units = torch.eye(len(x), **DOUBLE)
    start = at(x)
    slopes = [at(x + unit) - start for unit in units]
    expected = sum(v * slope.square() for v, slope in zip(variance, slopes, strict=True))
    for i in range(len(x)):
        for j in range(i):
            mixed = at(x + units[i] + units[j]) - start - slopes[i] - slopes[j]
            expected = expected + variance[i] * variance[j] * mixed.square()
    found = op(*values)
    torch.testing.assert_close(found.loc.flatten(), start)
    torch.testing.assert_close(found.variance.flatten(), expected)


RANDOM = {
    "linear": (F.linear, (2, 3), (4, 3), (4,)),
    "linear, sequences": (F.linear, (2, 2, 3), (2, 3)),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 2, 1), (2, 2, 5), (3, 2, 3), (3,)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, groups=2), (1, 2, 3, 3), (4, 1, 2, 2), (4,)),
    "conv_transpose2d": (lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), (1, 2, 2, 2), (2, 3, 2, 2), (3,)),
    "matmul": (torch.matmul, (2, 3), (3, 4)),
    "matmul, batches": (torch.matmul, (3,), (2, 3, 2)),
    "bmm": (torch.bmm, (2, 1, 3), (2, 3, 2)),
    "mv": (torch.mv, (2, 3), (3,)),
    "dot": (torch.dot, (3,), (3,)),
    "outer": (torch.outer, (2,), (3,)),
    "addmm": (torch.addmm, (2, 2), (2, 3), (3, 2)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), (2, 3), (3, 2)),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (2, 2, 3), (2, 3, 2)),
    "einsum, summed over": (lambda a, b: torch.einsum("ij,jk->", a, b), (2, 3), (3, 2)),
    "einsum with a certain factor": (lambda a, b: torch.einsum("i,ik,k->k", a, MATRIX, b), (3,), (4,)),
    "bilinear": (lambda a, b: F.bilinear(a, b, MATRIX.view(2, 3, 2)), (2, 3), (2, 2)),
    "batch norm": (
        lambda x, w, b: F.batch_norm(x, MATRIX[:, 0], MATRIX[:, 1] ** 2, w, b),
        (2, 3, 2),
        (3,),
        (3,),
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_factors(name):
    op, *shapes = RANDOM[name]
    assert_multilinear(op, *(random_tensor(*shape, seed=k) for k, shape in enumerate(shapes)))


@pytest.mark.parametrize("name", RANDOM)
def test_random_factors_beside_certain_ones(name):
    # each factor random in turn, the others moments without variance or plain tensors
    op, *shapes = RANDOM[name]
    values = [random_tensor(*shape, seed=k) for k, shape in enumerate(shapes)]
    for k in range(len(values)):
        for certain in (Moments, lambda x: x):
            given = [value if j == k else certain(value.loc) for j, value in enumerate(values)]
            found = op(*given)
            own = jacobian(
                lambda x, k=k: op(*(x if j == k else v.loc for j, v in enumerate(values))), values[k].loc
            ).flatten(found.dim())
            torch.testing.assert_close(found.variance, own.square() @ values[k].variance.flatten())


def test_einsum_of_three_random_factors():
    values = random_tensor(2, 3), random_tensor(3, 2, seed=1), random_tensor(2, 2, seed=2)
    assert_by_draws(lambda a, b, c: torch.einsum("ij,jk,ik->ik", a, b, c), *values)


def test_einsum_refuses_what_it_does_not_know():
    x = random_tensor(2, 2)
    with pytest.raises(NoRuleError, match="occurs twice in one operand: 'ii,jk'"):
        torch.einsum("ii,jk", x, x)


def test_einsum_takes_lists_of_indices():
    x, y = random_tensor(2, 3), random_tensor(3, 2, seed=1)
    torch.testing.assert_close(torch.einsum(x, [0, 1], y, [1, 2], [0, 2]).variance, (x @ y).variance)


def test_borders_that_repeat_elements_count_as_independent():
    x, layer = random_tensor(1, 2, 4, 3), of(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"))
    expected = F.conv2d(F.pad(x.variance, (1, 1, 1, 1), "reflect"), layer.weight.square())
    torch.testing.assert_close(layer(x).variance, expected)


def test_products_of_two_traced_values():
    # neither is a weight: both are pulled back to their sources
    x, y = random_tensor(2, 3, 4), random_tensor(2, 4, 2, seed=1)
    found = torch.matmul(TracedMoments(x.loc, x.variance), TracedMoments(y.loc, y.variance))
    plain = torch.matmul(x, y)
    torch.testing.assert_close(found.loc, plain.loc)
    torch.testing.assert_close(found.variance, plain.variance)
    torch.testing.assert_close(found.covariance.diagonal(dim1=1, dim2=2).view(2, 3, 2), plain.variance)


def test_a_vector_with_itself():
    x = random_tensor(4)
    found = torch.dot(x, x)
    m, v = x.loc, x.variance
    torch.testing.assert_close(found.loc, (m**2 + v).sum())
    torch.testing.assert_close(found.variance, (2 * v**2 + 4 * m**2 * v).sum())


def test_a_random_weight_may_be_normalized():
    direction, length = random_tensor(4, 3).loc, random_tensor(4, 1, seed=2)
    weight = torch._weight_norm(direction, length.loc, 0)
    layer = of(nn.Linear(3, 4))
    x = random_tensor(2, 3, seed=1)
    torch.testing.assert_close(F.linear(x, weight, layer.bias).variance, x.variance @ weight.square().T)


def test_linear_layers_run_under_vmap_with_gradients():
    x, w, b = random_tensor(2, 3), random_tensor(4, 3, seed=1), random_tensor(4, seed=2)

    def both(*parts: Tensor) -> tuple[Tensor, Tensor]:
        result = F.linear(Moments(*parts[:2]), Moments(*parts[2:4]), Moments(*parts[4:]))
        result = torch.einsum("ni,oi->no", result, Moments(MATRIX, 0.5)).reshape(-1)
        return result.loc, result.variance

    parts = [each.clone().requires_grad_() for value in (x, w, b) for each in (value.loc, value.variance)]
    assert torch.autograd.gradcheck(both, parts)
    several = [torch.stack([part.detach(), 2 * part.detach()]) for part in parts]
    mapped = torch.func.vmap(both)(*several)
    for k in range(2):
        for found, expected in zip(mapped, both(*(part[k] for part in several)), strict=True):
            torch.testing.assert_close(found[k], expected)


# Dropout

DROPOUTS = {
    "dropout": (nn.Dropout(0.3), (2, 3, 2), (1, 1, 1)),
    "dropout1d": (nn.Dropout1d(0.3), (2, 3, 4), (1, 1, 4)),
    "dropout1d, no batch": (nn.Dropout1d(0.3), (3, 4), (1, 4)),
    "dropout2d": (nn.Dropout2d(0.6), (2, 3, 2, 2), (1, 1, 2, 2)),
    "dropout3d": (nn.Dropout3d(0.6), (2, 2, 1, 2, 2), (1, 1, 1, 2, 2)),
    "dropout3d, no batch": (nn.Dropout3d(0.6), (3, 1, 2, 2), (1, 1, 2, 2)),
    "alpha_dropout": (nn.AlphaDropout(0.3), (2, 3), (1, 1)),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout(0.4), (2, 3, 2, 2), (1, 1, 2, 2)),
    "F.dropout": (lambda x: F.dropout(x, 0.2), (4,), (1,)),
    "torch.dropout": (lambda x: torch.dropout(x, 0.2, True), (4,), (1,)),
}


class Spying(Moments):
    """Moments that record the shape of the noise that they meet."""

    shapes: list = []  # noqa: RUF012

    def times_noise(self, variance, shape=None):
        Spying.shapes.append(list(self.shape if shape is None else shape))
        return super().times_noise(variance, shape)


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_has_the_moments_of_its_draws(name):
    dropout, shape, blocks = DROPOUTS[name]
    x = random_tensor(*shape)
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for value in (x, Moments(x.loc)):
            found = dropout(value)
            draws = torch.stack([dropout(draw) for draw in draws_of(value, generator, 4000)])
            assert_mean(draws, found.loc, 1000, "mean")
            assert_mean((draws - found.loc).square(), found.variance, 1000, "variance")
    Spying.shapes = []
    dropout(Spying(x.loc, x.variance))
    expected = [size if block == 1 else 1 for size, block in zip(shape, blocks, strict=True)]
    assert Spying.shapes == [expected], "what is drawn together is one noise"


def test_dropout_has_the_closed_form_of_the_paper():
    x = random_tensor(2, 3)
    found = F.dropout(x, 0.3)
    torch.testing.assert_close(found.loc, x.loc)
    torch.testing.assert_close(found.variance, (x.variance + 0.3 * x.loc**2) / 0.7)


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_active_in_training_only(name):
    dropout, shape, _ = DROPOUTS[name]
    if isinstance(dropout, nn.Module):
        assert type(dropout)(dropout.p).eval()(Moments(torch.ones(shape))).certain
        for p, expected in ((0.0, 1.0), (1.0, 0.0)):
            found = type(dropout)(p)(Moments(torch.ones(shape), 0.5))
            assert found.loc.eq(expected).all()
            assert found.variance.eq(0.5 * expected).all()


def test_noise_that_a_network_draws_itself():
    x = random_tensor(3, 2)
    for value in (x, Moments(x.loc)):
        torch.testing.assert_close((value + 2 * torch.randn_like(value)).variance, value.variance + 4)
        noisy = value + torch.rand_like(value)
        torch.testing.assert_close(noisy.loc, x.loc + 0.5)
        torch.testing.assert_close(noisy.variance, value.variance + 1 / 12)
    p = Moments(torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0.01, 0.25, 0.0]))
    for value in (p, Moments(p.loc)):
        drawn = torch.bernoulli(value)
        torch.testing.assert_close(drawn.loc, p.loc)
        torch.testing.assert_close(drawn.variance, p.loc * (1 - p.loc))
    with pytest.raises(NoRuleError, match=r"no rule for the operation .*poisson"):
        torch.poisson(Moments(torch.ones(3)))


# Normalization


def test_batch_normalization_by_the_batch_is_refused():
    x = random_tensor(4, 3)
    for layer in (nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3, track_running_stats=False).double().eval()):
        with pytest.raises(NoRuleError, match=r"call \.eval\(\)"):
            layer(x)
    with pytest.raises(NoRuleError, match=r"call \.eval\(\)"):
        nn.InstanceNorm1d(3, track_running_stats=True).double()(random_tensor(2, 3, 4))


NORMS = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (12,), w, b), (2, 12), (12,)),
    "layer_norm of two": (lambda x, w, b: F.layer_norm(x, (3, 4), w, b), (2, 3, 4), (3, 4)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (2, 4, 5), (4,)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (2, 3, 3, 4), (3,)),
    "rms_norm": (lambda x, w, b: F.rms_norm(x, (12,), w) + b, (2, 12), (12,)),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalization_by_an_example_is_linearized_for_small_variances(name):
    op, *shapes = NORMS[name]
    x, w, b = random_tensor(*shapes[0]), random_tensor(*shapes[1], seed=1).loc, random_tensor(*shapes[1], seed=2).loc
    small = Moments(x.loc, 1e-10 * x.variance)
    found = op(small, w, b)
    torch.testing.assert_close(found.loc, op(x.loc, w, b), rtol=1e-8, atol=1e-8)
    own = jacobian(lambda m: op(m, w, b), x.loc).flatten(x.dim())
    torch.testing.assert_close(found.variance, own.square() @ small.variance.flatten(), rtol=1e-6, atol=1e-20)
    assert op(Moments(x.loc), w, b).certain


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_normalization_of_large_variances_is_right_up_to_the_size_of_the_example(name):
    # even where all of the spread is noise, which a linearization by the means' own spread would blow up
    op = {"layer_norm": lambda x: F.layer_norm(x, (200,)), "rms_norm": lambda x: F.rms_norm(x, (200,))}[name]
    x = Moments(0.1 * random_tensor(1, 200).loc, 1 + random_tensor(1, 200).variance)
    found = op(x)
    draws = op(draws_of(x, torch.Generator().manual_seed(3), 20_000))
    deviation = (draws.var(0) / found.variance).log().abs()
    assert deviation.mean() < 3 / 200 + math.sqrt(2 / 20_000)
    assert (draws.mean(0) - found.loc).abs().mean() < 3 / 200 * draws.std() + 1 / math.sqrt(20_000)


@pytest.mark.parametrize("size", [2, 5])
def test_normalization_divides_by_the_expected_spread_of_the_example(size):
    x = Moments(random_tensor(size).loc, 1 + random_tensor(size).variance)
    roots = (x.loc - x.loc.mean()) / F.layer_norm(x, (size,), eps=0.0).loc
    spreads = draws_of(x, torch.Generator().manual_seed(4), 20_000).var(-1, correction=0)
    assert_mean(spreads.unsqueeze(-1).expand(-1, size), roots.square(), 2 * size)


def test_random_weights_of_a_normalization():
    x, w, b = random_tensor(2, 12), random_tensor(12, seed=1), random_tensor(12, seed=2)
    z = F.layer_norm(x, (12,))
    expected = z * w + b
    found = F.layer_norm(x, (12,), w, b)
    torch.testing.assert_close(found.loc, expected.loc)
    torch.testing.assert_close(found.variance, expected.variance)
    certain = F.layer_norm(x.loc, (12,), w, b)
    plain = F.layer_norm(x.loc, (12,))
    torch.testing.assert_close(certain.loc, plain * w.loc + b.loc)
    torch.testing.assert_close(certain.variance, plain.square() * w.variance + b.variance)

"""Sums, products and averages: affine ones exactly, products of random values by closed forms and Monte Carlo."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.moments import Moments, NoRuleError
from tests.affine_maps import assert_affine, random_tensor
from tests.statistical import assert_mean

PLAIN = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COLUMN = PLAIN[:, :1]

# of one tensor [2, 3, 4]
ONE = {
    "x + 1": lambda x: x + 1,
    "1 + x": lambda x: 1 + x,
    "x + tensor": lambda x: x + PLAIN,
    "tensor + x": lambda x: PLAIN + x,
    "tensor + x, broadcast": lambda x: COLUMN + x[0, :1],
    "torch.add": lambda x: torch.add(PLAIN, x, alpha=-3),
    "x - 1": lambda x: x - 1,
    "1 - x": lambda x: 1 - x,
    "tensor - x": lambda x: PLAIN - x,
    "sub": lambda x: torch.sub(x, PLAIN, alpha=2),
    "rsub": lambda x: torch.rsub(x, PLAIN, alpha=2),
    "-x": lambda x: -x,
    "2 * x": lambda x: 2 * x,
    "x * tensor": lambda x: x * COLUMN,
    "tensor * x": lambda x: PLAIN * x,
    "x / 3": lambda x: x / 3,
    "x / tensor": lambda x: x / COLUMN,
    "x + x": lambda x: x + x,
    "x - x": lambda x: x - x,
    "x + 3 x": lambda x: torch.add(x, x, alpha=3),
    "x / x": lambda x: x - x / x,
    "x +=": lambda x: x.clone().add_(1).mul_(3),
    "sub_": lambda x: x.clone().sub_(PLAIN),
    "div_": lambda x: x.clone().div_(2.0),
    "sum": lambda x: x.sum(),
    "sum(1)": lambda x: x.sum(1, keepdim=True),
    "sum of all but one": lambda x: torch.sum(x, dim=(0, 2)),
    "mean": lambda x: x.mean(),
    "mean([1, 2])": lambda x: x.mean([1, 2]),
    "mean(-1)": lambda x: torch.mean(x, -1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "trace": lambda x: x[0, :, :3].trace(),
    "diff": lambda x: x.diff(),
    "diff, twice": lambda x: torch.diff(x, 2, 1),
    "diff, prepended": lambda x: torch.diff(x[0], prepend=COLUMN),
    "addcmul": lambda x: torch.addcmul(PLAIN, x, COLUMN, value=2),
    "addcdiv": lambda x: torch.addcdiv(x, PLAIN, COLUMN, value=2),
    "lerp": lambda x: torch.lerp(PLAIN.expand(2, 3, 4), x, 0.3),
    "lerp of the same": lambda x: x.lerp(x, 0.2),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2, 1, padding=1),
    "avg_pool2d, no padding counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool2d, ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "avg_pool2d, ceil and padding": lambda x: F.avg_pool2d(x, (2, 3), (2, 3), (1, 1), True),
    "avg_pool2d, ceil, not counted": lambda x: F.avg_pool2d(x, (2, 3), 2, 1, True, False),
    "avg_pool2d, divisor": lambda x: F.avg_pool2d(x, (3, 2), 1, 1, divisor_override=5),
    "nn.AvgPool1d": nn.AvgPool1d(3, 2, 1, True, False),
    "nn.AvgPool2d": nn.AvgPool2d((2, 3), count_include_pad=False),
    "nn.AvgPool3d": lambda x: nn.AvgPool3d(2, 1, (0, 1, 1), count_include_pad=False)(x.unsqueeze(0)),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x.reshape(2, 6, 2), (4, None)),
    "nn.AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d(1),
    "nn.AdaptiveAvgPool3d": lambda x: nn.AdaptiveAvgPool3d((1, 2, 3))(x.unsqueeze(0)),
}


@pytest.mark.parametrize("name", ONE)
def test_of_one_tensor(name):
    assert_affine(ONE[name], random_tensor(2, 3, 4))


TWO = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "add": lambda x, y: torch.add(x, y, alpha=-2),
    "sub": lambda x, y: x.sub(y, alpha=3),
    "x += y": lambda x, y: x.clone().add_(y),
    "lerp": lambda x, y: torch.lerp(x, y.expand(2, 3), 0.3),
    "lerp by a tensor": lambda x, y: torch.lerp(x, y.expand(2, 3), COLUMN[:, 0]),
    "addcmul": lambda x, y: torch.addcmul(x, y, COLUMN[:, 0], value=2),
}


@pytest.mark.parametrize("name", TWO)
def test_of_two_independent_tensors(name):
    assert_affine(TWO[name], random_tensor(2, 3), random_tensor(3, seed=1))


def test_a_certain_column_and_a_random_matrix_broadcast():
    x = random_tensor(3, 4)
    for op in (torch.add, torch.sub):
        for column in (COLUMN, Moments(COLUMN)):
            torch.testing.assert_close(op(column, x).variance, x.variance)
            torch.testing.assert_close(op(column, x[0]).variance, x[0].variance.expand(3, 4))
    torch.testing.assert_close((COLUMN * x).variance, COLUMN**2 * x.variance)
    torch.testing.assert_close((COLUMN * x[0]).variance, COLUMN**2 * x[0].variance)


def product_draws(x: Moments, y: Moments, op, count: int = 40_000) -> Tensor:
    generator = torch.Generator().manual_seed(3)

    def draws(value: Moments) -> Tensor:
        noise = torch.randn(count, *value.shape, generator=generator, dtype=torch.float64)
        return value.loc + value.scale * noise

    return torch.func.vmap(op)(draws(x), draws(y))


PRODUCTS = {
    "x * y": (lambda x, y: x * y, (2, 3), (3,)),
    "mul, column by row": (lambda x, y: torch.mul(x, y), (3, 1), (1, 2)),
    "addcmul": (lambda x, y: torch.addcmul(torch.ones((), dtype=torch.float64), x, y, value=-2), (3,), (2, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_independents(name):
    op, *shapes = PRODUCTS[name]
    x, y = random_tensor(*shapes[0]), random_tensor(*shapes[1], seed=1)
    found = op(x, y)
    draws = product_draws(x, y, op)
    assert_mean(draws, found.loc, 200)
    assert_mean((draws - found.loc).square(), found.variance, 200)


def test_the_product_has_its_closed_form():
    x, y = random_tensor(4, 1), random_tensor(5, seed=1)
    found = x * y
    m, v, n, w = x.loc, x.variance, y.loc, y.variance
    torch.testing.assert_close(found.loc, m * n)
    torch.testing.assert_close(found.variance, v * w + v * n**2 + m**2 * w)


def test_the_same_object_times_itself_is_its_square():
    x = random_tensor(5)
    found, m, v = x * x, x.loc, x.variance
    torch.testing.assert_close(found.loc, m**2 + v)
    torch.testing.assert_close(found.variance, 2 * v**2 + 4 * m**2 * v)
    apart = x * x.clone()
    torch.testing.assert_close(apart.loc, m**2)


def test_in_place_operations_change_their_first_argument():
    x, y = random_tensor(3), random_tensor(3, seed=1)
    expected = x + y
    same, total = x, x
    total += y
    assert total is same
    torch.testing.assert_close(x.loc, expected.loc)
    torch.testing.assert_close(x.variance, expected.variance)
    nn.ReLU(inplace=True)(x)
    rectified = F.relu(expected)
    torch.testing.assert_close(x.loc, rectified.loc)
    torch.testing.assert_close(x.variance, rectified.variance)
    plain = torch.ones(3, dtype=torch.float64)
    plain += y
    torch.testing.assert_close(plain.variance, y.variance)
    with pytest.raises(NoRuleError, match=r"shape \[3\] .* cannot become \[1, 3\]"):
        x.unsqueeze_(0)


def test_in_place_operations_leave_the_means_that_were_given_alone():
    mean = -torch.ones(3)
    x = Moments(mean)
    nn.ReLU(inplace=True)(x)
    x.add_(1.0)
    assert mean.eq(-1).all()
    assert x.loc.eq(1).all()


def test_gradients_are_right():
    x, y = random_tensor(3, 2), random_tensor(2, seed=1)

    def both(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        a, b = Moments(m, v), Moments(n, w)
        result = F.avg_pool1d((a * b + a / 2 - b).unsqueeze(0), 2).mean(1)
        return result.loc, result.variance

    inputs = [each.detach().clone().requires_grad_() for each in (x.loc, x.variance, y.loc, y.variance)]
    assert torch.autograd.gradcheck(both, inputs)


def test_rules_run_under_vmap():
    x = random_tensor(5, 3, 4)

    def both(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        value = Moments(mean, variance)
        result = F.adaptive_avg_pool1d((value * value.flip(0) + 1 - value).unsqueeze(0), 3).cumsum(-1) / 3
        return result.loc, result.variance

    mapped = torch.func.vmap(both)(x.loc, x.variance)
    for k in range(5):
        for found, expected in zip(mapped, both(x.loc[k], x.variance[k]), strict=True):
            torch.testing.assert_close(found[k], expected)

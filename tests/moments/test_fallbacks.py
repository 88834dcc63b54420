"""Operations without a rule: the error, the three fallbacks, and rules of one's own."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from bnnzoo.moments import Moments, NoRuleError, fallbacks, options, propagate, table
from bnnzoo.moments.sensitivity import TracedMoments
from tests.affine_maps import leaves, random_tensor

DOUBLE = {"dtype": torch.float64}


def bump(x: Tensor) -> Tensor:
    """An elementwise function that nobody has a rule for."""
    return torch.special.bessel_j0(x)


# of [4, 3]; examples alone, and mixed
DIFFERENTIABLE = {
    "sinc": torch.sinc,
    "cumprod": lambda x: x.cumprod(-1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "cross": lambda x: torch.linalg.cross(x, torch.ones_like(x)),
    "kron": lambda x: torch.kron(x, x),
    "var": lambda x: x.var(1),
    "normalize": lambda x: nn.functional.normalize(x),
    "var over examples": lambda x: x.var(0),
    "cumprod over examples": lambda x: x.cumprod(0),
    "prod": lambda x: x.prod(),
    "one example": lambda x: x[0].cumprod(0),
    "sort": lambda x: x.sort(1).values,
    "sort over examples": lambda x: x.sort(0).values,
    "median": lambda x: torch.median(x, 0),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_linearized_moments_are_those_of_the_jacobian(name):
    op, x = DIFFERENTIABLE[name], random_tensor(4, 3)
    with options(fallback="linearize"):
        found = leaves(op(x))
    expected = leaves(op(x.loc))
    for index, mean in enumerate(expected):
        torch.testing.assert_close(found[index].loc, mean)
        if mean.is_floating_point():
            own = jacobian(lambda m, i=index: leaves(op(m))[i], x.loc).flatten(mean.dim())
            torch.testing.assert_close(found[index].variance, own.square() @ x.variance.flatten())


def test_linearization_of_two_arguments_and_of_the_same_twice():
    x, y = random_tensor(4, 3), random_tensor(4, 3, seed=1)
    with options(fallback="linearize"):
        found, same = torch.atan2(x, y), torch.hypot(x, x)
    squares = (x.loc.square() + y.loc.square()).square()
    torch.testing.assert_close(found.variance, (y.loc.square() * x.variance + x.loc.square() * y.variance) / squares)
    torch.testing.assert_close(same.variance, 2 * x.variance)


def test_linearization_needs_few_passes_for_examples_alone(monkeypatch):
    sizes = []

    def spying(function, *args, **kwargs):
        mapped = torch.func.vmap(function, *args, **kwargs)

        def call(seeds):
            sizes.append(len(seeds))
            return mapped(seeds)

        return call

    monkeypatch.setattr(fallbacks, "vmap", spying)
    with options(fallback="linearize"):
        x = random_tensor(50, 3)
        x.cumprod(1)
        torch.linalg.vector_norm(x, dim=1)
        x.cumprod(0)
    assert sizes == [3, 1, 150]


def test_linearization_runs_under_vmap_in_chunks_with_gradients(monkeypatch):
    def both(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        with options(fallback="linearize"):
            result = torch.linalg.vector_norm(Moments(mean, variance).cumprod(1), dim=1)
        return result.loc, result.variance

    x = random_tensor(5, 4, 3)
    mapped = torch.func.vmap(both)(x.loc, x.variance)
    expected = [both(x.loc[k], x.variance[k]) for k in range(5)]
    monkeypatch.setattr(fallbacks, "_BLOCK", 24)
    for k in range(5):
        for found, each, chunked in zip(mapped, expected[k], both(x.loc[k], x.variance[k]), strict=True):
            torch.testing.assert_close(found[k], each)
            torch.testing.assert_close(chunked, each)
    inputs = [x.loc[0].clone().requires_grad_(), x.variance[0].clone().requires_grad_()]
    assert torch.autograd.gradcheck(both, inputs)


def test_linearization_keeps_sensitivities():
    x = random_tensor(2, 3)
    with options(fallback="linearize"):
        found = TracedMoments(x.loc, x.variance).cumprod(1)
    for n in range(2):
        own = jacobian(lambda m: m.cumprod(0), x.loc[n])
        torch.testing.assert_close(found.covariance[n], own @ x.variance[n].diag() @ own.T)


def by_scipy(mean: float, scale: float) -> tuple[float, float]:
    """Mean and variance of the bump of a Gaussian."""

    def moment(power: int, center: float) -> float:
        def integrand(z: float) -> float:
            value = bump(torch.tensor(mean + scale * z, **DOUBLE)).item()
            return (value - center) ** power * stats.norm.pdf(z)

        return integrate.quad(integrand, -9, 9, epsabs=1e-13, epsrel=1e-11, limit=200)[0]

    first = moment(1, 0.0)
    return first, moment(2, first)


def test_quadrature_is_that_of_scipy():
    rng = np.random.default_rng(0)
    pairs = [(0.0, 1.0), (3.0, 0.1), (-2.0, 1.5), *zip(rng.uniform(-4, 4, 3), rng.uniform(0.01, 1.5, 3), strict=True)]
    mean, scale = torch.tensor(pairs, **DOUBLE).T
    with options(fallback="quadrature"):
        found = bump(Moments(mean, scale.square()))
    expected = torch.tensor([by_scipy(*pair) for pair in pairs], **DOUBLE)
    torch.testing.assert_close(found.loc, expected[:, 0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.variance, expected[:, 1], rtol=1e-7, atol=1e-9)


def test_quadrature_has_finite_gradients_without_variance():
    mean, variance = torch.randn(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    with options(fallback="quadrature"):
        found = torch.func.vmap(lambda m, v: (lambda y: (y.loc, y.variance))(torch.sinc(Moments(m, v))))(
            mean.view(2, 3), variance.view(2, 3)
        )
    torch.testing.assert_close(found[0].flatten(), torch.sinc(mean))
    assert found[1].abs().max() < 1e-12
    sum(each.sum() for each in found).backward()
    assert mean.grad.isfinite().all()
    assert variance.grad.isfinite().all()


@pytest.mark.parametrize(
    "op",
    [lambda x: x.cumprod(1), lambda x: x.sort(0).values, lambda x: x.prod(1), lambda x: torch.hypot(x, x.clone())],
)
def test_quadrature_is_for_elementwise_operations_of_one_argument(op):
    with options(fallback="quadrature"), pytest.raises(NoRuleError, match="choose fallback='linearize' or 'sample'"):
        op(random_tensor(3, 4))


def test_sampling_is_as_accurate_as_it_says():
    x = random_tensor(400)
    with options(fallback="sample"):
        linear = torch.special.xlogy(x, torch.full_like(x.loc, np.e))
    keep = x.variance > 0
    torch.testing.assert_close(linear.loc, x.loc)
    ratios = linear.variance[keep] / x.variance[keep]
    # of 256 independent squares, over as many elements
    assert abs(ratios.mean() - 1) < 5 * (2 / 256 / len(ratios)) ** 0.5
    assert ratios.std() < 0.09 * 1.2
    even = Moments(torch.zeros_like(x.loc), x.variance)
    with options(fallback="sample"):
        found = torch.sinc(even)
    with options(fallback="quadrature"):
        expected = torch.sinc(even)
    assert ((found.loc - expected.loc).abs() <= 6 * (expected.variance / 256).sqrt() + 1e-12).all()
    ratios = found.variance[keep] / expected.variance[keep]
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / len(ratios) ** 0.5 + 1 / 256, "about the mean of the draws"


def test_sampling_repeats_itself_and_leaves_the_generator_alone():
    x = random_tensor(3)
    state = torch.random.get_rng_state()
    with options(fallback="sample"):
        first, second = x.cumprod(0), x.cumprod(0)
        values, _ = x.sort()
    assert torch.equal(first.variance, second.variance)
    assert torch.equal(state, torch.random.get_rng_state())
    assert values.variance.min() >= 0
    with options(fallback="sample"), pytest.raises(NoRuleError, match="choose fallback='linearize'"):
        TracedMoments(x.loc, x.variance).cumprod(0)


def test_sampling_is_differentiable_under_vmap():
    x = random_tensor(2, 3)

    def both(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        with options(fallback="sample"):
            result = Moments(mean, variance).cumprod(-1)
        return result.loc, result.variance

    for found, expected in zip(torch.func.vmap(both)(x.loc, x.variance), both(x.loc[0], x.variance[0]), strict=True):
        torch.testing.assert_close(found[0], expected)
    inputs = [x.loc[0].clone().requires_grad_(), (x.variance[0] + 0.1).clone().requires_grad_()]
    assert torch.autograd.gradcheck(both, inputs)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return bump(x)


def test_the_error_names_operation_module_and_what_to_do():
    network = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": Odd()})["inner"])
    with pytest.raises(NoRuleError, match=r"special_bessel_j0: choose fallback='linearize'.*\(in '1', an? Odd\)"):
        propagate(network, torch.zeros(2, 3), 1.0)
    with pytest.raises(NoRuleError, match=r"in the network, an? Odd"):
        propagate(Odd(), torch.zeros(2, 3), 1.0)
    assert propagate(network, torch.zeros(2, 3), 1.0, fallback="linearize").variance.shape == (2, 3)
    with pytest.raises(NoRuleError, match=r"operation Tensor\.cumprod"):
        random_tensor(2).cumprod(0)
    with pytest.raises(NoRuleError, match=r"torch\.nn\.functional\.pairwise_distance|torch\.pairwise_distance"):
        nn.functional.pairwise_distance(random_tensor(2, 2), random_tensor(2, 2))


def test_decisions_have_no_moments():
    with options(fallback="linearize"), pytest.raises(NoRuleError, match="gives no real numbers"):
        random_tensor(3).argsort()


def test_a_rule_of_ones_own():
    x = random_tensor(3)

    def twice(value: Tensor) -> Tensor:
        return (
            torch.overrides.handle_torch_function(twice, (value,), value) if isinstance(value, Moments) else 2 * value
        )

    def swish(value: Tensor) -> Tensor:
        return torch.overrides.handle_torch_function(swish, (value,), value)

    def shifted(value: Tensor) -> Tensor:
        return torch.overrides.handle_torch_function(shifted, (value,), value)

    before = dict(table.RULES)
    try:

        @table.affine(twice)
        def _(value: Moments) -> Tensor:
            return 4 * value.variance

        @table.elementwise(swish)
        def _(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
            return mean.sinh(), mean.cosh().square() * variance

        @table.rule(shifted)
        def _(value: Moments) -> Moments:
            return value + 1

        torch.testing.assert_close(twice(x).variance, 4 * x.variance)
        torch.testing.assert_close(swish(x).loc, x.loc.sinh())
        torch.testing.assert_close(shifted(x).loc, x.loc + 1)
    finally:
        table.RULES.clear()
        table.RULES.update(before)

"""Scalar rules: one contract over one dict of them (`scalar_rules.RULES`)."""

import math
import secrets
from functools import lru_cache, partial

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad

from bnnzoo.moments import Moments, NoRuleError, activations, options, propagate, table
from tests.moments.scalar_rules import RULES, points, truth

MEANS = (-10.0, -3.0, -1.3, -0.5, 0.0, 0.4, 1.0, 3.0, 6.5, 10.0)
STDS = (1e-4, 1e-3, 0.01, 0.1, 0.4, 1.0, 2.5, 6.0, 10.0)
every_rule = pytest.mark.parametrize("name", RULES)


@pytest.fixture(scope="module")
def seed():
    """Of the random points, another one in each run."""
    return secrets.randbits(32)


def places(rule, seed, count=25):
    """Means and variances: the grid, and random points."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(count, generator=generator, dtype=torch.float64) * 20 - 10
    logs = torch.rand(count, generator=generator, dtype=torch.float64)
    stds = 1e-4 * (rule.widest / 1e-4) ** logs
    grid = [(mean, std) for mean in MEANS for std in STDS if std <= rule.widest]
    both = torch.cat([torch.tensor(grid, dtype=torch.float64), torch.stack([means, stds], 1)])
    return both[:, 0], both[:, 1].square()


def moments(rule, mean, variance):
    out = rule.function(Moments(mean, variance))
    assert out.dtype == mean.dtype
    return out.loc, out.variance


@lru_cache(maxsize=100000)
def cached_truth(rule, mean, variance):
    return truth(rule, mean, variance)


def expected(rule, mean, variance):
    pairs = zip(mean.double().tolist(), variance.double().tolist(), strict=True)
    return torch.tensor([cached_truth(rule, m, v) for m, v in pairs], dtype=torch.float64).T


def worst(got, want, allowed, mean, variance, what, seed):
    excess = (got.double() - want).abs() / allowed
    assert not excess.isnan().any(), f"{what}: not a number; seed {seed}"
    i = int(excess.argmax())
    assert excess[i] <= 1, (
        f"{what} at mean {mean[i]:.6g} and sigma {variance[i] ** 0.5:.6g}: {got[i]:.9g} instead of {want[i]:.9g}, "
        f"{excess[i]:.3g} times what is allowed; seed {seed}"
    )


@every_rule
def test_moments_are_those_of_quadrature(name, seed):
    rule = RULES[name]
    mean, variance = places(rule, seed)
    want = expected(rule, mean, variance)
    value, spread = moments(rule, mean, variance)
    allowed = rule.absolute * (1 + variance.sqrt())
    worst(value, want[0], torch.maximum(allowed, rule.relative * want[0].abs()), mean, variance, "mean", seed)
    allowed = torch.minimum(rule.absolute * (1 + variance), 0.01 * variance + 1e-12)
    worst(spread, want[1], torch.maximum(allowed, rule.relative * want[1]), mean, variance, "variance", seed)
    assert (spread >= 0).all()


@every_rule
def test_moments_in_float32(name, seed):
    """To 2e-5 of what the function may be, or 2e-3 of the variance; nothing negative, nothing undefined."""
    rule = RULES[name]
    mean, variance = (each.float() for each in places(rule, seed))
    want = expected(rule, mean, variance)
    value, spread = moments(rule, mean, variance)
    worst(value, want[0], 1e-5 * (1 + variance.sqrt() + want[0].abs()), mean, variance, "mean", seed)
    allowed = 2e-3 * want[1] + torch.minimum(1e-5 * (1 + variance), 1e-2 * variance) + 1e-12
    worst(spread, want[1], allowed, mean, variance, "variance", seed)
    assert (spread >= 0).all()


@every_rule
def test_derivatives_are_those_of_quadrature(name, seed):
    rule = RULES[name]
    mean, variance = places(rule, seed)
    keep = (variance > 0.05**2) & (variance <= 36)
    mean, variance = mean[keep], variance[keep]
    want = expected(rule, mean, variance)
    mean.requires_grad_()
    variance.requires_grad_()
    value, spread = moments(rule, mean, variance)
    by_mean = torch.autograd.grad(value.sum(), (mean, variance), retain_graph=True)
    by_variance = torch.autograd.grad(spread.sum(), (mean, variance), retain_graph=True)
    together = torch.autograd.grad((value + 2 * spread).sum(), (mean, variance))
    for both, one, other in zip(together, by_mean, by_variance, strict=True):
        torch.testing.assert_close(both, one + 2 * other, rtol=1e-9, atol=1e-9)
    what = "mean by mean", "mean by variance", "variance by mean", "variance by variance"
    for label, got, truth_ in zip(what, (*by_mean, *by_variance), want[2:], strict=True):
        allowed = 1e-3 * truth_.abs() + 2e-4 * (1 + variance.detach().sqrt())
        worst(got, truth_, allowed, mean.detach(), variance.detach(), label, seed)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_values_give_the_plain_function_and_finite_derivatives(name, dtype):
    """At zero variance, on the knots too; far in the tails."""
    rule = RULES[name]
    inside = [-2.3, -1e-3, 0.0, 1e-3, 2.3, *(float(k) for k in rule.knots)]
    mean = torch.tensor(inside, dtype=dtype, requires_grad=True)
    variance = torch.zeros_like(mean).requires_grad_()
    value, spread = moments(rule, mean, variance)
    sure = [not (name == "hardshrink" and x == -0.3) for x in inside]
    torch.testing.assert_close(value[sure], rule.function(mean)[sure])
    assert (spread == 0).all()
    assert_finite(value, spread, mean, variance)


@every_rule
def test_far_tails_are_finite_in_float32(name):
    rule = RULES[name]
    stds = torch.tensor([1e-20, 1e-8, 1e-7, 1e-5, 1e-3, 0.1, rule.widest])
    means = torch.tensor([-10.0, -1.0, -1e-4, 0.0, 1e-7, 1.0, 10.0])
    mean, std = (each.flatten() for each in torch.meshgrid(means, stds, indexing="ij"))
    mean = mean.clone().requires_grad_()
    variance = std.square().requires_grad_()
    value, spread = moments(rule, mean, variance)
    assert (spread >= 0).all()
    assert_finite(value, spread, mean, variance)


def assert_finite(value, spread, mean, variance):
    for output in value, spread:
        assert output.isfinite().all()
        for grad in torch.autograd.grad(output.sum(), (mean, variance), retain_graph=True, allow_unused=True):
            assert grad is None or grad.isfinite().all()


@every_rule
def test_vmap_gives_the_same(name):
    rule = RULES[name]
    mean, variance = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)

    def total(mean, variance):
        value, spread = moments(rule, mean, variance)
        return (value + 2 * spread).sum()

    grad = torch.func.grad(total, (0, 1))
    for mapped, plain in zip(torch.func.vmap(grad)(mean, variance), grad(mean, variance), strict=True):
        torch.testing.assert_close(mapped, plain)
    for mapped, plain in zip(
        torch.func.vmap(partial(moments, rule), in_dims=(0, None))(mean, variance[0]),
        moments(rule, mean, variance[0].expand(3, 4)),
        strict=True,
    ):
        torch.testing.assert_close(mapped, plain)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own
@every_rule
def test_forward_differentiation_gives_the_same(name):
    mean, variance = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    function, ones = partial(moments, RULES[name]), torch.ones_like(mean)

    def slope(mean):  # of the mean alone
        return torch.func.jvp(lambda mean: function(mean, variance), (mean,), (ones,))[1]

    _, forward = torch.func.jvp(function, (mean, variance), (ones, 2 * ones))
    for k in range(2):
        back = torch.func.grad(lambda *both, k=k: function(*both)[k].sum(), (0, 1))(mean, variance)
        torch.testing.assert_close(forward[k], back[0] + 2 * back[1])
        torch.testing.assert_close(slope(mean)[k], back[0])
        each = torch.func.vmap(torch.func.jacfwd(lambda *both, k=k: function(*both)[k]))
        torch.testing.assert_close(each(mean, variance).flatten(), back[0])


@pytest.mark.parametrize("name", ["leaky_relu", "hardswish", "sigmoid", "ndtr", "elu", "sign"])
def test_second_derivatives_are_those_of_the_first(name):
    mean = torch.tensor([-1.2, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.5, 0.2, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(partial(moments, RULES[name]), (mean, variance))


@pytest.mark.parametrize("name", ["relu", "tanh", "selu", "hardswish"])
def test_the_reference_agrees_with_scipy(name):
    rule = RULES[name]
    for mean, std in (-1.7, 0.3), (0.4, 2.0), (6.0, 10.0):
        ends = mean - 9 * std, mean + 9 * std

        def density(x, mean=mean, std=std):
            return math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

        def value(x):
            return rule.function(torch.tensor(x, dtype=torch.float64)).item()

        knots = [k for k in (*rule.knots, 0.0) if ends[0] < k < ends[1]]
        first = quad(lambda x: value(x) * density(x), *ends, points=knots or None, limit=200, epsabs=1e-11)[0]
        second = quad(lambda x: (value(x) - first) ** 2 * density(x), *ends, points=knots or None, limit=200)[0]  # noqa: B023
        assert truth(rule, mean, std**2)[:2] == pytest.approx((first, second), rel=1e-8, abs=1e-9)
        assert points(rule, mean, std**2)[1].sum() == pytest.approx(1.0)


def test_every_elementwise_rule_is_in_the_contract(monkeypatch):
    seen = set()
    apply = table.apply_elementwise

    def record(moments, *args, **kwargs):
        seen.add(moments)
        return apply(moments, *args, **kwargs)

    monkeypatch.setattr(table, "apply_elementwise", record)
    for rule in RULES.values():
        rule.function(Moments(torch.ones(2), 0.5))
    registered = {
        each.args[0]: function
        for function, each in table.RULES.items()
        if isinstance(each, partial) and each.func is table._elementwise
    }
    ours = {each: function for each, function in registered.items() if "activations" in each.__module__}
    missing = [function for each, function in ours.items() if each not in seen]
    assert not missing, f"not in scalar_rules.RULES: {missing}"


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_small_variances_keep_their_digits_in_float32(slope):
    """Of (leaky) ReLU, to 1e-5, wherever there is mass beyond 0."""
    rule = RULES["relu"]._replace(function=partial(F.leaky_relu, negative_slope=slope), reach=14.0)
    a = torch.linspace(-7.5, 30.0, 151)
    want = expected(rule, a, torch.ones_like(a))
    assert ((moments(rule, a, torch.ones_like(a))[1].double() - want[1]).abs() <= 1e-5 * want[1]).all()
    tiny = moments(rule, 1e-3 * a, torch.full_like(a, 1e-6))[1].double()
    assert ((tiny - 1e-6 * want[1]).abs() <= 5e-5 * 1e-6 * want[1]).all()


SPELLINGS = {
    "relu": (F.relu, torch.relu, torch.Tensor.relu, partial(F.relu, inplace=True), torch.relu_, torch.Tensor.relu_),
    "sigmoid": (torch.sigmoid, F.sigmoid, torch.Tensor.sigmoid, torch.special.expit, torch.sigmoid_),
    "tanh": (torch.tanh, F.tanh, torch.Tensor.tanh, torch.Tensor.tanh_),
    "abs": (torch.abs, torch.absolute, torch.Tensor.abs, abs),
    "square": (torch.square, lambda x: x**2, lambda x: x.pow(2), lambda x: torch.pow(x, 2.0), torch.Tensor.square),
    "relu6": (F.relu6, lambda x: F.hardtanh(x, 0.0, 6.0), lambda x: x.clip(0, 6), lambda x: torch.clamp(x, 0, max=6)),
    "elu": (partial(F.elu, alpha=0.7), partial(F.elu, alpha=0.7, inplace=True)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_has_the_rule(name):
    mean, variance = torch.randn(5), torch.rand(5)
    want = moments(RULES[name], mean, variance)
    for function in SPELLINGS[name]:
        got = function(Moments(mean.clone(), variance.clone()))
        torch.testing.assert_close((got.loc, got.variance), want)


def test_prelu_has_a_slope_for_each_channel():
    mean, variance, slopes = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.tensor([0.1, -0.5, 0.9])
    got = F.prelu(Moments(mean, variance), slopes)
    for channel, slope in enumerate(slopes.tolist()):
        one = F.leaky_relu(Moments(mean[:, channel], variance[:, channel]), slope)
        torch.testing.assert_close((got.loc[:, channel], got.variance[:, channel]), (one.loc, one.variance))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
def test_prelu_with_random_slopes(shape):
    torch.manual_seed(0)
    x = Moments(torch.randn(shape), torch.rand(shape))
    slopes = Moments(torch.randn(shape[1]), torch.rand(shape[1]))
    column = Moments(slopes.loc, slopes.variance).view(-1, *[1] * (len(shape) - 2))
    layer = torch.prelu
    got = layer(x, slopes)
    # E y, and E y² = E max(0, x)² + E w² E min(0, x)², the two halves never being there together
    above, below = F.relu(x), F.relu(-x)
    mean = above.loc - column.loc * below.loc
    square = above.second_moment + column.second_moment * below.second_moment
    torch.testing.assert_close((got.loc, got.variance), (mean, square - mean.square()))
    # of certain arguments, the one or the other
    plain = layer(x.loc, slopes)
    expected = x.loc.clamp_max(0.0).square() * column.variance
    torch.testing.assert_close((plain.loc, plain.variance), (layer(x.loc, slopes.loc), expected))
    known, want = layer(x, Moments(slopes.loc)), layer(x, slopes.loc)
    torch.testing.assert_close((known.loc, known.variance), (want.loc, want.variance))


@pytest.mark.parametrize("covariance", ["sensitivity", "full"])
def test_prelu_with_random_slopes_has_covariances(covariance):
    torch.manual_seed(0)
    layer, x = torch.nn.Sequential(torch.nn.PReLU(3)), torch.randn(2, 3)
    random = Moments(torch.rand(3), torch.rand(3))
    del layer[0].weight
    layer[0].weight = random
    got = propagate(layer, x, 0.5, covariance=covariance)
    want = F.prelu(Moments(x, 0.5), random)
    torch.testing.assert_close((got.loc, got.variance), (want.loc, want.variance))


def test_rrelu_draws_its_slopes_in_training():
    torch.manual_seed(0)
    x = Moments(torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0.5, 2.0, 1.0]))
    got, certain = F.rrelu(x, 0.1, 0.7, training=True), F.rrelu(Moments(x.loc), 0.1, 0.7, training=True)
    slopes = Moments(torch.full((3,), 0.4), 0.6**2 / 12)
    for found, value in ((got, x), (certain, Moments(x.loc, 0.0))):
        want = [F.prelu(value[i], slopes[i]) for i in range(3)]
        torch.testing.assert_close(found.loc, torch.stack([each.loc for each in want]))
        torch.testing.assert_close(found.variance, torch.stack([each.variance for each in want]))
    assert F.rrelu(Moments(x.loc)).certain


RANDOM_BOUND = Moments(torch.zeros(2), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x**-1, "whole exponents from 0 on, not -1"),
        (lambda x: torch.pow(x, 0.5), "whole exponents from 0 on, not 0.5"),
        (lambda x: F.softplus(x, threshold=1), "threshold of at least 10, not 1"),
        (lambda x: x.clamp(2, 1), "min=2 and max=1"),
        (lambda x: torch.clamp(x.loc, RANDOM_BOUND, x.loc + 3), "one random argument, the first, alone"),
        (lambda x: torch.clamp(x, min=RANDOM_BOUND), "one random argument, the first, alone"),
        (lambda x: F.leaky_relu(x, RANDOM_BOUND), "one random argument, the first, alone"),
        (lambda x: x.loc**RANDOM_BOUND, "operation Tensor"),
    ],
)
def test_what_has_no_moments_takes_the_fallback(call, message):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return call(x)

    network, x = torch.nn.Sequential(torch.nn.Identity(), Layer()), torch.tensor([0.5, 0.7])
    with pytest.raises(NoRuleError, match=rf"{message}.*\(in '1', a Layer\)"):
        propagate(network, x, 1.0)
    if "leaky_relu" in call.__code__.co_names:  # torch's takes numbers alone
        return
    result = propagate(network, x, 1.0, fallback="linearize")
    torch.testing.assert_close(result.loc, propagate(network, x, 0.0, fallback="linearize").loc)
    assert result.loc.shape == (2,)


def test_what_has_no_moments_is_refused():
    with pytest.raises(ValueError, match="a lower bound, an upper one or both"):
        activations.clamp(torch.zeros(2), torch.ones(2))


def test_infinite_bounds_are_none():
    x = Moments(torch.randn(5), torch.rand(5))
    got, want = x.clamp(-math.inf, 1.0), x.clamp(max=1.0)
    torch.testing.assert_close((got.loc, got.variance), (want.loc, want.variance))


def test_the_papers_approximations_are_an_option():
    mean, variance = torch.linspace(-3, 3, 7), torch.full((7,), 0.5)
    x = Moments(mean, variance)
    with options(approximation="paper"):
        relu, leaky, logistic, tanh = F.relu(x), F.leaky_relu(x, 0.2), torch.sigmoid(x), torch.tanh(x)
    share = torch.sigmoid(mean / 0.5**0.5 / 0.3729)
    torch.testing.assert_close(relu.variance, 0.5 * share)
    torch.testing.assert_close(relu.loc, F.relu(x).loc)
    torch.testing.assert_close(leaky.variance, 0.5 * (0.04 + 0.96 * share))
    p = torch.sigmoid(mean / (0.5 * 3 / math.pi**2 + 1) ** 0.5)
    torch.testing.assert_close(logistic.loc, p)
    torch.testing.assert_close(logistic.variance, 4 / (1 + 4 / 0.5) * (p * (1 - p)) ** 2)
    with options(approximation="paper"):
        double = torch.sigmoid(2 * x)
    torch.testing.assert_close((tanh.loc, tanh.variance), (2 * double.loc - 1, 4 * double.variance))

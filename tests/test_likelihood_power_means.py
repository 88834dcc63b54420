"""`log_power_mean` of the likelihoods: every member's properties, then each against adaptive quadrature."""

import copy
import math

import numpy as np
import pytest
import torch
from power_means import by_quadrature, softmax_power_mean
from scipy import special, stats
from statistical import bound
from test_likelihoods import CASES, close, softplus
from torch import Tensor

from bnnzoo.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, Poisson
from bnnzoo.power_mean import log_power_mean

ALPHAS = [-0.5, 1e-6, 0.3, 0.5, 1.0, 2.0]
LEAST = {Gaussian: -math.inf, HeteroscedasticGaussian: 0.0, Categorical: -1.0, Bernoulli: -math.inf, Poisson: 0.0}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return CASES[request.param]


def allowed(case, alphas):
    return [alpha for alpha in alphas if alpha >= LEAST[type(case.likelihood)]]


def column(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ every member


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_variance_gives_the_log_prob_with_finite_gradients(case, dtype):
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    likelihood, sites = copy.deepcopy(case.likelihood).to(dtype), {k: v.to(dtype) for k, v in case.sites.items()}
    mean = case.output.to(dtype, copy=True).requires_grad_()
    variance = torch.zeros_like(mean, requires_grad=True)
    log_prob = likelihood.log_prob(mean, case.y, **sites)
    slope = torch.autograd.grad(log_prob.sum(), mean)[0]
    hessian = torch.autograd.functional.hessian(
        lambda flat: likelihood.log_prob(flat.view_as(mean), case.y, **sites).sum(), mean.detach().flatten()
    )
    for alpha in allowed(case, [-0.5, -1e-20, 1e-35, 1e-20, *ALPHAS]):
        value = likelihood.log_power_mean(mean, variance, case.y, alpha, **sites)
        assert value.dtype == dtype
        close(value, log_prob, tolerance, tolerance)
        first, second = torch.autograd.grad(value.sum(), (mean, variance))
        close(first, slope, 10 * tolerance, 10 * tolerance)
        # (1/α) log E exp(α f(x)) = f + v (f'' + α f'^2) / 2 + ... for x ~ N(m, v), f at m
        expected = 0.5 * (hessian.diagonal().view_as(mean) + alpha * slope.square())
        close(second, expected, 3e-3 if dtype == torch.float32 else 1e-6, 3e-3 if dtype == torch.float32 else 1e-6)


def test_continuous_at_zero(case):
    """In single precision too, from either side, down to α below its smallest numbers."""
    for dtype, rounding in ((torch.float64, 1e-7), (torch.float32, 1e-5)):  # of the expectations' quadratures
        likelihood, sites = copy.deepcopy(case.likelihood).to(dtype), {k: v.to(dtype) for k, v in case.sites.items()}
        mean, variance = case.output.to(dtype), (0.05 + 0.2 * case.output.square()).to(dtype)
        expected = likelihood.expected_log_prob(mean, variance, case.y, **sites)
        assert torch.equal(likelihood.log_power_mean(mean, variance, case.y, 0.0, **sites), expected)
        assert torch.equal(likelihood.log_power_mean(mean, variance, case.y, 1e-40, **sites), expected)
        slope = (likelihood.log_power_mean(mean, variance, case.y, 1e-3, **sites) - expected) / 1e-3
        assert (slope > 0.0).all()
        for alpha in allowed(case, [1e-4, 1e-6, 1e-8, 1e-15, 1e-25, -1e-6, -1e-25]):
            value = likelihood.log_power_mean(mean, variance, case.y, alpha, **sites)
            assert ((value - expected).abs() <= 2 * abs(alpha) * slope + rounding * (1 + expected.abs())).all()


def test_rises_with_alpha(case):
    """As power means do; the bound of a Categorical too."""
    mean, variance = case.output, 0.05 + 0.3 * case.output.square()
    alphas = [0.0, 1e-3, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0]
    values = [case.likelihood.log_power_mean(mean, variance, case.y, alpha, **case.sites) for alpha in alphas]
    assert (torch.stack(values).diff(dim=0) > 0).all()
    assert values[0].shape == case.y.shape[:1]


def test_agrees_with_monte_carlo_or_bounds_it(case):
    """By the power mean that objectives take over particles."""
    mean, variance, draws = case.output, 0.1 + 0.5 * case.output.square(), 20_000
    noise = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    outputs = (mean + variance.sqrt() * noise).flatten(0, 1)
    y = case.y.expand(draws, *case.y.shape).flatten(0, 1)
    log_prob = case.likelihood.log_prob(outputs, y, **case.sites).view(draws, -1)
    for alpha in (0.3, 1.0):
        estimate = log_power_mean(log_prob, alpha)
        error = (alpha * (log_prob - estimate)).exp().std(0) / (alpha * math.sqrt(draws))  # by the delta method
        actual = case.likelihood.log_power_mean(mean, variance, case.y, alpha, **case.sites)
        limit = bound(2 * len(CASES) * len(mean)) * error
        assert (actual < estimate + limit).all()
        if not isinstance(case.likelihood, Categorical):
            assert (actual > estimate - limit).all()
        else:
            assert (actual > log_prob.mean(0)).all()


def test_alphas_that_are_refused(case):
    given = case.output, case.output.square(), case.y
    for alpha in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"needs a finite alpha, not {alpha}"):
            case.likelihood.log_power_mean(*given, alpha, **case.sites)
    least = LEAST[type(case.likelihood)]
    if least > -math.inf:
        with pytest.raises(ValueError, match=rf"needs alpha of at least {least:g}, not {least - 0.01}: below, "):
            case.likelihood.log_power_mean(*given, least - 0.01, **case.sites)
        case.likelihood.log_power_mean(*given, least, **case.sites)


def test_a_likelihood_without_one_says_so():
    class Mine(Likelihood):
        pass

    with pytest.raises(NotImplementedError, match=r"A Mine likelihood has no `log_power_mean`: .* BB-α"):
        Mine().log_power_mean(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2), 0.5)


def test_gradients():
    """Against finite differences; nodes that move do not matter."""
    mean, variance = column(0.3, -1.2, 0.9, 0.1).T, column(0.5, 2.0, 0.01, 4.0).T
    wide, spread = torch.cat([mean, mean.flip(0)], 1), torch.cat([variance, variance.flip(0)], 1)
    cases = [
        (Gaussian(0.7).double(), mean, variance, column(0.5, -1, 2, 0)[0], [-0.1, 1e-6, 0.5, 2.0]),
        (HeteroscedasticGaussian(), wide, spread, column(0.5, -1, 2, 0)[0], [1e-3, 0.5, 2.0]),
        (Categorical(), wide, spread, torch.tensor([0, 1, 1, 0]), [-1.0, -0.5, 0.0, 1e-6, 0.5, 2.0]),
        (Bernoulli(), mean, variance, column(1, 0, 0, 1)[0], [-1.0, 1e-3, 0.5, 2.0]),
        (Poisson(), mean, variance, column(3, 0, 1, 20)[0], [1e-3, 0.5, 2.0]),
    ]
    for likelihood, m, v, y, alphas in cases:
        for alpha in alphas:

            def value(m, v):
                return likelihood.log_power_mean(m, v, y, alpha)  # noqa: B023

            assert torch.autograd.gradcheck(value, (m.clone().requires_grad_(), v.clone().requires_grad_()))
            assert torch.autograd.gradgradcheck(value, (m.clone().requires_grad_(), v.clone().requires_grad_()))


def test_a_learned_scale_has_a_gradient():
    likelihood = Gaussian().double()
    likelihood.log_power_mean(column(0.3), column(0.5), column(1.0)[0], 0.5).sum().backward()
    variance, step = 0.25, 1e-6

    def exact(log_scale):
        s2 = math.exp(2 * log_scale)
        mass = special.log1p(0.5 * 0.5 / s2)
        return -0.5 * math.log(2 * math.pi * s2) - mass - 0.5 * 0.49 / (s2 + variance)

    slope = (exact(math.log(0.5) + step) - exact(math.log(0.5) - step)) / (2 * step)
    assert likelihood.log_scale.grad.item() == pytest.approx(slope, rel=1e-5)


EXTREME = {
    "gaussian": (Gaussian(0.1), 1, [0.0, 5.0]),
    "heteroscedastic": (HeteroscedasticGaussian(), 2, [-200.0, 5.0]),
    "categorical": (Categorical(), 5, [0, 3]),
    "bernoulli": (Bernoulli(), 1, [1.0, 0.0]),
    "poisson": (Poisson(), 1, [0.0, 7.0]),
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("size", [30.0, 200.0])
def test_far_tails_stay_finite_in_single_precision(name, size):
    likelihood, outputs, y = EXTREME[name]
    for signs in ([-1.0, 1.0], [1.0, -1.0]):
        mean = (size * torch.tensor(signs)[:, None]).expand(2, outputs).clone()
        if outputs > 1:
            mean[:, 0] *= -1.0
        mean.requires_grad_()
        for variance in (0.0, 1e-12, 1e-3, 1.0, 1e4):
            spread = torch.full_like(mean, variance, requires_grad=True)
            for alpha in (1e-20, 1e-6, 0.5, 1.0, 10.0):
                value = likelihood.log_power_mean(mean, spread, torch.tensor(y), alpha)
                gradients = torch.autograd.grad(value.sum(), (mean, spread))
                assert all(result.isfinite().all() for result in (value, *gradients)), (signs, variance, alpha)


@pytest.mark.parametrize("name", EXTREME)
def test_single_precision_agrees_with_double(name):
    likelihood, outputs, _ = EXTREME[name]
    generator = torch.Generator().manual_seed(4)
    mean = torch.randn(100, outputs, generator=generator, dtype=torch.float64)
    y = torch.arange(100) % 5 if name == "categorical" else (torch.arange(100) % 2).double()
    for std in (1e-4, 0.01, 0.3, 2.0):
        for alpha in (1e-20, 1e-6, 0.5, 2.0):
            results = []
            for dtype in (torch.float64, torch.float32):
                m, v = (value.to(dtype).requires_grad_() for value in (mean, torch.full_like(mean, std**2)))
                value = copy.deepcopy(likelihood).to(dtype).log_power_mean(m, v, y, alpha)
                results.append([value.detach(), *torch.autograd.grad(value.sum(), (m, v))])
            for double, single, tolerance in zip(*results, (1e-4, 2e-4, 5e-3), strict=True):
                close(single.double(), double, tolerance, tolerance)


def test_rates_beyond_all_numbers_still_fall():
    """Where e^f would overflow, in single precision."""
    mean = torch.tensor([[60.0], [300.0]], requires_grad=True)
    for variance, alpha in ((0.0, 1e-6), (0.01, 1e-6), (0.0, 1e-28), (0.01, 1e-28)):
        value = Poisson().log_power_mean(mean, torch.full_like(mean, variance), torch.tensor([7.0, 7.0]), alpha)
        assert (torch.autograd.grad(value.sum(), mean)[0] < -1.0).all()


@pytest.mark.parametrize("name", EXTREME)
def test_not_a_number_stays(name):
    likelihood, outputs, y = EXTREME[name]
    for mean, variance in ((math.nan, 1.0), (0.0, math.nan)):
        given = torch.full((2, outputs), mean), torch.full((2, outputs), variance)
        assert likelihood.log_power_mean(*given, torch.tensor(y), 0.5).isnan().all()


@pytest.mark.parametrize("name", EXTREME)
def test_stays_on_its_device(name):
    """The meta device takes no tensor of another one, and refuses to look at values."""
    likelihood, outputs, y = EXTREME[name]
    likelihood = copy.deepcopy(likelihood).to("meta")
    mean, variance = torch.zeros(2, 2, outputs, device="meta")
    value = likelihood.log_power_mean(mean, variance, torch.tensor(y, device="meta"), 0.5)
    assert value.device.type == "meta"
    assert value.shape == (2,)


# -------------------------------------------------------------------------------------------------------- quadrature


def random_points(count, seed, *ranges):
    generator = np.random.default_rng(seed)
    return [[generator.uniform(*limits) for limits in ranges] for _ in range(count)]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gaussian(alpha):
    for residual, std, scale in [(0.0, 1.0, 0.5), (3.0, 0.2, 0.1), *random_points(15, 0, (-3, 3), (0.01, 3), (0.1, 3))]:
        ratio = 1 + alpha * std**2 / scale**2
        y = torch.tensor([0.4 + residual])
        actual = Gaussian(scale).double().log_power_mean(column(0.4), column(std**2), y, alpha).item()
        if ratio <= 0:
            assert actual == -math.inf
        else:
            residual, scale = y.double().item() - 0.4, torch.tensor(scale).item()
            exact = by_quadrature(lambda x: stats.norm.logpdf(x, residual, scale), 0.0, std, alpha)  # noqa: B023
            assert actual == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_gaussian_predictive_density_at_one():
    y, mean, variance = torch.randn(3, 20, 1, dtype=torch.float64)
    variance = variance.square()
    exact = torch.distributions.Normal(mean, (variance + 0.49).sqrt()).log_prob(y).squeeze(1)
    noise = {"noise": torch.tensor(0.7, dtype=torch.float64)}
    prior = Gaussian(CASES["gaussian prior"].likelihood.prior)
    close(prior.log_power_mean(mean, variance, y.squeeze(1), 1.0, **noise), exact)


def test_gaussian_that_diverges():
    """At α v = -s² and below there is no expectation of p^α; the other targets keep their gradients."""
    mean, y = column(0.0, 0.0, 0.0, 0.0).T.requires_grad_(), column(0.5, 0.5, 0.5, 0.5)[0]
    variance = column(1.9, 2.0, 2.1, 0.0).T.requires_grad_()
    value = Gaussian(1.0).double().log_power_mean(mean, variance, y, -0.5)
    assert value.isinf().tolist() == [False, True, True, False]
    assert (value[1:3] == -math.inf).all()
    slopes = torch.autograd.grad(value[[0, 3]].sum(), (mean, variance), retain_graph=True)
    assert all(slope.isfinite().all() for slope in slopes)
    assert (slopes[0][[0, 3]] > 0).all()
    infinite = torch.autograd.grad(value[1:3].sum(), (mean, variance))
    assert all((slope == 0).all() for slope in infinite)


@pytest.mark.parametrize("name", ["gaussian multi", "gaussian multi prior", "gaussian shared", "heteroscedastic multi"])
def test_targets_are_independent(name):
    case = CASES[name]
    mean, variance, y = case.output, 0.1 + case.output.square(), case.y
    for alpha in (1e-6, 0.5, 2.0):
        parts = []
        for c in range(3):
            if isinstance(case.likelihood, HeteroscedasticGaussian):
                single, chosen = case.likelihood, [c, 3 + c]
            else:
                scale = case.sites.get("noise", case.likelihood.scale)
                single, chosen = Gaussian(scale if scale is None or scale.dim() == 0 else scale[c]), [c]
            parts.append(single.log_power_mean(mean[:, chosen], variance[:, chosen], y[:, c], alpha))
        close(case.likelihood.log_power_mean(mean, variance, y, alpha, **case.sites), sum(parts))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Poisson()])
def test_discrete_targets_are_independent(likelihood):
    mean, variance = column(0.3, -1.0, 2.0), column(1.0, 0.1, 3.0)
    y = column(1.0, 0.0, 1.0)
    parts = [likelihood.log_power_mean(mean[:, [c]], variance[:, [c]], y[:, c], 0.5) for c in range(3)]
    close(likelihood.log_power_mean(mean, variance, y, 0.5), sum(parts))


def test_pixels_are_independent():
    case = CASES["categorical pixels"]
    variance = case.output.square()
    parts = case.likelihood.log_power_mean(
        case.output.movedim(1, -1).flatten(0, 2), variance.movedim(1, -1).flatten(0, 2), case.y.flatten(), 0.5
    )
    close(case.likelihood.log_power_mean(case.output, variance, case.y, 0.5), parts.view(len(case.y), -1).sum(1))


@pytest.mark.parametrize(
    ("stds", "tolerance"), [((0.05, 3.0), 1e-7), ((3.0, 5.0), 1e-5), ((5.0, 10.0), 1e-4), ((10.0, 30.0), 1e-2)]
)
@pytest.mark.parametrize("alpha", [*ALPHAS, -1.0, 5.0])
def test_bernoulli_is_as_accurate_as_it_says(alpha, stds, tolerance):
    if alpha == 1e-6 and stds[1] > 5:
        tolerance *= 3  # stated for the mean power, and here it is compared with a difference of powers
    for mean, std in [(-15.0, stds[1]), (0.3, stds[1]), *random_points(8, 1, (-12, 12), stds)]:
        if alpha < 0 and -alpha * std > 7:
            continue
        for y, sign in ((0.0, -1.0), (1.0, 1.0)):
            exact = by_quadrature(lambda x: -softplus(-sign * x), mean, std, alpha)  # noqa: B023
            actual = Bernoulli().log_power_mean(column(mean), column(std**2), torch.tensor([y]), alpha).item()
            assert actual == pytest.approx(exact, abs=tolerance), (mean, std, y)


def test_bernoulli_of_a_wild_negative_power():
    """Two peaks far apart: one is found, and the other one is worth log 2 at most."""
    for mean, std, alpha in random_points(30, 2, (-10, 60), (10, 20), (-1, -0.7)):
        exact = by_quadrature(lambda x: -softplus(-x), mean, std, alpha)
        actual = Bernoulli().log_power_mean(column(mean), column(std**2), torch.tensor([1.0]), alpha).item()
        assert actual == pytest.approx(exact, abs=-1 / alpha)


@pytest.mark.parametrize(
    ("std", "tolerance"), [(0.1, 1e-8), (1.0, 1e-8), (2.0, 1e-6), (3.0, 1e-5), (5.0, 1e-4), (10.0, 5e-3)]
)
@pytest.mark.parametrize("alpha", [0.01, *ALPHAS[2:]])
def test_poisson_is_as_accurate_as_it_says(alpha, std, tolerance):
    for y in (0.0, 1.0, 40.0, 5000.0):
        for (mean,) in [(-5.0,), *random_points(2, 3, (-3, 6))]:
            exact = by_quadrature(lambda x: y * x - np.exp(x) - special.gammaln(y + 1), mean, std, alpha)  # noqa: B023
            actual = Poisson().log_power_mean(column(mean), column(std**2), torch.tensor([y]), alpha).item()
            assert actual == pytest.approx(exact, abs=tolerance * (1 + abs(exact))), (y, mean)


def test_small_powers_of_counts_and_scales():
    """Where powers cancel and the quadratures of `expected_log_prob` do not reach."""
    for mean, std in random_points(10, 4, (-2, 2), (0.1, 1)):
        exact = by_quadrature(lambda x: 3 * x - np.exp(x) - math.log(6), mean, std, 1e-6)
        actual = Poisson().log_power_mean(column(mean), column(std**2), torch.tensor([3.0]), 1e-6).item()
        assert actual == pytest.approx(exact, rel=1e-7, abs=1e-7)
        exact = by_quadrature(lambda x: stats.norm.logpdf(1.0, 0.0, 0.05 + softplus(x)), mean, std, 1e-6)
        actual = (
            HeteroscedasticGaussian(0.05)
            .log_power_mean(column(0.0, mean), column(0.0, std**2), torch.tensor([1.0]), 1e-6)
            .item()
        )
        assert actual == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("std", "tolerance"), [(0.05, 1e-6), (0.3, 1e-3), (1.0, 1e-3), (3.0, 1e-3), (5.0, 5e-3)])
@pytest.mark.parametrize("alpha", [0.01, *ALPHAS[2:]])
def test_heteroscedastic_is_as_accurate_as_it_says(alpha, std, tolerance):
    """Up to targets a thousand noise scales off, where what counts is far out in the tail of the scale."""
    points = [(-6.0, 4.0, 0.0, 1e-3), (-6.0, 4.0, 1.0, 0.05), (-6.0, 0.3, 0.01, 0.05)]
    for mean, residual, variance, least in [*points, *random_points(5, 5, (-5, 3), (0, 4), (0, 2), (1e-3, 0.1))]:

        def log_prob(x):
            square = (least + softplus(x)) ** 2  # noqa: B023
            loc = np.log1p(alpha * variance / square) / alpha + residual**2 / (square + alpha * variance)  # noqa: B023
            return -0.5 * (np.log(2 * np.pi * square) + loc)

        exact = by_quadrature(log_prob, mean, std, alpha)
        actual = HeteroscedasticGaussian(least).log_power_mean(
            column(1.0, mean), column(variance, std**2), torch.tensor([1.0 + residual], dtype=torch.float64), alpha
        )
        assert actual.item() == pytest.approx(exact, abs=tolerance * (1 + abs(exact))), (mean, residual, variance)


# ------------------------------------------------------------------------------------------------------- Categorical


def _classes(count, std, seed):
    generator = np.random.default_rng(seed)
    return 2 * generator.normal(size=count), std**2 * generator.uniform(0.5, 1.5, count), int(generator.integers(count))


def test_the_exact_mean_of_two_classes():
    """What the bounds are compared with, itself against a quadrature of the difference of two logits."""
    for alpha in (-0.5, 0.3, 1.0):
        mean, variance, y = _classes(2, 1.5, 1)
        difference = mean[y] - mean[1 - y]
        exact = by_quadrature(lambda x: -softplus(-x), difference, math.sqrt(variance.sum()), alpha)
        assert softmax_power_mean(mean, variance, y, alpha) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(("std", "mean_gap", "largest"), [(0.3, 1e-3, 2e-3), (1.0, 0.08, 0.12), (2.0, 0.65, 0.9)])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 0.5, 1.0, 2.0])
def test_categorical_is_a_bound_as_close_as_it_says(alpha, std, mean_gap, largest):
    gaps = []
    for seed in range(9):
        mean, variance, y = _classes((2, 3, 8)[seed % 3], std, seed)
        actual = Categorical().log_power_mean(column(*mean), column(*variance), torch.tensor([y]), alpha).item()
        gaps.append(softmax_power_mean(mean, variance, y, alpha) - actual)
    assert min(gaps) > -1e-7
    assert np.mean(gaps) < mean_gap
    assert max(gaps) < largest


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0, 30.0])
def test_categorical_is_exact_at_minus_one(std):
    """E[1/p] = 1 + Σ_k≠y E exp(f_k - f_y), of log-normal variables."""
    mean, variance = _normal(50, 4), std**2 * _normal(50, 4, seed=1).square()
    y = torch.arange(50) % 4
    own, own_variance = mean.gather(1, y[:, None]), variance.gather(1, y[:, None])
    terms = (mean - own + 0.5 * (variance + own_variance)).scatter(1, y[:, None], 0.0)
    close(Categorical().log_power_mean(mean, variance, y, -1.0), -terms.logsumexp(1))


@pytest.mark.parametrize("std", [0.5, 2.0, 8.0])
def test_categorical_takes_the_best_tilt(std):
    """No other `a` than what it finds gives a higher bound, for the label of any class."""
    mean, variance = 3 * _normal(30, 6), std**2 * _normal(30, 6, seed=1).square()
    y, generator = torch.arange(30) % 6, torch.Generator().manual_seed(2)
    for alpha in (-0.5, 0.0, 0.5, 2.0):
        actual = Categorical().log_power_mean(mean, variance, y, alpha)
        own = torch.nn.functional.one_hot(y, 6)
        weight = (1 + alpha) * variance
        for sharpness in (0.0, 1.0, 3.0, 10.0):
            for _ in range(50):
                logits = sharpness * torch.randn(30, 6, generator=generator, dtype=torch.float64)
                a = (logits + mean / (1 + weight)).softmax(1)
                shifted = mean + alpha * own * variance + 0.5 * variance - a * weight
                other = ((mean + 0.5 * alpha * variance) * own - 0.5 * a.square() * weight).sum(1) - shifted.logsumexp(
                    1
                )
                assert (other <= actual + 1e-9).all()


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

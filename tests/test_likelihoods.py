"""Likelihoods: every member through the same properties, then what is particular to one."""

import copy
import math
import pickle
from dataclasses import dataclass, field

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from bnnzoo.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Poisson,
)

N = 6


@dataclass
class Case:
    """A likelihood with outputs, targets and its log probability according to scipy, [N] from numpy outputs."""

    likelihood: Likelihood
    output: Tensor
    y: Tensor
    reference: object
    sites: dict = field(default_factory=dict)


def softplus(value):
    return np.logaddexp(0.0, value)


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _cases():
    one, three = _normal(N, 1), _normal(N, 3)
    y1, y3 = _normal(N, seed=1), _normal(N, 3, seed=1)
    scales = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    learned, single = Gaussian(num_outputs=3).double(), Gaussian().double()
    single.log_scale.data.fill_(math.log(0.5))  # what single precision rounded
    learned.log_scale.data = scales.log()
    noise = {"noise": torch.tensor(0.7, dtype=torch.float64)}
    norm = stats.norm.logpdf
    bit, count = (y1 > 0).double(), torch.tensor([0.0, 1, 2, 5, 0, 11], dtype=torch.float64)

    def hetero(f, y):
        return norm(y, f[:, : f.shape[1] // 2], 0.05 + softplus(f[:, f.shape[1] // 2 :])).sum(1)

    def softmax(f, y):
        return np.take_along_axis(f - np.logaddexp.reduce(f, 1, keepdims=True), y[:, None], 1).squeeze(1)

    def bernoulli(f, y):
        return stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-f)))

    hetero_half = HeteroscedasticGaussian(min_scale=0.05)
    labels, pixels = torch.tensor([0, 1, 2, 3, 3, 0]), torch.arange(N * 6).reshape(N, 2, 3) % 4
    return {
        "gaussian": Case(Gaussian(0.5).double(), one, y1, lambda f, y: norm(y, f[:, 0], 0.5)),
        "gaussian learned": Case(single, one, y1, lambda f, y: norm(y, f[:, 0], 0.5)),
        "gaussian prior": Case(Gaussian(dist.LogNormal(0.0, 1.0)), one, y1, lambda f, y: norm(y, f[:, 0], 0.7), noise),
        "gaussian multi": Case(Gaussian(scales), three, y3, lambda f, y: norm(y, f, scales.numpy()).sum(1)),
        "gaussian multi learned": Case(learned, three, y3, lambda f, y: norm(y, f, scales.numpy()).sum(1)),
        "gaussian multi prior": Case(
            Gaussian(dist.HalfNormal(1.0), num_outputs=3),
            three,
            y3,
            lambda f, y: norm(y, f, scales.numpy()).sum(1),
            {"noise": scales},
        ),
        "gaussian shared": Case(Gaussian(0.5).double(), three, y3, lambda f, y: norm(y, f, 0.5).sum(1)),
        "heteroscedastic": Case(hetero_half, _normal(N, 2), y1, lambda f, y: hetero(f, y[:, None])),
        "heteroscedastic multi": Case(hetero_half, _normal(N, 6), y3, hetero),
        "categorical": Case(Categorical(), _normal(N, 4), labels, softmax),
        "categorical pixels": Case(
            Categorical(), _normal(N, 4, 2, 3), pixels, lambda f, y: softmax(f, y).reshape(N, -1).sum(1)
        ),
        "bernoulli": Case(Bernoulli(), one, bit, lambda f, y: bernoulli(f[:, 0], y)),
        "bernoulli multi": Case(Bernoulli(), three, (y3 > 0).double(), lambda f, y: bernoulli(f, y).sum(1)),
        "poisson": Case(Poisson(), one, count, lambda f, y: stats.poisson.logpmf(y, np.exp(f[:, 0]))),
        "poisson multi": Case(
            Poisson(), three, count[:, None] + torch.arange(3), lambda f, y: stats.poisson.logpmf(y, np.exp(f)).sum(1)
        ),
    }


CASES = _cases()


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return CASES[request.param]


def close(actual, expected, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=rtol, atol=atol)


def test_every_member_of_the_registry_is_tested():
    assert set(LIKELIHOODS) == {name.split()[0] for name in CASES}
    for name, constructor in LIKELIHOODS.items():
        assert isinstance(constructor(), Likelihood)
        assert type(CASES[name].likelihood) is constructor


# ------------------------------------------------------------------------------------------------------ every member


def test_log_prob_agrees_with_scipy_and_with_the_distribution(case):
    actual = case.likelihood.log_prob(case.output, case.y, **case.sites)
    close(actual, case.reference(case.output.numpy(), case.y.numpy()))
    distribution = case.likelihood.distribution(case.output, **case.sites)
    assert distribution.batch_shape == (N,)
    assert distribution.event_shape == case.y.shape[1:]
    close(distribution.log_prob(case.y), actual)
    assert isinstance(
        case.likelihood.family(**case.likelihood.conditional(case.output, **case.sites)), case.likelihood.family
    )


def test_targets_pass_their_own_checks(case):
    prepared = case.likelihood.prepare(case.y)
    close(prepared, case.y, 0, 0)
    close(case.likelihood.prepare(case.y.numpy()), case.y, 0, 0)
    case.likelihood.check(case.output, prepared)
    case.likelihood.check(case.output[:2], prepared)
    assert case.likelihood.num_outputs(prepared) == case.output.shape[1]
    if case.y.dim() == 1:
        close(case.likelihood.prepare(case.y[:, None]), case.y, 0, 0)


def test_parameters_have_equal_ranks_so_that_stacked_draws_broadcast(case):
    def conditional(output):
        return case.likelihood.conditional(output, **case.sites)

    stacked = torch.func.vmap(conditional)(torch.stack([case.output, case.output + 1, case.output - 1, case.output]))
    values = torch.broadcast_tensors(*stacked.values())
    logits = case.likelihood.family is dist.Categorical
    assert values[0].shape == (4, *case.y.shape, *((4,) if logits else ()))


def test_vmap_over_outputs_targets_and_sites_equals_a_loop(case):
    outputs = torch.stack([case.output, 0.5 * case.output, -case.output])
    targets = torch.stack([case.y, case.y.flip(0), case.y])
    sites = {name: torch.stack([value, 2 * value, 3 * value]) for name, value in case.sites.items()}

    def both(output, y, sites):
        log_prob = case.likelihood.log_prob(output, y, **sites)
        expected = case.likelihood.expected_log_prob(output, output.square(), y, **sites)
        return log_prob, expected, case.likelihood.log_power_mean(output, output.square(), y, 0.5, **sites)

    with pyro.validation_enabled(False):
        mapped = torch.func.vmap(both)(outputs, targets, sites)
        sampled = torch.func.vmap(
            lambda output, sites: case.likelihood.distribution(output, **sites).log_prob(case.y),
        )(outputs, sites)
    for i in range(3):
        each = {name: value[i] for name, value in sites.items()}
        for actual, expected in zip(mapped, both(outputs[i], targets[i], each), strict=True):
            close(actual[i], expected)
        close(sampled[i], case.likelihood.log_prob(outputs[i], case.y, **each))


def test_expectation_at_zero_variance_is_the_log_prob_with_finite_gradients(case):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        likelihood, sites = copy.deepcopy(case.likelihood).to(dtype), {k: v.to(dtype) for k, v in case.sites.items()}
        mean = case.output.to(dtype, copy=True).requires_grad_()
        variance = torch.zeros_like(mean, requires_grad=True)
        expected = likelihood.expected_log_prob(mean, variance, case.y, **sites)
        assert expected.dtype == dtype
        close(expected, likelihood.log_prob(mean, case.y, **sites), tolerance, tolerance)
        slope, curvature = torch.autograd.grad(expected.sum(), (mean, variance))
        direct = torch.autograd.grad(likelihood.log_prob(mean, case.y, **sites).sum(), mean)[0]
        close(slope, direct, 10 * tolerance, 10 * tolerance)
        # d/dv E f(x) = E f''(x) / 2 for x ~ N(m, v)
        hessian = torch.autograd.functional.hessian(
            lambda flat: likelihood.log_prob(flat.view_as(mean), case.y, **sites).sum(),  # noqa: B023
            mean.detach().flatten(),
        )
        close(curvature.flatten(), 0.5 * hessian.diagonal(), 1e-3 if dtype == torch.float32 else 1e-6, 1e-3)


def test_expectation_agrees_with_monte_carlo_or_bounds_it(case):
    """Long Monte Carlo for every member; the accuracy of each quadrature is tested below."""
    mean, variance = case.output, 0.1 + case.output.square()
    actual = case.likelihood.expected_log_prob(mean, variance, case.y, **case.sites)
    assert actual.shape == (N,)
    draws = 100_000 if case.likelihood.family is not dist.Categorical else 40_000
    generator = torch.Generator().manual_seed(3)
    samples = []
    for _ in range(20):
        noise = torch.randn(draws // 20, *mean.shape, generator=generator, dtype=torch.float64)
        flat = (mean + variance.sqrt() * noise).flatten(0, 1)
        y = case.y.expand(draws // 20, *case.y.shape).flatten(0, 1)
        samples.append(case.likelihood.log_prob(flat, y, **case.sites).view(-1, N))
    sample = torch.cat(samples)
    error = sample.std(0) / math.sqrt(draws)
    difference = actual - sample.mean(0)
    if case.likelihood.family is dist.Categorical:
        assert (difference < 5.5 * error).all()
        jensen = mean.gather(1, case.y.unsqueeze(1)).squeeze(1) - (mean + variance / 2).logsumexp(1)
        assert (actual >= jensen.reshape(N, -1).sum(1) - 1e-12).all()
    else:
        assert (difference.abs() < 5.5 * error).all()


def test_rescaling_moves_the_density_to_the_targets_units(case):
    if not case.likelihood.standardizes_targets:
        with pytest.raises(ValueError, match="no units"):
            case.likelihood.rescale({}, 0.0, 1.0)
        return
    several = case.y.dim() == 2
    loc = torch.tensor([10.0, -3.0, 0.5], dtype=torch.float64) if several else torch.tensor(10.0, dtype=torch.float64)
    scale = torch.tensor([5.0, 0.1, 2.0], dtype=torch.float64) if several else torch.tensor(5.0, dtype=torch.float64)
    parameters = case.likelihood.conditional(case.output, **case.sites)
    stacked = {name: value.expand(2, 4, *value.shape) for name, value in parameters.items()}
    rescaled = case.likelihood.rescale(stacked, loc, scale)
    density = case.likelihood.family(**rescaled).log_prob(case.y * scale + loc)
    assert density.shape == (2, 4, *case.y.shape)
    density = density.sum(-1) if several else density
    jacobian = scale.log().sum() if several else scale.log()
    close(density[1, 2], case.likelihood.log_prob(case.output, case.y, **case.sites) - jacobian)


def test_copies_conversions_and_rebuilding_from_the_arguments(case):
    for copied in (copy.deepcopy(case.likelihood), pickle.loads(pickle.dumps(case.likelihood))):
        close(
            copied.log_prob(case.output, case.y, **case.sites),
            case.likelihood.log_prob(case.output, case.y, **case.sites),
        )
    rebuilt = type(case.likelihood)(**case.likelihood.arguments())
    rebuilt.load_state_dict(case.likelihood.state_dict())
    rebuilt.to(torch.float64)
    assert set(rebuilt.sites()) == set(case.likelihood.sites())
    close(
        rebuilt.log_prob(case.output, case.y, **case.sites),
        case.likelihood.log_prob(case.output, case.y, **case.sites),
        1e-6,
        1e-6,
    )
    half = copy.deepcopy(case.likelihood).to(torch.float32)
    single = {name: value.float() for name, value in case.sites.items()}
    assert half.log_prob(case.output.float(), case.y, **single).dtype == torch.float32
    assert all(prior.sample().dtype == torch.float32 for prior in half.sites().values())


def test_runs_as_a_pyro_site_in_a_plate(case):
    def model():
        latent = {name: pyro.sample(name, prior) for name, prior in case.likelihood.sites().items()}
        with pyro.plate("data", N):
            return pyro.sample("y", case.likelihood.distribution(case.output, **latent))

    with pyro.validation_enabled():
        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
    assert trace.nodes["y"]["value"].shape == case.y.shape
    assert {*case.sites, "y"} == {name for name in trace.stochastic_nodes if name != "data"}
    for name, value in case.sites.items():
        assert trace.nodes[name]["value"].shape == value.shape


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite(case, value):
    y = case.y.double().clone()
    y.flatten()[3] = value
    with pytest.raises(ValueError, match="y holds 1 values that are NaN or infinite, the first at index"):
        case.likelihood.prepare(y)


def test_targets_of_an_impossible_kind(case):
    for bad in (
        np.array(["a"] * N),
        case.y.to(torch.complex64),
        torch.zeros(0),
        torch.tensor(1.0),
        torch.zeros(2, 2, 2, 2, 2) if case.likelihood.family is not dist.Categorical else torch.zeros(4, 2),
    ):
        with pytest.raises(ValueError, match=r"likelihood (needs|targets must)"):
            case.likelihood.prepare(bad)


def test_outputs_that_do_not_fit(case):
    for bad in (case.output[:, 0], case.output[:, :1].repeat(1, 9, *[1] * (case.output.dim() - 2))[..., None]):
        with pytest.raises(ValueError, match=r"the network returns \["):
            case.likelihood.check(bad, case.y)
    with pytest.raises(ValueError, match=r"the network returns \["):
        case.likelihood.check(torch.cat([case.output, case.output]), case.y)
    if case.likelihood.family is not dist.Categorical:
        with pytest.raises(ValueError, match=rf"shape \[N, {case.output.shape[1]}\]"):
            case.likelihood.check(torch.zeros(N, case.output.shape[1] + 1), case.y)


# ---------------------------------------------------------------------------------------------------- one at a time


def _integral(function, mean, std):
    """E function(x), x ~ N(mean, std^2), by adaptive quadrature."""
    points = [mean + std * k for k in (-4, -2, 0, 2, 4)]
    return integrate.quad(
        lambda x: function(x) * stats.norm.pdf(x, mean, std), mean - 12 * std, mean + 12 * std, points=points, limit=400
    )[0]


@pytest.mark.parametrize(("std", "tolerance"), [(0.1, 1e-7), (2.0, 1e-7), (3.0, 1e-5), (5.0, 5e-4), (30.0, 1e-2)])
@pytest.mark.parametrize("mean", [-15.0, -2.0, 0.3, 6.0])
def test_bernoulli_expectation_is_as_accurate_as_it_says(mean, std, tolerance):
    output = torch.full((1, 1), mean, dtype=torch.float64)
    variance = torch.full((1, 1), std**2, dtype=torch.float64)
    for y in (0.0, 1.0):
        exact = _integral(lambda x: y * x - softplus(x), mean, std)  # noqa: B023
        assert Bernoulli().expected_log_prob(output, variance, torch.tensor([y])).item() == pytest.approx(
            exact, abs=tolerance
        )


@pytest.mark.parametrize(("std", "absolute", "relative"), [(0.5, 1e-7, 1e-7), (2.0, 1e-7, 1e-5), (3.0, 1e-5, 1e-3)])
@pytest.mark.parametrize("mean", [-5.0, -1.0, 0.0, 3.0])
def test_heteroscedastic_expectation_is_as_accurate_as_it_says(mean, std, absolute, relative):
    likelihood = HeteroscedasticGaussian(min_scale=0.01)
    precision = _integral(lambda x: (0.01 + softplus(x)) ** -2.0, mean, std)
    log_scale = _integral(lambda x: np.log(0.01 + softplus(x)), mean, std)
    square = (1.5 - 0.2) ** 2 + 0.3
    exact = -0.5 * math.log(2 * math.pi) - log_scale - 0.5 * square * precision
    actual = likelihood.expected_log_prob(
        torch.tensor([[0.2, mean]], dtype=torch.float64), torch.tensor([[0.3, std**2]]).double(), torch.tensor([1.5])
    )
    assert actual.item() == pytest.approx(exact, abs=absolute + relative * 0.5 * square * precision)


@pytest.mark.parametrize(("std", "gap"), [(0.3, 0.002), (1.0, 0.15), (2.0, 1.5)])
def test_categorical_bound_is_below_the_expectation_and_close(std, gap):
    # two classes: log softmax is a function of the difference of the logits, so its expectation is one integral
    mean, y = _normal(30, 2) * 2, torch.arange(30) % 2
    variance = torch.full_like(mean, std**2)
    actual = Categorical().expected_log_prob(mean, variance, y)
    difference = (mean[:, 0] - mean[:, 1]) * torch.where(y == 0, -1.0, 1.0)
    exact = torch.tensor([-_integral(softplus, d.item(), math.sqrt(2) * std) for d in difference])
    assert (actual <= exact + 1e-9).all()
    assert (actual >= exact - gap).all()
    jensen = mean.gather(1, y[:, None])[:, 0] - (mean + variance / 2).logsumexp(1)
    assert ((exact - actual) < 0.6 * (exact - jensen)).all()


@pytest.mark.parametrize("std", [5.0, 20.0, 100.0])
def test_categorical_bound_is_never_looser_than_jensens(std):
    for classes, spread in ((10, 3.0), (2, 30.0), (3, 30.0)):
        mean, variance = spread * _normal(200, classes), std**2 * _normal(200, classes, seed=1).square()
        y = torch.arange(200) % classes
        actual = Categorical().expected_log_prob(mean, variance, y)
        jensen = (mean + variance / 2).logsumexp(1)
        slack = 1.1e-4 * (1 + jensen.abs())
        assert (actual >= mean.gather(1, y[:, None])[:, 0] - jensen - slack).all()
        assert actual.isfinite().all()


def test_categorical_bound_has_the_gradient_of_its_value():
    mean, variance = _normal(4, 5), _normal(4, 5, seed=1).square() + 0.1
    y = torch.tensor([0, 1, 4, 2])
    assert torch.autograd.gradcheck(
        lambda m, v: Categorical().expected_log_prob(m, v, y), (mean.requires_grad_(), variance.requires_grad_())
    )


def test_extreme_outputs_stay_finite():
    output = torch.tensor([[-200.0], [200.0]])
    for variance in (torch.zeros(2, 1), torch.full((2, 1), 1e4)):
        for likelihood in (Bernoulli(), Gaussian(0.1)):
            assert likelihood.expected_log_prob(output, variance, torch.tensor([1.0, 0.0])).isfinite().all()
        wide, spread = torch.cat([output, output], 1), torch.cat([variance, variance], 1)
        assert HeteroscedasticGaussian().expected_log_prob(wide, spread, torch.zeros(2)).isfinite().all()
        assert Categorical().expected_log_prob(wide, spread, torch.zeros(2, dtype=torch.long)).isfinite().all()


def test_a_learned_scale_is_the_root_mean_square_residual():
    y = 3.0 * _normal(200)
    likelihood = Gaussian().double()
    assert likelihood.scale.item() == pytest.approx(0.5)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=50)

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(torch.zeros(200, 1).double(), y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert likelihood.scale.item() == pytest.approx(y.square().mean().sqrt().item(), rel=1e-4)


def test_scale_is_a_parameter_a_buffer_or_a_site():
    learned, fixed = Gaussian(num_outputs=3), Gaussian(0.3)
    prior = Gaussian(dist.LogNormal(torch.zeros(()), torch.ones(())), 3)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    assert learned.scale.shape == (3,)
    assert list(fixed.parameters()) == []
    assert fixed.scale.item() == pytest.approx(0.3)
    assert prior.scale is None
    assert prior.sites()["noise"].batch_shape == (3,)
    assert learned.sites() == fixed.sites() == {}
    assert prior.double().sites()["noise"].sample().dtype == torch.float64
    assert prior.prior.base_dist.scale.dtype == torch.float64
    correlated = dist.TransformedDistribution(
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), [dist.transforms.ExpTransform()]
    )
    assert Gaussian(correlated, 3).sites()["noise"].shape() == (3,)


@pytest.mark.parametrize(
    ("scale", "num_outputs", "message"),
    [
        (0.0, 1, "must be positive and finite"),
        (-1.0, 1, "must be positive and finite"),
        (math.nan, 1, "must be positive and finite"),
        (torch.tensor([1.0, -2.0]), 2, "must be positive and finite"),
        ("big", 1, "must be a positive number"),
        (torch.distributions.LogNormal(0.0, 1.0), 1, "a Pyro distribution"),
        (torch.ones(3), 2, "one scale for each output"),
        (torch.ones(2, 2), 1, "one scale for each output"),
        (None, 0, "at least 1"),
        (None, 1.5, "at least 1"),
        (dist.Normal(0.0, 1.0), 1, "positive support"),
        (dist.Uniform(-1.0, 1.0), 1, "positive support"),
        (dist.Poisson(1.0), 1, "positive support"),
        (dist.LogNormal(torch.zeros(3), 1.0), 2, "does not fit the site"),
        (dist.LogNormal(torch.zeros(3), 1.0), 1, "does not fit the site"),
        (dist.LogNormal(torch.zeros(3), 1.0).to_event(1), 4, "does not fit the site"),
        (dist.Gamma(-1.0, 1.0, validate_args=False), 1, "concentration = -1"),
    ],
)
def test_gaussian_arguments_that_are_refused(scale, num_outputs, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(scale, num_outputs)


@pytest.mark.parametrize("min_scale", [0.0, -1.0, math.nan, math.inf])
def test_heteroscedastic_arguments_that_are_refused(min_scale):
    with pytest.raises(ValueError, match="positive and finite"):
        HeteroscedasticGaussian(min_scale)


def test_scales_that_do_not_fit_the_targets():
    with pytest.raises(ValueError, match="with 2 noise scales"):
        Gaussian(num_outputs=2).check(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("likelihood", "y", "message"),
    [
        (Categorical(), [0, -1], "labels from 0; y holds -1"),
        (Categorical(), [0.0, 0.5], "y holds 0.5"),
        (Categorical(), [[0, 1], [1, 0]], "one-hot"),
        (Bernoulli(), [0, 2], "0 and 1; y holds 2"),
        (Bernoulli(), [0.5, 1.0], "0 and 1; y holds 0.5"),
        (Poisson(), [1, -1], "y holds -1"),
        (Poisson(), [0.5, 1.0], "y holds 0.5"),
    ],
)
def test_targets_that_are_refused(likelihood, y, message):
    with pytest.raises(ValueError, match=message):
        likelihood.prepare(torch.tensor(y))


def test_labels_out_of_range_name_the_range():
    with pytest.raises(ValueError, match="must be 0 to 2 for a network of 3 outputs; y holds labels 0 to 3"):
        Categorical().check(torch.zeros(2, 3), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="at least 2 logits"):
        Categorical().check(torch.zeros(2, 1), torch.tensor([0, 0]))


def test_dtypes_of_prepared_targets():
    assert Categorical().prepare(torch.tensor([True, False])).dtype == torch.int64
    assert Categorical().prepare(torch.tensor([1.0, 0.0])).dtype == torch.int64
    for likelihood in (Gaussian(), HeteroscedasticGaussian(), Bernoulli(), Poisson()):
        assert likelihood.prepare(torch.tensor([1, 0], dtype=torch.uint8)).dtype == torch.get_default_dtype()
        assert likelihood.prepare(torch.tensor([1.0, 0.0], dtype=torch.float64)).dtype == torch.float64


def test_num_outputs_of_degenerate_labels():
    assert Categorical().num_outputs(torch.zeros(3, dtype=torch.long)) == 2
    assert HeteroscedasticGaussian().num_outputs(torch.zeros(3, 2)) == 4

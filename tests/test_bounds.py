"""The bound is a bound: on models whose evidence is known, no ELBO exceeds it, and a wrong density does."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pyro.infer.autoguide as autoguide
import pytest
import scipy.integrate
import scipy.optimize
import torch
from conjugate import Conjugate
from statistical import assert_mean
from torch import Tensor, nn

import bnnzoo.guides.mnf as mnf
from bnnzoo import BayesianNetwork, Posterior, fit, guides
from bnnzoo._contract.measure import mapped
from bnnzoo.objectives import ELBO

MODEL = Conjugate(n=30, d=3)
DRAWS = 1000
COMPARISONS = 1000

GUIDES: dict[str, Callable[[BayesianNetwork], nn.Module]] = {
    "mean field, local": lambda bnn: guides.MeanField(bnn, sampling="local"),
    "mean field, flipout": lambda bnn: guides.MeanField(bnn, sampling="flipout"),
    "mean field, dense": lambda bnn: guides.MeanField(bnn, sampling="dense"),
    "low rank": lambda bnn: guides.LowRank(bnn, rank=2),
    "Laplace, diagonal": lambda bnn: guides.Laplace(bnn, "diagonal"),
    "Laplace, last layer": lambda bnn: guides.Laplace(bnn, "last_layer"),
    "Pyro's AutoNormal": lambda bnn: autoguide.AutoNormal(bnn, init_scale=0.1),
    "MNF, masked": lambda bnn: guides.MNF(bnn, flow="masked", hidden=10, r_hidden=10),
    "MNF, realnvp": lambda bnn: guides.MNF(bnn, flow="realnvp", hidden=10, r_hidden=10),
    "MNF, iaf": lambda bnn: guides.MNF(bnn, flow="iaf", hidden=10, r_hidden=10),
}  # fmt: skip
MEAN_FIELD = [name for name in GUIDES if name.startswith("mean field")]
FLOWS = ["masked", "realnvp", "iaf"]


def draws_of_the_bound(posterior: Posterior, draws: int = DRAWS, model: Conjugate = MODEL) -> Tensor:
    """Single-draw estimates of each chain's ELBO on all data, [chain, draw], as the objective makes them."""
    return -mapped(posterior._pair, posterior.state(), draws, ELBO().differentiable_loss, *model.data).double()


def short(make: Callable[[BayesianNetwork], nn.Module], **settings) -> Posterior:
    bnn = MODEL.bnn()
    return fit(bnn, make(bnn), MODEL.data, **{"epochs": 1, "batch_size": MODEL.n, "chains": 2, "lr": 0.03, **settings})


def scattered(posterior: Posterior, by: float = 0.3) -> Posterior:
    """All parameters moved at random."""
    for value in posterior._parameters.values():
        value += by * torch.randn_like(value)
    return posterior


def assert_bound(bounds: Tensor, model: Conjugate = MODEL) -> None:
    """Means [chain, draw] are no higher than the log evidence, up to three standard errors."""
    mean, error = bounds.mean(1), bounds.std(1) / bounds.shape[1] ** 0.5
    evidence = model.evidence()
    assert (mean < evidence + 3 * error).all(), f"{mean.tolist()} ± {error.tolist()} above log evidence {evidence:.3f}"


@pytest.mark.parametrize("name", GUIDES)
def test_no_bound_exceeds_the_evidence(name):
    for posterior in (scattered(short(GUIDES[name])), short(GUIDES[name], epochs=120)):
        bounds = draws_of_the_bound(posterior)
        assert bounds.isfinite().all()
        assert_bound(bounds)
    # and this says something: after a short fit the bound is not far below
    assert bounds.mean(1).max() > MODEL.evidence() - 5


@pytest.mark.parametrize("name", MEAN_FIELD)
def test_mean_fields_bound_is_its_closed_form(name):
    posterior = scattered(short(GUIDES[name]))
    parameters, _ = posterior.state()
    locs, variances = parameters["guide.loc"].double(), (2 * parameters["guide.log_scale"]).exp().double()
    exact = torch.stack([MODEL.elbo(m, v.diag()) for m, v in zip(locs, variances, strict=True)])
    assert_mean(draws_of_the_bound(posterior).T, exact, COMPARISONS)


def test_mnf_contains_mean_field():
    """With z at 1, whatever the weights, the bound is that of the factorized Gaussian: so the best one is no lower."""
    guide = guides.MNF(MODEL.bnn(), flow_length=0, r_flow_length=0, init_z_scale=1e-3)
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean)
        guide.log_scale.copy_(MODEL.mean_field_scale.log())
        guide.r[2:4] = 0.0  # r(z | W) = q(z)
    posterior = fit(guide.model, guide, MODEL.data, epochs=1, lr=1e-9, batch_size=MODEL.n)
    assert_mean(draws_of_the_bound(posterior, 20_000).T, best_factorized(MODEL)[None], COMPARISONS)


def best_factorized(model: Conjugate) -> Tensor:
    """The highest bound of a factorized Gaussian."""
    return model.elbo(model.mean, model.mean_field_scale.square().diag())


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.003 ** (1 / 800))


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_training_brings_mnf_to_the_best_factorized_gaussian_at_least(flow):
    """From the network's own initial values; a chain may end in a worse optimum, so the best of four."""
    model = Conjugate(n=30, d=2, seed=54)  # strongly correlated inputs: the factorized Gaussian misses 1.2 nats
    bnn = model.bnn()
    guide = guides.MNF(bnn, flow=flow, hidden=10, r_hidden=10, init_scale=0.1)
    settings = {"epochs": 800, "batch_size": model.n, "chains": 4, "lr": 0.02, "scheduler": decaying}
    posterior = fit(bnn, guide, model.data, objective=ELBO(8), **settings)
    bounds = draws_of_the_bound(posterior, 20_000, model)
    assert_bound(bounds, model)
    mean, error = bounds.mean(1), bounds.std(1) / bounds.shape[1] ** 0.5
    assert (mean + 3 * error).max() > best_factorized(model)


def test_a_wrong_sign_of_log_r_breaks_the_bound(monkeypatch):
    """The mutant: the same tests fail where the guide's factor has `log r(z | W)` with the wrong sign."""
    for flow in FLOWS:
        with monkeypatch.context() as patch:
            original = mnf._log_r
            patch.setattr(mnf, "_log_r", lambda *args: -original(*args))  # noqa: B023
            posterior = short(GUIDES[f"MNF, {flow}"], epochs=60)
            bounds = draws_of_the_bound(posterior)
            with pytest.raises(AssertionError, match="above log evidence"):
                assert_bound(bounds)


@pytest.fixture
def product_model(monkeypatch) -> Iterator[ModuleType]:
    """benchmarks/product_model.py: y = w1 w2 x + noise, with its quadrature."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import product_model

    yield product_model
    for name in ("product_model", "common"):
        del sys.modules[name]


def test_the_products_evidence_is_that_of_one_weight_integrated_by_hand(product_model):
    """Given w2, targets are Gaussian: N(0, I + w2² x xᵀ)."""
    x, y = (each.double() for each in product_model.observations())
    evidence = product_model.log_integral(product_model.log_joint(x, y))
    xx, xy, yy = (float(a @ b) for a, b in ((x[:, 0], x[:, 0]), (x[:, 0], y), (y, y)))

    def density(w: float) -> float:
        spread = 1 + w * w * xx  # the matrix' one eigenvalue that is not 1
        square = yy - w * w * xy**2 / spread
        return math.exp(-0.5 * (square + w * w + math.log(spread) + (len(y) + 1) * math.log(2 * math.pi)))

    integral, _ = scipy.integrate.quad(density, -12, 12, epsabs=1e-16)
    assert math.isclose(evidence, math.log(integral), abs_tol=1e-5)


def test_no_independent_weights_have_a_higher_bound_than_gaussian_ones_on_the_product(product_model):
    """Coordinate ascent over densities of any shape ends where the best Gaussian is; the network is the density's."""
    x, y = (each.double() for each in product_model.observations())
    xx, xy, yy = (float(a @ b) for a, b in ((x[:, 0], x[:, 0]), (x[:, 0], y), (y, y)))

    def loss(parameters) -> float:
        (m, log_s) = (parameters[:2], parameters[2:])
        variances = [math.exp(2 * each) for each in log_s]
        mean, square = m[0] * m[1], (m[0] ** 2 + variances[0]) * (m[1] ** 2 + variances[1])
        likelihood = -0.5 * (yy - 2 * mean * xy + square * xx) - 0.5 * len(y) * math.log(2 * math.pi)
        kl = sum(0.5 * (a * a + v - 1 - math.log(v)) for a, v in zip(m, variances, strict=True))
        return kl - likelihood

    best = scipy.optimize.minimize(loss, [1.0, 1.0, -1.0, -1.0])
    assert math.isclose(product_model.best_factorized(x, y), -best.fun, abs_tol=1e-4)
    for network in (product_model.Product(), product_model.two_layers()):
        with torch.no_grad():
            next(network.parameters()).mul_(0.7)  # of Product, both
        scale = 0.49 if isinstance(network, product_model.Product) else 0.7
        torch.testing.assert_close(network(x.float()), scale * x.float())


@pytest.mark.slow
def test_mnf_holds_both_modes_of_the_product_and_beats_every_factorized_bound(product_model, monkeypatch, tmp_path):
    monkeypatch.setattr(product_model, "SETTING", {**product_model.SETTING, "epochs": 1500, "chains": 4})
    posterior = product_model.posterior_of("realnvp-4-cooled", 0, tmp_path)
    result = product_model.describe_fit(posterior)
    x, y = product_model.observations()
    evidence = product_model.log_integral(product_model.log_joint(x, y))
    best = max(range(4), key=lambda chain: result["elbo"][chain])
    elbo, error = result["elbo"][best], result["error"][best]
    assert all(e < evidence + 3 * s for e, s in zip(result["elbo"], result["error"], strict=True))
    assert elbo > product_model.best_factorized(x, y) + 0.2 + 4 * error
    assert 0.3 < result["share"][best] < 0.7
    draws = product_model.weights(posterior, 2000)[best]
    assert (draws.prod(-1) > 0).double().mean() > 0.9  # nearly none where the signs differ

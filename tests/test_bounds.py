"""The bound is a bound: on models whose evidence is known, no ELBO exceeds it, and a wrong density does."""

from collections.abc import Callable

import pyro.infer.autoguide as autoguide
import pytest
import torch
from conjugate import Conjugate
from statistical import assert_mean
from torch import Tensor, nn
from torch.func import functional_call

import bnnzoo.guides.mnf as mnf
from bnnzoo import BayesianNetwork, Posterior, fit, guides
from bnnzoo._vectorize import evaluating, pyro_settings, vectorize
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
    loss = ELBO().differentiable_loss

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], _: Tensor) -> Tensor:
        return -functional_call(posterior._pair, (parameters, buffers), (loss, *model.data))

    over_draws = vectorize(one, in_dims=(None, None, 0))
    with torch.no_grad(), pyro_settings(posterior._pair), evaluating(posterior._pair):
        state = posterior.state()
        return vectorize(over_draws, in_dims=(0, 0, None))(*state, torch.zeros(draws)).double()


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

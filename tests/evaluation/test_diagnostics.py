"""Importance sampling of a guide, convergence of predictions, distances to a reference."""

import math

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoNormal
from scipy import integrate, stats
from scipy.linalg import hadamard
from torch import nn

from bnnzoo import BayesianNetwork, Prediction, fit, guides, likelihoods, objectives, priors
from bnnzoo.data import as_dataset
from bnnzoo.evaluation import convergence, distance, khat_threshold, pareto_k, psis
from bnnzoo.evaluation.inference_data import chain_statistics
from tests.conjugate import Conjugate
from tests.posteriors import LABELS, X, Y, fitted
from tests.statistical import assert_mean, bound

NOISE, DRAWS = 0.5, 2000


class Orthogonal:
    """Linear regression on orthogonal inputs: the posterior is a product of Gaussians, which MeanField can be."""

    def __init__(self) -> None:
        design = torch.as_tensor(hadamard(32)[:, :4].copy()).float()
        self.x = design[:, 1:]
        noise = NOISE * torch.randn(32, generator=torch.Generator().manual_seed(0))
        self.y = self.x @ torch.tensor([1.0, -0.5, 0.2]) + 0.3 + noise
        precision = 32 / NOISE**2 + 1
        self.scale = precision**-0.5
        self.mean = torch.cat([design[:, 1:], design[:, :1]], 1).T @ self.y / NOISE**2 / precision
        covariance = design @ design.T + NOISE**2 * torch.eye(32)
        self.evidence = stats.multivariate_normal(np.zeros(32), covariance.numpy()).logpdf(self.y.numpy())
        self.data = self.x, self.y

    def bnn(self):
        torch.manual_seed(1)
        return BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(NOISE), dist.Normal(0.0, 1.0))

    def posterior(self, *factors):
        """A chain for each factor of the exact scales."""
        bnn = self.bnn()
        result = fit(bnn, guides.MeanField(bnn), self.data, epochs=1, chains=len(factors))
        for chain, factor in enumerate(factors):
            result._parameters["guide.loc"][chain] = self.mean
            result._parameters["guide.log_scale"][chain] = math.log(self.scale * factor)
        return result


@pytest.fixture(scope="module")
def model():
    return Orthogonal()


@pytest.fixture(scope="module")
def by_factor(model):
    return psis(model.posterior(1.0, 1.3, 0.3), model.data, num_samples=DRAWS)


def test_khat_of_the_posterior_itself_and_of_wide_and_narrow_ones(model, by_factor):
    exact, wide, narrow = by_factor["khat"].values
    # The ratios of a wider q are bounded; those of one narrower by c have a tail of shape 1 - c² = 0.91.
    assert exact < 0.5
    assert wide < 0.5
    assert narrow > by_factor.threshold
    assert np.ptp(by_factor["log_ratio"].values[0]) < 1e-3
    assert by_factor["elbo"].values[0] == pytest.approx(model.evidence, abs=1e-3)


def test_khat_is_arviz_s_of_ratios_made_by_hand(model, by_factor):
    draws = model.posterior(1.0, 1.3, 0.3).sample(DRAWS)
    w = torch.cat([draws["weight"][:, :, 0], draws["bias"]], -1).double().numpy()
    f = w[..., :3] @ model.x.double().numpy().T + w[..., 3:]
    joint = stats.norm(f, NOISE).logpdf(model.y.double().numpy()).sum(-1) + stats.norm.logpdf(w).sum(-1)
    scale = model.scale * np.array([1.0, 1.3, 0.3])[:, None, None]
    ratios = joint - stats.norm(model.mean.double().numpy(), scale).logpdf(w).sum(-1)
    np.testing.assert_allclose(by_factor["log_ratio"].values, ratios, atol=2e-3)
    for chain in (1, 2):
        assert by_factor["khat"].values[chain] == pytest.approx(float(az.psislw(ratios[chain])[1]), abs=0.01)
    np.testing.assert_allclose(by_factor["elbo"].values, ratios.mean(-1), atol=2e-3)
    np.testing.assert_allclose(by_factor["elbo_se"].values, ratios.std(-1, ddof=1) / DRAWS**0.5, atol=2e-4)


def test_khat_tells_a_good_fit_from_a_bad_one(model):
    bnn = model.bnn()
    good = fit(bnn, guides.MeanField(bnn), model.data, epochs=300, lr=0.02, chains=2)
    assert (psis(good, model.data, num_samples=DRAWS)["khat"] < 0.7).all()
    bad = fit(bnn, guides.MeanField(bnn, init_scale=0.01), model.data, epochs=10, lr=0.02, chains=2)
    assert (psis(bad, model.data, num_samples=DRAWS)["khat"] > 0.7).all()


def test_the_same_as_by_an_export(model):
    posterior = model.posterior(1.3, 0.3)
    exported = pareto_k(posterior.to_arviz(model.data, num_samples=500))
    np.testing.assert_allclose(psis(posterior, model.data, num_samples=500)["khat"], exported, atol=0.01)


def test_blocks_of_draws_and_rows_change_nothing():
    dataset = as_dataset((5.0 + 3.0 * X, Y), standardize=True)
    posterior = fitted(dataset=dataset, likelihood=likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)), chains=2)
    whole = psis(posterior, dataset, num_samples=300)
    parts = psis(posterior, dataset, num_samples=300, max_memory=200_000)
    np.testing.assert_allclose(parts["log_ratio"], whole["log_ratio"], rtol=1e-5)
    assert psis(posterior, dataset, num_samples=300, seed=1)["elbo"][0] != whole["elbo"][0]


@pytest.mark.parametrize("guide", [guides.MNF, AutoNormal, AutoIAFNormal, guides.LowRank])
def test_the_mean_log_ratio_is_the_elbo_of_guides_with_sites_of_their_own(guide):
    model = Conjugate()
    bnn = model.bnn()
    posterior = fit(bnn, guide(bnn), model.data, epochs=60, lr=0.03)
    elbo = objectives.ELBO()(posterior.bnn, posterior.guide.eval())
    with torch.no_grad():
        losses = torch.stack([elbo(*model.data) for _ in range(200)]).double()
    found = psis(posterior, model.data, num_samples=DRAWS)
    error = math.hypot(float(found["elbo_se"][0]), (losses.std() / 200**0.5).item())
    assert abs(float(found["elbo"][0]) + losses.mean().item()) < bound(4) * error
    assert float(found["elbo"][0]) < model.evidence() + bound(4) * error


def test_laplace_has_a_khat():
    model = Conjugate()
    bnn = model.bnn()
    posterior = fit(bnn, guides.Laplace(bnn), model.data, epochs=400, lr=0.02)
    assert psis(posterior, model.data, num_samples=DRAWS)["khat"] < 0.7


def test_the_threshold_depends_on_the_number_of_draws(by_factor):
    assert khat_threshold(100) == pytest.approx(0.5)
    assert by_factor.threshold == pytest.approx(1 - 1 / math.log10(DRAWS))
    assert khat_threshold(10**6) == 0.7


def test_what_psis_cannot_weigh(model):
    for guide in (guides.Map, guides.Dropout):
        with pytest.raises(ValueError, match=rf"guides\.{guide.__name__} has no density"):
            psis(fitted(guide=guide), (X, Y))
    with pytest.raises(ValueError, match="AutoDelta is a point"):
        psis(fitted(guide=AutoDelta), (X, Y))
    with pytest.raises(ValueError, match="LogUniform"):
        psis(fitted(prior=priors.LogUniform()), (X, Y))
    with pytest.raises(ValueError, match="these 9 are not the 40 of the fit"):
        psis(fitted(), (X[:9], Y[:9]))
    with pytest.raises(ValueError, match="at least 25 draws a chain, given num_samples=24"):
        psis(fitted(), (X, Y), num_samples=24)


def normal(loc, scale=1.0):
    """A prediction by locs [chain, draw, N, ...]."""
    loc = torch.as_tensor(np.asarray(loc))
    return Prediction({"loc": loc, "scale": torch.full_like(loc, scale)}, dist.Normal, "regression")


def split_rank_normalized(draws):
    """Vehtari et al. 2021: R-hat of draws [chain, draw], the larger of bulk and folded."""
    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, -half:]])

    def plain(values):
        z = stats.norm.ppf((stats.rankdata(values).reshape(values.shape) - 0.375) / (values.size + 0.25))
        within = z.var(1, ddof=1).mean()
        return math.sqrt((half - 1) / half + z.mean(1).var(ddof=1) / within)

    return max(plain(split), plain(np.abs(split - np.median(split))))


def test_r_hat_of_predictions():
    draws = np.random.default_rng(0).normal(size=(4, 100, 6))
    draws[2, :, 3] += 3.0  # one chain elsewhere at one input
    draws[1, :, 4] *= 4.0  # one chain wider: seen by the folded draws alone
    found = convergence(normal(draws))
    assert found["rhat"].dims == ("obs",)
    expected = [split_rank_normalized(draws[..., i]) for i in range(6)]
    np.testing.assert_allclose(found["rhat"], expected, rtol=1e-6)
    assert found["rhat"][[0, 1, 2, 5]].max() < 1.05  # 3 standard deviations of a calibrated one are 0.02
    assert found["rhat"][[3, 4]].min() > 1.1
    assert found.worst_rhat == found["rhat"].max()
    for kind in ("bulk", "tail"):
        assert found[f"ess_{kind}"][3] == pytest.approx(float(az.ess(draws[..., 3], method=kind)))
        assert found.attrs[f"least_ess_{kind}"] == found[f"ess_{kind}"].min()


def test_permuted_units_do_not_matter_to_the_function():
    posterior = fitted(chains=2)
    layer = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    draws = posterior.sample(200)
    own, other = ({name: value[0] for name, value in draws.items()} for _ in range(2))
    for name, dim in layer.items():
        other[name] = own[name].flip(dim + 1)
    both = {name: torch.stack([own[name], other[name]]) for name in own}
    x = posterior._inputs(X)
    parameters = posterior._map(lambda m, g, v, x: m.likelihood.conditional(m.output(v, x)), both, x)
    same = convergence(Prediction(parameters, dist.Normal, "regression"))
    assert same.worst_rhat < 1.03
    assert max(split_rank_normalized(both["0.bias"][..., unit].numpy()) for unit in range(5)) > 1.2


def test_convergence_of_classes_and_what_it_refuses():
    posterior = fitted(likelihood=likelihoods.Categorical(), net=_classes(), dataset=(X, LABELS), chains=2)
    found = convergence(posterior.predict(X[:5], num_samples=50))
    assert found["rhat"].shape == (5, 3)
    with pytest.raises(ValueError, match="at least 2 chains of 4 draws, given 1 of 50"):
        convergence(posterior.predict(X[:5], num_samples=50).chain(0))
    with pytest.raises(ValueError, match="points have nothing to converge"):
        convergence(fitted(guide=guides.Map, chains=2).predict(X[:5], num_samples=50))
    with pytest.raises(ValueError, match="moments draw nothing"):
        convergence(fitted().predict(X[:5], method="moments"))


def _classes():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def test_kl_of_gaussians_is_the_closed_form():
    # All draws alike: each prediction is one Gaussian.
    reference = normal(np.tile([[[0.0, 1.0]]], (2, 10, 1)), 1.5)
    prediction = normal(np.tile(np.array([[0.5, 1.0], [0.0, 3.0]])[:, None], (1, 7, 1)), 2.0)
    p, q = torch.distributions.Normal(reference.mean, 1.5), torch.distributions.Normal(prediction.draws[:, 0], 2.0)
    exact = torch.distributions.kl_divergence(p, q).mean(1)
    found = distance(prediction, reference, num_targets=4000)
    np.testing.assert_allclose(found["kl_gaussian"], exact, rtol=1e-6)
    z = (found["kl"] - exact.numpy()) / found["kl_se"]
    assert np.abs(z).max() < bound(2)
    assert (found["kl_se"] > 0).all()
    assert found["kl_gaussian_floor"] == 0
    assert found["kl_floor"] == 0
    assert found["energy_floor"] == 0


def test_the_standard_error_of_the_kl_is_that_of_seeds():
    rng = np.random.default_rng(0)
    reference, prediction = (normal(rng.normal(size=(1, 20, 3))) for _ in range(2))
    several = [distance(prediction, reference, num_targets=100, seed=seed) for seed in range(60)]
    spread = np.std([float(each["kl"][0]) for each in several], ddof=1)
    # Targets of stratified draws vary less than independent ones: the error may be stated too large, not too small.
    assert 0.5 * np.mean([float(each["kl_se"][0]) for each in several]) < spread
    assert spread < 1.6 * np.mean([float(each["kl_se"][0]) for each in several])


def test_kl_of_mixtures_is_that_of_quadrature():
    reference, prediction = normal([[[-2.0], [2.0], [2.0], [1.0]]], 0.5), normal([[[-1.5], [1.5]]], 1.0)

    def density(prediction):
        locs, scales = prediction.parameters["loc"].flatten().numpy(), prediction.parameters["scale"].flatten().numpy()
        return lambda y: stats.norm(locs, scales).pdf(y).mean()

    p, q = density(reference), density(prediction)
    exact = integrate.quad(lambda y: p(y) * math.log(p(y) / q(y)), -7, 7, limit=200)[0]
    found = distance(prediction, reference, num_targets=4000)
    assert abs(float(found["kl"][0]) - exact) < bound(1) * float(found["kl_se"][0])
    assert abs(float(found["kl_gaussian"][0]) - exact) > 0.03  # Gaussians would not tell


def test_kl_of_several_targets_adds_up_and_of_classes_is_exact():
    reference = normal(np.zeros((1, 8, 5, 2)))
    found = distance(normal(np.ones((1, 8, 5, 2))), reference, num_targets=2000)
    assert found["kl_gaussian"][0] == pytest.approx(1.0)  # ½ each
    assert abs(float(found["kl"][0]) - 1.0) < bound(1) * float(found["kl_se"][0])
    logits = torch.randn(2, 2, 6, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    p, q = (Prediction({"probs": each.softmax(-1)}, dist.Categorical, "classification") for each in logits)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p.pooled.probs), torch.distributions.Categorical(q.chain(1).probs)
    )
    found = distance(q, p)
    assert found["kl"].values[1] == pytest.approx(kl.mean().item())
    assert "kl_gaussian" not in found
    assert (found["kl_se"] == 0).all()


@pytest.mark.parametrize("family", [dist.Categorical, dist.Bernoulli])
@pytest.mark.parametrize("size", [200.0, 1000.0])  # beyond the least float32 and the least float64
def test_kl_of_sure_classes_is_finite(family, size):
    if family is dist.Categorical:
        sure, unsure = torch.tensor([size, 0.0, 0.0]), torch.zeros(3)
        expected = -math.log(3) + 2 * size / 3  # log 1/3 less the mean of log q
    else:
        sure, unsure = torch.tensor(size), torch.tensor(0.0)
        expected = -math.log(2) + size / 2
    prediction, reference = (
        Prediction({"logits": each.expand(1, 4, 5, *each.shape)}, family, "classification") for each in (sure, unsure)
    )
    assert distance(prediction, reference)["kl"].item() == pytest.approx(expected, rel=1e-6)
    assert distance(reference, prediction)["kl"].item() == pytest.approx(math.log(3 if sure.dim() else 2), rel=1e-6)
    impossible = Prediction({"probs": torch.tensor([1.0, 0.0]).expand(1, 4, 5, 2)}, dist.Categorical, "classification")
    even = Prediction({"probs": torch.tensor([0.5, 0.5]).expand(1, 4, 5, 2)}, dist.Categorical, "classification")
    assert distance(impossible, even)["kl"].item() == math.inf
    assert distance(impossible, impossible)["kl"].item() == 0.0


def test_energy_distance_is_scipy_s_and_of_vectors_that_of_their_norms():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1, 30, 1)), 0.5 + 2.0 * rng.normal(size=(2, 20, 1))
    found = distance(normal(a), normal(b), num_targets=2)
    expected = stats.energy_distance(a.ravel(), b.ravel()) ** 2
    assert found["energy"][0] == pytest.approx(expected)
    halves = stats.energy_distance(b[:, :10].ravel(), b[:, 10:].ravel()) ** 2
    assert float(found["energy_floor"]) == pytest.approx(halves)
    a, b = rng.normal(size=(1, 9, 4, 2)), rng.normal(size=(1, 7, 4, 2))

    def mean_norm(a, b):
        pairs = [math.sqrt(((i - j) ** 2).sum() / 4) for i in a[0] for j in b[0]]
        return sum(pairs) / len(pairs)

    exact = 2 * mean_norm(a, b) - mean_norm(a, a) - mean_norm(b, b)
    assert distance(normal(a), normal(b), num_targets=2)["energy"][0] == pytest.approx(exact)


def test_energy_distance_of_gaussians_is_the_closed_form():
    def mean_distance(shift, spread):  # of N(shift, spread²) from 0
        z = shift / spread
        return spread * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + shift * (1 - 2 * stats.norm.cdf(-z))

    quantiles = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[None, :, None]
    found = distance(normal(1.0 + 2.0 * quantiles), normal(quantiles), num_targets=2)
    exact = 2 * mean_distance(1, 5**0.5) - mean_distance(0, 2**1.5) - mean_distance(0, 2**0.5)
    assert found["energy"][0] == pytest.approx(exact, rel=2e-3)


def test_equal_posteriors_are_near_the_floor_and_others_far_above():
    rng = np.random.default_rng(3)
    reference = normal(rng.normal(size=(2, 200, 10)))
    found = distance(normal(np.stack([rng.normal(size=(200, 10)), 0.7 + rng.normal(size=(200, 10))])), reference)
    for name in ("kl", "kl_gaussian", "energy"):
        same, other = found[name].values
        assert same < 2 * found[f"{name}_floor"]
        assert other > 10 * found[f"{name}_floor"]
    drifting = normal(rng.normal(size=(2, 200, 10)) + np.linspace(0, 3, 200)[:, None])
    assert distance(reference, drifting)["energy_floor"] > 10 * found["energy_floor"]


def test_draws_of_the_reference_are_targets_with_its_moments():
    from bnnzoo.evaluation.diagnostics import _targets

    rng = np.random.default_rng(0)
    prediction = normal(3.0 * rng.normal(size=(1, 25, 4)), 0.1)
    y = _targets(prediction, 50, 0)
    # Each of the 25 draws twice: the mean is off by the noise alone.
    assert_mean(y - prediction.mean, torch.zeros(4).double(), 4)
    assert (y.mean(0) - prediction.mean).abs().max() < bound(4) * 0.1 / 50**0.5


def test_what_distance_refuses():
    reference = normal(np.zeros((1, 8, 5)))
    with pytest.raises(ValueError, match=r"regression of \[4\].*regression of \[5\].*same inputs"):
        distance(normal(np.zeros((1, 8, 4))), reference)
    with pytest.raises(ValueError, match="at least 4 draws a chain of the reference and 2 targets, given 3 and 500"):
        distance(reference, normal(np.zeros((1, 3, 5))))
    with pytest.raises(ValueError, match="moments draw nothing"):
        distance(fitted().predict(X[:5], method="moments"), reference)


def test_points_among_the_draws_have_no_convergence():
    # A dropout posterior's biases: one value a chain, of which R-hat would be 1e15.
    draws = np.random.default_rng(0).normal(size=(3, 50, 2))
    draws[..., 1] = np.arange(3)[:, None]
    found = chain_statistics(xr.DataArray(draws, dims=["chain", "draw", "weight"]))
    for name in ("rhat", "ess_bulk", "ess_tail"):
        assert np.isfinite(found[name].values).tolist() == [True, False]
    assert found.attrs["worst_rhat"] < 1.1

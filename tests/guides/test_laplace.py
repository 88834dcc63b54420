"""`Laplace`: its curvature against matrices built by hand and the conjugate model; what it draws and when; errors."""

import math

import numpy as np
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate
from saving import round_trip, same
from statistical import assert_covariance, assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, likelihoods, priors
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.chains import DivergenceWarning
from bnnzoo.guides import Laplace, Map, laplace
from bnnzoo.objectives import ELBO

COMPARISONS = 1000
MODEL = Conjugate(n=30, d=3)
STRUCTURES = ["diagonal", "last_layer"]


def network(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs))


def noisy(prior=priors.Normal(0.0, 0.7)) -> BayesianNetwork:  # noqa: B008  (never changed)
    return BayesianNetwork(network(), likelihoods.Gaussian(dist.HalfNormal(2.0)), prior)


def data(n: int = 12, outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 2, generator=generator), torch.randn(n, *[outputs] * (outputs > 1), generator=generator)


def softmax_hessian(f: Tensor, y: Tensor) -> Tensor:
    p = f.softmax(0)
    return p.diag() - p.outer(p)


def positive_part(f: Tensor, y: Tensor) -> Tensor:
    """The heteroscedastic Hessian, from its definition, without its negative part."""

    def nll(f: Tensor) -> Tensor:
        scale = 1e-3 + nn.functional.softplus(f[2:])
        return (0.5 * ((y - f[:2]) / scale).square() + scale.log()).sum()

    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(nll, f))
    assert values.min() < 0  # there is something to cut off
    return vectors @ values.clamp_min(0).diag() @ vectors.T


LIKELIHOODS = {
    "gaussian": (likelihoods.Gaussian(0.4), 1, data()[1], lambda f, y: torch.eye(1) / 0.4**2),
    "two outputs": (
        likelihoods.Gaussian(torch.tensor([0.4, 2.0])), 2, data(12, 2)[1],
        lambda f, y: torch.tensor([6.25, 0.25]).diag(),
    ),
    "categorical": (likelihoods.Categorical(), 4, torch.arange(12) % 4, softmax_hessian),
    "bernoulli": (
        likelihoods.Bernoulli(), 2, (data(12, 2)[1] > 0).float(), lambda f, y: (f.sigmoid() * (1 - f.sigmoid())).diag(),
    ),
    "poisson": (likelihoods.Poisson(), 1, torch.arange(12.0) % 5, lambda f, y: f.exp().diag()),
    "heteroscedastic": (likelihoods.HeteroscedasticGaussian(), 4, data(12, 2)[1], positive_part),
}  # fmt: skip


def gauss_newton(guide: Laplace, x: Tensor, y: Tensor, curvature) -> tuple[list[str], Tensor]:
    """Names and the full matrix over all weights in the network's order, a row and an output at a time."""
    net = guide.model.network
    names = [name for name, _ in net.named_parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    total = 0.0
    for row, target in zip(x, y, strict=True):
        f = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (row[None],))[0]
        jacobian = torch.stack(
            [torch.cat([g.reshape(-1) for g in torch.autograd.grad(each, weights, retain_graph=True)]) for each in f]
        ).double()
        total = total + jacobian.T @ curvature(f.detach(), target).double() @ jacobian
    return names, total


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("batch_size", [12, 5])
def test_the_curvature_is_the_generalized_gauss_newton_matrix(kind, batch_size):
    likelihood, outputs, y, curvature = LIKELIHOODS[kind]
    x, _ = data()
    bnn = BayesianNetwork(network(outputs), likelihood, {"0.*": dist.Normal(0.0, 0.7), "2.*": dist.Normal(1.0, 1.5)})
    diagonal, last = Laplace(bnn), Laplace(bnn, "last_layer")
    names, matrix = gauss_newton(diagonal, x, y, curvature)
    assert names == [*diagonal.layout.names]
    first = 9
    matrix += torch.cat([torch.full((first,), 0.7**-2), torch.full((len(matrix) - first,), 1.5**-2)]).double().diag()
    scale = diagonal.collect(x, y, batch_size)["scale"]
    torch.testing.assert_close(scale.double(), matrix.diag().rsqrt(), rtol=1e-4, atol=0)
    tril = last.collect(x, y, batch_size)["scale_tril"].double()
    torch.testing.assert_close(tril @ tril.T, matrix[first:, first:].inverse(), rtol=1e-3, atol=1e-5)
    assert torch.equal(tril, tril.tril())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_memory_bounds_the_rows_taken_at_once(structure, monkeypatch):
    bnn = BayesianNetwork(network(4), likelihoods.Categorical())
    guide = Laplace(bnn, structure)
    seen = []
    output = type(bnn).output
    monkeypatch.setattr(type(bnn), "output", lambda self, values, x: seen.append(len(x)) or output(self, values, x))
    x, y = data()[0], torch.arange(12) % 4
    whole = guide.collect(x, y, 12)
    few = len(seen)
    monkeypatch.setattr(laplace, "_WORKING_SET", 1)
    (name,) = whole
    torch.testing.assert_close(guide.collect(x, y, 12)[name], whole[name])
    assert few == 2  # one to learn the outputs, one block
    assert len(seen) - few == 13


@pytest.mark.parametrize("structure", STRUCTURES)
def test_convolutions_batch_normalization_and_fixed_parameters(structure):
    """Any network: here one whose convolution is not random, in eval mode."""
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    bnn = BayesianNetwork(net, likelihoods.Categorical(), {"0.*": None, "*": priors.Normal(0.0, 1.0)}).eval()
    x, y = torch.randn(5, 1, 6), torch.arange(5) % 2
    guide = Laplace(bnn, structure)
    with torch.no_grad():
        features = net.eval()[:4](x)
        p = net(x).softmax(-1)
    # for the last layer J is the features, one block an output
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    weights = torch.einsum("nkl,ni,nj->kilj", blocks, features, features).reshape(16, 16) + torch.eye(16)
    if structure == "diagonal":
        scale = guide.layout.split(guide.collect(x, y, 5)["scale"])
        torch.testing.assert_close(scale[guide.layout.names.index("4.weight")].reshape(-1), weights.diag().rsqrt())
    else:
        tril = guide.collect(x, y, 5)["scale_tril"]
        assert tril.shape == (18, 18)
        precision = (tril @ tril.T).inverse()
        torch.testing.assert_close(precision[:16, :16], weights, rtol=1e-3, atol=1e-4)


def test_images_of_labels():
    net = nn.Conv2d(1, 2, 1)
    bnn = BayesianNetwork(net, likelihoods.Categorical())
    x, y = torch.randn(3, 1, 2, 2), torch.randint(2, (3, 2, 2))
    scale = Laplace(bnn).collect(x, y, 3)["scale"]
    p = net(x).softmax(1)
    bias = (p * (1 - p)).sum((0, 2, 3)) + 1.0
    weight = (p * (1 - p) * x.square()).sum((0, 2, 3)) + 1.0
    torch.testing.assert_close(scale, torch.cat([weight, bias]).rsqrt().detach())


def mode(guide: Laplace) -> Laplace:
    """At the conjugate model's exact posterior mean, with the curvature there; in eval mode."""
    with torch.no_grad():
        guide.loc.copy_(MODEL.mean)
    for name, value in guide.collect(*MODEL.data, 7).items():
        getattr(guide, name).copy_(value)
    return guide.eval()


def test_on_linear_regression_the_last_layer_has_the_exact_posterior():
    guide = mode(Laplace(MODEL.bnn(), "last_layer"))
    tril = guide.scale_tril.double()
    torch.testing.assert_close(tril @ tril.T, MODEL.covariance, rtol=1e-4, atol=1e-7)
    drawn = MODEL.flat(_stacked(guide, 50_000))
    assert_mean(drawn, MODEL.mean, COMPARISONS)
    assert_covariance(drawn, MODEL.mean, MODEL.covariance, COMPARISONS)
    with torch.no_grad():
        bounds = torch.stack([-ELBO()(guide.model, guide)(*MODEL.data) for _ in range(50)])
    # q is the posterior, so that every draw of the bound is log p(y) itself
    torch.testing.assert_close(bounds.double(), MODEL.evidence().expand(50), rtol=1e-4, atol=1e-3)


def test_on_linear_regression_the_diagonal_has_the_optimal_factorized_scales():
    guide = mode(Laplace(MODEL.bnn()))
    torch.testing.assert_close(guide.scale.double(), MODEL.mean_field_scale, rtol=1e-5, atol=0)
    drawn = MODEL.flat(_stacked(guide, 50_000))
    assert_mean(drawn, MODEL.mean, COMPARISONS)
    assert_covariance(drawn, MODEL.mean, MODEL.mean_field_scale.square().diag(), COMPARISONS)
    expected = MODEL.elbo(MODEL.mean, MODEL.mean_field_scale.square().diag())
    with torch.no_grad():
        bounds = torch.stack([-ELBO(100)(guide.model, guide)(*MODEL.data) for _ in range(100)])
    assert_mean(bounds.double(), expected, COMPARISONS)


def _stacked(guide: Laplace, count: int) -> dict[str, Tensor]:
    with pyro_settings(guide):
        return vectorize(lambda _: guide())(torch.zeros(count))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_trains_as_map_does(structure):
    bnn = noisy()
    settings = {"epochs": 5, "chains": 2, "batch_size": 5, "lr": 0.01}
    plain = fit(bnn, Map(bnn), data(), **settings)
    ours = fit(bnn, Laplace(bnn, structure), data(), **settings, validation=data(4))
    np.testing.assert_array_equal(plain.history["loss"], ours.history["loss"])
    assert torch.equal(plain.state()[0]["guide.loc"], ours.state()[0]["guide.loc"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_chains_collect_at_their_own_points(structure):
    bnn = noisy()
    x, y = data()
    posterior = fit(bnn, Laplace(bnn, structure), (x, y), epochs=5, chains=3, batch_size=5, lr=0.05)
    parameters, buffers = posterior.state()
    (name,) = [name for name in buffers if name.startswith("guide.")]
    for chain in range(3):
        alone = Laplace(noisy(), structure)
        with torch.no_grad():
            alone.loc.copy_(parameters["guide.loc"][chain])
        collected = alone.collect(x, y, 12)[name.removeprefix("guide.")]
        torch.testing.assert_close(buffers[name][chain], collected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(buffers[name][0], buffers[name][1])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fit_sample_predict_save_load(structure, tmp_path):
    bnn = noisy()
    x, y = data()
    posterior = fit(bnn, Laplace(bnn, structure), (x, y), epochs=30, chains=2, lr=0.02)
    draws = posterior.sample(2000)
    assert draws["noise"].std(1).max() == 0  # a point
    spread = {name: draws[name].std(1) for name in bnn.priors}
    assert (spread["2.weight"] > 0.01).all()
    assert (spread["0.weight"] > 0).all() == (structure == "diagonal")
    assert posterior.predict(x, num_samples=50).mean.shape == (12,)
    log_q = posterior.log_q(draws)
    assert log_q is None
    loaded = round_trip(posterior, tmp_path)
    same(posterior, loaded, x)
    assert loaded.guide.structure == structure
    further = posterior.fit((x, y), epochs=1, batch_size=12)
    assert not torch.equal(further.state()[0]["guide.loc"], posterior.state()[0]["guide.loc"])


def test_a_diagonal_without_points_has_a_density():
    bnn = BayesianNetwork(network(), likelihoods.Gaussian(0.5))
    posterior = fit(bnn, Laplace(bnn), data(), epochs=3)
    assert posterior.guide.has_density
    assert not Laplace(bnn, "last_layer").has_density
    assert not Laplace(noisy()).has_density
    draws = posterior.sample(7)
    guide = posterior.guide
    loc, scale = guide.loc.detach(), guide.scale
    flat = torch.stack([guide.layout.join({n: v[0, i] for n, v in draws.items()}) for i in range(7)])
    torch.testing.assert_close(posterior.log_q(draws)[0], dist.Normal(loc, scale).log_prob(flat).sum(1))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_a_point_in_training_and_before_anything_is_collected(structure):
    bnn = noisy()
    guide = Laplace(bnn, structure)
    for fresh in (guide, guide.eval()):
        drawn = fresh()
        assert all(torch.equal(drawn[name], bnn.network.get_parameter(name)) for name in bnn.priors)
    for name, value in guide.collect(*data(), 12).items():
        getattr(guide, name).copy_(value)
    assert not torch.equal(guide()["2.weight"], bnn.network[2].weight)
    assert torch.equal(guide()["noise"], guide()["noise"])
    trace = poutine.trace(guide.train()).get_trace()
    assert trace.log_prob_sum() == 0.0
    guide.reset_parameters()
    assert torch.equal(guide.eval()()["2.weight"], bnn.network[2].weight)


@pytest.mark.parametrize("scale", [None, dist.HalfNormal(2.0)], ids=["learned", "site"])
def test_the_noise_is_where_it_has_got_to(scale):
    bnn = BayesianNetwork(network(), likelihoods.Gaussian(scale)).double()
    x, y = (t.double() for t in data())
    guide = Laplace(bnn)
    with torch.no_grad():
        (guide.loc[-1] if scale else bnn.likelihood.log_scale).fill_(math.log(0.4))
    fixed = Laplace(BayesianNetwork(network(), likelihoods.Gaussian(0.4)).double())
    collected = guide.collect(x, y, 5)["scale"]
    assert collected.dtype == torch.float64
    torch.testing.assert_close(collected, fixed.collect(x, y, 5)["scale"])


@pytest.mark.parametrize(
    "prior", [priors.LogUniform(), dist.StudentT(3.0, 0.0, 1.0), dist.Laplace(0.0, 1.0), priors.ScaleMixture()]
)
def test_only_gaussian_priors(prior):
    with pytest.raises(ValueError, match=rf"that of '2\.weight' is {type(prior).__name__}, whose curvature may be 0"):
        Laplace(noisy({"2.weight": prior, "*": priors.Normal(0.0, 1.0)}))
    first = {"0.*": prior, "*": priors.FanIn()}
    assert Laplace(noisy(first), "last_layer").collect(*data(), 12)["scale_tril"].shape == (4, 4)
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        Laplace(noisy(first))


def test_gaussian_priors_of_the_parameters_shape():
    prior = dist.Normal(torch.zeros(3, 2), torch.rand(3, 2) + 0.5).to_event(2)
    guide = Laplace(noisy({"0.weight": prior, "*": priors.Normal(0.0, 1.0)}))
    x, y = data()
    plain = Laplace(noisy(priors.Normal(0.0, 1.0))).collect(x, y, 12)["scale"] ** -2
    ours = guide.collect(x, y, 12)["scale"] ** -2
    # one prior is of another block, so the order of the weights differs
    start = sum(guide.layout.sizes[: guide.layout.names.index("0.weight")])
    difference = ours[start : start + 6] - plain[:6]
    torch.testing.assert_close(difference.view(3, 2), prior.base_dist.scale**-2 - 1.0, rtol=1e-3, atol=1e-3)
    assert guide.eval()()["0.weight"].shape == (3, 2)


def test_the_last_layer_is_found_or_named():
    conv = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 4), nn.Flatten())
    with pytest.raises(ValueError, match=r"ends with an nn\.Linear; the last module with parameters is '2', Conv1d"):
        Laplace(BayesianNetwork(conv, likelihoods.Gaussian(1.0)), "last_layer")
    with pytest.raises(ValueError, match=r"the last layer '2' has no random weight of its own"):
        Laplace(noisy({"2.*": None, "*": priors.Normal(0.0, 1.0)}), "last_layer")
    alone = noisy({"2.bias": None, "*": priors.Normal(0.0, 1.0)})
    assert Laplace(alone, "last_layer").collect(*data(), 12)["scale_tril"].shape == (3, 3)
    with pytest.raises(ValueError, match="structure must be one of 'diagonal', 'last_layer', not 'full'"):
        Laplace(noisy(), "full")
    named = nn.Sequential()
    named.last_layer = nn.Linear(2, 1)
    assert Laplace(BayesianNetwork(named, likelihoods.Gaussian(1.0)), "last_layer").structure == "last_layer"


def test_the_last_layer_alone_has_a_density():
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(0.5), priors.Normal(0.0, 0.7))
    posterior = fit(bnn, Laplace(bnn, "last_layer"), data(), epochs=3)
    assert posterior.guide.has_density
    draws = posterior.sample(7)
    flat = torch.cat([draws["weight"][0].flatten(1), draws["bias"][0]], 1) - posterior.guide.loc.detach()
    tril = posterior.guide.scale_tril
    half = torch.linalg.solve_triangular(tril, flat.T, upper=False).square().sum(0) / 2
    expected = -half - tril.diagonal().log().sum() - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(posterior.log_q(draws)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_chain_that_diverges_does_not_end_the_others(structure):
    bnn = noisy()

    def spoil(progression):
        if progression.epoch == 1:
            progression.parameters["guide.loc"][1] = math.nan

    with pytest.warns(DivergenceWarning, match="chain 1 diverged in epoch 2"):
        posterior = fit(bnn, Laplace(bnn, structure), data(), epochs=3, chains=2, validation=data(), callback=spoil)
    name = "scale" if structure == "diagonal" else "scale_tril"
    assert posterior.state()[1][f"guide.{name}"].isfinite().all()
    assert posterior.info["diverged"] == [1]

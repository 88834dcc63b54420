"""`MNF`: its bound, its terms, and what it does with networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pyro.infer
import pyro.poutine as poutine
import pytest
import torch
from linear import LinearGaussian
from statistical import FALSE_ALARM, assert_covariance, assert_equal_means, assert_mean
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bnnzoo import BayesianNetwork, fit, likelihoods, load, priors
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.guides import MNF
from bnnzoo.guides.flows import FLOWS
from bnnzoo.guides.mnf_weights import Factors, Mixing, MultiplicativeWeight
from bnnzoo.objectives import ELBO, Sites
from bnnzoo.rules import RandomWeight

assert FALSE_ALARM <= 1e-5
COMPARISONS = 1000
KINDS = tuple(FLOWS)


class Filters(nn.Module):
    """A convolution whose outputs are summed with fixed weights: linear in its parameters."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, kernel)
        positions = 4 - kernel
        self.register_buffer("mix", torch.tensor([1.0, 0.7, -0.5, 1.2])[: 2 * positions, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1) @ self.mix


def linear_problem() -> LinearGaussian:
    torch.manual_seed(2)
    return LinearGaussian(nn.Linear(3, 1), torch.randn(6, 3), noise=2.0)


def conv_problem(kernel: int = 2) -> LinearGaussian:
    torch.manual_seed(2)
    return LinearGaussian(Filters(kernel), torch.randn(4, 1, 3), noise=2.0)


def near_posterior(problem: LinearGaussian, bnn: BayesianNetwork, kind: str, seed: int, **settings: Any) -> MNF:
    """A guide that covers the posterior, with a curved flow and an r that depends on the weights."""
    torch.manual_seed(seed)
    guide = MNF(bnn, flow=kind, init_z_scale=0.4, hidden=8, r_hidden=8, **settings)
    size = 0.03 if kind == "realnvp" else 0.1
    with torch.no_grad():
        for flow in [*guide.q_flows, *guide.r_flows]:
            for parameter in flow.parameters():
                parameter.add_(size * torch.randn_like(parameter))
        guide.r[0] = 0.1 * torch.randn_like(guide.r[0])
        guide.r[1] = -1.2
        guide.r[2:4] = 0.15 * torch.randn_like(guide.r[2:4])
        guide.loc.copy_(problem.mean)
        guide.log_scale.copy_((1.2 * problem.covariance.diag().sqrt()).log())
    return guide


def wild(guide: MNF, seed: int, size: float = 0.4, z_scale: float = 0.8) -> MNF:
    """A guide with all parameters far from their start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
        guide.z_log_scale.fill_(math.log(z_scale))
        guide.log_scale.fill_(math.log(0.4))
    return guide


def dense_bounds(problem: LinearGaussian, bnn: BayesianNetwork, guide: MNF, count: int) -> Tensor:
    """What Pyro's `Trace_ELBO` averages, [count]."""

    def one(_: Tensor) -> Tensor:
        q = poutine.trace(guide).get_trace(*problem.data)
        p = poutine.trace(poutine.replay(bnn, q)).get_trace(*problem.data)
        return p.log_prob_sum() - q.log_prob_sum()

    with pyro_settings(bnn, guide), torch.no_grad():
        return vectorize(one)(torch.arange(count)).double()


def structured_bounds(problem: LinearGaussian, bnn: BayesianNetwork, guide: MNF, count: int) -> Tensor:
    """What our ELBO averages, [count]."""
    with pyro_settings(bnn, guide), torch.no_grad():
        draw = vectorize(lambda _: -ELBO().differentiable_loss(bnn, guide, *problem.data))
        return draw(torch.arange(count)).double()


@pytest.mark.parametrize("problem", [linear_problem, conv_problem], ids=["linear", "conv"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_ratio_averages_to_the_evidence(kind, problem):
    # E[p(y, W) r(z | W) / (q(z) q(W | z))] = Z holds exactly, for any r and q that are densities: a wrong sign,
    # Jacobian or constant in any of them breaks it.
    problem = problem()
    bnn = problem.bnn()
    guide = near_posterior(problem, bnn, kind, seed=1)
    log_ratios = dense_bounds(problem, bnn, guide, 10_000) - problem.evidence()
    ratios = log_ratios.exp()
    assert ratios.sum().square() / ratios.square().sum() > 500  # effective draws: the standard error can be trusted
    assert_mean(ratios, torch.ones(()).double(), COMPARISONS)
    assert log_ratios.mean() < -0.05  # and r is not so good that nothing depends on it


@pytest.mark.parametrize("sampling", ["local", "flipout", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_structured_and_dense_draws_estimate_one_bound(kind, sampling):
    for problem, seed in ((linear_problem(), 0), (linear_problem(), 1), (conv_problem(kernel=3), 2)):
        bnn = problem.bnn()
        guide = wild(MNF(bnn, flow=kind, hidden=6, r_hidden=6, sampling=sampling), seed, 0.15)
        structured, dense = (f(problem, bnn, guide, 3000) for f in (structured_bounds, dense_bounds))
        assert_equal_means(structured, dense, COMPARISONS)
        for bounds in (structured, dense):
            assert bounds.mean() <= problem.evidence() + 3 * bounds.std() / len(bounds) ** 0.5
        if sampling == "local" and "weight.z" in guide.auxiliary:
            assert structured.std() < dense.std()


def test_pyros_elbo_is_that_bound():
    problem = linear_problem()
    bnn = problem.bnn()
    guide = near_posterior(problem, bnn, "masked", seed=1)
    dense = dense_bounds(problem, bnn, guide, 4000)
    with pyro_settings(bnn, guide), pyro.validation_enabled(True):
        for elbo in (pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO()):
            losses = torch.tensor([-elbo.loss(bnn, guide, *problem.data) for _ in range(150)]).double()
            assert_equal_means(losses, dense, COMPARISONS)
    assert dense.mean() < problem.evidence()


def weights_of(
    z: Tensor, prior: dist.Distribution, max_scale: float | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The guide's and the prior's blocks over a linear layer and a convolution, and sites, for given z."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4))
    bnn = BayesianNetwork(network, likelihoods.Categorical(), prior)
    guide = wild(MNF(bnn, max_scale=max_scale), seed=1)
    sites = guide.distributions({"0.weight": torch.tensor([0.5, -1.0, 2.0]), "2.weight": z})
    return sites["2.weight"].block, bnn.blocks[0], sites


@pytest.mark.parametrize(
    "prior",
    [dist.Normal(0.0, 1.0), dist.Normal(0.3, 2.0), {"*.weight": dist.Normal(0.3, 2.0), "*": dist.Normal(0.0, 1.0)}],
    ids=["standard", "scalar", "elementwise"],
)
@pytest.mark.parametrize("rows", [None, 1, 7])
def test_the_kl_divergence_is_averaged_over_the_rows(prior, rows):
    torch.manual_seed(0)
    z = torch.randn(3) if rows is None else torch.randn(rows, 3)
    q, p, sites = weights_of(z, prior)
    exact = []
    for one in z.reshape(-1, 3):
        given = {"0.weight": torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1), "2.weight": one}
        terms = []
        for name, site in sites.items():
            mean = site.raw * given[name] if name in given else site.loc
            normal = prior if isinstance(prior, dist.Normal) else prior["*.weight" if name in given else "*"]
            terms.append(kl_divergence(dist.Normal(mean, site.scale), normal).sum())
        exact.append(torch.stack(terms).sum())
    torch.testing.assert_close(kl_divergence(q.joint, p.joint).sum(), torch.stack(exact).mean())


def test_other_priors_take_the_first_row():
    z = torch.randn(4, 3)
    for prior in (priors.LogUniform(), dist.Laplace(0.0, 1.0)):
        several, single = weights_of(z, prior), weights_of(z[0], prior)
        if isinstance(prior, priors.LogUniform):
            a, b = (kl_divergence(q.joint, p.joint).sum() for q, p, _ in (several, single))
            torch.testing.assert_close(a, b)
            continue
        for q, p, _ in (several, single):
            q.joint.log_prob(q.joint.rsample()) - p.joint.log_prob(q.joint.rsample())
        torch.testing.assert_close(several[0].joint.loc, single[0].joint.loc)


def weight_of(dim: int, z: Tensor, shape: tuple[int, ...], per_row: bool) -> MultiplicativeWeight:
    """A weight of a guide over one layer."""
    torch.manual_seed(3)
    layer: nn.Module = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv1d(shape[1], shape[0], shape[2])
    if dim == 1 and len(shape) == 3:
        layer = nn.ConvTranspose1d(*shape)
    guide = wild(MNF(BayesianNetwork(layer, likelihoods.Categorical())), seed=1)
    weight = guide.distributions({"weight": z})["weight"]
    assert weight.factors == Factors("weight", dim, shape[dim], per_row)
    return weight


@pytest.mark.parametrize(
    ("dim", "shape", "rows"),
    [(1, (4, 3), None), (1, (4, 3), 2), (0, (3, 2, 2), None), (1, (2, 3, 2), None)],
    ids=["linear", "linear by row", "conv", "transposed conv"],
)
def test_projections_are_those_of_drawn_weights(dim, shape, rows):
    torch.manual_seed(0)
    z = torch.randn(3) if rows is None else torch.randn(rows, 3)
    weight = weight_of(dim, z, shape, len(shape) == 2)
    c = torch.tensor([0.5, -2.0, 1.0])
    for row in range(rows or 1):
        own = z if rows is None else z[row]
        expand = [1] * len(shape)
        expand[dim] = 3
        mean = (weight.raw * own.view(expand) * c.view(expand)).sum(dim).flatten().double().detach()
        variance = (weight.variance * c.square().view(expand)).sum(dim).flatten().double().detach()
        drawn = torch.stack([weight.project(c) for _ in range(4000)]).detach().double()
        drawn = drawn if rows is None else drawn[:, row]
        assert_mean(drawn, mean, COMPARISONS)
        assert_covariance(drawn, mean, variance.diag(), COMPARISONS)
        if row == 0:
            dense = weight.rsample((4000,)).detach()
            assert dense.shape == (4000, *shape)
            projected = (dense * c.view(expand)).sum(dim + 1).flatten(1).double()
            assert_mean(projected, mean, COMPARISONS)
            assert_covariance(projected, mean, variance.diag(), COMPARISONS)
            independent = dist.Normal(weight.raw * own.view(expand), weight.scale)
            torch.testing.assert_close(weight.log_prob(dense[0]), independent.log_prob(dense[0]).sum())


def outputs(layer: nn.Module, weight: MultiplicativeWeight, x: Tensor, count: int) -> Tensor:
    """The layer's outputs for structured draws of its weight, [count, ...]."""
    drawn = []
    for _ in range(count):
        layer._parameters["weight"] = RandomWeight(weight)
        drawn.append(layer(x).detach().double())
    return torch.stack(drawn)


@pytest.mark.parametrize("leading", [(2,), (2, 3), (3,), (3, 2), ()])
def test_rows_of_a_linear_layers_input_meet_their_own_z(leading):
    torch.manual_seed(0)
    z = torch.randn(2, 3)
    weight = weight_of(1, z, (4, 3), True)
    x = torch.randn(*leading, 3)
    layer = nn.Linear(3, 4, bias=False)
    # Without the batch first there is one z for all.
    own = z.view(2, *[1] * (len(leading) - 1), 3) if leading[:1] == (2,) else z[0]
    mean = ((x * own) @ weight.raw.T).detach().double().flatten()
    variance = (x.square() @ weight.variance.T).detach().double().flatten()
    drawn = outputs(layer, weight, x, 3000).flatten(1)
    assert_mean(drawn, mean, COMPARISONS)
    assert_covariance(drawn, mean, variance.diag(), COMPARISONS)


def test_filters_of_a_convolution_are_multiplied():
    z = torch.tensor([2.0, -1.0, 0.5])
    weight = weight_of(0, z, (3, 2, 2), False)
    x = torch.randn(2, 2, 3)
    drawn = outputs(nn.Conv1d(2, 3, 2, bias=False), weight, x, 3000).flatten(1)
    mean = z[:, None] * torch.conv1d(x, weight.raw)
    variance = torch.conv1d(x.square(), weight.variance)
    assert_mean(drawn, mean.detach().double().flatten(), COMPARISONS)
    assert_covariance(drawn, mean.detach().double().flatten(), variance.detach().double().flatten().diag(), COMPARISONS)


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2)
    )


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 6, 6), torch.arange(count) % 2


@pytest.mark.parametrize("kind", KINDS)
def test_structured_draws_have_the_shapes_and_gradients_of_the_design(kind):
    bnn = BayesianNetwork(lenet(), likelihoods.Categorical())
    sampling = {"0.*": "local", "4.*": "local", "5.*": "dense"}
    guide = wild(MNF(bnn, flow=kind, sampling=sampling), seed=0, size=0.2)
    x, y = images()
    sites = Sites(form="structured")
    with pyro_settings(bnn, guide):
        sites.run(guide, x, y)
    shapes = {name: tuple(value.shape) for name, value in sites.drawn.items() if name in guide.auxiliary}
    rows = {"0.weight": (3,), "4.weight": (6, 12), "5.weight": (5,)}
    assert shapes == {f"{name}.{v}": shape for name, shape in rows.items() for v in ("z0", "z")}
    assert {n: isinstance(v, RandomWeight) for n, v in sites.drawn.items() if n in bnn.sites} == {
        "0.weight": True, "0.bias": True, "4.weight": True, "4.bias": True, "5.weight": False, "5.bias": False
    }  # fmt: skip
    for loss in (ELBO(), ELBO(num_particles=2)):
        guide.zero_grad()
        with pyro_settings(bnn, guide):
            for _ in range(5):  # one mask of a few elements may be all zeros
                loss.differentiable_loss(bnn, guide, x, y).backward()
        still = [name for name, p in guide.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert still == []
        assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_the_auxiliary_sites_are_the_flow_and_its_input():
    bnn = BayesianNetwork(lenet(), likelihoods.Categorical())
    guide = wild(MNF(bnn, flow="realnvp"), seed=0)
    trace = poutine.trace(guide).get_trace(None)
    for index, name in enumerate(("0.weight", "4.weight", "5.weight")):
        z0, z = (trace.nodes[f"{name}.{v}"]["value"] for v in ("z0", "z"))
        image, log_det = guide.q_flows[index](z0)
        torch.testing.assert_close(z, image + 1)
        assert z.shape == guide.auxiliary[f"{name}.z"]
        trace.compute_log_prob()
        assert trace.nodes[f"{name}.z"]["log_prob_sum"] == 0
        image, log_det_r = guide.r_flows[index](image)
        a1, a2, b1, b2, c = guide.r.split(guide._sizes, 1)[index]
        w = trace.nodes[name]["value"]
        t = torch.tanh((w.flatten(1).T if w.dim() == 4 else w) @ c).mean()
        v = dist.Normal(a1 + b1 * t, torch.sigmoid(a2 + b2 * t)).log_prob(image).sum()
        torch.testing.assert_close(trace.nodes[f"{name}.r"]["log_prob_sum"], -(log_det + log_det_r + v))


@pytest.mark.parametrize("kind", KINDS)
def test_chains_are_trained_predict_export_and_survive_saving(kind, tmp_path):
    bnn = BayesianNetwork(lenet(), likelihoods.Categorical())
    x, y = images(20)
    posterior = fit(bnn, MNF(bnn, flow=kind, max_scale=0.5, others="mean-field"), (x, y), epochs=3, chains=3, lr=1e-2)
    assert posterior.history["loss"].shape == (3, 3)
    assert np.isfinite(posterior.history["loss"]).all()
    samples = posterior.sample(4, auxiliary=True)
    assert samples["4.weight.z"].shape == samples["4.weight.z0"].shape == (3, 4, 12)
    assert len({tuple(each.flatten().tolist()) for each in samples["4.weight.z"]}) == 3
    assert posterior.predict(x, 5).probs.shape[-1] == 2
    assert posterior.log_q(posterior.sample(2)) is None
    exported = posterior.to_arviz((x, y)).posterior
    assert {"0.weight.z0", "0.weight.z", "4.weight.z0", "5.weight.z"} <= set(exported.data_vars)
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior")
    for name, value in again.sample(4, auxiliary=True).items():
        assert torch.equal(value, samples[name])
    assert again.guide.flow == kind
    assert again.guide.max_scale == 0.5
    posterior.fit((x, y), epochs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_one_input(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(dist.HalfNormal(1.0)))
    x = torch.linspace(-1, 1, 10)[:, None]
    posterior = fit(bnn, MNF(bnn, flow=kind), (x, 2 * x[:, 0]), epochs=5, chains=2)
    assert posterior.sample(2, auxiliary=True)["0.weight.z"].shape == (2, 2, 1)
    assert posterior.sample(2)["noise"].min() > 0
    assert posterior.predict(x, 3).mean.isfinite().all()


def test_max_scale_bounds_draws_and_not_the_divergence():
    z = torch.ones(3)
    free, p, free_sites = weights_of(z, dist.Normal(0.0, 1.0))
    bounded, _, sites = weights_of(z, dist.Normal(0.0, 1.0), max_scale=0.1)  # scales are 0.4
    torch.testing.assert_close(kl_divergence(free.joint, p.joint), kl_divergence(bounded.joint, p.joint))
    for name, site in sites.items():
        assert free_sites[name].scale.min() > 0.3
        torch.testing.assert_close(site.scale, torch.full_like(site.scale, 0.1))
        torch.testing.assert_close(site.variance, torch.full_like(site.scale, 0.01))
        w = site.rsample()
        torch.testing.assert_close(site.log_prob(w), dist.Normal(site.mean, 0.1).log_prob(w).sum())
    standard = dist.Normal(torch.zeros(4, 3), 1.0).to_event(2)
    torch.testing.assert_close(
        kl_divergence(sites["2.weight"], standard), kl_divergence(free_sites["2.weight"], standard)
    )


def test_where_training_starts():
    bnn = BayesianNetwork(lenet(), likelihoods.Categorical())
    guide = MNF(bnn)
    start = {name: p.clone() for name, p in guide.named_parameters()}
    assert torch.equal(guide.loc, bnn.blocks[0].layout.join(bnn.initial_values()))
    torch.testing.assert_close(2 * guide.log_scale, torch.full_like(guide.loc, -9.0))
    torch.testing.assert_close(
        guide.distributions()["0.weight"].loc, guide.distributions()["0.weight"].raw, rtol=0.6, atol=0
    )
    wild(guide, seed=1)
    bnn.reset_parameters()
    guide.reset_parameters()
    for name, parameter in guide.named_parameters():
        fixed = name in ("log_scale", "z_loc", "z_log_scale") or name.endswith("outer.bias")
        assert torch.equal(parameter, start[name]) == fixed, name
    assert torch.equal(guide.loc, bnn.blocks[0].layout.join(bnn.initial_values()))


class Odd(nn.Module):
    """Layers that MNF cannot multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.ModuleDict({"norm": nn.LayerNorm(4), "out": nn.Linear(4, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.body["out"](self.body["norm"](self.embed(x[:, 0])))


def test_layers_that_cannot_be_multiplied():
    bnn = BayesianNetwork(Odd(), likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"no multiplicative form for 'embed\.weight' of module 'embed' \(Embedding\)"):
        MNF(bnn)
    guide = MNF(bnn, others="mean-field")
    assert set(guide.auxiliary) == {"body.out.weight.z0", "body.out.weight.z"}
    fit(bnn, guide, (torch.arange(10)[:, None] % 5, torch.arange(10) % 2), epochs=1)
    rest = {"embed.*": None, "body.norm.*": None, "*": dist.Normal(0.0, 1.0)}
    MNF(BayesianNetwork(Odd(), likelihoods.Categorical(), rest))
    grouped = BayesianNetwork(nn.ConvTranspose1d(4, 4, 2, groups=2), likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"'weight' of module 'the network itself' \(ConvTranspose1d\)"):
        MNF(grouped)
    for network in (nn.Embedding(3, 2), nn.LayerNorm(4)):
        with pytest.raises(ValueError, match=r"use guides\.MeanField"):
            MNF(BayesianNetwork(network, likelihoods.Categorical()), others="mean-field")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow": "planar"}, "flow must be one of 'masked', 'realnvp', 'iaf', not 'planar'"),
        ({"flow_length": -1}, "flow_length must be an integer of at least 0, not -1"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, not 0"),
        ({"r_flow_length": 1.5}, "r_flow_length must be an integer of at least 0, not 1.5"),
        ({"r_hidden": True}, "r_hidden must be an integer of at least 1, not True"),
        ({"init_scale": 0.0}, "init_scale must be positive, not 0.0"),
        ({"init_z_scale": 1.0}, "init_z_scale must be between 0 and 1, not 1.0"),
        ({"max_scale": math.inf}, "max_scale must be positive, not inf"),
        ({"others": "skip"}, "others must be 'error' or 'mean-field', not 'skip'"),
        ({"sampling": "fast"}, "sampling must be one of 'dense', 'local', 'flipout', not 'fast'"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        MNF(BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(1.0)), **settings)


def test_tied_weights_are_dense():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    bnn = BayesianNetwork(Tied(), likelihoods.Categorical())
    guide = MNF(bnn)
    assert not guide._factors["a.weight"].per_row
    fit(bnn, guide, (torch.randn(6, 2), torch.arange(6) % 2), epochs=1)


def test_the_density_of_z0_is_the_same_for_draws_and_for_other_vectors():
    torch.manual_seed(0)
    loc, log_scale = torch.randn(3), torch.randn(3)
    exact = dist.Normal(loc, log_scale.exp()).to_event(1)
    q = Mixing(loc, log_scale, rows=5)
    for value in (q(), q.structured(), q.rsample((4, 2)), torch.randn(6, 3)):
        torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))
    assert q.structured().shape == (5, 3)
    assert Mixing(loc, log_scale).structured().shape == (3,)
    assert q.expand((7,)).sample().shape == (7, 3)
    drawn = q.rsample((4000,)).double()
    assert_mean(drawn, loc.double(), COMPARISONS)
    assert_covariance(drawn, loc.double(), (2 * log_scale).exp().double().diag(), COMPARISONS)

"""Posteriors: draws, vectorized predictions in blocks, densities, going on."""

import copy
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import transform_to
from torch.func import functional_call

from bnnzoo import BayesianNetwork, data, fit, guides, likelihoods, load, models, posterior, priors, sample
from bnnzoo._vectorize import seeded
from bnnzoo.prediction import Prediction, Summary

N = 40
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1) + 0.2 * torch.randn(N, generator=torch.Generator().manual_seed(1))
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network(out=1):
    with seeded(0):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out))


def fitted(net=None, likelihood=None, guide=guides.MeanField, dataset=(X, Y), prior=None, **settings):
    bnn = BayesianNetwork(net or network(), likelihood or likelihoods.Gaussian(0.3), prior or priors.Normal(0.0, 1.0))
    return fit(bnn, guide(bnn), dataset, **{"epochs": 3, "lr": 0.01, **settings})


NOISE = likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5))


class TestDraws:
    @pytest.mark.parametrize("chains", [1, 3])
    def test_shapes_and_dtypes(self, chains):
        draws = fitted(likelihood=NOISE, chains=chains).sample(7)
        assert {name: tuple(value.shape) for name, value in draws.items()} == {
            "0.weight": (chains, 7, 5, 3),
            "0.bias": (chains, 7, 5),
            "2.weight": (chains, 7, 1, 5),
            "2.bias": (chains, 7, 1),
            "noise": (chains, 7),
        }
        assert {value.dtype for value in draws.values()} == {torch.float32}
        assert (draws["noise"] > 0).all()
        assert not any(value.requires_grad for value in draws.values())

    def test_seeds(self):
        fit_ = fitted(chains=2)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first, second, third = fit_.sample(5, seed=1), fit_.sample(5, seed=1), fit_.sample(5, seed=2)
        assert torch.equal(torch.get_rng_state(), before)
        for name, value in first.items():
            assert torch.equal(value, second[name])
            assert not torch.equal(value, third[name])

    def test_all_draws_of_all_chains_differ(self):
        values = fitted(chains=3).sample(600)["2.bias"]
        assert len(values.unique()) == 1800

    def test_draws_made_together_are_as_random_as_draws_made_apart(self, monkeypatch):
        monkeypatch.setattr(posterior, "_DRAWN_TOGETHER", 1000)
        values = fitted(chains=2).sample(300)["2.bias"]
        assert len(values.unique()) == 600

    @pytest.mark.parametrize("chains", [1, 2])
    def test_distribution_is_the_guides(self, chains):
        fit_ = fitted(chains=chains, epochs=1)
        draws = fit_.sample(4000)
        locs, scales = fit_._parameters["guide.loc"], fit_._parameters["guide.log_scale"].exp()
        flat = torch.cat([draws[name].flatten(2) for name in fit_.guide.layout.names], dim=2)
        # 26 weights a chain: 5.5 standard errors
        assert ((flat.mean(1) - locs).abs() < 5.5 * scales / 4000**0.5).all()
        assert ((flat.std(1) / scales - 1).abs() < 5.5 / 8000**0.5).all()
        correlation = torch.corrcoef(flat[0].T) - torch.eye(flat.shape[2])
        assert correlation.abs().max() < 6 / 4000**0.5

    @pytest.mark.parametrize("count", [0, -1])
    def test_too_few(self, count):
        with pytest.raises(ValueError, match=f"num_samples must be at least 1, not {count}"):
            fitted().sample(count)
        with pytest.raises(ValueError, match="num_samples must be at least 1"):
            fitted().predict(X, count)


def by_hand(fit_, x, num_samples, seed):
    """Outputs of the plain network for each of the sampled weights, [chain, draw, N, C]."""
    draws = fit_.sample(num_samples, seed)
    net = fit_.bnn.network.eval()
    names = dict(net.named_parameters())
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack(
                    [
                        functional_call(net, {n: v[c, s] for n, v in draws.items() if n in names}, (x,))
                        for s in range(num_samples)
                    ]
                )
                for c in range(fit_.chains)
            ]
        ), draws


class TestPredict:
    @pytest.mark.parametrize("chains", [1, 3])
    def test_predictions_are_the_networks_for_the_sampled_weights(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains)
        outputs, draws = by_hand(fit_, X, 6, 4)
        prediction = fit_.predict(X, num_samples=6, seed=4)
        assert isinstance(prediction, Prediction)
        assert prediction.shape == (chains, 6, N)
        torch.testing.assert_close(prediction.draws, outputs.squeeze(-1), rtol=1e-4, atol=1e-5)
        scale = prediction.parameters["scale"].expand(chains, 6, N)
        torch.testing.assert_close(scale, draws["noise"][..., None].expand(chains, 6, N))

    @pytest.mark.parametrize(
        ("likelihood", "outputs", "y", "event"),
        [
            (likelihoods.Gaussian(), 1, Y, ()),
            (likelihoods.Gaussian(num_outputs=2), 2, torch.stack([Y, Y], 1), (2,)),
            (likelihoods.HeteroscedasticGaussian(), 4, torch.stack([Y, Y], 1), (2,)),
            (likelihoods.Categorical(), 3, LABELS, ()),
            (likelihoods.Bernoulli(), 1, (Y > 0).float(), ()),
            (likelihoods.Poisson(), 2, torch.ones(N, 2), (2,)),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("rows", [1, 2, N])
    def test_shapes(self, likelihood, outputs, y, event, rows):
        fit_ = fitted(network(outputs), likelihood, dataset=(X, y), chains=2)
        prediction = fit_.predict(X[:rows], 3)
        assert prediction.shape == (2, 3, rows, *event)
        assert prediction.log_prob(y[:rows]).shape == (rows,)
        assert prediction.sample().shape == (2, 3, rows, *event)

    def test_labels_of_pixels(self):
        x = torch.randn(N, 1, 4, 5, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] > 0).long()
        net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
        fit_ = fitted(net, likelihoods.Categorical(), dataset=(x, y), chains=2, epochs=40, lr=0.05)
        prediction = fit_.predict(x, 5)
        assert prediction.shape == (2, 5, N, 4, 5)
        assert prediction.probs.shape == (N, 4, 5, 2)
        assert (prediction.classes == y).float().mean() > 0.9
        small = fit_.predict(x, 5, max_memory=200_000)
        torch.testing.assert_close(small.draws, prediction.draws, rtol=1e-5, atol=1e-6)

    def test_dropout_is_off_and_the_mode_comes_back(self):
        fit_ = fitted(nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1)), guide=guides.Map)
        fit_.bnn.train()
        first, second = fit_.predict(X, 2).draws, fit_.predict(X, 2).draws
        assert torch.equal(first, second)
        assert fit_.bnn.network[1].training

    def test_batch_statistics_are_not_moved(self):
        fit_ = fitted(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), chains=2)
        before = copy.deepcopy(fit_._buffers)
        fit_.predict(X + 5, 3)
        for name, value in fit_._buffers.items():
            assert torch.equal(value, before[name])

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x.numpy(),
            lambda x: x.double().numpy(),
            lambda x: x.tolist(),
            lambda x: pd.DataFrame(x.numpy()),
            lambda x: x.double(),
            lambda x: x[:, [2, 1, 0]][:, [2, 1, 0]],
        ],
        ids=["numpy", "double array", "lists", "frame", "double tensor", "strided"],
    )
    @pytest.mark.parametrize("standardize", [False, True])
    def test_inputs_in_every_form(self, make, standardize):
        dataset = data.Dataset(X, Y)
        fit_ = fitted(dataset=dataset.with_standardization() if standardize else dataset)
        torch.testing.assert_close(fit_.predict(make(X), 3).mean, fit_.predict(X, 3).mean, rtol=1e-5, atol=1e-6)

    def test_images_of_bytes(self):
        images = torch.randint(0, 255, (N, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
        fit_ = fitted(net, dataset=(images, Y), guide=guides.Map)
        assert torch.equal(fit_.predict(images, 1).mean, fit_.predict(images.float(), 1).mean)
        assert torch.equal(fit_.predict(images.numpy(), 1).mean, fit_.predict(images.float(), 1).mean)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_inputs_that_are_not_finite(self, bad):
        x = X.clone()
        x[2, 1] = bad
        with pytest.raises(ValueError, match="x has 1 NaN or infinite values"):
            fitted().predict(x)

    @pytest.mark.parametrize("x", [X[:, :2], X[None, :, :2], torch.ones(3, 7)])
    def test_inputs_that_do_not_fit(self, x):
        with pytest.raises(ValueError, match=r"the network fails on inputs of shape"):
            fitted().predict(x)
        with pytest.raises(ValueError, match=r"x has shape .* its standardization is for rows of shape \(3,\)"):
            fitted(dataset=data.Dataset(X, Y).with_standardization()).predict(x)

    @pytest.mark.parametrize("x", [X[:0], torch.tensor(1.0), []])
    def test_no_inputs(self, x):
        with pytest.raises(ValueError, match="x is empty"):
            fitted().predict(x)

    def test_gradients_through_the_inputs(self):
        fit_ = fitted(network().double(), likelihoods.Gaussian(0.3), chains=2)
        x = X[:3].double()

        def mean(x):
            prediction = fit_.predict(x, 4)
            return prediction.mean, prediction.variance, prediction.log_prob(Y[:3].double())

        assert torch.autograd.gradcheck(mean, x.clone().requires_grad_())
        assert not fit_.predict(x, 4).mean.requires_grad
        whole, small = x.clone().requires_grad_(), x.clone().requires_grad_()
        fit_.predict(whole, 40).mean.sum().backward()
        fit_.predict(small, 40, max_memory=14_000).mean.sum().backward()
        torch.testing.assert_close(whole.grad, small.grad)

    def test_gradients_through_standardized_inputs(self):
        fit_ = fitted(dataset=data.Dataset(10 * X, 100 * Y).with_standardization())
        x = (10 * X[:2]).requires_grad_()
        fit_.predict(x, 3).mean[0].backward()
        step = torch.zeros(2, 3)
        step[0, 1] = 0.05
        with torch.no_grad():
            slope = (fit_.predict(x + step, 3).mean[0] - fit_.predict(x - step, 3).mean[0]) / 0.1
        assert x.grad[0, 1].item() == pytest.approx(slope.item(), rel=0.02)


CASES = {
    "regression": (lambda: network(), likelihoods.Gaussian(0.3), X, Y),
    "noise": (lambda: network(), NOISE, X, Y),
    "heteroscedastic": (lambda: network(4), likelihoods.HeteroscedasticGaussian(), X, torch.stack([Y, Y], 1)),
    "classes": (lambda: network(3), likelihoods.Categorical(), X, LABELS),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)),
        likelihoods.Gaussian(),
        X,
        Y,
    ),
}


def budgets(fit_):
    """Some sizes of work, from the smallest that is not refused."""
    least = 100
    while True:
        try:
            fit_._block(X, least, 30)
        except ValueError:
            least = round(1.03 * least)
        else:
            return [least, 2 * least, 6 * least, 20 * least]


class TestMemory:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("name", CASES)
    def test_results_do_not_depend_on_it(self, monkeypatch, name, chains):
        make, likelihood, x, y = CASES[name]
        fit_ = fitted(make(), likelihood, dataset=(x, y), chains=chains)
        x, draws, rows = x[:12], 9, 12
        whole, summary = fit_.predict(x, draws), fit_.summarize(x, draws)
        blocks = set()
        original = type(fit_)._block

        def block(self, *arguments):
            blocks.add(original(self, *arguments))
            return original(self, *arguments)

        monkeypatch.setattr(type(fit_), "_block", block)
        result = sum(value.numel() for value in whole.parameters.values()) * 4
        for work in (*budgets(fit_), 10**9):
            small = fit_.predict(x, draws, max_memory=result + max(result, work))
            for key, value in whole.parameters.items():
                small_value, value = torch.broadcast_tensors(small.parameters[key], value)
                torch.testing.assert_close(small_value, value, rtol=1e-5, atol=1e-6)
            other = fit_.summarize(x, draws, max_memory=work)
            for key in ("mean", "epistemic", "aleatoric", "probs", "mutual_information"):
                if getattr(summary, key) is not None:
                    torch.testing.assert_close(getattr(other, key), getattr(summary, key), rtol=1e-4, atol=1e-6)
        assert any(some < draws for some, _ in blocks)
        assert any(some < rows for _, some in blocks)
        assert (draws, rows) in blocks

    def test_draws_are_those_of_sample_whatever_the_blocks(self, monkeypatch):
        monkeypatch.setattr(posterior, "_DRAWN_TOGETHER", 2000)
        fit_ = fitted(chains=2)
        outputs, _ = by_hand(fit_, X, 100, 3)
        for budget in (70_000, 10**9):
            prediction = fit_.predict(X, 100, seed=3, max_memory=budget)
            torch.testing.assert_close(prediction.draws, outputs.squeeze(-1), rtol=1e-4, atol=1e-5)

    def test_one_row_a_block(self):
        fit_ = fitted(likelihood=likelihoods.Gaussian())
        least = budgets(fit_)[0]
        assert fit_._block(X, least, 30) == (1, 1)
        small = fit_.predict(X, 2, max_memory=least + 2 * (N + 1) * 4)
        whole = fit_.predict(X, 2)
        torch.testing.assert_close(small.mean, whole.mean)
        torch.testing.assert_close(small.aleatoric, whole.aleatoric)

    def test_results_that_do_not_fit_are_refused(self):
        fit_ = fitted(chains=2)
        with pytest.raises(ValueError, match=r"2 x 1000 draws for 40 inputs take .* MiB.*summarize\(\)"):
            fit_.predict(X, 1000, max_memory=400_000)
        fit_.summarize(X, 1000, max_memory=400_000)

    def test_budgets_below_one_draw_of_one_row_are_refused(self):
        fit_ = fitted()
        with pytest.raises(ValueError, match="max_memory is too small: one draw of 1 chains for one input needs"):
            fit_.summarize(X, 3, max_memory=100)

    def test_views_of_weights_are_not_taken_for_work(self):
        # 300 x 300 weights and 600 activations a row.
        with seeded(0):
            net = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1))
        bnn = BayesianNetwork(net, likelihoods.Gaussian(0.3))
        x = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
        fit_ = fit(bnn, guides.Map(bnn), (x, x.sum(1)), epochs=1)
        draws, rows = fit_._block(x, 3 * 2**20, 30)
        assert draws * rows > 200

    def test_summary_is_the_predictions(self):
        for likelihood, outputs, y in ((NOISE, 1, Y), (likelihoods.Categorical(), 3, LABELS)):
            fit_ = fitted(network(outputs), likelihood, dataset=(X, y), chains=2)
            summary, prediction = fit_.summarize(X, 50, seed=2), fit_.predict(X, 50, seed=2)
            assert isinstance(summary, Summary)
            assert summary.num_samples == 100
            names = ("mean", "epistemic", "aleatoric", "variance")
            for name in names if y is Y else ("probs", "entropy", "mutual_information"):
                torch.testing.assert_close(
                    getattr(summary, name).float(), getattr(prediction, name), rtol=1e-4, atol=1e-6
                )

    @pytest.mark.slow
    def test_peak_memory_does_not_grow_with_the_number_of_draws(self):
        """1000 and 10 000 draws of two chains for 400 rows; all draws of the larger would take a gigabyte."""
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=300, env=environment
        )
        base, few, many = map(int, done.stdout.split())
        megabyte = 1024
        assert many - base < 32 * megabyte + 24 * megabyte  # the budget, and the heap's slack
        assert many - few < 12 * megabyte


MEASURE = """
import resource, torch
from torch import nn
from bnnzoo import BayesianNetwork, fit, guides, likelihoods
torch.manual_seed(0)
x = torch.randn(400, 8)
net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1))
bnn = BayesianNetwork(net, likelihoods.Gaussian(0.3))
posterior = fit(bnn, guides.MeanField(bnn), (x, x.sum(1)), epochs=1, chains=2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
posterior.summarize(x[:2], 2)
print(peak())
for count in (1000, 10_000):
    posterior.summarize(x, count, max_memory=32 * 2**20)
    print(peak())
"""


def transformed(value, loc, scale):
    """log q of a positive site that is Gaussian in log space."""
    return dist.LogNormal(loc, scale).log_prob(value)


class TestDensities:
    @pytest.mark.parametrize("chains", [1, 2])
    def test_mean_field(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains)
        draws = fit_.sample(5)
        loc, scale = fit_._parameters["guide.loc"], fit_._parameters["guide.log_scale"].exp()
        names = list(fit_.guide.layout.names)
        assert names[-1] == "noise"
        flat = torch.cat([draws[name].flatten(2) for name in names[:-1]], 2)
        expected = dist.Normal(loc[:, None, :-1], scale[:, None, :-1]).log_prob(flat).sum(2)
        expected = expected + transformed(draws["noise"], loc[:, None, -1], scale[:, None, -1])
        torch.testing.assert_close(fit_.log_q(draws), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_pyros_normal(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains, guide=AutoNormal)
        draws = fit_.sample(5)
        expected = 0.0
        for name, value in draws.items():
            loc = fit_._parameters[f"guide.locs.{name}_unconstrained"].reshape(chains, 1, -1)
            scale = fit_._parameters[f"guide.scales.{name}_unconstrained"].reshape(chains, 1, -1)
            scale = transform_to(AutoNormal.scale_constraint)(scale)
            family = dist.LogNormal if name == "noise" else dist.Normal
            expected = expected + family(loc, scale).log_prob(value.reshape(chains, 5, -1)).sum(2)
        torch.testing.assert_close(fit_.log_q(draws), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoLowRankMultivariateNormal])
    def test_pyros_joint_normals(self, guide):
        fit_ = fitted(likelihood=NOISE, guide=guide)
        draws = fit_.sample(5)
        values = {name: value[0] for name, value in draws.items()}
        sites = [name for name, _ in fit_.guide.prototype_trace.iter_stochastic_nodes()]
        unconstrained = {**values, "noise": values["noise"].log()}
        latent = torch.cat([unconstrained[name].reshape(5, -1) for name in sites], 1)
        expected = fit_.guide.get_posterior().log_prob(latent) - unconstrained["noise"]
        torch.testing.assert_close(fit_.log_q(draws)[0], expected, rtol=1e-4, atol=1e-3)

    def test_a_plain_pyro_guide(self):
        import pyro

        class Plain(PyroModule):
            def __init__(self, bnn):
                super().__init__("plain")
                self.loc = nn.Parameter(torch.zeros(1, 3))

            def forward(self, x, y=None, size=None):
                pyro.sample("weight", dist.Normal(self.loc, 0.5).to_event(2))

        bnn = BayesianNetwork(nn.Linear(3, 1, bias=False), likelihoods.Gaussian(0.3))
        fit_ = fit(bnn, Plain(bnn), (X, Y), epochs=2, chains=2, lr=0.1)
        draws = fit_.sample(4)
        loc = fit_._parameters["guide.loc"][:, None]
        torch.testing.assert_close(fit_.log_q(draws), dist.Normal(loc, 0.5).log_prob(draws["weight"]).sum((2, 3)))

    def test_points_and_what_has_no_known_density(self):
        for guide in (guides.Map, AutoDelta, lambda bnn: AutoIAFNormal(bnn, hidden_dim=[40])):
            fit_ = fitted(guide=guide)
            assert fit_.log_q(fit_.sample(2)) is None

    def test_a_guide_with_sites_of_its_own_has_none_either(self):
        import pyro

        class Hidden(PyroModule):
            def __init__(self, bnn):
                super().__init__("hidden")
                self.loc = nn.Parameter(torch.zeros(1, 3))

            def forward(self, x, y=None, size=None):
                z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
                pyro.sample("weight", dist.Normal(self.loc + z, 0.5).to_event(2))

        bnn = BayesianNetwork(nn.Linear(3, 1, bias=False), likelihoods.Gaussian(0.3))
        fit_ = fit(bnn, Hidden(bnn), (X, Y), epochs=2)
        draws = fit_.sample(4)
        assert set(draws) == {"weight"}
        assert fit_.log_q(draws) is None

    @pytest.mark.parametrize("chains", [1, 2])
    def test_prior(self, chains):
        prior = {
            "0.weight": priors.StudentT(4.0, 0.0, 2.0),
            "0.bias": priors.ScaleMixture(0.3, 1.0, 0.1),
            "2.weight": priors.FanIn(2.0),
            "2.bias": priors.Laplace(0.0, 3.0),
        }
        fit_ = fitted(likelihood=NOISE, prior=prior, chains=chains)
        draws = fit_.sample(4)
        mixture = torch.logaddexp(
            np.log(0.3) + dist.Normal(0.0, 1.0).log_prob(draws["0.bias"]),
            np.log(0.7) + dist.Normal(0.0, 0.1).log_prob(draws["0.bias"]),
        )
        expected = (
            dist.StudentT(4.0, 0.0, 2.0).log_prob(draws["0.weight"]).sum((2, 3))
            + mixture.sum(2)
            + dist.Normal(0.0, 2 / 5**0.5).log_prob(draws["2.weight"]).sum((2, 3))
            + dist.Laplace(0.0, 3.0).log_prob(draws["2.bias"]).sum(2)
            + dist.LogNormal(-1.0, 0.5).log_prob(draws["noise"])
        )
        torch.testing.assert_close(fit_.log_prior(draws), expected, rtol=1e-4, atol=1e-4)

    def test_stored_draws_have_a_prior_density_but_none_of_their_own(self):
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        fit_ = sample(bnn, (X, Y), num_samples=6, warmup_steps=6, chains=2)
        draws = fit_.sample(6)
        assert fit_.log_q(draws) is None
        expected = sum(dist.Normal(0.0, 1.0).log_prob(value).flatten(2).sum(2) for value in draws.values())
        torch.testing.assert_close(fit_.log_prior(draws), expected)

    def test_guides_of_guides(self):
        from pyro import poutine

        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        guide = AutoGuideList(bnn)
        guide.append(AutoNormal(poutine.block(bnn, hide=["bias"])))
        guide.append(AutoNormal(poutine.block(bnn, hide=["weight"])))
        fit_ = fit(bnn, guide, (X, Y), epochs=2, chains=2)
        draws = fit_.sample(3)
        assert set(draws) == {"weight", "bias"}
        assert fit_.log_q(draws) is None


class TestGoingOn:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("guide", [guides.Map, guides.MeanField, AutoNormal])
    def test_training_goes_on_from_a_file(self, tmp_path, guide, chains):
        dataset = data.Dataset(5 + 3 * X, 100 + 20 * Y).with_standardization()
        first = fitted(
            likelihood=likelihoods.Gaussian(), dataset=dataset, guide=guide, chains=chains, epochs=150, lr=0.03
        )
        first.save(tmp_path / "p")
        loaded = load(tmp_path / "p")
        before = loaded.state()
        second = loaded.fit(dataset, epochs=20, lr=0.003)
        assert second.chains == chains
        assert second.history["loss"].shape == (chains, 20)
        start, end = first.history["loss"][:, 0], first.history["loss"][:, -10:].mean(1)
        gap = np.abs(second.history["loss"][:, 0] - end)
        if guide is guides.Map:
            assert (gap < 0.02 * (start - end)).all()
        else:  # single draws are noisy
            assert (gap < 0.5 * (start - end)).all()
            drawn = first.history["loss"][:, -20:].mean(), first.history["loss"][:, -20:].std()
            assert abs(second.history["loss"].mean() - drawn[0]) < 1.5 * drawn[1]
        for name, value in loaded.state()[0].items():
            assert torch.equal(value, before[0][name])
        assert second.standardization is loaded.standardization

    def test_no_step_no_change(self):
        first = fitted(chains=2, guide=guides.Map)
        second = first.fit((X, Y), epochs=1, lr=1e-12)
        for name, value in first.state()[0].items():
            torch.testing.assert_close(second.state()[0][name], value, rtol=0, atol=1e-6)

    def test_data_are_standardized_as_before(self):
        dataset = data.Dataset(5 + 3 * X, 100 + 20 * Y).with_standardization()
        first = fitted(dataset=dataset, chains=2)
        one, two = first.fit(dataset, epochs=2), first.fit((dataset.x, dataset.y), epochs=2)
        np.testing.assert_array_equal(one.history["loss"], two.history["loss"])

    def test_settings(self):
        fit_ = fitted(chains=2)
        with pytest.raises(TypeError, match=r"chains.* is no setting of Posterior\.fit"):
            fit_.fit((X, Y), chains=3)
        with pytest.raises(TypeError, match=r"epoch.* is no setting of Posterior\.fit"):
            fit_.fit((X, Y), epoch=3)
        with pytest.raises(ValueError, match="epochs must be an integer"):
            fit_.fit((X, Y), epochs=0)

    def test_stored_draws_cannot_be_trained(self):
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        with pytest.raises(TypeError, match="stored draws have nothing to train"):
            sample(bnn, (X, Y), num_samples=4, warmup_steps=4).fit((X, Y))

    def test_state_is_a_copy(self):
        fit_ = fitted()
        fit_.state()[0]["guide.loc"].zero_()
        assert (fit_.state()[0]["guide.loc"] != 0).any()


class TestRest:
    def test_repr(self):
        assert repr(fitted(chains=2)) == "Posterior(MeanField of Sequential, 2 chains, 26 weights)"
        assert repr(fitted(models.MLP(3, 1, hidden=(2,)), NOISE)) == "Posterior(MeanField of MLP, 1 chains, 12 weights)"

    def test_attributes(self):
        fit_ = fitted(chains=2)
        assert fit_.chains == 2
        assert isinstance(fit_.bnn, BayesianNetwork)
        assert isinstance(fit_.guide, guides.MeanField)
        assert fit_.device.type == "cpu"
        assert fit_.standardization is None
        assert fit_.info["num_data"] == N
        assert fit_.info["objective"] == "ELBO"

    def test_same_device(self):
        fit_ = fitted(chains=2)
        before = fit_.predict(X, 2).draws
        assert fit_.to("cpu") is fit_
        assert torch.equal(fit_.predict(X, 2).draws, before)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("chains", [1, 2])
    def test_other_device(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains, guide=guides.Map)
        before = fit_.predict(X, 2).draws
        moved = fit_.to("cuda").predict(X, 2).draws
        assert moved.device.type == "cuda"
        torch.testing.assert_close(moved.cpu(), before, rtol=1e-4, atol=1e-4)
        assert fit_.fit((X, Y), epochs=2).device.type == "cuda"

    @pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), NOISE, likelihoods.HeteroscedasticGaussian()])
    def test_standardization_is_undone(self, likelihood):
        outputs = likelihood.num_outputs(Y)
        x, y = 5 + 3 * X, 1000 + 20 * Y
        dataset = data.Dataset(x, y).with_standardization()
        fit_ = fitted(network(outputs), likelihood, dataset=dataset, chains=2, epochs=30)
        units = dataset.standardization
        plain = copy.copy(fit_)
        plain.standardization = None
        inner = plain.predict(units.x(x), 4)
        outer = fit_.predict(x, 4)
        torch.testing.assert_close(
            outer.mean.double(), inner.mean.double() * units.y_scale + units.y_loc, rtol=1e-6, atol=1e-3
        )
        torch.testing.assert_close(outer.std.double(), inner.std.double() * units.y_scale, rtol=1e-4, atol=1e-6)
        expected = inner.log_prob(units.y(y)).double() - units.y_scale.log()
        torch.testing.assert_close(outer.log_prob(y).double(), expected, rtol=1e-3, atol=1e-3)
        low, high = outer.interval(0.9)
        assert 800 < low.mean() < high.mean() < 1200
        summary = fit_.summarize(x, 4)
        torch.testing.assert_close(summary.mean.float(), outer.mean)

    def test_inputs_only(self):
        dataset = data.Dataset(5 + 3 * X, LABELS).with_standardization()
        assert dataset.standardization.y_loc is None
        fit_ = fitted(network(3), likelihoods.Categorical(), dataset=dataset, epochs=60, lr=0.05)
        assert (fit_.predict(dataset.x, 5).classes == LABELS).float().mean() > 0.8

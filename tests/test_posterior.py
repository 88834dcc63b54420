"""Posteriors: draws, vectorized predictions, units, devices."""

import copy

import pandas as pd
import pytest
import torch
from posteriors import LABELS, NOISE, N, X, Y, by_hand, fitted, network
from torch import nn

from bnnzoo import BayesianNetwork, data, guides, likelihoods, models, posterior
from bnnzoo.prediction import Prediction


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
        ids=lambda value: "" if isinstance(value, torch.Tensor) else repr(value),
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
        assert fit_.info["objective"].startswith("ELBO(num_particles=")

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

"""`fit`: Pyro's guides, data in all forms and likelihoods, bad input."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from fitting import LABELS, N, X, Y, model, network, parameters, quick
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnnzoo import data, fit, guides, likelihoods, load, models, priors
from bnnzoo._vectorize import seeded


class TestGuides:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta])
    @pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.Gaussian(dist.HalfNormal(1.0))])
    def test_pyros_guides_end_to_end(self, tmp_path, guide, chains, likelihood):
        bnn = model(likelihood=likelihood)
        posterior = quick(bnn, guide, chains=chains, epochs=30, lr=0.05)
        loss = posterior.history["loss"]
        assert (loss[:, -1] < 0.8 * loss[:, 0]).all()
        draws = posterior.sample(6)
        assert set(draws) == set(bnn.sites)
        assert {name: tuple(value.shape) for name, value in draws.items()} == {
            name: (chains, 6, *prior.shape()) for name, prior in bnn.sites.items()
        }
        prediction = posterior.predict(X, 6)
        assert prediction.draws.shape == (chains, 6, N)
        posterior.save(tmp_path / "p")
        assert torch.equal(load(tmp_path / "p").predict(X, 6).draws, prediction.draws)

    def test_initial_values_of_pyros_guides_are_used(self):
        bnn = model(nn.Linear(3, 1))
        values = {"weight": torch.full((1, 3), 7.0), "bias": torch.full((1,), 5.0)}
        guide = AutoNormal(bnn, init_loc_fn=init_to_value(values=values), init_scale=1e-4)
        for chains in (1, 2):
            draws = fit(bnn, guide, (X, Y), epochs=1, lr=1e-9, chains=chains).sample(1)
            torch.testing.assert_close(draws["weight"], values["weight"].expand(chains, 1, 1, 3), atol=1e-2, rtol=0)

    def test_pyros_guide_under_pyros_settings(self):
        for local in (True, False):
            with pyro.settings.context(module_local_params=local):
                bnn = model()
                guide = AutoNormal(bnn)
                fit(bnn, guide, (X, Y), epochs=2, chains=2)

    def test_other_objects_are_no_guides(self):
        with pytest.raises((TypeError, AttributeError)):
            fit(model(), lambda: None, (X, Y), epochs=1)


class TestData:
    @pytest.mark.parametrize(
        "dataset",
        [
            (X.numpy(), Y.numpy()),
            (X.double().numpy(), Y.double().numpy()),
            (X.tolist(), Y.tolist()),
            (pd.DataFrame(X.numpy(), columns=list("abc")), pd.Series(Y.numpy(), name="y")),
            (pd.DataFrame(X.numpy(), columns=list("abc")), pd.DataFrame({"y": Y.numpy()})),
            (X, Y[:, None]),
            [X, Y],
            TensorDataset(X, Y),
            DataLoader(TensorDataset(X, Y), batch_size=7),
            DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, drop_last=True),
            data.Dataset(X, Y),
        ],
        ids=[
            "numpy",
            "double",
            "lists",
            "frames",
            "frame of y",
            "column",
            "list",
            "torch",
            "loader",
            "shuffled",
            "own",
        ],
    )
    def test_every_form_gives_the_same_fit(self, dataset):
        expected = quick(batch_size=16, chains=2)
        posterior = quick(dataset=dataset, batch_size=16, chains=2)
        for name, value in parameters(expected).items():
            torch.testing.assert_close(parameters(posterior)[name], value, rtol=1e-5, atol=1e-6)

    def test_integer_inputs(self):
        table = np.arange(3 * N).reshape(N, 3) % 7
        posterior = quick(dataset=(table, Y.numpy()))
        floats = quick(dataset=(torch.tensor(table).float(), Y))
        assert torch.equal(
            posterior.predict(table[:5], 1).mean, floats.predict(torch.tensor(table[:5]).float(), 1).mean
        )
        tokens = torch.tensor(table)
        bnn = model(nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 1)))
        assert quick(bnn, dataset=(tokens, Y), chains=2).predict(tokens[:5], 2).mean.shape == (5,)

    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.HeteroscedasticGaussian()])
    def test_standardized_data_come_back_in_own_units(self, likelihood, chains):
        split = data.load("diabetes").split(seed=0)
        outputs = likelihood.num_outputs(split.train.y)
        with seeded(0):
            bnn = model(models.MLP(10, outputs, hidden=(10,)), likelihood, priors.He())
        posterior = quick(bnn, guides.MeanField, split.train, chains=chains, epochs=25, lr=0.03, batch_size=50)
        prediction = posterior.predict(split.test.x, 50)
        error = (prediction.mean - split.test.y).square().mean().sqrt()
        assert error < 0.9 * split.test.y.std()
        assert 40 < prediction.aleatoric.sqrt().mean() < 80  # the noise of this data set, in its units
        low, high = prediction.interval(0.9)
        inside = ((low < split.test.y) & (split.test.y < high)).float().mean()
        assert 0.75 < inside <= 1
        # The log density is one of y, not of standardized y.
        assert -7 < prediction.log_prob(split.test.y).mean() < -5
        assert posterior.standardization is not None

    def test_standardizing_is_standardizing_by_hand(self):
        train = data.Dataset(50 + 9 * X, 300 + 40 * Y).split(0.2).train
        units = train.standardization
        inside = quick(dataset=train, chains=2)
        outside = quick(dataset=(units.x(train.x), units.y(train.y)), chains=2)
        for name, value in parameters(inside).items():
            torch.testing.assert_close(value, parameters(outside)[name], rtol=1e-5, atol=1e-6)
        by_hand = outside.predict(units.x(train.x), 1).mean * units.y_scale + units.y_loc
        torch.testing.assert_close(inside.predict(train.x, 1).mean.double(), by_hand.double(), rtol=1e-5, atol=1e-3)

    TWO = torch.stack([Y, 3 - 2 * Y], 1)

    @pytest.mark.parametrize("chains", [1, 2])
    @pytest.mark.parametrize(
        ("likelihood", "outputs", "y"),
        [
            (likelihoods.Gaussian(0.3), 1, Y),
            (likelihoods.Gaussian(), 1, Y),
            (likelihoods.Gaussian(dist.LogNormal(-1.0, 1.0)), 1, Y),
            (likelihoods.Gaussian(num_outputs=2), 2, TWO),
            (likelihoods.Gaussian(dist.HalfNormal(1.0), num_outputs=2), 2, TWO),
            (likelihoods.HeteroscedasticGaussian(), 2, Y),
            (likelihoods.HeteroscedasticGaussian(), 4, TWO),
            (likelihoods.Categorical(), 3, LABELS),
            (likelihoods.Bernoulli(), 1, (Y > 0).float()),
            (likelihoods.Bernoulli(), 2, (TWO > 0).float()),
            (likelihoods.Poisson(), 1, Y.exp().round()),
            (likelihoods.Poisson(), 2, TWO.clamp(-2, 2).exp().round()),
        ],
        ids=lambda value: "" if isinstance(value, torch.Tensor) else repr(value),
    )
    def test_likelihoods(self, likelihood, outputs, y, chains):
        bnn = model(network(outputs), likelihood)
        start = quick(bnn, guides.MeanField, (X, y), chains=chains, epochs=1, lr=1e-9)
        posterior = quick(bnn, guides.MeanField, (X, y), chains=chains, epochs=60, lr=0.05)
        before, after = start.predict(X, 20), posterior.predict(X, 20)
        assert after.shape == (chains, 20, *y.shape)
        for chain in range(chains):
            gained = after.chain(chain).log_prob(y).mean() - before.chain(chain).log_prob(y).mean()
            assert gained > 0.1


class TestBadInput:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_inputs_and_targets_that_are_not_finite(self, bad):
        x, y = X.clone(), Y.clone()
        x[3, 1] = bad
        with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values.*row 3, column 1"):
            quick(dataset=(x, Y))
        y[5] = bad
        with pytest.raises(ValueError, match=r"y has 1 NaN or infinite values.*row 5"):
            quick(dataset=(X, y))
        with pytest.raises(ValueError, match="x has 1 NaN"):
            quick(validation=(x, Y))

    def test_lengths_that_differ(self):
        with pytest.raises(ValueError, match="x has 40 rows and y has 39"):
            quick(dataset=(X, Y[1:]))

    @pytest.mark.parametrize(
        ("likelihood", "outputs", "y", "message"),
        [
            (likelihoods.Gaussian(), 1, torch.stack([Y, Y], 1), "network outputs of shape"),
            (likelihoods.Gaussian(), 1, torch.zeros(N, 2, 2), r"must have shape \[N\] or \[N, C\]"),
            (likelihoods.Gaussian(), 1, torch.complex(Y, Y), "real"),
            (likelihoods.Categorical(), 3, Y, "class labels"),
            (likelihoods.Categorical(), 3, nn.functional.one_hot(LABELS), "argmax"),
            (likelihoods.Categorical(), 3, LABELS - 1, "labels from 0|smallest|negative"),
            (likelihoods.Categorical(), 2, LABELS, "labels must be 0 to 1 for a network of 2 outputs"),
            (likelihoods.Categorical(), 1, LABELS, "at least 2 logits"),
            (likelihoods.Bernoulli(), 1, LABELS, "targets 0 and 1; y holds 2"),
            (likelihoods.Poisson(), 1, Y, "counts 0, 1, 2"),
            (likelihoods.Poisson(), 1, -LABELS, "counts 0, 1, 2"),
            (likelihoods.HeteroscedasticGaussian(), 1, Y, r"network outputs of shape \[N, 2\]"),
            (likelihoods.Gaussian(num_outputs=3), 2, torch.stack([Y, Y], 1), "3 noise scales"),
        ],
    )
    def test_targets_and_outputs_that_do_not_fit_the_likelihood(self, likelihood, outputs, y, message):
        with pytest.raises(ValueError, match=message):
            quick(model(network(outputs), likelihood), dataset=(X, y))

    def test_text_targets_for_a_regression(self):
        # Names of classes are encoded as labels, which a regression would take for numbers.
        y = np.array(["low", "high"] * (N // 2))
        with pytest.raises(
            ValueError, match=r"names of classes \(high, low\), and the likelihood Gaussian is for regr"
        ):
            quick(dataset=(X, y))
        quick(model(network(2), likelihoods.Categorical()), dataset=(X, y))

    def test_labels_of_the_validation_set_out_of_range(self):
        bnn = model(network(2), likelihoods.Categorical())
        with pytest.raises(ValueError, match="labels must be 0 to 1"):
            quick(bnn, dataset=(X, LABELS.clamp(max=1)), validation=(X, LABELS))

    @pytest.mark.parametrize("x", [X[:, :2], torch.randn(N, 3, 3, 3), torch.arange(3 * N).view(N, 3)])
    def test_inputs_that_do_not_fit_the_network(self, x):
        with pytest.raises(ValueError, match=r"the network fails on inputs of shape \[2, |network outputs|returns"):
            quick(dataset=(x, Y))

    def test_inputs_of_the_validation_set_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"the network fails on inputs of shape \[2, 2\]"):
            quick(validation=(X[:, :2], Y))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epochs": 0}, "epochs must be an integer of at least 1, not 0"),
            ({"epochs": 2.5}, "epochs must be an integer"),
            ({"epochs": True}, "epochs must be an integer"),
            ({"chains": 0}, "chains must be an integer of at least 1, not 0"),
            ({"chains": -2}, "chains must be an integer"),
            ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
            ({"lr": 0}, "lr must be a positive number, not 0"),
            ({"lr": -0.1}, "lr must be a positive number, not -0.1"),
            ({"lr": math.nan}, "lr must be a positive number"),
            ({"lr": "fast"}, "lr must be a positive number"),
            ({"clip_norm": 0.0}, "clip_norm must be a positive number"),
            ({"batch_size": N + 1}, "batch_size must be at most the number of data, 40, not 41"),
            ({"batch_size": 0}, "batch_size must be an integer of at least 1, not 0"),
            ({"batch_size": 2.5}, "batch_size must be an integer"),
            ({"patience": 3}, "patience needs validation data"),
            ({"patience": 0, "validation": 0.1}, "patience must be an integer of at least 1"),
            ({"validation": 0.0}, r"validation as a fraction must be in \(0, 1\), not 0.0"),
            ({"validation": 1.0}, "validation as a fraction"),
            ({"validation": -0.5}, "validation as a fraction"),
            ({"validation": 0.999}, "leaves none to train on"),
        ],
    )
    def test_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            quick(**settings)

    def test_a_batch_larger_than_what_validation_leaves(self):
        with pytest.raises(ValueError, match="number of data, 20, not 30"):
            quick(validation=0.5, batch_size=30)

    def test_checkpoint_in_a_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"cannot keep a checkpoint in .*nowhere.*no such folder"):
            quick(checkpoint=tmp_path / "nowhere" / "c")

    def test_nothing_that_holds_data(self):
        with pytest.raises(TypeError, match="cannot make a data set"):
            quick(dataset=7)
        with pytest.raises(TypeError, match=r"is a name: pass data\.load"):
            quick(dataset="diabetes")
        with pytest.raises(TypeError, match="cannot make a data set"):
            quick(validation=1)

    def test_a_network_that_returns_another_number_of_rows(self):
        class First(nn.Linear):
            def forward(self, x):
                return super().forward(x)[:1]

        with pytest.raises(ValueError, match="returns 1 outputs for 2 inputs"):
            quick(model(First(3, 1)))

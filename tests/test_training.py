"""`fit`: chains, seeds, and what it leaves alone."""

import copy
import random
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from fitting import LABELS, N, X, Y, assert_equal, gen, model, network, parameters, quick
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bnnzoo import fit, guides, likelihoods, models, objectives, priors
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import Trainer, chain_seed, stack


class TestChains:
    def test_history_has_a_row_for_each_chain_and_a_column_for_each_epoch(self):
        posterior = quick(chains=4, epochs=5, validation=0.25)
        assert posterior.chains == 4
        assert {name: value.shape for name, value in posterior.history.items()} == {
            "loss": (4, 5),
            "validation": (4, 5),
        }
        assert np.isfinite(posterior.history["loss"]).all()
        assert posterior.sample(7)["0.weight"].shape == (4, 7, 6, 3)

    def test_the_first_chain_starts_at_the_networks_values_and_the_others_elsewhere(self):
        net = network()
        posterior = quick(model(net), chains=3, epochs=1, lr=1e-9)
        for name, values in posterior.sample(1).items():
            start = net.get_parameter(name)
            torch.testing.assert_close(values[0, 0], start, atol=1e-6, rtol=0)
            for first, second in ((0, 1), (0, 2), (1, 2)):
                assert (values[first] - values[second]).abs().max() > 0.01

    def test_a_single_chain_starts_there_too(self):
        net = network()
        posterior = quick(model(net), epochs=1, lr=1e-9)
        torch.testing.assert_close(posterior.sample(1)["0.weight"][0, 0], net[0].weight, atol=1e-6, rtol=0)

    def test_chains_do_not_depend_on_how_many_there_are(self):
        # Full batches of a point: nothing is drawn but the initial values.
        two, four = (quick(chains=chains, batch_size=N) for chains in (2, 4))
        for name, value in parameters(two).items():
            torch.testing.assert_close(value, parameters(four)[name][:2], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", ["map", "mean field point"])
    def test_each_chain_is_the_separate_run_from_the_same_start(self, kind):
        prior = priors.Normal(0.0, 1.0)
        likelihood = likelihoods.Gaussian()
        bnn = model(likelihood=likelihood, prior=prior)
        guide = guides.Map if kind == "map" else partial(guides.MeanField, init_scale=1e-12, sampling="dense")
        settings = {"batch_size": N, "epochs": 30, "lr": 0.02, "clip_norm": 50.0}
        together = quick(bnn, guide, chains=3, seed=5, **settings)
        for chain in range(3):
            start = copy.deepcopy(bnn)
            if chain > 0:
                with seeded(chain_seed(5, chain)):
                    start.reset_parameters()
            values = start.initial_values()
            net = network()
            with torch.no_grad():
                for name, value in values.items():
                    net.get_parameter(name).copy_(value)
            alone = quick(model(net, likelihood, prior), guide, **settings)
            for name, value in parameters(alone).items():
                torch.testing.assert_close(value[0], parameters(together)[name][chain], rtol=1e-3, atol=2e-4)
            np.testing.assert_allclose(alone.history["loss"][0], together.history["loss"][chain], rtol=1e-4)

    def test_chains_have_their_own_minibatches_and_draws(self):
        pair = Pair(bnn := model(), guides.MeanField(bnn))
        with pyro_settings(pair):
            trainer = Trainer(
                pair, stack([pair.copy(), pair]), objectives.ELBO(), (X, Y), partial(torch.optim.SGD, lr=0.1)
            )
            index = torch.arange(N).expand(2, N)
            with seeded(0):
                losses = trainer.losses(index)
            assert losses[0] != losses[1]  # the same parameters and rows, other draws
            pair = Pair(bnn, guides.Map(bnn))
            trainer = Trainer(
                pair, stack([pair.copy(), pair]), objectives.ELBO(), (X, Y), partial(torch.optim.SGD, lr=0.1)
            )
            losses = trainer.losses(torch.stack([torch.arange(10), torch.arange(10, 20)]))
            separate = [
                objectives.ELBO().differentiable_loss(bnn, pair.guide, X[rows], Y[rows], size=N)
                for rows in (slice(0, 10), slice(10, 20))
            ]
        torch.testing.assert_close(losses, torch.stack(separate))

    def test_chains_are_distributed_as_separate_runs(self):
        # A linear model with a learned start: the spread of chains from their starts and minibatches after few steps.
        settings = {"epochs": 3, "batch_size": 10, "lr": 0.05}
        together = quick(chains=40, **settings).sample(1)["2.bias"].flatten()
        separate = []
        for seed in range(40):
            net = network()
            with seeded(1000 + seed):
                for layer in (net[0], net[2]):
                    layer.reset_parameters()
            separate.append(quick(model(net), seed=seed, **settings).sample(1)["2.bias"].item())
        separate = torch.tensor(separate)
        error = (together.var() / 40 + separate.var() / 40).sqrt()
        assert (together.mean() - separate.mean()).abs() < 5 * error
        # var(log s²) is about 2/39 for each; a factor above 5 standard errors is one in a million
        assert abs((together.var() / separate.var()).log()) < 5 * (4 / 39) ** 0.5

    def test_mean_field_chains_find_the_same_posterior(self):
        bnn = model(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        posterior = quick(bnn, guides.MeanField, chains=3, epochs=300, lr=0.03, batch_size=N)
        weights = posterior.sample(4000)["weight"][:, :, 0]
        precision = X.T @ X / 0.09 + torch.eye(3)
        # biases are nearly independent of the weights here; compare loosely, exactness is tested elsewhere
        assert (weights.std(1) * precision.diagonal().sqrt() - 1).abs().max() < 0.2
        assert (weights.mean(1) - weights.mean((0, 1))).abs().max() < 0.1

    def test_dropout_masks_differ_between_chains_and_steps(self):
        net = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1))
        bnn = model(net)
        pair = Pair(bnn, guides.Map(bnn)).train()
        with pyro_settings(pair):
            trainer = Trainer(
                pair, stack([pair.copy(), pair]), objectives.ELBO(), (X, Y), partial(torch.optim.SGD, lr=0.1)
            )
            index = torch.arange(N).expand(2, N)
            with seeded(0):
                first, second = trainer.losses(index), trainer.losses(index)
        assert first[0] != first[1]
        assert (first != second).all()
        posterior = quick(bnn, chains=2, batch_size=N)
        assert not posterior.bnn.training
        assert torch.equal(posterior.predict(X, 1).mean, posterior.predict(X, 1).mean)

    @pytest.mark.parametrize("chains", [1, 3])
    def test_batch_norm_keeps_running_statistics_for_each_chain(self, chains):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.5), nn.ReLU(), nn.Linear(4, 1))
        posterior = quick(model(net), chains=chains, batch_size=N, epochs=40, lr=1e-6)
        buffers = posterior._buffers
        assert buffers["model.network.1.num_batches_tracked"].tolist() == [40] * chains
        draws = posterior.sample(1)
        for chain in range(chains):
            hidden = X @ draws["0.weight"][chain, 0].T + draws["0.bias"][chain, 0]
            mean, variance = (
                buffers["model.network.1.running_mean"][chain],
                buffers["model.network.1.running_var"][chain],
            )
            torch.testing.assert_close(mean, hidden.mean(0), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(variance, hidden.var(0), rtol=1e-3, atol=1e-4)
            # Predictions use each chain's own.
            values = {name: value[chain, 0] for name, value in draws.items()}
            expected = nn.functional.batch_norm(hidden, mean, variance, values["1.weight"], values["1.bias"])
            expected = expected.relu() @ values["3.weight"].T + values["3.bias"]
            torch.testing.assert_close(
                posterior.predict(X, 1).chain(chain).mean, expected.squeeze(1), rtol=1e-4, atol=1e-5
            )
        assert torch.equal(net[1].running_mean, torch.zeros(4))

    def test_batch_norm_with_a_cumulative_average(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 1))
        posterior = quick(model(net), chains=2, batch_size=N, lr=1e-9)
        draws = posterior.sample(1)
        hidden = torch.einsum("ni,coi->cno", X, draws["0.weight"][:, 0]) + draws["0.bias"]
        torch.testing.assert_close(
            posterior._buffers["model.network.1.running_mean"], hidden.mean(1), rtol=1e-4, atol=1e-5
        )

    def test_running_statistics_do_not_see_the_rows_that_shape_pyros_guides(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 1))
        posterior = quick(model(net), AutoNormal, batch_size=N, epochs=1)
        assert posterior._buffers["model.network.1.num_batches_tracked"].tolist() == [1]

    @pytest.mark.parametrize("chains", [1, 2])
    def test_frozen_layers_stay_as_they_are(self, chains):
        net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        with torch.no_grad():
            net[1].running_mean.add_(3)
        net[:2].requires_grad_(False)
        before = copy.deepcopy(net.state_dict())
        posterior = quick(model(net), chains=chains, epochs=1, lr=0.5)
        assert list(posterior.bnn.sites) == ["3.weight", "3.bias"]
        assert torch.equal(posterior.bnn.network[0].weight, before["0.weight"])
        assert torch.equal(posterior.bnn.network[1].weight, before["1.weight"])
        # Pretrained statistics of a frozen layer are where every chain starts.
        means = posterior._buffers["model.network.1.running_mean"]
        assert (means - 3 * 0.9).abs().max() < 1

    def test_attention_starts_afresh_in_every_chain(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
                self.head = nn.Linear(4, 1)

            def forward(self, x):
                return self.head(self.attention(x, x, x, need_weights=True)[0].mean(1))

        x = torch.randn(N, 5, 4, generator=gen())
        weights = quick(model(Net()), dataset=(x, Y), chains=2, epochs=1, lr=1e-9).sample(1)["attention.in_proj_weight"]
        assert (weights[0] - weights[1]).abs().max() > 0.1

    @pytest.mark.parametrize("chains", [1, 2])
    def test_convolutions(self, chains):
        x = torch.randn(N, 1, 16, 16, generator=gen())
        bnn = model(models.LeNet(1, 3, (2, 3), 8, 16), likelihoods.Categorical(), priors.He())
        posterior = quick(bnn, guides.MeanField, (x, LABELS), chains=chains, epochs=2, batch_size=16)
        assert posterior.predict(x, 3).probs.shape == (N, 3)
        assert (posterior.history["loss"] > 0).all()


class TestSeeds:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("guide", [guides.Map, guides.MeanField, AutoNormal])
    def test_a_seed_reproduces_bit_for_bit_and_another_does_not(self, guide, chains):
        runs = [quick(guide=guide, chains=chains, seed=seed, batch_size=16, validation=0.2) for seed in (3, 3, 4)]
        assert_equal(parameters(runs[0]), parameters(runs[1]))
        np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])
        np.testing.assert_array_equal(runs[0].history["validation"], runs[1].history["validation"])
        assert not np.array_equal(runs[0].history["loss"], runs[2].history["loss"])

    def test_the_state_of_global_generators_neither_matters_nor_changes(self):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002  (the generator that must be left alone)
            random.seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
            posterior = quick(guide=guides.MeanField, chains=2, validation=0.2)
            posterior.sample(3)
            posterior.predict(X)
            assert torch.equal(torch.get_rng_state(), before[0])
            assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
            assert random.getstate() == before[2]
            results.append(parameters(posterior))
        assert_equal(*results)

    @pytest.mark.parametrize("guide", [guides.MeanField, AutoNormal])
    @pytest.mark.parametrize("chains", [1, 2])
    def test_what_the_user_passes_is_not_changed(self, guide, chains):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        bnn = model(net, likelihoods.Gaussian())
        ours = guide(bnn)
        bnn.eval()
        x, y = X.clone(), Y.clone()
        before = copy.deepcopy(bnn.state_dict())
        guide_before = {name: value.clone() for name, value in ours.state_dict().items()}
        fit(bnn, ours, (x, y), epochs=2, lr=0.1, chains=chains)
        for name, value in bnn.state_dict().items():
            assert torch.equal(value, before[name])
        assert not bnn.training
        assert ours.state_dict().keys() == guide_before.keys()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, guide_before[name])
        assert all(p.grad is None for p in [*bnn.parameters(), *ours.parameters()])
        assert torch.equal(x, X)
        assert torch.equal(y, Y)
        assert ours.model is not None
        fit(bnn, ours, (x, y), epochs=1)  # both can be used again

    def test_the_objective_is_not_changed(self):
        annealing = objectives.ELBO(kl_weight=objectives.KLAnnealing(2))
        quick(objective=annealing, epochs=4)
        assert annealing.epoch == 0.0

    def test_pyros_parameter_store_is_not_touched(self):
        pyro.clear_param_store()
        quick(guide=AutoNormal)
        quick(guide=guides.MeanField, chains=2)
        assert not list(pyro.get_param_store().keys())

    def test_works_inside_no_grad(self):
        with torch.no_grad():
            inside = quick(chains=2)
        assert_equal(parameters(inside), parameters(quick(chains=2)))

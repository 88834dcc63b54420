"""`fit`: chains, seeds, optimizers, clipping, validation, divergence, data in all forms, bad input."""

import copy
import math
import random
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from bnnzoo import BayesianNetwork, data, fit, guides, likelihoods, load, models, objectives, priors
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import DivergenceWarning, Trainer, chain_seed, stack

N = 40


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, 3, generator=gen())
Y = X.sum(1) + 0.1 * torch.randn(N, generator=gen(1))
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network(out=1, seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, out))


def model(net=None, likelihood=None, prior=None):
    prior = priors.Normal(0.0, 1.0) if prior is None else prior
    return BayesianNetwork(net or network(), likelihood or likelihoods.Gaussian(0.3), prior)


def quick(bnn=None, guide=guides.Map, dataset=(X, Y), **settings):
    bnn = bnn or model()
    return fit(bnn, guide(bnn), dataset, **{"epochs": 3, "lr": 0.01, **settings})


def parameters(posterior):
    return {name: value.clone() for name, value in {**posterior._parameters, **posterior._buffers}.items()}


def assert_equal(first, second, chains=slice(None)):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value[chains], second[name][chains]), name


class Record:
    """A callback that keeps what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, progression):
        self.seen.append(
            (
                progression.epoch,
                {name: value.copy() for name, value in progression.history.items()},
                {name: value.clone() for name, value in progression.parameters.items()},
                progression.active.clone(),
            )
        )


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
        together = quick(chains=60, **settings).sample(1)["2.bias"].flatten()
        separate = []
        for seed in range(60):
            net = network()
            with seeded(1000 + seed):
                for layer in (net[0], net[2]):
                    layer.reset_parameters()
            separate.append(quick(model(net), seed=seed, **settings).sample(1)["2.bias"].item())
        separate = torch.tensor(separate)
        error = (together.var() / 60 + separate.var() / 60).sqrt()
        assert (together.mean() - separate.mean()).abs() < 5 * error
        # var(log s²) is about 2/59 for each; a factor above 5 standard errors is one in a million
        assert abs((together.var() / separate.var()).log()) < 5 * (4 / 59) ** 0.5

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


class Calls(torch.optim.SGD):
    steps = 0

    def step(self, *args, **kwargs):
        type(self).steps += 1
        return super().step(*args, **kwargs)


class TestSteps:
    @pytest.mark.parametrize(("batch_size", "steps"), [(N, 1), (16, 3), (13, 4), (N - 1, 2), (1, N)])
    def test_the_last_batch_holds_the_rest(self, batch_size, steps):
        Calls.steps = 0
        posterior = quick(batch_size=batch_size, epochs=2, optimizer=Calls, lr=1e-5)
        assert Calls.steps == 2 * steps
        assert posterior.info["batch_size"] == batch_size

    def test_default_batches(self):
        assert quick().info["batch_size"] == N
        x = torch.randn(130, 3)
        assert quick(dataset=(x, x.sum(1))).info["batch_size"] == 100

    @pytest.mark.parametrize("chains", [1, 2])
    def test_every_row_is_used_once_an_epoch(self, chains):
        # A linear model without prior pull: the gradient of a batch is that of its rows. With a vanishing rate the
        # losses of an epoch are those of a partition of the rows at fixed parameters.
        bnn = model(nn.Linear(3, 1), likelihoods.Gaussian(1.0), priors.Normal(0.0, 1.0))
        posterior = quick(bnn, chains=chains, batch_size=10, epochs=3, lr=1e-12)
        # sizes divide N: the mean of the scaled losses is exactly the full loss
        full = quick(bnn, chains=chains, batch_size=N, epochs=1, lr=1e-12)
        np.testing.assert_allclose(posterior.history["loss"], np.repeat(full.history["loss"], 3, axis=1), rtol=1e-5)

    def test_one_step_is_gradient_descent_on_the_negative_log_joint(self):
        net = nn.Linear(3, 1)
        bnn = model(net, likelihoods.Gaussian(0.5), priors.Normal(0.0, 2.0))
        posterior = quick(bnn, optimizer=torch.optim.SGD, lr=1e-3, epochs=1, batch_size=N)
        w, b = net.weight.detach().clone().requires_grad_(), net.bias.detach().clone().requires_grad_()
        loss = -dist.Normal((X @ w.T + b).squeeze(1), 0.5).log_prob(Y).sum()
        loss = loss - dist.Normal(0.0, 2.0).log_prob(w).sum() - dist.Normal(0.0, 2.0).log_prob(b).sum()
        loss.backward()
        assert posterior.history["loss"][0, 0] == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(posterior.sample(1)["weight"][0, 0], w - 1e-3 * w.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(posterior.sample(1)["bias"][0, 0], b - 1e-3 * b.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize(
        "optimizer",
        [
            torch.optim.SGD,
            partial(torch.optim.SGD, momentum=0.9, nesterov=True),
            torch.optim.RMSprop,
            torch.optim.AdamW,
            torch.optim.Adagrad,
            partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
            torch.optim.NAdam,
            lambda parameters, lr: torch.optim.Adadelta(parameters, lr=100 * lr),
        ],
    )
    def test_optimizers(self, optimizer, chains):
        posterior = quick(optimizer=optimizer, chains=chains, epochs=15, lr=2e-4)
        loss = posterior.history["loss"]
        assert (loss[:, -1] < loss[:, 0]).all()

    @pytest.mark.parametrize(
        ("scheduler", "factors"),
        [
            (partial(lr_scheduler.StepLR, step_size=1, gamma=0.5), [1, 0.5, 0.25, 0.125]),
            (partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)), [1, 1 / 2, 1 / 3, 1 / 4]),
            (partial(lr_scheduler.MultiStepLR, milestones=[2], gamma=0.1), [1, 1, 0.1, 0.1]),
        ],
    )
    @pytest.mark.parametrize("chains", [1, 2])
    def test_schedulers_step_once_an_epoch(self, scheduler, factors, chains):
        # With a constant gradient the steps of SGD are the learning rates.
        bnn = model(nn.Linear(3, 1, bias=False), likelihoods.Gaussian(1e3), priors.Normal(0.0, 1e6))
        record = Record()
        quick(bnn, optimizer=torch.optim.SGD, scheduler=scheduler, epochs=4, lr=1.0, callback=record, chains=chains)
        loc = torch.stack([entry[2]["guide.loc"] for entry in record.seen])
        steps = (loc[1:] - loc[:-1]).norm(dim=-1)
        expected = torch.tensor(factors[1:]) / factors[1]
        torch.testing.assert_close(steps / steps[:1], expected[:, None].expand(3, chains).to(steps), rtol=1e-2, atol=0)

    def test_plateau_follows_the_loss_or_the_validation_score(self):
        rates = []

        class Watched(lr_scheduler.ReduceLROnPlateau):
            def step(self, metrics):
                rates.append(metrics)
                super().step(metrics)

        posterior = quick(scheduler=Watched, epochs=3)
        np.testing.assert_allclose(rates, posterior.history["loss"][0])
        rates.clear()
        posterior = quick(scheduler=Watched, epochs=3, validation=0.2)
        np.testing.assert_allclose(rates, posterior.history["validation"][0])
        with pytest.raises(ValueError, match=r"ReduceLROnPlateau follows one loss.*chains=1"):
            quick(scheduler=lr_scheduler.ReduceLROnPlateau, chains=2)

    def test_lbfgs_is_refused(self):
        with pytest.raises(ValueError, match="LBFGS"):
            quick(optimizer=torch.optim.LBFGS)

    @pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, partial(Trace_ELBO, num_particles=3)])
    @pytest.mark.parametrize("chains", [1, 3])
    def test_pyros_objectives(self, objective, chains):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found vars in model but not guide")
            posterior = quick(guide=guides.MeanField, objective=objective(), chains=chains, epochs=30, lr=0.01)
        loss = posterior.history["loss"]
        assert loss.shape == (chains, 30)
        assert (loss[:, -5:].mean(1) < loss[:, :5].mean(1)).all()
        assert len(np.unique(loss[:, 0])) == chains

    @pytest.mark.parametrize("objective", [RenyiELBO(), TraceGraph_ELBO()])
    def test_objectives_that_cannot_be_differentiated_are_refused(self, objective):
        with pytest.raises(TypeError, match=f"{type(objective).__name__} has no differentiable_loss"):
            quick(objective=objective)

    def test_annealing_sees_the_epoch(self):
        seen = []

        def weight(epoch):
            seen.append(epoch)
            return 1.0

        quick(guide=guides.MeanField, objective=objectives.ELBO(kl_weight=weight), batch_size=20, epochs=2)
        assert seen == [0.0, 0.5, 1.0, 1.5]

    @pytest.mark.parametrize("chains", [1, 2])
    def test_double_precision(self, chains):
        bnn = model(network().double(), likelihoods.Gaussian(dist.HalfNormal(1.0)))
        posterior = quick(bnn, guides.MeanField, dataset=(X.double(), Y.double()), chains=chains)
        assert posterior.sample(2)["0.weight"].dtype == torch.float64
        prediction = posterior.predict(X.double(), 3)
        assert prediction.mean.dtype == torch.float64
        assert {value.dtype for value in posterior._parameters.values()} == {torch.float64}

    @pytest.mark.parametrize("chains", [1, 2])
    def test_parameters_without_prior_are_learned(self, chains):
        bnn = model(likelihood=likelihoods.Gaussian(), prior={"0.*": None, "*": priors.Normal(0.0, 1.0)})
        posterior = quick(bnn, guides.MeanField, chains=chains, epochs=5, lr=0.05)
        assert set(posterior.sample(1)) == {"2.weight", "2.bias"}
        moved = posterior._parameters["model.network.0.weight"][0] - network()[0].weight
        assert moved.abs().max() > 0.01
        assert (posterior._parameters["model.likelihood.log_scale"] != math.log(0.5)).all()


class TestClipping:
    def steps(self, chains, bound):
        pair = Pair(bnn := model(likelihood=likelihoods.Gaussian()), guides.Map(bnn))
        copies = [pair.copy() for _ in range(chains - 1)] + [pair]
        for number, each in enumerate(copies[1:]):
            with torch.no_grad():
                each.guide.loc.mul_(10.0 ** (number + 1))
        with pyro_settings(pair):
            trainer = Trainer(
                pair, stack(copies), objectives.ELBO(), (X, Y), partial(torch.optim.SGD, lr=1.0), clip_norm=bound
            )
            before = {name: value.clone() for name, value in trainer.parameters.items()}
            trainer.step(torch.arange(N).expand(chains, N))
        return {name: before[name] - value for name, value in trainer.parameters.items()}

    def test_one_chain_is_clipped_as_torch_does(self):
        steps = self.steps(1, 3.0)
        bnn = model(likelihood=likelihoods.Gaussian())
        guide = guides.Map(bnn)
        own = Pair(bnn, guide)
        with pyro_settings(own):
            objectives.ELBO().differentiable_loss(bnn, guide, X, Y, size=N).backward()
        trained = [p for p in own.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, 3.0)
        assert norm > 30
        for name, parameter in own.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(steps[name][0], parameter.grad, rtol=1e-4, atol=1e-6)

    def test_chains_are_clipped_one_by_one(self):
        free = self.steps(3, 1e9)
        norms = sum(step.reshape(3, -1).square().sum(1) for step in free.values()).sqrt()
        assert norms[2] > 20 * norms[0]
        bound = 2 * norms[0].item()
        clipped = self.steps(3, bound)
        for name, step in clipped.items():
            assert torch.equal(step[0], free[name][0])  # a chain within the bound is left as it is
            for chain in (1, 2):
                torch.testing.assert_close(step[chain], free[name][chain] * bound / norms[chain], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_parameters_in_any_memory_layout(self, chains):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 1)).to(memory_format=torch.channels_last)
        x = torch.randn(N, 2, 4, 4, generator=gen())
        bnn = model(net, prior={nn.Linear: priors.Normal(0.0, 1.0), "*": None})
        quick(bnn, dataset=(x, Y), clip_norm=1.0, chains=chains)


def stopping(scores, patience):
    """The best epoch and the last one, counted from 0, of a chain with these scores."""
    best = 0
    for epoch, score in enumerate(scores):
        if score < scores[best]:
            best = epoch
        if epoch - best >= patience:
            return best, epoch
    return best, len(scores) - 1


class TestValidation:
    def test_the_score_is_the_mean_negative_log_density_of_held_out_data(self):
        held = (X[:10] + 0.1, Y[:10])
        posterior = quick(chains=2, validation=held, epochs=4)
        prediction = posterior.predict(held[0], 1)
        expected = [-prediction.chain(c).log_prob(held[1]).mean().item() for c in range(2)]
        np.testing.assert_allclose(posterior.history["validation"][:, -1], expected, rtol=1e-4)

    def test_scores_of_large_sets_are_computed_in_parts(self, monkeypatch):
        settings = {"chains": 2, "guide": guides.MeanField, "validation": (X, Y)}
        whole = quick(**settings).history["validation"]
        monkeypatch.setattr("bnnzoo.training._Validation.memory", 5000)
        np.testing.assert_allclose(quick(**settings).history["validation"], whole, rtol=1e-5)

    def test_a_fraction_is_held_out(self):
        posterior = quick(validation=0.25)
        assert posterior.info["num_data"] == 30
        assert quick(validation=0.01).info["num_data"] == N - 1

    def test_the_held_out_rows_are_no_training_rows(self):
        # Rows that the network could only know by heart.
        x = torch.eye(N)
        y = torch.randn(N, generator=gen()) * 10
        bnn = model(nn.Linear(N, 1, bias=False), likelihoods.Gaussian(1.0), priors.Normal(0.0, 100.0))
        posterior = quick(bnn, dataset=(x, y), validation=0.25, epochs=200, lr=0.5, batch_size=30)
        learned = (posterior.predict(x, 1).mean - y).abs() < 0.5
        assert learned.sum() == 30

    @pytest.mark.parametrize("chains", [1, 3])
    def test_each_chain_stops_at_its_best_epoch(self, chains):
        record = Record()
        x = torch.randn(12, 3, generator=gen(5))
        y = torch.randn(12, generator=gen(6))  # nothing to learn: the score worsens sooner or later
        posterior = quick(
            dataset=(x, y),
            validation=(X[:20], torch.randn(20, generator=gen(7))),
            patience=5,
            epochs=300,
            lr=0.05,
            chains=chains,
            callback=record,
        )
        scores = posterior.history["validation"]
        assert scores.shape[1] < 300
        lengths = []
        for chain in range(chains):
            at, stop = stopping(scores[chain], 5)
            lengths.append(stop + 1)
            for name, value in record.seen[at][2].items():
                assert torch.equal(posterior._parameters[name][chain], value[chain]), name
            for epoch, _, _, active in record.seen:
                assert active[chain] == (epoch <= stop)
        assert max(lengths) == scores.shape[1]

    def test_without_stopping_the_best_epoch_is_returned(self):
        record = Record()
        posterior = quick(chains=2, validation=0.3, patience=1000, epochs=15, lr=0.3, callback=record)
        for chain in range(2):
            best = int(np.argmin(posterior.history["validation"][chain]))
            assert torch.equal(posterior._parameters["guide.loc"][chain], record.seen[best][2]["guide.loc"][chain])

    def test_a_stopped_chain_does_not_touch_the_others(self):
        settings = {"chains": 3, "epochs": 12, "batch_size": 16, "lr": 0.2, "validation": 0.3}
        free = quick(**settings)
        record = Record()
        quick(**settings, patience=1, callback=record)
        *_, active = record.seen[-1]
        assert not active.all()
        for epoch, history, _, active in record.seen:
            for chain in torch.nonzero(active).flatten().tolist():
                assert history["loss"][chain, epoch - 1] == free.history["loss"][chain, epoch - 1]

    def test_batch_statistics_of_the_best_epoch_come_back_too(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        posterior = quick(model(net), chains=2, validation=0.3, patience=2, epochs=30, lr=0.3, batch_size=28)
        best = [1 + stopping(scores, 2)[0] for scores in posterior.history["validation"]]
        assert posterior._buffers["model.network.1.num_batches_tracked"].tolist() == best

    def test_scores_that_are_never_finite_leave_the_last_parameters(self):
        bnn = model(network(), likelihoods.Poisson())
        counts = torch.ones(N)
        record = Record()
        posterior = quick(
            bnn,
            dataset=(X, counts),
            validation=(1e30 * torch.ones(2, 3), torch.tensor([3.0, 1.0])),
            patience=10,
            callback=record,
        )
        if not np.isfinite(posterior.history["validation"]).any():
            assert torch.equal(posterior._parameters["guide.loc"], record.seen[-1][2]["guide.loc"])

    def test_validation_data_are_standardized_as_the_training_data(self):
        split = data.Dataset(50 + 9 * X, 300 + 40 * Y).split(0.25)
        own = quick(dataset=split.train, validation=split.test)
        pair = quick(dataset=split.train, validation=(split.test.x, split.test.y))
        np.testing.assert_array_equal(own.history["validation"], pair.history["validation"])
        assert own.history["validation"].max() < 1000


class TestCallback:
    def test_what_it_is_shown(self):
        record = Record()
        posterior = quick(chains=2, epochs=4, validation=0.2, callback=record)
        assert [entry[0] for entry in record.seen] == [1, 2, 3, 4]
        for epoch, history, values, active in record.seen:
            assert history["loss"].shape == history["validation"].shape == (2, epoch)
            np.testing.assert_array_equal(history["loss"], posterior.history["loss"][:, :epoch])
            assert active.tolist() == [True, True]
            assert values["guide.loc"].shape == posterior._parameters["guide.loc"].shape
        assert torch.equal(record.seen[-1][2]["guide.loc"], posterior._parameters["guide.loc"])

    @pytest.mark.parametrize("chains", [1, 2])
    def test_true_ends_training(self, chains):
        posterior = quick(chains=chains, epochs=50, callback=lambda progression: progression.epoch == 3)
        assert posterior.history["loss"].shape == (chains, 3)

    @pytest.mark.parametrize("answer", [None, False, 1, "yes"])
    def test_nothing_else_does(self, answer):
        assert quick(epochs=4, callback=lambda progression: answer).history["loss"].shape == (1, 4)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_what_it_writes_to_parameters_stays(self, chains):
        def prune(progression):
            progression.parameters["guide.loc"][:, :5] = 0.0

        posterior = quick(chains=chains, callback=prune)
        assert (posterior._parameters["guide.loc"][:, :5] == 0).all()
        assert (posterior._parameters["guide.loc"][:, 5:] != 0).any()

    def test_its_errors_pass(self):
        def fail(progression):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            quick(callback=fail)


class TestProgress:
    def test_silent_where_there_is_no_terminal(self, capfd):
        quick()
        assert capfd.readouterr() == ("", "")

    def test_bar_goes_to_standard_error(self, capfd):
        quick(progress=True, epochs=2)
        out, err = capfd.readouterr()
        assert out == ""
        assert "2/2" in err
        assert "loss" in err


class TestDivergence:
    settings = {"chains": 3, "epochs": 6, "batch_size": 16}  # noqa: RUF012

    def run(self, callback=None, **settings):
        with seeded(0):
            net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
        return quick(
            model(net), settings.pop("guide", guides.MeanField), **{**self.settings, **settings}, callback=callback
        )

    @pytest.mark.parametrize("broken", [0, 1, 2])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_broken_chain_is_reported_and_leaves_the_others_bit_identical(self, broken, value):
        def spoil(progression):
            if progression.epoch == 2:
                progression.parameters["guide.loc"][broken] = value

        healthy = self.run()
        with pytest.warns(DivergenceWarning, match=f"chain {broken} diverged in epoch 3") as caught:
            posterior = self.run(spoil)
        assert len(caught) == 1
        others = [chain for chain in range(3) if chain != broken]
        assert_equal(parameters(posterior), parameters(healthy), others)
        np.testing.assert_array_equal(posterior.history["loss"][others], healthy.history["loss"][others])
        assert not np.isfinite(posterior.history["loss"][broken, 2])
        assert posterior.info["diverged"] == [broken]
        for value in parameters(posterior).values():
            assert value.isfinite().all()
        assert posterior.predict(X, 5).mean.isfinite().all()

    @pytest.mark.parametrize("options", [{"clip_norm": 10.0}, {"validation": 0.2}, {"validation": 0.2, "patience": 50}])
    def test_with_other_options(self, options):
        def spoil(progression):
            if progression.epoch == 2:
                progression.parameters["guide.loc"][1, 0] = math.nan

        healthy = self.run(**options)
        with pytest.warns(DivergenceWarning, match="chain 1"):
            posterior = self.run(spoil, **options)
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])

    def test_a_diverged_chain_stays_as_before_the_epoch(self):
        record = Record()

        def spoil(progression):
            record(progression)
            if progression.epoch == 2:
                progression.parameters["guide.log_scale"][1] = math.nan

        with pytest.warns(DivergenceWarning):
            posterior = self.run(spoil)
        for name, value in posterior._parameters.items():
            assert torch.equal(value[1], record.seen[1][2][name][1])
        assert [entry[3].tolist() for entry in record.seen] == [[True] * 3] * 2 + [[True, False, True]] * 4

    def test_a_chain_that_really_diverges(self):
        # The Poisson rate of the second chain's start overflows.
        class Start(nn.Linear):
            calls = 0

            def reset_parameters(self):
                super().reset_parameters()
                type(self).calls += 1
                if type(self).calls == 1:  # of the second chain: the first one keeps its values
                    with torch.no_grad():
                        self.bias.fill_(200.0)

        def run(explode):
            Start.calls = 100
            with seeded(0):
                bnn = model(Start(3, 1), likelihoods.Poisson())
            Start.calls = 0 if explode else 100
            return quick(bnn, guides.MeanField, (X, torch.ones(N)), chains=3, epochs=4, batch_size=16)

        healthy = run(False)
        with pytest.warns(DivergenceWarning, match=r"chain 1 diverged in epoch 1 \(loss (inf|nan)\)"):
            posterior = run(True)
        assert posterior.info["diverged"] == [1]
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])
        np.testing.assert_array_equal(posterior.history["loss"][[0, 2]], healthy.history["loss"][[0, 2]])

    def test_convolutions_of_other_chains_do_not_notice(self):
        x = torch.randn(N, 1, 16, 16, generator=gen())

        def run(callback=None):
            with seeded(0):
                bnn = model(models.LeNet(1, 3, (2, 3), 8, 16), likelihoods.Categorical(), priors.He())
            return quick(bnn, guides.MeanField, (x, LABELS), chains=3, epochs=3, callback=callback)

        def spoil(progression):
            if progression.epoch == 1:
                progression.parameters["guide.loc"][1] = math.nan

        healthy = run()
        with pytest.warns(DivergenceWarning, match="chain 1"):
            posterior = run(spoil)
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])

    @pytest.mark.parametrize("chains", [1, 2])
    def test_when_all_diverge_it_is_an_error(self, chains):
        with (
            pytest.warns(DivergenceWarning),
            pytest.raises(FloatingPointError, match=r"every chain diverged, the last in epoch .*lower lr"),
        ):
            quick(optimizer=torch.optim.SGD, lr=1e6, chains=chains, epochs=50)


class TestGuides:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta])
    @pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.Gaussian(dist.HalfNormal(1.0))])
    def test_pyros_guides_end_to_end(self, tmp_path, guide, chains, likelihood):
        bnn = model(likelihood=likelihood)
        posterior = quick(bnn, guide, chains=chains, epochs=60, lr=0.03)
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
        posterior = quick(bnn, guides.MeanField, split.train, chains=chains, epochs=40, lr=0.02, batch_size=50)
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
        ids=repr,
    )
    def test_likelihoods(self, likelihood, outputs, y, chains):
        bnn = model(network(outputs), likelihood)
        start = quick(bnn, guides.MeanField, (X, y), chains=chains, epochs=1, lr=1e-9)
        posterior = quick(bnn, guides.MeanField, (X, y), chains=chains, epochs=150, lr=0.03)
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

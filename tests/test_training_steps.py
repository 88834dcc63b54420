"""`fit`: minibatches, optimizers, schedulers, objectives, clipping."""

import math
import warnings
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from fitting import N, Record, X, Y, gen, model, network, quick
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import lr_scheduler

from bnnzoo import guides, likelihoods, objectives, priors
from bnnzoo._vectorize import Pair, pyro_settings
from bnnzoo.chains import Trainer, stack


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

    def test_chains_go_through_the_rows_in_orders_of_their_own(self):
        seen = []

        class Spy(Trace_ELBO):  # an objective that is not mapped sees the chains one by one
            def differentiable_loss(self, model, guide, x, y, size):
                seen.append((x, y, size))
                return super().differentiable_loss(model, guide, x, y, size=size)

        quick(objective=Spy(), chains=2, epochs=2, batch_size=16)
        assert [len(x) for x, _, _ in seen] == [16, 16, 16, 16, 8, 8] * 2
        assert {size for _, _, size in seen} == {N}
        rows = {tuple(x): index for index, x in enumerate(X.tolist())}
        orders = {}
        for position, (x, y, _) in enumerate(seen):
            index = [rows[tuple(each)] for each in x.tolist()]
            assert torch.equal(y, Y[index])
            orders.setdefault((position % 2, position // 6), []).extend(index)
        assert all(sorted(order) == list(range(N)) for order in orders.values())
        assert len({tuple(order) for order in orders.values()}) == 4

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

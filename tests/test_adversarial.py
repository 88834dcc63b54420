"""`fit(adversarial=ε)`: training on examples of the fast gradient sign; ensembles of points."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from fitting import LABELS, N, X, Y, assert_equal, gen, model, network, parameters, quick
from pyro.infer import Trace_ELBO
from torch import nn

from bnnzoo import guides, likelihoods, objectives, priors
from bnnzoo._vectorize import seeded
from bnnzoo.data import Dataset, Standardization
from bnnzoo.training_data import input_range

#: Inputs of very different ranges, one of which never changes.
UNEVEN = X * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, -7.0, 3.0])


class Spy(Trace_ELBO):
    """An objective that is not mapped, and so sees the chains one by one; keeps what it is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __copy__(self):
        return self  # `fit` works on a copy

    def differentiable_loss(self, model, guide, x, y, size):
        self.seen.append((x.detach().clone(), y, {name: v.clone() for name, v in guide().items()}))
        return super().differentiable_loss(model, guide, x, y, size=size)


def spied(**settings):
    spy = Spy()
    quick(objective=spy, **settings)
    return spy.seen


class TestSteps:
    @pytest.mark.parametrize("chains", [1, 2])
    def test_a_step_on_a_linear_model_in_closed_form(self, chains):
        bnn = model(nn.Linear(3, 1), likelihoods.Gaussian(0.5), priors.Normal(0.0, 2.0))
        settings = {
            "optimizer": torch.optim.SGD,
            "batch_size": N,
            "epochs": 1,
            "chains": chains,
            "dataset": (UNEVEN, Y),
        }
        start = quick(bnn, **settings, lr=1e-30).sample(1)
        posterior = quick(bnn, **settings, lr=1e-6, adversarial=0.2)
        reach = 0.2 * (UNEVEN.max(0).values - UNEVEN.min(0).values)
        assert reach[2] == 0
        for chain in range(chains):
            w = start["weight"][chain, 0].clone().requires_grad_()
            b = start["bias"][chain, 0].clone().requires_grad_()

            def data_term(x, w, b):
                return -dist.Normal((x @ w.T + b).squeeze(1), 0.5).log_prob(Y).sum()

            # d/dx of (x w + b - y)² / (2 σ²) is w (x w + b - y) / σ².
            attacked = UNEVEN + reach * (w * (UNEVEN @ w.T + b - Y[:, None])).sign().detach()
            loss = (data_term(UNEVEN, w, b) + data_term(attacked, w, b)) / 2
            assert data_term(attacked, w, b) > 1.1 * data_term(UNEVEN, w, b)
            loss = loss - dist.Normal(0.0, 2.0).log_prob(w).sum() - dist.Normal(0.0, 2.0).log_prob(b).sum()
            loss.backward()
            assert posterior.history["loss"][chain, 0] == pytest.approx(loss.item(), rel=1e-5)
            after = posterior.sample(1)
            torch.testing.assert_close(after["weight"][chain, 0], w - 1e-6 * w.grad, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(after["bias"][chain, 0], b - 1e-6 * b.grad, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_every_batch_is_seen_twice_at_the_same_parameters(self, chains):
        seen = spied(chains=chains, batch_size=16, epochs=1, adversarial=0.1)
        assert [len(x) for x, _, _ in seen] == [16] * 4 * chains + [8] * 2 * chains
        reach = 0.1 * (X.max(0).values - X.min(0).values)
        for step in range(3):
            calls = seen[2 * chains * step : 2 * chains * (step + 1)]
            for (x, y, values), (moved, again, same_values) in zip(calls[:chains], calls[chains:], strict=True):
                torch.testing.assert_close((moved - x).abs(), reach.expand_as(x), rtol=1e-4, atol=1e-5)
                assert torch.equal(y, again)
                assert all(torch.equal(value, same_values[name]) for name, value in values.items())
                weights = [values[name].detach() for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
                row = x.clone().requires_grad_()
                output = torch.tanh(row @ weights[0].T + weights[1]) @ weights[2].T + weights[3]
                (output.squeeze(1) - y).square().sum().backward()
                assert torch.equal((moved - x).sign(), row.grad.sign())

    def test_without_it_every_batch_is_seen_once(self):
        assert len(spied(batch_size=16, epochs=2)) == 6

    def test_images_move_by_a_fraction_of_their_common_range(self):
        images = torch.rand(N, 2, 4, 4, generator=gen()) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3))
        seen = spied(bnn=model(net, likelihoods.Categorical()), dataset=(images, LABELS), epochs=1, adversarial=0.25)
        moves = (seen[1][0] - seen[0][0]).abs()
        torch.testing.assert_close(moves, (0.25 * (images.max() - images.min())).expand_as(moves))

    def test_ranges(self):
        torch.testing.assert_close(input_range(UNEVEN), UNEVEN.max(0).values - UNEVEN.min(0).values)
        for shape in ((5,), (5, 2, 3), (5, 1, 4, 4)):
            x = torch.randn(shape, generator=gen())
            assert input_range(x) == x.max() - x.min()

    def test_each_chain_is_the_separate_run_from_the_same_start(self):
        settings = {"batch_size": N, "epochs": 20, "lr": 0.02, "clip_norm": 50.0, "adversarial": 0.1}
        together = quick(chains=3, **settings)
        starts = quick(chains=3, epochs=1, batch_size=N, lr=1e-30).sample(1)
        for chain in range(3):
            net = network()
            with torch.no_grad():
                for name, value in starts.items():
                    net.get_parameter(name).copy_(value[chain, 0])
            alone = quick(model(net), **settings)
            for name, value in parameters(alone).items():
                torch.testing.assert_close(value[0], parameters(together)[name][chain], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(alone.history["loss"][0], together.history["loss"][chain], rtol=1e-3)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_with_random_weights_and_batch_statistics(self, chains):
        net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        settings = {"adversarial": 0.1, "chains": chains, "epochs": 3, "batch_size": 16}
        for objective in (objectives.ELBO(), Trace_ELBO()):
            posterior = quick(model(net), guides.MeanField, objective=objective, **settings)
            assert np.isfinite(posterior.history["loss"]).all()
            again = quick(model(net), guides.MeanField, objective=objective, **settings)
            assert_equal(parameters(posterior), parameters(again))

    def test_the_units_of_inputs_do_not_matter(self):
        scaled = X * torch.tensor([1e-3, 1.0, 1e3])

        def standardized(x):
            return Dataset(x, Y, standardization=Standardization.fit(x))

        first, second = (quick(dataset=standardized(x), adversarial=0.1, epochs=5) for x in (X, scaled))
        for name, value in parameters(first).items():
            torch.testing.assert_close(value, parameters(second)[name], rtol=1e-3, atol=1e-4)


class TestEffect:
    def test_an_attack_on_a_member_does_less_harm(self):
        """Of ten inputs one matters, and forty rows invite to lean on all: steep functions, unless trained not to."""
        x = torch.randn(40, 10, generator=gen(2))
        y = x[:, 0] + 0.5 * torch.randn(40, generator=gen(3))
        reach = 0.05 * input_range(x)

        def losses(adversarial):
            with seeded(0):
                bnn = model(nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 1)))
            posterior = quick(
                bnn, dataset=(x, y), chains=3, epochs=120, lr=0.02, batch_size=40, adversarial=adversarial
            )
            points = x.expand(3, 40, 10).clone().requires_grad_()
            w, b, v, c = (value[:, 0] for value in posterior.sample(1).values())

            def errors(points):
                outputs = torch.tanh(points @ w.mT + b[:, None]) @ v.mT + c[:, None]
                return (outputs[..., 0] - y).square()

            clean = errors(points)
            clean.sum().backward()
            return clean.mean(1), errors(points + reach * points.grad.sign()).mean(1)

        (_, plain), (_, hardened) = losses(None), losses(0.05)
        assert (hardened < 0.7 * plain).all()


class TestEnsembles:
    @pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(0.3), likelihoods.Categorical()])
    def test_an_ensemble_predicts_the_mixture_of_its_members(self, likelihood):
        y = LABELS if isinstance(likelihood, likelihoods.Categorical) else Y
        out = 3 if isinstance(likelihood, likelihoods.Categorical) else 1
        bnn = model(network(out), likelihood)
        posterior = quick(bnn, dataset=(X, y), chains=5, epochs=20)
        members, outputs = posterior.sample(1), []
        for chain in range(5):
            net = network(out)
            with torch.no_grad():
                for name, value in members.items():
                    net.get_parameter(name).copy_(value[chain, 0])
                outputs.append(net(X))
        outputs = torch.stack(outputs)
        assert outputs.std(0).min() > 1e-4  # the members differ
        prediction = posterior.predict(X, num_samples=3)  # draws of a point are one
        if out == 3:
            probs = outputs.softmax(-1).mean(0)
            torch.testing.assert_close(prediction.probs, probs)
            torch.testing.assert_close(prediction.log_prob(y), probs[torch.arange(N), y].log())
            entropy = -(probs * probs.log()).sum(-1)
            torch.testing.assert_close(prediction.entropy, entropy)
        else:
            means = outputs[..., 0]
            torch.testing.assert_close(prediction.mean, means.mean(0))
            torch.testing.assert_close(prediction.variance, 0.09 + means.var(0, correction=0))
            density = dist.Normal(means, 0.3).log_prob(y).logsumexp(0) - math.log(5)
            torch.testing.assert_close(prediction.log_prob(y), density)


class TestSettings:
    def test_it_is_remembered(self):
        assert quick(adversarial=0.1).info["adversarial"] == 0.1
        assert quick().info["adversarial"] is None

    def test_training_goes_on_with_it(self):
        start = quick()
        first, second = (start.fit((X, Y), epochs=2, adversarial=each) for each in (None, 0.2))
        assert second.info["adversarial"] == 0.2
        assert (second.history["loss"] > first.history["loss"]).all()

    @pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.01, math.nan, math.inf, True, "0.1"])
    def test_out_of_range(self, value):
        with pytest.raises(ValueError, match=r"adversarial must be a number in \(0, 1\], a fraction of"):
            quick(adversarial=value)

    def test_the_whole_range(self):
        assert quick(adversarial=1).info["adversarial"] == 1.0

    def test_inputs_that_are_no_real_numbers(self):
        tokens = torch.arange(3 * N).reshape(N, 3) % 7
        bnn = model(nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 1)))
        with pytest.raises(ValueError, match=r"must be real numbers for that, not torch\.int64"):
            quick(bnn, dataset=(tokens, Y), adversarial=0.1)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_networks_without_a_derivative(self, chains):
        class Rounded(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(7, 1)

            def forward(self, x):
                return self.table(x.long().clamp(0, 6)).sum(1)

        with pytest.raises(ValueError, match="outputs can be differentiated by its inputs"):
            quick(model(Rounded()), adversarial=0.1, chains=chains)

    def test_checkpoints(self, tmp_path):
        settings = {"adversarial": 0.1, "epochs": 4, "batch_size": 16, "chains": 2, "guide": guides.MeanField}
        whole = quick(**settings)

        quick(**settings, checkpoint=tmp_path / "c", callback=lambda progression: progression.epoch == 2)
        with pytest.raises(ValueError, match=r"its adversarial is 0\.1, this one's 0\.2"):
            quick(**{**settings, "adversarial": 0.2}, checkpoint=tmp_path / "c")
        resumed = quick(**settings, checkpoint=tmp_path / "c")
        assert_equal(parameters(whole), parameters(resumed))
        np.testing.assert_array_equal(whole.history["loss"], resumed.history["loss"])

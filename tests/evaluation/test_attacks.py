"""Attacks on the posterior predictive: gradients against closed forms, paths, curves, figures."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.image import AxesImage
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bnnzoo import BayesianNetwork, Posterior, fit, guides, likelihoods, priors
from bnnzoo._vectorize import Pair
from bnnzoo.chains import stack
from bnnzoo.data import Standardization
from bnnzoo.evaluation import (
    FastGradientSign,
    IteratedGradientSign,
    attack_curve,
    breaking_point,
    chain_mean,
    input_gradient,
    plot_adversarial_examples,
    plot_attack,
    score,
)

Q, K, T, CHAINS, N = 3, 4, 5, 2, 7


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


X = rand(N, Q, seed=10)
LABELS = torch.arange(N) % K


def stored(outputs, likelihood, seed=0, standardization=None, hidden=None, chains=CHAINS):
    """A posterior of stored draws, in float64: `T` a chain. Returns it and its draws, [chain, draw, ...]."""
    layers = (
        [nn.Linear(Q, outputs)] if hidden is None else [nn.Linear(Q, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
    )
    bnn = BayesianNetwork(nn.Sequential(*layers).double(), likelihood, priors.Normal(0.0, 1.0))
    draws = [
        {
            name: rand(T, *prior.shape(), seed=100 * seed + 10 * chain + k)
            for k, (name, prior) in enumerate(bnn.sites.items())
        }
        for chain in range(chains)
    ]
    pairs = [Pair(bnn, guides.Empirical(bnn, each)).eval() for each in draws]
    posterior = Posterior(pairs[0], *stack(pairs), standardization=standardization)
    return posterior, {name: torch.stack([each[name] for each in draws]) for name in draws[0]}


def logits(draws, x):
    return torch.einsum("nq,ctkq->ctnk", x, draws["0.weight"]) + draws["0.bias"][:, :, None]


def softmax_gradient(draws, x, y):
    """∇ log mean_t softmax_y(W_t x + b_t) = Σ_t w_t (W_ty - Σ_k p_tk W_tk), w_t ∝ p_ty; over all draws given."""
    probs = logits(draws, x).softmax(-1).flatten(0, 1)
    weights = draws["0.weight"].flatten(0, 1)
    of_label = probs[:, torch.arange(len(x)), y]
    each = weights[:, y] - torch.einsum("tnk,tkq->tnq", probs, weights)
    return torch.einsum("tn,tnq->nq", of_label / of_label.sum(0), each), each.mean(0)


def one(draws, chain):
    return {name: value[chain : chain + 1] for name, value in draws.items()}


class TestGradient:
    def test_of_a_softmax_regression_in_closed_form(self):
        posterior, draws = stored(K, likelihoods.Categorical())
        found = input_gradient(posterior, X, LABELS)
        assert found.shape == (CHAINS, N, Q)
        for chain in range(CHAINS):
            exact, of_logs = softmax_gradient(one(draws, chain), X, LABELS)
            torch.testing.assert_close(found[chain], exact)
            assert (exact.sign() != of_logs.sign()).any()  # the mean of the draws' gradients points elsewhere

    def test_of_all_chains_as_one(self):
        posterior, draws = stored(K, likelihoods.Categorical())
        found = input_gradient(posterior, X, LABELS, pooled=True)
        torch.testing.assert_close(found, softmax_gradient(draws, X, LABELS)[0][None])
        assert (found.sign() != input_gradient(posterior, X, LABELS).mean(0).sign()).any()

    @pytest.mark.parametrize("pooled", [False, True])
    @pytest.mark.parametrize("kind", ["classes", "yes/no", "several yes/no", "numbers", "several numbers", "counts"])
    def test_against_finite_differences(self, kind, pooled):
        outputs, likelihood, y = {
            "classes": (K, likelihoods.Categorical(), LABELS),
            "yes/no": (1, likelihoods.Bernoulli(), LABELS % 2),
            "several yes/no": (2, likelihoods.Bernoulli(), torch.stack([LABELS % 2, LABELS // 2], 1)),
            "numbers": (1, likelihoods.Gaussian(0.7), rand(N, seed=3)),
            "several numbers": (2, likelihoods.Gaussian(0.7), rand(N, 2, seed=3)),
            "counts": (1, likelihoods.Poisson(), LABELS),
        }[kind]
        posterior, _ = stored(outputs, likelihood, hidden=4)
        found = input_gradient(posterior, X, y, pooled=pooled)

        def log_prob(x):
            prediction = posterior.predict(x)
            return torch.stack([(prediction if pooled else prediction.chain(c)).log_prob(y) for c in range(len(found))])

        step = 1e-6
        for column in range(Q):
            move = step * torch.eye(Q, dtype=torch.float64)[column]
            expected = (log_prob(X + move) - log_prob(X - move)) / (2 * step)
            torch.testing.assert_close(found[..., column], expected, rtol=1e-6, atol=1e-8)

    def test_goes_through_the_standardization(self):
        x = 3.0 + X * torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
        units = Standardization.fit(x)
        posterior, draws = stored(K, likelihoods.Categorical(), standardization=units)
        exact = softmax_gradient(one(draws, 0), units.x(x), LABELS)[0] / units.x_scale
        torch.testing.assert_close(input_gradient(posterior, x, LABELS)[0], exact)

    def test_by_moments_in_closed_form(self):
        """Gaussian logits of a linear model: p(1|x) = E sigmoid(a + √v z), by quadrature, and through a(x), v(x)."""
        bnn = BayesianNetwork(nn.Linear(Q, 1), likelihoods.Bernoulli(), priors.Normal(0.0, 1.0))
        y = (X[:, 0] > 0).long()
        posterior = fit(bnn, guides.MeanField(bnn, init_scale=0.8), (X.float(), y), epochs=3, chains=2)
        found = input_gradient(posterior, X.float(), y, method="moments")
        nodes, weights = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(80))
        for chain in range(2):
            weight = posterior.chain(chain).guide.distributions()
            w, b = (weight[name] for name in ("weight", "bias"))
            x = X.clone().requires_grad_()
            mean = x @ w.mean[0].double() + b.mean.double()
            scale = (x.square() @ w.variance[0].double() + b.variance.double()).sqrt()
            sign = 2.0 * y - 1.0
            prob = (torch.sigmoid(sign[:, None] * (mean[:, None] + scale[:, None] * nodes)) * weights).sum(1)
            exact = torch.autograd.grad((prob / weights.sum()).log().sum(), x)[0]
            torch.testing.assert_close(found[chain].double(), exact, rtol=1e-4, atol=1e-6)

    def test_by_moments_against_finite_differences(self):
        net = nn.Sequential(nn.Linear(Q, 5), nn.ReLU(), nn.Linear(5, K)).double()
        bnn = BayesianNetwork(net, likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn, init_scale=0.3), (X, LABELS), epochs=2)
        found = input_gradient(posterior, X, LABELS, method="moments")[0]

        def log_prob(x):
            return posterior.predict(x, method="moments").log_prob(LABELS)

        for column in range(Q):
            move = 1e-5 * torch.eye(Q, dtype=torch.float64)[column]
            expected = (log_prob(X + move) - log_prob(X - move)) / 2e-5
            torch.testing.assert_close(found[:, column], expected, rtol=1e-4, atol=1e-6)

    def test_of_a_prediction_that_rounds_to_certainty(self):
        """In float32 a probability of 1 - 1e-9 is 1, and the gradient of its logarithm is not 0."""
        net = nn.Linear(2, 3)
        bnn = BayesianNetwork(net, likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        weight = torch.tensor([[20.0, 1.0], [0.0, 2.0], [0.0, -3.0]])
        pair = Pair(bnn, guides.Empirical(bnn, {"weight": weight[None], "bias": torch.zeros(1, 3)})).eval()
        posterior, x = Posterior(pair, *stack([pair])), torch.tensor([[1.0, 0.0]])
        assert posterior.predict(x).probs[0, 0] == 1.0
        exact = torch.tensor([20.0, 1.0]) * 2 - weight[1:].sum(0)  # times exp(-20): the two others are as likely
        found = input_gradient(posterior, x, [0])[0, 0]
        torch.testing.assert_close(found, exact * math.exp(-20.0), rtol=1e-4, atol=0.0)

    def test_blocks_change_nothing(self, monkeypatch):
        posterior, _ = stored(K, likelihoods.Categorical(), hidden=4)
        whole = input_gradient(posterior, X, LABELS)
        rows = []
        predict = Posterior.predict

        def spy(self, x, **settings):
            rows.append((len(x), x.requires_grad))
            return predict(self, x, **settings)

        monkeypatch.setattr(Posterior, "predict", spy)
        parts = input_gradient(posterior, X, LABELS, max_memory=20_000)
        seen = [size for size, grad in rows if grad]
        assert max(seen) < N
        assert sum(seen) > CHAINS * N
        torch.testing.assert_close(whole, parts)
        with pytest.raises(ValueError, match="max_memory"):
            input_gradient(posterior, X, LABELS, max_memory=1000)

    def test_the_seed_fixes_the_draws(self):
        bnn = BayesianNetwork(nn.Linear(Q, K), likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, AutoNormal(bnn, init_scale=0.5), (X.float(), LABELS), epochs=1, progress=False)
        first, again, other = (input_gradient(posterior, X.float(), LABELS, num_samples=3, seed=s) for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_leaves_inputs_and_parameters_alone(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        x = X.clone().requires_grad_()
        before = posterior.state()[1]
        assert not input_gradient(posterior, x, LABELS).requires_grad
        assert x.grad is None
        assert all(torch.equal(value, before[name]) for name, value in posterior.state()[1].items())


class TestPaths:
    def test_every_number_moves_by_the_step(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        for epsilon, moved in FastGradientSign((0.0, 0.1, 0.3)).path(posterior, X):
            assert moved.shape == (CHAINS, N, Q)
            torch.testing.assert_close((moved - X).abs(), torch.full_like(moved, epsilon))
        scale = torch.tensor([1.0, 10.0, 0.0])
        ((_, moved),) = FastGradientSign((0.1,), scale=scale).path(posterior, X)
        torch.testing.assert_close((moved - X).abs(), (0.1 * scale).double().expand_as(moved))

    def test_nothing_moves_at_zero(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        ((_, moved),) = FastGradientSign((0.0,)).path(posterior, X)
        assert torch.equal(moved, X.expand_as(moved))
        (_, start), *_ = IteratedGradientSign(target=1, steps=1).path(posterior, X)
        assert torch.equal(start, X.expand_as(start))

    def test_the_direction(self):
        """Away from the predicted class, away from the true one, or towards the target: in closed form."""
        posterior, draws = stored(K, likelihoods.Categorical())
        for attack, sign in (
            (FastGradientSign((1.0,)), -1),
            (FastGradientSign((1.0,), label="true"), -1),
            (FastGradientSign((1.0,), target=2), 1),
            (FastGradientSign((1.0,), target=LABELS.flip(0)), 1),
        ):
            ((_, moved),) = attack.path(posterior, X, LABELS)
            for chain in range(CHAINS):
                own = one(draws, chain)
                predicted = logits(own, X).softmax(-1).mean((0, 1)).argmax(-1)
                label = {(False, "predicted"): predicted, (False, "true"): LABELS}.get(
                    (attack.target is not None, attack.label), attack.target
                )
                label = torch.as_tensor(label).expand(N)
                assert torch.equal(moved[chain] - X > 0, sign * softmax_gradient(own, X, label)[0] > 0)
        assert (predicted != LABELS).any()  # the kinds differ

    def test_the_log_probability_changes_to_first_order(self):
        posterior, _ = stored(K, likelihoods.Categorical(), hidden=4)
        step = 1e-5
        for settings, label, sign in (({"label": "true"}, LABELS, -1), ({"target": 2}, torch.full((N,), 2), 1)):
            ((_, moved),) = FastGradientSign((step,), **settings).path(posterior, X, LABELS)
            slope = input_gradient(posterior, X, label).abs().sum(-1)
            before = posterior.predict(X)
            for chain in range(CHAINS):
                after = posterior.predict(moved[chain]).chain(chain).log_prob(label)
                change = (after - before.chain(chain).log_prob(label)) / step
                torch.testing.assert_close(change, sign * slope[chain], rtol=1e-3, atol=1e-4)

    def test_yes_no_targets_and_numbers(self):
        posterior, draws = stored(2, likelihoods.Bernoulli())
        ((_, moved),) = FastGradientSign((0.1,)).path(posterior, X)
        predicted = (logits(one(draws, 0), X).sigmoid().mean((0, 1)) > 0.5).long()
        assert torch.equal((moved[0] - X).sign(), -input_gradient(posterior, X, predicted)[0].sign())
        posterior, _ = stored(1, likelihoods.Gaussian(0.5))
        y = X.sum(1)
        before = posterior.predict(X)
        for settings, sign in (({"label": "true"}, -1), ({"target": y}, 1)):
            ((_, moved),) = FastGradientSign((1e-3,), **settings).path(posterior, X, y)
            for chain in range(CHAINS):
                after = posterior.predict(moved[chain]).chain(chain)
                assert (sign * (after.log_prob(y) - before.chain(chain).log_prob(y)) > 0).all()

    def test_clipping(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        x = torch.rand(N, Q, generator=gen(), dtype=torch.float64)
        paths = [FastGradientSign((0.4,), bounds=each).path(posterior, x) for each in (None, (0.0, 1.0))]
        (_, free), (_, held) = (next(path) for path in paths)
        assert ((free < 0) | (free > 1)).any()
        assert torch.equal(held, free.clamp(0.0, 1.0))
        steps = list(
            IteratedGradientSign(target=1, steps=5, step_size=0.2, bounds=(0.0, torch.ones(Q))).path(posterior, x)
        )
        assert all(((moved >= 0) & (moved <= 1)).all() for _, moved in steps)

    def test_steps_follow_one_another(self):
        posterior, _ = stored(K, likelihoods.Categorical(), hidden=4)
        attack = IteratedGradientSign(target=1, steps=6, step_size=0.3)
        path = list(attack.path(posterior, X))
        assert [step for step, _ in path] == [0, 1, 2, 3, 4, 5, 6]
        target = torch.ones(N, dtype=torch.long)
        turned = False
        for (_, before), (_, after) in pairwise(path):
            for chain in range(CHAINS):
                signs = input_gradient(posterior.chain(chain), before[chain], target)[0].sign()
                torch.testing.assert_close(after[chain], before[chain] + 0.3 * signs)
                turned |= bool((signs != (path[1][1][chain] - X).sign()).any())
        assert turned  # else one gradient at the start would do
        probs = [posterior.chain(0).predict(moved[0]).probs[:, 1].mean() for _, moved in path]
        assert probs[-1] > probs[0] + 0.05
        some = list(replace(attack, every=4).path(posterior, X))
        assert [step for step, _ in some] == [0, 4, 6]
        assert torch.equal(some[-1][1], path[-1][1])

    def test_every_step_draws_anew(self):
        bnn = BayesianNetwork(nn.Linear(Q, K), likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn, init_scale=1.0), (X.float(), LABELS), epochs=1)
        path = list(IteratedGradientSign(target=1, steps=12, step_size=1e-6).path(posterior, X.float(), num_samples=1))
        moves = torch.stack([b[1] - a[1] for a, b in pairwise(path)]).sign()
        assert (moves != moves[0]).any()
        again = list(IteratedGradientSign(target=1, steps=12, step_size=1e-6).path(posterior, X.float(), num_samples=1))
        assert torch.equal(path[-1][1], again[-1][1])

    def test_chains_are_attacked_by_themselves(self):
        posterior, _ = stored(K, likelihoods.Categorical(), hidden=4)
        attack = IteratedGradientSign(target=1, steps=3, step_size=0.3)
        *_, (_, both) = attack.path(posterior, X)
        for chain in range(CHAINS):
            *_, (_, alone) = attack.path(posterior.chain(chain), X)
            assert torch.equal(both[chain], alone[0])
        assert not torch.equal(both[0], both[1])
        *_, (_, pooled) = attack.path(posterior, X, pooled=True)
        assert pooled.shape == (1, N, Q)
        assert not torch.equal(pooled[0], both[0])


class TestCurves:
    def test_of_every_chain_as_scored_by_hand(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        attack = FastGradientSign((0.0, 0.2, 1.0))
        curve = attack_curve(posterior, X, LABELS, attack)
        assert curve.accuracy.dims == ("chain", "epsilon")
        assert curve.epsilon.values.tolist() == [0.0, 0.2, 1.0]
        for number, (_, moved) in enumerate(attack.path(posterior, X)):
            for chain in range(CHAINS):
                own = score(posterior.predict(moved[chain]).chain(chain), LABELS)
                for name in ("accuracy", "accuracy_se", "entropy", "entropy_se", "mutual_information", "pll"):
                    np.testing.assert_allclose(curve[name][chain, number], own[name][0], rtol=1e-10)
        assert curve.entropy.attrs["units"] == "nats"

    def test_standard_errors(self):
        posterior, draws = stored(K, likelihoods.Categorical())
        curve = attack_curve(posterior, X, LABELS, FastGradientSign((0.0,)))
        for chain in range(CHAINS):
            right = logits(one(draws, chain), X).softmax(-1).mean((0, 1)).argmax(-1) == LABELS
            p = right.double().mean().item()
            assert curve.accuracy[chain, 0] == pytest.approx(p)
            assert curve.accuracy_se[chain, 0] == pytest.approx(math.sqrt(p * (1 - p) / (N - 1)))

    def test_means_over_chains(self):
        curve = xr.Dataset(
            {
                "a": (("chain", "step"), [[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]),
                "a_se": (("chain", "step"), [[0.1, 0.1], [0.1, 0.1], [0.1, 0.4]]),
            }
        )
        mean = chain_mean(curve)
        np.testing.assert_allclose(mean.a, [3.0, 2.0])
        np.testing.assert_allclose(mean.a_se, [math.sqrt(0.01 + 4.0 / 3.0), 0.2])
        np.testing.assert_allclose(chain_mean(curve.isel(chain=[0])).a_se, [0.1, 0.1])

    def test_where_a_score_crosses_a_level(self):
        values = [[1.0, 0.8, 0.4, 0.6], [0.9, 0.8, 0.7, 0.6], [0.5, 0.3, 0.2, 0.1]]
        rising = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.25, 0.25, 0.75], [0.1, 0.2, 0.3, 0.4]]
        curve = xr.Dataset(
            {"accuracy": (("chain", "epsilon"), values), "target_accuracy": (("chain", "epsilon"), rising)},
            {"chain": [0, 1, 2], "epsilon": [0.0, 0.1, 0.3, 0.5]},
        )
        np.testing.assert_allclose(breaking_point(curve), [0.1 + 0.75 * 0.2, math.nan, 0.0], atol=1e-12)
        np.testing.assert_allclose(breaking_point(curve, of="target_accuracy"), [0.2, 0.4, math.nan])
        np.testing.assert_allclose(breaking_point(curve, 0.75), [0.1 + 0.2 / 8, 0.2, math.nan])
        with pytest.raises(ValueError, match="has no 'entropy'"):
            breaking_point(curve, of="entropy")

    def test_of_a_target(self):
        posterior, _ = stored(K, likelihoods.Categorical(), hidden=4)
        curve = attack_curve(posterior, X, LABELS, IteratedGradientSign(target=1, steps=8, step_size=0.3, every=8))
        assert curve.target_accuracy.dims == ("chain", "step")
        start = posterior.chain(0).predict(X)
        assert curve.target_accuracy[0, 0] == pytest.approx((start.classes == 1).double().mean().item())
        assert curve.target_pll[0, 0] == pytest.approx(start.log_prob(torch.ones(N, dtype=torch.long)).mean().item())
        assert (curve.target_pll[:, -1] > curve.target_pll[:, 0]).all()
        assert "target" in curve.target_accuracy.attrs["long_name"]

    def test_pooled_chains_are_scored_as_one(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        curve = attack_curve(posterior, X, LABELS, FastGradientSign((0.3,)), pooled=True)
        ((_, moved),) = FastGradientSign((0.3,)).path(posterior, X, pooled=True)
        own = score(posterior.predict(moved[0]).pooled, LABELS)
        assert curve.sizes == {"chain": 1, "epsilon": 1}
        np.testing.assert_allclose(curve.entropy.values, own.entropy.values[:, None])

    def test_scores_are_of_draws_that_the_attack_did_not_see(self, monkeypatch):
        bnn = BayesianNetwork(nn.Linear(Q, K), likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn, init_scale=1.0), (X.float(), LABELS), epochs=1, chains=2)
        seeds = {True: set(), False: set()}
        predict = Posterior.predict

        def spy(self, x, **settings):
            seeds[x.requires_grad].add(settings["seed"])
            return predict(self, x, **settings)

        monkeypatch.setattr(Posterior, "predict", spy)
        attack_curve(posterior, X.float(), LABELS, FastGradientSign((0.0, 0.1)), num_samples=2)
        (attacked,), (*others,) = seeds.values()
        assert len(others) == 2  # the scores', and the predicted label's, which is the attack's
        assert attacked in others

    def test_of_numbers(self):
        posterior, _ = stored(1, likelihoods.Gaussian(0.5))
        y = X.sum(1)
        curve = attack_curve(posterior, X, y, FastGradientSign((0.0, 0.01), label="true"))
        assert (curve.pll[:, 1] < curve.pll[:, 0]).all()
        curve = attack_curve(posterior, X, y, IteratedGradientSign(target=3.0, steps=2, step_size=0.01))
        assert (curve.target_pll[:, -1] > curve.target_pll[:, 0]).all()
        expected = ((posterior.chain(0).predict(X).mean - 3.0) ** 2).mean().sqrt()
        assert float(curve.target_rmse[0, 0]) == pytest.approx(float(expected))

    def test_by_moments_nothing_is_random(self):
        net = nn.Sequential(nn.Linear(Q, 5), nn.ReLU(), nn.Linear(5, K))
        bnn = BayesianNetwork(net, likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MomentPropagation(bnn), (X.float(), LABELS), epochs=2)
        first, second = (
            attack_curve(posterior, X.float(), LABELS, FastGradientSign((0.0, 0.2)), seed=seed) for seed in (0, 1)
        )
        xr.testing.assert_equal(first, second)


class TestMistakes:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: FastGradientSign(()), "epsilons must be"),
            (lambda: FastGradientSign((-0.1,)), "epsilons must be"),
            (lambda: FastGradientSign((math.nan,)), "epsilons must be"),
            (lambda: FastGradientSign((0.2, 0.0, 0.1)), "epsilons must be increasing"),
            (lambda: FastGradientSign((0.0, 0.1, 0.1)), "epsilons must be increasing"),
            (lambda: FastGradientSign(label="best"), "label must be one of 'predicted', 'true'"),
            (lambda: FastGradientSign(scale=-1.0), "scale must be"),
            (lambda: FastGradientSign(bounds=(1.0, 0.0)), "bounds must be"),
            (lambda: FastGradientSign(bounds=1.0), "bounds must be"),
            (lambda: IteratedGradientSign(steps=0), "steps must be"),
            (lambda: IteratedGradientSign(every=0.5), "every must be"),
            (lambda: IteratedGradientSign(step_size=0.0), "step_size must be"),
        ],
    )
    def test_of_attacks(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(
        ("attack", "x", "message"),
        [
            (FastGradientSign(), torch.ones(N, Q, dtype=torch.long), "x must be real numbers"),
            (FastGradientSign(), X[:0], "x is empty"),
            (FastGradientSign(bounds=(0.0, 1.0)), X, "outside of the bounds"),
            (FastGradientSign(scale=torch.ones(2)), X, "scale must broadcast to one input"),
            (FastGradientSign(label="true"), X, "y is None"),
            (FastGradientSign(target=K), X, "target: "),
            (FastGradientSign(target=LABELS[:2]), X, "target: "),
        ],
    )
    def test_of_paths(self, attack, x, message):
        posterior, _ = stored(K, likelihoods.Categorical())
        with pytest.raises(ValueError, match=message):
            list(attack.path(posterior, x))

    def test_numbers_have_no_predicted_label(self):
        posterior, _ = stored(1, likelihoods.Gaussian(0.5))
        with pytest.raises(ValueError, match="takes label='true' and the observed y, or a target"):
            list(FastGradientSign().path(posterior, X))

    def test_networks_without_a_gradient(self):
        class Rounded(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(7, K)

            def forward(self, x):
                return self.table(x.long().clamp(0, 6)).sum(1)

        bnn = BayesianNetwork(Rounded(), likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn), (X.float(), LABELS), epochs=1)
        with pytest.raises(ValueError, match="no gradient by its inputs"):
            input_gradient(posterior, X.float(), LABELS)

    def test_options_of_predict(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        with pytest.raises(ValueError, match="this posterior holds 5 draws"):
            input_gradient(posterior, X, LABELS, num_samples=6)


class TestChain:
    def test_is_the_posterior_of_that_chain(self):
        posterior, draws = stored(K, likelihoods.Categorical())
        for chain in range(CHAINS):
            alone = posterior.chain(chain)
            assert alone.chains == 1
            for name, value in alone.sample().items():
                assert torch.equal(value[0], draws[name][chain])
        with pytest.raises(IndexError, match="no chain 2; chains are 0 to 1"):
            posterior.chain(2)

    def test_keeps_its_history_and_units_and_can_be_trained(self):
        bnn = BayesianNetwork(nn.Linear(Q, 1), likelihoods.Gaussian(0.5), priors.Normal(0.0, 1.0))
        posterior = fit(bnn, guides.MeanField(bnn), (X.float(), X.sum(1).float()), epochs=3, chains=3)
        alone = posterior.chain(1)
        np.testing.assert_array_equal(alone.history["loss"], posterior.history["loss"][1:2])
        before = {name: value.clone() for name, value in posterior._parameters.items()}
        assert all(torch.equal(value[0], before[name][1]) for name, value in alone._parameters.items())
        assert alone.fit((X.float(), X.sum(1).float()), epochs=1).chains == 1
        assert all(torch.equal(value, before[name]) for name, value in posterior._parameters.items())


class TestFigures:
    def test_curves(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        curves = {name: attack_curve(posterior.chain(c), X, LABELS) for c, name in enumerate(("one", "two"))}
        figure = plot_attack(curves, title="attacks")
        left, right = figure.axes
        assert left.get_ylabel() == "accuracy"
        assert right.get_ylabel().endswith("(nats)")
        assert left.get_xlabel() == right.get_xlabel() == "size of the step ε"
        for line, curve in zip(right.lines, curves.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), curve.epsilon)
            np.testing.assert_allclose(line.get_ydata(), curve.entropy[0])
        band = right.collections[0].get_paths()[0].vertices[:, 1]
        low = (curves["one"].entropy - curves["one"].entropy_se).min()
        assert band.min() == pytest.approx(float(low))
        styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in left.lines}
        assert len(styles) == 2
        assert len({each[1] for each in styles}) == len({each[2] for each in styles}) == 2
        assert [text.get_text() for text in left.get_legend().get_texts()] == ["one", "two"]

    def test_curves_of_targets_and_of_numbers(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        curve = attack_curve(posterior, X, LABELS, IteratedGradientSign(target=1, steps=2))
        assert [ax.get_ylabel() for ax in plot_attack(curve).axes][1] == "share predicted as the target"
        posterior, _ = stored(1, likelihoods.Gaussian(0.5))
        curve = attack_curve(posterior, X, X.sum(1), FastGradientSign(label="true"))
        assert len(plot_attack(curve).axes) == 2
        assert len(plot_attack(curve, ("pll",)).axes) == 1

    def test_examples(self):
        images = torch.rand(N, 1, 3, 1, generator=gen(), dtype=torch.float64)
        net = nn.Sequential(nn.Flatten(), nn.Linear(Q, K))
        bnn = BayesianNetwork(net, likelihoods.Categorical(), priors.Normal(0.0, 1.0))
        fitted = fit(bnn, guides.MeanField(bnn), (images.float(), LABELS), epochs=1, chains=2)
        image = images[0].float()
        attack = FastGradientSign((0.0, 0.25), bounds=(0.0, 1.0))
        figure = plot_adversarial_examples({"both": fitted, "first": fitted.chain(0)}, image, attack, num_samples=5)
        assert len(figure.axes) == 4
        ((_, _), (_, moved)) = attack.path(fitted, image[None], pooled=True, num_samples=5)
        (shown,) = (each for each in figure.axes[1].get_children() if isinstance(each, AxesImage))
        np.testing.assert_allclose(shown.get_array(), moved[0, 0, 0], rtol=1e-6)
        assert figure.axes[0].get_ylabel() == "both"
        assert figure.axes[1].get_title() == "ε = 0.25"
        label, share = figure.axes[1].get_xlabel().split(": ")
        probs = fitted.predict(moved[0], num_samples=5, seed=1).probs[0]
        assert int(label) == int(probs.argmax())
        assert share == f"{float(probs.max()):.0%}"

    def test_mistakes(self):
        posterior, _ = stored(K, likelihoods.Categorical())
        curve = attack_curve(posterior, X, LABELS)
        other = attack_curve(posterior, X, LABELS, IteratedGradientSign(target=1, steps=2))
        with pytest.raises(ValueError, match="given: none"):
            plot_attack({})
        with pytest.raises(ValueError, match="has no epsilon"):
            plot_attack({"a": curve, "b": other})
        with pytest.raises(ValueError, match="has no rmse"):
            plot_attack(curve, ("rmse",))
        with pytest.raises(ValueError, match=r"image must be \[H, W\]"):
            plot_adversarial_examples(posterior, X[0])

"""Predictions in blocks: results do not depend on the memory allowed, and keep within it."""

import os
import subprocess
import sys

import pytest
import torch
from posteriors import LABELS, NOISE, N, X, Y, by_hand, fitted, network
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, posterior
from bnnzoo._vectorize import seeded
from bnnzoo.prediction import Summary

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
            return [least, 3 * least, 20 * least]


class TestMemory:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("name", CASES)
    def test_results_do_not_depend_on_it(self, monkeypatch, name, chains):
        make, likelihood, x, y = CASES[name]
        fit_ = fitted(make(), likelihood, dataset=(x, y), chains=chains)
        x, draws, rows = x[:8], 7, 8
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

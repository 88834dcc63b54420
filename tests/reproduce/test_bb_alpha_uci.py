"""What `benchmarks/uci_alpha.py` reports is what it says: rates by chain, differences by split, no test row seen."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bnnzoo import Prediction, data

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import uci_alpha

    uci_alpha.SETTING.update(draws=5, particles=2, seeds=2)
    yield uci_alpha
    for name in ("common", "uci_alpha"):
        sys.modules.pop(name, None)


def job_of(module, tmp_path, **changes):
    given = {"data": "diabetes", "method": "dropout", "alpha": 0.5, "seed": 0, "steps": 2, "threads": 1}
    return module.Job(**(given | changes), keep=tmp_path)


def results_of(module, tmp_path, pll):
    """Results with the given test PLL by method, α and split."""
    found = {}
    for (method, alpha), values in pll.items():
        for seed, value in values.items():
            job = job_of(module, tmp_path, method=method, alpha=alpha, seed=seed)
            test = {"pll": value, "rmse": 10 * value, "coverage_95": 0.9, "noise": 2.0, "spread": 3.0}
            by_rate = {"test": {str(rate): {"pll": value + rate} for rate in module.METHODS["dropout"].rates}}
            found[job] = {"test": test, "rate": 0.05, "seconds": 1.0, "by_rate": by_rate}
    return found


def test_chains_take_the_rates_in_turn(module, tmp_path):
    split = data.load("diabetes").split(0.2, seed=0)
    posterior = module.train(job_of(module, tmp_path), split.train)
    (rates,) = posterior.guide.rates(posterior).values()
    torch.testing.assert_close(rates, torch.tensor(module.METHODS["dropout"].rates).repeat(2))
    draws = posterior.sample(300, seed=0)["layers.2.weight"]  # [chain, draw, 1, 50]
    dropped = (draws == 0).float().mean((1, 2, 3))
    error = (rates * (1 - rates) / 15_000).sqrt()  # of 300 draws of 50 units
    assert ((dropped - rates).abs() < 5.5 * error).all()


def test_scores_are_by_rate_the_mean_over_seeds_that_are_not_pooled(module, tmp_path, monkeypatch):
    monkeypatch.setitem(module.METHODS, "dropout", replace(module.METHODS["dropout"], rates=(0.1, 0.3)))
    loc = torch.tensor([1.0, 5.0, 3.0, 9.0])[:, None, None].expand(4, 5, 3)  # two rates, then again with another seed
    prediction = Prediction({"loc": loc, "scale": torch.ones(4, 1, 1)}, torch.distributions.Normal, "regression")
    posterior = SimpleNamespace(chains=4, predict=lambda *_, **__: prediction)
    part = SimpleNamespace(x=torch.zeros(3, 2), y=torch.zeros(3))
    found = module.scores(job_of(module, tmp_path), posterior, part)
    assert [*found] == ["0.1", "0.3"]
    base = 0.5 * math.log(2 * math.pi)
    assert found["0.1"]["pll"] == pytest.approx(-base - (1 + 9) / 4, rel=1e-6)
    assert found["0.3"]["pll"] == pytest.approx(-base - (25 + 81) / 4, rel=1e-6)
    assert [found[rate]["rmse"] for rate in found] == pytest.approx([2.0, 7.0])


def test_a_score_tells_noise_and_spread_apart(module):
    loc = torch.tensor([0.0, 2.0])[None, :, None] * torch.tensor([1.0, 3.0])  # deviations 1 and 3 in two rows
    prediction = Prediction({"loc": loc, "scale": torch.full((1, 1, 1), 0.5)}, torch.distributions.Normal, "regression")
    found = module.score(prediction, SimpleNamespace(y=torch.zeros(2)))
    assert found["noise"] == 0.5
    assert found["spread"] == pytest.approx(math.sqrt((1 + 9) / 2))


def test_the_rate_is_chosen_by_pll_without_the_test_split(module, tmp_path, monkeypatch):
    seen = []
    fit = module.fit
    monkeypatch.setattr(
        module, "fit", lambda bnn, guide, part, **rest: seen.append((part, rest)) or fit(bnn, guide, part, **rest)
    )
    job = job_of(module, tmp_path, alpha=1.0)
    result = module.run(job)
    split = data.load("diabetes").split(0.2, seed=0)
    (inner, first), (train, last) = seen
    assert torch.equal(train.x, split.train.x)
    assert len(inner) == round(0.8 * len(train))
    assert {tuple(row) for row in inner.x.tolist()} < {tuple(row) for row in train.x.tolist()}
    for options in (first, last):
        assert (options["objective"].alpha, options["objective"].num_particles) == (1.0, 2)
    held_out = {float(rate): scores["pll"] for rate, scores in result["by_rate"]["held_out"].items()}
    assert set(held_out) == set(module.METHODS["dropout"].rates)
    assert result["rate"] == max(held_out, key=held_out.get)
    assert result["test"] == result["by_rate"]["test"][str(result["rate"])]

    monkeypatch.setattr(module, "fit", None)
    assert module.run(job) == result  # kept
    with pytest.raises(SystemExit, match="made with another steps: keep this run elsewhere"):
        module.run(replace(job, steps=3))


def test_alphas_start_from_the_same_networks_and_see_the_same_batches(module, tmp_path, monkeypatch):
    monkeypatch.setitem(module.SETTING, "lr", 1e-12)
    split = data.load("diabetes").split(0.2, seed=0)
    locs = [
        module.train(job_of(module, tmp_path, alpha=alpha), split.train).state()[0]["guide.loc"] for alpha in (0.0, 1.0)
    ]
    torch.testing.assert_close(*locs, rtol=0, atol=1e-6)
    assert (locs[0][0] != locs[0][1]).any()  # chains differ


def test_nuts_pools_its_chains_and_tells_how_they_mixed(module, tmp_path, monkeypatch):
    nuts = {"num_samples": 6, "warmup_steps": 4, "chains": 2, "max_tree_depth": 2}
    monkeypatch.setitem(module.SETTING, "nuts", nuts)
    monkeypatch.setattr(module, "split_gelman_rubin", lambda draws, chain, sample: draws[0, 0])
    job = job_of(module, tmp_path, method="nuts", alpha=None)
    result = module.run(job)
    assert len(result["divergences"]) == 2
    assert result["ess"]["worst"] <= result["ess"]["median"] <= 12
    assert result["r_hat"]["median"] < result["r_hat"]["worst"]
    assert "steps" not in result["setting"]
    assert json.loads(job.file.read_text()) == result


def test_differences_are_of_splits_that_both_have(module, tmp_path):
    pll = {
        ("dropout", 0.0): {0: 3.0, 1: 5.0},
        ("dropout", 0.5): {0: 2.5, 1: 4.7},
        ("dropout", 1.0): {0: 3.5, 1: 5.5},
        ("nuts", None): {1: 4.0},
    }
    results = results_of(module, tmp_path, pll)
    assert module.beside({0: 2.5, 1: 4.7}, {1: 5.0, 2: 0.0}) == pytest.approx([-0.3])
    rows = module.report(results).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:5] == ["diabetes", "Dropout", "0", "4.00 ± 1.00", ""]
    assert cells[1][3:7] == ["3.60 ± 1.10", "-0.40 ± 0.10", "36.00 ± 11.00", "-4.00 ± 1.00"]
    assert cells[2][4] == "+0.50 ± 0.00"
    assert cells[3][1:5] == ["NUTS", "", "4.00", ""]
    by_rate = module.report_by_rate(results).splitlines()[2:]
    assert len(by_rate) == len(module.METHODS["dropout"].rates)
    assert by_rate[0] == "| diabetes | 0.01 | 4.01 ± 1.00 | -0.40 ± 0.10 | +0.50 ± 0.00 |"


def test_the_figure_shows_differences_to_dropout_at_0(module, tmp_path):
    pll = {
        ("dropout", 0.0): {0: 3.0, 1: 5.0},
        ("dropout", 0.5): {0: 2.5, 1: 4.7},
        ("mean-field", 0.0): {0: 4.0, 1: 6.0},
        ("nuts", None): {0: 1.0},
    }
    figure = module.draw(results_of(module, tmp_path, pll))
    (ax,) = figure.axes
    bars = {round(float(bar.lines[0].get_xdata()[0]), 2): float(bar.lines[0].get_ydata()[0]) for bar in ax.containers}
    assert bars == pytest.approx({0.0: 0.0, 0.5: -0.4, 0.12: 1.0})
    assert any(line.get_linestyle() == "--" and line.get_ydata()[0] == -2.0 for line in ax.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Dropout", "MeanField", "NUTS"]

"""Figures 2 and 3 of the BB-α paper are what they say: rates by task, differences by split, no test row seen."""

import math
from dataclasses import replace

import pytest
import torch

from bnnzoo import Prediction, data
from bnnzoo.reproduce import Context
from bnnzoo.reproduce import bb_alpha_uci as module
from bnnzoo.reproduce.fits import OtherSettingError

SIZE = module.SIZES["smoke"]
RATES = module.METHODS["dropout"].rates


@pytest.fixture
def context(tmp_path):
    return Context("smoke", tmp_path, quiet=True)


def splits_of(*seeds):
    return [data.load("diabetes").split(0.2, seed=seed) for seed in seeds]


def spied(monkeypatch, **changes):
    """What `fit_each` is called with, and returns."""
    seen = []
    fit_each = module.fit_each

    def spy(tasks, **settings):
        posteriors = fit_each(tasks, **(settings | changes))
        seen.append((tasks, settings, posteriors))
        return posteriors

    monkeypatch.setattr(module, "fit_each", spy)
    return seen


def test_each_split_is_trained_at_each_rate(monkeypatch):
    seen = spied(monkeypatch)
    splits = splits_of(3, 4)
    found = module.scores(("diabetes", "dropout", 0.5), SIZE, [3, 4], splits)
    assert [len(each) for each in found] == [len(RATES)] * 2
    ((tasks, settings, posteriors),) = seen
    assert (settings["objective"].alpha, settings["objective"].num_particles) == (0.5, SIZE.particles)
    for number, (task, posterior) in enumerate(zip(tasks, posteriors, strict=True)):
        assert torch.equal(task.data.x, splits[number // len(RATES)].train.x)
        (rates,) = posterior.guide.rates(posterior).values()
        torch.testing.assert_close(rates, torch.full((SIZE.seeds,), RATES[number % len(RATES)]))


def test_scores_are_the_mean_over_seeds_that_are_not_pooled(monkeypatch):
    loc = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 5, 3)  # of two seeds
    prediction = Prediction({"loc": loc, "scale": torch.ones(2, 1, 1)}, torch.distributions.Normal, "regression")

    class Fitted:
        chains = 2

        def predict(self, *_):
            return prediction

    monkeypatch.setattr(module, "fit_each", lambda tasks, **_: [Fitted() for _ in tasks])
    split = data.Split(splits_of(0)[0].train, data.Dataset(torch.zeros(3, 10), torch.zeros(3)))
    (found,) = module.scores(("diabetes", "mean-field", 0.0), SIZE, [0], [split])
    assert found[0]["pll"] == pytest.approx(-0.5 * math.log(2 * math.pi) - (1 + 9) / 4, rel=1e-6)
    assert found[0]["rmse"] == pytest.approx(2.0)


def test_a_score_tells_noise_and_spread_apart():
    loc = torch.tensor([0.0, 2.0])[None, :, None] * torch.tensor([1.0, 3.0])  # deviations 1 and 3 in two rows
    prediction = Prediction({"loc": loc, "scale": torch.full((1, 1, 1), 0.5)}, torch.distributions.Normal, "regression")
    found = module.scored(prediction, data.Dataset(torch.zeros(2, 1), torch.zeros(2)))
    assert found["noise"] == 0.5
    assert found["spread"] == pytest.approx(math.sqrt((1 + 9) / 2))


def test_the_rate_is_chosen_by_pll_without_the_test_split(context, monkeypatch):
    seen = spied(monkeypatch)
    held = []
    scores = module.scores
    monkeypatch.setattr(module, "scores", lambda *given: held.append(scores(*given)) or held[-1])
    key = ("diabetes", "dropout", 1.0)
    result = module.cell(context, key)
    splits = splits_of(0, 1)
    (inner, _, _), (outer, _, _) = seen
    for number, split in enumerate(splits):
        part, whole = inner[number * len(RATES)].data, outer[number * len(RATES)].data
        assert torch.equal(whole.x, split.train.x)
        assert len(part) == round(0.8 * len(whole))
        assert {tuple(row) for row in part.x.tolist()} < {tuple(row) for row in whole.x.tolist()}
    held_out, test = held
    for number in range(2):
        best = max(range(len(RATES)), key=lambda place: held_out[number][place]["pll"])
        assert result["rate"][number] == RATES[best]
        assert result["test"][number] == test[number][best]
    assert result["by_rate"] == test

    monkeypatch.setattr(module, "fit_each", None)
    assert module.cell(context, key) == result  # kept
    monkeypatch.setitem(module.SIZES, "smoke", replace(SIZE, draws=11))
    with pytest.raises(OtherSettingError, match="made with another draws: keep this run elsewhere"):
        module.cell(context, key)


def test_alphas_start_from_the_same_networks_and_see_the_same_batches(monkeypatch):
    seen = spied(monkeypatch, lr=1e-12)
    for alpha in (0.0, 1.0):
        module.scores(("diabetes", "dropout", alpha), SIZE, [0, 1], splits_of(0, 1))
    zero, one = ([posterior.state()[0]["guide.loc"] for posterior in posteriors] for _, _, posteriors in seen)
    for first, second in zip(zero, one, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
        assert (first[0] != first[1]).any()  # seeds differ
    assert torch.equal(zero[0][0], zero[1][0])  # rates begin alike
    assert (zero[0][0] != zero[-1][0]).any()  # splits do not


def test_nuts_pools_its_chains_and_tells_how_they_mixed(context):
    result = module.cell(context, ("diabetes", "nuts", None))
    assert len(result["test"]) == len(result["r_hat"]) == len(result["ess"]) == 1
    assert len(result["divergences"][0]) == 2
    assert result["ess"][0] > 0
    assert result["r_hat"][0] > 0.9
    assert result["setting"]["steps"] is None


def results_of(pll):
    """Results with the given test PLL by method and α, a list over splits."""
    found = {}
    for (method, alpha), values in pll.items():
        test = [
            {"pll": value, "rmse": -10 * value, "coverage_95": 0.9, "noise": 2.0, "spread": 3.0} for value in values
        ]
        by_rate = [[{"pll": value + rate} for rate in RATES] for value in values]
        rates = [0.05] * len(values)
        found[("diabetes", method, alpha)] = {"test": test, "rate": rates, "seconds": 2.0, "by_rate": by_rate}
    return found


PLL = {
    ("dropout", 0.0): [-3.0, -5.0],
    ("dropout", 0.5): [-2.5, -4.7],
    ("dropout", 1.0): [-3.5, -5.5],
    ("mean-field", 0.0): [-4.0, -6.0],
    ("nuts", None): [-1.0],
}


def test_differences_are_of_splits_that_both_have():
    results = results_of(PLL)
    nuts, zero = ("diabetes", "nuts", None), ("diabetes", "dropout", 0.0)
    assert module.beside(results, nuts, zero, "pll") == [2.0]
    table, by_rate = module.report(results, "pll", "PLL (nats)")
    assert [row[:5] for row in table.rows] == [
        ["diabetes", "Dropout", "0", "-4.00 ± 1.00", ""],
        ["diabetes", "Dropout", "0.5", "-3.60 ± 1.10", "+0.40 ± 0.10"],
        ["diabetes", "Dropout", "1", "-4.50 ± 1.00", "-0.50 ± 0.00"],
        ["diabetes", "MeanField", "0", "-5.00 ± 1.00", ""],
        ["diabetes", "NUTS", "", "-1.00", ""],
    ]
    assert [row[8:] for row in table.rows] == [["0.05 0.05", "1"]] * 3 + [["", "1"], ["", "2"]]
    assert all(len(row) == len(table.header) for row in table.rows)
    assert by_rate.rows[0] == ["diabetes", "0.01", "-3.99 ± 1.00", "+0.40 ± 0.10", "-0.50 ± 0.00"]
    assert len(by_rate.rows) == len(RATES)
    flat = {key: result | {"by_rate": [[{"rmse": 1.0}] * len(RATES)] * 2} for key, result in results.items()}
    rmse, _ = module.report(flat, "rmse", "RMSE")
    assert rmse.rows[1][3:5] == ["36.00 ± 11.00", "-4.00 ± 1.00"]


def test_the_figure_shows_differences_to_dropout_at_0():
    figure = module.draw(results_of(PLL), "pll", "PLL (nats)")
    (ax,) = figure.axes
    bars = {round(float(bar.lines[0].get_xdata()[0]), 2): float(bar.lines[0].get_ydata()[0]) for bar in ax.containers}
    assert bars == pytest.approx({0.0: 0.0, 0.5: 0.4, 1.0: -0.5, 0.12: -1.0})
    assert any(line.get_linestyle() == "--" and line.get_ydata()[0] == 2.0 for line in ax.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Dropout", "MeanField", "NUTS"]


def test_a_note_says_which_runs_share_splits(tmp_path, monkeypatch):
    results = results_of(PLL)
    nuts = results[("diabetes", "nuts", None)] | {"r_hat": [1.0], "ess": [10.0]}

    def kept(context, key):
        return nuts if key[1] == "nuts" else results.get(key, results[("diabetes", "mean-field", 0.0)])

    monkeypatch.setattr(module, "cell", kept)
    found = module.run(Context("smoke", tmp_path, seed=3), "pll", "PLL (nats)", "Higher", "uci")
    (note,) = (note for note in found.notes if "--seed" in note)
    assert "seeds 3 to 4" in note
    assert "by less than 2" in note

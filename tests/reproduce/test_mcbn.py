"""What the entries of the MCBN paper compute, and what they print beside it."""

import math
from dataclasses import replace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import nn

from bnnzoo import BayesianNetwork, Prediction, fit, guides, likelihoods
from bnnzoo.compare import METHODS
from bnnzoo.reproduce import Context, entries, mcbn_batch, mcbn_cifar, mcbn_segmentation, mcbn_toy, mcbn_uci
from bnnzoo.reproduce import mcbn_paper as paper
from bnnzoo.reproduce.mcbn_statistics import kolmogorov_smirnov


def test_the_entries_are_listed():
    items = ("figure-1", "figure-2", "figure-3", "figure-6", *(f"table-{number}" for number in (2, *range(4, 12))))
    assert {f"mcbn/{item}" for item in items} <= entries().keys()


def test_printed_tables_are_whole_and_plausible():
    for table in (paper.CRPS_NORMALIZED, paper.PLL_NORMALIZED, paper.CRPS, paper.PLL, paper.RMSE):
        assert tuple(table) == paper.SETS
        assert all(set(row) >= {"mcbn", "dropout", "mnf"} for row in table.values())
        assert all(error >= 0.0 for row in table.values() for _, error in row.values())
    for name in paper.SETS:
        for method in ("mcbn", "dropout", "mnf"):
            assert 0.3 < paper.CRPS[name][method][0] / paper.RMSE[name][method][0] < 0.65  # 0.56 for Gaussian errors
    assert paper.CRPS_NORMALIZED["yacht"]["mcbn"] == (-56.39, 14.27)
    assert paper.PLL["concrete"]["mnf"] == (-3.35, 0.04)
    assert paper.RMSE["yacht"]["do"] == (0.72, 0.04)


def test_printed_sensitivities():
    for table, columns in (
        (paper.CRPS_BY_BATCH, paper.BATCH_SIZES),
        (paper.PLL_BY_BATCH, paper.BATCH_SIZES),
        (paper.CRPS_BY_PASSES, paper.PASSES),
        (paper.PLL_BY_PASSES, paper.PASSES),
    ):
        assert tuple(table) == paper.SETS
        assert all(tuple(row) == tuple(columns) for row in table.values())
    for one, other in zip(paper.CRPS_BY_BATCH.values(), paper.PLL_BY_BATCH.values(), strict=True):
        assert [math.isnan(value) for value in one.values()] == [math.isnan(value) for value in other.values()]
    assert paper.PLL_BY_BATCH["concrete"][16] == -528.4
    assert paper.PLL_BY_PASSES["energy"] == {250: 15.7, 100: -30.5, 50: -47.3}
    losses = list(mcbn_cifar.TABLE_2.values())
    assert losses == sorted(losses)


def test_z_scores():
    rounding = 0.01**2 / 12
    assert mcbn_uci.z_score(1.3, 0.03, 1.0, 0.04) == pytest.approx(0.3 / math.sqrt(0.03**2 + 0.04**2 + rounding))
    assert mcbn_uci.z_score(0.07, 0.0, 0.07, 0.0) == 0.0
    assert abs(mcbn_uci.z_score(0.0725, 0.0, 0.07, 0.0)) < 2  # what rounds to the printed number is no difference
    assert math.isnan(mcbn_uci.z_score(1.0, math.nan, 1.0, 0.1))


def test_ours_beside_theirs():
    ours = {
        "boston": {"mcbn": (1.45, 0.01), "mnf": (1.80, 0.01)},
        "own": {"mcbn": (3.0, 0.1), "mnf": (math.nan, math.nan)},
    }
    table, values, far = mcbn_uci.beside("CRPS", ours, paper.CRPS, ".2f", {"boston": {"mcbn": "**"}})
    assert table.header == ["data", "MCBN", "paper", "z", "MNF", "paper", "z"]
    z = 0.23 / math.sqrt(0.01**2 + 0.02**2 + 0.01**2 / 12)
    first, second = table.rows
    assert first == ["boston", "1.45 ± 0.01 **", "1.45 ± 0.02", "+0.0", "1.80 ± 0.01", "1.57 ± 0.02", f"**{z:+.1f}**"]
    assert second == ["own", "3.00 ± 0.10", "-", "-", "-", "-", "-"]
    assert far == [f"boston MNF ({z:+.1f})"]
    assert values["boston"]["mnf"]["z"] == pytest.approx(z)
    assert "z" not in values["own"]["mcbn"]


def results(methods, crps):
    scores = xr.DataArray(crps, dims=("data", "method", "split", "seed"))
    return xr.Dataset(
        {"crps_normalized": scores}, {"data": ["boston"], "method": methods, "label": ("method", methods)}
    )


def test_curves_and_their_table():
    runs = np.array([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, 8.0]]]])  # means by split 2, 6 and 0, 4
    parts = [results([name], runs[:, [number]]) for number, name in enumerate(("50", "100"))]
    found = mcbn_uci.joined([parts[0], parts[1]], "method")
    ours = mcbn_batch.curves(found, "crps")
    assert ours == {"boston": {50: pytest.approx((4.0, 2.0)), 100: pytest.approx((2.0, 2.0))}}
    table = mcbn_batch.tables("title", "passes", ours, paper.CRPS_BY_PASSES)
    assert table.header == ["passes", "50", "100"]
    assert table.rows == [["boston", "4.0 ± 2.0", "2.0 ± 2.0"], ["paper", "3.2", "2.7"]]


def test_results_that_are_not_finished_are_left_out():
    found = results(["8", "16"], np.array([[[[1.0, 1.0], [3.0, 3.0]], np.full((2, 2), np.nan)]]))
    assert mcbn_batch.curves(found, "crps") == {"boston": {8: pytest.approx((2.0, 1.0))}}


def test_cells_of_other_settings_are_named(tmp_path):
    context = Context("smoke", tmp_path, quiet=True)
    protocol = replace(mcbn_uci.SMOKE, splits=1, seeds=1, steps=1)
    methods = [replace(METHODS[name], grid={"batch_size": (64,)}) for name in ("mcbn", "dropout")]
    earlier = mcbn_uci.Comparison("fits", ["diabetes"], methods, protocol)
    found = earlier.results(context)
    assert mcbn_uci.departures(found) == []
    changed = [methods[0], replace(methods[1], label="another", grid={"batch_size": (32,)})]
    again = mcbn_uci.Comparison("fits", ["diabetes"], changed, protocol).results(context)
    np.testing.assert_array_equal(again["rmse"], found["rmse"])
    (note,) = mcbn_uci.departures(again)
    assert "diabetes MCDO: method grid batch_size is [64.0] there and [32.0] now." in note
    assert "MCBN" not in note
    other = mcbn_uci.Comparison("fits", ["diabetes"], methods, replace(protocol, lr=0.5)).results(context)
    both = mcbn_uci.joined([other.sel({"method": ["mcbn"]}), other.sel({"method": ["dropout"]})], "method")
    (note,) = mcbn_uci.departures(both)
    assert "diabetes MCBN, diabetes MCDO: lr is 0.01 there and 0.5 now." in note
    assert note in mcbn_uci._notes(context, other, [], 0)
    cell = tmp_path / "fits" / "cells" / "diabetes~mcbn" / "cell.json"
    cell.write_text(cell.read_text().replace('"checksum": ', '"checksum": 1'))
    (note,) = mcbn_uci.departures(earlier.results(context))
    assert "diabetes MCBN: checksum is" in note


def test_notes_on_batch_sizes_have_the_number_of_runs(tmp_path):
    found = results(["8"], np.arange(6.0).reshape(1, 1, 2, 3)).assign(departures=(("data", "method"), [["another"]]))
    ran = mcbn_batch._run("t", "w", lambda _: found, "crps", paper.CRPS_BY_BATCH, Context("smoke", tmp_path))
    assert "2 splits and 3 seeds" in ran.notes[0]
    assert "boston 8: another." in ran.notes[-1]


def test_the_protocol_of_the_paper(tmp_path):
    paper_scale = mcbn_uci.comparisons(Context("paper", tmp_path, seed=3))
    assert [each.protocol.hidden for each in paper_scale] == [(50, 50), (100, 100)]
    assert [len(each.data) for each in paper_scale] == [7, 1]
    for each in paper_scale:
        assert (each.protocol.splits, each.protocol.seeds, each.protocol.folds) == (5, 5, 5)
        assert (each.protocol.draws, each.protocol.lr, each.protocol.seed) == (500, 1e-3, 3)
        assert [method.name for method in each.methods] == ["mcbn", "dropout", "mnf"]
        assert max(each.methods[0].grid["epochs"]) == 2000
        assert set(each.methods[0].grid["batch_size"]) == {32, 64, 128, 256, 512, 1024}
    (cpu,) = mcbn_uci.comparisons(Context("cpu", tmp_path))
    assert cpu.data == paper.SETS


def test_log_likelihoods_of_groups_of_draws():
    torch.manual_seed(0)
    log_probs = torch.rand(6, 4, dtype=torch.float64).log()
    probs = log_probs.exp().numpy()
    expected = (np.log(probs[:3].mean(0)) + np.log(probs[3:].mean(0))) / 2
    np.testing.assert_allclose(mcbn_cifar.log_likelihoods(log_probs, 3), expected)
    np.testing.assert_allclose(mcbn_cifar.log_likelihoods(log_probs, 1), log_probs.mean(0))
    one = [float(mcbn_cifar.log_likelihoods(log_probs, count).mean()) for count in (1, 2, 3, 6)]
    assert one[0] < one[-1]  # Jensen


def test_running_statistics_make_an_ordinary_network():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    posterior = fit(bnn, guides.BatchNorm(bnn, num_statistics=3), (x, y), epochs=4, batch_size=10, progress=False)
    plain = mcbn_cifar.with_running_statistics(posterior)
    assert not plain.training
    weights = posterior.guide.center()
    norm = posterior.bnn.network[1]
    assert int(norm.num_batches_tracked) == 16
    hidden = x @ weights["0.weight"].T + weights["0.bias"]
    hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    hidden = (hidden * weights["1.weight"] + weights["1.bias"]).relu()
    torch.testing.assert_close(plain(x), hidden @ weights["3.weight"].T + weights["3.bias"], rtol=1e-4, atol=1e-5)


def test_edges_are_pixels_with_a_neighbor_of_another_class():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(3, size=(4, 3, 4)), 3, 1), 3, 2)
    expected = np.zeros(labels.shape, bool)
    for image, row, column in np.ndindex(labels.shape):
        around = labels[image, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        expected[image, row, column] = (around != labels[image, row, column]).any()
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(mcbn_segmentation.at_edges(labels), expected)


def test_what_is_said_of_a_segmentation():
    torch.manual_seed(0)
    labels = np.zeros((2, 5, 5), int)
    labels[0, :, 3:] = 1  # the second image has no edge
    logits = torch.randn(1, 4, 2, 5, 5, 2, dtype=torch.float64)
    prediction = Prediction({"logits": logits}, dist.Categorical, "classification")
    found = mcbn_segmentation.described(prediction, labels)
    drawn = logits[0].softmax(-1).numpy()
    probs = drawn.mean(0)
    entropy = -(probs * np.log(probs)).sum(-1)
    information = entropy + (drawn * np.log(drawn)).sum(-1).mean(0)
    of_label = np.where(labels == 1, probs[..., 1], probs[..., 0])
    right = probs.argmax(-1) == labels
    np.testing.assert_allclose(found["accuracy"], right.mean((1, 2)))
    np.testing.assert_allclose(found["pll"], np.log(of_label).mean((1, 2)))
    np.testing.assert_allclose(found["entropy edges"], [entropy[0][:, 2:4].mean()])
    np.testing.assert_allclose(found["entropy elsewhere"][0], np.delete(entropy[0], [2, 3], 1).mean())
    np.testing.assert_allclose(found["information elsewhere"][1], information[1].mean())
    ratios = [
        ((probs.argmax(-1) == k) & (labels == k)).sum() / ((probs.argmax(-1) == k) | (labels == k)).sum()
        for k in (0, 1)
    ]
    assert found["iou"] == pytest.approx(np.mean(ratios))
    assert found["auroc"] == pytest.approx((entropy[~right][:, None] > entropy[right][None]).mean())


def test_the_toy():
    toy = mcbn_toy.toy(50, seed=1)
    x = toy.x[:, 0]
    torch.testing.assert_close(toy.y, x * x.sin())
    assert x.abs().max() <= 5.0
    assert x.min() < -3.0 < 3.0 < x.max()


def test_kolmogorov_smirnov_distances():
    draws = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.5, 0.3]) + 0.1
    expected = [stats.kstest(column, "norm").statistic for column in draws.double().numpy().T]
    np.testing.assert_allclose(kolmogorov_smirnov(draws), expected, atol=1e-9)

"""Tables, tests of significance, files and the forest plot of results."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from bnnzoo.compare import markdown, over_splits, plot_forest, significance, stars, table, write
from tests.compare.small import classes, line, point, small

BETTER = {
    "crps_gaussian": "lower",
    "pll_tuned": "higher",
    "rmse": "lower",
    "coverage_95": "none",
    "crps_normalized": "higher",
}
DIMS = ("data", "method", "split", "seed")


def made(**values):
    """Results with given numbers; `pll_normalized` is left out."""
    rng = np.random.default_rng(0)
    shape = (2, 2, 3, 4)
    variables = {}
    for name, better in BETTER.items():
        numbers = values.get(name, rng.normal(size=shape) + 3)
        about = {"long_name": name.upper(), "units": "nats" if name == "pll_tuned" else "1", "better": better}
        variables[name] = (DIMS, numbers, about)
    variables["seconds"] = (DIMS[:2], np.full((2, 2), 9.6))
    coordinates = {"data": ["a", "b"], "method": ["one", "two"], "label": ("method", ["First", "Second"])}
    return xr.Dataset(variables, coordinates, {"task": "regression", "protocol": "{}"})


def test_standard_errors_are_of_split_means():
    scores = made()["pll_tuned"]
    mean, error = over_splits(scores)
    values = scores.to_numpy().mean(-1)
    np.testing.assert_allclose(mean, values.mean(-1))
    np.testing.assert_allclose(error, values.std(-1, ddof=1) / np.sqrt(3))
    # Seeds that agree within a split add nothing.
    alike = scores.copy(data=np.broadcast_to(scores.to_numpy()[..., :1], scores.shape))
    np.testing.assert_allclose(over_splits(alike)[1], scores.to_numpy()[..., 0].std(-1, ddof=1) / np.sqrt(3))


def test_one_split_has_no_standard_error():
    mean, error = over_splits(made()["pll_tuned"].isel(split=[0]))
    assert np.isfinite(mean).all()
    assert np.isnan(error).all()


def test_significance_is_a_one_sample_t_test_over_runs():
    scores = made()["crps_normalized"]
    expected = [[stats.ttest_1samp(runs.ravel(), 0).pvalue for runs in own] for own in scores.to_numpy()]
    np.testing.assert_allclose(significance(scores), expected)


@pytest.mark.parametrize(
    ("p", "mark"),
    [
        (0.2, "ns"),
        (0.05, "ns"),
        (0.049, "*"),
        (0.009, "**"),
        (9e-4, "***"),
        (9e-5, "****"),
        (0.0, "****"),
        (np.nan, ""),
    ],
)
def test_stars(p, mark):
    assert stars(p) == mark


def test_the_best_of_each_data_set_is_marked():
    shape = (2, 2, 3, 4)
    values = np.zeros(shape) + np.array([[1.0, 2.0], [4.0, 3.0]])[..., None, None]
    results = made(crps_gaussian=values, pll_tuned=values, coverage_95=values)
    header, rows, best = table(results)
    assert header == [
        "data",
        "method",
        "CRPS_GAUSSIAN ↓",
        "PLL_TUNED, nats ↑",
        "RMSE ↓",
        "COVERAGE_95",
        "CRPS_NORMALIZED ↑",
        "CPU s",
    ]
    assert [row[:2] for row in rows] == [["a", "First"], ["a", "Second"], ["b", "First"], ["b", "Second"]]
    assert [marks[2] for marks in best] == [True, False, False, True]
    assert [marks[3] for marks in best] == [False, True, True, False]
    assert not any(marks[5] or marks[-1] for marks in best)
    assert rows[0][2] == "1"
    assert rows[0][-1] == "10"


def test_unfinished_cells_are_left_out():
    results = made()
    for name in BETTER:
        results[name][1, 0] = np.nan
    _, rows, best = table(results)
    assert [row[:2] for row in rows] == [["a", "First"], ["a", "Second"], ["b", "Second"]]
    assert not any(best[2])  # alone there is nothing to be best of


def test_numbers_have_the_digits_that_their_errors_allow():
    rng = np.random.default_rng(1)
    spread = rng.normal(size=(2, 2, 3, 1)) * np.array([100.0, 0.03])[None, :, None, None]
    rows = table(made(crps_gaussian=1000 + np.broadcast_to(spread, (2, 2, 3, 4))))[1]
    for row, decimals in zip(rows, (1, 3, 1, 3), strict=True):
        mean, error = row[2].split(" ± ")
        assert len(mean.partition(".")[2]) == len(error.partition(".")[2]) >= 1
        assert len(mean.partition(".")[2]) in (decimals, decimals + 1, decimals - 1)


def test_markdown_has_bold_numbers_and_no_stray_stars():
    shape = (2, 2, 3, 4)
    rng = np.random.default_rng(2)
    far = 5 + 0.1 * rng.normal(size=shape)
    far[:, 1] -= 3
    text = markdown(made(crps_normalized=far))
    lines = text.splitlines()
    assert lines[1] == "|" + " --- |" * 8
    assert all(line.count("|") == 9 for line in lines[:6])
    cell = lines[2].split("|")[7].strip()
    number, star = cell[2:].split("**", 1)
    assert float(number.split(" ± ")[0]) == pytest.approx(far[0, 0].mean(), abs=0.1)
    assert star == r" \*\*\*\*"
    assert lines[3].split("|")[7].strip().startswith("2.")
    assert "standard error over splits" in text
    assert "t-test" in text


def test_forest_shows_factors_of_the_best_and_differences():
    results = made()
    figure = plot_forest(results)
    panels = figure.axes
    assert [ax.get_xlabel().replace("\n", " ") for ax in panels] == [
        "CRPS_GAUSSIAN, factor of the best",
        "PLL_TUNED, less the best's (nats)",
        "RMSE, factor of the best",
    ]
    mean, error = (each.to_numpy() for each in over_splits(results["crps_gaussian"]))
    for number, bars in enumerate(panels[0].containers):
        np.testing.assert_allclose(bars.lines[0].get_xdata(), mean[:, number] / mean.min(1))
        ends = np.array([path.vertices[:, 0] for path in bars.lines[2][0].get_paths()])
        np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * error[:, number] / mean.min(1))
    mean = over_splits(results["pll_tuned"])[0].to_numpy()
    for number, bars in enumerate(panels[1].containers):
        np.testing.assert_allclose(bars.lines[0].get_xdata(), mean[:, number] - mean.max(1))
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["a", "b"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["First", "Second"]
    looks = {(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in panels[0].containers}
    assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == 2


def test_forest_has_no_factors_of_scores_below_zero():
    shape = (2, 2, 3, 4)
    figure = plot_forest(made(rmse=np.linspace(-1, 1, 48).reshape(shape)), ["rmse"])
    [ax] = figure.axes
    assert "less the best's" in ax.get_xlabel()


def test_forest_refuses_what_is_no_score():
    with pytest.raises(ValueError, match="no score 'seconds'"):
        plot_forest(made(), ["seconds"])
    with pytest.raises(ValueError, match="no score 'mae'"):
        plot_forest(made(), ["mae"])
    with pytest.raises(ValueError, match="no cell is finished"):
        plot_forest(xr.Dataset(attrs={"task": "regression"}))


@pytest.mark.parametrize("data", [line, classes])
def test_files(data, tmp_path):
    results = small(data(), [point(), point("other", grid={})])
    written = write(results, tmp_path)
    assert sorted(path.name for path in written) == ["forest.png", "results.csv", "results.md", "results.nc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    with xr.open_dataset(tmp_path / "results.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load(), results)
        assert read["pll"].attrs == results["pll"].attrs
    frame = pd.read_csv(tmp_path / "results.csv")
    assert len(frame) == 2 * 2 * 2
    row = frame[(frame["method"] == "other") & (frame["split"] == 1) & (frame["seed"] == 0)].iloc[0]
    assert row["pll"] == pytest.approx(results["pll"].sel({"method": "other", "split": 1, "seed": 0}).item())
    assert (tmp_path / "results.md").read_text() == markdown(results)
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")

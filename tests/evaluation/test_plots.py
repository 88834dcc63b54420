"""Figures: what they show is what was computed, and nothing global is touched."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

from bnnzoo.evaluation import plot_calibration, plot_fit, plot_history, plot_predictions, score
from bnnzoo.prediction import Prediction


def regression(n=100, scale=1.0, outputs=None):
    rng = np.random.default_rng(0)
    loc = rng.normal(size=n if outputs is None else (n, outputs))
    y = loc + rng.normal(size=loc.shape)
    parameters = {"loc": torch.as_tensor(loc)[None, None], "scale": torch.full((1, 1) + (1,) * loc.ndim, scale)}
    return Prediction({name: v.double() for name, v in parameters.items()}, dist.Normal, "regression"), y


def classification(n=500):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(n, 3))
    y = (logits + rng.gumbel(size=(n, 3))).argmax(1)  # drawn from the probabilities
    return Prediction({"logits": torch.as_tensor(logits)[None, None]}, dist.Categorical, "classification"), y


def fitted(**history):
    return SimpleNamespace(history={name: np.asarray(values) for name, values in history.items()})


def test_predictions_against_observations():
    prediction, y = regression()
    (ax,) = plot_predictions(prediction, y, target="strength (MPa)").axes
    assert ax.get_xlabel() == "observed strength (MPa)"
    assert ax.get_ylabel() == "predicted strength (MPa)"
    inside = np.abs(prediction.mean.numpy() - y) < 1.96
    assert ax.get_title() == f"95% intervals cover {inside.sum()} of 100 ({inside.mean():.0%})"
    covered, missed = ax.get_lines()[:2]
    np.testing.assert_allclose(covered.get_xdata(), y[inside])
    np.testing.assert_allclose(missed.get_xdata(), y[~inside])
    np.testing.assert_allclose(missed.get_ydata(), prediction.mean.numpy()[~inside])
    assert covered.get_marker() != missed.get_marker()  # told apart without color
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 2 * 1.959964, rtol=1e-5)


def test_many_data_are_thinned_but_all_counted():
    prediction, y = regression(n=1000)
    (ax,) = plot_predictions(prediction, y).axes
    assert sum(len(line.get_xdata()) for line in ax.get_lines()[:2]) == 400
    assert "of 1000" in ax.get_title()
    assert "400 shown" in ax.get_title()


def test_one_of_several_targets():
    prediction, y = regression(outputs=2)
    (ax,) = plot_predictions(prediction, y, output=1, target="load").axes
    assert "load, output 1" in ax.get_xlabel()
    assert set(ax.get_lines()[0].get_xdata()) <= set(y[:, 1])
    with pytest.raises(ValueError, match="output must be 0 to 1, given 2"):
        plot_predictions(prediction, y, output=2)


@pytest.mark.parametrize(("scale", "inside"), [(1.0, True), (0.4, False)])
def test_quantile_calibration_leaves_the_band_only_if_miscalibrated(scale, inside):
    prediction, y = regression(n=1000, scale=scale)
    (ax,) = plot_calibration(prediction, y).axes
    curve = ax.get_lines()[1]
    levels, fraction = curve.get_xdata()[1:-1], curve.get_ydata()[1:-1]
    distance = np.abs(levels - fraction).max()
    assert (distance < 0.08) == inside  # Kolmogorov: 0.08 at 1000 has probability 6e-6


def test_reliability_diagram():
    prediction, y = classification()
    (ax,) = plot_calibration(prediction, y).axes
    assert f"{score(prediction, y).ece.item():.3f}" in ax.get_title()
    points = ax.containers[1][0]
    confidence, accuracy = points.get_xdata(), points.get_ydata()
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    heights = [bar.get_height() for bar in ax.containers[0]]
    assert sum(heights) == pytest.approx(1.0)
    assert np.dot([h for h in heights if h > 0], accuracy) == pytest.approx(score(prediction, y).accuracy.item())
    assert (np.diff(confidence) > 0).all()


def test_entropy_of_right_and_wrong_predictions():
    prediction, y = classification()
    (ax,) = plot_predictions(prediction, y).axes
    right = int((prediction.probs.argmax(-1).numpy() == y).sum())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"right ({right})", f"wrong ({500 - right})"]
    for container in ax.containers:
        assert sum(bar.get_height() for bar in container) == pytest.approx(1.0)


def test_all_right_has_no_wrong_histogram():
    prediction, _ = classification(n=20)
    (ax,) = plot_predictions(prediction, prediction.probs.argmax(-1)).axes
    assert len(ax.containers) == 1


def test_history_of_chains_and_validation():
    loss = np.concatenate([np.full((3, 2), 1e6), np.arange(114).reshape(3, 38)], 1)
    figure = plot_history(fitted(loss=loss, validation=loss / 100))
    left, right = figure.axes
    assert len(left.get_lines()) == len(right.get_lines()) == 3
    np.testing.assert_array_equal(left.get_lines()[1].get_ydata(), loss[1])
    assert left.get_lines()[0].get_xdata()[0] == 1
    assert left.get_ylim()[1] < 1000  # the first epochs do not flatten the rest
    assert right.get_lines()[0].get_linestyle() == "--"


@pytest.mark.parametrize("history", [{}, {"loss": np.zeros((2, 0))}, {"loss": [[np.nan, np.nan]]}])
def test_no_history(history):
    (ax,) = plot_history(fitted(**history)).axes
    assert ax.texts[0].get_text() == "no training history"


def test_a_single_epoch_and_a_diverged_chain(tmp_path):
    (ax,) = plot_history(fitted(loss=[[3.0], [np.nan]])).axes
    assert ax.get_lines()[0].get_marker() == "o"
    plot_history(fitted(loss=[[3.0, 2.0, 1.0], [4.0, np.nan, np.inf]])).savefig(tmp_path / "history.png")


@pytest.mark.parametrize("make", [regression, classification])
def test_plot_fit_has_three_panels_and_saves(make, tmp_path):
    prediction, y = make()
    figure = plot_fit(fitted(loss=[[2.0, 1.0]]), prediction, y, target="strength (MPa)")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    figure.savefig(tmp_path / "fit.png", dpi=50)
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_into_an_own_axes():
    prediction, y = regression()
    own = Figure()
    assert plot_calibration(prediction, y, ax=own.subplots()) is own


def test_targets_are_checked():
    prediction, y = regression()
    for plot in (plot_predictions, plot_calibration):
        with pytest.raises(ValueError, match="y has 99"):
            plot(prediction, y[:99])


def test_pyplot_is_never_loaded():
    code = "import sys, bnnzoo.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

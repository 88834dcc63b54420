"""Figures of errors by uncertainty and of PIT: what they show is what was computed."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from bnnzoo.evaluation import pit, plot_pit, plot_uncertainty_error, scores
from bnnzoo.prediction import Prediction


def numbers(n=300, targets=(), width=1.0, seed=0):
    """Predictions of several scales, and targets drawn from them."""
    rng = np.random.default_rng(seed)
    loc, scale = rng.normal(size=(n, *targets)), rng.uniform(0.2, 3, size=(n, *targets))
    parameters = {"loc": torch.as_tensor(loc), "scale": torch.as_tensor(width * scale)}
    prediction = Prediction({k: v[None, None] for k, v in parameters.items()}, dist.Normal, "regression")
    return prediction, loc + scale * rng.normal(size=loc.shape)


def parts(figure):
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    return ax, lines


def test_errors_are_sorted_by_their_uncertainty():
    prediction, y = numbers()
    figure = plot_uncertainty_error(prediction, y, target="load (N)", window=31)
    assert isinstance(figure, Figure)
    ax, lines = parts(figure)
    assert ax.get_ylabel() == "absolute error, load (N)"
    std = prediction.std.numpy()
    order = np.argsort(std)
    errors = np.abs(y - prediction.mean.numpy())[order]
    inside = errors <= ax.get_ylim()[1]
    np.testing.assert_allclose(lines["error"].get_ydata(), errors[inside])
    np.testing.assert_allclose(lines["error"].get_xdata(), np.arange(1, 301)[inside])
    assert f"{(~inside).sum()} beyond the axis" in lines or inside.all()
    running = lines["mean of 31 errors"].get_ydata()
    np.testing.assert_allclose(running[15:-15], np.convolve(errors, np.ones(31) / 31, "valid"))
    assert running[0] == pytest.approx(errors[:16].mean())
    for area, probability in zip(ax.collections, (0.95, 0.5), strict=True):
        top = area.get_paths()[0].vertices[:, 1]
        assert area.get_label() == f"{probability:.0%} of the prediction"
        half = stats.norm.ppf((1 + probability) / 2) * std
        assert top.max() == pytest.approx(half.max(), rel=1e-4)
        assert set(np.round(half, 4)) <= set(np.round(top, 4)) | set(np.round(top, 3)) or len(top) >= 300
    assert np.corrcoef(running, std[order])[0, 1] > 0.9  # targets are drawn from what was predicted


def test_a_constant_uncertainty_is_two_lines():
    prediction, y = numbers()
    constant = Prediction(
        {"loc": torch.zeros(1, 1, 300), "scale": torch.full((1, 1, 1), 4.0)}, dist.Normal, "regression"
    )
    ax, lines = parts(plot_uncertainty_error(prediction, y, constant=constant))
    for probability in (0.95, 0.5):
        line = lines[f"{probability:.0%}, constant uncertainty"]
        np.testing.assert_allclose(line.get_ydata(), 4.0 * stats.norm.ppf((1 + probability) / 2), rtol=1e-4)
    styles = {lines[name].get_linestyle() for name in lines if "constant" in name}
    assert styles == {"--", ":"}
    assert ax.get_ylim()[1] > 4.0 * 1.96


def test_errors_far_beyond_the_others_are_marked_at_the_top():
    prediction, y = numbers()
    y[7] = 1e4
    ax, lines = parts(plot_uncertainty_error(prediction, y))
    assert ax.get_ylim()[1] < 20
    beyond = next(name for name in lines if "beyond" in name)
    assert int(beyond.split()[0]) == len(lines[beyond].get_xdata()) >= 1
    assert lines[beyond].get_marker() == "^"
    assert (lines[beyond].get_ydata() < ax.get_ylim()[1]).all()


def test_one_of_several_targets_and_what_is_refused():
    prediction, y = numbers(50, (2,))
    _, lines = parts(plot_uncertainty_error(prediction, y, output=1))
    assert set(lines["error"].get_ydata()) <= set(np.abs(y - prediction.mean.numpy())[:, 1])
    with pytest.raises(ValueError, match="output must be 0 to 1, given 2"):
        plot_uncertainty_error(prediction, y, output=2)
    with pytest.raises(ValueError, match="window must be at least 1, given 0"):
        plot_uncertainty_error(prediction, y, window=0)
    classes = Prediction({"logits": torch.zeros(1, 1, 5, 3)}, dist.Categorical, "classification")
    with pytest.raises(ValueError, match="for regression, and these are classification targets"):
        plot_uncertainty_error(classes, [0] * 5)
    with pytest.raises(ValueError, match="reliability"):
        plot_pit(classes, [0] * 5)
    with pytest.raises(ValueError, match="bins must be at least 2, given 1"):
        plot_pit(prediction, y, bins=1)


def test_windows_of_more_than_all_and_dense_targets():
    prediction, y = numbers(8)
    errors = np.abs(y - prediction.mean.numpy())
    for count in (8, 2):
        few = Prediction({k: v[:, :, :count] for k, v in prediction.parameters.items()}, dist.Normal, "regression")
        for window in (None, 50) if count == 2 else (50,):
            _, lines = parts(plot_uncertainty_error(few, y[:count], window=window))
            running = lines[f"mean of {count} errors"].get_ydata()
            assert np.isfinite(running).all()
            assert running[count // 2] == pytest.approx(errors[:count].mean())
    prediction, y = numbers(30, targets=(2, 3))
    _, lines = parts(plot_uncertainty_error(prediction, y, constant=prediction, output=4))
    assert set(lines["error"].get_ydata()) <= set(np.abs(y - prediction.mean.numpy())[:, 1, 1])
    with pytest.raises(ValueError, match="output must be 0 to 5, given 6"):
        plot_uncertainty_error(prediction, y, output=6)


@pytest.mark.parametrize("width", [1.0, 3.0, 0.3])
def test_pit_leaves_its_band_only_if_miscalibrated(width):
    prediction, y = numbers(2000, width=width)
    (ax,) = plot_pit(prediction, y, bins=10).axes
    (bars,) = ax.containers
    heights = np.array([bar.get_height() for bar in bars])
    values = pit(prediction, y)
    np.testing.assert_allclose(heights, np.histogram(values, 10, (0, 1))[0] / 200)
    band = next(patch for patch in ax.patches if patch not in list(bars))
    low, high = band.get_y(), band.get_y() + band.get_height()
    np.testing.assert_allclose([200 * low, 200 * high], stats.binom.interval(0.95, 2000, 0.1))
    # Ten bars of a calibrated forecast leave this band, of 5.5 standard deviations, with a probability of 4e-7.
    far = 5.5 / 1.96 * (high - low) / 2
    if width == 1.0:
        assert (np.abs(heights - 1) < far).all()
    else:
        middle = heights[4:6].mean()
        assert (middle > 1 + far) if width > 1 else (middle < 1 - far)
    assert f"{scores.quantile_calibration_error(values):.3f}" in ax.get_title()
    assert ax.get_ylim()[1] > heights.max()


def test_figures_are_drawn_where_they_are_told():
    prediction, y = numbers(40)
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_uncertainty_error(prediction, y, ax=left) is figure
    assert plot_pit(prediction, y, ax=right) is figure
    assert left.lines
    assert right.containers

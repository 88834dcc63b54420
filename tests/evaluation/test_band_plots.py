"""`plot_band`: what is drawn is what was predicted."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import norm

from bnnzoo.data import Dataset
from bnnzoo.evaluation import plot_band
from bnnzoo.prediction import Prediction

N = 7
GRID = np.array([2.0, -2.0, 0.0, 1.0, -1.0, 3.0, -3.0])
ORDER = np.argsort(GRID)


def predicted(draws=2, noise=0.5):
    """Draws that differ by their mean, so that the mixture is no Gaussian and epistemic is no noise."""
    loc = torch.as_tensor(GRID) ** 2 + torch.arange(draws, dtype=torch.float64)[:, None]
    return Prediction({"loc": loc[None], "scale": torch.full_like(loc[None], noise)}, dist.Normal, "regression")


def constant(scale):
    """One draw, half a unit below the mean of `predicted`."""
    loc = torch.as_tensor(GRID)[None, None] ** 2
    return Prediction({"loc": loc, "scale": torch.full((1, 1, 1), scale)}, dist.Normal, "regression")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def edges(ax):
    """Low and high of each band by its label, along the sorted grid."""
    found = {}
    for band in ax.collections:
        vertices = band.get_paths()[0].vertices
        rows = [vertices[np.isclose(vertices[:, 0], x)][:, 1] for x in GRID[ORDER]]
        found[band.get_label()] = np.array([[r.min(), r.max()] for r in rows])
    return found


def test_intervals_are_those_of_the_mixture_and_the_mean_is_sorted():
    prediction = predicted()
    (ax,) = plot_band(prediction, GRID[:, None], levels=(0.8, 0.3)).axes
    drawn = edges(ax)
    assert list(drawn) == ["80% interval", "30% interval"]  # the widest lies below
    base = (GRID**2)[ORDER]
    for level in (0.8, 0.3):
        low, high = drawn[f"{100 * level:g}% interval"].T
        for ends, probability in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            below = (norm.cdf((ends - base) / 0.5) + norm.cdf((ends - base - 1) / 0.5)) / 2
            np.testing.assert_allclose(below, probability, atol=1e-9)
    mean = lines(ax)["predictive mean"]
    np.testing.assert_array_equal(mean.get_xdata(), np.sort(GRID))
    np.testing.assert_allclose(mean.get_ydata(), base + 0.5)
    assert ax.get_xlim() == (-3.0, 3.0)
    first, second = (band.get_alpha() for band in ax.collections)
    assert first < second


def test_deviations_epistemic_part_and_constant():
    (ax,) = plot_band(predicted(), GRID, deviations=(1, 3), epistemic=True, constant=constant(2.0)).axes
    drawn, mean = edges(ax), (GRID**2)[ORDER] + 0.5
    std = np.sqrt(0.5**2 + 0.5**2)  # the noise, and two draws 1 apart
    for count in (1, 3):
        np.testing.assert_allclose(drawn[f"mean ± {count}σ"], np.stack([mean - count * std, mean + count * std], 1))
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose([line.get_ydata() for line in dotted], [mean - 1.5, mean + 1.5])
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "-."]
    np.testing.assert_allclose([line.get_ydata() for line in lines], [mean - 6.5, mean + 5.5])


def test_the_constant_is_that_of_the_widest_level():
    (ax,) = plot_band(predicted(), GRID, levels=(0.5, 0.95), constant=constant(1.0)).axes
    upper = [line for line in ax.get_lines() if line.get_linestyle() == "-."][1]
    np.testing.assert_allclose(upper.get_ydata(), (GRID**2)[ORDER] + norm.ppf(0.975))


@pytest.mark.parametrize("pair", [True, False])
def test_data_and_truth(pair):
    x, y = torch.tensor([[0.5], [-0.5]]), torch.tensor([1.0, 2.0])
    data = (x, y) if pair else Dataset(x, y)
    own = Figure()
    assert plot_band(predicted(), GRID, data=data, truth=GRID**2, labels=("x (m)", "y (s)"), ax=own.subplots()) is own
    (ax,) = own.axes
    np.testing.assert_allclose(lines(ax)["data"].get_xydata(), [[0.5, 1.0], [-0.5, 2.0]])
    np.testing.assert_allclose(lines(ax)["truth"].get_xydata(), np.stack([GRID, GRID**2], 1)[ORDER])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (m)", "y (s)")
    styles = [line.get_linestyle() for line in ax.get_lines()]
    assert len(set(styles)) == 3  # told apart without color


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": GRID[:3]}, "x has 3 inputs, the prediction has 7"),
        ({"x": np.zeros((7, 2))}, "draws one input"),
        ({"truth": [1.0]}, "truth has 1 values"),
        ({"levels": (0.5, 95)}, r"levels must be in \(0, 1\), given 95"),
        ({"levels": ()}, "at least one"),
        ({"deviations": (0,)}, "deviations must be positive"),
        (
            {"constant": Prediction({"loc": torch.zeros(1, 1, 3), "scale": torch.ones(1)}, dist.Normal, "regression")},
            "the prediction has 3",
        ),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        plot_band(predicted(), **{"x": GRID, **change})


def test_classes_and_several_targets_have_no_band():
    classes = Prediction({"probs": torch.full((1, 1, N, 2), 0.5)}, dist.Categorical, "classification")
    with pytest.raises(ValueError, match="draws numbers"):
        plot_band(classes, GRID)
    both = Prediction({"loc": torch.zeros(1, 1, N, 2), "scale": torch.ones(1, 1, N, 2)}, dist.Normal, "regression")
    with pytest.raises(ValueError, match="one target"):
        plot_band(both, GRID)

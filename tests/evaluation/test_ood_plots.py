"""Figures of uncertainty out of distribution show what was computed."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

from bnnzoo.evaluation import ood_scores, plot_entropy_cdf, plot_ood, uncertainties
from bnnzoo.evaluation.style import axes_or_new
from bnnzoo.prediction import Prediction


def classes(size=40, spread=1.0, seed=0, chains=1):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(chains, 3, size, 4, generator=generator)
    return Prediction({"logits": logits}, dist.Categorical, "classification")


def numbers(size=30, spread=1.0):
    loc = spread * torch.randn(1, 5, size, generator=torch.Generator().manual_seed(0))
    return Prediction({"loc": loc, "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression")


def curve(line):
    """The function that a step line draws, at a number."""
    x, y = line.get_xdata(), line.get_ydata()
    assert line.get_drawstyle() == "steps-post"
    return lambda at: np.append(0.0, y)[np.searchsorted(x, at, side="right")]


def test_curves_count():
    rng = np.random.default_rng(0)
    entropies = {"a": rng.uniform(0, 1.3, 50), "b": rng.integers(0, 4, 30) / 4, "c": classes()}
    (ax,) = plot_entropy_cdf(entropies).axes
    lines = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["a", "b", "c"]
    values = {**entropies, "c": uncertainties(entropies["c"])["entropy"]}
    for name, line in lines.items():
        for at in (0.0, 0.25, 0.3, 0.75, 1.2):
            assert curve(line)(at) == pytest.approx(np.mean(values[name] <= at)), name
    (mark,) = [line for line in ax.get_lines() if line.get_label().startswith("_")]
    np.testing.assert_allclose(mark.get_xdata(), math.log(4))
    assert "log 4" in [text.get_text() for text in ax.texts]
    assert "nats" in ax.get_xlabel()


def test_curves_are_told_apart_by_color_and_style():
    figure = plot_entropy_cdf({str(number): [0.1, 0.2] for number in range(14)}, num_classes=10)
    lines = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in lines}  # get_linestyle says "--" for every dash
    assert len(looks) == 14
    assert len({line.get_color() for line in lines[:7]}) == 7
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_a_panel_for_each_kind_of_input():
    methods = {"a": {"digits": [0.1, 0.2], "letters": [1.0]}, "b": {"digits": [0.3], "letters": [0.5, 0.6]}}
    figure = plot_entropy_cdf(methods, num_classes=10)
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["digits", "letters"]
    ends = [sorted(set(line.get_xdata()) - {-np.inf}) for line in right.get_lines()[:2]]
    assert ends == [[1.0], [0.5, 0.6]]
    assert right.get_legend() is not None
    assert left.get_legend() is None


def test_axes_are_drawn_into_and_log_k_is_not_made_up():
    ax = axes_or_new(None)
    assert plot_entropy_cdf({"a": [0.5]}, ax=ax) is ax.get_figure()
    assert [text.get_text() for text in ax.texts] == []


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ({}, {}, "no method to plot"),
        ({"a": {"x": [1.0]}, "b": {"y": [1.0]}}, {}, r"method 'b' has panels \['y'\], and the first method \['x'\]"),
        ({"a": {"x": [1.0]}, "b": [1.0]}, {}, "method 'b' has panels"),
        ({"a": []}, {}, "method 'a': entropies must be one or more finite numbers"),
        ({"a": [-0.1]}, {}, "finite numbers >= 0"),
        ({"a": [math.nan]}, {}, "finite numbers >= 0"),
        ({"a": [[0.1]]}, {}, r"of shape \[N\]"),
        ({"a": numbers()}, {}, "method 'a': entropies are of class labels"),
        ({"a": classes()}, {"num_classes": 10}, r"numbers of classes differ: \[4, 10\]"),
        ({"a": {"x": [1.0], "y": [1.0]}}, {"ax": axes_or_new(None)}, "ax is one panel, and 2 are to be drawn: x, y"),
    ],
)
def test_what_has_no_curves_is_refused(methods, options, message):
    with pytest.raises(ValueError, match=message):
        plot_entropy_cdf(methods, **options)


def test_histograms_hold_every_input_and_the_title_the_scores():
    inside, outside = classes(50, 3.0, chains=2), classes(30, 0.5, seed=1, chains=2)
    figure = plot_ood(inside, outside)
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    heights = np.array([patch.get_height() for patch in ax.patches]).reshape(2, 30)
    np.testing.assert_allclose(heights.sum(1), 1.0)
    found = ood_scores(inside.pooled, outside.pooled).isel(chain=0).sel(measure="entropy")
    assert ax.get_title().startswith(f"AUROC {float(found.auroc):.3f} ± {float(found.auroc_se):.3f}")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["inside (50)", "outside (30)"]
    assert ax.patches[0].get_hatch() != ax.patches[30].get_hatch()  # told apart without color
    assert "nats" in ax.get_xlabel()


def test_histograms_of_variances_and_of_a_chosen_measure():
    (ax,) = plot_ood(numbers(), numbers(spread=10.0), measure="epistemic").axes
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "epistemic variance (squared units of the target)"
    with pytest.raises(ValueError, match="measure must be one of variance, epistemic, not 'entropy'"):
        plot_ood(numbers(), numbers(), measure="entropy")


def test_histograms_of_one_value():
    point = Prediction({"probs": torch.full((1, 1, 3, 2), 0.5)}, dist.Categorical, "classification")
    (ax,) = plot_ood(point, point, measure="mutual_information").axes
    assert ax.get_title().startswith("AUROC 0.500")

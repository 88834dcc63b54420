"""Figures of how well an uncertainty fits the errors: errors by predicted uncertainty, and the histogram of PIT."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from bnnzoo.evaluation.metrics import as_targets, pit, to_numpy
from bnnzoo.evaluation.scores import quantile_calibration_error
from bnnzoo.evaluation.style import BLUE, GRAY, VERMILION, axes_or_new, figure_of
from bnnzoo.prediction import Prediction

_LEVELS = (0.95, 0.5)
_LIGHT, _DARK = 0.18, 0.38
_TOP = 0.99  # the quantile of the errors that the axis shows at least


def plot_uncertainty_error(
    prediction: Prediction,
    y: Any,
    *,
    constant: Prediction | None = None,
    target: str | None = None,
    output: int = 0,
    window: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Absolute errors of data sorted by their predicted uncertainty (Teye et al. 2018, Figure 2).

    Each datum's |y - mean| is a faint point; the areas reach to the half width of the central 50% and 95% intervals of
    the predictive distribution, all chains together. Where the running mean of the errors rises with the areas the
    uncertainty tells which predictions are worse. Errors beyond the axis are triangles at its top.

    Args:
        prediction: A regression.
        y: The targets, as for `score`.
        constant: A prediction of a constant uncertainty, `ConstantUncertainty.predict`: the half widths of its
            intervals are lines. Default: none.
        target: Name and unit of the target for the axes, such as `"strength (MPa)"`.
        output: Which target, of several a datum; of dense targets [N, H, W] by row, `h * W + w`.
        window: Data that the running mean is over, ≥ 1; all, if it is more. Default a tenth of them, at least 5.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: As `score`; for classes and counts; if `output` is not a target's index, or `window` is below 1.
    """
    if prediction.task != "regression":
        raise ValueError(f"errors by uncertainty are for regression, and these are {prediction.task} targets")
    observed = to_numpy(as_targets(prediction, y))
    outputs = math.prod(observed.shape[1:])
    if not 0 <= output < outputs:
        raise ValueError(f"output must be 0 to {outputs - 1}, given {output}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, given {window}")
    observed, mean = _of_output(observed, output), _of_output(to_numpy(prediction.mean), output)
    halves = [_of_output(half, output) for half in _half_widths(prediction)]
    window = min(max(5, len(observed) // 10) if window is None else window, len(observed))
    order = np.argsort(halves[0], kind="stable")
    errors, halves = np.abs(observed - mean)[order], [half[order] for half in halves]
    running = pd.Series(errors).rolling(window, center=True, min_periods=(window + 1) // 2).mean().to_numpy()
    lines = [] if constant is None else _constant_half_widths(constant, output)
    axes = axes_or_new(ax, (5.2, 4.4))
    ranks = np.arange(1, len(errors) + 1)
    for half, level, alpha in zip(halves, _LEVELS, (_LIGHT, _DARK), strict=True):
        axes.fill_between(ranks, half, color=BLUE, alpha=alpha, lw=0, label=f"{level:.0%} of the prediction")
    top = 1.08 * max(halves[0].max(), np.quantile(errors, _TOP), *lines)
    inside = errors <= top
    many = len(errors) > 2000
    axes.plot(
        ranks[inside], errors[inside], ".", color=GRAY, ms=2 if many else 5, alpha=0.6, mew=0, label="error", zorder=2.5
    )
    if not inside.all():
        axes.plot(
            ranks[~inside],
            np.full((~inside).sum(), 0.985 * top),
            "^",
            color=GRAY,
            ms=5,
            mew=0,
            clip_on=False,
            label=f"{(~inside).sum()} beyond the axis",
        )
    axes.plot(ranks, running, "-", color=VERMILION, lw=1.6, label=f"mean of {window} errors", zorder=3)
    for height, level, style in zip(lines, _LEVELS, ("--", ":"), strict=False):
        axes.axhline(height, color="black", lw=1.1, ls=style, label=f"{level:.0%}, constant uncertainty")
    axes.set_xlim(0.5, len(errors) + 0.5)
    axes.set_ylim(0.0, top)
    axes.set_xlabel("data sorted by predicted uncertainty")
    axes.set_ylabel(f"absolute error, {target or 'target'}")
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)
    return figure_of(axes)


def plot_pit(
    prediction: Prediction,
    y: Any,
    *,
    bins: int = 20,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """Histogram of the probability integral transform: flat if the predictive distributions are calibrated.

    A hump in the middle says that they are too wide, heaps at the ends that they are too narrow, a slope that they are
    off to one side (Gneiting, Balabdaoui & Raftery 2007). The band holds 95% of the bars of a calibrated prediction.
    `plot_calibration` has the same as a curve.

    Args:
        prediction: A regression or counts.
        y: The targets, as for `score`.
        bins: Number of bars, ≥ 2.
        seed: Fixes the predictive draws (of counts).
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: As `score`, for classes, or if there are less than 2 bins.
    """
    if bins < 2:
        raise ValueError(f"bins must be at least 2, given {bins}")
    values = pit(prediction, y, seed=seed).reshape(-1)
    axes = axes_or_new(ax)
    low, high = (bins / len(values) * count for count in binom.interval(0.95, len(values), 1.0 / bins))
    axes.hist(
        values,
        np.linspace(0.0, 1.0, bins + 1).tolist(),
        density=True,
        color=BLUE,
        alpha=0.6,
        edgecolor="white",
        lw=0.6,
        label=f"observed (n = {len(values)})",
    )
    axes.axhspan(low, high, color=GRAY, alpha=0.25, lw=0, label="95% band if calibrated", zorder=2)
    axes.axhline(1.0, color="black", lw=0.8, ls="--", zorder=2.5)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.25 * max(high, axes.dataLim.ymax))
    axes.set_xlabel("predicted probability of a smaller value (PIT)")
    axes.set_ylabel("density")
    axes.set_title(f"calibration error of the quantiles {quantile_calibration_error(values):.3f}", fontsize=10)
    axes.legend(fontsize=8, framealpha=0.8, edgecolor="none", loc="upper left", ncols=2)
    return figure_of(axes)


def _half_widths(prediction: Prediction) -> list[np.ndarray]:
    ends = [prediction.interval(level) for level in _LEVELS]
    return [to_numpy(high - low) / 2.0 for low, high in ends]


def _constant_half_widths(constant: Prediction, output: int) -> list[float]:
    """The mean over data, though all should be alike."""
    return [float(_of_output(half, output).mean()) for half in _half_widths(constant)]


def _of_output(values: np.ndarray, output: int) -> np.ndarray:
    """One target of each datum, [N], of values [N, ...]."""
    return values.reshape(len(values), -1)[:, output]

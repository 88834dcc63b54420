"""The figure of a toy regression: the predictive mean and its bands over one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import norm
from torch import Tensor

from bnnzoo.evaluation.style import BLUE, VERMILION, axes_or_new, figure_of
from bnnzoo.prediction import Prediction


def plot_band(
    prediction: Prediction,
    x: Any,
    *,
    data: Any = None,
    truth: ArrayLike | Tensor | None = None,
    levels: Sequence[float] = (0.5, 0.95),
    deviations: Sequence[float] = (),
    epistemic: bool = False,
    constant: Prediction | None = None,
    labels: tuple[str, str] = ("x", "y"),
    color: str = BLUE,
    ax: Axes | None = None,
) -> Figure:
    """What is predicted along one input: the mean, its bands, and what was known.

    The widest band is the lightest. All chains are one mixture; give `prediction.chain(0)` for one of them.

    Args:
        prediction: A regression or counts with one target, on a grid of inputs.
        x: The grid, [N] or [N, 1], in any order.
        data: The observations, dots: a `Dataset` or a pair of inputs, [M] or [M, 1], and targets [M].
        truth: True values of the targets' mean on the grid, [N]: a dashed line.
        levels: Probabilities of central intervals of the predictive distribution, in (0, 1), one band each.
        deviations: Bands of the mean ± so many standard deviations, positive, in the place of `levels`.
        epistemic: Whether to mark, by dotted lines, what the widest band is without the noise: that of a Gaussian with
            the variance of the conditional mean over draws.
        constant: Another prediction on the same grid, of which dash-dotted lines show the edges of the widest band (its
            mean ± as many of its standard deviations): what `ConstantUncertainty.predict` says, as in the MCBN paper's
            Figure 1.
        labels: Names, and units, of input and target for the axes.
        color: Of mean and bands.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: Classes, several targets, a grid or truth of another length, a level outside (0, 1), a deviation
            that is not positive, or no band at all.
    """
    grid = _column("x", x)
    for each in (prediction,) if constant is None else (prediction, constant):
        _check(each, levels, deviations)
        if len(grid) != len(each):
            raise ValueError(f"x has {len(grid)} inputs, the prediction has {len(each)}")
    mean = _numbers(prediction.mean)
    order = np.argsort(grid, kind="stable")
    ax = axes_or_new(ax, (5.0, 3.6))

    def curve(values: np.ndarray, style: str, label: str | None, shade: str, width: float) -> None:
        ax.plot(grid[order], values[order], style, color=shade, lw=width, label=label)

    if deviations:
        std = _numbers(prediction.std)
        bands = {f"mean ± {count:g}σ": (mean - count * std, mean + count * std) for count in sorted(deviations)}
        widest = max(deviations)
    else:
        ends = {level: prediction.interval(level) for level in sorted(levels)}
        bands = {f"{100 * level:g}% interval": (_numbers(a), _numbers(b)) for level, (a, b) in ends.items()}
        widest = float(norm.ppf((1 + max(levels)) / 2))
    for number, (label, (low, high)) in enumerate(reversed(bands.items())):
        shade: dict[str, Any] = {"color": color, "alpha": 0.18 + 0.12 * number, "lw": 0}
        ax.fill_between(grid[order], low[order], high[order], label=label, **shade)
    if epistemic:
        spread = widest * np.sqrt(_numbers(prediction.epistemic))
        curve(mean - spread, ":", "without the noise", color, 1.2)
        curve(mean + spread, ":", None, color, 1.2)
    if constant is not None:
        center, spread = _numbers(constant.mean), widest * _numbers(constant.std)
        curve(center - spread, "-.", "constant uncertainty", "black", 0.9)
        curve(center + spread, "-.", None, "black", 0.9)
    curve(mean, "-", "predictive mean", color, 1.5)
    if truth is not None:
        values = _column("truth", truth)
        if len(values) != len(grid):
            raise ValueError(f"truth has {len(values)} values, x has {len(grid)}")
        curve(values, "--", "truth", VERMILION, 1.2)
    if data is not None:
        inputs, targets = (_column(name, part) for name, part in zip(("data's x", "data's y"), data, strict=True))
        ax.plot(inputs, targets, ".", color="black", ms=4, label="data", zorder=3)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_xlim(grid.min(), grid.max())
    return figure_of(ax)


def _check(prediction: Prediction, levels: Sequence[float], deviations: Sequence[float]) -> None:
    if prediction.task == "classification":
        raise ValueError("plot_band draws numbers; of class probabilities draw plot_predictions")
    if len(prediction.shape) != 3:
        raise ValueError(f"plot_band draws one target; the prediction has {list(prediction.shape[3:])} for each input")
    if not deviations and not levels:
        raise ValueError("plot_band needs at least one of levels and deviations")
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"levels must be in (0, 1), given {level}")
    for value in deviations:
        if not value > 0:
            raise ValueError(f"deviations must be positive, given {value}")


def _column(name: str, values: Any) -> np.ndarray:
    """One number a row, [N], from [N] or [N, 1]."""
    array = _numbers(values) if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        raise ValueError(f"plot_band draws one input: {name} must be [N] or [N, 1], given shape {list(array.shape)}")
    return array


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)

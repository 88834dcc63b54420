"""Figures of a fit: loss, predictions against observations, calibration.

All are `matplotlib.figure.Figure` objects made without pyplot, in the look of `bnnzoo.evaluation.style`. Save one with
`figure.savefig(path)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bnnzoo.evaluation.metrics import LEVEL, as_targets, class_probabilities, pit, to_numpy
from bnnzoo.evaluation.scores import BINS, calibration_error, confidence_bins, entropy
from bnnzoo.evaluation.style import BLUE, GRAY, PALETTE, VERMILION, axes_or_new, figure_of
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

_MAX_POINTS = 400  # more error bars than this are a smear


def plot_predictions(
    prediction: Prediction,
    y: Any,
    *,
    target: str | None = None,
    output: int = 0,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """What was predicted for what was observed.

    Regression and counts: the predictive mean with its central 95% interval against the observed target; targets
    outside their interval are marked. Of more than 400 data a random 400 are shown, the title counts all.
    Classification: histograms of the predictive entropy where the prediction was right and where it was wrong; a
    network that knows what it does not know is uncertain where it is wrong.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, as for `score`.
        target: Name and unit of the target for the axes, such as `"strength (MPa)"`.
        output: Which target, of several a datum (regression and counts).
        seed: Chooses the data shown.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: As `score`; `output` is not a target's index.
    """
    axes = axes_or_new(ax)
    if prediction.task == "classification":
        _draw_entropy(axes, prediction, y)
    else:
        _draw_predictions(axes, prediction, y, target or "target", output, seed)
    return figure_of(axes)


def plot_calibration(prediction: Prediction, y: Any, *, seed: int = 0, ax: Axes | None = None) -> Figure:
    """Whether the predicted probabilities come true.

    Regression and counts: the fraction of targets below each predicted quantile (the distribution of the probability
    integral transform); on the diagonal if calibrated, with the 95% band in which a calibrated prediction's points
    fall. Classification: reliability diagram, the accuracy within 15 bins of confidence, with 95% intervals.

    Args:
        prediction: What `Posterior.predict` returned.
        y: The targets, as for `score`.
        seed: Fixes the predictive draws.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: As `score`.
    """
    axes = axes_or_new(ax)
    if prediction.task == "classification":
        _draw_reliability(axes, prediction, y)
    else:
        _draw_quantiles(axes, pit(prediction, y, seed=seed))
    return figure_of(axes)


def plot_history(posterior: Posterior, *, ax: Axes | None = None) -> Figure:
    """The loss of each chain by epoch, and its validation score, dashed, where there is one.

    The first epochs, whose loss is often many times the rest's, may leave the top of the axis.

    Args:
        posterior: A fitted posterior with a history.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure.
    """
    axes = axes_or_new(ax)
    _draw_history(axes, {name: np.atleast_2d(np.asarray(loss)) for name, loss in posterior.history.items()})
    return figure_of(axes)


def plot_fit(posterior: Posterior, prediction: Prediction, y: Any, *, target: str | None = None) -> Figure:
    """Three panels: the loss, predictions against observations, and calibration.

    Args:
        posterior: A fitted posterior.
        prediction: Its prediction for test data.
        y: The test data's targets, as for `score`.
        target: Name and unit of the target for the axes.

    Returns:
        A figure of 12 by 4 inches.

    Raises:
        ValueError: As `score`.
    """
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plot_history(posterior, ax=left)
    plot_predictions(prediction, y, target=target, ax=middle)
    plot_calibration(prediction, y, ax=right)
    return figure


def _draw_history(ax: Axes, history: dict[str, np.ndarray]) -> None:
    ax.set_title("training", fontsize=10)
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss (sum over the data, nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    loss, validation = history.get("loss"), history.get("validation")
    if loss is None or not np.isfinite(loss).any():
        ax.text(0.5, 0.5, "no training history", transform=ax.transAxes, ha="center", color=GRAY)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    lines = _draw_chains(ax, loss, "-")
    labels = [f"chain {chain}" for chain in range(len(lines))] if 1 < len(lines) <= len(PALETTE) else []
    if validation is not None and np.isfinite(validation).any():
        right = ax.twinx()
        right.spines[["top", "left"]].set_visible(False)
        right.tick_params(labelsize=9)
        right.set_ylabel("dashed: validation (-log p a datum, nats)")
        _draw_chains(right, validation, "--")
    if labels:
        ax.legend(lines, labels, fontsize=8, frameon=False)


def _draw_chains(ax: Axes, curves: np.ndarray, style: str) -> list[Any]:
    """One line a chain; the axis spans what comes after the first twentieth of the epochs."""
    epochs = np.arange(1, curves.shape[1] + 1)
    marker = "o" if len(epochs) == 1 else None
    if marker:
        ax.set_xlim(0, 2)
    lines = []
    for chain, values in enumerate(curves):
        color = PALETTE[chain % len(PALETTE)]
        lines += ax.plot(epochs, values, style, color=color, lw=1.0, alpha=0.9, marker=marker, ms=4)
    finite = curves[np.isfinite(curves)]
    settled = curves[:, curves.shape[1] // 20 :]
    settled = settled[np.isfinite(settled)]
    if settled.size and settled.max() > finite.min():
        margin = 0.05 * (settled.max() - finite.min())
        ax.set_ylim(finite.min() - margin, settled.max() + margin)
    return lines


def _draw_predictions(ax: Axes, prediction: Prediction, y: Any, target: str, output: int, seed: int) -> None:
    observed = to_numpy(as_targets(prediction, y))
    low, high = (to_numpy(bound) for bound in prediction.interval(LEVEL))
    mean = to_numpy(prediction.mean)
    if observed.ndim > 1:
        if not 0 <= output < observed.shape[1]:
            raise ValueError(f"output must be 0 to {observed.shape[1] - 1}, given {output}")
        observed, low, high, mean = (values[:, output] for values in (observed, low, high, mean))
        target = f"{target}, output {output}"
    inside = (low <= observed) & (observed <= high)
    rows = np.arange(len(observed))
    if len(rows) > _MAX_POINTS:
        rows = np.random.default_rng(seed).choice(rows, _MAX_POINTS, replace=False)
    groups = ((inside, BLUE, "o", "interval covers"), (~inside, VERMILION, "X", "interval misses"))
    for chosen, color, marker, label in groups:
        at = rows[chosen[rows]]
        ax.vlines(observed[at], low[at], high[at], color=color, lw=0.8, alpha=0.45)
        ax.plot(observed[at], mean[at], marker, color=color, ms=4, mew=0.4, mec="white", label=label)
    ends = [min(observed.min(), mean.min()), max(observed.max(), mean.max())]
    ax.plot(ends, ends, "--", color="black", lw=0.8, zorder=1)
    ax.set_xlabel(f"observed {target}")
    ax.set_ylabel(f"predicted {target}")
    shown = f"; {len(rows)} shown" if len(rows) < len(inside) else ""
    ax.set_title(f"95% intervals cover {inside.sum()} of {len(inside)} ({inside.mean():.0%}){shown}", fontsize=10)
    ax.legend(fontsize=8, frameon=False, loc="upper left")


def _draw_entropy(ax: Axes, prediction: Prediction, y: Any) -> None:
    labels = to_numpy(as_targets(prediction, y)).reshape(-1)
    probs = class_probabilities(prediction)
    classes = probs.shape[-1]
    probs = probs.reshape(-1, classes)
    uncertainty = entropy(probs)
    correct = probs.argmax(-1) == labels
    edges = np.linspace(0.0, max(uncertainty.max(), 1e-3), 25).tolist()
    groups = ((correct, BLUE, None, "right"), (~correct, VERMILION, "////", "wrong"))
    for chosen, color, hatch, label in groups:
        if chosen.any():
            weights = np.full(chosen.sum(), 1.0 / chosen.sum())
            style = {"facecolor": color, "alpha": 0.55} if hatch is None else {"facecolor": "none", "hatch": hatch}
            ax.hist(
                uncertainty[chosen], edges, weights=weights, edgecolor=color, label=f"{label} ({chosen.sum()})", **style
            )
    ax.set_xlabel(f"predictive entropy (nats; uniform: {np.log(classes):.2f})")
    ax.set_ylabel("share of right, of wrong predictions")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_title(f"{correct.mean():.1%} of {len(correct)} right", fontsize=10)
    ax.legend(fontsize=8, frameon=False)


def _draw_quantiles(ax: Axes, values: np.ndarray) -> None:
    values = np.sort(values.reshape(-1))
    count = len(values)
    levels = np.linspace(0.0, 1.0, 101)
    # Each point alone: a calibrated prediction's fraction below level p is binomial.
    spread = 1.96 * np.sqrt(levels * (1.0 - levels) / count)
    ax.fill_between(
        levels, levels - spread, levels + spread, color=GRAY, alpha=0.25, lw=0, label="95% band if calibrated"
    )
    ax.plot([0, 1], [0, 1], "--", color="black", lw=0.8)
    ax.step(
        np.concatenate([[0.0], values, [1.0]]),
        np.concatenate([[0.0], np.arange(1, count + 1) / count, [1.0]]),
        where="post",
        color=BLUE,
        lw=1.4,
        label=f"observed (n = {count})",
    )
    ax.set_xlabel("predicted probability of a smaller value")
    ax.set_ylabel("observed fraction")
    ax.set_title("calibration of the quantiles", fontsize=10)
    _unit_square(ax)
    ax.legend(fontsize=8, frameon=False, loc="upper left")


def _draw_reliability(ax: Axes, prediction: Prediction, y: Any) -> None:
    labels = to_numpy(as_targets(prediction, y)).reshape(-1)
    probs = class_probabilities(prediction)
    probs = probs.reshape(-1, probs.shape[-1])
    confidence, correct = probs.max(-1), (probs.argmax(-1) == labels).astype(float)
    bins = confidence_bins(confidence)
    counts = np.bincount(bins, minlength=BINS)
    used = counts > 0
    mean_confidence = np.bincount(bins, confidence, BINS)[used] / counts[used]
    accuracy = np.bincount(bins, correct, BINS)[used] / counts[used]
    low, high = _wilson(accuracy, counts[used])
    share = counts / counts.sum()
    ax.bar((np.arange(BINS) + 0.5) / BINS, share, 1.0 / BINS, color=GRAY, alpha=0.3, lw=0, label="share of predictions")
    ax.plot([0, 1], [0, 1], "--", color="black", lw=0.8)
    ax.errorbar(
        mean_confidence,
        accuracy,
        [accuracy - low, high - accuracy],
        fmt="o-",
        color=BLUE,
        ms=4.5,
        lw=1.2,
        elinewidth=0.9,
        capsize=2,
        label="accuracy, 95% interval",
        clip_on=False,
    )
    ax.set_xlabel("confidence (probability of the predicted class)")
    ax.set_ylabel("accuracy")
    ax.set_title(f"reliability, calibration error {calibration_error(confidence, correct):.3f}", fontsize=10)
    _unit_square(ax)
    ax.legend(fontsize=8, framealpha=0.8, edgecolor="none", loc="best")


def _wilson(fraction: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a binomial fraction; sensible at 0 and 1 too."""
    center = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return np.minimum(center - half, fraction), np.maximum(center + half, fraction)


def _unit_square(ax: Axes) -> None:
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.0)
    ax.set_aspect("equal")

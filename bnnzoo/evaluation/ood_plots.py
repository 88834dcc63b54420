"""Figures of uncertainty out of distribution: distributions of the entropy by method, inside beside outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bnnzoo.evaluation.ood import ood_scores, uncertainties
from bnnzoo.evaluation.style import BLUE, PALETTE, STYLES, VERMILION, axes_or_new, figure_of, styled
from bnnzoo.prediction import Prediction

_BINS = 30

_LABELS = {
    "entropy": "predictive entropy (nats)",
    "mutual_information": "mutual information of class and weights (nats)",
    "max_probability": "1 - probability of the most probable class",
    "variance": "predictive variance (squared units of the target)",
    "epistemic": "epistemic variance (squared units of the target)",
}


def plot_entropy_cdf(
    methods: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Empirical distribution function of the predictive entropy, one curve a method (MNF paper, Figures 2 and 3).

    For inputs of no known class a curve is the better the farther it is to the lower right: no prediction is sure. For
    inputs like those trained on, upper left. Entropies are in nats, up to log K for K equally probable classes, which
    is marked. Methods are told apart by color and line style.

        plot_entropy_cdf({"Map": map.predict(letters), "MNF": mnf.predict(letters)})
        plot_entropy_cdf({"Map": {"digits": map.predict(digits), "letters": map.predict(letters)}, ...})

    Args:
        methods: By name a prediction of class labels (its chains are pooled) or entropies in nats, [N] numbers ≥ 0. Or
            by name a mapping of such, one panel for each of its keys, which all methods share.
        num_classes: K, to mark log K where only entropies are given; default that of the predictions.
        ax: Where to draw, of one panel only. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no method, their panels or numbers of classes differ, a prediction is not of class
            labels, entropies are negative, not finite or none, or `ax` is given for several panels.
    """
    if not methods:
        raise ValueError("there is no method to plot")
    nested = {name: value if isinstance(value, Mapping) else {"": value} for name, value in methods.items()}
    panels = list(next(iter(nested.values())))
    for name, value in nested.items():
        if list(value) != panels or not panels:
            raise ValueError(f"method {name!r} has panels {list(value)}, and the first method {panels}")
    if ax is not None and len(panels) > 1:
        raise ValueError(f"ax is one panel, and {len(panels)} are to be drawn: {', '.join(panels)}")
    entropies = {name: {p: _entropies(name, value[p]) for p in panels} for name, value in nested.items()}
    every = [value for each in nested.values() for value in each.values()]
    sizes = {value.probs.shape[-1] for value in every if isinstance(value, Prediction)}
    sizes |= set() if num_classes is None else {num_classes}
    if len(sizes) > 1:
        raise ValueError(f"numbers of classes differ: {sorted(sizes)}")
    most = math.log(sizes.pop()) if sizes else None
    if len(panels) == 1:
        axes = axes_or_new(ax, (6.2, 4.2))
        _draw_curves(axes, {name: each[panels[0]] for name, each in entropies.items()}, most)
        axes.set_title(panels[0], fontsize=10)
        _legend(axes)
        return figure_of(axes)
    figure = Figure(figsize=(4.0 * len(panels) + 2.0, 4.2), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True)
    for axes, panel in zip(row, panels, strict=True):
        _draw_curves(styled(axes), {name: each[panel] for name, each in entropies.items()}, most)
        axes.set_title(panel, fontsize=10)
        axes.label_outer()
    _legend(row[-1])
    return figure


def plot_ood(
    inside: Prediction,
    outside: Prediction,
    *,
    measure: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Histograms of an uncertainty, of inside and of outside inputs, and how well it tells them apart.

    All chains are pooled.

    Args:
        inside: Of inputs like those trained on.
        outside: Of other inputs, by the same posterior.
        measure: One of `uncertainties`; default the first, `"entropy"` or `"variance"`.
        ax: Where to draw. Default: a new figure.

    Returns:
        The figure; its title has the AUROC with its standard error, and the FPR at 95% TPR.

    Raises:
        ValueError: As `ood_scores`; there is no such measure.
    """
    scores = ood_scores(inside.pooled, outside.pooled)
    low, high = uncertainties(inside), uncertainties(outside)
    measure = next(iter(low)) if measure is None else measure
    if measure not in low:
        raise ValueError(f"measure must be one of {', '.join(low)}, not {measure!r}")
    axes = axes_or_new(ax)
    values = np.concatenate([low[measure], high[measure]])
    # Variances spread over orders of magnitude.
    log = inside.task != "classification" and bool((values > 0).all())
    ends = values.min(), max(values.max(), values.min() + 1e-12)
    edges = np.geomspace(*ends, _BINS + 1) if log else np.linspace(*ends, _BINS + 1)
    groups = ((low[measure], BLUE, None, "inside"), (high[measure], VERMILION, "////", "outside"))
    for group, color, hatch, label in groups:
        style = {"facecolor": color, "alpha": 0.55} if hatch is None else {"facecolor": "none", "hatch": hatch}
        weights = np.full(len(group), 1.0 / len(group))
        axes.hist(group, edges.tolist(), weights=weights, edgecolor=color, label=f"{label} ({len(group)})", **style)
    if log:
        axes.set_xscale("log")
    found = scores.isel(chain=0).sel(measure=measure)
    axes.set_title(
        f"AUROC {float(found.auroc):.3f} ± {float(found.auroc_se):.3f}, FPR at 95% TPR {float(found.fpr_95):.0%}",
        fontsize=10,
    )
    axes.set_xlabel(_LABELS[measure])
    axes.set_ylabel("share of inside, of outside inputs")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(fontsize=8, frameon=False)
    return figure_of(axes)


def _entropies(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Prediction):
        if value.task != "classification":
            raise ValueError(f"method {name!r}: entropies are of class labels, not of {value!r}")
        return uncertainties(value)["entropy"]
    values = np.asarray(value, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"method {name!r}: entropies must be one or more finite numbers >= 0, of shape [N]")
    return values


def _draw_curves(ax: Axes, entropies: Mapping[str, np.ndarray], most: float | None) -> None:
    for number, (name, values) in enumerate(entropies.items()):
        again, place = divmod(number, len(PALETTE))
        style = STYLES[(place + again) % len(STYLES)]  # the eighth curve has the first one's color, not its style
        ax.ecdf(values, color=PALETTE[place], ls=style, lw=1.5, label=name)
    right = max(values.max() for values in entropies.values()) if most is None else most
    if most is not None:
        ax.axvline(most, color="black", lw=0.8, ls=":")
        ax.annotate(
            f"log {round(math.exp(most))}", (most, 0.0), (-3, 4), textcoords="offset points", fontsize=8, ha="right"
        )
    ax.set_xlim(-0.02 * right, 1.04 * right)
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel(_LABELS["entropy"])
    ax.set_ylabel("share of inputs of at most this entropy")


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)

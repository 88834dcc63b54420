"""The forest plot of a comparison: means and standard errors of methods on data sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bnnzoo.compare.results import FOREST, over_splits
from bnnzoo.evaluation.style import GRAY, MARKERS, PALETTE, styled

_ROW, _GAP = 0.17, 0.75  # inches of a method's row; rows between data sets


def plot_forest(results: xr.Dataset, scores: Sequence[str] | None = None) -> Figure:
    """Draw the methods' scores on each data set, with one standard error to either side; a panel a score.

    Scores of different data sets have different units: within each data set they are relative to its best method, as
    factors of it for scores that are errors (lower is better, 1 the best), as differences for others.

    Args:
        results: What `compare` returned.
        scores: Names of variables; default CRPS, log likelihood (at its own noise) and RMSE, or accuracy,
            log likelihood, Brier score and ECE.

    Returns:
        The figure.

    Raises:
        ValueError: If a score is unknown, or no cell is finished.
    """
    names = list(scores or (name for name in FOREST[results.attrs["task"]] if name in results))
    unknown = [name for name in names if name not in results or not {"split", "seed"} <= set(results[name].dims)]
    if unknown or not names:
        raise ValueError(f"there is no score {unknown[0]!r} in the results" if unknown else "no cell is finished")
    sets, methods = results["data"].values, results["method"].values
    height = len(methods) + _GAP
    figure = Figure(figsize=(2.1 + 2.6 * len(names), 1.1 + _ROW * height * len(sets)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
        mean, error = over_splits(results[name])
        lower = results[name].attrs.get("better") == "lower" and bool((mean > 0).where(mean.notnull(), True).all())
        best = mean.min("method") if results[name].attrs.get("better") == "lower" else mean.max("method")
        shown, bars = (mean / best, error / best) if lower else (mean - best, error)
        styled(ax)
        ax.axvline(1.0 if lower else 0.0, color=GRAY, linewidth=0.8, linestyle="--", zorder=0)
        for number, method in enumerate(methods):
            rows = np.arange(len(sets)) * height + number
            ax.errorbar(
                shown.sel({"method": method}).values,
                rows,
                xerr=np.nan_to_num(bars.sel({"method": method}).values),
                fmt=MARKERS[number % len(MARKERS)],
                color=PALETTE[number % len(PALETTE)],
                markersize=4.5,
                elinewidth=1.1,
                capsize=2,
                label=str(results["label"].sel({"method": method}).item()),
            )
        for number in range(1, len(sets)):
            ax.axhline(number * height - (1 + _GAP) / 2, color="#E6E6E6", linewidth=0.8, zorder=0)
        ax.set_xlabel(_label(results[name], lower))
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
    panels[0].set_yticks(np.arange(len(sets)) * height + (len(methods) - 1) / 2, [str(each) for each in sets])
    panels[0].set_ylim(len(sets) * height - _GAP / 2 - 0.3, -0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(methods), 5), frameon=False, fontsize=9)
    return figure


def _label(scores: xr.DataArray, relative: bool) -> str:
    title, unit = str(scores.attrs.get("long_name", scores.name)), scores.attrs.get("units", "1")
    if relative:
        return f"{title},\nfactor of the best"
    return f"{title},\nless the best's" + (f" ({unit})" if unit not in ("1", "target") else "")

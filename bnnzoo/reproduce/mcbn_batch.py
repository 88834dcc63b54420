"""Sensitivity of MCBN to the batch size and to the number of draws (Teye et al. 2018, Tables 8 to 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from bnnzoo.compare import METHODS, Method, Protocol, over_splits
from bnnzoo.reproduce import mcbn_paper as paper
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.mcbn_uci import SMOKE, Comparison, departures, joined

WEIGHT_DECAY = 1e-5
"""Of all fits: the paper keeps the other hyperparameters fixed, and does not say at what."""

SETS = ("boston", "concrete", "energy", "wine", "yacht")
"""At the scale `cpu`; at `paper` all of the paper's."""

Curves = dict[str, dict[int, tuple[float, float]]]
"""Mean and standard error by data set and batch size or number of draws."""


def _mcbn(name: str, batch_size: int) -> Method:
    grid = {"weight_decay": (WEIGHT_DECAY,), "batch_size": (batch_size,)}
    return replace(METHODS["mcbn"], name=name, label=name, grid=grid)


def _sets(context: Context) -> Sequence[str]:
    return context.pick(("diabetes",), SETS, paper.SETS)


def _protocol(context: Context, **settings: Any) -> Protocol:
    seeds: dict[str, Any] = {"splits": 3, "seed": context.seed}
    if context.scale == "smoke":
        return replace(SMOKE, seed=context.seed, **settings)
    if context.scale == "paper":
        seeds |= {"epochs": 1000, "lr": 1e-3, "schedule": "constant"}
    return Protocol(**seeds, **settings)


def by_batch_size(context: Context) -> xr.Dataset:
    """One method for each batch size: methods are named by it.

    Args:
        context: Of the entry.
    """
    sizes = context.pick((16, 64), paper.BATCH_SIZES[:6], paper.BATCH_SIZES)
    methods = [_mcbn(str(size), size) for size in sizes]
    parts = []
    for name in _sets(context):
        own = [method for method in methods if _fits(name, method)]
        parts.append(Comparison("mcbn-batch-size", [name], own, _protocol(context)).results(context))
    return joined(parts, "data")


def _fits(name: str, method: Method) -> bool:
    """Whether the paper has a number for the batch size: it has none where a batch is most of the data."""
    row = paper.CRPS_BY_BATCH.get(name)
    return row is None or not math.isnan(row[int(method.name)])


def by_passes(context: Context) -> xr.Dataset:
    """The same fits with more and fewer draws, method by method named by their number.

    Args:
        context: Of the entry.
    """
    found = []
    for passes in context.pick((10, 5), paper.PASSES, paper.PASSES):
        name, protocol = f"mcbn-passes-{passes}", _protocol(context, draws=passes)
        part = Comparison(name, _sets(context), [_mcbn("mcbn", 32)], protocol).results(context)
        found.append(part.assign_coords(method=[str(passes)], label=("method", [str(passes)])))
    return joined(found, "method")


def curves(found: xr.Dataset, score: str) -> Curves:
    """Means and standard errors of normalized scores, in percent.

    Args:
        found: Of `by_batch_size` or `by_passes`.
        score: `"crps"` or `"pll"`.
    """
    mean, error = over_splits(found[f"{score}_normalized"])
    rows: Curves = {}
    for name in found["data"].values.tolist():
        cells = zip(
            found["method"].values, mean.sel({"data": name}).values, error.sel({"data": name}).values, strict=True
        )
        rows[name] = {int(method): (float(m), float(e)) for method, m, e in cells if np.isfinite(m)}
    return rows


def tables(title: str, what: str, ours: Curves, theirs: Mapping[str, Mapping[int, float]]) -> Table:
    """Ours above the paper's, a pair of rows for each data set.

    Args:
        title: Of the table.
        what: What the columns are.
        ours: Of `curves`.
        theirs: The printed means.
    """
    columns = sorted({column for row in ours.values() for column in row})
    rows = []
    for name, row in ours.items():
        cells = [f"{row[c][0]:.1f} ± {row[c][1]:.1f}" if c in row else "-" for c in columns]
        printed = [theirs.get(name, {}).get(c, math.nan) for c in columns]
        rows.append([name, *cells])
        rows.append(["paper", *("-" if math.isnan(value) else f"{value:.1f}" for value in printed)])
    return Table(title, [what, *map(str, columns)], rows)


def _run(
    title: str,
    what: str,
    results: Callable[[Context], xr.Dataset],
    score: str,
    theirs: Mapping[str, Mapping[int, float]],
    context: Context,
) -> Result:
    found = results(context)
    ours = curves(found, score)
    notes = [
        f"Ours: mean over {found.sizes['split']} splits and {found.sizes['seed']} seeds ± its standard error by the "
        "splits' means; the paper prints none.",
        f"All fits: weight decay {WEIGHT_DECAY:g}; the noise of each batch size by cross-validation. The paper keeps "
        "other hyperparameters at values that it does not print.",
    ]
    if context.scale == "cpu":
        notes.append(
            "1000 steps or some more (whole epochs) with a learning rate of 0.01 that falls along a cosine from epoch "
            "to epoch; five of the eight data sets."
        )
    notes += departures(found)
    values = {
        name: {str(k): {"mean": m, "standard_error": e} for k, (m, e) in row.items()} for name, row in ours.items()
    }
    return Result([tables(title, what, ours, theirs)], notes=notes, values=values)


def _entry(number: int, score: str, by: str, theirs: Mapping[str, Mapping[int, float]], minutes: float) -> Entry:
    what, results = {"batch size": ("batch size", by_batch_size), "passes": ("passes", by_passes)}[by]
    title = f"Normalized {score.upper()} of MCBN (%, higher is better) by {what}"
    run = partial(_run, title, what, results, score, theirs)
    besides = tuple(name for name in paper.SETS if name not in SETS)
    about = f"Regressions: normalized {score.upper()} of MCBN by {what}"
    return Entry(f"mcbn/table-{number}", about, f"{paper.PAPER}, Table {number}", run, SETS, minutes, besides)


ENTRIES = (
    _entry(8, "crps", "batch size", paper.CRPS_BY_BATCH, 20.0),
    _entry(9, "pll", "batch size", paper.PLL_BY_BATCH, 20.0),
    _entry(10, "crps", "passes", paper.CRPS_BY_PASSES, 15.0),
    _entry(11, "pll", "passes", paper.PLL_BY_PASSES, 15.0),
)

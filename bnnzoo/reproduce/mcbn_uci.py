"""Uncertainty of regressions: MCBN, MC dropout and MNF on eight data sets (Teye et al. 2018, Tables 1 and 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from bnnzoo import data as datasets
from bnnzoo.compare import (
    METHODS,
    PAPER_METHODS,
    Method,
    Protocol,
    compare,
    load_results,
    over_splits,
    significance,
    stars,
)
from bnnzoo.compare.folder import CELLS, RESULT, Folder, cell_name
from bnnzoo.reproduce import mcbn_paper as paper
from bnnzoo.reproduce.entry import Context, Entry, Result, Table

LABELS = {"mcbn": "MCBN", "dropout": "MCDO", "mnf": "MNF", "bn": "BN", "do": "DO"}
"""The paper's names; BN and DO are the networks of MCBN and MCDO without draws."""

FAR = 2.0
"""Standard errors beyond which a difference is marked."""

SMOKE = Protocol(splits=2, seeds=2, folds=2, steps=5, draws=10, cv_draws=5, hidden=(10,))
"""Of seconds."""


def z_score(ours: float, error: float, theirs: float, their_error: float, digits: int = 2) -> float:
    """The difference of two means in standard errors of it; NaN where ours has none.

    Args:
        ours: Our mean.
        error: Its standard error.
        theirs: The printed mean.
        their_error: Its printed standard error.
        digits: Decimals printed: rounding is an error, too, uniform over the last one.
    """
    rounding = 10.0**-digits / math.sqrt(12.0)
    spread = math.hypot(error, their_error, rounding)
    return (ours - theirs) / spread


@dataclass(frozen=True)
class Comparison:
    """A part of the comparison: data sets that share a protocol.

    Attributes:
        name: Of its folder among the fits that several entries share.
        data: Names of data sets.
        methods: What is compared.
        protocol: How.
    """

    name: str
    data: Sequence[str]
    methods: Sequence[Method]
    protocol: Protocol

    def results(self, context: Context) -> xr.Dataset:
        """All of it; what is not finished is computed. Cells that are finished are taken as they are, by their names.

        Args:
            context: Of the entry.

        Returns:
            As of `bnnzoo.compare.compare`, with `departures` [data, method], the settings in which a cell that was
            there differs from this comparison, in words; "" if in none.
        """
        path = context.fits / self.name
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in self.data:
            missing = [m.name for m in self.methods if not (path / CELLS / cell_name(name, m.name) / RESULT).exists()]
            groups.setdefault(tuple(missing), []).append(name)
        for names, sets in groups.items():
            if names:
                chosen = [method for method in self.methods if method.name in names]
                progress = False if context.quiet else None
                compare(sets, chosen, self.protocol, out=path, workers=context.workers, progress=progress)
        found = load_results(path).sel({"data": list(self.data), "method": [method.name for method in self.methods]})
        folder, loaded = Folder(path), [datasets.load(name) for name in self.data]
        differing = [["; ".join(folder.departures(self.protocol, each, m)) for m in self.methods] for each in loaded]
        return found.assign(departures=(("data", "method"), np.array(differing, object)))


def departures(found: xr.Dataset) -> list[str]:
    """A note for all cells that were finished earlier, in the same other settings.

    Args:
        found: Of `Comparison.results`, one or several joined.
    """
    cells: dict[str, list[str]] = {}
    for name, row in zip(found["data"].values, found["departures"].transpose("data", "method").values, strict=True):
        for method, differing in zip(found["method"].values, row, strict=True):
            if isinstance(differing, str) and differing:  # NaN where a joined part has no such cell
                cells.setdefault(differing, []).append(f"{name} {LABELS.get(method, method)}")
    return [
        f"Finished earlier, in other settings than this command's, which other notes name: {', '.join(names)}: "
        f"{differing}."
        for differing, names in cells.items()
    ]


def comparisons(context: Context) -> list[Comparison]:
    """What Tables 4 to 7 are made of.

    Args:
        context: Of the entry.
    """
    if context.scale == "paper":
        common: dict[str, Any] = {"lr": 1e-3, "schedule": "constant", "seed": context.seed}
        epochs = {"epochs": (100, 200, 500, 1000, 2000)}
        methods = [replace(each, grid={**each.grid, **epochs}) for each in PAPER_METHODS.values()]
        others = [name for name in paper.SETS if name != "protein"]
        return [
            Comparison("mcbn-uci", others, methods, Protocol(**common)),
            Comparison("mcbn-uci-protein", ["protein"], methods, Protocol(hidden=(100, 100), **common)),
        ]
    methods = [METHODS[name] for name in paper.METHODS.split()]
    if context.scale == "smoke":
        small = [replace(each, grid={n: v[:1] for n, v in each.grid.items()}) for each in methods]
        return [Comparison("mcbn-uci", ["diabetes"], small, replace(SMOKE, seed=context.seed))]
    return [Comparison("mcbn-uci", paper.SETS, methods, Protocol(seed=context.seed))]


def results(context: Context) -> xr.Dataset:
    """All scores, as `bnnzoo.compare.compare` returns them.

    Args:
        context: Of the entry.
    """
    parts = [each.results(context) for each in comparisons(context)]
    return joined(parts, "data")


def joined(parts: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    """Results of several comparisons as one, along `"data"` or `"method"`.

    Args:
        parts: The results.
        dim: Along what they differ.
    """
    options: dict[str, Any] = {"data_vars": "all", "coords": "minimal", "compat": "override", "join": "outer"}
    return xr.concat(parts, dim, combine_attrs="drop_conflicts", **options)


Cell = tuple[float, float]


def beside(
    caption: str, ours: dict[str, dict[str, Cell]], theirs: paper.Printed, form: str, marks: dict[str, dict[str, str]]
) -> tuple[Table, dict[str, Any], list[str]]:
    """Our means and standard errors beside the printed ones.

    Args:
        caption: Of the table, with units.
        ours: Mean and standard error by data set and column.
        theirs: The printed ones; data sets that it does not have are ours alone.
        form: The numbers' format, `".2f"`.
        marks: What to set after our numbers, by data set and column.

    Returns:
        The table, its numbers with the z-scores, and which cells differ by more than two standard errors.
    """
    columns = list(next(iter(ours.values())))
    rows, values, far = [], {}, []
    for name, cells in ours.items():
        row, numbers = [name], {}
        for column in columns:
            mean, error = cells[column]
            text = f"{mean:{form}} ± {error:{form}}" if math.isfinite(error) else f"{mean:{form}}"
            row.append(f"{text} {marks.get(name, {}).get(column, '')}".strip() if math.isfinite(mean) else "-")
            found: dict[str, float] = {"mean": mean, "standard_error": error}
            if name in theirs and column in theirs[name]:
                printed, printed_error = theirs[name][column]
                z = z_score(mean, error, printed, printed_error)
                far += [f"{name} {LABELS[column]} ({z:+.1f})"] if abs(z) > FAR else []
                row += [f"{printed:{form}} ± {printed_error:{form}}", _z(z)]
                found |= {"paper": printed, "paper_standard_error": printed_error, "z": z}
            else:
                row += ["-", "-"]
            numbers[column] = found
        rows.append(row)
        values[name] = numbers
    header = ["data", *(title for column in columns for title in (LABELS[column], "paper", "z"))]
    return Table(caption, header, rows), values, far


def _z(z: float) -> str:
    return "-" if math.isnan(z) else f"**{z:+.1f}**" if abs(z) > FAR else f"{z:+.1f}"


def _cells(scores: dict[str, xr.DataArray]) -> dict[str, dict[str, Cell]]:
    """Means and standard errors by data set and column, of scores [data, split, seed] by column."""
    found: dict[str, dict[str, Cell]] = {}
    for column, each in scores.items():
        mean, error = over_splits(each)
        for name in each["data"].values.tolist():
            found.setdefault(name, {})[column] = (float(mean.sel(data=name)), float(error.sel(data=name)))
    return found


def _by_method(found: xr.Dataset, score: str) -> dict[str, xr.DataArray]:
    return {str(name): found[score].sel({"method": name}) for name in found["method"].values}


def _notes(context: Context, found: xr.Dataset, far: Sequence[str], cells: int) -> list[str]:
    notes = [
        "Ours: mean over splits and seeds ± its standard error by the splits' means (the paper's takes its 25 runs for "
        "independent, which may make it too small by up to √5). z: the difference in standard errors of both, with the "
        f"rounding of the printed mean; bold beyond {FAR:g}.",
    ]
    if far:
        notes.append(f"Beyond {FAR:g} standard errors: {len(far)} of {cells}: {', '.join(far)}.")
    if context.scale == "cpu":
        notes.append(
            "Against the paper's protocol (section 4.3): other random splits; 1000 steps or some more (whole epochs) "
            "with a learning rate of 0.01 that falls along a cosine from epoch to epoch (protein's few epochs do not "
            "come near 0; the paper: up to 2000 epochs at 0.001, their number chosen, too); "
            "shorter grids of weight decay, dropout rate and batch size; protein with 50 units a layer, not 100; MNF "
            "without early stopping, the weight of its KL divergence annealed."
        )
    return notes + departures(found)


def _scored(
    context: Context, score: str, title: str, theirs: paper.Printed, form: str, tested: bool = False
) -> tuple[Table, dict[str, Any], list[str], xr.Dataset]:
    found = results(context)
    marks: dict[str, dict[str, str]] = {}
    if tested:
        p = significance(found[score])
        for name in found["data"].values.tolist():
            own = p.sel(data=name)
            marks[name] = {str(m): stars(float(own.sel({"method": m}))) for m in found["method"].values}
    table, values, far = beside(title, _cells(_by_method(found, score)), theirs, form, marks)
    return table, values, far, found


def normalized(score: str, theirs: paper.Printed, context: Context) -> Result:
    """Table 4 or 5: where scores lie between constant and optimal uncertainty.

    Args:
        score: `"crps"` or `"pll"`.
        theirs: What the paper prints.
        context: Of the entry.
    """
    title = (
        f"Normalized {score.upper()} (%; 0: one constant uncertainty, 100: the best for each datum; higher is better)"
    )
    table, values, far, found = _scored(context, f"{score}_normalized", title, theirs, ".2f", tested=True)
    notes = _notes(context, found, far, _counted(values))
    notes.append(
        "Stars: one-sample t-test of our runs against 0: **** below 0.0001, *** 0.001, ** 0.01, * 0.05, else ns."
    )
    return Result([table], notes=notes, values=values)


def raw(context: Context) -> Result:
    """Table 6: the scores themselves."""
    crps, crps_values, far, found = _scored(
        context, "crps_gaussian", "CRPS (units of the target, lower is better)", paper.CRPS, ".2f"
    )
    pll, pll_values, far_pll, _ = _scored(context, "pll", "PLL (nats a datum, higher is better)", paper.PLL, ".2f")
    far = [f"{each} CRPS" for each in far] + [f"{each} PLL" for each in far_pll]
    notes = _notes(context, found, far, _counted(crps_values) + _counted(pll_values))
    return Result([crps, pll], notes=notes, values={"crps": crps_values, "pll": pll_values})


def accuracy(context: Context) -> Result:
    """Table 7: root mean squared errors, and those of the networks without draws."""
    found = results(context)
    drawn, columns = _by_method(found, "rmse"), {}
    # Comparisons finished by earlier versions do not have those of the networks without draws.
    plain = _by_method(found, "rmse_constant") if "rmse_constant" in found else {}
    for name, without in (("mcbn", "bn"), ("dropout", "do"), ("mnf", None)):
        columns[name] = drawn[name]
        if without in LABELS and name in plain:
            columns[without] = plain[name]
    cells = _cells(columns)
    table, values, far = beside("RMSE (units of the target, lower is better)", cells, paper.RMSE, ".2f", {})
    return Result([table], notes=_notes(context, found, far, _counted(values)), values=values)


def _counted(values: dict[str, Any]) -> int:
    return sum("z" in cell for row in values.values() for cell in row.values())


def _entry(number: str, title: str, run: Callable[[Context], Result], also: str = "") -> Entry:
    return Entry(f"mcbn/table-{number}", title, f"{paper.PAPER}, Table {number}{also}", run, paper.SETS, minutes=60.0)


ENTRIES = (
    _entry("4", "Regressions: normalized CRPS", partial(normalized, "crps", paper.CRPS_NORMALIZED), " (and Table 1)"),
    _entry("5", "Regressions: normalized PLL", partial(normalized, "pll", paper.PLL_NORMALIZED), " (and Table 1)"),
    _entry("6", "Regressions: CRPS and PLL", raw),
    _entry("7", "Regressions: RMSE", accuracy),
)

"""What the commands show: tables on the terminal."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bnnzoo import objectives
from bnnzoo.evaluation.metrics import numbers, plus_minus


def scores_table(title: str, scores: Mapping[str, xr.Dataset], unit: str = "") -> Table:
    """A table of scores, one column a model, the best of each row in bold.

    Args:
        title: Above the table.
        scores: {model: scores of a pooled prediction}; the first model's scores are the rows.
        unit: What the scores in the target's units are in.

    Returns:
        The table.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    table.add_column("score")
    for model in scores:
        table.add_column(escape(model), justify="right", no_wrap=True)
    columns = [numbers(each) for each in scores.values()]
    first = next(iter(scores.values()))
    for name in columns[0]:
        about = first[name].attrs
        finite = [column[name][0] for column in columns if math.isfinite(column[name][0])]
        best = None
        if len(columns) > 1 and finite and about["better"] != "none":
            best = max(finite) if about["better"] == "higher" else min(finite)
        units = {"target": unit, "1": ""}.get(about["units"], about["units"])
        label = about["long_name"] + (f" ({units})" if units else "")
        cells = []
        for column in columns:
            value, error = column[name]
            text = plus_minus(value, error)
            cells.append(f"[bold]{text}[/bold]" if value == best else text)
        arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[about["better"]]
        table.add_row(escape(label + arrow), *cells)
    return table


OBJECTIVES: dict[type, str] = {
    objectives.BBAlpha: "BB-α",
    objectives.Predictive: "predictive",
    objectives.Renyi: "Rényi",
    objectives.ImportanceWeighted: "importance-weighted",
}
"""Objectives in words; others by the name of their class."""


def objective(minimized: Any) -> str:
    """An objective in words, with its numbers: `BB-α 0.5, 10 particles`."""
    words = OBJECTIVES.get(type(minimized), type(minimized).__name__)
    if "alpha" in inspect.signature(type(minimized)).parameters:
        words += f" {minimized.alpha:g}"
    if getattr(minimized, "exact", False):
        words += " exact"
    words += f", {minimized.num_particles} particle{'s' if minimized.num_particles > 1 else ''}"
    weight = getattr(minimized, "kl_weight", 1.0)
    if isinstance(weight, objectives.KLAnnealing):
        return f"{words}, KL weight rising to {weight.final:g} until epoch {weight.epochs:g}"
    return words if weight == 1.0 else f"{words}, KL weight {weight:g}"


def facts(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Prints pairs of a name and a value, aligned."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in rows:
        grid.add_row(name, escape(value))
    console.print(grid)


def files(console: Console, written: Mapping[Path, str]) -> None:
    """Prints the files that a command wrote, a line each, for what."""
    for path, purpose in written.items():
        console.print(
            f"wrote [bold]{escape(str(path))}[/bold]  [dim]{escape(purpose)}[/dim]", highlight=False, soft_wrap=True
        )

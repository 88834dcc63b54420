"""What the commands show: tables on the terminal."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bnnzoo import objectives
from bnnzoo.evaluation.metrics import Score

LABELS = {
    "rmse": "RMSE",
    "mae": "MAE",
    "nll": "NLL (nats)",
    "crps": "CRPS",
    "coverage_95": "coverage of 95% intervals",
    "width_95": "width of 95% intervals",
    "accuracy": "accuracy",
    "error": "error",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "entropy": "predictive entropy (nats)",
}
"""Scores as the table words them."""

HIGHER = ("accuracy",)
LOWER = ("rmse", "mae", "nll", "crps", "error", "brier", "ece")
UNITS = ("rmse", "mae", "crps", "width_95")


def number(value: float) -> str:
    """Formats a score with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def scores_table(title: str, scores: Mapping[str, Mapping[str, Score]], unit: str = "") -> Table:
    """A table of scores, one column a model, the best of each row in bold.

    Args:
        title: Above the table.
        scores: {model: {score: value and standard error}}; the first model's scores are the rows.
        unit: What the scores in the target's units are in.

    Returns:
        The table.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    table.add_column("score")
    for model in scores:
        table.add_column(escape(model), justify="right", no_wrap=True)
    for name in next(iter(scores.values())):
        values = {model: rows[name].value for model, rows in scores.items()}
        finite = [value for value in values.values() if math.isfinite(value)]
        best = None
        if len(values) > 1 and finite and name in (*LOWER, *HIGHER):
            best = max(finite) if name in HIGHER else min(finite)
        label = LABELS.get(name, name) + (f" ({unit})" if unit and name in UNITS else "")
        cells = []
        for rows in scores.values():
            value, error = rows[name]
            text = number(value) + (f" ± {number(float(f'{error:.2g}'))}" if math.isfinite(error) else "")
            cells.append(f"[bold]{text}[/bold]" if value == best else text)
        arrow = " ↑" if name in HIGHER else " ↓" if name in LOWER else ""
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

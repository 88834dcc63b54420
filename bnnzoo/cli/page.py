"""`bnnzoo report`: a run on one page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from bnnzoo.cli import report as shown
from bnnzoo.cli import runs
from bnnzoo.cli.options import METHODS, checking
from bnnzoo.cli.terminal import check_file
from bnnzoo.cli.terminal import console as make_console
from bnnzoo.evaluation.page import html_report
from bnnzoo.files import write_text
from bnnzoo.models import catalogue

PAGE = "report.html"

_NOT_REPEATED = ("out", "overwrite")  # where the results went is no part of what they are


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that [bold]bnnzoo fit[/bold] wrote.")],
    out: Annotated[Path | None, typer.Option(help="The file; default report.html in the run's folder.")] = None,
    samples: Annotated[int | None, typer.Option(min=4, help="Posterior draws a chain; default as in the fit.")] = None,
    method: Annotated[
        str | None, typer.Option(help=f"How to predict, {' or '.join(METHODS)}; default as in the fit.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Writes a page about a run: scores, figures, diagnostics, settings. One HTML file for a browser or for print."""
    found = runs.open_run(run)
    path = out or found.folder / PAGE
    check_file(path, overwrite)
    by = runs.method_of(found, method, samples)
    with checking("RUN"):
        split = found.source.split()
    record = json.loads((found.folder / runs.METRICS).read_text(encoding="utf-8"))
    options = {name: value for name, value in record.get("options", {}).items() if name not in _NOT_REPEATED}
    entry = catalogue.get(record.get("entry", ""))
    with checking("--method" if by == "moments" else None):
        text = html_report(
            found.posterior,
            split,
            title=f"{found.name}: {found.folder.absolute().name}",
            name=next(iter(record.get("scores", {})), None),
            settings={**_settings(record)},
            command=command(options),
            reference=entry.reference if entry is not None and "entry" in options else None,
            num_samples=max(4, samples or found.samples),
            seed=seed,
            method=by,
        )
    write_text(path, text)
    shown.files(make_console(quiet), {path: "the page: open it in a browser, or print it"})


def command(options: dict[str, str]) -> str:
    """The `bnnzoo fit` command of these options, as a shell takes it.

    Args:
        options: Options by name, with underscores, as a run records them.
    """
    words = [f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in options.items()]
    return " ".join(["bnnzoo fit", *words])


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    seconds = record.get("seconds")
    return {"recipe": record.get("entry"), "fitted in": None if seconds is None else f"{seconds:.1f} s"}

"""`bnnzoo reproduce`: the papers' tables and figures, ours beside theirs."""

from __future__ import annotations

import re
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from bnnzoo import data
from bnnzoo.cli import report, runs
from bnnzoo.cli.options import bad
from bnnzoo.cli.terminal import console as make_console
from bnnzoo.data.messages import closest
from bnnzoo.files import write_text
from bnnzoo.reproduce import SCALES, Context, Entry, Result, Scale, entries
from bnnzoo.reproduce.machine import processor

RESULT, RECORD = "result.md", "result.json"

SMOKE = "A smoke run, on small or other data: the numbers mean nothing."
"""A note of every entry at that scale."""


def reproduce(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="WHAT", help="[bold]list[/bold], entries such as mnf/figure-6, or papers: mnf."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(help="smoke: seconds, numbers mean nothing; cpu: minutes on two cores; paper: its own protocol."),
    ] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished there is used again.")] = Path(
        "reproduced"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything that is random.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes at a time, where an entry has many fits.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Reproduces tables and figures of the four papers, our numbers beside theirs.

    Writes a page, its figures and the numbers to OUT/ENTRY-SCALE-SEED. A run that was interrupted goes on where it was.
    """
    console = make_console(quiet)
    first, *rest = what or ["list"]
    if first == "list":
        console.print(_listed(_chosen(rest)))
        return
    if scale not in SCALES:
        raise bad("--scale", f"must be one of {', '.join(SCALES)}; given: {scale}")
    chosen = _chosen([first, *rest])
    if scale != "smoke":
        needed = [(*entry.data, *(entry.paper_data if scale == "paper" else ())) for entry in chosen]
        for name in dict.fromkeys(name for names in needed for name in names):
            data.load(name)  # says how to provide it, before any work
    for number, entry in enumerate(chosen, 1):
        if len(chosen) > 1:
            about = f", about {entry.minutes:g} min" if scale == "cpu" else ""
            console.print(f"\n[bold]{number} of {len(chosen)}: {escape(entry.name)}[/bold]{about}", highlight=False)
        folder = out / f"{entry.name.replace('/', '-')}-{scale}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        context = Context(cast(Scale, scale), folder, seed, workers, quiet, out / f"fits-{scale}-{seed}")
        began = time.perf_counter()
        result = entry.run(context)
        if scale == "smoke":
            result.notes.insert(0, SMOKE)
        report.files(console, _written(console, entry, context, result, time.perf_counter() - began))


def _chosen(names: list[str]) -> list[Entry]:
    """The entries of these names, or of these papers, once each; of no names, all."""
    every = entries()
    papers = dict.fromkeys(name.partition("/")[0] for name in every)
    found: dict[str, Entry] = {}
    for given in names or papers:
        mine = {name: entry for name, entry in every.items() if given in (name, name.partition("/")[0])}
        if not mine:
            near = closest(given, [*every, *papers])
            raise bad("WHAT", f"there is no entry or paper {given!r}.{near} See bnnzoo reproduce list")
        found |= mine
    return list(found.values())


def _listed(chosen: list[Entry]) -> Shown:
    table = Shown(title="bnnzoo reproduce NAME", title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(("name", "what it shows", "data", "cpu, min")):
        table.add_column(column, no_wrap=number == 0)
    for entry in chosen:
        table.add_row(entry.name, entry.title, ", ".join(entry.data), f"{entry.minutes:g}")
    papers = dict.fromkeys((entry.name.partition("/")[0], _paper(entry)) for entry in chosen)
    table.caption = "\n".join(f"{prefix}: {paper}" for prefix, paper in papers)
    table.caption_justify = "left"
    return table


def _paper(entry: Entry) -> str:
    """The paper that an entry is of, without the table or figure."""
    found = re.match(r".*?\d{4}( \([^)]*\))?", entry.source)
    return found[0] if found else entry.source


def _written(console: Console, entry: Entry, context: Context, result: Result, seconds: float) -> dict[Path, str]:
    """Prints a result, and writes it as a page, figures and numbers."""
    where = (
        f"{entry.source}; `bnnzoo reproduce {entry.name} --scale {context.scale} --seed {context.seed}`, "
        f"{date.today().isoformat()}, {processor()}, torch {version('torch')}, {seconds:.0f} s"
    )
    parts = [f"# {entry.title}", where, *(table.markdown() for table in result.tables)]
    written: dict[Path, str] = {}
    for name, figure in result.figures.items():
        path = context.folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        written[path] = "figure"
        parts.append(f"![{name}]({path.name})")
    parts += [f"- {note}" for note in result.notes]
    text = "\n\n".join(parts) + "\n"
    write_text(context.folder / RESULT, text)
    record: dict[str, Any] = {"entry": entry.name, "scale": context.scale, "seed": context.seed, "seconds": seconds}
    runs.write_json(context.folder / RECORD, {**record, "values": dict(result.values)})
    console.print(f"\n[bold]{escape(entry.title)}[/bold]  [dim]{escape(where)}[/dim]", highlight=False)
    for table in result.tables:
        console.print()
        shown = Shown(title=escape(table.caption), title_justify="left", title_style="bold", header_style="bold")
        for column in table.header:
            shown.add_column(escape(column))
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
    for note in result.notes:
        console.print(f"- {escape(note)}", highlight=False)
    return {context.folder / RESULT: "the page", context.folder / RECORD: "the numbers", **written}

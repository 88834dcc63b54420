"""`bnnzoo compare`: methods on data sets, by random splits, seeds and cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bnnzoo import data as datasets
from bnnzoo import guides
from bnnzoo.cli import options, report
from bnnzoo.cli.options import bad, checking, known_data, parse
from bnnzoo.cli.terminal import check_parent
from bnnzoo.cli.terminal import console as make_console
from bnnzoo.data.messages import closest

if TYPE_CHECKING:
    from bnnzoo.compare import Method

PROTOCOL, WHERE = "Protocol", "Where it runs"


def compare(
    data: Annotated[
        str, typer.Option(help="Data sets, commas between them; see [bold]bnnzoo list data[/bold].")
    ] = "diabetes",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, commas between them: mcbn, dropout, mnf, mean-field, low-rank, moment-propagation, laplace, "
            "map, ensemble, each with a grid of hyperparameters; or any guide with its numbers, as dropout:0.1, see "
            "[bold]bnnzoo list guides[/bold]."
        ),
    ] = "mcbn,dropout,mean-field,ensemble",
    out: Annotated[
        Path, typer.Option(help="The folder of results; what is finished there is kept, and used again.")
    ] = Path("comparison"),
    csv: Annotated[Path | None, typer.Option(help="Your own data in place of --data: a CSV file.")] = None,
    target: Annotated[str | None, typer.Option(help="The CSV file's column to predict.")] = None,
    splits: Annotated[int, typer.Option(min=1, help="Random splits.", rich_help_panel=PROTOCOL)] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Test fits a split.", rich_help_panel=PROTOCOL)] = 5,
    folds: Annotated[
        int, typer.Option(min=2, help="Folds of the cross-validation in a split.", rich_help_panel=PROTOCOL)
    ] = 5,
    test_size: Annotated[
        float, typer.Option(help="Test rows: a fraction, or a number.", rich_help_panel=PROTOCOL)
    ] = 0.2,
    hidden: Annotated[str, typer.Option(help="Hidden layers of the network.", rich_help_panel=PROTOCOL)] = "50,50",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps a fit.", rich_help_panel=PROTOCOL)] = 1000,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data, in place of --steps.", rich_help_panel=PROTOCOL)
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows a step, where a method has none.", rich_help_panel=PROTOCOL)
    ] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.", rich_help_panel=PROTOCOL)] = 0.01,
    schedule: Annotated[
        str, typer.Option(help="cosine: the rate falls to 0; or constant.", rich_help_panel=PROTOCOL)
    ] = "cosine",
    draws: Annotated[int, typer.Option(min=1, help="Draws on test rows.", rich_help_panel=PROTOCOL)] = 500,
    cv_draws: Annotated[int, typer.Option(min=1, help="Draws on held-out rows.", rich_help_panel=PROTOCOL)] = 100,
    noise_by: Annotated[
        str, typer.Option(help="What the noise scale is chosen by: crps or pll.", rich_help_panel=PROTOCOL)
    ] = "crps",
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.", rich_help_panel=PROTOCOL)] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes at a time.", rich_help_panel=WHERE)] = 1,
    backend: Annotated[str, typer.Option(help="loky, dask or ray.", rich_help_panel=WHERE)] = "loky",
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of a Dask or Ray cluster; default: one on this machine.", rich_help_panel=WHERE),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compares methods on data sets: scores of repeated random splits, hyperparameters and noise by cross-validation.

    Writes results.nc, results.csv, results.md and forest.png to OUT. A run that was killed goes on where it was; other
    data sets and methods may join, under the same protocol. The numbers do not depend on workers and backend.
    """
    from bnnzoo import compare as library  # scipy, scikit-learn and joblib take their time to load

    names = _split(methods)
    chosen = [method_of(name) for name in names]
    with checking(None):
        protocol = library.Protocol(
            splits=splits,
            seeds=seeds,
            folds=folds,
            test_size=test_size,
            hidden=options.parse_hidden(hidden),
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=schedule,
            draws=draws,
            cv_draws=cv_draws,
            noise_by=noise_by,
            seed=seed,
        )
    sets = _read(data, csv, target)
    check_parent(out)
    if out.exists() and not out.is_dir():
        raise bad("--out", f"{out} is a file: give a folder")
    console = make_console(quiet)
    with checking(None):
        results = library.compare(
            sets,
            chosen,
            protocol,
            out=out,
            workers=workers,
            backend=backend,
            scheduler=scheduler,
            progress=False if quiet else None,
        )
    written = library.write(results, out)
    header, rows, best = library.table(results)
    shown = Table(header_style="bold")
    for number, column in enumerate(header):
        shown.add_column(escape(column), no_wrap=number < 2)
    for row, marks in zip(rows, best, strict=True):
        shown.add_row(*(f"[bold]{escape(t)}[/bold]" if mark else escape(t) for t, mark in zip(row, marks, strict=True)))
    console.print(shown)
    report.files(console, written)


def method_of(text: str) -> Method:
    """A method by its name, or made of a guide with its numbers, as `dropout:0.1`: nothing is chosen for it but noise.

    Raises:
        typer.BadParameter: There is no such method or guide, or it takes no such numbers.
    """
    from bnnzoo.compare import METHODS, Method

    if text in METHODS:
        return METHODS[text]
    name = text.partition(":")[0]
    if name not in options.GUIDES:
        every = {**METHODS, **options.GUIDES}
        raise bad("--methods", f"there is no {name!r}.{closest(name, every)} Known: {', '.join(every)}")
    guide = parse("--methods", text, options.GUIDES)
    network = {"batch_norm": True} if guide.func is guides.BatchNorm else {}
    return Method(text, guide, network=network, single=guide.func is guides.Map)


def _split(text: str) -> list[str]:
    """Names between commas; a number belongs to the name before it, as in `mnf:2,50`."""
    names: list[str] = []
    for part in (each.strip() for each in text.split(",")):
        if names and ":" in names[-1] and _is_number(part):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(data: str, csv: Path | None, target: str | None) -> list[Any]:
    if csv is None:
        if target is not None:
            raise bad("--target", "names a column of --csv, and there is no --csv")
        names = [known_data(name.strip()) for name in data.split(",")]
        with checking("--data"):
            return [datasets.load(name) for name in names]
    if target is None:
        raise bad("--target", "name the target column of the file")
    with checking("--csv"):
        return [datasets.from_csv(csv, target)]

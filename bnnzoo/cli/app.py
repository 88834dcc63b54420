"""The commands and their options."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import bnnzoo
from bnnzoo import data, evaluation
from bnnzoo.cli import comparing, fitting, options, page, plan, report, reproducing, runs
from bnnzoo.cli.options import Choice, bad, checking, known
from bnnzoo.cli.terminal import check_file, examples
from bnnzoo.cli.terminal import console as make_console
from bnnzoo.evaluation.metrics import score as score_of
from bnnzoo.files import write_text
from bnnzoo.models import catalogue

app = typer.Typer(
    name="bnnzoo",
    help="Bayesian neural networks: fit one to your data, score it, predict with it, analyze it in ArviZ.",
    epilog="Start with [bold]bnnzoo fit[/bold]: it needs no data of yours and takes seconds. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage (nothing was done).",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DATA, MODEL, TRAINING, OUTPUT = "Data", "Model", "Training", "Output"

Samples = Annotated[int | None, typer.Option(min=1, help="Posterior draws a chain.", rich_help_panel=OUTPUT)]
Seed = Annotated[int, typer.Option(min=0, help="Fixes everything that is random.", rich_help_panel=TRAINING)]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that [bold]bnnzoo fit[/bold] wrote.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]


METHOD_HELP = "How to predict: by draws, or by moments (mean and variance through the network, nothing drawn)"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bnnzoo {bnnzoo.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog=examples(
        "bnnzoo fit",
        "bnnzoo fit --data concrete --chains 4 --epochs 500",
        "bnnzoo fit --csv houses.csv --target price --guide map --chains 10 --out runs/ensemble",
        "bnnzoo fit --data digits --prior laplace:0.5 --sampling flipout",
        "bnnzoo fit --data yacht --guide nuts --hidden 10",
        "bnnzoo fit --guide dropout:0.1 --objective bb-alpha --alpha 0.5 --particles 10",
        "bnnzoo fit --guide moment-propagation --data concrete",
        "bnnzoo fit --entry mean-field/lenet-mnist --epochs 10",
    )
)
def fit(
    data: Annotated[
        str | None,
        typer.Option(
            help="A known data set, see [bold]bnnzoo list data[/bold]; default diabetes.", rich_help_panel=DATA
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Your own data: a CSV file with a header line.", rich_help_panel=DATA)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The CSV file's column to predict; text is taken as classes.", rich_help_panel=DATA),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(
            help="Held out: a fraction, or a number of rows. Default: the official test set, or 0.1.",
            rich_help_panel=DATA,
        ),
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(
            help="A recipe of the zoo to start from, see [bold]bnnzoo list[/bold]; other options change it.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            help=f"The approximate posterior: {', '.join(options.GUIDES)}, or nuts; some take numbers, as "
            "dropout:0.1, see [bold]bnnzoo list guides[/bold].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="How mean-field and mnf draw: local, dense or flipout.", rich_help_panel=MODEL),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=f"What is minimized: {', '.join(options.OBJECTIVES)}; with numbers, as bb-alpha:0.5,10, see "
            "[bold]bnnzoo list objectives[/bold].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The objective's α, of bb-alpha, renyi and moment-elbo.", rich_help_panel=MODEL)
    ] = None,
    particles: Annotated[
        int | None, typer.Option(min=1, help="The objective's draws of the weights a step.", rich_help_panel=MODEL)
    ] = None,
    kl_weight: Annotated[
        float | None,
        typer.Option(help="Of any objective: what multiplies the KL divergence; default 1.", rich_help_panel=MODEL),
    ] = None,
    annealing: Annotated[
        float | None,
        typer.Option(
            help="Of any objective: the share of the training, 0 to 1, over which that weight rises from 0.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            help="The weights' prior, such as normal:1.0, laplace:1, he; see [bold]bnnzoo list priors[/bold].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(options.LIKELIHOODS)}. Default: by the target.", rich_help_panel=MODEL),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Of a gaussian likelihood: learned, prior (random), or its standard deviation in the target's unit.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="An MLP with these hidden layers, such as 50,50; none for a linear model.", rich_help_panel=MODEL
        ),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(min=1, help="Independent restarts, fitted at once.", rich_help_panel=TRAINING)
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step.", rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.", rich_help_panel=TRAINING)] = None,
    adversarial: Annotated[
        float | None,
        typer.Option(
            help="Train on adversarial examples too, at this fraction of the inputs' range.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Adaptation steps of NUTS.", rich_help_panel=TRAINING)
    ] = None,
    seed: Seed = 0,
    samples: Samples = None,
    method: Annotated[
        str | None, typer.Option(help=f"{METHOD_HELP}; default the guide's own.", rich_help_panel=OUTPUT)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/DATA-GUIDE.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in that folder.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Fits a Bayesian neural network and scores it beside two baselines.

    Without options: the diabetes data, an MLP, independent Gaussians, four chains; seconds. Writes the posterior,
    an ArviZ file, the scores and a plot.
    """
    given = {name: value for name, value in locals().items() if name != "quiet"}
    fitting.run(plan.resolve(plan.FitOptions(**given)), make_console(quiet), progress=False if quiet else None)


@app.command(
    epilog=examples(
        "bnnzoo score runs/diabetes-mean-field",
        "bnnzoo score runs/houses-map --csv new_houses.csv",
        "bnnzoo score runs/mnist-map --data notmnist",
    )
)
def score(
    run: RunPath,
    data: Annotated[str | None, typer.Option(help="Another known data set with the same inputs.")] = None,
    csv: Annotated[Path | None, typer.Option(help="A CSV file with the run's columns, the target too.")] = None,
    target: Annotated[str | None, typer.Option(help="The CSV file's target column; default the run's.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Posterior draws a chain; default as in the fit.")] = None,
    method: Annotated[str | None, typer.Option(help=f"{METHOD_HELP}; default as in the fit.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the scores to this JSON file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Scores a run: on the rows it held out, or on others."""
    found = runs.open_run(run)
    rows, words = runs.read_scored(found, data, csv, target)
    if out is not None:
        check_file(out)
    by = runs.method_of(found, method, samples)
    prediction = runs.predict(found.posterior, rows.x, by, samples or found.samples, seed)
    with checking("--csv" if csv else "--data"):
        scores = score_of(prediction.pooled, rows.y, seed=seed)
    console = make_console(quiet)
    console.print(report.scores_table(f"scores on {words}", {str(found.folder): scores}, rows.target_name or ""))
    if out is not None:
        runs.write_json(out, {"rows": words, "scores": runs.plain_scores(scores)})
        report.files(console, {out: "the scores"})


@app.command(
    epilog=examples(
        "bnnzoo predict runs/diabetes-mean-field --csv patients.csv --out predictions.csv",
        "bnnzoo predict runs/houses-map --csv new_houses.csv --level 0.9",
    )
)
def predict(
    run: RunPath,
    csv: Annotated[Path, typer.Option(help="The inputs: a CSV file with the run's columns; others do not matter.")],
    out: Annotated[Path, typer.Option(help="Where the predictions go, a row for each input row.")] = Path(
        "predictions.csv"
    ),
    level: Annotated[float, typer.Option(help="Probability of the intervals, between 0 and 1.")] = 0.95,
    samples: Annotated[int | None, typer.Option(min=1, help="Posterior draws a chain; default as in the fit.")] = None,
    method: Annotated[str | None, typer.Option(help=f"{METHOD_HELP}; default as in the fit.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Predicts the target for the rows of a CSV file, in the target's own units, with uncertainty.

    Numbers: mean, std (of a new observation), its parts std_epistemic (what more data would remove) and std_aleatoric
    (noise), and the interval's ends. Classes: the most probable class, every class's probability, the entropy, and the
    part of it that is due to the weights (mutual_information), in nats.
    """
    if not 0 < level < 1:
        raise bad("--level", f"must be between 0 and 1; given: {level:g}")
    found = runs.open_run(run)
    frame, x = runs.read_inputs(found, csv)
    check_file(out, overwrite)
    by = runs.method_of(found, method, samples)
    prediction = runs.predict(found.posterior, x, by, samples or found.samples, seed)
    table = runs.predictions_table(found, prediction, level, seed)
    table.index = frame.index
    write_text(out, table.to_csv(index=False))
    report.files(make_console(quiet), {out: f"{len(table)} predictions: {', '.join(table.columns[:8])}"})


FORMATS = {"netcdf": (runs.NETCDF, "draws and predictions: arviz.from_netcdf(path)")}
"""What `bnnzoo export --to` knows: the file's name in the run's folder, and how to read it."""


@app.command(
    epilog=examples(
        "bnnzoo export runs/diabetes-mean-field --to netcdf",
        "bnnzoo export runs/diabetes-mean-field --to netcdf --samples 2000 --out big.nc",
    )
)
def export(
    run: RunPath,
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")] = "netcdf",
    out: Annotated[
        Path | None, typer.Option(help="The file; default posterior.nc in the run's folder, replaced.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Posterior draws a chain.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Exports a run for ArviZ: draws, predictions, log likelihood, prior, data."""
    name, reader = FORMATS[known("--to", to, FORMATS)]
    found = runs.open_run(run)
    path = out or found.folder / name
    check_file(path, overwrite or out is None)
    replaces = path.exists()
    with checking("RUN"):
        split = found.source.split()
    idata = fitting.inference_data(found.posterior, split, samples, seed)
    evaluation.save_netcdf(idata, path)
    report.files(make_console(quiet), {path: reader + (" (replaces the one that was there)" if replaces else "")})


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(header):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _choices(title: str, table: dict[str, Choice]) -> Table:
    return _table(title, ("name", "what it is"), [(name, choice.help) for name, choice in table.items()])


def _list_entries() -> Table:
    rows = [
        (entry.name, entry.data, entry.description, entry.reference.partition(",")[0]) for entry in catalogue.values()
    ]
    return _table("the zoo: bnnzoo fit --entry NAME", ("name", "data", "what it is", "reference"), rows)


def _list_data() -> Table:
    rows = []
    for name in data.names():
        about = data.info(name)
        shape = " x ".join(str(size) for size in about.input_shape)
        rows.append((name, about.task, str(about.rows), shape, about.description))
    return _table("data sets: bnnzoo fit --data NAME", ("name", "task", "rows", "input", "what it is"), rows)


def _list_guides() -> Table:
    nuts = {options.NUTS: Choice(Any, "none: Pyro's NUTS samples the posterior itself; small networks, minutes")}
    return _choices("guides: bnnzoo fit --guide NAME", {**options.GUIDES, **nuts})


LISTS: dict[str, Callable[[], Table]] = {
    "entries": _list_entries,
    "data": _list_data,
    "guides": _list_guides,
    "priors": lambda: _choices("priors: bnnzoo fit --prior NAME", options.PRIORS),
    "likelihoods": lambda: _choices("likelihoods: bnnzoo fit --likelihood NAME", options.LIKELIHOODS),
    "objectives": lambda: _choices(
        "objectives: bnnzoo fit --objective NAME, all with --kl-weight and --annealing", options.OBJECTIVES
    ),
}


@app.command("list", epilog=examples("bnnzoo list", "bnnzoo list data", "bnnzoo list priors"))
def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"One of {', '.join(LISTS)}, or all.")] = "entries",
) -> None:
    """Lists the zoo's recipes, or what the options of fit can name."""
    known("WHAT", what, {**LISTS, "all": None})
    console = make_console()
    for name, table in LISTS.items():
        if what in (name, "all"):
            console.print(table())


app.command(
    epilog=examples("bnnzoo reproduce list", "bnnzoo reproduce mnf/figure-6 --scale cpu", "bnnzoo reproduce mcbn")
)(reproducing.reproduce)

app.command(
    epilog=examples(
        "bnnzoo compare",
        "bnnzoo compare --data concrete,energy,yacht --methods mcbn,dropout,mnf --workers 2 --out uci",
        "bnnzoo compare --data concrete --methods dropout:0.1,dropout:0.01,map --splits 3 --seeds 2",
        "bnnzoo compare --data power --backend dask --scheduler tcp://10.0.0.1:8786",
    )
)(comparing.compare)


app.command(
    epilog=examples("bnnzoo report runs/diabetes-mean-field", "bnnzoo report runs/houses-map --out houses.html")
)(page.report)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code.

    Args:
        arguments: The words after `bnnzoo`; None takes the process's.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        errors.print(f"[yellow]warning:[/yellow] {escape(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            app(arguments)
        except Exception as error:
            # A library's user gets a traceback, a command's user a sentence; BNNZOO_DEBUG=1 gives both.
            if os.environ.get("BNNZOO_DEBUG"):
                raise
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            errors.print(f"[red]error:[/red] {kind}{escape(str(error))}")
            sys.exit(1)

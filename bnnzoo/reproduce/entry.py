"""What a reproduction is: a named table or figure of a paper, run at one of three scales, ours beside theirs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from matplotlib.figure import Figure

from bnnzoo import markdown

Scale = Literal["smoke", "cpu", "paper"]
SCALES: tuple[str, ...] = get_args(Scale)
"""`smoke`: seconds, to see that it runs, the numbers mean nothing; `cpu`: minutes to an hour on two cores; `paper`: the
paper's own protocol."""

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """How a reproduction is run.

    Attributes:
        scale: `"smoke"`, `"cpu"` or `"paper"`.
        folder: What is finished is kept here, in files of the entry's choice, and used again by the next call. Each
            entry has a folder of its own for each scale and seed, which exists.
        seed: Fixes everything.
        workers: Processes at a time.
        quiet: Whether to show no progress.
        shared: Of fits that several entries use, for each scale and seed one folder; None is `folder`.
    """

    scale: Scale
    folder: Path
    seed: int = 0
    workers: int = 1
    quiet: bool = False
    shared: Path | None = None

    @property
    def fits(self) -> Path:
        """Where to keep fits that several entries use, under names that tell them apart: `lenet-mnist-mnf.bnn`."""
        folder = self.shared or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def say(self, text: str) -> None:
        """Prints a line of progress, unless quiet.

        Args:
            text: The line.
        """
        if not self.quiet:
            print(text, flush=True)

    def pick(self, smoke: T, cpu: T, paper: T) -> T:
        """The one of three values that the scale asks for.

        Args:
            smoke: For seconds.
            cpu: For minutes on a CPU.
            paper: As the paper has it.
        """
        return {"smoke": smoke, "cpu": cpu, "paper": paper}[self.scale]


@dataclass(frozen=True)
class Table:
    """A table, its cells formatted.

    Attributes:
        caption: What it shows, with units.
        header: Column titles.
        rows: As many cells each as the header has.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        r"""The table as Markdown, its caption above; a | in a text is written as \|."""
        return f"**{markdown.escaped(self.caption)}**\n\n{markdown.table(self.header, self.rows)}"


@dataclass
class Result:
    """What a reproduction found.

    Attributes:
        tables: Ours beside theirs.
        figures: By file name without its ending.
        notes: Sentences: where this departs from the paper's protocol, and where the numbers differ and why.
        values: The numbers behind the tables, of plain Python types, for a JSON file.
    """

    tables: list[Table]
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A table or figure of a paper.

    Attributes:
        name: `paper/item`, such as `mnf/figure-6`.
        title: What it shows, in a line.
        source: The paper, and its table or figure.
        make: Does the work; it may seed torch's global generator, which `run` leaves as it was.
        data: Names of the data sets that it loads at the scales `cpu` and `paper`; `smoke` needs embedded ones only.
        minutes: About how long `cpu` takes on two cores.
        paper_data: Names of the data sets that the scale `paper` loads besides.
    """

    name: str
    title: str
    source: str
    make: Callable[[Context], Result]
    data: tuple[str, ...] = ()
    minutes: float = 1.0
    paper_data: tuple[str, ...] = ()

    def run(self, context: Context) -> Result:
        """Does the work, or what of it is not done.

        Args:
            context: At what scale, where, and how.
        """
        with torch.random.fork_rng(devices=[]):
            return self.make(context)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is NaN for a single value; both are NaN if a value is not finite.

    Args:
        values: Independent repetitions, at least one.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def plus_minus(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard error of the mean, or the value if there is one.

    Args:
        values: Independent repetitions, at least one.
        form: The numbers' format; a sign in it is for the mean alone.
    """
    mean, error = mean_and_error(values)
    return f"{mean:{form}}" + (f" ± {error:{form.removeprefix('+')}}" if len(values) > 1 else "")

"""`compare`: all cells of a comparison over joblib, kept as they are finished."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import joblib
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bnnzoo import data as datasets
from bnnzoo.compare import folder as folders
from bnnzoo.compare.cell import Cell, Choice
from bnnzoo.compare.folder import Folder
from bnnzoo.compare.method import Method, method_of
from bnnzoo.compare.protocol import Protocol
from bnnzoo.compare.results import collected
from bnnzoo.compare.stages import Stage, run
from bnnzoo.data import Dataset

BACKENDS = ("loky", "dask", "ray")
"""Where tasks can run: processes of this machine, a Dask cluster, a Ray cluster."""


def compare(
    data: Sequence[str | Dataset] | str | Dataset,
    methods: Sequence[str | Method] | str | Method,
    protocol: Protocol | None = None,
    *,
    out: str | Path | None = None,
    workers: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Compare methods on data sets: repeated random splits, hyperparameters and noise by cross-validation inside them.

    For each data set and method, a cell: every split's training rows are cut into folds; each value of the method's
    grid is fitted to all folds but one and scored on that one; the value with the least mean squared error (for classes
    the least negative log probability) over the folds is taken, and for a regression the noise scale that is best for
    the held-out rows of all folds together. Then the method is fitted to all of the training rows, `seeds` times, and
    scored on the test rows. No test row takes part in a choice.

    Splits, folds, seeds and values of the grid that are chains (see `Method`) are trained as vectorized stacks of at
    most `max_chains` fits. The stacks are tasks over joblib, one thread each: the numbers do not depend on how many
    workers there are, nor on the backend. What is finished is kept in `out`, and a call that was interrupted or killed
    goes on where it was; further data sets, methods or both may join. In one folder all is under one protocol.

    Args:
        data: Names that `bnnzoo.data.load` knows, or data sets of your own, their names different: regressions and
            classifications.
        methods: Names in `bnnzoo.compare.METHODS`, or methods of your own, their names different.
        protocol: How to compare; default `Protocol()`.
        out: The folder; None keeps nothing. Results are of all finished cells in it.
        workers: Processes, ≥ 1; with a `scheduler`, those of the cluster take their place.
        backend: `"loky"`, `"dask"` or `"ray"`.
        scheduler: Address of a running Dask or Ray cluster, such as `"tcp://host:8786"`; None starts one here.
        progress: Whether to show a progress bar with the time left; default if standard error is a terminal.
        **settings: Of the protocol, by name: `splits=2, steps=300`.

    Returns:
        See `bnnzoo.compare.results.collected`.

    Raises:
        ValueError: If a name or a number is not allowed, or the folder has results of another protocol, other data or
            another method under the same names; says what differs. If it has another task, classifications or
            regressions, or another comparison is at work in it.
        FloatingPointError: If all fits of a stack diverge; names method and data.
        TypeError: If a setting is unknown.
        ModuleNotFoundError: If the backend's package is missing; says how to install it.
    """
    protocol = protocol_of(protocol, settings)
    sets = [_data(each) for each in ([data] if isinstance(data, str | Dataset) else data)]
    chosen = [method_of(each) for each in ([methods] if isinstance(methods, str | Method) else methods)]
    _check(sets, chosen, protocol, workers, backend, scheduler)
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        folder = Folder(path)
        stack.enter_context(folder.locked())
        folder.open(protocol)
        cells = [Cell(each, method, protocol, folder.open_cell(each, method)) for each in sets for method in chosen]
        todo = [cell for cell in cells if not (cell.path / folders.RESULT).exists()]
        if todo:
            pool = stack.enter_context(_pool(backend, min(workers, _most(todo)), scheduler))
            bar = stack.enter_context(_Bar(sys.stderr.isatty() if progress is None else progress, todo))
            _work(todo, pool, bar)
        order = ([each.name for each in sets], [method.name for method in chosen])
        return collected(folder, protocol, *order)


def protocol_of(protocol: Protocol | None, settings: Mapping[str, Any]) -> Protocol:
    """A protocol with some settings replaced.

    Raises:
        TypeError: If a setting is unknown.
    """
    known = (protocol or Protocol()).as_dict()
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(f"{unknown[0]} is no setting of a comparison: they are {', '.join(known)}")
    return Protocol(**{**known, **settings})


def _data(data: str | Dataset) -> Dataset:
    if isinstance(data, str):
        return datasets.load(data)
    if not isinstance(data, Dataset):
        raise TypeError(f"data is a name or a bnnzoo.data.Dataset, not {type(data).__name__}")
    return data


def _check(
    sets: Sequence[Dataset],
    methods: Sequence[Method],
    protocol: Protocol,
    workers: int,
    backend: str,
    scheduler: str | None,
) -> None:
    for what, names in (("data sets", [each.name for each in sets]), ("methods", [each.name for each in methods])):
        if not names:
            raise ValueError(f"there are no {what} to compare")
        double = [name for name in names if names.count(name) > 1]
        if double:
            raise ValueError(f"two {what} are called {double[0]!r}: results are told apart by their names")
    for each in sets:
        if each.task == "counts" or (each.task == "classification" and each.y.ndim > 1):
            what = "counts" if each.task == "counts" else "classes for every place of an input"
            raise ValueError(f"{each.name} has {what} as targets: compare knows regressions, and classes of inputs")
        if {each.task, sets[0].task} == {"regression", "classification"}:
            raise ValueError(f"{sets[0].name} is a {sets[0].task} and {each.name} a {each.task}: compare them apart")
        train, _ = protocol.split(each, 0)
        if len(train) < 2 * protocol.folds:
            raise ValueError(f"{each.name} has {len(train)} training rows, too few for {protocol.folds} folds")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, not {workers!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, not {backend!r}")
    if scheduler is not None and backend == "loky":
        raise ValueError(f"a scheduler ({scheduler}) is for the backends 'dask' and 'ray'; loky has none")


def _most(cells: Sequence[Cell]) -> int:
    """Most tasks that there can be at a time."""
    return max(1, sum(max(len(cell.validation()), 1) for cell in cells))


def _work(cells: Sequence[Cell], pool: _Pool, bar: _Bar) -> None:
    """Finishes cells: first the cross-validation of all, then what is scored."""
    validation = {cell.path: cell.validation() for cell in cells}
    _finish([(cell, stage) for cell in cells for stage in validation[cell.path]], pool, bar)
    chosen = {}
    for cell in cells:
        results = _results(cell, validation[cell.path])
        choices = cell.choices(results)
        chosen[cell.path] = (choices, cell.final(choices), sum(result["seconds"] for result in results))

    def close(cell: Cell) -> None:
        choices, stages, spent = chosen[cell.path]
        if all((cell.path / f"{_name(stage)}.pt").exists() for stage in stages):
            folders.write_result(cell.path, cell.result(choices, stages, _results(cell, stages), spent))
            bar.cell()

    for cell in cells:
        close(cell)  # where all was there but the result
    left = [cell for cell in cells if not (cell.path / folders.RESULT).exists()]
    _finish([(cell, stage) for cell in left for stage in chosen[cell.path][1]], pool, bar, close)


def _results(cell: Cell, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    found = [folders.read_stage(cell.path, _name(stage)) for stage in stages]
    return [each for each in found if each is not None]


def _name(stage: Stage) -> str:
    return f"{stage.kind}-{stage.number}"


def _finish(
    stages: Sequence[tuple[Cell, Stage]], pool: _Pool, bar: _Bar, done: Callable[[Cell], None] = lambda cell: None
) -> None:
    """Runs the stages that have no result yet, and keeps each as it comes."""
    todo = []
    for cell, stage in stages:
        if (cell.path / f"{_name(stage)}.pt").exists():
            bar.found(stage)
        else:
            todo.append((cell, stage))
    for number, result in pool([stage for _, stage in todo]):
        cell, stage = todo[number]
        folders.write_stage(cell.path, _name(stage), result)
        bar.stage(stage)
        done(cell)


_Pool = Callable[[Sequence[Stage]], Iterator[tuple[int, dict[str, Any]]]]


def _numbered(number: int, stage: Stage) -> tuple[int, dict[str, Any]]:
    return number, run(stage)


@contextmanager
def _pool(backend: str, workers: int, scheduler: str | None) -> Iterator[_Pool]:
    """What runs stages somewhere and yields their numbers and results, as they come."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if backend == "dask":
            settings = {"client": stack.enter_context(_dask(workers, scheduler))}
        elif backend == "ray":
            stack.enter_context(_ray(workers, scheduler))
        stack.enter_context(joblib.parallel_config(backend=backend, **settings))

        def here(stages: Sequence[Stage]) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from (_numbered(*each) for each in enumerate(stages))

        def spread(stages: Sequence[Stage]) -> Iterator[tuple[int, dict[str, Any]]]:
            calls = [joblib.delayed(_numbered)(*each) for each in enumerate(stages)]
            if backend != "ray":
                yield from joblib.Parallel(workers, batch_size=1, return_as="generator_unordered")(calls)
                return
            # Ray's backend returns lists only: a few at a time, so that what is finished is kept.
            for start in range(0, len(calls), workers):
                yield from joblib.Parallel(workers, batch_size=1)(calls[start : start + workers])

        yield here if workers == 1 and backend == "loky" else spread


@contextmanager
def _dask(workers: int, scheduler: str | None) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ModuleNotFoundError("the backend 'dask' needs the package: pip install 'bnnzoo[dask]'") from error
    if scheduler is not None:
        with Client(scheduler) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _ray(workers: int, scheduler: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ModuleNotFoundError("the backend 'ray' needs the package: pip install 'bnnzoo[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=scheduler, **({"num_cpus": workers} if scheduler is None else {}))
    register_ray()
    try:
        yield
    finally:
        if started:
            ray.shutdown()


class _Bar:
    """Cells, fits and the time left, on standard error.

    Args:
        shown: Whether to show it.
        cells: The cells to finish.
    """

    def __init__(self, shown: bool, cells: Sequence[Cell]) -> None:
        self.cells = [0, len(cells)]
        stages = [stage for cell in cells for stage in (*cell.validation(), *cell.final(_any_choices(cell)))]
        self.fits = [0, sum(stage.num_fits for stage in stages)]
        self.progress = Progress(
            TextColumn("cells {task.fields[cells]}  fits {task.fields[fits]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
            speed_estimate_period=3600.0,
        )
        self.task = self.progress.add_task("", total=sum(stage.work for stage in stages), **self._fields())

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cells[0] == self.cells[1]:  # what was chosen may be more or less work than was thought
            self.progress.update(self.task, completed=self.progress.tasks[0].total)
        self.progress.stop()

    def found(self, stage: Stage) -> None:
        """A stage was finished before: it tells nothing of the speed, by which the time left is reckoned."""
        self.fits[0] += stage.num_fits
        self.progress.tasks[0].completed += stage.work
        self.progress.update(self.task, **self._fields())

    def stage(self, stage: Stage) -> None:
        """A stage is finished."""
        self.fits[0] += stage.num_fits
        self.progress.update(self.task, advance=stage.work, **self._fields())

    def cell(self) -> None:
        """A cell is finished."""
        self.cells[0] += 1
        self.progress.update(self.task, **self._fields())

    def _fields(self) -> dict[str, Any]:
        return {"cells": "{}/{}".format(*self.cells), "fits": "{}/{}".format(*self.fits)}


def _any_choices(cell: Cell) -> list[Choice]:
    """Choices to count the work by, before they are made."""
    return [Choice(cell.method.calls()[-1], cell.method.chains()[0])] * cell.protocol.splits

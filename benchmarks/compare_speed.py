"""Model fits a minute of `bnnzoo compare`, beside the same fits one by one.

    BNNZOO_DATA=../shared/data python benchmarks/compare_speed.py --workers 2

Concrete, two hidden layers of 50, 40 epochs: a whole comparison (5 splits, 5 folds, a grid of four values, 5 seeds,
predictions and scores), by the wall clock with workers and by the processor's time that its stages spent. One by one
means a stack of one task, which is what `bnnzoo.fit` trains, with the same predictions of the held-out fold: some
of the fits of the cross-validation, drawn at random.
"""

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import describe, environment, parsed, parser, start, table, write

from bnnzoo import data
from bnnzoo.compare import METHODS, Method, Protocol, compare
from bnnzoo.compare.cell import Cell
from bnnzoo.compare.stages import run

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "mcbn": {"weight_decay": (1e-2, 1e-3, 1e-4, 1e-5), "batch_size": (32,)},
    "dropout": {"weight_decay": (1e-4,), "rate": (0.1, 0.05, 0.01, 0.005), "batch_size": (32,)},
    "mean-field": {"prior_scale": (0.3, 1.0, 2.0, 4.0), "batch_size": (32,)},
}
"""Four values each, all of them chains."""


def count(cell: Cell) -> int:
    """Fits of a cell."""
    validation = cell.validation()
    protocol = cell.protocol
    return sum(stage.num_fits for stage in validation) + protocol.splits * protocol.seeds * cell.method.members


def one_by_one(cell: Cell, number: int, seed: int) -> float:
    """Processor seconds a fit of the cross-validation, each a stack of its own.

    Args:
        cell: What is compared.
        number: Fits to time, after one more that is not timed.
        seed: Fixes which.
    """
    stages = cell.validation()
    fits = [(stage, fit) for stage in stages for fit in stage.fits]
    chosen = random.Random(seed).sample(fits, min(number + 1, len(fits)))
    spent = [run(replace(stage, fits=(fit,)))["seconds"] for stage, fit in chosen]
    return sum(spent[1:]) / len(spent[1:])


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--data", default="concrete", help="a name that data.load knows")
    options.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS), metavar="METHOD")
    options.add_argument("--epochs", type=int, default=40, help="of every fit")
    options.add_argument("--splits", type=int, default=5, help="random splits")
    options.add_argument("--workers", type=int, default=2, help="processes of the comparison")
    options.add_argument("--single", type=int, default=5, help="fits that are timed one by one")
    arguments = parsed(options, ("epochs", "splits", "workers", "single"))
    settings: dict[str, Any] = {"epochs": arguments.epochs, "splits": arguments.splits, "seed": arguments.seed}
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.data, arguments.workers, arguments.single = "diabetes", 1, 1
        settings |= {"epochs": 1, "splits": 1, "seeds": 1, "folds": 2, "draws": 5, "cv_draws": 5}
    start(arguments)
    protocol, dataset = Protocol(**settings), data.load(arguments.data)
    rows, results = [], []
    for name in arguments.methods:
        method: Method = replace(METHODS[name], grid=GRIDS[name])
        cell = Cell(dataset, method, protocol, Path())
        fits = count(cell)
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = compare(dataset, method, protocol, out=folder, workers=arguments.workers, progress=False)
        wall, spent = time.perf_counter() - begin, float(found["seconds"].item())
        alone = one_by_one(cell, arguments.single, arguments.seed)
        own = {"fits": fits, "wall": wall, "cpu": spent, "one_by_one": alone}
        results.append({"method": name, **own})
        rows.append(
            [
                METHODS[name].label,
                str(fits),
                f"{60 * fits / wall:.0f}",
                f"{60 * arguments.workers * fits / spent:.0f}",
                f"{60 / alone:.1f}",
                f"{60 * arguments.workers / alone:.0f}",
                f"{alone * fits / spent:.1f}x",
            ]
        )
    print("\n" + describe(environment(arguments)), "\n")
    workers = arguments.workers
    header = [
        "method",
        "fits",
        f"fits a minute, {workers} workers, wall clock",
        f"of {workers} cores' processor time",
        "one by one, a core",
        f"one by one, {workers} cores",
        "ratio",
    ]
    print(table(header, rows))
    write(arguments, results)


if __name__ == "__main__":
    main()

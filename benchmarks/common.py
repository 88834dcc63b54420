"""What the benchmarks share: interleaved timing, the networks they time, tables and records of where they ran."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnnzoo.markdown import table  # noqa: F401
from bnnzoo.reproduce.entry import plus_minus  # noqa: F401
from bnnzoo.reproduce.fits import enlarged_digits, kept, trained_network  # noqa: F401
from bnnzoo.reproduce.machine import processor

DATA_SIZE = 10_000
"""Rows of the imaginary data set that a timed minibatch stands for."""

NOISE = 0.5
"""Known noise scale of the timed regression networks."""

LR = 1e-6
"""Learning rate of every timed step: so small that thousands of steps on one batch do not fit it (gradients of a
memorized batch become denormal numbers, which are slow)."""


@dataclass
class Contender:
    """One implementation in a timing.

    Attributes:
        name: Its row in the table.
        step: Does one unit of work (an optimizer step, a prediction).
        context: Made and entered around each slot, outside of the timing.
        times: Seconds a unit, one number a round; filled by `interleave`.
    """

    name: str
    step: Callable[[], object]
    context: Callable[[], AbstractContextManager] = nullcontext
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds a unit over the rounds."""
        return statistics.median(self.times)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What times may be measured with: processor time tells the same as the wall clock, but on a busy machine."""


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    slot: float = 0.02,
    warmup: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time contenders in turns, so that a slow moment of the machine hits all of them alike.

    Every round gives each contender one slot, in an order that rotates from round to round; a slot repeats the unit of
    work as often as fits into `slot` seconds, at least once.

    Args:
        contenders: What to time; their `times` are extended.
        rounds: Number of rounds, at least 1.
        slot: Seconds a slot, above 0.
        warmup: Units of work before timing, at least 1, for each contender.
        clock: Seconds, one of `CLOCKS`.
    """
    repeats = []
    for contender in contenders:
        with contender.context():
            for _ in range(warmup - 1):
                contender.step()
            start = clock()
            contender.step()
            repeats.append(max(1, int(slot / max(clock() - start, 1e-9))))
    for round_number in range(rounds):
        first = round_number % len(contenders)
        order = [*range(first, len(contenders)), *range(first)]
        for index in order:
            contender, count = contenders[index], repeats[index]
            step = contender.step
            with contender.context():
                start = clock()
                for _ in range(count):
                    step()
                contender.times.append((clock() - start) / count)


def ratio(contender: Contender, reference: Contender) -> float:
    """Median over rounds of the ratio of two contenders' times in the same round."""
    return statistics.median(a / b for a, b in zip(contender.times, reference.times, strict=True))


def mlp(*widths: int) -> nn.Sequential:
    """A ReLU network with the given layer widths, input and output included."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Sequential:
    """The MNF paper's LeNet for images [N, 1, 28, 28]: conv 20@5, pool, conv 50@5, pool, 500, 10."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """An argument parser with the options every benchmark has: --seed, --threads, --smoke and --out."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--seed", type=int, default=0, help="fixes data, weights and noise")
    result.add_argument("--threads", type=int, default=1, help="CPU threads that torch uses")
    result.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    result.add_argument("--smoke", action="store_true", help="run everything in seconds; the numbers mean nothing")
    result.add_argument("--out", type=Path, help="also write the results to this JSON file")
    result.set_defaults(**defaults)
    return result


def parsed(options: argparse.ArgumentParser, counts: Sequence[str] = ()) -> argparse.Namespace:
    """The arguments of a benchmark, with an error for counts (names of options that may be None) below 1."""
    arguments = options.parse_args()
    for name in counts:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            options.error(f"--{name} must be at least 1, got {value}")
    return arguments


def start(arguments: argparse.Namespace) -> None:
    """Set the number of threads and the seed that the command line asks for."""
    if arguments.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and how a benchmark ran: date, machine, versions, threads, seed, command, commit."""
    import pyro

    root = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "seed": arguments.seed,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "commit": commit.stdout.strip() or None,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def describe(record: Mapping[str, Any]) -> str:
    """One line of Markdown that says where a benchmark ran."""
    return (
        f"`{record['command']}`: {record['date']}, {record['machine']}, Python {record['python']}, "
        f"torch {record['torch']}, Pyro {record['pyro']}, {record['threads']} thread(s), {record['clock']} clock, "
        f"seed {record['seed']}, load average {record['load']}"
    )


def write(arguments: argparse.Namespace, results: Any) -> None:
    """Write the environment and the results to `--out`, if it was given."""
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": environment(arguments), "results": results}, indent=2)
        arguments.out.write_text(text + "\n")

"""What a step of BB-α costs by the number of particles, K = 1 being the ELBO.

    python benchmarks/particles.py --clock cpu

Ratios are medians over rounds of the ratio within a round. bnnzoo's time is that of what `fit` does for a step, the
minibatch's gathering included. "Repeated rows" is the code of the BB-α paper (Li & Gal 2017, Figure 1) in PyTorch, for
dropout; "repeated hidden units" computes the first layer, whose inputs are not dropped, once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import floors
import torch
from common import (
    CLOCKS,
    DATA_SIZE,
    Contender,
    describe,
    environment,
    interleave,
    mlp,
    parsed,
    parser,
    ratio,
    start,
    table,
    write,
)
from step_time import bnnzoo_contender
from torch import Tensor

from bnnzoo import BayesianNetwork, guides, objectives

PARTICLES = (1, 2, 5, 10, 50)
ALPHA = 0.5

GUIDES: dict[str, Callable[[BayesianNetwork], guides.Guide]] = {
    "**bnnzoo**, MeanField, local": partial(guides.MeanField, init_scale=0.01, sampling="local"),
    "**bnnzoo**, MeanField, dense": partial(guides.MeanField, init_scale=0.01, sampling="dense"),
    "**bnnzoo**, Dropout": guides.Dropout,
}

# Of `floors.dropout_step`, by whether the first layer is shared.
FLOORS = {"hand-written dropout, repeated rows": False, "hand-written dropout, repeated hidden units": True}


@dataclass(frozen=True)
class Setting:
    """A network and a batch.

    Attributes:
        name: What `--only` calls it.
        title: What the table calls it.
        widths: Of the layers, input and output included.
        batch_size: Rows a batch.
        aim: What K particles should cost at most, in words.
    """

    name: str
    title: str
    widths: tuple[int, ...]
    batch_size: int
    aim: str

    def contenders(self) -> dict[tuple[str, int], Contender]:
        """Every implementation with every number of particles."""
        x, y = torch.randn(DATA_SIZE, self.widths[0]), self.targets()
        batch = x[: self.batch_size], y[: self.batch_size]
        result = {}
        for particles in PARTICLES:
            for name, guide in GUIDES.items():
                objective = objectives.BBAlpha(ALPHA, particles)
                parts = (mlp(*self.widths), x, y, self.batch_size)
                result[name, particles] = bnnzoo_contender(name, *parts, guide=guide, objective=objective)
            for name, shared in FLOORS.items():
                step = floors.dropout_step(mlp(*self.widths), *batch, particles, ALPHA, shared)
                result[name, particles] = Contender(name, step)
        return result

    def targets(self) -> Tensor:
        """Random numbers for one output, labels for several."""
        outputs = self.widths[-1]
        return torch.randn(DATA_SIZE) if outputs == 1 else torch.randint(outputs, (DATA_SIZE,))


SETTINGS = (
    Setting("small", "MLP 13-50-50-1, batch 32", (13, 50, 50, 1), 32, "K = 10 at most 4 times K = 1"),
    Setting("mnist", "MLP 784-100-100-10, batch 128", (784, 100, 100, 10), 128, "K at most 1.1 K times K = 1"),
)


def report(setting: Setting, contenders: dict[tuple[str, int], Contender]) -> tuple[str, list[dict[str, Any]]]:
    """The table of one setting, and its numbers for the JSON file."""
    rows, records = [], []
    for name in [*GUIDES, *FLOORS]:
        one = contenders[name, 1]
        cells = [name, f"{one.median * 1e3:.3g}"]
        for particles in PARTICLES:
            mine = contenders[name, particles]
            times = ratio(mine, one)
            records.append({"setting": setting.name, "contender": name, "particles": particles} | _numbers(mine, times))
            if particles > 1:
                cells.append(f"{times:.2f}")
        rows.append(cells)
    own = "**bnnzoo**, Dropout"
    for name in FLOORS:
        against = [ratio(contenders[own, particles], contenders[name, particles]) for particles in PARTICLES]
        rows.append([f"bnnzoo's Dropout / {name}", *(f"× {value:.2f}" for value in against)])
        for particles, value in zip(PARTICLES, against, strict=True):
            records.append({"setting": setting.name, "contender": own, "over": name, "particles": particles})
            records[-1]["ratio"] = value
    return table([setting.title, "K = 1, ms", *(f"K = {k}" for k in PARTICLES[1:])], rows), records


def _numbers(contender: Contender, times: float) -> dict[str, float]:
    return {"seconds": contender.median, "to one particle": times}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=60, help="rounds for the small network; the large gets a third")
    options.add_argument("--only", choices=[s.name for s in SETTINGS], action="append", help="settings to run")
    arguments = parsed(options, ("rounds",))
    start(arguments)
    print(describe(environment(arguments)), "\n")
    records = []
    for setting in [s for s in SETTINGS if arguments.only is None or s.name in arguments.only]:
        contenders = setting.contenders()
        rounds = 2 if arguments.smoke else arguments.rounds if setting.name == "small" else -(-arguments.rounds // 3)
        slot, warmup = (0.0, 1) if arguments.smoke else (0.02, 5)
        interleave(list(contenders.values()), rounds, slot, warmup, CLOCKS[arguments.clock])
        text, rows = report(setting, contenders)
        print(f"{text}\n\nThe aim: {setting.aim}.\n", flush=True)
        records += rows
    write(arguments, records)


if __name__ == "__main__":
    main()

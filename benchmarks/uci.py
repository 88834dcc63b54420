"""Regression on UCI data: CRPS, predictive log likelihood and RMSE in the target's own units, beside the MCBN paper's.

    BNNZOO_DATA=../shared/data python benchmarks/uci.py --keep /tmp/uci --processes 2

The paper's protocol (section 4.3) at a smaller budget: two hidden layers of 50 ReLU, standardized data, Adam, random
80/20 splits. What a method leaves open is chosen inside the training split, on a fifth of it held out: a value of the
grid by CRPS, and the noise scales that are best there by CRPS and by PLL, each for its own column (the noise that is
best by CRPS can be far too small for PLL). Then the network is trained again on all of the training split. With
`--keep`, what is finished stays finished.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, parsed, parser, plus_minus, start, table, write
from pyro.distributions import Normal

from bnnzoo import (
    BayesianNetwork,
    Posterior,
    Prediction,
    data,
    evaluation,
    fit,
    guides,
    likelihoods,
    models,
    objectives,
)

SETS = ("concrete", "energy", "boston", "yacht")

SETTING: dict[str, Any] = {
    "hidden": (50, 50),
    "steps": 1000,
    "batch_size": 64,
    "lr": 1e-2,  # falls to 0 along a cosine
    "kl_annealing": 0.75,  # the KL's weight rises from 0 to 1 over this share of the training
    "test_size": 0.2,
    "validation_size": 0.2,
    "chains": 1,  # seeds of the final fit
    "draws": 500,
}


@dataclass(frozen=True)
class Method:
    """One row for each data set.

    Attributes:
        label: Its name in the table.
        guide: Builds the guide from the model and a value of the grid.
        grid: Values to choose from; what they are, `what` says.
        what: `"rate"` (the guide's), `"batch"` (the batch size), or `"prior"` (standard deviation of all weights).
        batch_norm: Whether the network has batch normalization.
    """

    label: str
    guide: Callable[[BayesianNetwork, float], guides.Guide]
    grid: tuple[float, ...] = (1.0,)
    what: str = "prior"
    batch_norm: bool = False


METHODS: dict[str, Method] = {
    "mcbn": Method("BatchNorm (MCBN)", lambda bnn, _: guides.BatchNorm(bnn), (32, 128), "batch", batch_norm=True),
    "dropout": Method("Dropout", lambda bnn, rate: guides.Dropout(bnn, rate=rate), (0.01, 0.05), "rate"),
    "mnf": Method("MNF", lambda bnn, _: guides.MNF(bnn)),
    "mean-field": Method("MeanField", lambda bnn, _: guides.MeanField(bnn, init_scale=0.03)),
    "map": Method("Map", lambda bnn, _: guides.Map(bnn)),
}

PAPER = {
    "mcbn": {
        "boston": (1.45, -2.38, 2.75),
        "concrete": (2.40, -3.45, 4.78),
        "energy": (0.33, -0.94, 0.59),
        "kin8nm": (0.04, 1.21, 0.07),
        "power": (2.00, -2.75, 3.74),
        "protein": (1.95, -2.73, 3.66),
        "wine": (0.34, -0.95, 0.62),
        "yacht": (0.68, -1.39, 1.23),
    },
    "dropout": {
        "boston": (1.41, -2.35, 2.65),
        "concrete": (2.42, -2.94, 4.80),
        "energy": (0.26, -0.80, 0.47),
        "kin8nm": (0.04, 1.24, 0.07),
        "power": (2.00, -2.72, 3.74),
        "protein": (1.95, -2.70, 3.66),
        "wine": (0.33, -0.89, 0.60),
        "yacht": (0.32, -2.57, 0.75),
    },
    "mnf": {
        "boston": (1.57, -2.51, 2.98),
        "concrete": (3.61, -3.35, 6.57),
        "energy": (1.33, -3.18, 2.38),
        "kin8nm": (0.05, 1.04, 0.09),
        "power": (2.31, -2.86, 4.19),
        "protein": (2.25, -2.83, 4.10),
        "wine": (0.34, -0.93, 0.61),
        "yacht": (0.94, -1.96, 2.13),
    },
}
"""Raw test scores of the MCBN paper, mean of 25 runs: CRPS, PLL, RMSE."""


@dataclass(frozen=True)
class Job:
    """One method on one split of one data set; the seed fixes the split and the fits."""

    data: str
    method: str
    seed: int
    steps: int
    threads: int
    keep: Path


def train(job: Job, part: data.Dataset, value: float, chains: int) -> Posterior:
    """Fit a method to a part of the data.

    Args:
        job: What to fit.
        part: The rows to fit to, with a standardization.
        value: One of the method's grid.
        chains: Seeds, trained at once.
    """
    method = METHODS[job.method]
    torch.manual_seed(job.seed)  # the network's initial weights
    network = models.MLP(part.x.shape[1], 1, SETTING["hidden"], batch_norm=method.batch_norm)
    prior = Normal(0.0, value if method.what == "prior" else 1.0)
    bnn = BayesianNetwork(network, likelihoods.Gaussian(), prior)
    batch_size = min(int(value) if method.what == "batch" else SETTING["batch_size"], len(part))
    epochs = math.ceil(job.steps / math.ceil(len(part) / batch_size))
    return fit(
        bnn,
        method.guide(bnn, value),
        part,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=batch_size,
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=chains,
        seed=job.seed,
        progress=False,
    )


def choose(job: Job, part: data.Dataset) -> tuple[float, dict[str, float]]:
    """The value of the method's grid with the least CRPS on a held-out part of a training split, and the noise there.

    Args:
        job: What to fit.
        part: The training split.

    Returns:
        The value, and the best standard deviations of the noise by `"crps"` and by `"pll"`, in the target's units.
    """
    inner = part.split(SETTING["validation_size"], seed=job.seed)
    found = []
    for value in METHODS[job.method].grid:
        posterior = train(job, inner.train, value, chains=1)
        noise = {}
        for by in ("pll", "crps"):
            tuned = posterior.tune_noise(inner.test, by=by, num_samples=SETTING["draws"], seed=job.seed)
            prediction = tuned.predict(inner.test.x, num_samples=SETTING["draws"], seed=job.seed)
            noise[by] = prediction.parameters["scale"].mean().item()
        found.append((evaluation.score(prediction, inner.test.y).crps.item(), value, noise))
    _, value, noise = min(found, key=lambda each: each[0])
    return value, noise


def run(job: Job) -> dict[str, Any]:
    """Choose, fit and score, or read what an earlier call left.

    Args:
        job: What to do.

    Returns:
        Scores in the target's units, the mean over seeds, `pll` with the noise chosen for it (`pll_by_crps` has the
        other); `value` and `noise` as chosen, and the processor's `seconds`.

    Raises:
        SystemExit: If the folder holds the result of another number of steps.
    """
    done = job.keep / f"{job.data}-{job.method}-{job.seed}.json"
    if done.exists():
        result = json.loads(done.read_text())
        if result["steps"] != job.steps:
            raise SystemExit(f"{done} is of {result['steps']} steps, not of {job.steps}: keep this one elsewhere")
        return result
    torch.set_num_threads(job.threads)
    begin = time.process_time()
    split = data.load(job.data).split(SETTING["test_size"], seed=job.seed)
    value, noise = choose(job, split.train)
    posterior = train(job, split.train, value, SETTING["chains"])
    prediction = posterior.predict(split.test.x, num_samples=SETTING["draws"], seed=job.seed)
    by_crps, by_pll = _scored(prediction, split.test.y, noise["crps"]), _scored(prediction, split.test.y, noise["pll"])
    result = {**by_crps, "pll": by_pll["pll"], "pll_by_crps": by_crps["pll"]}
    result |= {"value": value, "noise": noise, "steps": job.steps, "seconds": time.process_time() - begin}
    done.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{done.stem}: {result['seconds']:.0f} CPU s", flush=True)
    return result


def _scored(prediction: Prediction, y: torch.Tensor, noise: float) -> dict[str, Any]:
    """Scores under another noise scale, the mean over chains."""
    scale = torch.full_like(prediction.parameters["scale"], noise)
    prediction = replace(prediction, parameters=prediction.parameters | {"scale": scale})
    return {str(name): value.item() for name, value in evaluation.score(prediction, y).mean("chain").items()}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME", help="names that data.load knows")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--splits", type=int, default=5, help="random splits a set")
    options.add_argument("--steps", type=int, default=SETTING["steps"], help="optimizer steps a fit")
    options.add_argument("--processes", type=int, default=1, help="fits at a time")
    options.add_argument("--keep", type=Path, help="folder of results: those in it are used as they are")
    arguments = parsed(options, ("splits", "steps", "processes"))
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.sets, arguments.splits, arguments.steps = ["diabetes"], 1, 10
        SETTING["draws"] = 10
    start(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        jobs = [
            Job(name, method, arguments.seed + split, arguments.steps, arguments.threads, keep)
            for split in range(arguments.splits)
            for method in arguments.methods
            for name in arguments.sets
        ]
        if arguments.processes == 1:
            scores = [run(job) for job in jobs]
        else:
            with ProcessPoolExecutor(arguments.processes) as pool:
                scores = list(pool.map(run, jobs))
    print("\n" + describe(environment(arguments)), "\n")
    results = [
        {"set": job.data, "method": job.method, "seed": job.seed, **score}
        for job, score in zip(jobs, scores, strict=True)
    ]
    print(_table(results, arguments.sets, arguments.methods))
    write(arguments, {"setting": SETTING | {"steps": arguments.steps}, "scores": results})


def _table(results: list[dict[str, Any]], sets: list[str], methods: list[str]) -> str:
    header = ["", "", "CRPS", "PLL", "RMSE", "95% coverage", "chosen", "paper: CRPS", "PLL", "RMSE", "CPU s a split"]
    rows = []
    for name in sets:
        for method in methods:
            own = [each for each in results if (each["set"], each["method"]) == (name, method)]
            column = {key: [each[key] for each in own] for key in own[0] if key not in ("set", "method")}
            cells = [plus_minus(column["crps"]), plus_minus(column["pll"])]
            cells += [plus_minus(column["rmse"]), f"{np.mean(column['coverage_95']):.2f}"]
            what, grid = METHODS[method].what, METHODS[method].grid
            values = " ".join(f"{value:g}" for value in column["value"])
            published = PAPER.get(method, {}).get(name, ("", "", ""))
            cells += [f"{what} {values}" if len(grid) > 1 else ""]
            cells += [value if value == "" else f"{value:.2f}" for value in published]
            rows.append([name, METHODS[method].label, *cells, f"{np.mean(column['seconds']):.0f}"])
    return table(header, rows)


if __name__ == "__main__":
    main()

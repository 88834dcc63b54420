"""Regression on UCI data: RMSE and negative log likelihood in the target's own units, beside published numbers.

    BNNZOO_DATA=../shared/data python benchmarks/uci.py --processes 2

One setting for all sets, stated in `SETTING`: an MLP with two hidden layers of 50 ReLU, a standard normal prior,
Gaussian noise learned by maximum likelihood, `MeanField` with local reparameterization; random 80/20 splits.
"""

import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from common import describe, environment, parser, start, table, write

from bnnzoo import BayesianNetwork, data, evaluation, fit, guides, likelihoods, models, objectives, priors

SETS = ("concrete", "energy", "boston", "yacht")

SETTING: dict[str, Any] = {
    "hidden": (50, 50),
    "prior_scale": 1.0,
    "init_scale": 0.03,
    "steps": 20_000,
    "batch_size": 64,
    "lr": 1e-2,  # falls to 0 along a cosine
    "kl_annealing": 0.75,  # the KL's weight rises from 0 to 1 over this share of the training
    "test_size": 0.2,
    "draws": 500,
}

PAPER = {"concrete": (4.80, 2.94), "energy": (0.47, 0.80), "boston": (2.65, 2.35), "yacht": (0.75, 2.57)}
"""RMSE and NLL of dropout (MCDO) in the MCBN paper, table of raw scores: tuned by grid search, 25 runs."""

PAPER_MNF = {"concrete": (6.57, 3.35), "energy": (2.38, 3.18), "boston": (2.98, 2.51), "yacht": (2.13, 1.96)}
"""The same of multiplicative normalizing flows, a richer posterior than `MeanField`."""


def run(name: str, split_seed: int, steps: int, threads: int) -> dict[str, float]:
    """Fit one split of a data set and score it.

    Args:
        name: Of the data set.
        split_seed: Fixes the split and the fit.
        steps: Optimizer steps, rounded up to whole epochs.
        threads: CPU threads of torch.

    Returns:
        `rmse`, `nll` and further scores in the target's units, and the processor's `seconds`.
    """
    torch.set_num_threads(threads)
    split = data.load(name).split(SETTING["test_size"], seed=split_seed)
    torch.manual_seed(split_seed)  # the network's initial weights
    network = models.MLP(split.train.x.shape[1], 1, SETTING["hidden"])
    bnn = BayesianNetwork(network, likelihoods.Gaussian(), priors.Normal(0.0, SETTING["prior_scale"]))
    epochs = math.ceil(steps / math.ceil(len(split.train) / SETTING["batch_size"]))
    begin = time.process_time()
    posterior = fit(
        bnn,
        guides.MeanField(bnn, init_scale=SETTING["init_scale"]),
        split.train,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=split_seed,
        progress=False,
    )
    seconds = time.process_time() - begin
    prediction = posterior.predict(split.test.x, num_samples=SETTING["draws"], seed=split_seed)
    return {**evaluation.score(prediction, split.test.y), "seconds": seconds}


def mean_and_error(values: list[float]) -> str:
    """Mean and standard error over splits."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.2f} ± {error:.2f}"


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME", help="names that data.load knows")
    options.add_argument("--splits", type=int, default=5, help="random splits a set")
    options.add_argument("--steps", type=int, default=SETTING["steps"], help="optimizer steps a fit")
    options.add_argument("--processes", type=int, default=1, help="fits at a time")
    arguments = options.parse_args()
    for name in ("splits", "steps", "processes"):
        if getattr(arguments, name) < 1:
            options.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.sets, arguments.splits, arguments.steps = ["diabetes"], 2, 40
    start(arguments)
    jobs = [(name, arguments.seed + split) for name in arguments.sets for split in range(arguments.splits)]
    if arguments.processes == 1:
        scores = [run(name, seed, arguments.steps, arguments.threads) for name, seed in jobs]
    else:
        with ProcessPoolExecutor(arguments.processes) as pool:
            futures = [pool.submit(run, name, seed, arguments.steps, arguments.threads) for name, seed in jobs]
            scores = [future.result() for future in futures]
    print(describe(environment(arguments)), "\n")
    rows = []
    for name in arguments.sets:
        own = [score for (job, _), score in zip(jobs, scores, strict=True) if job == name]
        published = [value for numbers in (PAPER, PAPER_MNF) for value in numbers.get(name, ("", ""))]
        cells = [mean_and_error([score[key] for score in own]) for key in ("rmse", "nll")]
        coverage = f"{np.mean([score['coverage_95'] for score in own]):.2f}"
        rows.append([name, *cells, coverage, *published, f"{np.mean([score['seconds'] for score in own]):.0f}"])
    header = ["", "RMSE", "NLL", "95% coverage", "dropout RMSE", "dropout NLL", "MNF RMSE", "MNF NLL", "CPU s a fit"]
    print(table(header, rows))
    results = [{"set": name, "seed": seed, **score} for (name, seed), score in zip(jobs, scores, strict=True)]
    write(arguments, {"setting": SETTING | {"steps": arguments.steps}, "scores": results})


if __name__ == "__main__":
    main()

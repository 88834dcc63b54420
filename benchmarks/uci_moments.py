"""UCI regression without draws: MomentELBO beside the sampled ELBO, test NLL and RMSE, and the time to the same NLL.

    BNNZOO_DATA=../shared/data python benchmarks/uci_moments.py --figure docs/uci-moments.png

The protocol of `bnnzoo reproduce bb-alpha/figure-2`: one hidden layer of 50 ReLU, MeanField, learned noise, random
80/20 splits; seeds are chains of one fit, each scored by itself. Both objectives get the same guide, start, minibatches
and number of steps; the learning rate of each is the one of the least NLL on a fifth of the first split's training
rows. Along training, at times that do not count, the test NLL is taken by draws for both.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import describe, environment, parsed, parser, plus_minus, start, table, write
from matplotlib.figure import Figure
from pyro.distributions import Normal

from bnnzoo import BayesianNetwork, Posterior, Prediction, data, fit, guides, likelihoods, models, objectives
from bnnzoo._vectorize import Pair
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION
from bnnzoo.loop import Progression

SETTING: dict[str, Any] = {
    "hidden": (50,),
    "batch_size": 64,
    "rates": (0.01, 0.03),  # of which one is chosen; they fall to 0 along a cosine, epoch by epoch
    "kl_annealing": 0.5,  # share of the training over which the KL divergence's weight rises from 0
    "init_scale": 0.03,
    "test_size": 0.2,
    "validation_size": 0.2,
    "seeds": 2,
    "draws": 1000,
    "points": 12,  # scored along training
    "draws_of_a_point": 100,
}

OBJECTIVES: dict[str, Callable[..., objectives.Objective]] = {
    "ELBO, sampled": objectives.ELBO,
    "MomentELBO": objectives.MomentELBO,
}

COLORS = {"ELBO, sampled": VERMILION, "MomentELBO": BLUE}


class Curve:
    """A callback that scores a fit as it goes, and counts the processor time without that.

    Args:
        epochs: Of the fit.
        score: The test NLL of stacked parameters; None: no scores.
    """

    def __init__(self, epochs: int, score: Callable[[dict[str, torch.Tensor]], float] | None) -> None:
        self.every = max(1, epochs // SETTING["points"])
        self.score = score
        self.begin = time.process_time()
        self.points: list[tuple[float, float]] = []

    def __call__(self, progress: Progression) -> None:
        """Score every few epochs."""
        if self.score is not None and progress.epoch % self.every == 0:
            now = time.process_time()
            self.points.append((now - self.begin, self.score(progress.parameters)))
            self.begin += time.process_time() - now

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return time.process_time() - self.begin


def train(
    objective: str, part: data.Dataset, rate: float, steps: int, seed: int, scored: data.Dataset | None = None
) -> tuple[Posterior, Curve]:
    """Fit to a part of the data.

    Args:
        objective: One of `OBJECTIVES`.
        part: The rows to fit to, with a standardization.
        rate: The learning rate.
        steps: Of the optimizer.
        seed: Fixes network, minibatches and draws.
        scored: Rows to score along training, or None.
    """
    torch.manual_seed(seed)
    network = models.MLP(part.x.shape[1], 1, SETTING["hidden"])
    bnn = BayesianNetwork(network, likelihoods.Gaussian(), Normal(0.0, 1.0))
    guide = guides.MeanField(bnn, init_scale=SETTING["init_scale"])
    batch_size = min(SETTING["batch_size"], len(part))
    epochs = math.ceil(steps / math.ceil(len(part) / batch_size))

    def score(parameters: dict[str, torch.Tensor]) -> float:
        state = {name: value.detach().clone() for name, value in parameters.items()}
        posterior = Posterior(pair, state, {}, standardization=part.standardization)
        return scores(posterior, scored, SETTING["draws_of_a_point"], seed)["nll"]

    pair = Pair(bnn, guide).copy()
    curve = Curve(epochs, None if scored is None else score)
    posterior = fit(
        bnn,
        guide,
        part,
        objective=OBJECTIVES[objective](kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=batch_size,
        lr=rate,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=SETTING["seeds"],
        seed=seed,
        callback=curve,
        progress=False,
    )
    return posterior, curve


def scores(posterior: Posterior, part: data.Dataset, draws: int | None, seed: int) -> dict[str, float]:
    """NLL and RMSE in the target's units, the mean over the seeds.

    Args:
        posterior: What was fitted.
        part: Rows that it was not fitted to.
        draws: To predict by; None: by moments.
        seed: Fixes the draws.
    """
    method = "moments" if draws is None else "draws"
    prediction = posterior.predict(part.x, num_samples=draws, seed=seed, method=method)
    each = [_score(prediction.chain(index), part) for index in range(posterior.chains)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _score(prediction: Prediction, part: data.Dataset) -> dict[str, float]:
    rmse = (prediction.mean - part.y).square().mean().sqrt().item()
    return {"nll": -prediction.log_prob(part.y).mean().item(), "rmse": rmse}


def choose(objective: str, name: str, arguments: argparse.Namespace) -> float:
    """The learning rate of the least held-out NLL, inside of the first split's training rows."""
    train_rows = data.load(name).split(SETTING["test_size"], seed=arguments.seed).train
    inner = train_rows.split(SETTING["validation_size"], seed=arguments.seed)

    def held_out(rate: float) -> float:
        posterior, _ = train(objective, inner.train, rate, arguments.steps, arguments.seed)
        return scores(posterior, inner.test, SETTING["draws"], arguments.seed)["nll"]

    return min(SETTING["rates"], key=held_out)


def run(objective: str, name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Fit one split and score it.

    Returns:
        `draws` and `moments`: NLL and RMSE by either prediction; `seconds` of training; `curve`, pairs of seconds and
        NLL; the rest says what was run.
    """
    split = data.load(name).split(SETTING["test_size"], seed=seed)
    posterior, curve = train(objective, split.train, rate, steps, seed, split.test)
    seconds = curve.seconds
    ways = {"draws": SETTING["draws"], "moments": None}
    result = {way: scores(posterior, split.test, draws, seed) for way, draws in ways.items()}
    print(f"{name} {seed} {objective}: {json.dumps(result)}, {seconds:.1f} s", flush=True)
    return {
        "set": name, "objective": objective, "seed": seed, "rate": rate, "seconds": seconds, **result,
        "curve": curve.points,
    }  # fmt: skip


def reached(curve: list[tuple[float, float]], nll: float) -> float:
    """Seconds until a curve first is at most a value, between points by interpolation; NaN if it never is."""
    before = None
    for seconds, value in curve:
        if value <= nll:
            if before is None:
                return seconds
            share = (before[1] - nll) / max(before[1] - value, 1e-12)
            return before[0] + share * (seconds - before[0])
        before = seconds, value
    return math.nan


def report(results: list[dict[str, Any]]) -> str:
    """The table of test scores and times."""
    header = ["", "objective", "NLL by draws", "by moments", "RMSE by draws", "by moments", "training, CPU s"]
    rows = []
    for name in dict.fromkeys(result["set"] for result in results):
        finals = {
            r["seed"]: r["draws"]["nll"] for r in results if (r["set"], r["objective"]) == (name, "ELBO, sampled")
        }
        for objective in OBJECTIVES:
            own = [r for r in results if (r["set"], r["objective"]) == (name, objective)]
            cells = [
                plus_minus([r[method][score] for r in own], ".3f")
                for score in ("nll", "rmse")
                for method in ("draws", "moments")
            ]
            times = [reached([*r["curve"], (r["seconds"], r["draws"]["nll"])], finals[r["seed"]]) for r in own]
            there = [each for each in times if math.isfinite(each)]
            said = f"{np.mean(there):.1f} ({len(there)} of {len(times)})" if there else "never"
            rows.append(
                [name, objective, *cells, plus_minus([r["seconds"] for r in own], ".1f"), said, f"{own[0]['rate']:g}"]
            )
    return table([*header, "s to the sampled run's last NLL (splits)", "learning rate"], rows)


def draw(results: list[dict[str, Any]]) -> Figure:
    """One panel a data set: test NLL against processor time, every split thin and their mean thick."""
    sets = list(dict.fromkeys(result["set"] for result in results))
    figure = Figure(figsize=(3.6 * len(sets) + 0.4, 3.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        lowest, highest, ends = math.inf, -math.inf, []
        for objective, color in COLORS.items():
            curves = np.array([r["curve"] for r in results if (r["set"], r["objective"]) == (name, objective)])
            for curve in curves:
                ax.plot(*curve.T, color=color, linewidth=0.7, alpha=0.35)
            mean = curves.mean(0)
            ax.plot(*mean.T, color=color, linewidth=2.0, label=objective)
            lowest, highest = min(lowest, curves[..., 1].min()), max(highest, curves[..., 1].max())
            ends.append(mean[-1, 1])
        ax.axhline(ends[0], color=GRAY, linewidth=0.8, linestyle=":")
        ax.set_ylim(lowest - 0.05, min(highest + 0.05, max(ends) + 1.2))
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("processor time of training, s")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test NLL")
    figure.axes[0].legend(frameon=False)
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=["concrete", "energy"], metavar="NAME", help="known to data.load")
    options.add_argument("--splits", type=int, default=5, help="random splits a set")
    options.add_argument("--steps", type=int, default=1500, help="optimizer steps a fit")
    options.add_argument("--figure", type=str, help="draw the NLL by time into this file")
    arguments = parsed(options, ("splits", "steps"))
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.sets, arguments.splits, arguments.steps = ["diabetes"], 2, 8
        SETTING.update(draws=10, seeds=1, rates=(0.01,), points=2, draws_of_a_point=5)
    start(arguments)
    results = []
    for name in arguments.sets:
        rates = {objective: choose(objective, name, arguments) for objective in OBJECTIVES}
        for split in range(arguments.splits):
            seed = arguments.seed + split
            results += [run(objective, name, rate, seed, arguments.steps) for objective, rate in rates.items()]
    if arguments.figure is not None:
        draw(results).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    print(report(results))
    write(arguments, results)


if __name__ == "__main__":
    main()

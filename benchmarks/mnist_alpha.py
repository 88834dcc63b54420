"""MNIST by α: a dropout network trained by BB-α, its test accuracy and test log likelihood.

    BNNZOO_DATA=../shared/data python benchmarks/mnist_alpha.py --keep /tmp/mnist_alpha --figure docs/mnist-alpha.png

Li & Gal 2017, section 5.2 and Figure 4: two hidden layers of 100 ReLU, rate 0.5, K = 10 in training, 100 draws at test.
The repeats are the chains of one fit. With `--keep`, what is finished stays finished and what was interrupted goes on.
"""

import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    describe,
    enlarged_digits,
    environment,
    mean_and_error,
    parsed,
    parser,
    plus_minus,
    start,
    table,
    write,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import bnnzoo
from bnnzoo import BayesianNetwork, Posterior, Prediction, data, evaluation, guides, likelihoods, models, objectives
from bnnzoo import priors as prior_rules
from bnnzoo._vectorize import Pair
from bnnzoo.chains import stack
from bnnzoo.training import Progression

ALPHAS = (0.0, 0.5, 1.0)

SETTING: dict[str, Any] = {
    "particles": 10,
    "batch_size": 128,
    "lr": 1e-3,  # falls to 0 along a cosine, epoch by epoch
    "prior_variance": 10.0,  # weight decay 1e-6 a datum is a variance of 1 / (2 · 60,000 · 1e-6) = 8.3
}


@dataclass(frozen=True)
class Noise:
    """What is dropped.

    Attributes:
        title: In tables and figures.
        rate: Of `guides.Dropout`.
        epochs: Passes over the training data, the same for every α.
    """

    title: str
    rate: Any
    epochs: int


# The paper does not tell whether pixels are dropped; the code that its authors published drops them. That takes three
# times as long, for then the particles have no first layer in common.
NOISES: dict[str, Noise] = {
    "hidden": Noise("hidden units dropped", None, epochs=30),
    "all": Noise("pixels and hidden units dropped", {"*": 0.5}, epochs=20),
}


@dataclass(frozen=True)
class Images:
    """What a fit sees: training and test data, and inputs [N, 1, 28, 28] of another kind, None if there are none."""

    train: data.Dataset
    test: data.Dataset
    others: Tensor | None


@dataclass(frozen=True)
class Job:
    """One fit of all repeats.

    Attributes:
        noise: One of `NOISES`.
        alpha: Of `objectives.BBAlpha`.
        epochs: Passes over the training data.
        draws: Posterior draws of the test predictions.
        chains: Repeats.
        points: How many times the test data are scored, evenly spaced over the epochs, the last included.
        seed: Fixes initial networks, fit and draws.
    """

    noise: str
    alpha: float
    epochs: int
    draws: int
    chains: int
    points: int
    seed: int

    def scored(self) -> list[int]:
        """The epochs after which the test data are scored."""
        return sorted({math.ceil(self.epochs * (point + 1) / self.points) for point in range(self.points)})

    def network(self) -> tuple[BayesianNetwork, guides.Dropout]:
        """Model and guide."""
        torch.manual_seed(self.seed)
        prior = prior_rules.Normal(0.0, math.sqrt(SETTING["prior_variance"]))
        bnn = BayesianNetwork(models.MLP(784, 10, hidden=(100, 100)), likelihoods.Categorical(), prior)
        return bnn, guides.Dropout(bnn, NOISES[self.noise].rate)

    def objective(self) -> objectives.BBAlpha:
        """What is minimized."""
        return objectives.BBAlpha(self.alpha, SETTING["particles"])


def run(job: Job, images: Images, keep: Path) -> dict[str, Any]:
    """Fit and score, or go on where an earlier call was interrupted.

    Args:
        job: What to fit.
        images: The data.
        keep: Folder of results and checkpoints.

    Returns:
        `setting`; `seconds` of processor time that the fit took, scoring left out, for so many `steps`; `curve`, by
        epoch the scores of each chain; `others`, each chain's mean entropy of the predicted class for other inputs.

    Raises:
        SystemExit: If the folder holds the result of another setting.
    """
    name = f"{job.noise}-{job.alpha}"
    path = keep / f"{name}.json"
    setting = {**vars(job), **SETTING, "rows": len(images.train)}
    record: dict[str, Any] = {"setting": setting, "seconds": 0.0, "steps": 0, "curve": {}}
    if path.exists():
        record = json.loads(path.read_text())
        if record["setting"] != setting:
            raise SystemExit(f"{path} is of the setting {record['setting']}, not {setting}: keep this one elsewhere")
    if str(job.epochs) in record["curve"]:
        return record
    bnn, guide = job.network()
    clock = time.process_time()

    def after_epoch(state: Progression) -> None:
        nonlocal clock
        record["seconds"] += time.process_time() - clock
        record["steps"] = state.epoch * math.ceil(len(images.train) / SETTING["batch_size"])
        if state.epoch in job.scored():
            posterior = snapshot(bnn, guide, state.parameters)
            prediction = posterior.predict(images.test.x, num_samples=job.draws, seed=job.seed)
            scores = by_chain(prediction, images.test.y)
            record["curve"][str(state.epoch)] = scores
            print(f"{name}: epoch {state.epoch} of {job.epochs}, {record['seconds']:.0f} CPU s, ", end="")
            print(f"error {1 - np.mean(scores['accuracy']):.4f}, NLL {np.mean(scores['nll']):.4f}", flush=True)
            if state.epoch == job.epochs and images.others is not None:
                prediction = posterior.predict(images.others, num_samples=job.draws, seed=job.seed)
                each = (prediction.chain(chain).entropy.mean() for chain in range(job.chains))
                record["others"] = [float(value) for value in each]
        path.write_text(json.dumps(record, indent=2) + "\n")
        clock = time.process_time()

    bnnzoo.fit(
        bnn,
        guide,
        images.train,
        objective=job.objective(),
        epochs=job.epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=job.epochs),
        chains=job.chains,
        seed=job.seed,
        checkpoint=keep / f"{name}.checkpoint",
        callback=after_epoch,
        progress=False,
    ).save(keep / f"{name}.bnn")
    return record


def snapshot(bnn: BayesianNetwork, guide: guides.Guide, parameters: Mapping[str, Tensor]) -> Posterior:
    """A posterior of the chains' parameters [chain, ...] as they are in the midst of a fit."""
    pair = Pair(bnn, guide).copy()
    values = {name: value.detach().clone() for name, value in parameters.items()}
    chains = len(next(iter(values.values())))
    return Posterior(pair.eval(), values, stack([pair] * chains)[1])


def by_chain(prediction: Prediction, y: Tensor) -> dict[str, list[float]]:
    """Scores of each chain alone."""
    chains = prediction.shape[0]
    scores = [evaluation.score(prediction.chain(chain), y) for chain in range(chains)]
    return {key: [each[key] for each in scores] for key in scores[0]}


def report(records: Mapping[Job, dict[str, Any]]) -> str:
    """The table of the final scores: means and standard errors over repeats."""
    header = ["", "α", "epochs", "test accuracy", "test log likelihood", "ECE", "entropy", "entropy, notMNIST"]
    lines = []
    for job, record in records.items():
        scores = record["curve"][str(job.epochs)]
        cells = [NOISES[job.noise].title, f"{job.alpha:g}", str(job.epochs)]
        cells.append(plus_minus([100 * value for value in scores["accuracy"]]) + "%")
        cells.append(plus_minus([-value for value in scores["nll"]], ".4f"))
        cells += [plus_minus(scores[key], ".4f") for key in ("ece", "entropy")]
        cells.append(plus_minus(record["others"], ".3f") if "others" in record else "")
        lines.append([*cells, f"{1e3 * record['seconds'] / record['steps']:.1f}", f"{record['seconds']:.0f}"])
    return table([*header, "CPU ms a step", "fit, CPU s"], lines)


PANELS = {"accuracy": ("test accuracy, %", 100.0), "nll": ("test log likelihood, nats", -1.0)}
COLORS = ("#0072B2", "#E69F00", "#009E73")  # of Okabe and Ito
MARKS = ("o", "s", "^")


def draw(records: Mapping[Job, dict[str, Any]]) -> Figure:
    """Final scores by α, and their course over the epochs; one row a kind of noise."""
    noises = list(dict.fromkeys(job.noise for job in records))
    figure = Figure(figsize=(12, 0.6 + 2.9 * len(noises)), layout="constrained")
    for axes, noise in zip(figure.subplots(len(noises), 4, squeeze=False), noises, strict=True):
        mine = {job: record for job, record in records.items() if job.noise == noise}
        for place, (key, (label, factor)) in enumerate(PANELS.items()):
            by_alpha, course = axes[place], axes[place + 2]
            for (job, record), color, mark in zip(mine.items(), COLORS, MARKS, strict=False):
                curve = {int(epoch): factor * np.array(scores[key]) for epoch, scores in record["curve"].items()}
                _dots(by_alpha, job, curve[job.epochs], color, mark)
                _line(course, job, curve, color, mark)
            by_alpha.set_xticks([job.alpha for job in mine])
            by_alpha.margins(x=0.25)
            by_alpha.set_xlabel("α")
            course.set_xlabel("epoch")
            for ax in (by_alpha, course):
                ax.set_ylabel(label)
                ax.spines[["top", "right"]].set_visible(False)
                ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
                ax.set_axisbelow(True)
        axes[0].set_title(NOISES[noise].title, fontsize=11, loc="left")
        axes[3].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _dots(ax: Axes, job: Job, values: np.ndarray, color: str, mark: str) -> None:
    mean, error = mean_and_error(values.tolist())
    ax.plot(np.full(len(values), job.alpha + 0.1), values, ".", color=color, markersize=5, alpha=0.5)
    ax.errorbar(job.alpha, mean, error, fmt=mark, color=color, capsize=3, markersize=6)


def _line(ax: Axes, job: Job, curve: dict[int, np.ndarray], color: str, mark: str) -> None:
    epochs = sorted(curve)
    mean, error = np.array([mean_and_error(curve[epoch].tolist()) for epoch in epochs]).T
    ax.plot(epochs, mean, marker=mark, markersize=3.5, color=color, linewidth=1.2, label=f"α = {job.alpha:g}")
    ax.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES), metavar="NOISE")
    options.add_argument("--alphas", nargs="+", type=float, default=list(ALPHAS), metavar="ALPHA")
    options.add_argument("--epochs", type=int, help="passes over the training data, for all noises alike")
    options.add_argument("--draws", type=int, default=100, help="posterior draws of the test predictions")
    options.add_argument("--chains", type=int, default=3, help="repeats")
    options.add_argument("--points", type=int, default=10, help="points of the learning curves")
    options.add_argument("--keep", type=Path, help="folder of results and checkpoints, to go on from")
    options.add_argument("--figure", type=Path, help="draw the scores into this file")
    arguments = parsed(options, ("epochs", "draws", "chains", "points"))
    if arguments.smoke:
        arguments.epochs, arguments.draws, arguments.chains, arguments.points = 2, 2, 2, 2
    start(arguments)
    images = _digits() if arguments.smoke else _images()
    records = {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        for noise in arguments.noises:
            for alpha in arguments.alphas:
                epochs = arguments.epochs or NOISES[noise].epochs
                rest = (arguments.draws, arguments.chains, arguments.points, arguments.seed)
                job = Job(noise, alpha, epochs, *rest)
                records[job] = run(job, images, keep)
    print("\n" + describe(environment(arguments)), "\n")
    print(report(records))
    if arguments.figure is not None:
        draw(records).savefig(arguments.figure, dpi=150)
    write(arguments, list(records.values()))


def _images() -> Images:
    train, test = data.load("mnist").split()
    try:
        others = data.load("notmnist").x
    except FileNotFoundError as error:
        print(f"{error}\nno entropy of notMNIST\n")
        others = None
    return Images(train, test, others)


def _digits() -> Images:
    train, test = enlarged_digits()
    return Images(train, test, 1.0 - test.x)


if __name__ == "__main__":
    main()

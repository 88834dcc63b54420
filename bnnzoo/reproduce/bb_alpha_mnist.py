"""BB-α paper (Li and Gal, 2017), Figures 4 and 5: dropout networks on MNIST by α, their accuracy and log likelihood.

Section 5.2: a network of two hidden layers of 100 ReLU, and the convolutional one of Keras' example; rate 0.5, K = 10
in training, 100 draws at test, weight decay 1e-6, three repeats, here the chains of one fit. Whether pixels are dropped
the paper does not tell; the code that its authors published drops them: `bb-alpha/figure-4-pixels`. That takes three
times as long, for then the particles have no first layer in common. The figures have no printed numbers. Of the paper's
other items, Figure 1 is a code snippet, Figures 2 and 3 are UCI data (`bb_alpha_uci`), 6 and 7 adversarial examples
(`bb_alpha_adversarial`); the appendix, with full results and run times, is not at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from bnnzoo import data, files, guides, likelihoods, models, objectives, priors
from bnnzoo.evaluation import score
from bnnzoo.evaluation.style import MARKERS, PALETTE, styled
from bnnzoo.loop import Progression
from bnnzoo.network import BayesianNetwork
from bnnzoo.prediction import Prediction
from bnnzoo.reproduce.entry import Context, Entry, Result, Table, mean_and_error, plus_minus
from bnnzoo.reproduce.fits import OtherSettingError, enlarged_digits, snapshot, trained

ALPHAS = (0.0, 0.5, 1.0)
PARTICLES, BATCH_SIZE = 10, 128
LR = 1e-3
"""Falls to 0 along a cosine, epoch by epoch."""
PRIOR_VARIANCE = 10.0
"""Weight decay 1e-6 a datum is a variance of 1 / (2 · 60,000 · 1e-6) = 8.3."""


@dataclass(frozen=True)
class Kind:
    """A network and what is dropped in it.

    Attributes:
        title: In tables and figures.
        network: Builds it.
        small: Arguments that make it small, for the scale `smoke`.
        guide: Builds the guide.
        epochs: Passes over the training data at the scale `cpu`, the same for every α.
        rows: Of the training data at that scale; None is all.
    """

    title: str
    network: Callable[..., nn.Module]
    small: Mapping[str, Any]
    guide: Callable[[BayesianNetwork], guides.Guide]
    epochs: int
    rows: int | None = None


_MLP: tuple[Callable[..., nn.Module], Mapping[str, Any]]
_MLP = partial(models.MLP, 784, 10, hidden=(100, 100)), {"hidden": (10, 10)}
KINDS: dict[str, Kind] = {
    "mlp": Kind("MLP, hidden units dropped", *_MLP, guides.Dropout, epochs=30),
    "mlp-pixels": Kind("MLP, pixels and hidden units dropped", *_MLP, partial(guides.Dropout, rate={"*": 0.5}), 20),
    "cnn": Kind(
        "Keras' CNN",
        models.KerasCNN,
        {"filters": 4, "hidden": 10},
        partial(guides.Dropout, from_dropout_layers=True),  # before each of the dense layers
        epochs=8,
        rows=10_000,
    ),
}


@dataclass(frozen=True)
class Job:
    """One fit of all repeats.

    Attributes:
        kind: One of `KINDS`.
        alpha: Of `objectives.BBAlpha`.
        epochs: Passes over the training data.
        rows: Of the training data; None is all.
        particles: K in training.
        draws: Posterior draws of the test predictions.
        chains: Repeats.
        points: How many times the test data are scored, evenly spaced over the epochs, the last included.
        seed: Fixes initial networks, fit and draws.
    """

    kind: str
    alpha: float
    epochs: int
    rows: int | None
    particles: int
    draws: int
    chains: int
    points: int
    seed: int

    def scored(self) -> list[int]:
        """The epochs after which the test data are scored."""
        return sorted({math.ceil(self.epochs * (point + 1) / self.points) for point in range(self.points)})


def job_of(context: Context, kind: str, alpha: float) -> Job:
    """What a scale asks for.

    Args:
        context: Of the run.
        kind: One of `KINDS`.
        alpha: Of the objective.
    """
    chosen = KINDS[kind]
    particles, draws, chains, points = context.pick((2, 2, 2, 2), (PARTICLES, 100, 3, 10), (PARTICLES, 100, 3, 20))
    rows = context.pick(None, chosen.rows, None)
    epochs = context.pick(2, chosen.epochs, 500)
    return Job(kind, alpha, epochs, rows, particles, draws, chains, points, context.seed)


@dataclass(frozen=True)
class Images:
    """Training and test data, and inputs [N, 1, 28, 28] of another kind, None if there are none."""

    train: data.Dataset
    test: data.Dataset
    others: Tensor | None


def images_of(context: Context) -> Images:
    """MNIST, and notMNIST if it is at hand; at the scale `smoke`, embedded digits and their negatives.

    Args:
        context: Of the run.
    """
    if context.scale == "smoke":
        train, test = enlarged_digits()
        return Images(train, test, test.x.max() - test.x)
    train, test = data.load("mnist").split()
    try:
        others = data.load("notmnist").x
    except FileNotFoundError as error:
        context.say(f"{error}\nno entropy of notMNIST\n")
        others = None
    return Images(train, test, others)


def fit_and_score(context: Context, job: Job, images: Images) -> dict[str, Any]:
    """Fit and score, or go on where an earlier call was interrupted.

    Args:
        context: Of the run.
        job: What to fit.
        images: The data.

    Returns:
        `setting`; `curve`, by epoch the scores of each chain; `others`, each chain's mean entropy of the predicted
        class for other inputs; `seconds` of processor time that the fit took, scoring left out, for so many `steps`.

    Raises:
        OtherSettingError: If the folder holds the result of another setting.
    """
    name = f"{job.kind}-{job.alpha:g}"
    path = context.folder / f"{name}.json"
    train = images.train if job.rows is None else images.train.subset(slice(job.rows))
    record: dict[str, Any] = {"setting": {**asdict(job), "rows": len(train)}, "curve": {}}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["setting"] != record["setting"]:
            raise OtherSettingError(f"{path} was made with the setting {kept['setting']}, not {record['setting']}")
        record = kept
    torch.manual_seed(job.seed)
    prior = priors.Normal(0.0, math.sqrt(PRIOR_VARIANCE))
    kind = KINDS[job.kind]
    network = kind.network(**(kind.small if context.scale == "smoke" else {}))
    bnn = BayesianNetwork(network, likelihoods.Categorical(), prior)
    guide = kind.guide(bnn)

    def after_epoch(state: Progression) -> None:
        if state.epoch not in job.scored():
            return
        posterior = snapshot(bnn, guide, state.parameters)
        scores = by_chain(posterior.predict(images.test.x, job.draws, job.seed), images.test.y)
        record["curve"][str(state.epoch)] = scores
        if state.epoch == job.epochs and images.others is not None:
            prediction = posterior.predict(images.others, job.draws, job.seed)
            each = (prediction.chain(chain).entropy.mean() for chain in range(job.chains))
            record["others"] = [float(value) for value in each]
        files.write_text(path, json.dumps(record, indent=2) + "\n")
        context.say(f"{name}: error {1 - np.mean(scores['accuracy']):.4f}, PLL {np.mean(scores['pll']):.4f}")

    posterior = trained(
        context.folder / f"{name}.bnn",
        bnn,
        guide,
        train,
        say=context.say,
        callback=after_epoch,
        objective=objectives.BBAlpha(job.alpha, job.particles),
        epochs=job.epochs,
        batch_size=BATCH_SIZE,
        lr=LR,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=job.epochs),
        chains=job.chains,
        seed=job.seed,
    )
    return {**record, "seconds": posterior.info["seconds"], "steps": job.epochs * math.ceil(len(train) / BATCH_SIZE)}


def by_chain(prediction: Prediction, y: Tensor) -> dict[str, list[float]]:
    """Scores of each chain alone."""
    found = score(prediction, y)
    return {name: found[name].values.tolist() for name in ("accuracy", "pll", "ece", "entropy")}


def report(records: Mapping[Job, dict[str, Any]], title: str) -> Table:
    """The table of the final scores: means and standard errors over repeats.

    Args:
        records: What `fit_and_score` returned.
        title: Of the network.
    """
    header = ["α", "epochs", "test accuracy, %", "PLL, nats", "ECE", "entropy, nats", "entropy, notMNIST, nats"]
    rows = []
    for job, record in records.items():
        scores = record["curve"][str(job.epochs)]
        cells = [f"{job.alpha:g}", str(job.epochs), plus_minus([100 * value for value in scores["accuracy"]])]
        cells += [plus_minus(scores[name], ".4f") for name in ("pll", "ece", "entropy")]
        cells.append(plus_minus(record["others"], ".3f") if "others" in record else "")
        rows.append([*cells, f"{1e3 * record['seconds'] / record['steps']:.1f}", f"{record['seconds']:.0f}"])
    caption = f"{title} on MNIST, mean ± standard error over repeats"
    return Table(caption, [*header, "CPU ms a step", "fit, CPU s"], rows)


PANELS = {"accuracy": ("test accuracy, %", 100.0), "pll": ("test PLL, nats", 1.0)}


def draw(records: Mapping[Job, dict[str, Any]], title: str) -> Figure:
    """Final scores by α, and their course over the epochs.

    Args:
        records: What `fit_and_score` returned.
        title: Of the network.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    for place, (key, (label, factor)) in enumerate(PANELS.items()):
        by_alpha, course = styled(axes[place]), styled(axes[place + 2])
        for (job, record), color, mark in zip(records.items(), PALETTE, MARKERS, strict=False):
            curve = {int(epoch): factor * np.array(scores[key]) for epoch, scores in record["curve"].items()}
            _dots(by_alpha, job, curve[job.epochs], color, mark)
            _line(course, job, curve, color, mark)
        by_alpha.set_xticks([job.alpha for job in records])
        by_alpha.margins(x=0.25)
        by_alpha.set_xlabel("α")
        course.set_xlabel("epoch")
        course.xaxis.set_major_locator(MaxNLocator(integer=True))
        for ax in (by_alpha, course):
            ax.set_ylabel(label)
    axes[0].set_title(title, fontsize=11, loc="left")
    axes[3].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _dots(ax: Axes, job: Job, values: np.ndarray, color: str, mark: str) -> None:
    mean, error = mean_and_error(values.tolist())
    ax.plot(np.full(len(values), job.alpha + 0.1), values, ".", color=color, markersize=5, alpha=0.5)
    ax.errorbar(job.alpha, mean, error, fmt=mark, color=color, capsize=3, markersize=6)


def _line(ax: Axes, job: Job, curve: Mapping[int, np.ndarray], color: str, mark: str) -> None:
    epochs = sorted(curve)
    mean, error = np.array([mean_and_error(curve[epoch].tolist()) for epoch in epochs]).T
    ax.plot(epochs, mean, marker=mark, markersize=3.5, color=color, linewidth=1.2, label=f"α = {job.alpha:g}")
    ax.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)


def run(context: Context, kind: str, finding: str, file: str) -> Result:
    """One of the figures.

    Args:
        context: Of the run.
        kind: One of `KINDS`.
        finding: What the paper says.
        file: Of the figure.
    """
    images, chosen = images_of(context), KINDS[kind]
    jobs = [job_of(context, kind, alpha) for alpha in ALPHAS]
    records = {job: fit_and_score(context, job, images) for job in jobs}
    notes = [f"The paper's figure has no printed numbers: {finding}."]
    if context.scale != "smoke":
        rows = "all" if jobs[0].rows is None else f"the first {jobs[0].rows:,}"
        notes.append(
            f"{jobs[0].epochs} epochs of Adam on {rows} images, the rate from {LR} to 0 along a cosine; the paper does "
            "not tell its optimizer, its published code runs SGD for 500 epochs."
        )
    values = {f"α = {job.alpha:g}": record for job, record in records.items()}
    return Result([report(records, chosen.title)], {file: draw(records, chosen.title)}, notes, values)


_SOURCE = "Li & Gal 2017 (BB-α), Figure"
_MLP_FINDING = "0.5 has the best accuracy, the log likelihood of 0.5 and 1 is the same, 0 is behind in both"
ENTRIES = (
    Entry(
        "bb-alpha/figure-4",
        "An MLP on MNIST by α",
        f"{_SOURCE} 4",
        partial(run, kind="mlp", finding=_MLP_FINDING, file="mnist-alpha"),
        data=("mnist",),
        minutes=25,
    ),
    Entry(
        "bb-alpha/figure-4-pixels",
        "An MLP on MNIST by α, pixels dropped too",
        f"{_SOURCE} 4, as its published code",
        partial(run, kind="mlp-pixels", finding=_MLP_FINDING, file="mnist-alpha-pixels"),
        data=("mnist",),
        minutes=50,
    ),
    Entry(
        "bb-alpha/figure-5",
        "A convolutional network on MNIST by α",
        f"{_SOURCE} 5",
        partial(run, kind="cnn", finding="0 is ahead of 1, and like 0.5, in both", file="mnist-alpha-cnn"),
        data=("mnist",),
        minutes=30,
    ),
)

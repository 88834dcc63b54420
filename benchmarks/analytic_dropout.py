"""Analytic dropout: noise whose moments are propagated in training, beside sampled noise and none, by epoch.

    BNNZOO_DATA=../shared/data python benchmarks/analytic_dropout.py --figure docs/analytic-dropout.png

Shekhovtsov & Flach 2018, section 4 and Figure 4: dropout after every activation, one initial point, Adam at a learning
rate of 0.001 · 0.96^k in epoch k, batches of 128, a tenth of the training data held out for validation. With `--keep`,
what is finished stays finished and what was interrupted goes on. `--network cifar` is the paper's network, for a GPU.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from common import (
    CLOCKS,
    LR,
    Contender,
    describe,
    enlarged_digits,
    environment,
    interleave,
    parsed,
    parser,
    ratio,
    start,
    table,
    trained_network,
    write,
)
from floors_moments import analytic_dropout_step
from matplotlib.figure import Figure
from mnist_alpha import snapshot
from step_time import bnnzoo_contender
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bnnzoo
from bnnzoo import BayesianNetwork, data, guides, likelihoods, models, moments, objectives, priors
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.loop import Progression

SETTING: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-3,
    "decay": 0.96,  # of the learning rate, an epoch
    "held_out": 0.1,
    "prior_variance": 10.0,  # a weight decay of 1e-6 a datum: next to none, as in the paper
}


@dataclass(frozen=True)
class Method:
    """How dropout is met in training.

    Attributes:
        title: In tables and figures.
        objective: What is minimized.
        noisy: Whether there is dropout at all.
    """

    title: str
    objective: Callable[[], objectives.Objective]
    noisy: bool = True


MODES: tuple[Literal["ap1", "ap2"], ...] = ("ap1", "ap2")

METHODS: dict[str, Method] = {
    "none": Method("no dropout", objectives.ELBO, noisy=False),
    "sampled": Method("sampled dropout", objectives.ELBO),
    "analytic": Method("analytic, -log q(y)", partial(objectives.MomentELBO, alpha=1.0, softmax="simplified")),
    # What sampled dropout minimizes without bias: the expectation of -log p(y), here in closed form (a bound).
    "expected": Method("analytic, E log p(y)", objectives.MomentELBO),
}


@dataclass(frozen=True)
class Images:
    """Data to train on, to score every epoch on, and test data, for others than this script."""

    train: data.Dataset
    validation: data.Dataset
    test: data.Dataset


def images_of(name: str | None) -> Images:
    """A data set by name, a tenth of its training data held out for validation; None: a few enlarged digits."""
    train, test = enlarged_digits() if name is None else data.load(name).split()
    parts = train.split(SETTING["held_out"], seed=0, standardize=False)
    return Images(parts.train, parts.test, test)


@dataclass(frozen=True)
class Job:
    """One fit.

    Attributes:
        network: `mlp` or `cifar`.
        hidden: Units of each of the two hidden layers of the MLP.
        width: Factor on the filters of the convolutional network.
        method: One of `METHODS`.
        rate: Dropout's p; 0 for the method without.
        seed: Fixes the initial point, the same for all methods, the minibatches, and the draws.
    """

    network: str
    hidden: int
    width: float
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.network}-{self.method}-{self.rate:g}"

    def model(self, images: Tensor) -> BayesianNetwork:
        """The network with its dropout layers, under a prior that hardly decays the weights.

        Args:
            images: Some training data, [N, C, H, W].
        """
        torch.manual_seed(self.seed)
        network = mlp(self.hidden, self.rate) if self.network == "mlp" else convolutional(self.rate, self.width, images)
        return BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, SETTING["prior_variance"] ** 0.5))


def mlp(hidden: int, rate: float) -> models.MLP:
    """784-h-h-10 with dropout after activations."""
    return models.MLP(784, 10, hidden=(hidden, hidden), dropout=rate)


@torch.no_grad()
def convolutional(rate: float, width: float, images: Tensor) -> nn.Sequential:
    """The paper's network of nine convolutions, started so that a batch of images normalizes it, but not normalized.

    Args:
        rate: Of dropout after activations.
        width: Factor on the numbers of filters.
        images: The batch, [N, C, H, W].
    """
    result: list[nn.Module] = []
    x = images
    for layer in models.MomentCIFARNet(images.shape[1], dropout=rate, width=width).eval().layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the batch's statistics become the running ones
            layer.train()(x)
            result[-1] = fuse_conv_bn_eval(result[-1], layer.eval())
        else:
            result.append(layer)
        x = layer(x)
    return nn.Sequential(*result)


def run(job: Job, epochs: int, images: Images, keep: Path, device: str = "cpu") -> dict[str, Any]:
    """Fit and score, or go on where an earlier call, of fewer epochs perhaps, came to an end.

    Args:
        job: What to fit.
        epochs: Passes over the training data.
        images: The data.
        keep: Folder of results and checkpoints.
        device: Of the fit.

    Returns:
        `setting`; `curve`, by epoch the scores on the validation data and `seconds`, the processor time that the fit
        took so far, scoring left out.

    Raises:
        SystemExit: If the folder holds the result of another setting.
    """
    path = keep / f"{job.name}.json"
    setting = {**vars(job), **SETTING, "rows": len(images.train)}
    record: dict[str, Any] = {"setting": setting, "curve": {}}
    if path.exists():
        record = json.loads(path.read_text())
        if record["setting"] != setting:
            raise SystemExit(f"{path} is of the setting {record['setting']}, not {setting}: keep this one elsewhere")
    if str(epochs) in record["curve"]:
        return record
    bnn = job.model(images.train.x[:1000]).to(device)
    guide = guides.Map(bnn)
    seconds = max((scores["seconds"] for scores in record["curve"].values()), default=0.0)
    clock = time.process_time()

    def after_epoch(state: Progression) -> None:
        nonlocal clock, seconds
        seconds += time.process_time() - clock
        scores = scored(trained_network(snapshot(bnn, guide, state.parameters)), images.validation)
        record["curve"][str(state.epoch)] = {"seconds": seconds, **scores}
        print(f"{job.name}: epoch {state.epoch}, {seconds:.0f} CPU s, ", end="")
        print(", ".join(f"{way}: error {1 - s['accuracy']:.4f}, NLL {s['nll']:.4f}" for way, s in scores.items()))
        path.write_text(json.dumps(record, indent=2) + "\n")
        clock = time.process_time()

    bnnzoo.fit(
        bnn,
        guide,
        images.train,
        objective=METHODS[job.method].objective(),
        epochs=epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=SETTING["decay"]),
        seed=job.seed,
        checkpoint=keep / f"{job.name}.checkpoint",
        callback=after_epoch,
        progress=False,
    )
    return record


@torch.no_grad()
def scored(network: nn.Module, part: data.Dataset) -> dict[str, dict[str, float]]:
    """Accuracy and NLL of the two predictions: dropout replaced by its mean (AP1), its moments propagated (AP2)."""
    device = next(network.parameters()).device
    result = {}
    for mode in MODES:
        log_probs = torch.cat([log_probabilities(network, x.to(device), mode).cpu() for x in part.x.split(500)])
        accuracy = (log_probs.argmax(1) == part.y).double().mean().item()
        result[mode] = {"accuracy": accuracy, "nll": nn.functional.nll_loss(log_probs, part.y).item()}
    return result


def log_probabilities(network: nn.Module, x: Tensor, mode: Any) -> Tensor:
    """Log class probabilities [N, K]: the simplified softmax (eq. 52) of the propagated logits."""
    logits = moments.propagate(network, x, mode=mode)
    return log_softmax(logits.loc, logits.variance, 1, "simplified")


def step_contenders(hidden: int, rate: float, batch_size: int) -> list[Contender]:
    """One optimizer step by method, and analytic dropout written by hand."""
    x, y = torch.rand(4 * batch_size, 784), torch.randint(10, (4 * batch_size,))
    result = []
    for method in METHODS.values():
        network = mlp(hidden, rate if method.noisy else 0.0)
        result.append(
            bnnzoo_contender(method.title, network, x, y, batch_size, guide=guides.Map, objective=method.objective())
        )
    step = analytic_dropout_step(mlp(hidden, rate).layers, x[:batch_size], y[:batch_size], LR)
    return [*result, Contender("analytic, -log q(y), written by hand", step)]


def report(records: Mapping[Job, dict[str, Any]], epochs: int) -> str:
    """The table of the scores after so many epochs."""
    header = ["p", f"after {epochs} epochs", "validation error, AP1", "AP2", "validation NLL, AP1", "AP2"]
    header += ["least NLL by epoch, AP1", "AP2", "training, CPU s"]
    lines = []
    for job, record in records.items():
        curve = {int(epoch): scores for epoch, scores in record["curve"].items() if int(epoch) <= epochs}
        last = curve[epochs]
        cells = [f"{job.rate:g}" if job.rate else "", METHODS[job.method].title]
        cells += [f"{100 * (1 - last[mode]['accuracy']):.2f}%" for mode in MODES]
        cells += [f"{last[mode]['nll']:.4f}" for mode in MODES]
        for mode in MODES:
            best = min(curve, key=lambda epoch: curve[epoch][mode]["nll"])
            cells.append(f"{curve[best][mode]['nll']:.4f} ({best})")
        lines.append([*cells, f"{last['seconds']:.0f}"])
    return table(header, lines)


COLORS = {"none": "#555555", "sampled": "#E69F00", "analytic": "#0072B2", "expected": "#009E73"}  # Okabe and Ito
MARKS = {"none": "^", "sampled": "s", "analytic": "o", "expected": "D"}
PANELS = {"accuracy": ("validation error, %", lambda value: 100 * (1 - value)), "nll": ("validation NLL, nats", float)}


def draw(records: Mapping[Job, dict[str, Any]], epochs: int) -> Figure:
    """Validation error and NLL by epoch; one row a rate."""
    rates = sorted({job.rate for job in records if job.rate})
    figure = Figure(figsize=(9, 0.5 + 3 * len(rates)), layout="constrained")
    rows = figure.subplots(len(rates), 2, squeeze=False, sharex=True, sharey="col")
    for row, rate in zip(rows, rates, strict=True):
        mine = {job: record for job, record in records.items() if job.rate in (0, rate)}
        for axes, (key, (label, transform)) in zip(row, PANELS.items(), strict=True):
            for job, record in mine.items():
                for mode, style in {"ap1": "-", "ap2": "--"}.items():
                    if mode == "ap2" and not METHODS[job.method].noisy:
                        continue
                    shown = range(1, epochs + 1)
                    values = [transform(record["curve"][str(epoch)][mode][key]) for epoch in shown]
                    label_ = METHODS[job.method].title + (", predicted with AP2" if mode == "ap2" else "")
                    mark = {"marker": MARKS[job.method], "markersize": 3.5} if mode == "ap1" else {}
                    axes.plot(shown, values, style, color=COLORS[job.method], linewidth=1.3, label=label_, **mark)
            axes.set(ylabel=label, title=f"p = {rate:g}")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter(_plain)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6, which="both")
            axes.set_axisbelow(True)
    for axes in rows[-1]:
        axes.set_xlabel("epoch")
    rows[-1][0].legend(frameon=False, fontsize=7.5, loc="upper right")
    return figure


def _plain(value: float, position: int | None) -> str:
    """Labels of a logarithmic axis."""
    return f"{value:g}"


def jobs(network: str, hidden: int, width: float, rates: list[float], seed: int) -> list[Job]:
    """The fits: one without dropout, two for each rate, and for the last one the expected log likelihood."""
    noisy = ("sampled", "analytic")
    pairs = [("none", 0.0), *((name, rate) for rate in rates for name in noisy), ("expected", rates[-1])]
    return [Job(network, hidden, width, name, rate, seed) for name, rate in pairs]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", choices=("mlp", "cifar"), default="mlp")
    options.add_argument("--hidden", type=int, default=400, help="units of each hidden layer of the MLP")
    options.add_argument("--width", type=float, default=1.0, help="factor on the filters of the convolutional network")
    options.add_argument("--device", default="cpu", help="of the fits")
    options.add_argument("--rates", type=float, nargs="+", help="dropout rates; default .2 .5, of cifar .2 .3")
    options.add_argument("--epochs", type=int, default=12, help="passes over the training data")
    options.add_argument("--rounds", type=int, default=20, help="of the timing of a step")
    options.add_argument("--keep", type=Path, help="folder of results and checkpoints, to go on from")
    options.add_argument("--figure", type=Path, help="draw the validation curves into this file")
    arguments = parsed(options, ("hidden", "epochs", "rounds"))
    dataset = "mnist" if arguments.network == "mlp" else "cifar10"
    rates = arguments.rates or [0.2, 0.3 if arguments.network == "cifar" else 0.5]
    if not all(0 < rate < 1 for rate in rates):
        options.error(f"--rates must be between 0 and 1, got {rates}")
    if arguments.smoke:
        arguments.hidden, arguments.width, arguments.epochs, arguments.rounds = 20, 0.05, 2, 2
    start(arguments)
    images = images_of(None if arguments.smoke else dataset)
    records = {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        sizes = arguments.hidden, arguments.width
        for job in jobs(arguments.network, *sizes, rates, arguments.seed):
            records[job] = run(job, arguments.epochs, images, keep, arguments.device)
    print("\n" + describe(environment(arguments)), "\n")
    print(report(records, arguments.epochs), "\n")
    results: dict[str, Any] = {"fits": list(records.values())}
    if arguments.network == "mlp":
        timed = step_contenders(arguments.hidden, rates[-1], SETTING["batch_size"])
        interleave(timed, arguments.rounds, 0.0 if arguments.smoke else 0.02, 1, CLOCKS[arguments.clock])
        header = [f"MLP 784-{arguments.hidden}-{arguments.hidden}-10, batch 128", "ms a step", "ratio to no dropout"]
        header += ["to sampled dropout"]
        lines = [
            [c.name, f"{c.median * 1e3:.3g}", f"{ratio(c, timed[0]):.2f}", f"{ratio(c, timed[1]):.2f}"] for c in timed
        ]
        print(table(header, lines))
        results["steps"] = [{"contender": c.name, "seconds": c.median} for c in timed]
    if arguments.figure is not None:
        draw(records, arguments.epochs).savefig(arguments.figure, dpi=150)
    write(arguments, results)


if __name__ == "__main__":
    main()

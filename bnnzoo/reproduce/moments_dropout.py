"""Analytic dropout: noise whose moments are propagated in training, beside sampled noise and none, by epoch.

Shekhovtsov & Flach 2018, section 4 and Figure 4: dropout after every activation, one initial point, Adam at a learning
rate of 0.001 · 0.96^k in epoch k, batches of 128, a tenth of the training data held out for validation. The paper's
network has nine convolutions, for CIFAR-10 (`moments/figure-4`); an MLP on MNIST, `moments/figure-4-mnist`, takes less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bnnzoo import data, guides, likelihoods, models, moments, objectives, priors
from bnnzoo.evaluation.style import MARKERS, PALETTE, styled
from bnnzoo.files import write_text
from bnnzoo.loop import Progression
from bnnzoo.moments.propagation import Mode
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.network import BayesianNetwork
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import recorded, snapshot, trained, trained_network
from bnnzoo.reproduce.moments_nets import CIFAR_WIDTH, Images, held_out, images_of
from bnnzoo.reproduce.moments_paper import PAPER

SETTING: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-3,
    "decay": 0.96,  # of the learning rate, an epoch
    "prior_variance": 10.0,  # a weight decay of 1e-6 a datum: next to none, as in the paper
}


@dataclass(frozen=True)
class Method:
    """How dropout is met in training.

    Attributes:
        title: In tables and figures.
        objective: What is minimized.
        noisy: Whether there is dropout at all.
        normalized: Whether the network is normalized by propagated statistics.
    """

    title: str
    objective: Callable[[], objectives.Objective]
    noisy: bool = True
    normalized: bool = False


ANALYTIC = partial(objectives.MomentELBO, alpha=1.0, softmax="simplified")
MODES: tuple[Mode, ...] = ("ap1", "ap2")

METHODS: dict[str, Method] = {
    "none": Method("no dropout", objectives.ELBO, noisy=False),
    "sampled": Method("sampled dropout", objectives.ELBO),
    "analytic": Method("analytic, -log q(y)", ANALYTIC),
    # What sampled dropout minimizes without bias: the expectation of -log p(y), here in closed form (a bound).
    "expected": Method("analytic, E log p(y)", objectives.MomentELBO),
    "normalized": Method("analytic, -log q(y), AP2-normalized", ANALYTIC, normalized=True),
}


@dataclass(frozen=True)
class Job:
    """One fit.

    Attributes:
        hidden: Units of each of two hidden layers; None is the paper's network of nine convolutions.
        width: Factor on the filters of the convolutional network.
        method: One of `METHODS`.
        rate: Dropout's p; 0 for the method without.
        epochs: Passes over the training data.
        seed: Fixes the initial point, the same for all methods, the minibatches, and the draws.
    """

    hidden: int | None
    width: float
    method: str
    rate: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.rate:g}"

    def model(self, images: Tensor) -> BayesianNetwork:
        """The network with its dropout layers, under a prior that hardly decays the weights.

        Args:
            images: Some training data, [N, C, H, W].
        """
        torch.manual_seed(self.seed)
        if self.hidden is not None:
            network: nn.Module = models.MLP(784, 10, hidden=(self.hidden, self.hidden), dropout=self.rate)
        elif METHODS[self.method].normalized:
            network = normalized(self.rate, self.width, images)
        else:
            network = convolutional(self.rate, self.width, images)
        return BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, SETTING["prior_variance"] ** 0.5))


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
            convolution = result.pop()
            assert isinstance(convolution, nn.Conv2d)
            result.append(fuse_conv_bn_eval(convolution, layer.eval()))
        else:
            result.append(layer)
        x = layer(x)
    return nn.Sequential(*result)


def normalized(rate: float, width: float, images: Tensor) -> moments.Normalized:
    """The same network, normalized by the statistics of the images that are propagated from one pixel, as it starts.

    Args:
        rate: As of `convolutional`.
        width: As of `convolutional`.
        images: As of `convolutional`.
    """
    layers = models.MomentCIFARNet(images.shape[1], dropout=rate, width=width).layers
    norms = (moments.MomentNorm(layer.num_features) if isinstance(layer, nn.BatchNorm2d) else layer for layer in layers)
    channels = images.transpose(0, 1).flatten(1)
    return moments.Normalized(nn.Sequential(*norms), channels.mean(1), channels.var(1))


def run(job: Job, images: Images, context: Context) -> dict[str, Any]:
    """Fit and score, or go on where an earlier call was interrupted.

    Args:
        job: What to fit.
        images: The data.
        context: Where to keep results and checkpoints.

    Returns:
        `setting`; `curve`, by epoch the scores on the validation data; `seconds`, the processor time of the fit,
        scoring left out.

    Raises:
        OtherSettingError: If the folder holds the result of another setting.
    """
    partial_curve = context.folder / f"{job.name}-curve.json"

    def make() -> dict[str, Any]:
        curve: dict[str, Any] = json.loads(partial_curve.read_text()) if partial_curve.exists() else {}
        device = "cuda" if context.scale == "paper" and torch.cuda.is_available() else "cpu"
        bnn = job.model(images.train.x[:1000]).to(device)
        guide = guides.Map(bnn)

        def after_epoch(state: Progression) -> None:
            network = trained_network(snapshot(bnn, guide, state.parameters))
            curve[str(state.epoch)] = scored(network, images.validation)
            write_text(partial_curve, json.dumps(curve))

        posterior = trained(
            context.folder / f"{job.name}.bnn",
            bnn,
            guide,
            images.train,
            say=context.say,
            callback=after_epoch,
            objective=METHODS[job.method].objective(),
            epochs=job.epochs,
            batch_size=SETTING["batch_size"],
            lr=SETTING["lr"],
            scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=SETTING["decay"]),
            seed=job.seed,
        )
        return {"seconds": posterior.info["seconds"], "curve": curve}

    setting = {**asdict(job), **SETTING, "rows": len(images.train)}
    return recorded(context.folder / f"{job.name}.json", setting, make, context.say)


@torch.no_grad()
def scored(network: nn.Module, part: data.Dataset) -> dict[str, dict[str, float]]:
    """Accuracy and mean log probability (PLL) of two predictions: dropout's mean (AP1), its moments propagated (AP2).

    Args:
        network: In eval mode.
        part: What to predict.
    """
    device = next(network.parameters()).device
    result = {}
    for mode in MODES:
        log_probs = torch.cat([log_probabilities(network, x.to(device), mode).cpu() for x in part.x.split(500)])
        accuracy = (log_probs.argmax(1) == part.y).double().mean().item()
        result[str(mode)] = {"accuracy": accuracy, "pll": -nn.functional.nll_loss(log_probs, part.y).item()}
    return result


def log_probabilities(network: nn.Module, x: Tensor, mode: Mode) -> Tensor:
    """Log class probabilities [N, K]: the simplified softmax (eq. 52) of the propagated logits.

    Args:
        network: Returns logits [N, K].
        x: Inputs, [N, ...].
        mode: Of `moments.propagate`.
    """
    logits = moments.propagate(network, x, mode=mode)
    return log_softmax(logits.loc, logits.variance, 1, "simplified")


def report(records: Mapping[Job, dict[str, Any]]) -> Table:
    """The scores at the end.

    Args:
        records: What `run` returned, by job.
    """
    header = ["p", "", "validation error, AP1", "AP2", "validation PLL, AP1", "AP2"]
    header += ["highest PLL (epoch), AP1", "AP2", "training, CPU s"]
    lines = []
    for job, record in records.items():
        curve, last = record["curve"], record["curve"][str(job.epochs)]
        cells = [f"{job.rate:g}" if job.rate else "", METHODS[job.method].title]
        cells += [f"{100 * (1 - last[mode]['accuracy']):.2f}%" for mode in MODES]
        cells += [f"{last[mode]['pll']:.4f}" for mode in MODES]
        for mode in MODES:
            best = max(curve, key=lambda epoch: curve[epoch][mode]["pll"])
            cells.append(f"{curve[best][mode]['pll']:.4f} ({best})")
        lines.append([*cells, f"{record['seconds']:.0f}"])
    epochs = next(iter(records)).epochs
    return Table(f"After {epochs} epochs; PLL in nats", header, lines)


PANELS: dict[str, tuple[str, Callable[[float], float]]] = {
    "accuracy": ("validation error, %", lambda value: 100 * (1 - value)),
    "pll": ("validation -PLL, nats", lambda value: -value),
}


def draw(records: Mapping[Job, dict[str, Any]]) -> Figure:
    """Validation error and -PLL by epoch; one row a rate.

    Args:
        records: What `run` returned, by job.
    """
    rates = sorted({job.rate for job in records if job.rate})
    figure = Figure(figsize=(9, 0.5 + 3 * len(rates)), layout="constrained")
    rows = figure.subplots(len(rates), 2, squeeze=False, sharex=True, sharey="col")
    looks = dict(zip(METHODS, zip(("black", *PALETTE), MARKERS, strict=False), strict=False))
    for row, rate in zip(rows, rates, strict=True):
        for ax, (key, (label, transform)) in zip(row, PANELS.items(), strict=True):
            for job, record in records.items():
                if job.rate not in (0, rate):
                    continue
                method, (color, mark) = METHODS[job.method], looks[job.method]
                for mode in MODES if method.noisy else MODES[:1]:
                    shown = range(1, job.epochs + 1)
                    values = [transform(record["curve"][str(epoch)][mode][key]) for epoch in shown]
                    first = mode == MODES[0]
                    style: dict[str, Any] = {"marker": mark, "markersize": 3.5} if first else {"linestyle": "--"}
                    label_ = method.title + ("" if first else ", predicted with AP2")
                    ax.plot(shown, values, color=color, linewidth=1.3, label=label_, **style)
            ax.set(ylabel=label, title=f"p = {rate:g}", yscale="log")
            styled(ax).grid(which="both", color="#E6E6E6", linewidth=0.6)
            for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                axis(lambda value, position: f"{value:g}")
    for ax in rows[-1]:
        ax.set_xlabel("epoch")
    handles = {label: line for row in rows for line, label in zip(*row[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def result_of(jobs: Sequence[Job], images: Images, context: Context, notes: Sequence[str]) -> Result:
    """Runs the fits, and puts them into one table and one figure.

    Args:
        jobs: What to fit.
        images: The data.
        context: How.
        notes: Where this departs from the paper.
    """
    records = {job: run(job, images, context) for job in jobs}
    values = {job.name: record for job, record in records.items()}
    name = "analytic-dropout" if jobs[0].hidden else "analytic-dropout-cifar"
    return Result([report(records)], {name: draw(records)}, [*NOTES, *notes], values)


NOTES = (
    "The paper has curves of accuracy without numbers: there analytic dropout is the best at p = 0.2 and 0.3, and "
    "sampled dropout fails to improve on none at p = 0.3.",
    "-log q(y) is the paper's objective; E log p(y) is the closed form of what sampled dropout minimizes. AP1 predicts "
    "with the means of the noise, as the paper does after sampled dropout, AP2 by its moments.",
)


def figure_4(context: Context) -> Result:
    """The nine convolutions on CIFAR-10."""
    rates = context.pick((0.2,), (0.2, 0.3), (0.2, 0.3))
    rest = CIFAR_WIDTH[context.scale], context.pick(1, 6, 200), context.seed
    pairs = [("none", 0.0), *((name, rate) for rate in rates for name in ("sampled", "analytic"))]
    train, test = images_of("cifar10", context)
    rows = context.pick(200, 10_000, None)
    images = held_out((train[:rows], test))
    jobs = [Job(None, rest[0], method, rate, *rest[1:]) for method, rate in [*pairs, ("normalized", rates[0])]]
    notes = [f"The network has {rest[0]:g} of the paper's width; {rest[1]} epochs on {len(images.train)} images."]
    return result_of(jobs, images, context, notes)


def figure_4_mnist(context: Context) -> Result:
    """An MLP of two hidden layers on MNIST, at rates that suit it."""
    hidden = context.pick(20, 400, 1000)
    pairs = [("none", 0.0), *((name, rate) for rate in (0.2, 0.5) for name in ("sampled", "analytic"))]
    jobs = [
        Job(hidden, 1.0, method, rate, context.pick(2, 12, 100), context.seed)
        for method, rate in [*pairs, ("expected", 0.5)]
    ]
    return result_of(jobs, held_out(images_of("mnist", context)), context, ["The paper has no such network."])


ENTRIES = (
    Entry(
        "moments/figure-4",
        "Analytic dropout beside sampled dropout: nine layers, CIFAR-10",
        f"{PAPER}, Figure 4",
        figure_4,
        ("cifar10",),
        minutes=15,
    ),
    Entry(
        "moments/figure-4-mnist",
        "Analytic dropout beside sampled dropout: an MLP, MNIST",
        f"{PAPER}, Figure 4",
        figure_4_mnist,
        ("mnist",),
        minutes=11,
    ),
)

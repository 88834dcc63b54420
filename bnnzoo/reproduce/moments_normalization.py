"""Statistics of a data set propagated from one pixel beside the data's own, and what they are good for.

Table 4 of Shekhovtsov & Flach 2018: LeNet with leaky ReLU or logistic activations, initialized by torch, by batch
statistics, or by propagated ones, layer by layer; how far the propagated mean and standard deviation of each channel
are off. Then short trainings without normalization, with batch norm and with `moments.MomentNorm`: Adam, the learning
rate 10^(-3 - 0.06 k) in epoch k, batches of 128.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo import data, moments
from bnnzoo._vectorize import evaluating
from bnnzoo.evaluation.style import BLUE, GRAY, VERMILION, styled
from bnnzoo.moments.value import Approximation
from bnnzoo.moments.watching import watching
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import recorded
from bnnzoo.reproduce.moments_nets import BATCH, images_of
from bnnzoo.reproduce.moments_paper import PAPER, TABLE_4

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky ReLU": lambda: nn.LeakyReLU(0.01),
    "logistic transform": nn.Sigmoid,
}
LAYERS = ("C1", "A1", "C2", "A2", "C3", "A3", "F")
LINEAR = ("C1", "C2", "C3", "F")
FILTERS = ((1, 32, 5, 2), (32, 64, 5, 2), (64, 50, 4, 1), (50, 10, 1, 1))

APPROXIMATIONS: dict[Approximation, str] = {"exact": "exact moments", "paper": "the paper's approximations"}


def lenet(activation: str, norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """The paper's LeNet; layers are named as in its tables, normalizations N1, N2, ...

    Args:
        activation: One of `ACTIVATIONS`.
        norm: Makes the layer that normalizes so many channels; None: there is none.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (fan_in, fan_out, kernel, stride) in enumerate(FILTERS):
        last = index == len(FILTERS) - 1
        # what normalizes has a bias of its own
        layers["F" if last else f"C{index + 1}"] = nn.Conv2d(fan_in, fan_out, kernel, stride, bias=norm is None)
        if norm is not None:
            layers[f"N{index + 1}"] = norm(fan_out)
        if not last:
            layers[f"A{index + 1}"] = ACTIVATIONS[activation]()
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def measured(network: nn.Module, x: Tensor, batch: int = 1000) -> dict[str, moments.Moments]:
    """Mean and variance of every layer's channels over data and positions.

    Args:
        network: Any; taken in eval mode.
        x: Images, [N, C, H, W].
        batch: How many at once.
    """
    sums: dict[str, list[Tensor]] = {}

    def listen(name: str, module: nn.Module, output: Tensor) -> None:
        value = output.double().transpose(0, 1).flatten(1)
        parts = [torch.tensor(float(value.shape[1])), value.sum(1), value.square().sum(1)]
        sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts

    with torch.no_grad(), evaluating(network), watching(network, listen):
        for rows in x.split(batch):
            network(rows)
    return {
        name: moments.Moments(total / count, squares / count - (total / count).square())
        for name, (count, total, squares) in sums.items()
    }


def initialize_by_data(network: nn.Sequential, x: Tensor) -> None:
    """Rescales each convolution in turn so that its channels have mean 0 and variance 1 over the data.

    Args:
        network: Changed in place.
        x: Images, [N, C, H, W].
    """
    with torch.no_grad():
        for name, layer in network.named_children():
            if isinstance(layer, nn.Conv2d):
                found = measured(network, x)[name]
                mean, scale = found.loc.float(), found.scale.float()
                layer.weight.div_(scale.view(-1, 1, 1, 1))
                if layer.bias is not None:
                    layer.bias.sub_(mean).div_(scale)


def errors(found: dict[str, moments.Moments], truth: dict[str, moments.Moments]) -> tuple[list[float], list[float]]:
    """The paper's errors by layer: of means in standard deviations, of standard deviations as a factor.

    Args:
        found: Propagated moments of the channels, by layer.
        truth: Those of the data.
    """
    mu, sigma = [], []
    for name in LAYERS:
        ours, true = found[name], truth[name]
        mu.append(((ours.loc - true.loc).abs().mean() / true.scale.mean()).item())
        sigma.append((ours.scale.log() - true.scale.log()).mean().exp().item())
    return mu, sigma


def accuracies(x: Tensor, inits: int, approximation: Approximation, seed: int) -> dict[str, dict[str, list[float]]]:
    """Errors of propagated statistics, and the data's own, by activation and initialization.

    Args:
        x: Images, [N, 1, 28, 28].
        inits: Random initializations to average over.
        approximation: Of activations' moments.
        seed: Of the first of them.

    Returns:
        By `"activation, initialization"`: errors of means `mu` and of standard deviations `sigma` by layer; of the
        convolutions, the `variance` of the data's channels and the absolute `mean`, both averaged over channels.
    """
    size, mean, variance = x.shape[2:], x.mean().item(), x.var().item()
    result: dict[str, dict[str, list[float]]] = {}
    for activation, init in itertools.product(ACTIVATIONS, ("None", "BN", "AP2")):
        runs = []
        for each in range(seed, seed + inits):
            torch.manual_seed(each)
            network = lenet(activation)
            if init == "BN":
                initialize_by_data(network, x)
            elif init == "AP2":
                moments.initialize(network, mean, variance, size, approximation=approximation)
            truth = measured(network, x)
            with torch.no_grad():
                mu, sigma = errors(
                    moments.statistics(network, mean, variance, size, approximation=approximation), truth
                )
            spread = [truth[name].variance.mean().item() for name in LINEAR]
            shift = [truth[name].loc.abs().mean().item() for name in LINEAR]
            runs.append((mu, sigma, spread, shift))
        means = [torch.tensor(part).mean(0).tolist() for part in zip(*runs, strict=True)]
        result[f"{activation}, {init}"] = dict(zip(("mu", "sigma", "variance", "mean"), means, strict=True))
    return result


def normalized(network: nn.Module, mean: float, variance: float) -> nn.Module:
    """The network as it runs: one with MomentNorm is told the data's statistics.

    Args:
        network: Any.
        mean: Of all pixels.
        variance: Of all pixels.
    """
    has = any(isinstance(module, moments.MomentNorm) for module in network.modules())
    return moments.Normalized(network, mean, variance) if has else network


KINDS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch norm": nn.BatchNorm2d,
    "MomentNorm": moments.MomentNorm,
}


def train(
    kind: str, activation: str, parts: tuple[data.Dataset, data.Dataset], epochs: int, seed: int
) -> dict[str, list[float]]:
    """One training.

    Args:
        kind: One of `KINDS`.
        activation: One of `ACTIVATIONS`.
        parts: Training and test images.
        epochs: Passes over the training data.
        seed: Fixes the initial weights and the batches.

    Returns:
        By epoch: the `loss` on the training data, the `accuracy` on the test data, and `spent`, seconds of processor
        time.
    """
    fitted_on, test = parts
    torch.manual_seed(seed)
    network = normalized(lenet(activation, KINDS[kind]), fitted_on.x.mean().item(), fitted_on.x.var().item())
    optimizer = torch.optim.Adam(network.parameters())
    curve: dict[str, list[float]] = {"loss": [], "accuracy": [], "spent": []}
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 10 ** (-3 - 0.06 * epoch)
        network.train()
        begin, losses = time.process_time(), []
        for rows in torch.randperm(len(fitted_on)).split(BATCH):
            loss = F.cross_entropy(network(fitted_on.x[rows]), fitted_on.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curve["spent"].append(time.process_time() - begin)
        curve["loss"].append(sum(losses) / len(losses))
        network.eval()
        with torch.no_grad():
            predicted = torch.cat([network(x).argmax(1) for x in test.x.split(1000)])
        curve["accuracy"].append((predicted == test.y).double().mean().item())
    return curve


def draw(found: dict[str, dict[str, list[float]]], curves: dict[str, dict[str, Any]]) -> Figure:
    """Errors by layer, ours and the paper's, and the trainings.

    Args:
        found: What `accuracies` returned.
        curves: By activation and kind, what `train` returned.
    """
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    looks = {name: (color, mark) for names, color, mark in LOOKS for name in names}
    for row, activation in zip(axes, ACTIVATIONS, strict=True):
        for index, (ax, part, label) in enumerate(zip(row, ("mu", "sigma"), ("means, in σ*", "σ / σ*"), strict=False)):
            for init, printed in TABLE_4[activation].items():
                color, mark = looks[init]
                ours = found[f"{activation}, {init}"][part]
                ax.plot(ours, color=color, marker=mark, ms=4, lw=1.4, label=f"initialized by {init}")
                ax.plot(printed[index], color=color, ls=":", marker=mark, mfc="white", ms=4, lw=1)
            ax.set_xticks(range(len(LAYERS)), LAYERS)
            ax.set(title=activation, xlabel="layer", ylabel=f"error of {label}" if index == 0 else f"error, {label}")
        row[1].axhline(1.0, color="black", lw=0.7)
        for kind, curve in curves[activation].items():
            color, mark = looks[kind]
            at = range(1, len(curve["loss"]) + 1)
            row[2].plot(at, curve["loss"], color=color, marker=mark, ms=4, label=kind)
        row[2].set_xticks(at)
        row[2].set(title=activation, xlabel="epoch", ylabel="training loss, nats", yscale="log")
    axes[0, 0].plot([], [], color="black", ls=":", marker="o", mfc="white", ms=4, lw=1, label="the paper's")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 2].legend(fontsize=8, frameon=False)
    for ax in axes.flat:
        styled(ax)
    return figure


LOOKS = (
    (("None", "none"), GRAY, "o"),
    (("BN", "batch norm"), BLUE, "s"),
    (("AP2", "MomentNorm"), VERMILION, "^"),
)
"""Color and marker, the same for the initialization and the layer by the same statistics."""


def table_4(context: Context) -> Result:
    """Errors of propagated statistics, and what they are good for: short trainings."""
    train_part, test = images_of("mnist", context)
    parts = train_part[: context.pick(200, 4000, None)], test
    x, inits, epochs = parts[0].x, context.pick(1, 2, 5), context.pick(1, 3, 10)
    setting = {"images": len(x), "seed": context.seed}

    def errors_of(kind: Approximation) -> dict[str, dict[str, list[float]]]:
        path = context.folder / f"errors-{kind}.json"
        make = partial(accuracies, x, inits, kind, context.seed)
        return recorded(path, {**setting, "inits": inits}, lambda: {"errors": make()}, context.say)["errors"]

    def curve_of(kind: str, activation: str) -> dict[str, list[float]]:
        path = context.folder / f"{activation}-{kind}.json".replace(" ", "-")
        make = partial(train, kind, activation, parts, epochs, context.seed)
        return recorded(path, {**setting, "epochs": epochs}, make, context.say)

    found = {kind: errors_of(kind) for kind in APPROXIMATIONS}
    curves = {activation: {kind: curve_of(kind, activation) for kind in KINDS} for activation in ACTIVATIONS}
    tables = [_errors(found, index, name) for index, name in enumerate(("mu", "sigma"))]
    rows = [
        [name, *(f"{v:.2f}, {m:.2f}" for v, m in zip(each["variance"], each["mean"], strict=True))]
        for name, each in found["exact"].items()
    ]
    caption = "The data's variance of a layer's channels, and their absolute mean (means over channels)"
    tables.append(Table(caption, ["activation, initialization", *LINEAR], rows))
    rows = []
    for activation, kind in itertools.product(ACTIVATIONS, KINDS):
        loss, accuracy, seconds = (curves[activation][kind][key] for key in ("loss", "accuracy", "spent"))
        cells = [f"{loss[0]:.3f}, {loss[-1]:.3f}", f"{accuracy[0]:.2%}, {accuracy[-1]:.2%}"]
        rows.append([activation, kind, *cells, f"{sum(seconds) / len(seconds):.1f}"])
    caption = f"Trained for {epochs} epochs on {len(x)} images: values after the first and the last"
    header = ["activation", "normalization", "training loss, nats", "test accuracy", "CPU s an epoch"]
    tables.append(Table(caption, header, rows))
    notes = [
        f"{len(x)} training images of mean {x.mean():.4f} and variance {x.var():.4f} over pixels; means over {inits} "
        "random initializations, where the paper has one.",
        "The paper took its shortcut for the variance of a rectifier, which is too large and cancels in part what "
        "correlated inputs add and the propagation leaves out: with the paper's approximations its errors of standard "
        "deviations come out, with exact moments other ones.",
        "The trainings are not in the paper, which says that MomentNorm lacks the regularizing effect of batch norm.",
    ]
    values = {"errors": found, "trainings": curves}
    return Result(tables, {"normalization": draw(found["exact"], curves)}, notes, values)


def _errors(found: dict[Approximation, dict[str, dict[str, list[float]]]], index: int, part: str) -> Table:
    """One measure: the paper's numbers, and ours with either approximation."""
    rows = []
    for activation, init in itertools.product(ACTIVATIONS, TABLE_4["leaky ReLU"]):
        printed = TABLE_4[activation][init][index]
        rows.append([activation, init, "the paper", *(f"{value:.2f}" for value in printed)])
        for kind, label in APPROXIMATIONS.items():
            ours = found[kind][f"{activation}, {init}"][part]
            rows.append([activation, init, label, *(f"{value:.2f}" for value in ours)])
    caption = ("ε_μ: error of means, in standard deviations", "ε_σ: standard deviation over the data's")[index]
    return Table(caption, ["activation", "initialization", "", *LAYERS], rows)


ENTRIES = (
    Entry(
        "moments/table-4",
        "A data set's statistics from one pixel; normalization by them",
        f"{PAPER}, Table 4",
        table_4,
        ("mnist",),
        minutes=3,
    ),
)

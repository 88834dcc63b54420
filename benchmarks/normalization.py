"""Statistics of a data set propagated from one pixel beside the data's own, and what they are good for.

    BNNZOO_DATA=../shared/data python benchmarks/normalization.py --figure docs/normalization.png

Table 4 of the moment propagation paper: LeNet with leaky ReLU or logistic activations, initialized by torch, by batch
statistics, or by propagated ones, layer by layer; how far the propagated mean and standard deviation of each channel
are off. Then what the data's variances are with that, short trainings without normalization, with batch norm and with
`moments.MomentNorm`, and times.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    CLOCKS,
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
    write,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo import data, moments
from bnnzoo._vectorize import evaluating
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION
from bnnzoo.moments.watching import watching

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky ReLU": lambda: nn.LeakyReLU(0.01),
    "logistic transform": nn.Sigmoid,
}
LAYERS = ("C1", "A1", "C2", "A2", "C3", "A3", "F")
SIZES = ((1, 32, 5, 2), (32, 64, 5, 2), (64, 50, 4, 1), (50, 10, 1, 1))

#: Errors of means and of standard deviations by layer, Shekhovtsov & Flach 2018, Table 4.
PAPER: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "leaky ReLU": {
        "None": ((0.10, 0.27, 0.23, 0.22, 0.39, 0.33, 0.41), (0.89, 1.32, 0.85, 1.01, 0.92, 1.03, 0.93)),
        "BN": ((0.10, 0.49, 0.13, 0.36, 0.29, 0.52, 0.49), (0.89, 1.20, 1.04, 1.22, 1.28, 1.47, 1.49)),
        "AP2": ((0.10, 0.20, 0.26, 0.25, 0.38, 0.37, 0.38), (0.89, 1.23, 0.92, 1.17, 1.08, 1.37, 1.21)),
    },
    "logistic transform": {
        "None": ((0.10, 0.09, 0.24, 0.24, 0.36, 0.36, 0.27), (0.89, 0.91, 0.76, 0.76, 0.76, 0.77, 0.75)),
        "BN": ((0.10, 0.04, 0.20, 0.19, 0.34, 0.34, 0.25), (0.93, 1.06, 1.02, 1.10, 1.15, 1.16, 1.16)),
        "AP2": ((0.10, 0.04, 0.17, 0.15, 0.37, 0.37, 0.28), (0.89, 1.15, 1.02, 1.13, 1.16, 1.22, 1.21)),
    },
}

TRAINING: dict[str, Any] = {"batch_size": 128, "lr": 1e-3, "decay": 0.06}  # lr 10^(-3 - 0.06 k) in epoch k


def lenet(activation: str, norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """The paper's LeNet; layers are named as in its tables, normalizations N1, N2, ..."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (fan_in, fan_out, kernel, stride) in enumerate(SIZES):
        last = index == len(SIZES) - 1
        # what normalizes has a bias of its own
        layers["F" if last else f"C{index + 1}"] = nn.Conv2d(fan_in, fan_out, kernel, stride, bias=norm is None)
        if norm is not None:
            layers[f"N{index + 1}"] = norm(fan_out)
        if not last:
            layers[f"A{index + 1}"] = ACTIVATIONS[activation]()
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def measured(network: nn.Module, x: Tensor, batch: int = 1000) -> dict[str, moments.Moments]:
    """Mean and variance of every layer's channels over data and positions."""
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
    """Rescale each convolution in turn so that its channels have mean 0 and variance 1 over the data."""
    with torch.no_grad():
        for name, layer in network.named_children():
            if isinstance(layer, nn.Conv2d):
                found = measured(network, x)[name]
                mean, scale = found.loc.float(), found.scale.float()
                layer.weight.div_(scale.view(-1, 1, 1, 1))
                if layer.bias is not None:
                    layer.bias.sub_(mean).div_(scale)


def errors(found: dict[str, moments.Moments], truth: dict[str, moments.Moments]) -> tuple[list[float], list[float]]:
    """The paper's errors by layer: of means in standard deviations, of standard deviations as a factor."""
    mu, sigma = [], []
    for name in LAYERS:
        ours, true = found[name], truth[name]
        mu.append(((ours.loc - true.loc).abs().mean() / true.scale.mean()).item())
        sigma.append((ours.scale.log() - true.scale.log()).mean().exp().item())
    return mu, sigma


def table_4(x: Tensor, mean: float, variance: float, seeds: int, approximation: Any) -> dict[str, Any]:
    """Errors of propagated statistics, and the data's variances, by activation and initialization."""
    result: dict[str, Any] = {}
    for activation in ACTIVATIONS:
        for init in ("None", "BN", "AP2"):
            runs = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                network = lenet(activation)
                if init == "BN":
                    initialize_by_data(network, x)
                elif init == "AP2":
                    moments.initialize(network, mean, variance, x.shape[2:], approximation=approximation)
                truth = measured(network, x)
                with torch.no_grad():
                    size = x.shape[2:]
                    found = moments.statistics(network, mean, variance, size, approximation=approximation)
                    mu, sigma = errors(found, truth)
                spread = {name: truth[name].variance.mean().item() for name in ("C1", "C2", "C3", "F")}
                shift = {name: truth[name].loc.abs().mean().item() for name in ("C1", "C2", "C3", "F")}
                runs.append((mu, sigma, list(spread.values()), list(shift.values())))
            means = [torch.tensor(part).mean(0).tolist() for part in zip(*runs, strict=True)]
            result[f"{activation}, {init}"] = dict(zip(("mu", "sigma", "variance", "mean"), means, strict=True))
    return result


def normalized(network: nn.Module, mean: float, variance: float) -> nn.Module:
    """The network as it runs: one with MomentNorm is told the data's statistics."""
    has = any(isinstance(module, moments.MomentNorm) for module in network.modules())
    return moments.Normalized(network, mean, variance) if has else network


KINDS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch norm": nn.BatchNorm2d,
    "MomentNorm": moments.MomentNorm,
}


def train(
    kind: str, activation: str, train: data.Dataset, test: data.Dataset, epochs: int, seed: int
) -> dict[str, list[float]]:
    """Loss on the training data and test accuracy by epoch, and processor time, of one training."""
    torch.manual_seed(seed)
    network = normalized(lenet(activation, KINDS[kind]), train.x.mean().item(), train.x.var().item())
    optimizer = torch.optim.Adam(network.parameters(), TRAINING["lr"])
    curve: dict[str, list[float]] = {"loss": [], "accuracy": [], "seconds": []}
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = TRAINING["lr"] * 10 ** (-TRAINING["decay"] * epoch)
        network.train()
        begin, losses = time.process_time(), []
        for rows in torch.randperm(len(train)).split(TRAINING["batch_size"]):
            loss = F.cross_entropy(network(train.x[rows]), train.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curve["seconds"].append(time.process_time() - begin)
        curve["loss"].append(sum(losses) / len(losses))
        network.eval()
        with torch.no_grad():
            right = [
                (network(x).argmax(1) == y).float() for x, y in zip(test.x.split(1000), test.y.split(1000), strict=True)
            ]
        curve["accuracy"].append(torch.cat(right).mean().item())
    return curve


def times(x: Tensor, rounds: int, arguments: Any) -> dict[str, float]:
    """Seconds of propagated statistics, of a pass over the data, and of training steps."""
    clock = CLOCKS[arguments.clock]
    mean, variance = x.mean().item(), x.var().item()
    plain, batch = lenet("leaky ReLU"), x[: TRAINING["batch_size"]]
    networks = {kind: normalized(lenet("leaky ReLU", norm), mean, variance) for kind, norm in KINDS.items()}

    def step(network: nn.Module) -> Callable[[], object]:
        return lambda: network(batch).logsumexp(1).sum().backward()

    def propagated() -> None:
        with torch.no_grad():
            moments.statistics(plain, mean, variance, x.shape[2:])

    def forward() -> None:
        with torch.no_grad():
            plain(batch)

    contenders = [Contender("statistics", propagated), Contender("pass over a batch", forward)]
    contenders += [Contender(f"step, {kind}", step(network)) for kind, network in networks.items()]
    interleave(contenders, rounds, slot=0.02, warmup=3, clock=clock)
    result = {each.name: each.median for each in contenders}
    reference = contenders[2]
    return result | {f"ratio, {each.name}": ratio(each, reference) for each in contenders[2:]}


def draw(found: dict[str, Any], curves: dict[str, dict[str, list[dict[str, list[float]]]]]) -> Figure:
    """Errors of standard deviations by layer, ours and the paper's, and the trainings."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    colors = {"None": GRAY, "BN": BLUE, "AP2": VERMILION, "none": GRAY, "batch norm": BLUE, "MomentNorm": VERMILION}
    for row, activation in zip(axes, ACTIVATIONS, strict=True):
        for ax, part, label in ((row[0], "mu", "error of means (in σ*)"), (row[1], "sigma", "σ / σ*")):
            for init, printed in PAPER[activation].items():
                ours = found[f"{activation}, {init}"][part]
                ax.plot(ours, color=colors[init], marker="o", ms=4, lw=1.4, label=f"init {init}")
                ax.plot(printed[part == "sigma"], color=colors[init], ls=":", marker="x", ms=4, lw=1)
            ax.set_xticks(range(len(LAYERS)), LAYERS)
            ax.set_title(f"{activation}: {label}", fontsize=10)
        row[1].axhline(1.0, color="black", lw=0.7)
        for kind, runs in curves[activation].items():
            losses = torch.tensor([run["loss"] for run in runs]).mean(0)
            row[2].plot(range(1, len(losses) + 1), losses, color=colors[kind], marker="o", ms=4, label=kind)
        row[2].set_yscale("log")
        row[2].set_xticks(range(1, len(losses) + 1))
        row[2].set_title(f"{activation}: training loss by epoch", fontsize=10)
    axes[0, 0].plot([], [], color="black", ls=":", marker="x", ms=4, lw=1, label="paper")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 2].legend(fontsize=8, frameon=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--inits", type=int, default=5, help="random initializations that Table 4 is averaged over")
    options.add_argument(
        "--approximation", choices=("exact", "paper"), default="exact", help="of activations' moments, in Table 4"
    )
    options.add_argument("--images", type=int, default=10_000, help="training images of the trainings, and of Table 4")
    options.add_argument("--epochs", type=int, default=4, help="passes over them")
    options.add_argument("--repeats", type=int, default=1, help="trainings of each kind")
    options.add_argument("--rounds", type=int, default=15, help="rounds of timing")
    options.add_argument("--figure", type=Path, help="draw the figure into this file")
    arguments = parsed(options, ("inits", "images", "epochs", "repeats", "rounds"))
    if arguments.smoke:
        arguments.inits, arguments.images, arguments.epochs, arguments.repeats, arguments.rounds = 1, 300, 1, 1, 1
    start(arguments)
    if arguments.smoke:
        training, test = enlarged_digits()
    else:
        split = data.load("mnist").split()
        training, test = split.train[: arguments.images], split.test
    shaped = [data.as_dataset((part.x.reshape(-1, 1, 28, 28), part.y)) for part in (training, test)]
    training, test = shaped
    mean, variance = training.x.mean().item(), training.x.var().item()
    print(describe(environment(arguments)), "\n")
    print(f"{len(training)} images of mean {mean:.4f} and variance {variance:.4f} over pixels.\n")
    found = table_4(training.x, mean, variance, arguments.inits, arguments.approximation)
    for part, label in (("mu", "ε_μ"), ("sigma", "ε_σ")):
        print(f"{label}, ours (mean of {arguments.inits} initializations) / the paper's:\n")
        rows = []
        for activation, by_init in PAPER.items():
            for init, printed in by_init.items():
                ours = found[f"{activation}, {init}"][part]
                pairs = zip(ours, printed[part == "sigma"], strict=True)
                rows.append([activation, init, *(f"{a:.2f} / {b:.2f}" for a, b in pairs)])
        print(table(["activation", "init", *LAYERS], rows), "\n")
    print("The data's variance of each layer's channels (mean over channels), and their mean absolute mean:\n")
    rows = [
        [name, *(f"{v:.2f}, {m:.2f}" for v, m in zip(each["variance"], each["mean"], strict=True))]
        for name, each in found.items()
    ]
    print(table(["activation, init", "C1", "C2", "C3", "F"], rows), "\n")
    curves: dict[str, Any] = {}
    rows = []
    for activation in ACTIVATIONS:
        for kind in KINDS:
            runs = [
                train(kind, activation, training, test, arguments.epochs, arguments.seed + repeat)
                for repeat in range(arguments.repeats)
            ]
            curves.setdefault(activation, {})[kind] = runs
            last = [sum(run[key][-1] for run in runs) / len(runs) for key in ("loss", "accuracy")]
            first = [sum(run[key][0] for run in runs) / len(runs) for key in ("loss", "accuracy")]
            seconds = sum(sum(run["seconds"]) for run in runs) / (len(runs) * arguments.epochs)
            cells = [f"{first[0]:.3f}, {last[0]:.3f}", f"{first[1]:.2%}, {last[1]:.2%}", f"{seconds:.1f}"]
            rows.append([activation, kind, *cells])
    header = [
        "activation",
        "normalization",
        "training loss: first, last epoch",
        "test accuracy: the same",
        "CPU s an epoch",
    ]
    print(table(header, rows), "\n")
    spent = times(training.x, arguments.rounds, arguments)
    passes = spent["pass over a batch"] * len(training) / min(len(training), TRAINING["batch_size"])
    rows = [
        ["`moments.statistics`", f"{1e3 * spent['statistics']:.2f}", ""],
        [f"a pass over {len(training)} images", f"{1e3 * passes:.0f}", ""],
        *(
            [f"forward and backward, batch {TRAINING['batch_size']}, {kind}", f"{1e3 * spent[f'step, {kind}']:.1f}",
             f"{spent[f'ratio, step, {kind}']:.2f}"]
            for kind in KINDS
        ),
    ]  # fmt: skip
    print(table(["what", "ms", "ratio"], rows))
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(found, curves).savefig(arguments.figure, dpi=150)
    write(arguments, {"table 4": found, "training": curves, "seconds": spent})


if __name__ == "__main__":
    main()

"""How stable predictions are against noise and attacks, by how the network of one hidden layer was trained.

    BNNZOO_DATA=../shared/data python benchmarks/stability.py --figure docs/stability.png

Shekhovtsov & Flach 2018, Figures 5 and D.1: an MLP 784-100-10 for MNIST, with sigmoids, with sigmoids and batch
normalization, and with Bernoulli units whose moments are propagated (AP2) under an assumed input noise of variance 0.1;
and a control that the paper lacks, sigmoids trained under drawn input noise of the same variance. Adam at a learning
rate of 10^(-3 - 0.06k) in epoch k, batches of 128, nine tenths of the training data. With `--keep`, fits are kept.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from analytic_dropout import images_of, log_probabilities
from common import describe, environment, kept, parsed, parser, start, table, trained_network, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import bnnzoo
from bnnzoo import BayesianNetwork, data, guides, likelihoods, objectives, priors
from bnnzoo.moments.units import InputNoise, LogisticBernoulli

SETTING: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-3,
    "decay": 10**-0.06,  # of the learning rate, an epoch
    "prior_variance": 10.0,
    "input_variance": 0.1,
}

NOISES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
ATTACKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def plain(hidden: int) -> nn.Sequential:
    """Sigmoids."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.Sigmoid(), nn.Linear(hidden, 10))


def noised(hidden: int) -> nn.Sequential:
    """Sigmoids behind input noise."""
    noise = InputNoise(SETTING["input_variance"])
    return nn.Sequential(nn.Flatten(), noise, nn.Linear(784, hidden), nn.Sigmoid(), nn.Linear(hidden, 10))


def normalized(hidden: int) -> nn.Sequential:
    """Sigmoids, with batch normalization after both linear layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, hidden, bias=False), nn.BatchNorm1d(hidden), nn.Sigmoid(),
        nn.Linear(hidden, 10, bias=False), nn.BatchNorm1d(10),
    )  # fmt: skip


def bernoulli(hidden: int, variance: float = SETTING["input_variance"]) -> nn.Sequential:
    """Bernoulli units behind input noise; their mean as in the paper's implementation (AP2b)."""
    layers = nn.Linear(784, hidden), LogisticBernoulli("logistic"), nn.Linear(hidden, 10)
    return nn.Sequential(nn.Flatten(), InputNoise(variance), *layers)


ANALYTIC = partial(objectives.MomentELBO, alpha=1.0, softmax="simplified")


@dataclass(frozen=True)
class Method:
    """How a network is built, trained and asked.

    Attributes:
        title: In tables and figures.
        network: Makes it, from the number of hidden units.
        objective: What is minimized.
        mode: Of `moments.propagate` in predictions.
        fit: The method whose fit this one predicts from, if not its own.
    """

    title: str
    network: Callable[[int], nn.Sequential]
    objective: Callable[[], objectives.Objective]
    mode: str
    fit: str | None = None


METHODS: dict[str, Method] = {
    "sigmoid": Method("sigmoid", plain, objectives.ELBO, "ap1"),
    "noised": Method("sigmoid, drawn input noise", noised, objectives.ELBO, "ap1"),
    "normalized": Method("sigmoid, batch norm", normalized, objectives.ELBO, "ap1"),
    "bernoulli": Method("Bernoulli, AP2, input noise", bernoulli, ANALYTIC, "ap2"),
    "bernoulli-ap1": Method("the same, predicted with AP1", bernoulli, ANALYTIC, "ap1", "bernoulli"),
    "noiseless": Method("Bernoulli, AP2, no input noise", partial(bernoulli, variance=0.0), ANALYTIC, "ap2"),
}


def fitted(name: str, part: data.Dataset, hidden: int, epochs: int, seed: int) -> bnnzoo.Posterior:
    """Train one method's network to a point."""
    torch.manual_seed(seed)
    prior = priors.Normal(0.0, SETTING["prior_variance"] ** 0.5)
    bnn = BayesianNetwork(METHODS[name].network(hidden), likelihoods.Categorical(), prior)
    return bnnzoo.fit(
        bnn,
        guides.Map(bnn),
        part,
        objective=METHODS[name].objective(),
        epochs=epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=SETTING["decay"]),
        seed=seed,
        progress=False,
    )


def scored(network: nn.Module, mode: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Accuracy and NLL, and the confidence odds `max_y q(y) / q(y*)` of the errors.

    Returns:
        `accuracy`; `nll`, nats; `odds`, the deciles 1, 5 and 9 of the odds' decimal logarithm over the misclassified
        images, NaN where there are none.
    """
    with torch.no_grad():
        log_probs = torch.cat([log_probabilities(network, part, mode) for part in x.split(1000)])
    true = log_probs.gather(1, y[:, None])[:, 0]
    top, label = log_probs.max(1)
    odds = (top - true)[label != y] / np.log(10)
    deciles = torch.tensor([0.1, 0.5, 0.9], dtype=odds.dtype)
    return {
        "accuracy": (label == y).double().mean().item(),
        "nll": -true.mean().item(),
        "odds": torch.quantile(odds, deciles).tolist() if len(odds) else [float("nan")] * 3,
    }


def attacked(network: nn.Module, mode: str, x: Tensor, y: Tensor) -> Tensor:
    """Directions of the gradient sign, [N, ...]: of the true class's loss under the network's own prediction."""
    signs = []
    for part, labels in zip(x.split(1000), y.split(1000), strict=True):
        part = part.clone().requires_grad_()
        loss = nn.functional.nll_loss(log_probabilities(network, part, mode), labels, reduction="sum")
        signs.append(torch.autograd.grad(loss, part)[0].sign())
    return torch.cat(signs)


def curves(network: nn.Module, mode: str, test: data.Dataset, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Scores on the test data by noise variance and by the attack's size; noise is the same for all networks."""
    network = network.double()  # gradients of confident predictions are too small for single precision
    x, y = test.x.double(), test.y
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    direction = attacked(network, mode, x, y)
    return {
        "noise": [{"level": level, **scored(network, mode, x + level**0.5 * noise, y)} for level in NOISES],
        "attack": [{"level": level, **scored(network, mode, x + level * direction, y)} for level in ATTACKS],
    }


def report(results: Mapping[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A table for each kind of perturbation: accuracy, and the median odds of the errors."""
    tables = []
    for kind, title in {"noise": "noise of variance", "attack": "gradient sign of size"}.items():
        levels = [scores["level"] for scores in next(iter(results.values()))[kind]]
        shown = [index for index, level in enumerate(levels) if index % 2 == 1 or not level or level == levels[-1]]
        for key, words in {"accuracy": "accuracy, %", "odds": "median odds of the errors"}.items():
            header = [f"{words}; {title}", *(f"{levels[index]:g}" for index in shown)]
            rows = []
            for name, result in results.items():
                cells = [result[kind][index][key] for index in shown]
                text = [f"{100 * c:.2f}" if key == "accuracy" else f"{10 ** c[1]:.3g}" for c in cells]
                rows.append([METHODS[name].title, *text])
            tables.append(table(header, rows))
    return "\n\n".join(tables)


COLORS = ("#555555", "#009E73", "#D55E00", "#0072B2", "#56B4E9", "#CC79A7")  # of Okabe and Ito
MARKS = ("^", "v", "s", "o", "D", "P")


def draw(results: Mapping[str, dict[str, list[dict[str, Any]]]]) -> Figure:
    """Accuracy and confidence odds under noise and under attack."""
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    axes = figure.subplots(2, 2)
    labels = {"noise": "variance of the noise", "attack": "size of the gradient sign"}
    for row, (kind, label) in zip(axes, labels.items(), strict=True):
        for (name, result), color, mark in zip(results.items(), COLORS, MARKS, strict=False):
            levels = np.array([scores["level"] for scores in result[kind]])
            style = {"color": color, "marker": mark, "markersize": 4, "linewidth": 1.3, "label": METHODS[name].title}
            row[0].plot(levels, [100 * scores["accuracy"] for scores in result[kind]], **style)
            low, middle, high = 10 ** np.array([scores["odds"] for scores in result[kind]]).T
            row[1].plot(levels, middle, **style)
            row[1].fill_between(levels, low, high, color=color, alpha=0.1, linewidth=0)
        row[1].set_yscale("log")
        row[1].set_ylim(0.8, 1e9)  # batch normalization leaves it
        for ax, words in zip(row, ("test accuracy, %", "odds max q / q(true) of the errors"), strict=True):
            ax.set(xlabel=label, ylabel=words)
            _plain(ax)
    axes[1][0].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--hidden", type=int, default=100, help="units of the hidden layer")
    options.add_argument("--epochs", type=int, default=15, help="passes over the training data")
    options.add_argument("--keep", type=Path, help="folder of fits, to go on from")
    options.add_argument("--figure", type=Path, help="draw accuracy and odds into this file")
    arguments = parsed(options, ("hidden", "epochs"))
    if arguments.smoke:
        arguments.hidden, arguments.epochs = 10, 2
    start(arguments)
    images = images_of(None if arguments.smoke else "mnist")
    results, seconds = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        for name in arguments.methods:
            method, source = METHODS[name], METHODS[name].fit or name
            sizes = arguments.hidden, arguments.epochs, arguments.seed
            make = partial(fitted, source, images.train, *sizes)
            posterior = kept(keep / f"{source}.bnn", make, METHODS[source].network(arguments.hidden))
            seconds[name] = posterior.info["seconds"]
            results[name] = curves(trained_network(posterior), method.mode, images.test, arguments.seed)
    print("\n" + describe(environment(arguments)), "\n")
    print(report(results))
    if arguments.figure is not None:
        draw(results).savefig(arguments.figure, dpi=150)
    write(arguments, {"curves": results, "seconds": seconds})


if __name__ == "__main__":
    main()

"""How stable predictions are against noise and attacks, by how the network of one hidden layer was trained.

Shekhovtsov & Flach 2018, Figures 5 and D.1: an MLP 784-100-10 for MNIST, with sigmoids, with sigmoids and batch
normalization, and with Bernoulli units whose moments are propagated (AP2) under an assumed input noise of variance 0.1;
and controls that the paper lacks: sigmoids trained under drawn input noise of the same variance, and Bernoulli units
without. Adam at a learning rate of 10^(-3 - 0.06k) in epoch k, batches of 128, nine tenths of the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo import data, guides, likelihoods, objectives, priors
from bnnzoo.evaluation.style import MARKERS, PALETTE, styled
from bnnzoo.moments.propagation import Mode
from bnnzoo.moments.units import InputNoise, LogisticBernoulli
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import kept, recorded, trained_network
from bnnzoo.reproduce.moments_dropout import ANALYTIC, log_probabilities
from bnnzoo.reproduce.moments_nets import held_out, images_of
from bnnzoo.reproduce.moments_paper import PAPER
from bnnzoo.training import fit

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
    mode: Mode
    fit: str | None = None


METHODS: dict[str, Method] = {
    "sigmoid": Method("sigmoid", plain, objectives.ELBO, "ap1"),
    "noised": Method("sigmoid, drawn input noise", noised, objectives.ELBO, "ap1"),
    "normalized": Method("sigmoid, batch norm", normalized, objectives.ELBO, "ap1"),
    "bernoulli": Method("Bernoulli, AP2, input noise", bernoulli, ANALYTIC, "ap2"),
    "bernoulli-ap1": Method("the same, predicted with AP1", bernoulli, ANALYTIC, "ap1", "bernoulli"),
    "noiseless": Method("Bernoulli, AP2, no input noise", partial(bernoulli, variance=0.0), ANALYTIC, "ap2"),
}


def fitted(name: str, part: data.Dataset, hidden: int, epochs: int, seed: int) -> Posterior:
    """Trains one method's network to a point.

    Args:
        name: One of `METHODS`.
        part: The training data.
        hidden: Units of the hidden layer.
        epochs: Passes over the data.
        seed: Fixes the initial point and the batches.
    """
    torch.manual_seed(seed)
    prior = priors.Normal(0.0, SETTING["prior_variance"] ** 0.5)
    bnn = BayesianNetwork(METHODS[name].network(hidden), likelihoods.Categorical(), prior)
    return fit(
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


def scored(network: nn.Module, mode: Mode, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Accuracy and mean log probability, and the confidence odds `max_y q(y) / q(y*)` of the errors.

    Args:
        network: In eval mode.
        mode: Of `moments.propagate`.
        x: Inputs, [N, ...].
        y: Classes, [N].

    Returns:
        `accuracy`; `pll`, nats; `odds`, the deciles 1, 5 and 9 of the odds' decimal logarithm over the misclassified
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
        "pll": true.mean().item(),
        "odds": torch.quantile(odds, deciles).tolist() if len(odds) else [float("nan")] * 3,
    }


def attacked(network: nn.Module, mode: Mode, x: Tensor, y: Tensor) -> Tensor:
    """Directions of the gradient sign, [N, ...]: of the true class's loss under the network's own prediction.

    Args:
        network: As of `scored`.
        mode: As of `scored`.
        x: As of `scored`.
        y: As of `scored`.
    """
    signs = []
    for part, labels in zip(x.split(1000), y.split(1000), strict=True):
        part = part.clone().requires_grad_()
        loss = nn.functional.nll_loss(log_probabilities(network, part, mode), labels, reduction="sum")
        signs.append(torch.autograd.grad(loss, part)[0].sign())
    return torch.cat(signs)


def curves(network: nn.Module, mode: Mode, test: data.Dataset, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Scores on the test data by noise variance and by the attack's size; noise is the same for all networks.

    Args:
        network: As of `scored`.
        mode: As of `scored`.
        test: The data.
        seed: Fixes the noise.
    """
    network = network.double()  # gradients of confident predictions are too small for single precision
    x, y = test.x.double(), test.y
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    direction = attacked(network, mode, x, y)
    return {
        "noise": [{"level": level, **scored(network, mode, x + level**0.5 * noise, y)} for level in NOISES],
        "attack": [{"level": level, **scored(network, mode, x + level * direction, y)} for level in ATTACKS],
    }


def report(results: Mapping[str, dict[str, list[dict[str, Any]]]]) -> list[Table]:
    """A table for each kind of perturbation of accuracy, and one of the median odds of the errors.

    Args:
        results: What `curves` returned, by method.
    """
    tables = []
    for kind, title in {"noise": "noise of variance", "attack": "gradient sign of size"}.items():
        levels = [scores["level"] for scores in next(iter(results.values()))[kind]]
        shown = [index for index, level in enumerate(levels) if index % 2 == 1 or not level or level == levels[-1]]
        for key, words in {"accuracy": "Accuracy, %", "odds": "Median odds of the errors"}.items():
            rows = []
            for name, result in results.items():
                cells = [result[kind][index][key] for index in shown]
                text = [f"{100 * c:.2f}" if key == "accuracy" else f"{10 ** c[1]:.3g}" for c in cells]
                rows.append([METHODS[name].title, *text])
            tables.append(Table(f"{words}, by {title}", ["", *(f"{levels[index]:g}" for index in shown)], rows))
    return tables


def draw(results: Mapping[str, dict[str, list[dict[str, Any]]]]) -> Figure:
    """Accuracy and confidence odds under noise and under attack.

    Args:
        results: What `curves` returned, by method.
    """
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    axes = figure.subplots(2, 2)
    labels = {"noise": "variance of the noise", "attack": "size of the gradient sign"}
    for row, (kind, label) in zip(axes, labels.items(), strict=True):
        for (name, result), color, mark in zip(results.items(), PALETTE, MARKERS, strict=False):
            levels = np.array([scores["level"] for scores in result[kind]])
            style = {"color": color, "marker": mark, "markersize": 4, "linewidth": 1.3, "label": METHODS[name].title}
            row[0].plot(levels, [100 * scores["accuracy"] for scores in result[kind]], **style)
            low, middle, high = 10 ** np.array([scores["odds"] for scores in result[kind]]).T
            row[1].plot(levels, middle, **style)
            row[1].fill_between(levels, low, high, color=color, alpha=0.1, linewidth=0)
        row[1].set_yscale("log")
        row[1].set_ylim(0.8, 1e9)  # batch normalization leaves it
        for ax, words in zip(row, ("test accuracy, %", "odds max q / q(true) of the errors"), strict=True):
            styled(ax).set(xlabel=label, ylabel=words)
    axes[1][0].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def figures_5_and_d1(context: Context) -> Result:
    """Trains what is missing, and perturbs the test images."""
    hidden, epochs = context.pick((10, 2), (100, 15), (100, 100))
    images = held_out(images_of("mnist", context))

    def make(name: str) -> dict[str, Any]:
        method, source = METHODS[name], METHODS[name].fit or name
        fresh = partial(fitted, source, images.train, hidden, epochs, context.seed)
        posterior = kept(context.folder / f"{source}.bnn", fresh, METHODS[source].network(hidden), context.say)
        return curves(trained_network(posterior), method.mode, images.test, context.seed)

    setting = {"hidden": hidden, "epochs": epochs, "seed": context.seed, **SETTING}
    results = {
        name: recorded(context.folder / f"{name}.json", setting, partial(make, name), context.say) for name in METHODS
    }
    notes = [
        "The paper has curves without numbers, in which the Bernoulli network, at the same clean accuracy, is more "
        "stable than the standard one under noise and attack, and batch normalization less stable and the most sure "
        "of its errors.",
        "Input noise that is drawn, and none, are controls that the paper lacks. Gradients are taken in float64, of "
        "the network's own way to predict. Lines are medians of the odds, bands the first to the ninth decile.",
    ]
    return Result(report(results), {"stability": draw(results)}, notes, results)


ENTRIES = (
    Entry(
        "moments/figure-5",
        "Stability against noise and gradient sign, by training",
        f"{PAPER}, Figures 5 and D.1",
        figures_5_and_d1,
        ("mnist",),
        minutes=5,
    ),
)

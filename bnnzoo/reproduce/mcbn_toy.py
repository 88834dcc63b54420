"""Figures 1 and 2 of Teye et al. 2018: bands of a toy regression, and errors by predicted uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from bnnzoo import BayesianNetwork, Posterior, data, fit, guides, likelihoods, models, priors
from bnnzoo.evaluation import constant_uncertainty, plot_band
from bnnzoo.evaluation.bounds import normalized_scores
from bnnzoo.evaluation.uncertainty_plots import plot_uncertainty_error
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import kept
from bnnzoo.reproduce.mcbn_paper import PAPER

INSIDE, OUTSIDE = 5.0, 7.0
"""Toy data lie in [-INSIDE, INSIDE]; bands are drawn to ±OUTSIDE."""

PASSES = 500


@dataclass(frozen=True)
class Method:
    """A method of the figures.

    Attributes:
        label: The paper's name.
        constant: That of its baseline of a constant uncertainty.
        batch_norm: Whether the network has batch normalization.
        guide: Builds the guide.
    """

    label: str
    constant: str
    batch_norm: bool
    guide: Callable[[BayesianNetwork], guides.Guide]


METHODS = {
    "mcbn": Method("MCBN", "CUBN", True, guides.BatchNorm),
    "dropout": Method("MCDO", "CUDO", False, partial(guides.Dropout, rate=0.05)),
}


def toy(num_samples: int, seed: int) -> data.Dataset:
    """The toy of Karpathy's page that the paper names, y = x sin x with x uniform on [-INSIDE, INSIDE].

    Args:
        num_samples: Number of rows.
        seed: Fixes the inputs.
    """
    x = np.random.default_rng(seed).uniform(-INSIDE, INSIDE, num_samples)
    return data.Dataset(x[:, None], x * np.sin(x), name="toy")


def fitted(
    context: Context, name: str, method: Method, train: data.Dataset, hidden: Sequence[int], **settings: Any
) -> Posterior:
    """A network with unit noise and weight decay 1e-5, fitted or read.

    Args:
        context: Of the entry.
        name: Of the file of the fit.
        method: One of `METHODS`.
        train: The data, with their standardization.
        hidden: Units of the hidden layers.
        **settings: Of `bnnzoo.fit`.
    """
    torch.manual_seed(context.seed)
    network = models.MLP(train.input_shape[0], 1, hidden, batch_norm=method.batch_norm)
    prior = priors.Normal(0.0, 1.0 / math.sqrt(2e-5 * len(train)))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(1.0), prior)
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=settings["epochs"])
    settings |= {"scheduler": schedule, "seed": context.seed, "progress": False}
    make = partial(fit, bnn, method.guide(bnn), train, **settings)
    return kept(context.fits / f"{name}.bnn", make, say=context.say)


def figure_1(context: Context) -> Result:
    """Bands of the toy, with those of the constant baseline."""
    train = toy(20, context.seed).with_standardization()
    validation, x = toy(100, context.seed + 1), torch.linspace(-OUTSIDE, OUTSIDE, 281)[:, None]
    passes = context.pick(20, PASSES, PASSES)
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    rows, values = [], {}
    axes = figure.subplots(1, len(METHODS), sharey=True)
    for ax, (name, method) in zip(axes, METHODS.items(), strict=True):
        settings = {"epochs": context.pick(5, 1000, 1000), "batch_size": 10, "lr": 1e-2}
        posterior = fitted(context, f"toy-{name}", method, train, (30, 30, 30), **settings)
        tuned = posterior.tune_noise(validation, "crps", passes, context.seed)
        prediction = tuned.predict(x, passes, context.seed)
        constant = constant_uncertainty(posterior, validation)
        shown: dict[str, Any] = {"data": train, "truth": x[:, 0] * x[:, 0].sin(), "constant": constant.predict(x)}
        plot_band(prediction, x, ax=ax, **shown)
        ax.set_title(f"{method.label}, dash-dotted: {method.constant}", fontsize=10)
        ax.set_ylim(-11.0, 9.0)
        spread, beyond = prediction.std, x[:, 0].abs() > INSIDE
        found = {
            "inside": spread[~beyond].mean().item(),
            "beyond": spread[beyond].mean().item(),
            "constant": constant.scale.item(),
        }
        rows.append([method.label, *(f"{value:.2f}" for value in found.values())])
        values[name] = found
    axes[1].set_ylabel("")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    header = ["method", f"on [-{INSIDE:g}, {INSIDE:g}]", f"beyond, to ±{OUTSIDE:g}", "constant baseline"]
    notes = [
        "The paper shows one figure, of MCBN, and no numbers; the toy is that of the page that it names: 20 points of "
        f"x sin x without noise. Three hidden layers of 30 units and {PASSES} passes as there; batches of 10, and the "
        "noise and the constant scale chosen by CRPS on 100 further points, are ours.",
    ]
    table = Table("Mean standard deviation of the predictions of the toy", header, rows)
    return Result([table], {"mcbn-toy": figure}, notes, values)


def figure_2(context: Context) -> Result:
    """Errors by predicted uncertainty, on test data."""
    sets: tuple[str, ...] = context.pick(("diabetes",), SETS, SETS)
    passes = context.pick(20, PASSES, PASSES)
    figure = Figure(figsize=(4.4 * len(METHODS), 3.3 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(METHODS), squeeze=False)
    rows, values = [], {}
    for line, name in zip(axes, sets, strict=True):
        split = data.load(name).split(0.2, seed=context.seed)
        train, validation = split.train.split(0.2, seed=context.seed)
        for ax, (key, method) in zip(line, METHODS.items(), strict=True):
            epochs = math.ceil(context.pick(10, 1500, 20_000) / math.ceil(len(train) / 32))
            settings = {"epochs": epochs, "batch_size": 32, "lr": context.pick(1e-2, 1e-2, 1e-3)}
            posterior = fitted(context, f"errors-{name}-{key}", method, train, (50, 50), **settings)
            tuned = posterior.tune_noise(validation, "crps", passes, context.seed)
            prediction = tuned.predict(split.test.x, passes, context.seed)
            constant = constant_uncertainty(posterior, validation).predict(split.test.x)
            target = split.test.target_name
            plot_uncertainty_error(prediction, split.test.y, constant=constant, target=target, window=20, ax=ax)
            ax.get_legend().remove()  # one for all panels, below
            scores = normalized_scores(prediction, constant, split.test.y)
            error = (prediction.mean - split.test.y).abs().numpy()
            found = {
                "rank correlation": float(spearmanr(prediction.std.numpy(), error).statistic),
                "normalized CRPS": float(scores["crps"].mean()),
                "normalized PLL": float(scores["pll"].mean()),
            }
            ax.set_title(f"{name}: {method.label}", fontsize=10)
            rows.append([name, method.label, *(f"{value:.2f}" for value in found.values())])
            values[f"{name} {key}"] = found
    named = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shared = {label: handle for label, handle in named.items() if "beyond" not in label}  # numbers of one panel
    figure.legend(shared.values(), shared.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    header = [
        "data",
        "method",
        "rank correlation of uncertainty and error",
        "normalized CRPS (%)",
        "normalized PLL (%)",
    ]
    notes = [
        "One split; 80% of its training rows to train on and 20% to choose the noise and the constant by CRPS. The "
        "paper's figures show no numbers. Scores with standard errors: mcbn/table-4 and mcbn/table-5.",
    ]
    return Result(
        [Table("Test data by predicted uncertainty", header, rows)], {"uncertainty-error": figure}, notes, values
    )


SETS = ("concrete", "energy", "wine")
"""Data sets of `figure_2`; the paper's Figures 4 and 5 have the others."""

ENTRIES = (
    Entry(
        "mcbn/figure-1",
        "Toy regression: bands of MCBN and MC dropout, and the constant baseline",
        f"{PAPER}, Figure 1",
        figure_1,
        minutes=1.0,
    ),
    Entry(
        "mcbn/figure-2",
        "Regressions: errors by predicted uncertainty",
        f"{PAPER}, Figures 2 (left), 4 and 5",
        figure_2,
        SETS,
        minutes=3.0,
    ),
)

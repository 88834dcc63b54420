"""Moments through one activation: Figures 2, 3 and C.4 of Shekhovtsov & Flach 2018, against numerical integration.

The paper's figures are curves without numbers. What it does give are the largest errors of its variance of the
logistic transform (eq. 21, appendix C.4), which are in the table beside ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import integrate, special
from torch import nn

from bnnzoo.evaluation.style import BLUE, GRAY, PALETTE, STYLES, VERMILION, styled
from bnnzoo.moments import propagate
from bnnzoo.moments.activations import paper
from bnnzoo.moments.units import Heaviside, LogisticBernoulli
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.moments_paper import PAPER

Array = NDArray[np.float64]
FIGURE_2 = ("Heaviside", "Bernoulli-logistic", "logistic transform")
FIGURE_3 = ("ReLU", "leaky ReLU")

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Heaviside": lambda: Heaviside(0.0),
    "Bernoulli-logistic": LogisticBernoulli,
    "logistic transform": nn.Sigmoid,
    "ReLU": nn.ReLU,
    "leaky ReLU": lambda: nn.LeakyReLU(0.1),
}

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Heaviside": lambda x: np.heaviside(x, 1.0),
    "Bernoulli-logistic": special.expit,
    "logistic transform": special.expit,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "leaky ReLU": lambda x: np.maximum(x, 0.1 * x),
}
"""E[Y | X]; the Bernoulli-logistic unit draws Y besides."""

ERRORS = {(0.0, 50.0): 0.14, (8.0, 1.0): 0.26, (12.0, 1.0): 0.26}
"""The paper's largest relative errors of the standard deviation of the logistic transform by eq. 21 (appendix C.4), by
the largest |μ| and σ of a normal input; there "for all μ"."""


def propagated(name: str, mean: Array, std: float, approximation: Literal["exact", "paper"]) -> tuple[Array, Array]:
    """Mean and standard deviation of Y = f(X) by the library's rules.

    Args:
        name: One of `LAYERS`.
        mean: Means of X, [P].
        std: Its standard deviation.
        approximation: Of `moments.propagate`.
    """
    found = propagate(LAYERS[name](), torch.from_numpy(mean), std**2, approximation=approximation)
    return found.loc.numpy(), found.scale.numpy()


def integrated(name: str, mean: Array, std: float) -> tuple[Array, Array]:
    """The same for Gaussian X, by numerical integration on both sides of the kink at 0.

    Args:
        name: One of `LAYERS`.
        mean: Means of X, [P].
        std: Its standard deviation, above 0.
    """
    function = FUNCTIONS[name]

    def expectation(power: int, loc: float) -> float:
        def integrand(x: float) -> float:
            density = math.exp(-0.5 * ((x - loc) / std) ** 2) / (std * math.sqrt(2 * math.pi))
            return float(function(np.asarray(x))) ** power * density

        ends = loc - 10 * std, min(max(0.0, loc - 10 * std), loc + 10 * std), loc + 10 * std
        return sum(integrate.quad(integrand, *part, epsabs=1e-11)[0] for part in pairwise(ends))

    first = np.array([expectation(1, loc) for loc in mean])
    if name == "Bernoulli-logistic":
        return first, np.sqrt(first * (1 - first))
    second = np.array([expectation(2, loc) for loc in mean])
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def figure_of_moments(names: tuple[str, ...], context: Context, file: str) -> Result:
    """Mean and ±3 standard deviations of the output by the input's mean, the input's standard deviation 1."""
    mean = np.linspace(-6, 6, context.pick(13, 121, 121))
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    rows, values = [], {}
    for ax, name in zip(figure.subplots(1, len(names)), names, strict=True):
        truth = integrated(name, mean, 1.0)
        loc, scale = propagated(name, mean, 1.0, "exact")
        styled(ax).fill_between(mean, loc - 3 * scale, loc + 3 * scale, color=BLUE, alpha=0.15, linewidth=0)
        fine = np.linspace(-6, 6, 2001)
        ax.plot(fine, FUNCTIONS[name](fine), color=VERMILION, label="activation")
        ax.plot(mean, loc, color=BLUE, linestyle="--", label="mean μ', band μ' ± 3σ'")
        bell = np.exp(-0.5 * (mean - 3) ** 2)
        bottom, top = ax.get_ylim()
        ax.fill_between(
            mean,
            bottom,
            bottom + 0.15 * (top - bottom) * bell,
            color=GRAY,
            linewidth=0,
            label="density of the input at μ = 3",
        )
        ax.set(title=name, xlabel="mean μ of the input, σ = 1", ylabel="output", xlim=(-6, 6))
        for approximation in ("exact", "paper"):
            errors = [
                float(np.abs(ours - true).max())
                for ours, true in zip(propagated(name, mean, 1.0, approximation), truth, strict=True)
            ]
            rows.append([name, approximation, *(f"{error:.2g}" for error in errors)])
            values[f"{name}, {approximation}"] = errors
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    caption = "Largest error against numerical integration, over means from -6 to 6 of a normal input, σ = 1"
    table = Table(caption, ["function", "rules", "of the mean μ'", "of the standard deviation σ'"], rows)
    return Result([table], {file: figure}, values=values)


def logistic_error(largest_mean: float, largest_std: float, points: int) -> float:
    """The largest relative error of the paper's standard deviation of the logistic transform.

    Args:
        largest_mean: Of normal inputs: from 0 on, by symmetry.
        largest_std: Of them, from 0.05 on.
        points: Of the grid, along each axis.
    """
    name = "logistic transform"
    mean = np.linspace(0, largest_mean, points if largest_mean else 1)
    errors = []
    for std in np.geomspace(0.05, largest_std, points):
        errors.append(np.abs(propagated(name, mean, std, "paper")[1] / integrated(name, mean, std)[1] - 1).max())
    return float(max(errors))


def figure_2(context: Context) -> Result:
    """The Heaviside function, the Bernoulli-logistic unit and the logistic transform."""
    result = figure_of_moments(FIGURE_2, context, "steps")
    rows, found = [], {}
    for (mean, std), printed in ERRORS.items():
        where = f"μ from {-mean:g} to {mean:g}, σ ≤ {std:g}" if mean else f"μ = 0, σ ≤ {std:g}"
        found[where] = logistic_error(mean, std, context.pick(4, 25, 25))
        rows.append([where, f"{found[where]:.0%}", f"{printed:.0%}"])
    caption = "Largest relative error of the paper's σ' of the logistic transform (eq. 21)"
    result.tables.append(Table(caption, ["over", "ours", "paper"], rows))
    result.values = {**result.values, "logistic transform": found}
    result.notes.append(
        "The paper's 26% are printed for all μ. But μ'(1 - μ') of its logistic mean (AP2b) falls more slowly than the "
        "true variance: the error grows with |μ| without bound. With the exact mean it is at most 32% for σ ≤ 1."
    )
    return result


def figure_3(context: Context) -> Result:
    """ReLU and leaky ReLU, of slope 0.1."""
    return figure_of_moments(FIGURE_3, context, "rectifiers")


def figure_c4(context: Context) -> Result:
    """The mean of max(0, X), X normal or logistic of variance 1, and ELU, whose input is offset by 1."""
    mean = torch.linspace(-5, 5, 201, dtype=torch.float64)
    one = torch.ones_like(mean)
    curves = {
        "X normal": propagate(nn.ReLU(), mean, 1.0).loc,
        "X logistic": paper.relu_logistic(mean, one)[0],
        "ELU(μ - 1) + 1": nn.functional.elu(mean - 1) + 1,
    }
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = styled(figure.subplots())
    for (name, curve), color, style in zip(curves.items(), PALETTE, STYLES, strict=False):
        ax.plot(mean, curve, color=color, linestyle=style, label=name)
    ax.plot(mean, mean.relu(), color=GRAY, linewidth=0.9, label="max(0, μ)")
    ax.set(xlabel="mean μ of the input, σ = 1", ylabel="mean of the output")
    ax.legend(frameon=False, fontsize=9)
    normal = curves.pop("X normal")
    values = {name: (curve - normal).abs().max().item() for name, curve in curves.items()}
    rows = [[name, f"{error:.2g}"] for name, error in values.items()]
    table = Table("Largest distance from the mean of max(0, X), X normal of variance 1", ["of", "distance"], rows)
    return Result([table], {"rectified": figure}, ["The paper has curves without numbers."], values)


ENTRIES = tuple(
    Entry(f"moments/figure-{number.lower()}", title, f"{PAPER}, Figure {number}", run, minutes=0.1)
    for number, title, run in (
        ("2", "Moments through steps and sigmoids", figure_2),
        ("3", "Moments through rectifiers", figure_3),
        ("C.4", "Mean of a rectified normal or logistic variable, and ELU", figure_c4),
    )
)

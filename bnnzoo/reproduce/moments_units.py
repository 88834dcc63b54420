"""Logistic Bernoulli units: what their approximate means are worth (Shekhovtsov & Flach 2018).

Table 1, the logic AND of uncertain inputs, and Figures C.1 to C.3, about the means of a unit whose input is a sum of
binary variables.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from bnnzoo.evaluation.style import GRAY, PALETTE, STYLES, styled
from bnnzoo.moments import Moments
from bnnzoo.moments.gates import Gate
from bnnzoo.moments.units import LogisticBernoulli
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.moments_paper import PAPER, TABLE_1

KINDS: dict[Gate, str] = {"normal": "AP2a", "logistic": "AP2b", "pea": "PEA", "exact": "AP2"}
"""Approximations of a unit's mean by name: "AP2" takes the input for Gaussian, and no more."""

INPUTS = 5
"""The largest sum of binary inputs in Figure C.2."""

SAMPLES = 50
"""Of the inputs, in an estimate of Figure C.2."""


def unit(mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """The unit's mean by AP1 and by every approximation.

    Args:
        mean: Of its input, any shape.
        variance: Of its input, the same shape.
    """
    found = {"AP1": mean.sigmoid()}
    return found | {name: LogisticBernoulli(kind)(Moments(mean, variance)).loc for kind, name in KINDS.items()}


def conjunctions() -> list[dict[str, float]]:
    """Table 1: of two uncertain inputs, the exact expectation of S(a(X1 + X2) + b), and its approximations."""
    a = 2 * math.log(0.95 / 0.05)
    b = -1.5 * a  # the paper's -3/2 is a misprint
    rows = []
    for p in TABLE_1:
        probabilities = torch.tensor(p, dtype=torch.float64)
        mean = a * probabilities.sum() + b
        variance = a**2 * (probabilities * (1 - probabilities)).sum()
        exact = sum(
            math.prod(q if x else 1 - q for x, q in zip(state, p, strict=True)) / (1 + math.exp(-a * sum(state) - b))
            for state in itertools.product((0, 1), repeat=2)
        )
        approximations = {name: value.item() for name, value in unit(mean[None], variance[None]).items()}
        rows.append({"p1": p[0], "p2": p[1], "AND": p[0] * p[1], "E[Y]": exact, **approximations})
    return rows


def table_1(context: Context) -> Result:
    """The logic AND: there is nothing to scale."""
    found = conjunctions()
    rows = []
    for row, (_, printed, ap1) in zip(found, TABLE_1.values(), strict=True):
        cells = [f"{row['p1']:g}, {row['p2']:g}", f"{row['AND']:.3g}"]
        cells += [f"{row['E[Y]']:.3g}", f"{printed:g}", f"{row['AP1']:.3g}", f"{ap1:g}"]
        rows.append([*cells, *(f"{row[name]:.3g}" for name in KINDS.values())])
    header = ["p(X1), p(X2)", "AND", "E[Y]", "paper", "AP1", "paper", *KINDS.values()]
    notes = [
        "The paper prints b = -3/2: b = -(3/2)a = -8.83 gives its numbers.",
        "Two last digits differ, in one row: with a = 5.845 and b = -8.838 all are the paper's.",
    ]
    return Result([Table("Probability of Y = 1, Y = S(a(X1 + X2) + b)", header, rows)], {}, notes, {"rows": found})


def bits(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence from a binary variable of probability p to one of probability q, in bits.

    Args:
        p: Any shape.
        q: Broadcastable with p.
    """
    q = q.clamp(1e-15, 1 - 1e-15)
    return (torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))) / math.log(2.0)


def divergences(biases: int, trials: int, seed: int) -> dict[str, Any]:
    """Figure C.2: the KL divergences by method, number of inputs and bias.

    Args:
        biases: How many, from -20 to 20 about the one at which the mean input is 0.
        trials: Of the estimate from samples.
        seed: Fixes weights and samples.

    Returns:
        `weights`, [5]; `shift`, the biases; `curves`, by method, [5, biases]: those of `unit`, and of the samples the
        mean over trials (`samples`) and its 5% and 95% quantiles (`low`, `high`).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = 10 * torch.rand(INPUTS, generator=generator, dtype=torch.float64)
    shift = torch.linspace(-20, 20, biases, dtype=torch.float64)  # of the mean input from 0
    band = torch.tensor([0.05, 0.95], dtype=torch.float64)
    curves: dict[str, list[Tensor]] = {}
    for count in range(1, INPUTS + 1):
        w = weights[:count]
        centered = (torch.cartesian_prod(*count * [torch.tensor([-0.5, 0.5], dtype=torch.float64)])).reshape(-1, count)
        truth = (centered @ w + shift[:, None]).sigmoid().mean(-1)
        variance = (0.25 * w.square().sum()).expand(len(shift))
        for name, q in unit(shift, variance).items():
            curves.setdefault(name, []).append(bits(truth, q))
        shape = (trials, SAMPLES, count)
        drawn = (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5).double() - 0.5
        estimates = torch.stack([(drawn @ w + each).sigmoid().mean(-1) for each in shift], -1)  # [trial, bias]
        errors = bits(truth, estimates)
        for name, value in zip(("samples", "low", "high"), (errors.mean(0), *errors.quantile(band, 0)), strict=True):
            curves.setdefault(name, []).append(value)
    return {"weights": weights, "shift": shift, "curves": {name: torch.stack(each) for name, each in curves.items()}}


def figure_c2(context: Context) -> Result:
    """KL divergences of the approximations by bias, for sums of 1 to 5 binary inputs."""
    found = divergences(context.pick(5, 161, 161), context.pick(20, 1000, 1000), context.seed)
    names = {"AP1": "AP1", **{name: name for name in KINDS.values()}}
    names |= {"samples": f"{SAMPLES} samples, mean", "high": f"{SAMPLES} samples, 95%"}
    rows = [
        [label, *(f"{curve.mean():.4f}, {curve.max():.3f}" for curve in found["curves"][name])]
        for name, label in names.items()
    ]
    header = ["", *(f"{count} input{'s' * (count > 1)}: mean, largest" for count in range(1, INPUTS + 1))]
    weights = ", ".join(f"{each:.2f}" for each in found["weights"])
    caption = f"KL divergence (bits) over biases; weights of the inputs, from U[0, 10]: {weights}"
    largest = {name: max(curve.max().item() for curve in found["curves"][name]) for name in (*names, "samples")}
    others = max(largest[name] for name in KINDS.values())
    notes = [
        "The paper has curves without numbers; it draws AP1 at a tenth of the scale of the others, and calls those on "
        f"par with {SAMPLES} samples. Here the largest divergence of AP1 is {largest['AP1']:.2g} bits, of the others "
        f"{others:.2g}, of the samples' mean {largest['samples']:.2g}: the fewer inputs, the better the samples.",
    ]
    values = {"weights": found["weights"].tolist(), "divergences": _lists(found["curves"])}
    return Result([Table(caption, header, rows)], {"logistic-units": draw(found)}, notes, values)


def draw(found: dict[str, Any]) -> Figure:
    """The curves of Figure C.2: a panel a method, a curve a number of inputs.

    Args:
        found: What `divergences` returned.
    """
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    titles = {
        "AP1": "AP1: the sigmoid of the mean (another scale)",
        "AP2a": "AP2a: input and noise normal",
        "AP2b": "AP2b: input and noise logistic",
        "PEA": "PEA: piecewise exponential",
        "AP2": "AP2: input normal, exact",
        "samples": f"mean of {SAMPLES} samples",
    }
    curves = found["curves"]
    top = 1.05 * max(float(curves[name].max()) for name in [*titles, "high"] if name != "AP1")
    for ax, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for count in range(INPUTS):
            style = {"color": PALETTE[count], "linestyle": STYLES[count]}
            label = f"{count + 1} input{'s' if count else ''}"
            ax.plot(found["shift"], curves[name][count], linewidth=1.4, label=label, **style)
            if name == "samples":
                ends = curves["low"][count], curves["high"][count]
                ax.fill_between(found["shift"], *ends, color=PALETTE[count], alpha=0.15, linewidth=0)
        styled(ax).set_title(title, fontsize=10)
        ax.set_ylim(0, None if name == "AP1" else top)
    axes[0, 1].legend(frameon=False, fontsize=8)
    axes[1, 2].annotate("bands: from the 5% to the 95% quantile", (0.02, 0.94), xycoords="axes fraction", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("bias, from where the mean input is 0")
    for ax in axes[:, 0]:
        ax.set_ylabel("KL divergence (bits)")
    return figure


def figure_c1(context: Context) -> Result:
    """The piecewise exponential approximation of the sigmoid, which is a Laplace distribution function."""
    x = np.linspace(-10, 10, 2001)
    sigmoid, laplace = stats.logistic.cdf(x), stats.laplace(scale=1 / math.log(2)).cdf(x)
    mean = torch.from_numpy(x)
    pea = unit(mean, torch.zeros_like(mean))["PEA"].numpy()
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = styled(figure.subplots())
    ax.plot(x, sigmoid, color=GRAY, linewidth=2.5, label="sigmoid")
    ax.plot(x, pea, color=PALETTE[0], linestyle="--", label="piecewise exponential")
    ax.set(xlabel="x", ylabel="probability of 1")
    ax.legend(frameon=False, fontsize=9)
    truths = {"the sigmoid": sigmoid, "the Laplace distribution function of scale 1/ln 2": laplace}
    errors = {name: float(np.abs(pea - truth).max()) for name, truth in truths.items()}
    rows = [[name, f"{error:.2g}"] for name, error in errors.items()]
    table = Table("Largest distance of PEA, of a certain input, on [-10, 10]", ["from", "distance"], rows)
    return Result([table], {"piecewise-exponential": figure}, values=errors)


def sums(count: int, weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of weighted binary inputs and of logistic noise, of mean 0, in units of its standard deviation.

    Args:
        count: Inputs, each 1 with probability 0.5.
        weights: Of the inputs, at least so many.
        at: Where, [P], in standard deviations.

    Returns:
        Its density and its distribution function, [P].
    """
    states = torch.cartesian_prod(*count * [torch.tensor([-0.5, 0.5], dtype=at.dtype)]).reshape(-1, count)
    scale = (0.25 * weights[:count].square().sum() + math.pi**2 / 3).sqrt()
    cdf = (at[:, None] * scale - states @ weights[:count]).sigmoid()
    return scale * (cdf * (1 - cdf)).mean(1), cdf.mean(1)


def figure_c3(context: Context) -> Result:
    """How fast the sum of binary inputs and logistic noise becomes normal."""
    largest = context.pick(4, 10, 10)
    generator = torch.Generator().manual_seed(context.seed)
    weights = 10 * torch.rand(largest, generator=generator, dtype=torch.float64)
    at = torch.linspace(-4, 4, 801, dtype=torch.float64)
    normal = torch.special.ndtr(at)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = (styled(ax) for ax in figure.subplots(1, 2))
    distances = {}
    for count in range(1, largest + 1):
        density, cdf = sums(count, weights, at)
        distances[count] = (cdf - normal).abs().max().item()
        if count in (1, 2, 3, 5, 10):
            index = (1, 2, 3, 5, 10).index(count)
            style: dict[str, Any] = {"color": PALETTE[index], "linestyle": STYLES[index], "linewidth": 1.4}
            left.plot(at, density, label=f"{count} input{'s' * (count > 1)}", **style)
            right.plot(at, cdf, **style)
    left.plot(at, torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi), color="black", linewidth=0.9, label="normal")
    right.plot(at, normal, color="black", linewidth=0.9)
    for ax, label in ((left, "density"), (right, "distribution function")):
        ax.set(xlabel="U + Z, from its mean, in standard deviations", ylabel=label)
    left.legend(frameon=False, fontsize=8)
    rows = [[str(count), f"{weights[count - 1]:.2f}", f"{distance:.3f}"] for count, distance in distances.items()]
    table = Table(
        "Largest distance of the distribution function of U + Z from the normal one (AP2a), inputs of probability 0.5",
        ["inputs", "weight of the last, from U[0, 10]", "distance"],
        rows,
    )
    notes = ["The paper has curves, of weights of its own, without numbers: a few modes for few inputs, soon normal."]
    values = {"weights": weights.tolist(), "distances": {str(count): value for count, value in distances.items()}}
    return Result([table], {"sums": figure}, notes, values)


def _lists(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in tensors.items()}


ENTRIES = tuple(
    Entry(f"moments/{number.lower().replace(' ', '-')}", title, f"{PAPER}, {number}", run, minutes=0.1)
    for number, title, run in (
        ("Table 1", "The logic AND of uncertain inputs, by approximation", table_1),
        ("Figure C.1", "Piecewise exponential approximation of the sigmoid", figure_c1),
        ("Figure C.2", "KL divergence of approximate means of Bernoulli units", figure_c2),
        ("Figure C.3", "Sums of binary inputs and noise become normal", figure_c3),
    )
)

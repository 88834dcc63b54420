"""Logistic Bernoulli units: what their approximate means are worth, alone, in belief networks, and in the softmax.

    python benchmarks/logistic_units.py --figure docs/logistic-units.png

- Table 1 of Shekhovtsov & Flach 2018, the logic AND of uncertain inputs, with all approximations beside it.
- Their Figure C.2: the KL divergence, in bits, from the true probability of a unit whose input is a weighted sum of 1
  to 5 binary variables to its approximations, against the bias; and to the estimate from 50 samples of the inputs.
- Sigmoid belief networks with random weights against the exact marginals of enumeration.
- Class probabilities of Gaussian logits against Monte Carlo.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, parser, start, table, write
from matplotlib.figure import Figure
from torch import Tensor

from bnnzoo import models
from bnnzoo.moments import Moments, propagate
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.moments.units import LogisticBernoulli

SETTING: dict[str, Any] = {
    "biases": 161,  # of the figure, from -20 to 20 about the bias at which the mean input is 0
    "samples": 50,
    "trials": 1000,
    "networks": 20,  # of random weights, in each row
    "inputs": 50,  # of each network
    "logits": 20,  # means and variances, in each row
    "draws": 100_000,  # of the logits
}

KINDS = {"normal": "AP2a", "logistic": "AP2b", "pea": "PEA", "exact": "AP2"}
"""Approximations of a unit's mean by name: "AP2" takes the input for Gaussian, and no more."""

INPUTS = 5
"""The largest sum of binary inputs in the figure."""


def unit(mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """The unit's mean by AP1 and by every approximation, of its input's mean and variance."""
    found = {"AP1": mean.sigmoid()}
    return found | {name: LogisticBernoulli(kind)(Moments(mean, variance)).loc for kind, name in KINDS.items()}


def conjunctions() -> list[dict[str, float]]:
    """Table 1: of two uncertain inputs, the exact expectation of S(a(X1 + X2) + b), and its approximations."""
    a = 2 * math.log(0.95 / 0.05)
    b = -1.5 * a  # the paper's -3/2 is a misprint
    rows = []
    for p in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75)):
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


def bits(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence from a binary variable of probability p to one of probability q, in bits."""
    q = q.clamp(1e-15, 1 - 1e-15)
    return (torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))) / math.log(2.0)


def divergences(seed: int) -> dict[str, Any]:
    """Figure C.2: the KL divergences by method, number of inputs and bias."""
    generator = torch.Generator().manual_seed(seed)
    weights = 10 * torch.rand(INPUTS, generator=generator, dtype=torch.float64)
    shift = torch.linspace(-20, 20, SETTING["biases"], dtype=torch.float64)  # of the mean input from 0
    curves: dict[str, list[Tensor]] = {}
    for count in range(1, INPUTS + 1):
        w = weights[:count]
        centered = (torch.cartesian_prod(*count * [torch.tensor([-0.5, 0.5], dtype=torch.float64)])).reshape(-1, count)
        truth = (centered @ w + shift[:, None]).sigmoid().mean(-1)
        variance = (0.25 * w.square().sum()).expand(len(shift))
        for name, q in unit(shift, variance).items():
            curves.setdefault(name, []).append(bits(truth, q))
        shape = (SETTING["trials"], SETTING["samples"], count)
        drawn = (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5).double() - 0.5
        estimates = torch.stack([(drawn @ w + each).sigmoid().mean(-1) for each in shift], -1)  # [trial, bias]
        errors = bits(truth, estimates)
        for name, value in zip(("samples", "low", "high"), (errors.mean(0), *errors.quantile(_BAND, 0)), strict=True):
            curves.setdefault(name, []).append(value)
    return {"weights": weights, "shift": shift, "curves": {name: torch.stack(each) for name, each in curves.items()}}


_BAND = torch.tensor([0.05, 0.95], dtype=torch.float64)


def belief_networks(sizes: Sequence[int], scale: float, observed: bool, seed: int) -> dict[str, float]:
    """Mean absolute errors of the last layer's probabilities over networks with weights and biases N(0, scale²)."""
    torch.manual_seed(seed)
    errors: dict[str, list[float]] = {}
    for _ in range(SETTING["networks"]):
        network = models.SigmoidBeliefNetwork(sizes).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, scale)
        x = torch.rand(SETTING["inputs"], sizes[0], dtype=torch.float64)
        x = x.round() if observed else x
        with torch.no_grad():
            exact = network.marginals(x)[-1]
            found = {"AP1": propagate(network, x, mode="ap1").loc}
            for kind, name in KINDS.items():
                for layer in network.layers[2::2]:
                    layer.approximation = kind
                found[name] = propagate(network, x).loc
        for name, value in found.items():
            errors.setdefault(name, []).append((value - exact).abs().mean().item())
    return {name: float(np.mean(each)) for name, each in errors.items()}


def class_probabilities(classes: int, std: float, seed: int) -> dict[str, float]:
    """Mean KL divergence, in nats, from the mean softmax of Gaussian logits to its approximations.

    Means are N(0, 4); standard deviations are uniform from half to one and a half times `std`.
    """
    torch.manual_seed(seed)
    mean = 2 * torch.randn(SETTING["logits"], classes, dtype=torch.float64)
    scale = std * (0.5 + torch.rand(SETTING["logits"], classes, dtype=torch.float64))
    totals = torch.zeros_like(mean)
    blocks = max(1, SETTING["draws"] // 2000)
    for _ in range(blocks):
        noise = torch.randn(2000, *mean.shape, dtype=torch.float32)
        totals += (mean.float() + scale.float() * noise).softmax(-1).double().sum(0)
    truth = totals / (2000 * blocks)
    found = {"AP1": mean.log_softmax(-1)}
    found |= {
        kind: log_softmax(mean, scale.square(), -1, kind) for kind in ("normal", "logistic", "simplified", "exact")
    }
    return {
        name: (torch.special.xlogy(truth, truth) - truth * log_q).sum(-1).mean().item() for name, log_q in found.items()
    }


def draw(found: dict[str, Any]) -> Figure:
    """The curves of Figure C.2: a panel a method, a curve a number of inputs."""
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    titles = {
        "AP1": "AP1: the sigmoid of the mean (another scale)",
        "AP2a": "AP2a: input and noise normal",
        "AP2b": "AP2b: input and noise logistic",
        "PEA": "PEA: piecewise exponential",
        "AP2": "AP2: input normal, exact",
        "samples": f"mean of {SETTING['samples']} samples",
    }
    colors = [f"C{index}" for index in range(INPUTS)]
    top = max(float(found["curves"][name].max()) for name in titles if name != "AP1")
    for ax, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for count in range(INPUTS):
            label = f"{count + 1} input{'s' if count else ''}"
            ax.plot(found["shift"], found["curves"][name][count], color=colors[count], linewidth=1.3, label=label)
            for end in ("low", "high") if name == "samples" else ():
                ax.plot(found["shift"], found["curves"][end][count], color=colors[count], linewidth=0.8, linestyle=":")
        ax.set_title(title, fontsize=10)
        ax.set_ylim(0, None if name == "AP1" else 1.05 * max(top, float(found["curves"]["high"].max())))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 1].legend(frameon=False, fontsize=8)
    axes[1, 2].annotate(
        "dotted: 5% and 95% quantiles of the trials", (0.02, 0.95), xycoords="axes fraction", fontsize=8
    )
    for ax in axes[-1]:
        ax.set_xlabel("bias, from where the mean input is 0")
    for ax in axes[:, 0]:
        ax.set_ylabel("KL divergence (bits)")
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--figure", type=Path, help="draw the divergences into this file")
    arguments = options.parse_args()
    if arguments.smoke:
        SETTING.update(biases=5, trials=20, networks=1, inputs=2, logits=1, draws=2000)
    start(arguments)
    conjunction = conjunctions()
    found = divergences(arguments.seed)
    networks = {
        (sizes, observed, scale): belief_networks(sizes, scale, observed, arguments.seed)
        for sizes in ((10, 10, 10), (5, 5, 5, 5))
        for observed in (True, False)
        for scale in (0.5, 1.0, 2.0, 4.0)
    }
    classes = {
        (count, std): class_probabilities(count, std, arguments.seed)
        for count in (2, 10, 100)
        for std in (0.1, 0.5, 1.0, 2.0, 4.0, 10.0)
    }
    if arguments.figure is not None:
        draw(found).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    header = [name for name in conjunction[0] if name not in ("p1", "p2")]
    rows = [[f"{row['p1']:g}, {row['p2']:g}", *(f"{row[name]:.3g}" for name in header)] for row in conjunction]
    print(table(["p(X1), p(X2)", *header], rows), "\n")
    print("Weights of the inputs: " + ", ".join(f"{each:.2f}" for each in found["weights"]) + ". KL in bits:\n")
    names = {
        "AP1": "AP1",
        **{name: name for name in KINDS.values()},
        "samples": "50 samples, mean",
        "high": "50 samples, 95%",
    }
    rows = []
    for name, label in names.items():
        curves = found["curves"][name]
        rows.append([label, *(f"{curve.mean():.4f}, {curve.max():.3f}" for curve in curves)])
    counts = [f"{count} input{'s' * (count > 1)}: mean, largest" for count in range(1, INPUTS + 1)]
    print(table(["", *counts], rows), "\n")
    header = ["AP1", "AP2", "AP2a", "AP2b", "PEA"]
    rows = [
        [
            "-".join(map(str, sizes)),
            "observed" if observed else "uncertain",
            f"{scale:g}",
            *(f"{row[n]:.4f}" for n in header),
        ]
        for (sizes, observed, scale), row in networks.items()
    ]
    print(table(["network", "inputs", "scale of weights", *header], rows), "\n")
    header = ["AP1", "normal", "logistic", "simplified", "exact"]
    rows = [[count, f"{std:g}", *(f"{row[name]:.1e}" for name in header)] for (count, std), row in classes.items()]
    print(table(["classes", "std of logits", *header], rows))
    write(arguments, {
        "setting": SETTING,
        "conjunction": conjunction,
        "weights": found["weights"].tolist(),
        "divergences": {name: each.tolist() for name, each in found["curves"].items()},
        "networks": [[sizes, observed, scale, row] for (sizes, observed, scale), row in networks.items()],
        "classes": [[count, std, row] for (count, std), row in classes.items()],
    })  # fmt: skip


if __name__ == "__main__":
    main()

"""Batch statistics of a network with batch norm beside their Gaussian form (Teye et al. 2018, Figures 3, 7 and 8).

Means and standard deviations of every unit in random training batches, and the Kolmogorov-Smirnov distance of their
distribution to what `guides.BatchNorm(statistics="gaussian")` draws from, and to the Gaussian with the batches' own
moments, which leaves the shape. The Gaussian form takes the layers before as they are at inference; in a batch they
normalize by that batch, and what comes next varies less. Tables get an MLP 50-50, images a LeNet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, data, guides, likelihoods, models, priors
from bnnzoo.evaluation.style import BLUE, GRAY, VERMILION
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import trained as fitted
from bnnzoo.reproduce.mcbn_cifar import with_running_statistics
from bnnzoo.reproduce.mcbn_paper import PAPER

BATCH_SIZE = 32


@dataclass(frozen=True)
class Comparison:
    """One kind of statistic of one layer: C units in S batches.

    Attributes:
        layer: Path and kind of the layer.
        kind: `"mean"` or `"std"`.
        values: The statistic in each batch, [S, C].
        loc: Means of the Gaussian form, [C].
        scale: Its standard deviations, [C].
    """

    layer: str
    kind: str
    values: Tensor
    loc: Tensor
    scale: Tensor

    @property
    def distance(self) -> np.ndarray:
        """Kolmogorov-Smirnov distance of every unit to the Gaussian form, [C]."""
        return kolmogorov_smirnov((self.values - self.loc) / self.scale)

    @property
    def shape_distance(self) -> np.ndarray:
        """The same to the Gaussian with the batches' own mean and standard deviation, [C]."""
        return kolmogorov_smirnov((self.values - self.values.mean(0)) / self.values.std(0))

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over batches, in units of the Gaussian form's, [C]."""
        return (self.values.std(0) / self.scale).numpy()

    @property
    def shift(self) -> np.ndarray:
        """Mean over batches less that of the Gaussian form, in units of its standard deviation, [C]."""
        return ((self.values.mean(0) - self.loc) / self.scale).numpy()


def kolmogorov_smirnov(z: Tensor) -> np.ndarray:
    """Largest distance of the distribution function of draws to the standard normal's: [S, C] to [C]."""
    count = len(z)
    below = torch.special.ndtr(z.double().sort(0).values)
    ranks = torch.arange(count, dtype=torch.float64)[:, None] / count
    return torch.maximum(below - ranks, ranks + 1 / count - below).amax(0).numpy()


def trained(context: Context, train: data.Dataset, epochs: int) -> nn.Module:
    """A network with batch norm after ordinary training, as `guides.BatchNorm` does it.

    Args:
        context: Of the entry.
        train: The training data.
        epochs: Passes over them.
    """
    torch.manual_seed(context.seed)
    if len(train.input_shape) == 1:
        network: nn.Module = models.MLP(train.input_shape[0], 1, (50, 50), batch_norm=True)
        likelihood: likelihoods.Likelihood = likelihoods.Gaussian()
    else:
        network, likelihood = models.LeNet(batch_norm=True), likelihoods.Categorical()
    bnn = BayesianNetwork(network, likelihood, priors.Normal(0.0, 1.0))
    guide = guides.BatchNorm(bnn, num_statistics=1)
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH_SIZE, "lr": 1e-3, "seed": context.seed}
    path = context.folder / f"{train.name}-batch-norm.bnn"
    return with_running_statistics(fitted(path, bnn, guide, train, say=lambda _: None, **settings))


def compare(network: nn.Module, train: data.Dataset, batch_size: int, batches: int, seed: int) -> list[Comparison]:
    """Statistics of random batches beside their Gaussian form, layer by layer.

    Args:
        network: The trained network.
        train: Its training data.
        batch_size: Rows of a batch.
        batches: Number of batches.
        seed: Fixes them.
    """
    given = likelihoods.Gaussian(1.0) if train.task == "regression" else None  # no noise need be found
    settings: dict[str, Any] = {"likelihood": given, "batch_size": batch_size, "num_statistics": batches, "seed": seed}
    drawn: Any
    form: Any
    drawn, form = (
        guides.BatchNorm.from_trained(network, train, statistics=statistics, **settings).guide
        for statistics in ("batches", "gaussian")
    )
    result = []
    start = 0
    for name, shape in drawn.auxiliary.items():
        path, _, kind = name.rpartition(".")
        units = slice(start, start + shape[0])
        layer = f"{path} ({type(network.get_submodule(path)).__name__})"
        loc, scale = (getattr(form, f"{kind}{end}")[units] for end in ("s", "_scales"))
        alive = scale > 0  # a dead unit has nothing to compare
        values = getattr(drawn, f"{kind}s")[:, units]
        result.append(Comparison(layer, kind, values[:, alive], loc[alive], scale[alive]))
        start += shape[0] if kind == "std" else 0
    return result


def gaussian(x: np.ndarray, loc: Any, scale: Any) -> np.ndarray:
    """The density of N(loc, scale²)."""
    return np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def draw(comparisons: list[Comparison]) -> Figure:
    """Histograms of the batches with the Gaussian form: the unit of median distance, and the worst one."""
    layers = list(dict.fromkeys(each.layer for each in comparisons))
    figure = Figure(figsize=(11, 2.3 * len(layers) + 0.6), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots(len(layers), 4, squeeze=False)
    for each in comparisons:
        row, first = axes[layers.index(each.layer)], 0 if each.kind == "mean" else 2
        order = np.argsort(each.distance)
        for ax, unit, which in ((row[first], order[len(order) // 2], "median"), (row[first + 1], order[-1], "worst")):
            values, loc, scale = (part.numpy() for part in (each.values[:, unit], each.loc[unit], each.scale[unit]))
            ax.hist(values, bins=40, density=True, color=BLUE, alpha=0.45, label="random training batches")
            low, high = min(values.min(), loc - 3.5 * scale), max(values.max(), loc + 3.5 * scale)
            grid = np.linspace(low, high, 300)
            ax.plot(grid, gaussian(grid, loc, scale), color=VERMILION, label="Gaussian form")
            own = gaussian(grid, values.mean(), values.std())
            ax.plot(grid, own, color=GRAY, linestyle="--", linewidth=1, label="Gaussian with the batches' moments")
            ax.set_title(f"{each.kind}, {which} unit: KS {each.distance[unit]:.2f}", fontsize=9)
            ax.set_yticks([])
            ax.tick_params(labelsize=8)
            ax.locator_params(axis="x", nbins=4)
            ax.spines[["left", "top", "right"]].set_visible(False)
    for row, layer in zip(axes, layers, strict=True):
        row[0].set_ylabel(layer.replace(" (", "\n("), fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


SETS: dict[str, dict[str, tuple[int | None, int, int]]] = {
    "smoke": {"diabetes": (None, 2, 50)},
    "cpu": {"concrete": (None, 300, 2000), "mnist": (5000, 2, 500)},
    "paper": {"concrete": (None, 2000, 2000), "yacht": (None, 2000, 2000), "mnist": (None, 20, 2000)},
}
"""Of Figure 3, by scale and data set: most training rows, epochs, and batches compared."""


def figure_3(context: Context) -> Result:
    """Networks on a table and on images, and the figure of the first."""
    rows: list[list[str]] = []
    figures: dict[str, Figure] = {}
    values: dict[str, Any] = {}
    for name, (count, epochs, batches) in SETS[context.scale].items():
        train = data.load(name).split(seed=context.seed).train
        train = train if count is None else train[:count]
        comparisons = compare(trained(context, train, epochs), train, BATCH_SIZE, batches, context.seed)
        if not figures:
            figures["batch-statistics"] = draw(comparisons)
        for each in comparisons:
            found = {key: getattr(each, key) for key in ("distance", "shape_distance", "spread", "shift")}
            cells = [f"{np.median(found[k]):.3f}, {found[k].max():.3f}" for k in ("distance", "shape_distance")]
            cells += [f"{np.median(found[k]):.2f}" for k in ("spread", "shift")]
            rows.append([name, each.layer, each.kind, *cells, f"{1.36 / math.sqrt(batches):.3f}"])
            medians = {key: float(np.median(value)) for key, value in found.items()}
            values[f"{name} {each.layer} {each.kind}"] = medians | {"worst": float(found["distance"].max())}
    header = ["data", "layer", "statistic", "KS to the form: median, max unit", "KS of the shape: median, max"]
    notes = [
        "The last column: the distance that draws of the form itself stay below in 95% of cases. Spread and shift: of "
        "the batches, in standard deviations of the form (the median unit; right would be 1 and 0).",
        "The paper shows units of a network on yacht, without numbers, and finds that they closely follow the form.",
    ]
    table = Table(
        f"Statistics of random training batches of {BATCH_SIZE} beside their Gaussian form",
        [*header, "spread", "shift", "95% of the form"],
        rows,
    )
    return Result([table], figures, notes, values)


ENTRIES = (
    Entry(
        "mcbn/figure-3",
        "Batch statistics beside their Gaussian form",
        f"{PAPER}, Figures 3, 7 and 8",
        figure_3,
        ("concrete", "mnist"),
        minutes=2.0,
        paper_data=("yacht",),
    ),
)

"""Batch statistics of a network with batch norm beside their Gaussian form.

    BNNZOO_DATA=../shared/data python benchmarks/batch_statistics.py --figure docs/batch-statistics.png
    BNNZOO_DATA=../shared/data python benchmarks/batch_statistics.py --set mnist --rows 10000 --epochs 3

As Figures 3 and 7 of the MCBN paper: means and standard deviations of every unit in random training batches, and the
Kolmogorov-Smirnov distance of their distribution to what `guides.BatchNorm(statistics="gaussian")` draws from, and to
the Gaussian with the batches' own moments, which leaves the shape. The Gaussian form takes the layers before as they
are at inference; in a batch they normalize by that batch, and what comes next varies less. Tables get an MLP 50-50,
images a LeNet.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, parser, start, table, write
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, data, fit, guides, likelihoods, models, priors
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION

SETTING: dict[str, Any] = {"hidden": (50, 50), "prior_scale": 1.0, "lr": 1e-3, "seed": 0}


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


def trained(train: data.Dataset, epochs: int, batch_size: int) -> nn.Module:
    """A network with batch norm after ordinary training, as `guides.BatchNorm` does it.

    Args:
        train: The training data.
        epochs: Passes over them.
        batch_size: Rows of a batch.
    """
    torch.manual_seed(SETTING["seed"])
    if len(train.input_shape) == 1:
        network: nn.Module = models.MLP(train.input_shape[0], 1, SETTING["hidden"], batch_norm=True)
        likelihood: likelihoods.Likelihood = likelihoods.Gaussian()
    else:
        network, likelihood = models.LeNet(batch_norm=True), likelihoods.Categorical()
    bnn = BayesianNetwork(network, likelihood, priors.Normal(0.0, SETTING["prior_scale"]))
    guide = guides.BatchNorm(bnn, num_statistics=1)
    settings = {"lr": SETTING["lr"], "seed": SETTING["seed"], "progress": False}
    posterior = fit(bnn, guide, train, epochs=epochs, batch_size=batch_size, **settings)
    network = copy.deepcopy(posterior.bnn.network)
    network.load_state_dict({name: q.mean for name, q in posterior.guide.distributions().items()}, strict=False)
    return network


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


def gaussian(x: np.ndarray, loc: float, scale: float) -> np.ndarray:
    """The density of N(loc, scale²)."""
    return np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def draw(comparisons: list[Comparison]) -> Figure:
    """Histograms of the batches with the Gaussian form: the unit of median distance, and the worst one."""
    layers = list(dict.fromkeys(each.layer for each in comparisons))
    figure = Figure(figsize=(11, 2.3 * len(layers) + 0.6), layout="constrained")
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
    figure.get_layout_engine().set(w_pad=0.1)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--set", default="concrete", help="a regression table or images, by a name that data.load knows"
    )
    options.add_argument("--rows", type=int, help="at most so many training rows")
    options.add_argument("--epochs", type=int, default=300, help="passes over the training data")
    options.add_argument("--batch-size", type=int, default=32, help="rows of a batch")
    options.add_argument("--batches", type=int, default=2000, help="batches whose statistics are compared")
    options.add_argument("--figure", type=Path, help="draw histograms into this file")
    arguments = options.parse_args()
    for name in ("rows", "epochs", "batch_size", "batches"):
        value = getattr(arguments, name)
        if value is not None and value < (2 if name == "batch_size" else 1):
            options.error(
                f"--{name.replace('_', '-')} must be at least {2 if name == 'batch_size' else 1}, got {value}"
            )
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.set, arguments.epochs, arguments.batches = "diabetes", 2, 50
    start(arguments)
    train = data.load(arguments.set).split(seed=arguments.seed).train
    if arguments.rows is not None:
        train = train[: arguments.rows]
    network = trained(train, arguments.epochs, arguments.batch_size)
    comparisons = compare(network, train, arguments.batch_size, arguments.batches, arguments.seed)
    print(describe(environment(arguments)), "\n")
    print(f"{arguments.set}, {len(train)} rows, batches of {arguments.batch_size}; draws of the Gaussian form itself ")
    print(f"would have a distance below {1.36 / math.sqrt(arguments.batches):.3f} in 95% of cases.\n")
    rows, results = [], []
    for each in comparisons:
        found = {name: getattr(each, name) for name in ("distance", "shape_distance", "spread", "shift")}
        cells = [f"{np.median(found[name]):.3f}, {found[name].max():.3f}" for name in ("distance", "shape_distance")]
        cells += [f"{np.median(found[name]):.2f}" for name in ("spread", "shift")]
        rows.append([each.layer, each.kind, *cells])
        results.append({"layer": each.layer, "statistic": each.kind, **{n: v.tolist() for n, v in found.items()}})
    header = ["layer", "statistic", "KS to the form: median, max", "KS of the shape: median, max", "spread", "shift"]
    print(table(header, rows))
    print("\nspread, shift: of the batches, in standard deviations of the Gaussian form (median unit; right: 1 and 0)")
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(comparisons).savefig(arguments.figure, dpi=150)
    settings = {name: getattr(arguments, name) for name in ("set", "epochs", "batch_size", "batches")}
    write(arguments, {"setting": {**SETTING, **settings, "rows": len(train)}, "statistics": results})


if __name__ == "__main__":
    main()

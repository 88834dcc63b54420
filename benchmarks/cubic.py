"""The toy y = x³ + N(0, 9): how wide each method's predictions are where there are data, and where there are none.

    python benchmarks/cubic.py --keep /tmp/cubic --figure docs/cubic.png

The MNF paper's Figure 6 (section 4.3): 20 points on U[-4, 4], the noise known; here one hidden layer of 100 ReLU, as
Hernández-Lobato and Adams (2015) have it, standardized data, and a standard normal prior of all weights (FFLU:
log-uniform). NUTS says what the bands of this model should be. With `--keep`, what is finished stays finished.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, kept, parser, start, table, write
from matplotlib.figure import Figure
from pyro.distributions import Normal

from bnnzoo import BayesianNetwork, Posterior, data, fit, guides, likelihoods, models, objectives, priors, sample
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION

NOISE = 3.0
"""Standard deviation of the data's noise, known to the model."""

HIDDEN = 100

INSIDE, OUTSIDE = 4.0, 6.0
"""The data lie in [-INSIDE, INSIDE]; bands are drawn, and measured, to ±OUTSIDE."""


@dataclass(frozen=True)
class Method:
    """One panel of the figure and one row of the table.

    Attributes:
        label: Its title.
        guide: Builds the guide; None samples with NUTS.
        prior: Of all weights; None is the standard normal.
        pooled: Whether the chains are one posterior (an ensemble, NUTS), or restarts, each a posterior of its own.
        epochs: Of one step, with all data.
    """

    label: str
    guide: Callable[[BayesianNetwork], guides.Guide] | None
    prior: Any = None
    pooled: bool = False
    epochs: int = 10_000


SETTING: dict[str, Any] = {
    "lr": 1e-2,  # falls to 0 along a cosine
    "kl_annealing": 0.5,  # the KL's weight rises from 0 to 1 over this share of the training
    "restarts": 5,
    "draws": 1000,
    "nuts": {
        "num_samples": 200,
        "warmup_steps": 200,
        "chains": 2,
        "max_tree_depth": 8,
        "jit_compile": True,
        "ignore_jit_warnings": True,
    },
}

METHODS: dict[str, Method] = {
    # The only input of the first layer is not dropped.
    "dropout": Method("Dropout, rate 0.5", guides.Dropout),
    "learned-dropout": Method("Dropout, learned rate", partial(guides.Dropout, learn_rate=True)),
    "fflu": Method(
        "MeanField, log-uniform (FFLU)", partial(guides.MeanField, init_scale=0.03), prior=priors.LogUniform()
    ),
    "ensemble": Method("ensemble of 5 Maps", guides.Map, pooled=True),
    "mean-field": Method("MeanField", partial(guides.MeanField, init_scale=0.03)),
    "mnf": Method("MNF", guides.MNF, epochs=4000),  # a step takes several times as long
    "nuts": Method("NUTS (reference)", None, pooled=True),
}


def posterior_of(name: str, seed: int, keep: Path) -> Posterior:
    """Fit or sample one method, or read what an earlier call left.

    Args:
        name: One of `METHODS`.
        seed: Fixes everything but the data.
        keep: Folder of posteriors.
    """
    return kept(keep / f"{name}.bnn", partial(_fitted, name, seed))


def _fitted(name: str, seed: int) -> Posterior:
    method, train = METHODS[name], data.load("cubic").with_standardization()
    assert train.standardization is not None
    assert train.standardization.y_scale is not None
    noise = NOISE / train.standardization.y_scale.item()  # as the model sees it
    torch.manual_seed(seed)
    network = models.MLP(1, 1, (HIDDEN,))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(noise), method.prior or Normal(0.0, 1.0))
    if method.guide is None:
        return sample(bnn, train, seed=seed, progress=False, **SETTING["nuts"])
    epochs = SETTING.get("epochs", method.epochs)
    return fit(
        bnn,
        method.guide(bnn),
        train,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=len(train),
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=SETTING["restarts"],
        seed=seed,
        progress=False,
    )


def bands(posterior: Posterior, pooled: bool, x: torch.Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the predictive distribution, noise included, [posterior, N] each.

    Args:
        posterior: Of one method.
        pooled: As in `Method`.
        x: Inputs, [N, 1].
        seed: Fixes the draws.
    """
    draws = {} if posterior.info.get("method") == "NUTS" else {"num_samples": SETTING["draws"]}
    prediction = posterior.predict(x, seed=seed, **draws)
    each = [prediction] if pooled else [prediction.chain(index) for index in range(posterior.chains)]
    return np.stack([p.mean.numpy() for p in each]), np.stack([p.std.numpy() for p in each])


def widths(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, list[float]]:
    """Mean width of the ±3σ bands by range, and how much of x³ they hold beyond the data, for each posterior.

    Args:
        x: Inputs, [N], evenly spaced on [-OUTSIDE, OUTSIDE].
        mean: Predictive means, [posterior, N].
        std: Predictive standard deviations, [posterior, N].
    """
    beyond = np.abs(x) >= INSIDE
    held = np.abs(x**3 - mean) <= 3 * std
    return {
        "inside": (6 * std[:, ~beyond]).mean(1).tolist(),
        "outside": (6 * std[:, beyond]).mean(1).tolist(),
        "held": held[:, beyond].mean(1).tolist(),
    }


def r_hat(draws: np.ndarray) -> float:
    """The largest potential scale reduction of [chain, draw, N] over N, chains split in half (Gelman et al. 2013)."""
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, half : 2 * half]])
    within, between = halves.var(1, ddof=1).mean(0), halves.mean(1).var(0, ddof=1)
    return float(np.sqrt(1 - 1 / half + between / within).max())


def draw(shown: dict[str, tuple[np.ndarray, np.ndarray]], x: np.ndarray, train: data.Dataset) -> Figure:
    """One panel a method: predictive mean and ±3σ, the data and x³.

    Args:
        shown: Mean and standard deviation by label, [N] each.
        x: Inputs, [N].
        train: The data.
    """
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax, (label, (mean, std)) in zip(axes.flat, shown.items(), strict=False):
        ax.fill_between(x, mean - 3 * std, mean + 3 * std, color=BLUE, alpha=0.25, linewidth=0, label="mean ± 3σ")
        ax.plot(x, mean, color=BLUE, linewidth=1.5, label="predictive mean")
        ax.plot(x, x**3, color=VERMILION, linewidth=1.2, linestyle="--", label="x³")
        ax.plot(train.x[:, 0], train.y, ".", color="black", markersize=4, label="data")
        for edge in (-INSIDE, INSIDE):
            ax.axvline(edge, color=GRAY, linewidth=0.6, linestyle=":")
        ax.set_title(label, fontsize=10)
        ax.set_xlim(-OUTSIDE, OUTSIDE)
        ax.set_xticks([-INSIDE, 0, INSIDE])
        ax.set_ylim(-250, 250)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("y")
    for column in range(columns):
        lowest = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        lowest.set_xlabel("x")
        lowest.tick_params(labelbottom=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--keep", type=Path, help="folder of posteriors: those in it are used as they are")
    options.add_argument("--figure", type=Path, help="draw the bands into this file")
    arguments = options.parse_args()
    if arguments.smoke:
        nuts = {"num_samples": 4, "warmup_steps": 4, "chains": 1, "max_tree_depth": 2}
        SETTING.update(epochs=5, restarts=2, draws=10, nuts=nuts)
    start(arguments)
    x = np.linspace(-OUTSIDE, OUTSIDE, 241)
    shown, results = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        for name in arguments.methods:
            method, posterior = METHODS[name], posterior_of(name, arguments.seed, keep)
            inputs = torch.from_numpy(x).to(torch.get_default_dtype())[:, None]
            mean, std = bands(posterior, method.pooled, inputs, arguments.seed)
            shown[method.label] = mean[0], std[0]
            results[name] = widths(x, mean, std) | {"seconds": posterior.info["seconds"]}
            if method.guide is None and posterior.chains > 1:
                results[name]["r_hat"] = r_hat(posterior.predict(inputs).draws.numpy())
    if arguments.figure is not None:
        draw(shown, x, data.load("cubic")).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    print(_table(results))
    for name, result in results.items():
        if "r_hat" in result:
            print(f"\n{METHODS[name].label}: the largest R-hat of the network's values is {result['r_hat']:.2f}.")
    write(arguments, {"setting": SETTING, "widths": results})


def _table(results: dict[str, dict[str, Any]]) -> str:
    beyond = f"beyond, to ±{OUTSIDE:g}"
    header = ["", f"width on [-{INSIDE:g}, {INSIDE:g}]", f"width {beyond}", f"x³ in the band {beyond}", "CPU s"]
    rows = []
    for name, result in results.items():
        cells = []
        for key in ("inside", "outside"):
            values = result[key]
            spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.0f}{spread}")
        held = f"{100 * np.mean(result['held']):.0f}%"
        rows.append([METHODS[name].label, *cells, held, f"{result['seconds']:.0f}"])
    return table(header, rows)


if __name__ == "__main__":
    main()

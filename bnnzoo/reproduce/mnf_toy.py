"""The toy y = x³ + N(0, 9): how wide each method's predictions are where there are data, and where there are none.

The MNF paper's Figure 6 (section 4.3): 20 points on U[-4, 4], the noise known; here one hidden layer of 100 ReLU, as
Hernández-Lobato and Adams (2015) have it, standardized data, and a standard normal prior of all weights (FFLU:
log-uniform). Three more methods are beside the paper's four; NUTS says what the bands of this model should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro.distributions import Normal

from bnnzoo import data, fit, guides, likelihoods, models, objectives, priors, sample
from bnnzoo.evaluation import convergence, plot_band
from bnnzoo.evaluation.style import GRAY
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import kept

NOISE = 3.0
"""Standard deviation of the data's noise, known to the model."""

HIDDEN = 100

INSIDE, OUTSIDE = 4.0, 6.0
"""The data lie in [-INSIDE, INSIDE]; bands are drawn, and measured, to ±OUTSIDE."""

LR = 1e-2
"""Falls to 0 along a cosine."""

ANNEALING = 0.5
"""The KL's weight rises from 0 to 1 over this share of the training."""


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


METHODS: dict[str, Method] = {
    # The only input of the first layer is not dropped.
    "dropout": Method("Dropout, rate 0.5", guides.Dropout),
    "learned-dropout": Method("Dropout, learned rate", partial(guides.Dropout, learn_rate=True)),
    "fflu": Method(
        "MeanField, log-uniform (FFLU)", partial(guides.MeanField, init_scale=0.03), prior=priors.LogUniform()
    ),
    "mnf": Method("MNF", guides.MNF, epochs=4000),  # a step takes several times as long
    "ensemble": Method("ensemble of 5 Maps", guides.Map, pooled=True),
    "mean-field": Method("MeanField", partial(guides.MeanField, init_scale=0.03)),
    "nuts": Method("NUTS (reference)", None, pooled=True),
}
"""The paper's four, and more."""


def run(context: Context) -> Result:
    """Figure 6.

    Args:
        context: Of the run.
    """
    grid = torch.linspace(-OUTSIDE, OUTSIDE, 241)
    shown: dict[str, Prediction] = {}
    values: dict[str, Any] = {}
    for name, method in METHODS.items():
        posterior = kept(context.folder / f"{name}.bnn", partial(_fitted, context, name), say=context.say)
        draws = None if method.guide is None else context.pick(10, 1000, 1000)
        prediction = posterior.predict(grid[:, None], draws, context.seed)
        each = [prediction.pooled] if method.pooled else [prediction.chain(i) for i in range(posterior.chains)]
        shown[method.label] = each[0]
        mean, std = (np.stack([getattr(p, what).numpy() for p in each]) for what in ("mean", "std"))
        values[name] = widths(grid.numpy(), mean, std) | {"seconds": posterior.info["seconds"]}
        if method.guide is None:
            values[name]["r_hat"] = convergence(prediction).attrs["worst_rhat"]
    notes = [
        "The paper's figure has no numbers: its MNF is the least certain away from the data, learned dropout and FFLU "
        "are the most certain, dropout at a fixed rate in between; its networks' sizes are not told. MeanField, the "
        "ensemble and NUTS are not in it.",
        f"The largest R-hat of what NUTS predicts is {values['nuts']['r_hat']:.2f}.",
    ]
    return Result([_table(values)], {"cubic": draw(shown, grid)}, notes, values)


def _fitted(context: Context, name: str) -> Posterior:
    method, train = METHODS[name], data.load("cubic").with_standardization()
    assert train.standardization is not None
    assert train.standardization.y_scale is not None
    noise = NOISE / train.standardization.y_scale.item()  # as the model sees it
    torch.manual_seed(context.seed)
    bnn = BayesianNetwork(models.MLP(1, 1, (HIDDEN,)), likelihoods.Gaussian(noise), method.prior or Normal(0.0, 1.0))
    if method.guide is None:
        chain = context.pick((20, 20, 3), (200, 200, 8), (1000, 1000, 10))
        sizes = dict(zip(("num_samples", "warmup_steps", "max_tree_depth"), chain, strict=True))
        jit = {"jit_compile": context.scale != "smoke", "ignore_jit_warnings": True}
        return sample(bnn, train, seed=context.seed, progress=False, chains=2, **sizes, **jit)
    epochs = context.pick(5, method.epochs, 10_000)
    return fit(
        bnn,
        method.guide(bnn),
        train,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(ANNEALING * epochs)),
        epochs=epochs,
        batch_size=len(train),
        lr=LR,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=context.pick(2, 5, 5),
        seed=context.seed,
        progress=False,
    )


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


def draw(shown: Mapping[str, Prediction], x: torch.Tensor) -> Figure:
    """One panel a method: predictive mean and ±3σ, the data and x³.

    Args:
        shown: Predictions of x by label.
        x: Inputs, [N].
    """
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    train = data.load("cubic")
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for place, (ax, (label, prediction)) in enumerate(zip(axes.flat, shown.items(), strict=False)):
        plot_band(prediction, x, data=(train.x, train.y), truth=x**3, deviations=[3.0], ax=ax)
        for edge in (-INSIDE, INSIDE):
            ax.axvline(edge, color=GRAY, linewidth=0.6, linestyle=":")
        ax.set_title(label, fontsize=10)
        ax.set_xticks([-INSIDE, 0, INSIDE])
        ax.set_ylim(-250, 250)
        if place % columns:
            ax.set_ylabel("")
        if place + columns < len(shown):
            ax.set_xlabel("")
        else:
            ax.tick_params(labelbottom=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _table(values: Mapping[str, Mapping[str, Any]]) -> Table:
    beyond = f"beyond, to ±{OUTSIDE:g}"
    header = ["", f"width on [-{INSIDE:g}, {INSIDE:g}]", f"width {beyond}", f"x³ in the band {beyond}, %", "CPU s"]
    rows = []
    for name, result in values.items():
        cells = []
        for key in ("inside", "outside"):
            each = result[key]
            spread = f" ({min(each):.0f} to {max(each):.0f})" if len(each) > 1 else ""
            cells.append(f"{np.mean(each):.0f}{spread}")
        held = f"{100 * np.mean(result['held']):.0f}"
        rows.append([METHODS[name].label, *cells, held, f"{result['seconds']:.0f}"])
    caption = "Width of mean ± 3σ, noise (18) included: the mean of the restarts, and their range"
    return Table(caption, header, rows)


ENTRIES = (
    Entry(
        "mnf/figure-6", "Bands on the toy y = x³ by method", "Louizos & Welling 2017 (MNF), Figure 6", run, minutes=10
    ),
)

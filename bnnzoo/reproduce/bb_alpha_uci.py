"""BB-α paper (Li and Gal, 2017), Figures 2 and 3: UCI regression by α, beside α = 0 on the same splits, and NUTS.

Section 5.1: one hidden layer of 50 ReLU (protein: 100), dropout, α of 0, 0.5 and 1, K = 10, random splits. The paper
does not tell its rates. Here, for every α alike, the rate is chosen inside the training split: that of the highest PLL
on a fifth of it held out; then the network is trained again on all of the training split. Splits, rates and seeds are
trained as one stack, seeds are scored each by itself. MeanField, at α = 0 the paper's VI-G, tells whether what α does
is the guide's doing, NUTS (its HMC) what the model's own posterior scores. Of the figures' other items, the sparse
Gaussian process is no network, and the set "year" is not among the library's data. The figures have no printed numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from pyro.distributions import LogNormal, Normal

from bnnzoo import Task, data, fit_each, guides, likelihoods, models, objectives, sample
from bnnzoo.evaluation import convergence, score
from bnnzoo.evaluation.style import BLUE, GRAY, VERMILION, styled
from bnnzoo.network import BayesianNetwork
from bnnzoo.prediction import Prediction
from bnnzoo.reproduce.entry import Context, Entry, Result, Table, mean_and_error, plus_minus
from bnnzoo.reproduce.fits import recorded

ALPHAS = (0.0, 0.5, 1.0)
Key = tuple[str, str, float | None]
"""Data set, method and α; α is None for NUTS."""

Results = Mapping[Key, Mapping[str, Any]]
"""What `cell` returns, by key."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        sets: Data sets by method.
        splits: Random splits of a set by method.
        steps: Of the optimizer, a fit, by method.
        test_size: Share of the rows that is the test split; as much of the rest is held out to choose the rate.
        seeds: Of a fit.
        particles: K in training.
        draws: Of the posterior, for predictions.
        nuts: Draws a chain, of two, as many steps of warming up, and the greatest depth of a tree.
        jit: Whether to compile the model for NUTS.
        batch_size: Rows a step.
        lr: Falls to 0 along a cosine, epoch by epoch.
    """

    sets: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, int]
    steps: Mapping[str, int]
    test_size: float = 0.2
    seeds: int = 2
    particles: int = 10
    draws: int = 1000
    nuts: tuple[int, int] = (200, 8)
    jit: bool = True
    batch_size: int = 64
    lr: float = 1e-2


_SMALL = ("boston", "concrete", "energy", "wine", "yacht")
_ALL = (*_SMALL, "kin8nm", "power", "protein")
_ONE = ("diabetes",)  # embedded

SIZES = {
    "smoke": Size(
        {"dropout": _ONE, "mean-field": _ONE, "nuts": _ONE},
        {"dropout": 2, "mean-field": 2, "nuts": 1},
        {"dropout": 5, "mean-field": 5},
        particles=2,
        draws=10,
        nuts=(8, 3),
        jit=False,
    ),
    "cpu": Size(
        {"dropout": _SMALL, "mean-field": ("concrete", "yacht"), "nuts": ("boston",)},
        {"dropout": 5, "mean-field": 3, "nuts": 1},
        {"dropout": 1500, "mean-field": 3000},
    ),
    # Twenty splits of 90 and 10%, as in the papers that this one compares with.
    "paper": Size(
        {"dropout": _ALL, "mean-field": _ALL, "nuts": _SMALL},
        {"dropout": 20, "mean-field": 20, "nuts": 20},
        {"dropout": 20_000, "mean-field": 40_000},
        test_size=0.1,
        nuts=(1000, 10),
    ),
}


@dataclass(frozen=True)
class Method:
    """A guide that is trained for every α.

    Attributes:
        label: Its name in tables.
        rates: Of dropout, to choose from; empty without dropout.
        rates_of: Other rates for some data sets.
        kl_annealing: The KL's weight rises from 0 to 1 over this share of the training; 0: it is 1 throughout.
    """

    label: str
    rates: tuple[float, ...] = ()
    kl_annealing: float = 0.0
    rates_of: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def choices(self, name: str) -> tuple[float | None, ...]:
        """The rates for a data set; a single None where there are none."""
        return self.rates_of.get(name, self.rates) or (None,)


METHODS: dict[str, Method] = {
    "dropout": Method(
        "Dropout",
        rates=(0.01, 0.05, 0.2, 0.4),
        # Its noise is so small that every α would choose the least of the others.
        rates_of={"energy": (0.001, 0.003, 0.01, 0.05)},
    ),
    "mean-field": Method("MeanField", kl_annealing=0.5),
    "nuts": Method("NUTS"),
}

MARKS = {"dropout": ("o", BLUE, 0.0), "mean-field": ("s", VERMILION, 0.12)}


def cell(context: Context, key: Key) -> dict[str, Any]:
    """Choose, fit and score on every split, or read what an earlier call left.

    Args:
        context: Of the run.
        key: What to do.

    Returns:
        Lists, an item a split: `test`, the scores; with a guide `rate`, the chosen one, and `by_rate`, the test scores
        of every rate; with NUTS `divergences`, `r_hat` and `ess`, see `_sampled`. The processor's `seconds`.
    """
    name, method, alpha = key
    size = SIZES[context.scale]
    setting = {**asdict(size), "sets": name, "splits": size.splits[method], "steps": size.steps.get(method)}
    setting |= {"rates": METHODS[method].choices(name), "kl_annealing": METHODS[method].kl_annealing}

    def make() -> dict[str, Any]:
        seeds = [context.seed + number for number in range(size.splits[method])]
        splits = [data.load(name).split(size.test_size, seed=seed) for seed in seeds]
        if alpha is None:
            return _sampled(name, size, seeds, splits)
        return _fitted(key, size, seeds, splits)

    file = f"uci-{name}-{method}" + ("" if alpha is None else f"-{alpha:g}")
    return recorded(context.fits / f"{file}.json", setting, make, context.say)


def _fitted(key: Key, size: Size, seeds: Sequence[int], splits: Sequence[data.Split]) -> dict[str, Any]:
    choices = METHODS[key[1]].choices(key[0])
    chosen = [0] * len(splits)
    if len(choices) > 1:
        inner = [split.train.split(size.test_size, seed=seed) for split, seed in zip(splits, seeds, strict=True)]
        held_out = scores(key, size, seeds, inner)
        chosen = [max(range(len(choices)), key=lambda place: each[place]["pll"]) for each in held_out]
    test = scores(key, size, seeds, splits)
    return {
        "test": [each[place] for each, place in zip(test, chosen, strict=True)],
        "rate": [choices[place] for place in chosen],
        "by_rate": test,
    }


def scores(key: Key, size: Size, seeds: Sequence[int], splits: Sequence[data.Split]) -> list[list[dict[str, float]]]:
    """Fits to training splits, and their scores on the test splits.

    Args:
        key: What to fit.
        size: How much to do.
        seeds: Of initial networks, a split each; the first is that of the fit.
        splits: As many rows each.

    Returns:
        By split and rate what `scored` returns, the mean over seeds, none of which knows of the others.
    """
    name, method, alpha = key
    assert alpha is not None
    choices = METHODS[method].choices(name)
    tasks = []
    for seed, split in zip(seeds, splits, strict=True):
        for rate in choices:
            bnn = BayesianNetwork(network_of(name, split.train, seed), likelihoods.Gaussian(), Normal(0.0, 1.0))
            guide = guides.MeanField(bnn, init_scale=0.03) if rate is None else guides.Dropout(bnn, rate=rate)
            tasks.append(Task(bnn, guide, split.train))
    rows = len(splits[0].train)
    batch_size = min(size.batch_size, rows)
    epochs = math.ceil(size.steps[method] / math.ceil(rows / batch_size))
    annealing = METHODS[method].kl_annealing
    posteriors = fit_each(
        tasks,
        chains=size.seeds,
        objective=objectives.BBAlpha(
            alpha, size.particles, kl_weight=objectives.KLAnnealing(annealing * epochs) if annealing else 1.0
        ),
        epochs=epochs,
        batch_size=batch_size,
        lr=size.lr,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=seeds[0],
        progress=False,
    )
    found = []
    for number, posterior in enumerate(posteriors):
        split = splits[number // len(choices)]
        prediction = posterior.predict(split.test.x, size.draws, seeds[0])
        each = [scored(prediction.chain(index), split.test) for index in range(size.seeds)]
        found.append({name: float(np.mean([one[name] for one in each])) for name in each[0]})
    return [found[start : start + len(choices)] for start in range(0, len(found), len(choices))]


def network_of(name: str, part: data.Dataset, seed: int) -> models.MLP:
    """The network; what its first chain starts from is fixed by the seed.

    Args:
        name: Of the data set.
        part: Rows of it.
        seed: Fixes the weights.
    """
    torch.manual_seed(seed)
    return models.MLP(part.x.shape[1], 1, (100 if name == "protein" else 50,))


def scored(prediction: Prediction, part: data.Dataset) -> dict[str, float]:
    """The scores of a prediction, and two standard deviations that make up the predictive's.

    Args:
        prediction: Of the part's inputs; its chains are pooled.
        part: Rows of the data.

    Returns:
        `pll`, `rmse` and `coverage_95`; `noise`, the mean of that of the noise; `spread`, the root mean square over the
        rows of that of the network's values.
    """
    table = score(prediction.pooled, part.y)
    noise, spread = prediction.parameters["scale"].mean().item(), prediction.epistemic.mean().sqrt().item()
    return {**{name: table[name].item() for name in ("pll", "rmse", "coverage_95")}, "noise": noise, "spread": spread}


def _sampled(name: str, size: Size, seeds: Sequence[int], splits: Sequence[data.Split]) -> dict[str, Any]:
    """NUTS on every split; `r_hat` and `ess` are of its predictions, the worst of each split."""
    found: dict[str, Any] = {"test": [], "divergences": [], "r_hat": [], "ess": []}
    draws, depth = size.nuts
    for seed, split in zip(seeds, splits, strict=True):
        # Median 0.14 of the target's standard deviation, 95% in [0.02, 0.96].
        noise = likelihoods.Gaussian(LogNormal(-2.0, 1.0))
        bnn = BayesianNetwork(network_of(name, split.train, seed), noise, Normal(0.0, 1.0))
        posterior = sample(
            bnn,
            split.train,
            num_samples=draws,
            warmup_steps=draws,
            chains=2,
            max_tree_depth=depth,
            jit_compile=size.jit,
            ignore_jit_warnings=True,
            seed=seed,
            progress=False,
        )
        prediction = posterior.predict(split.test.x)
        about = convergence(prediction).attrs
        found["test"].append(scored(prediction, split.test))
        found["divergences"].append(posterior.info["divergences"])
        found["r_hat"].append(float(about["worst_rhat"]))
        found["ess"].append(float(about["least_ess_bulk"]))
    return found


def beside(results: Results, key: Key, reference: Key, what: str) -> list[float]:
    """A method's test scores less another's of the same splits: what makes a split hard for both drops out.

    Args:
        results: Of all cells.
        key: Of the method.
        reference: Of the other.
        what: The score.
    """
    pairs = zip(results[key]["test"], results[reference]["test"], strict=False)  # one may have fewer splits
    return [one[what] - other[what] for one, other in pairs]


def report(results: Results, what: str, label: str) -> list[Table]:
    """The tables of a test score: by method and α, and of dropout at every rate, chosen or not.

    Args:
        results: Of all cells.
        what: The score.
        label: Its words, with its unit.
    """
    header = ["", "", "α", label, "less that of α = 0", "95% coverage", "noise", "spread", "rates chosen"]
    rows, by_rate = [], []
    for key, result in results.items():
        name, method, alpha = key
        values = [one[what] for one in result["test"]]
        cells = [name, METHODS[method].label, "" if alpha is None else f"{alpha:g}", plus_minus(values)]
        cells.append(plus_minus(beside(results, key, (name, method, 0.0), what), "+.2f") if alpha else "")
        cells += [f"{np.mean([one[it] for one in result['test']]):.2f}" for it in ("coverage_95", "noise", "spread")]
        rates = [] if METHODS[method].choices(name) == (None,) else [f"{rate:g}" for rate in result["rate"]]
        rows.append([*cells, " ".join(rates), f"{result['seconds'] / len(values):.0f}"])
        if key == (name, "dropout", 0.0):
            by_rate += _by_rate(results, name, what)
    caption = f"Test {label} on UCI data, mean ± standard error over splits"
    others = [f"α = {alpha:g}, less that" for alpha in ALPHAS[1:]]
    return [
        Table(caption, [*header, "CPU s a split"], rows),
        Table(f"{caption}: dropout at every rate", ["", "rate", "α = 0", *others], by_rate),
    ]


def _by_rate(results: Results, name: str, what: str) -> list[list[str]]:
    rows = []
    for place, rate in enumerate(METHODS["dropout"].choices(name)):
        zero, *others = (
            [split[place][what] for split in results[(name, "dropout", alpha)]["by_rate"]] for alpha in ALPHAS
        )
        less = [[one - base for one, base in zip(values, zero, strict=True)] for values in others]
        rows.append([name, f"{rate:g}", plus_minus(zero), *(plus_minus(values, "+.2f") for values in less)])
    return rows


def draw(results: Results, what: str, label: str) -> Figure:
    """One panel a data set: a test score by α less that of dropout with α = 0 on the same split; NUTS is a line.

    Args:
        results: Of all cells.
        what: The score.
        label: Its words, with its unit.
    """
    sets = list(dict.fromkeys(name for name, _, _ in results))
    figure = Figure(figsize=(max(2.5 * len(sets) + 0.4, 4.5), 3.4), layout="constrained")
    legend: dict[str, Any] = {}
    for ax, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        styled(ax).axhline(0.0, color=GRAY, linewidth=0.8, linestyle=":")
        for key in (key for key in results if key[0] == name):
            _, method, alpha = key
            differences = beside(results, key, (name, "dropout", 0.0), what)
            mean, error = mean_and_error(differences)
            if alpha is None:
                legend[METHODS[method].label] = ax.axhline(mean, color="black", linewidth=1.2, linestyle="--")
                if len(differences) > 1:
                    ax.axhspan(mean - error, mean + error, color="black", alpha=0.1, linewidth=0)
                continue
            mark, color, shift = MARKS[method]
            ax.plot([alpha + shift + 0.06] * len(differences), differences, ".", color=color, markersize=4, alpha=0.5)
            bar = ax.errorbar(alpha + shift, mean, error, fmt=mark, color=color, markersize=6, capsize=3)
            legend[METHODS[method].label] = bar
        ax.set_title(name, fontsize=10)
        ax.set_xticks(ALPHAS)
        ax.set_xlim(-0.3, 1.3)
        ax.set_xlabel("α")
    figure.axes[0].set_ylabel(f"test {label},\nless that of dropout, α = 0")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def run(context: Context, what: str, label: str, better: str, file: str) -> Result:
    """One of the two figures.

    Args:
        context: Of the run.
        what: The score.
        label: Its words, with its unit.
        better: Which way it is better.
        file: Of the figure.
    """
    size = SIZES[context.scale]
    order = list(dict.fromkeys(name for names in size.sets.values() for name in names))
    keys: list[Key] = [
        (name, method, alpha)
        for name in order
        for method in METHODS
        if name in size.sets[method]
        for alpha in ((None,) if method == "nuts" else ALPHAS)
    ]
    found = Parallel(n_jobs=context.workers)(delayed(cell)(context, key) for key in keys)
    results: Results = dict(zip(keys, found, strict=True))
    notes = [
        f"{better} is better. Noise is the learned standard deviation, spread that of the network's values.",
        "The paper's figures have no printed numbers: it finds that α above 0 significantly improves the test "
        "likelihood at a comparable error, and that 0.5 is good in both; it does not tell its dropout rates.",
    ]
    most = max(size.splits.values())
    notes.append(
        f"Splits are drawn with the seeds {context.seed} to {context.seed + most - 1}: a run has splits in common with "
        f"those whose --seed differs by less than {most}."
    )
    for (name, method, _), result in results.items():
        if method == "nuts":
            worst, least = max(result["r_hat"]), min(result["ess"])
            notes.append(f"NUTS on {name}: the worst R-hat of a prediction is {worst:.2f}, the least ESS {least:.0f}.")
    values = {f"{name} {method} {alpha}": dict(result) for (name, method, alpha), result in results.items()}
    return Result(report(results, what, label), {file: draw(results, what, label)}, notes, values)


_SOURCE = "Li & Gal 2017 (BB-α), Figure"
ENTRIES = (
    Entry(
        "bb-alpha/figure-2",
        "UCI test likelihood by α",
        f"{_SOURCE} 2",
        partial(run, what="pll", label="PLL (nats)", better="Higher", file="uci-alpha"),
        data=_SMALL,
        minutes=40,
        paper_data=("kin8nm", "power", "protein"),
    ),
    Entry(
        "bb-alpha/figure-3",
        "UCI test RMSE by α",
        f"{_SOURCE} 3",
        partial(run, what="rmse", label="RMSE (own unit)", better="Lower", file="uci-alpha-rmse"),
        data=_SMALL,
        minutes=40,
        paper_data=("kin8nm", "power", "protein"),
    ),
)

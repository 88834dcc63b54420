"""UCI regression by α: networks trained by BB-α, their test NLL and RMSE beside those of α = 0, and of NUTS.

    BNNZOO_DATA=../shared/data python benchmarks/uci_alpha.py --keep /tmp/uci_alpha --figure docs/uci-alpha.png

Li & Gal 2017, section 5.1: one hidden layer of 50 ReLU, dropout, α of 0, 0.5 and 1, K = 10, random splits. For every α
the rate is chosen alike, inside the training split: that of the least NLL on a fifth of it held out; then the network
is trained again on all of the training split. Rates and seeds are chains of one fit, each scored by itself. MeanField
tells whether what α does is the guide's doing, NUTS what the model's own posterior scores. With `--keep`, what is
finished stays finished.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, mean_and_error, parsed, parser, plus_minus, start, table, write
from matplotlib.figure import Figure
from pyro.distributions import LogNormal, Normal
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from bnnzoo import (
    BayesianNetwork,
    Posterior,
    Prediction,
    data,
    evaluation,
    fit,
    guides,
    likelihoods,
    models,
    objectives,
    sample,
)
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION

ALPHAS = (0.0, 0.5, 1.0)

SETTING: dict[str, Any] = {
    "hidden": (50,),
    "particles": 10,
    "batch_size": 64,
    "lr": 1e-2,  # falls to 0 along a cosine, epoch by epoch
    "test_size": 0.2,
    "validation_size": 0.2,
    "seeds": 2,  # of a fit
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


class DropoutOfRates(guides.Dropout):
    """Dropout of several rates: the chains of a fit take them in turn.

    Args:
        bnn: The model, whose data are not dropped.
        rates: At least one, in (0, 1).
    """

    def __init__(self, bnn: BayesianNetwork, rates: Sequence[float]) -> None:
        super().__init__(bnn, rate=rates[0])
        turns = itertools.cycle([*rates[1:], rates[0]])
        self._turn = lambda: next(turns)  # functions are not copied: the chains' guides share it

    def reset_parameters(self) -> None:
        """Start at the network's own values, with the next rate; chain 0 is not reset, and has the first."""
        super().reset_parameters()
        self.rate_logits.fill_(torch.tensor(self._turn()).logit().item())


@dataclass(frozen=True)
class Method:
    """A guide that is trained for every α.

    Attributes:
        label: Its name in tables.
        guide: Builds the guide from the model and the rates.
        rates: To choose from, at least one; a guide that has none does not look at it.
        rates_of: Other rates for some data sets.
        steps: Of the optimizer, a fit, for every α.
        kl_annealing: The KL's weight rises from 0 to 1 over this share of the training; 0: it is 1 throughout.
        sets: What it is trained on, unless `--sets` says so.
    """

    label: str
    guide: Callable[[BayesianNetwork, Sequence[float]], guides.Guide]
    rates: tuple[float, ...]
    steps: int
    kl_annealing: float
    sets: tuple[str, ...]
    rates_of: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "dropout": Method(
        "Dropout",
        DropoutOfRates,
        rates=(0.01, 0.05, 0.2, 0.4),
        steps=1500,
        kl_annealing=0.0,
        sets=("boston", "concrete", "energy", "wine", "yacht"),
        # Its noise is so small that every α would choose the least of the others.
        rates_of={"energy": (0.001, 0.003, 0.01, 0.05)},
    ),
    "mean-field": Method(
        "MeanField",
        lambda bnn, _: guides.MeanField(bnn, init_scale=0.03),
        rates=(0.0,),
        steps=3000,  # from so narrow a start it takes longer
        kl_annealing=0.5,
        sets=("concrete", "yacht"),
    ),
}

NUTS_SETS = ("boston",)  # on yacht, whose noise is small, chains of this length do not mix

SPLITS = {"mean-field": 3, "nuts": 1}
"""At most so many for methods beside dropout, for the time they take."""

#: Data set, method and α, None for NUTS.
Key = tuple[str, str, float | None]

LABELS = {name: method.label for name, method in METHODS.items()} | {"nuts": "NUTS"}

MARKS = {"dropout": ("o", BLUE, 0.0), "mean-field": ("s", VERMILION, 0.12)}
"""The figure's marks: shape, color, shift to the right."""


@dataclass(frozen=True)
class Job:
    """One method with one α on one split of one data set; the seed fixes the split and the fits.

    Attributes:
        data: A name that `data.load` knows.
        method: One of `METHODS`, or `"nuts"`.
        alpha: None for NUTS.
        seed: Fixes everything.
        steps: Of the optimizer, a fit; for NUTS they do not matter.
        threads: Of torch.
        keep: Folder of results.
    """

    data: str
    method: str
    alpha: float | None
    seed: int
    steps: int
    threads: int
    keep: Path

    @property
    def rates(self) -> tuple[float, ...]:
        """What the method chooses from on this data set."""
        method = METHODS[self.method]
        return method.rates_of.get(self.data, method.rates)

    @property
    def key(self) -> Key:
        """Data set, method and α."""
        return self.data, self.method, self.alpha

    @property
    def file(self) -> Path:
        """Where the result is kept."""
        method = self.method if self.alpha is None else f"{self.method}-{self.alpha:g}"
        return self.keep / f"{self.data}-{method}-{self.seed}.json"

    @property
    def setting(self) -> dict[str, Any]:
        """What a kept result must have been made with, as JSON has it."""
        if self.method == "nuts":
            own = {name: SETTING[name] for name in ("hidden", "test_size", "nuts")}
        else:
            method = METHODS[self.method]
            own = {name: value for name, value in SETTING.items() if name != "nuts"}
            own |= {"steps": self.steps, "rates": self.rates, "kl_annealing": method.kl_annealing}
        return json.loads(json.dumps(own))


#: What `run` returns, by job.
Results = Mapping[Job, Mapping[str, Any]]


def network_of(job: Job, part: data.Dataset) -> models.MLP:
    """The network; what chain 0 starts from is fixed by the seed."""
    torch.manual_seed(job.seed)
    return models.MLP(part.x.shape[1], 1, SETTING["hidden"])


def train(job: Job, part: data.Dataset) -> Posterior:
    """Fit a method to a part of the data: the chains are all rates for the first seed, all for the second, and so on.

    Args:
        job: What to fit.
        part: The rows to fit to, with a standardization.
    """
    method = METHODS[job.method]
    bnn = BayesianNetwork(network_of(job, part), likelihoods.Gaussian(), Normal(0.0, 1.0))
    batch_size = min(SETTING["batch_size"], len(part))
    epochs = math.ceil(job.steps / math.ceil(len(part) / batch_size))
    weight = objectives.KLAnnealing(method.kl_annealing * epochs) if method.kl_annealing > 0 else 1.0
    assert job.alpha is not None
    return fit(
        bnn,
        method.guide(bnn, job.rates),
        part,
        objective=objectives.BBAlpha(job.alpha, SETTING["particles"], kl_weight=weight),
        epochs=epochs,
        batch_size=batch_size,
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=SETTING["seeds"] * len(job.rates),
        seed=job.seed,
        progress=False,
    )


def scores(job: Job, posterior: Posterior, part: data.Dataset) -> dict[str, dict[str, float]]:
    """Scores by rate in the target's units, the mean over the seeds, none of which knows of the others.

    Args:
        job: What was fitted; its seed fixes the draws.
        posterior: What `train` returned.
        part: Rows that it was not fitted to.

    Returns:
        For each rate what `score` returns.
    """
    prediction = posterior.predict(part.x, num_samples=SETTING["draws"], seed=job.seed)
    each = [score(prediction.chain(index), part) for index in range(posterior.chains)]
    by_rate = {str(rate): each[index :: len(job.rates)] for index, rate in enumerate(job.rates)}
    return {
        rate: {name: float(np.mean([one[name] for one in own])) for name in own[0]} for rate, own in by_rate.items()
    }


def score(prediction: Prediction, part: data.Dataset) -> dict[str, float]:
    """The scores of `evaluation.score`, and two standard deviations that make up the predictive's.

    Args:
        prediction: Of the part's inputs, its chains pooled.
        part: Rows of the data.

    Returns:
        `rmse`, `nll` and so on; `noise`, the mean of that of the noise; `spread`, the root mean square over the rows of
        that of the network's values.
    """
    noise, spread = prediction.parameters["scale"].mean().item(), prediction.epistemic.mean().sqrt().item()
    return {**evaluation.score(prediction, part.y), "noise": noise, "spread": spread}


def run(job: Job) -> dict[str, Any]:
    """Choose, fit and score, or read what an earlier call left.

    Args:
        job: What to do.

    Returns:
        `test`: what `score` returns. With a guide, `rate`, the chosen one, and under `by_rate` the scores of every rate
        on the test split (`test`) and on the held-out part of the training split (`held_out`, None if there is no
        choice). With NUTS, `divergences` by chain, and median and worst `r_hat` and `ess` of the network's values at
        the test inputs. The processor's `seconds`, and the `setting`.

    Raises:
        SystemExit: If the folder holds the result of another setting.
    """
    if job.file.exists():
        result = json.loads(job.file.read_text())
        if result["setting"] != job.setting:
            changed = [name for name, value in job.setting.items() if result["setting"].get(name) != value]
            raise SystemExit(f"{job.file} was made with another {', '.join(changed)}: keep this run elsewhere")
        return result
    torch.set_num_threads(job.threads)
    begin = time.process_time()
    split = data.load(job.data).split(SETTING["test_size"], seed=job.seed)
    result = _sampled(job, split) if job.alpha is None else _fitted(job, split)
    result |= {"setting": job.setting, "seconds": time.process_time() - begin}
    job.file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{job.file.stem}: NLL {result['test']['nll']:.3f}, {result['seconds']:.0f} CPU s", flush=True)
    return result


def _fitted(job: Job, split: data.Split) -> dict[str, Any]:
    held_out = None
    if len(job.rates) > 1:
        inner = split.train.split(SETTING["validation_size"], seed=job.seed)
        held_out = scores(job, train(job, inner.train), inner.test)
    rate = job.rates[0] if held_out is None else min(job.rates, key=lambda each: held_out[str(each)]["nll"])
    test = scores(job, train(job, split.train), split.test)
    return {"test": test[str(rate)], "rate": rate, "by_rate": {"held_out": held_out, "test": test}}


def _sampled(job: Job, split: data.Split) -> dict[str, Any]:
    # Median 0.14 of the target's standard deviation, 95% in [0.02, 0.96].
    bnn = BayesianNetwork(network_of(job, split.train), likelihoods.Gaussian(LogNormal(-2.0, 1.0)), Normal(0.0, 1.0))
    posterior = sample(bnn, split.train, seed=job.seed, progress=False, **SETTING["nuts"])
    prediction = posterior.predict(split.test.x)
    draws = prediction.draws.double()
    r_hat, ess = split_gelman_rubin(draws, 0, 1), effective_sample_size(draws, 0, 1)
    return {
        "test": score(prediction, split.test),  # the chains are draws of one posterior
        "divergences": posterior.info["divergences"],
        "r_hat": {"median": r_hat.median().item(), "worst": r_hat.max().item()},
        "ess": {"median": ess.median().item(), "worst": ess.min().item()},
    }


def column(results: Results, key: Key, *path: str) -> dict[int, Any]:
    """What a method's results on a data set have at a path such as `"test", "nll"`, by split."""
    values: dict[int, Any] = {job.seed: result for job, result in results.items() if job.key == key}
    for name in path:
        values = {seed: value[name] for seed, value in values.items()}
    return values


def beside(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Differences on the splits that both have: what makes a split hard for both drops out."""
    return [value - reference[seed] for seed, value in values.items() if seed in reference]


def report(results: Results) -> str:
    """The table of test scores."""
    header = ["", "", "α", "NLL", "less that of α = 0", "RMSE", "less that of α = 0", "95% coverage", "noise", "spread"]
    rows = []
    sets = list(dict.fromkeys(job.data for job in results))
    for key in sorted(dict.fromkeys(job.key for job in results), key=lambda key: sets.index(key[0])):
        name, method, alpha = key
        cells = [name, LABELS[method], "" if alpha is None else f"{alpha:g}"]
        for score in ("nll", "rmse"):
            values, zero = (column(results, each, "test", score) for each in (key, (name, method, 0.0)))
            cells += [plus_minus([*values.values()]), plus_minus(beside(values, zero), "+.2f") if alpha else ""]
        for score in ("coverage_95", "noise", "spread"):
            cells.append(f"{np.mean([*column(results, key, 'test', score).values()]):.2f}")
        chosen = method in METHODS and len(METHODS[method].rates) > 1
        cells.append(" ".join(f"{rate:g}" for rate in column(results, key, "rate").values()) if chosen else "")
        rows.append([*cells, f"{np.mean([*column(results, key, 'seconds').values()]):.0f}"])
    return table([*header, "rates chosen", "CPU s a split"], rows)


def report_by_rate(results: Results) -> str:
    """The table of dropout's test NLL at every rate, chosen or not."""
    rows = []
    for name, rates in dict.fromkeys((job.data, job.rates) for job in results if job.method == "dropout"):
        for rate in rates:
            path = ("by_rate", "test", str(rate), "nll")
            zero, *others = (column(results, (name, "dropout", alpha), *path) for alpha in ALPHAS)
            rows.append([name, f"{rate:g}", plus_minus([*zero.values()])])
            rows[-1] += [plus_minus(beside(values, zero), "+.2f") for values in others]
    return table(["", "rate", "NLL at α = 0", *(f"α = {alpha:g}, less that" for alpha in ALPHAS[1:])], rows)


def draw(results: Results) -> Figure:
    """One panel a data set: test NLL by α less that of dropout with α = 0 on the same split, and NUTS as a line."""
    sets = list(dict.fromkeys(job.data for job in results if job.method == "dropout"))
    figure = Figure(figsize=(2.5 * len(sets) + 0.4, 3.4), layout="constrained")
    legend: dict[str, Any] = {}
    for ax, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        reference = column(results, (name, "dropout", 0.0), "test", "nll")
        ax.axhline(0.0, color=GRAY, linewidth=0.8, linestyle=":")
        for _, method, alpha in dict.fromkeys(job.key for job in results if job.data == name):
            differences = beside(column(results, (name, method, alpha), "test", "nll"), reference)
            mean, error = mean_and_error(differences)
            if alpha is None:
                legend[LABELS[method]] = ax.axhline(mean, color="black", linewidth=1.2, linestyle="--")
                ax.axhspan(mean - error, mean + error, color="black", alpha=0.1, linewidth=0)
                continue
            mark, color, shift = MARKS[method]
            ax.plot([alpha + shift + 0.06] * len(differences), differences, ".", color=color, markersize=4, alpha=0.5)
            bar = ax.errorbar(alpha + shift, mean, error, fmt=mark, color=color, markersize=6, capsize=3)
            legend[LABELS[method]] = bar
        ax.set_title(name, fontsize=10)
        ax.set_xticks(ALPHAS)
        ax.set_xlim(-0.3, 1.3)
        ax.set_xlabel("α")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test NLL less that of\ndropout with α = 0")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def jobs_of(arguments: argparse.Namespace, keep: Path) -> list[Job]:
    """What the command line asks for, split by split.

    Args:
        arguments: Of the command line.
        keep: Folder of results.
    """
    jobs = []
    for split, method in itertools.product(range(arguments.splits), arguments.methods):
        if split >= SPLITS.get(method, arguments.splits):
            continue
        nuts = method == "nuts"
        steps = 0 if nuts else arguments.steps or METHODS[method].steps
        for name in arguments.sets or (NUTS_SETS if nuts else METHODS[method].sets):
            for alpha in (None,) if nuts else ALPHAS:
                jobs.append(Job(name, method, alpha, arguments.seed + split, steps, arguments.threads, keep))
    return jobs


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", metavar="NAME", help="names that data.load knows; default: by method")
    options.add_argument(
        "--methods", nargs="+", choices=(*METHODS, "nuts"), default=[*METHODS, "nuts"], metavar="METHOD"
    )
    few = ", ".join(f"{name} the first {count}" for name, count in SPLITS.items())
    options.add_argument("--splits", type=int, default=5, help=f"random splits a set; of them {few}")
    options.add_argument("--steps", type=int, help="optimizer steps a fit; default: by method")
    options.add_argument("--processes", type=int, default=1, help="jobs at a time")
    options.add_argument("--keep", type=Path, help="folder of results: those in it are used as they are")
    options.add_argument("--figure", type=Path, help="draw the NLL by α into this file")
    arguments = parsed(options, ("splits", "steps", "processes"))
    if arguments.figure is not None and "dropout" not in arguments.methods:
        options.error("--figure shows differences to dropout, which --methods leaves out")
    if arguments.smoke:
        # Embedded, so that the smoke run needs no files.
        arguments.sets, arguments.splits, arguments.steps = ["diabetes"], 2, 5
        nuts = {"num_samples": 4, "warmup_steps": 2, "chains": 2, "max_tree_depth": 1}
        SETTING.update(draws=10, seeds=1, particles=2, nuts=nuts)
    start(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        jobs = jobs_of(arguments, keep)
        if arguments.processes == 1:
            results = [run(job) for job in jobs]
        else:
            with ProcessPoolExecutor(arguments.processes) as pool:
                results = list(pool.map(run, jobs))
    found = dict(zip(jobs, results, strict=True))
    if arguments.figure is not None:
        draw(found).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    print(report(found))
    if "dropout" in arguments.methods:
        print("\n" + report_by_rate(found))
    records = [
        {"set": job.data, "method": job.method, "alpha": job.alpha, "seed": job.seed, **result}
        for job, result in found.items()
    ]
    write(arguments, records)


if __name__ == "__main__":
    main()

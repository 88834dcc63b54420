"""Running a plan: fit, score beside the baselines, write the results."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from rich.console import Console
from rich.markup import escape

import bnnzoo
from bnnzoo import evaluation
from bnnzoo.cli import report, runs
from bnnzoo.cli.plan import Plan
from bnnzoo.data import Split
from bnnzoo.evaluation import baseline_models, plots
from bnnzoo.evaluation.metrics import score
from bnnzoo.models import MLP
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

LARGEST_EXPORT = 2_000_000
"""So many numbers of training inputs are exported at most."""

ONE_THREAD = 2e7
"""So many multiplications a step are not worth a second thread."""

MAX_BYTES = 2**28
"""What an export may take in memory; the file is compressed."""


def run(plan: Plan, console: Console, progress: bool | None = None) -> None:
    """Fits, scores and writes what a plan says.

    Args:
        plan: The plan.
        console: Where to report.
        progress: As for `bnnzoo.fit`.

    Raises:
        OSError: The results cannot be written.
        FloatingPointError: Every chain diverged.
    """
    introduce(plan, console)
    plan.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _threads(plan):
        posterior = train(plan, progress)
    seconds = time.perf_counter() - started
    test = plan.split.test
    prediction = runs.predict(posterior, test.x, plan.method, plan.samples, plan.seed)
    scores = {plan.guide: score(prediction.pooled, test.y, seed=plan.seed)}
    for name, baseline in reversed(baseline_models.predict(plan.split, seed=plan.seed).items()):
        scores[name] = score(baseline, test.y, seed=plan.seed)
    title = f"scores on {len(test)} held-out rows of {test.name}"
    console.print()
    console.print(report.scores_table(title, scores, test.target_name or ""))
    console.print(f"[dim]± one standard error of the held-out rows; fitted in {seconds:.1f} s[/dim]", highlight=False)
    report.files(console, write(plan, posterior, prediction, scores, seconds))


def introduce(plan: Plan, console: Console) -> None:
    """Prints what will be fitted to what."""
    train, built = plan.split.train, plan.built
    weights = sum(p.numel() for p in built.bnn.network.parameters())
    shape = " x ".join(str(size) for size in train.input_shape)
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in built.training.items() if not callable(value)
    )
    rows = [
        ("data", f"{train.name}: {len(train)} training and {len(plan.split.test)} test rows of {shape}, {train.task}"),
        ("network", f"{type(built.bnn.network).__name__}, {weights} weights"),
        ("likelihood", type(built.bnn.likelihood).__name__),
        ("guide", plan.given.get("guide", plan.guide if built.guide is None else type(built.guide).__name__)),
        *([] if built.objective is None else [("objective", report.objective(built.objective))]),
        ("settings", f"{settings}, seed {plan.seed}"),
    ]
    report.facts(console, rows)
    if plan.note:
        console.print(escape(plan.note), highlight=False, soft_wrap=True)


@contextmanager
def _threads(plan: Plan) -> Iterator[None]:
    """One thread for small dense networks: more only wait for each other (ten times slower on a busy machine)."""
    before = torch.get_num_threads()
    rows = plan.built.training.get("batch_size", len(plan.split.train))
    weights = sum(p.numel() for p in plan.built.bnn.network.parameters())
    if isinstance(plan.built.bnn.network, MLP) and weights * rows * plan.built.training.get("chains", 1) < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(plan: Plan, progress: bool | None = None) -> Posterior:
    """Fits the guide, or samples where there is none.

    Args:
        plan: The plan.
        progress: As for `bnnzoo.fit`.
    """
    built, data = plan.built, plan.split.train
    settings: dict[str, Any] = {**built.training, "seed": plan.seed, "progress": progress}
    if built.guide is None:
        return bnnzoo.sample(built.bnn, data, **settings)
    return bnnzoo.fit(built.bnn, built.guide, data, objective=built.objective, **settings)


def write(
    plan: Plan,
    posterior: Posterior,
    prediction: Prediction,
    scores: dict[str, xr.Dataset],
    seconds: float,
) -> dict[Path, str]:
    """Writes the results.

    Returns:
        The files, and what each is for.
    """
    out, test = plan.out, plan.split.test
    written: dict[Path, str] = {}
    posterior.save(out / runs.POSTERIOR)
    written[out / runs.POSTERIOR] = "the posterior: bnnzoo.load(path), or bnnzoo score, predict, export"
    record = {
        "bnnzoo": bnnzoo.__version__,
        "run": runs.record(plan.source, plan.split.train, plan.samples, plan.method),
        "scores": {name: runs.plain_scores(table) for name, table in scores.items()},
        "loss": [float(chain[-1]) for chain in posterior.history.get("loss", ())],
        "seconds": seconds,
        "entry": plan.entry.name,
        "objective": posterior.info.get("objective"),
        "options": dict(plan.given),
        "training": {name: value for name, value in plan.built.training.items() if isinstance(value, int | float)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "pyro-ppl", "arviz")},
        },
    }
    runs.write_json(out / runs.METRICS, record)
    written[out / runs.METRICS] = "scores, settings, versions"
    folder = out / runs.PLOTS
    folder.mkdir(exist_ok=True)
    plots.plot_fit(posterior, prediction, test.y, target=test.target_name).savefig(folder / "fit.png", dpi=120)
    written[folder / "fit.png"] = "loss, predictions, calibration"
    idata = inference_data(posterior, plan.split, plan.samples, plan.seed)
    written[evaluation.save_netcdf(idata, out / runs.NETCDF)] = "draws and predictions: arviz.from_netcdf(path)"
    return written


def inference_data(posterior: Posterior, split: Split, samples: int, seed: int) -> Any:
    """A run's export to ArviZ: the training rows, and predictions for the test rows.

    Leave-one-out and the Pareto k̂ are about the rows of the fit. Where these are too many numbers for a file that is
    written with every fit, the test rows take their place.

    Args:
        posterior: The posterior.
        split: The run's data.
        samples: Draws a chain.
        seed: Fixes the draws.
    """
    if split.train.x.numel() <= LARGEST_EXPORT:
        return posterior.to_arviz(split.train, x=split.test.x, num_samples=samples, seed=seed, max_bytes=MAX_BYTES)
    return posterior.to_arviz(split.test, num_samples=samples, seed=seed, max_bytes=MAX_BYTES)

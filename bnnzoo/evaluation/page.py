"""`html_report`: a fitted posterior on one page, its scores, figures, diagnostics and settings."""

from __future__ import annotations

import base64
import io
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from bnnzoo.data import Split
from bnnzoo.evaluation import baseline_models, plots
from bnnzoo.evaluation.diagnostics import convergence, psis
from bnnzoo.evaluation.inference_data import chain_statistics
from bnnzoo.evaluation.metrics import number, plus_minus, score
from bnnzoo.evaluation.uncertainty_plots import plot_uncertainty_error
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

TEMPLATE = "page.html"

MOST_WEIGHTS, MOST_ROWS = 300, 50
"""So many weights, and predictions of so many rows, are looked at for R-hat."""

KHAT_DRAWS = 1000
"""So many draws a chain are weighed."""

MOST_WORK = 2e11
"""Importance sampling over more multiplications than these is left out: minutes on a CPU."""


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is about, its cells, and what to make of it."""

    name: str
    cells: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page."""

    data: str
    text: str
    caption: str


def html_report(
    posterior: Posterior,
    split: Split,
    *,
    title: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
    reference: str | None = None,
    num_samples: int = 200,
    seed: int = 0,
    **predict: Any,
) -> str:
    """A page about a fitted posterior: settings, scores beside the baselines, figures, diagnostics, how to repeat it.

    One file: the figures are in it, nothing is loaded from elsewhere, there are no scripts. Readable in print.

    Args:
        posterior: A fitted posterior.
        split: `(train, test)`, as of `Dataset.split`: the data it was fitted to, and those to score it on.
        title: Of the page; default from the posterior and the data.
        name: What to call the posterior in the table of scores, not as a baseline; default its guide's class.
        settings: Further settings to list.
        command: The command that makes this posterior, to be shown.
        reference: What else to cite.
        num_samples: Draws a chain, ≥ 4; of a sampled posterior at most as many as it holds.
        seed: Fixes everything that is random.
        **predict: Further arguments of `Posterior.predict`, as `method="moments"`, for scores and figures;
            diagnostics are of draws.

    Returns:
        HTML.

    Raises:
        ValueError: If the split is not of the posterior's kind of data, `name` is a baseline's, or `num_samples` is
            below 4.
    """
    if num_samples < 4:
        raise ValueError(f"num_samples must be at least 4, given {num_samples}")
    num_samples = min(num_samples, getattr(posterior.guide, "num_draws", num_samples))
    split = Split(*split)
    train, test = split
    by_draws = predict.get("method", "draws") == "draws"
    drawn: dict[str, Any] = {"num_samples": num_samples} if by_draws else {}
    name = name or type(posterior.guide).__name__
    baselines = dict(reversed(baseline_models.predict(split, seed=seed).items()))
    if name in baselines:
        raise ValueError(f"name: {name!r} is a baseline in the table of scores; call the posterior something else")
    prediction = posterior.predict(test.x, seed=seed, **drawn, **predict)
    columns = {name: prediction.pooled, **baselines}
    pooled = {model: score(each, test.y, seed=seed) for model, each in columns.items()}
    by_chain = score(prediction, test.y, seed=seed) if posterior.chains > 1 else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=title or f"{name} on {test.name}",
        facts=f"{len(train)} training rows, {len(test)} held-out rows, {test.task}, {_chains(posterior)}",
        today=date.today().isoformat(),
        settings=_settings(posterior, split, settings or {}),
        network=str(posterior.bnn.network),
        header=[*([] if by_chain is None else ["single chains"]), *pooled],
        scores=_scores(pooled, by_chain, test.target_name or ""),
        pictures=_pictures(posterior, prediction, test.y, test.target_name, seed),
        diagnostics=_diagnostics(posterior, split, num_samples, seed),
        command=command,
        reference=reference,
        versions=[(each, version(each)) for each in ("bnnzoo", "torch", "pyro-ppl", "arviz", "numpy")],
        python=platform.python_version(),
        release=version("bnnzoo"),
    )


def _chains(posterior: Posterior) -> str:
    return f"{posterior.chains} chain{'s' if posterior.chains > 1 else ''}"


def _settings(posterior: Posterior, split: Split, further: Mapping[str, Any]) -> list[Row]:
    train, test = split
    bnn, info = posterior.bnn, posterior.info
    weights = sum(prior.shape().numel() for prior in bnn.sites.values())
    rows = [
        Row("data", [f"{train.name}: {len(train)} + {len(test)} rows, inputs {list(train.input_shape)}"]),
        Row("standardized", ["no" if posterior.standardization is None else "yes, undone in predictions"]),
        Row("random weights", [f"{weights} at {len(bnn.sites)} sites"]),
        *[Row("prior", [f"{prior}: {sites}"]) for prior, sites in _priors(posterior).items()],
        Row("likelihood", [repr(bnn.likelihood)]),
        Row("guide", ["none: draws by NUTS" if info.get("method") == "NUTS" else type(posterior.guide).__name__]),
    ]
    epochs = next((np.shape(curve)[1] for curve in posterior.history.values()), None)
    known = {key: info.get(key) for key in ("objective", "batch_size", "lr", "adversarial", "warmup_steps", "seed")}
    for key, value in {**further, **known, "epochs": epochs, "chains": posterior.chains}.items():
        if value is not None:
            rows.append(Row(key.replace("_", " "), [f"{value:g}" if isinstance(value, float) else str(value)]))
    return rows


def _priors(posterior: Posterior) -> dict[str, str]:
    """The sites of each prior."""
    groups: dict[str, list[str]] = {}
    likelihood = posterior.bnn.likelihood.sites()
    for site, prior in {**posterior.bnn.priors, **likelihood}.items():
        text = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", str(prior))
        groups.setdefault(text, []).append(site)
    return {
        prior: ", ".join(sites) if len(sites) <= 6 else f"{', '.join(sites[:5])} and {len(sites) - 5} more"
        for prior, sites in groups.items()
    }


def _scores(pooled: Mapping[str, xr.Dataset], by_chain: xr.Dataset | None, unit: str) -> list[Row]:
    """A line a score: of the chains one by one, of all together, and of the baselines."""
    first = next(iter(pooled.values()))
    rows = []
    for name in (str(each) for each in first if f"{each}_se" in first):
        about = first[name].attrs
        units = {"target": unit, "1": ""}.get(about["units"], about["units"])
        arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[about["better"]]
        cells = [plus_minus(each[name].item(), each[f"{name}_se"].item()) for each in pooled.values()]
        if by_chain is not None:
            cells.insert(0, f"{number(by_chain[name].min().item())} to {number(by_chain[name].max().item())}")
        rows.append(Row(about["long_name"] + (f" ({units})" if units else "") + arrow, cells))
    return rows


def _pictures(posterior: Posterior, prediction: Prediction, y: Any, target: str | None, seed: int) -> list[Picture]:
    """The figures: training, predictions, calibration, and for numbers errors by uncertainty."""
    classes = prediction.task == "classification"
    drawn: list[tuple[Figure, str]] = []
    if posterior.history:
        drawn.append((plots.plot_history(posterior), "The loss of each chain by epoch."))
    words = (
        "Entropy of the predicted class where it was right and where it was wrong."
        if classes
        else "Predicted means and central 95% intervals by observed target."
    )
    drawn.append((plots.plot_predictions(prediction, y, target=target, seed=seed), words))
    words = (
        "Accuracy by confidence, with 95% intervals: on the diagonal if calibrated."
        if classes
        else "Fraction of targets below each predicted quantile: on the diagonal if calibrated."
    )
    drawn.append((plots.plot_calibration(prediction, y, seed=seed), words))
    if prediction.task == "regression":
        words = "Absolute errors by predicted uncertainty, which should rise with it."
        drawn.append((plot_uncertainty_error(prediction, y, target=target), words))
    return [_picture(figure, words) for figure, words in drawn]


def _picture(figure: Figure, words: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    title = next((axes.get_title() for axes in figure.axes if axes.get_title()), words)
    return Picture(base64.b64encode(buffer.getvalue()).decode(), title, words)


def _diagnostics(posterior: Posterior, split: Split, num_samples: int, seed: int) -> list[Row]:
    info = posterior.info
    nuts = info.get("method") == "NUTS"
    rows = []
    if nuts:
        rows.append(Row("divergences", [_listed(info["divergences"])], "by chain; any at all makes draws suspect"))
        rows.append(Row("acceptance rate", [_listed(info["acceptance_rate"])], "by chain; about 0.8 is aimed at"))
    else:
        diverged = info.get("diverged", [])
        text = ", ".join(map(str, diverged)) or "none"
        rows.append(
            Row("diverged chains", [text], "their losses became infinite; they stay at their last finite epoch")
        )
    x = split.test.x[_some(len(split.test), MOST_ROWS, seed)]
    prediction = posterior.predict(x, num_samples=num_samples, seed=seed, method="draws")
    whose = "the chains explore one distribution" if nuts else "the restarts found the same answer"
    rows += _statistics("predictions", lambda: convergence(prediction), f"up to 1.01 if {whose}")
    few = "of a network may be large where predictions agree: units can be permuted"
    rows += _statistics("weights", lambda: _of_weights(posterior, num_samples, seed), few)
    rows.append(_khat(posterior, split, seed))
    if "scale" in prediction.parameters and prediction.task == "regression":
        noise = prediction.aleatoric.sqrt().double()
        unit = split.test.target_name or "the target's unit"
        least, most = number(noise.min().item()), number(noise.max().item())
        text = least if least == most else f"{least} to {most}"
        rows.append(Row("noise standard deviation", [text], f"of {unit}, over held-out rows"))
    return rows


def _statistics(what: str, compute: Callable[[], xr.Dataset], note: str) -> list[Row]:
    """R-hat and effective sample sizes, or why there are none."""
    try:
        found = compute()
    except ValueError as reason:
        return [Row(f"R-hat of {what}", ["none"], str(reason))]
    sizes = f"bulk {found.least_ess_bulk:.0f}, tail {found.least_ess_tail:.0f}"
    median = float(found["rhat"].median())
    return [
        Row(f"R-hat of {what}, worst and median", [f"{found.worst_rhat:.3f}, {median:.3f}"], note),
        Row(f"effective draws of {what}, least", [sizes], "of all chains together; a few hundred are enough"),
    ]


def _of_weights(posterior: Posterior, num_samples: int, seed: int) -> xr.Dataset:
    if posterior.chains < 2:
        raise ValueError("R-hat compares chains, and there is one")
    flat = torch.cat([value.flatten(2).cpu() for value in posterior.sample(num_samples, seed).values()], 2)
    some = flat[..., _some(flat.shape[2], MOST_WEIGHTS, seed)].double()
    if bool((some == some[:, :1]).all()):
        raise ValueError("the draws of each chain are all the same: points have nothing to converge")
    return chain_statistics(xr.DataArray(some.numpy(), dims=["chain", "draw", "weight"]))


def _khat(posterior: Posterior, split: Split, seed: int) -> Row:
    size = sum(p.numel() for p in posterior.bnn.network.parameters())
    work = posterior.chains * KHAT_DRAWS * len(split.train) * size
    if work > MOST_WORK:
        return Row("k̂", ["not computed"], "many data and weights: evaluation.psis(posterior, train) takes minutes")
    try:
        found = psis(posterior, split.train, num_samples=KHAT_DRAWS, seed=seed)
    except ValueError as reason:
        return Row("k̂", ["none"], str(reason))
    note = (
        f"by chain, importance sampling of the posterior by the guide: good below 0.5, usable below "
        f"{found.threshold:.2f}; of many weights nearly always above, even where predictions are good"
    )
    return Row("k̂", [_listed(found["khat"].values.tolist())], note)


def _some(total: int, most: int, seed: int) -> Tensor:
    """At most so many indexes of a range, at random and in order."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values)

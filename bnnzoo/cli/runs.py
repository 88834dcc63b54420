"""The folder of a run: what `fit` writes and the other commands read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

import bnnzoo
from bnnzoo import data
from bnnzoo.cli.options import METHODS, bad, checking, known, known_data
from bnnzoo.cli.plan import Source
from bnnzoo.data import Dataset
from bnnzoo.data.convert import features
from bnnzoo.data.messages import closest
from bnnzoo.evaluation.metrics import numbers
from bnnzoo.files import write_text
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

POSTERIOR = "posterior.bnn"
NETCDF = "posterior.nc"
METRICS = "metrics.json"
PLOTS = "plots"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it is.
        posterior: The fitted posterior.
        source: Where its data came from.
        name: The data's name.
        task: `"regression"`, `"classification"` or `"counts"`.
        samples: Draws a chain that its scores were made with, if they were made with draws.
        method: How its scores' predictions were made, `"draws"` or `"moments"`.
        feature_names: Names of the input columns, or None.
        target_name: Name of the target, or None.
        class_names: Names of the classes, or None.
        input_shape: Shape of one input.
    """

    folder: Path
    posterior: Posterior
    source: Source
    name: str
    task: str
    samples: int
    method: str
    feature_names: tuple[str, ...] | None
    target_name: str | None
    class_names: tuple[str, ...] | None
    input_shape: tuple[int, ...]


def open_run(path: Path) -> Run:
    """Opens the folder that `fit` wrote.

    Args:
        path: The folder, or its `posterior.bnn`.

    Returns:
        The run.

    Raises:
        typer.BadParameter: There is no such folder, or it holds no run; says what is missing.
    """
    folder = path.parent if path.name == POSTERIOR else path
    if not folder.is_dir():
        near = closest(str(folder), [str(entry) for entry in folder.parent.glob("*")]) if folder.parent.is_dir() else ""
        raise bad("RUN", f"there is no folder {folder}.{near}")
    missing = [name for name in (POSTERIOR, METRICS) if not (folder / name).is_file()]
    if missing:
        raise bad("RUN", f"{folder} is no run: it has no {' and no '.join(missing)}")
    try:
        record = json.loads((folder / METRICS).read_text(encoding="utf-8"))["run"]
        source = Source(**record["source"])
        about = {name: _tuple(value) for name, value in record["data"].items()}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise bad("RUN", f"{folder / METRICS} is damaged or not written by `bnnzoo fit`: {error!r}") from error
    with checking("RUN"):
        posterior = bnnzoo.load(folder / POSTERIOR)
    made = {"samples": record["samples"], "method": record.get("method", "draws")}
    return Run(folder=folder, posterior=posterior, source=source, **made, **about)


def predict(posterior: Posterior, x: Any, method: str, samples: int, seed: int) -> Prediction:
    """Predicts by draws or by moments.

    Args:
        posterior: The posterior.
        x: Inputs in their own units.
        method: `"draws"` or `"moments"`.
        samples: Draws a chain, of draws.
        seed: Fixes the draws.

    Raises:
        typer.BadParameter: The posterior has no moments to predict by.
    """
    with checking("--method" if method == "moments" else None):
        return posterior.predict(x, None if method == "moments" else samples, seed, method=cast(Any, method))


def method_of(run: Run, method: str | None, samples: int | None) -> str:
    """How to predict: as asked for, by draws where their number is, else as in the fit.

    Raises:
        typer.BadParameter: There is no such method, or it draws nothing and is to draw samples.
    """
    if method is not None:
        known("--method", method, dict.fromkeys(METHODS))
        if method == "moments" and samples is not None:
            raise bad("--samples", "means nothing with --method moments, which draws nothing")
    return method or ("draws" if samples else run.method)


def record(source: Source, train: Dataset, samples: int, method: str) -> dict[str, Any]:
    """What `open_run` reads back, ready for JSON."""
    about = {
        "name": train.name,
        "task": train.task,
        "feature_names": train.feature_names,
        "target_name": train.target_name,
        "class_names": train.class_names,
        "input_shape": train.input_shape,
    }
    return {"source": asdict(source), "data": about, "samples": samples, "method": method}


def read_scored(run: Run, name: str | None, csv: Path | None, target: str | None) -> tuple[Dataset, str]:
    """The rows to score a run on.

    Args:
        run: The run.
        name: `--data`: a known data set; all its rows, but of the run's own data the held-out ones.
        csv: `--csv`: a file with the run's columns; all its rows.
        target: `--target`: its target column; the run's own by default.

    Returns:
        The rows, and words for them.

    Raises:
        typer.BadParameter: The data cannot be read, or are not of the run's kind.
    """
    if name is not None and csv is not None:
        raise bad("--csv", f"--data {name} is given too: choose one of them")
    if target is not None and csv is None:
        raise bad("--target", "names a column of --csv, and there is no --csv")
    if csv is not None:
        target = target or run.target_name
        if target is None:
            raise bad("--target", "name the target column of the file")
        with checking("--csv"):
            dataset = data.from_csv(csv, target, task=run.task, features=run.feature_names)
        return _recoded(run, dataset), f"all {len(dataset)} rows of {csv}"
    if name is not None:
        name = known_data(name)
    if name is None or name == run.source.data:
        with checking("--data"):
            test = run.source.split().test
        return test, f"the {len(test)} held-out rows of {run.name}"
    with checking("--data"):
        dataset = data.load(name)
        if dataset.task != run.task or dataset.input_shape != run.input_shape:
            raise ValueError(
                f"{name} is {dataset.task} with inputs {list(dataset.input_shape)}; the run was fitted to {run.task} "
                f"with inputs {list(run.input_shape)}"
            )
        dataset = dataset.test or dataset
    return dataset, f"all {len(dataset)} rows of {name}"


def _recoded(run: Run, dataset: Dataset) -> Dataset:
    """Labels of a file numbered as the run numbered them."""
    if run.class_names is None or dataset.class_names is None or dataset.class_names == run.class_names:
        return dataset
    unknown = [name for name in dataset.class_names if name not in run.class_names]
    if unknown:
        raise bad(
            "--csv", f"classes the run does not know: {', '.join(unknown)}; it knows {', '.join(run.class_names)}"
        )
    codes = torch.tensor([run.class_names.index(name) for name in dataset.class_names])
    return Dataset(dataset.x, codes[dataset.y], task=dataset.task, name=dataset.name, class_names=run.class_names)


def read_inputs(run: Run, csv: Path) -> tuple[pd.DataFrame, Tensor]:
    """Reads the inputs to predict from a CSV file.

    Args:
        run: The run.
        csv: The file: its columns are found by the run's names; more columns do not matter. A run without names takes
            all columns in order.

    Returns:
        The file's table, and the inputs [N, ...].

    Raises:
        typer.BadParameter: The file cannot be read, a column is missing, or values are missing or no numbers.
    """
    with checking("--csv"):
        frame = _read_csv(csv)
        names = list(run.feature_names or frame.columns)
        for name in names:
            if name not in frame.columns:
                hint = closest(name, [str(column) for column in frame.columns])
                raise ValueError(f"{csv} has no column {name!r}, which the run was fitted with.{hint}")
        size = math.prod(run.input_shape)
        if len(names) != size:
            raise ValueError(f"{csv} has {len(names)} columns; the run was fitted to {size} inputs a row")
        x, _ = features(frame[names])
    return frame, x.reshape(len(frame), *run.input_shape)


def predictions_table(run: Run, prediction: Prediction, level: float, seed: int) -> pd.DataFrame:
    """A prediction as a table, one row an input; see `bnnzoo predict --help` for its columns.

    Args:
        run: The run, for the names of classes and targets.
        prediction: What to write, N rows.
        level: Probability of the intervals.
        seed: Fixes the draws that intervals of counts come from.
    """
    if run.task == "classification":
        probs = prediction.probs
        names = run.class_names or tuple(str(label) for label in range(probs.shape[-1]))
        columns = {"class": [names[label] for label in probs.argmax(-1).tolist()]}
        columns |= {f"p_{name}": probs[..., label].tolist() for label, name in enumerate(names)}
        columns |= {
            "entropy": prediction.entropy.tolist(),
            "mutual_information": prediction.mutual_information.tolist(),
        }
        return pd.DataFrame(columns)
    tail = (1 - level) / 2
    statistics = {
        "mean": prediction.mean,
        "std": prediction.std,
        "std_epistemic": prediction.epistemic.sqrt(),
        "std_aleatoric": prediction.aleatoric.sqrt(),
        f"low_{100 * level:g}": prediction.quantile(tail, seed),
        f"high_{100 * level:g}": prediction.quantile(1 - tail, seed),
    }
    if prediction.mean.ndim == 1:
        return pd.DataFrame({name: values.tolist() for name, values in statistics.items()})
    outputs = range(prediction.mean.shape[1])
    return pd.DataFrame(
        {f"{name}_{output}": values[:, output].tolist() for output in outputs for name, values in statistics.items()}
    )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
        mark = next((mark for mark in ";\t" if frame.shape[1] == 1 and mark in str(frame.columns[0])), None)
        frame = frame if mark is None else pd.read_csv(path, sep=mark)
    except (ValueError, IsADirectoryError) as error:  # pandas' own errors and those of the encoding are ValueErrors
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    if len(frame) == 0:
        raise ValueError(f"{path} has no rows below its header line")
    return frame


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that every reader takes: NaN and infinity become null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain_scores(scores: xr.Dataset) -> dict[str, dict[str, float]]:
    """Scores of a pooled prediction as JSON has them."""
    return {name: {"value": value, "standard_error": error} for name, (value, error) in numbers(scores).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

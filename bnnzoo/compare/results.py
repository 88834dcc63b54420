"""Results of a comparison: as a data set of labeled arrays, as a table, as files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bnnzoo.compare import folder as folders
from bnnzoo.compare.folder import Folder
from bnnzoo.compare.method import METHODS
from bnnzoo.compare.protocol import Protocol
from bnnzoo.evaluation.bounds import normalized, t_test
from bnnzoo.evaluation.metrics import KINDS
from bnnzoo.files import write_text
from bnnzoo.markdown import table as markdown_table

DIMS = ("data", "method", "split", "seed")

SHOWN = {
    "regression": ("crps_gaussian", "pll", "pll_tuned", "rmse", "coverage_95", "crps_normalized", "pll_normalized"),
    "classification": ("accuracy", "pll", "brier", "ece"),
}
"""Scores that tables show, by task."""

FOREST = {"regression": ("crps_gaussian", "pll_tuned", "rmse"), "classification": ("accuracy", "pll", "brier", "ece")}
"""Scores that figures show, by task. Noise that is best for CRPS can be far too small for the log likelihood, whose
outliers would leave nothing else to see."""

STARS = ((1e-4, "****"), (1e-3, "***"), (1e-2, "**"), (0.05, "*"))
"""Significance levels and their marks, as in the MCBN paper."""

_NORMALIZED = {
    "crps_normalized": ("normalized CRPS", "crps_gaussian", "crps"),
    "pll_normalized": ("normalized log likelihood", "pll", "pll"),
}


def collected(folder: Folder, protocol: Protocol, data: Sequence[str] = (), methods: Sequence[str] = ()) -> xr.Dataset:
    """All finished cells of a folder.

    Args:
        folder: The folder.
        protocol: Its protocol.
        data: Names of data sets in the order wanted; others follow by name.
        methods: Names of methods, likewise.

    Returns:
        Dims `data`, `method`, `split`, `seed`; NaN where a cell is not finished. Variables:

        - over all four: the scores of `bnnzoo.evaluation.score`; of regressions also `pll_tuned`, the log likelihood
          under the noise that is best for it on held-out rows, whatever the protocol's `noise_by`; `crps_constant` and
          `pll_constant`, scores of the constant-uncertainty baseline; `crps_optimum` and `pll_optimum`, those of the
          best variance for each target by itself; `crps_normalized` and `pll_normalized`, where `crps_gaussian` and
          `pll` are between the two, in percent (`bnnzoo.evaluation.normalized`);
        - over data, method and split: `noise`, `noise_pll` and `constant`, that of the baseline (scales in the target's
          own units, of several targets the mean), `cv_loss`, and the chosen hyperparameters as `chosen_<name>`;
        - over data and method: `seconds` of the processor, and how many test fits `diverged`.

        Attributes: `task`, and the `protocol` as JSON.
    """
    cells = [each for path in folder.finished() if (each := folders.read_result(path)) is not None]
    tasks = {"regression" if "crps" in each["scores"] else "classification" for each in cells}
    if len(tasks) > 1:
        raise ValueError(f"{folder.path} has regressions and classifications: they need a folder each")
    task = tasks.pop() if tasks else "regression"
    sets, labels = dict.fromkeys(data), dict.fromkeys(methods, "")
    for each in sorted(cells, key=_order):
        sets[each["about"]["data"]] = None
        labels[each["about"]["method"]["name"]] = each["about"]["label"]
    shape = (len(sets), len(labels), protocol.splits, protocol.seeds)
    arrays: dict[str, np.ndarray] = {}
    for cell in cells:
        place = (list(sets).index(cell["about"]["data"]), list(labels).index(cell["about"]["method"]["name"]))
        for name, values in _flat(cell).items():
            arrays.setdefault(name, np.full(shape[: 2 + values.ndim], np.nan))[place] = values
    variables = {name: (DIMS[: values.ndim], values, _attributes(name, task)) for name, values in arrays.items()}
    return xr.Dataset(
        variables,
        {
            "data": list(sets),
            "method": list(labels),
            "split": range(protocol.splits),
            "seed": range(protocol.seeds),
            "label": ("method", [label or name for name, label in labels.items()]),
        },
        {"task": task, "protocol": json.dumps(protocol.as_dict())},
    )


def _order(cell: Mapping[str, Any]) -> tuple[int, str]:
    """Where a cell comes that nobody asked for: methods as they are listed."""
    name = cell["about"]["method"]["name"]
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), name)


def _flat(cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A cell's arrays by variable: [split, seed], [split] or []."""
    scores = {name: values.double().numpy() for name, values in cell["scores"].items()}
    for name, (_, score, bound) in _NORMALIZED.items():
        if f"{bound}_constant" in scores:
            low, high = scores[f"{bound}_constant"], scores[f"{bound}_optimum"]
            scores[name] = normalized(scores[score], low, high)
    own = {"cv_loss": cell["cv_loss"], **{f"chosen_{name}": values for name, values in cell["chosen"].items()}}
    if cell["noise"].numel():
        own |= {name: cell[name].mean(1) for name in ("noise", "noise_pll", "constant")}
    numbers = {name: np.asarray(float(cell[name])) for name in ("seconds", "diverged")}
    return {**scores, **{name: values.double().numpy() for name, values in own.items()}, **numbers}


def _attributes(name: str, task: str) -> dict[str, str]:
    if name in KINDS[task]:
        return dict(KINDS[task][name].attributes)
    if name == "pll_tuned":
        return {**KINDS[task]["pll"].attributes, "long_name": "log likelihood at its own noise"}
    if name in _NORMALIZED:
        return {"long_name": _NORMALIZED[name][0], "units": "%", "better": "higher"}
    return {}


def over_splits(scores: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean, and its standard error by the spread over splits of the means over seeds.

    Seeds of one split share its rows: taken for independent runs they would make the standard error too small.

    Args:
        scores: A variable with dims `split` and `seed`.

    Returns:
        Both without these dims; the standard error of a single split is NaN.
    """
    means = scores.mean("seed")
    count = means.sizes["split"]
    error = means.std("split", ddof=1) / math.sqrt(count) if count > 1 else means.mean("split") * np.nan
    return means.mean("split"), error


def significance(scores: xr.DataArray) -> xr.DataArray:
    """p-values of one-sample t-tests of normalized scores against 0, over all runs: splits times seeds.

    As in the MCBN paper (Teye et al. 2018, Tables 4 and 5), which takes the runs for independent; seeds of one split
    are not, and the values are too small for that. See `bnnzoo.evaluation.t_test`.

    Args:
        scores: `crps_normalized` or `pll_normalized`.
    """
    return t_test(scores, ("split", "seed"))["p_value"]


def stars(p: float) -> str:
    """The mark of a p-value: `*` below 0.05 to `****` below 0.0001, `ns` above, nothing where there was no test."""
    if math.isnan(p):
        return ""
    return next((mark for level, mark in STARS if p < level), "ns")


def table(results: xr.Dataset) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Means ± standard errors of a comparison, as text.

    Args:
        results: What `compare` returned.

    Returns:
        The header, the rows, one for each data set and method that is finished, and for each cell of each row whether
        it is the best of its data set.
    """
    shown = [name for name in SHOWN[results.attrs["task"]] if name in results]
    header = ["data", "method", *(_title(results[name]) for name in shown), "CPU s"]
    rows, best = [], []
    values = {name: over_splits(results[name]) for name in shown}
    tests = {name: significance(results[name]) for name in shown if name in _NORMALIZED}
    for data in results["data"].values:
        for method in results["method"].values:
            at = {"data": data, "method": method}
            if not shown or bool(np.isnan(values[shown[0]][0].sel(at))):
                continue
            row, marks = [str(data), str(results["label"].sel({"method": method}).item())], [False, False]
            for name in shown:
                mean, error = (float(each.sel(at)) for each in values[name])
                text = _number(mean, error)
                if name in tests:
                    text = f"{text} {stars(float(tests[name].sel(at)))}".rstrip()
                row.append(text)
                better = results[name].attrs.get("better", "none")
                column = values[name][0].sel(data=data)
                top = {"lower": column.min(), "higher": column.max()}.get(better)
                marks.append(top is not None and int(column.notnull().sum()) > 1 and mean == float(top))
            rows.append([*row, f"{float(results['seconds'].sel(at)):.0f}"])
            best.append([*marks, False])
    return header, rows, best


def _title(scores: xr.DataArray) -> str:
    units = scores.attrs.get("units", "1")
    arrow = {"lower": " ↓", "higher": " ↑"}.get(scores.attrs.get("better", "none"), "")
    note = {"target": "", "1": ""}.get(units, f", {units}")
    return f"{scores.attrs.get('long_name', scores.name)}{note}{arrow}"


def _number(mean: float, error: float) -> str:
    """Both with two significant digits of the error, at least one and at most four decimals."""
    if math.isnan(error) or error == 0.0:
        return f"{mean:.4g}"
    decimals = min(max(1 - math.floor(math.log10(error)), 1), 4)
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


NOTE = (
    "Mean ± standard error over splits (of the means over seeds), in the target's own units; the best of a data set "
    "bold; ↓ lower is better, ↑ higher."
)
NOTE_NORMALIZED = (
    "Normalized: 0 is the deterministic network with one constant noise scale, 100 the best variance for each target "
    "by itself; stars: one-sample t-test against 0 over all runs, * p < 0.05, ** 0.01, *** 0.001, **** 0.0001, ns not "
    "significant."
)


def markdown(results: xr.Dataset) -> str:
    """The results as a Markdown table, with a legend.

    Args:
        results: What `compare` returned.
    """
    header, rows, best = table(results)
    cells = [list(map(_bold, row, marks)) for row, marks in zip(rows, best, strict=True)]
    notes = [NOTE, *([NOTE_NORMALIZED] if "crps_normalized" in results else [])]
    return "\n".join([markdown_table(header, cells), "", *notes]) + "\n"


def write(results: xr.Dataset, out: str | Path) -> dict[Path, str]:
    """Writes results as files: `results.nc`, `results.csv` (a row a run), `results.md` and `forest.png`.

    Args:
        results: What `compare` returned.
        out: The folder; files that are there are replaced.

    Returns:
        The files, and what each is.
    """
    from bnnzoo.compare.forest import plot_forest

    out = Path(out)
    paths = {name: out / name for name in ("results.nc", "results.csv", "results.md", "forest.png")}
    scratch = out / ".results.nc.new"
    results.to_netcdf(scratch, engine="h5netcdf")
    scratch.replace(paths["results.nc"])
    frame = results.to_dataframe(dim_order=DIMS).reset_index()
    first = next(iter(KINDS[results.attrs["task"]]))
    write_text(paths["results.csv"], frame.dropna(subset=[first] if first in frame else None).to_csv(index=False))
    write_text(paths["results.md"], markdown(results))
    plot_forest(results).savefig(paths["forest.png"], dpi=150)
    about = ("all scores: xarray.open_dataset(path)", "a row a run", "means and standard errors", "the forest plot")
    return dict(zip(paths.values(), about, strict=True))


def _bold(text: str, best: bool) -> str:
    """A cell as Markdown: the number bold if it is the best, stars that are no markup."""
    number, space, mark = text.partition(" *")
    if not space:
        number, space, mark = text.partition(" ns")
    marked = (space + mark).replace("*", r"\*")
    return f"**{number}**{marked}" if best else number + marked


def load_results(out: str | Path) -> xr.Dataset:
    """The results of a folder, as far as its cells are finished: while a comparison runs, too.

    Args:
        out: The folder of a comparison.

    Raises:
        ValueError: If it is none.
    """
    path = Path(out) / folders.SETTINGS
    if not path.is_file():
        raise ValueError(f"{out} is no folder of a comparison: it has no {folders.SETTINGS}")
    return collected(Folder(Path(out)), Protocol(**json.loads(path.read_text(encoding="utf-8"))))

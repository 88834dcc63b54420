"""The ArviZ side of the export: groups of NumPy arrays in, the installed ArviZ's container out.

ArviZ 0.23 (Python 3.11) holds its groups in an `InferenceData`, ArviZ 1.x (Python 3.12 and later) in an
`xarray.DataTree`. The two lines' `from_dict` take different arguments, and 0.23 accepts the other's without a word and
builds garbage from it. So this module builds the `xarray.Dataset` of each group itself and leaves to ArviZ only the
container, the one thing that differs.

Nothing here imports torch or the rest of bnnzoo, so that it runs where there is no torch. Tested on ArviZ 0.23 and
Python 3.11: everything, and the whole export into both containers. Tested on ArviZ 1.x and Python 3.12, for which the
package index has torch only with gigabytes of GPU libraries: this file, loaded by its path, and whole exports that
Python 3.11 wrote to netCDF (`tests/evaluation/test_inference_data.py`, `write_export.py` beside it).
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

Variable = tuple[Sequence[str], np.ndarray]
"""An array and the names of its dimensions."""

SAMPLE_DIMS = ("chain", "draw")


def import_arviz() -> Any:
    """The installed `arviz` module; its daily notice that 1.x is coming stays unsaid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)
        return importlib.import_module("arviz")


def _is_arviz_1(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) >= 1  # asking 1.x for 0.x's names makes it warn


def build(
    groups: Mapping[str, Mapping[str, Variable]],
    *,
    coords: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    attrs: Mapping[str, Any] | None = None,
    container: Literal["auto", "InferenceData", "DataTree"] = "auto",
) -> Any:
    """Put groups of arrays into the installed ArviZ's container.

    Args:
        groups: {group: {variable: (dimension names, array)}}. Empty groups are left out.
        coords: {dimension: labels}, used by every variable that has the dimension; the others count from 0, and so do
            `chain` and `draw` of groups of the prior.
        attrs: What the whole object and every group carry. Values: str, numbers, booleans, 1-D arrays; mappings are
            written as JSON; None is left out.
        container: `"auto"`: what the installed ArviZ uses.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

    Raises:
        ValueError: If an array's shape does not fit its dimension names or labels, or a name holds a "/" (illegal in
            netCDF and in a DataTree), or `container` is not one of the installed ArviZ's.
    """
    common = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "bnnzoo",
        "inference_library": "bnnzoo",
        **{name: _attribute(value) for name, value in (attrs or {}).items() if value is not None},
    }
    datasets = {
        group: _dataset(group, variables, coords or {}, common) for group, variables in groups.items() if variables
    }
    arviz_1 = _is_arviz_1(import_arviz())
    if container not in ("auto", "InferenceData", "DataTree") or (container == "InferenceData" and arviz_1):
        allowed = "'auto' or 'DataTree' (ArviZ 1.x)" if arviz_1 else "'auto', 'InferenceData' or 'DataTree'"
        raise ValueError(f"container must be {allowed}, given {container!r}")
    if container == "auto":
        container = "DataTree" if arviz_1 else "InferenceData"
    if container == "InferenceData":
        return import_arviz().InferenceData(attrs=common, **datasets)
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs.update(common)
    return tree


def _dataset(
    group: str,
    variables: Mapping[str, Variable],
    coords: Mapping[str, Sequence[Any] | np.ndarray],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for name, (dims, values) in variables.items():
        for label in (group, name, *dims):
            if "/" in label:
                raise ValueError(f'"/" is illegal in a name, given {label!r} in group {group!r}')
        if len(dims) != values.ndim:
            raise ValueError(f"{group}/{name}: shape {values.shape} does not fit the dimensions {tuple(dims)}")
        for dim, size in zip(dims, values.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"{group}/{name}: dimension {dim!r} has size {size}, elsewhere {sizes[dim]}")
        arrays[name] = (tuple(dims), values)
    labels = {}
    for dim, size in sizes.items():
        own_draws = dim in SAMPLE_DIMS and group.startswith("prior")  # not the posterior's
        labels[dim] = np.asarray(coords[dim]) if dim in coords and not own_draws else np.arange(size)
        if labels[dim].shape != (size,):
            raise ValueError(f"{group}: dimension {dim!r} has size {size} but {labels[dim].shape[0]} labels")
    own = dict(attrs)
    if all(dim in sizes for dim in SAMPLE_DIMS):
        own["sample_dims"] = list(SAMPLE_DIMS)  # as ArviZ 1.x marks them
    return xr.Dataset(arrays, coords=labels, attrs=own)


def _attribute(value: Any) -> Any:
    """A value that netCDF can hold."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return np.asarray(value)
    return value


def save_netcdf(idata: Any, path: str | os.PathLike[str]) -> Path:
    """Write an export to one netCDF file, compressed; an existing file is replaced only by a complete one.

    `arviz.from_netcdf(path)` reads it back, on either line of ArviZ.

    Args:
        idata: What `to_arviz` returned, or any `arviz.InferenceData` or `xarray.DataTree`.
        path: The file; its folder must exist.

    Returns:
        The path written.

    Raises:
        OSError: If the folder does not exist, cannot be written or is full; nothing half-written stays behind.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        if isinstance(idata, xr.DataTree):
            encoding = {
                node.path: {
                    str(variable): {"zlib": True}
                    for variable, values in node.data_vars.items()
                    if values.dtype.kind in "iuf"
                }
                for node in idata.subtree
            }
            idata.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
        else:
            idata.to_netcdf(str(temporary), engine="h5netcdf")
        # A temporary file is private; the result gets the rights that an ordinary new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def pareto_k(idata: Any) -> xr.DataArray:
    """PSIS k̂ of each chain: how far the fitted q(w) is from the posterior p(w | y).

    The importance ratios p(y, w)/q(w) of draws from q have a right tail; k̂ is the shape of the generalized Pareto
    distribution fitted to it (Yao et al. 2018, Vehtari et al. 2024). Below 0.5 q is close and importance weights make
    expectations exact; below 0.7 they still help; above, q misses much of the posterior. With many weights k̂ is often
    above 0.7 even where the predictions are good: it judges the joint distribution of all weights.

    This k̂ is one a chain, about q(w); that of leave-one-out (`arviz.loo`) is one a datum, about the likelihood.
    `psis` computes the same from a posterior, without an export, for guides with auxiliary variables too.

    Args:
        idata: What `Posterior.to_arviz(data)` returned, with the data that the posterior was fitted to.

    Returns:
        k̂, [chain]. Infinite where the ratios differ so much that a few draws carry all the weight; minus infinity
        where they do not differ at all (q is the posterior).

    Raises:
        ValueError: If the export holds no ELBO of each draw (no data, or no density of q), was made with other data
            than the posterior was fitted to, or has fewer than 25 draws a chain.
    """
    stats = idata.get("sample_stats", {})
    if "elbo" not in stats:
        raise ValueError(
            "pareto_k needs sample_stats.elbo = log p(y, w) - log q(w) of each draw: export with the data the "
            "posterior was fitted to, `posterior.to_arviz(data)`, and a guide that has a density (not Map, not NUTS)"
        )
    if int(idata.attrs.get("fitted_to_these_data", 1)) == 0:
        raise ValueError(
            "pareto_k needs an export made with the data the posterior was fitted to, and these "
            f"{idata.attrs['num_data']} are not the {idata.attrs['num_data_fitted']} of the fit (which a validation "
            "set does not belong to)"
        )
    log_ratios = stats["elbo"].transpose("chain", "draw")
    if log_ratios.sizes["draw"] < 25:
        raise ValueError(f"pareto_k needs at least 25 draws a chain, given {log_ratios.sizes['draw']}")
    values = [pareto_shape(chain) for chain in np.asarray(log_ratios.values, dtype=np.float64)]
    return xr.DataArray(values, dims="chain", coords={"chain": log_ratios["chain"].values}, name="pareto_k")


def pareto_shape(log_ratios: np.ndarray) -> float:
    """Shape k̂ of the generalized Pareto distribution fitted to the right tail of importance ratios.

    Args:
        log_ratios: Logarithms of the ratios, [S], S ≥ 25.

    Returns:
        k̂; infinite where a few ratios carry all the weight, minus infinity where they are all equal, NaN where one is
        not finite.
    """
    if not np.isfinite(log_ratios).all():
        return float("nan")
    shifted = log_ratios - log_ratios.max()
    if np.ptp(shifted) == 0.0:
        return float("-inf")
    az = import_arviz()
    if not _is_arviz_1(az):
        with np.errstate(under="ignore"):
            return float(az.psislw(shifted)[1])
    # 1.x: `psislw` negates its argument and `pareto_khat(log_weights=True)` does not exponentiate (arviz-stats 1.3),
    # so the raw ratios are passed, about which there is no doubt. Where so few are above the smallest float that the
    # tail is empty, one or two draws carry everything, and 0.x says k = inf.
    tail = int(min(shifted.size / 5, 3 * shifted.size**0.5))
    if np.sort(shifted)[-tail - 1] < np.log(np.finfo(np.float64).tiny):
        return float("inf")
    importlib.import_module("arviz_stats")  # registers the accessor
    ratios = xr.DataArray(np.exp(shifted)[None], dims=SAMPLE_DIMS)
    return float(ratios.azstats.pareto_khat(r_eff=1.0, tail="right"))


def chain_statistics(draws: xr.DataArray) -> xr.Dataset:
    """R-hat and effective sample sizes of draws of anything, by ArviZ.

    Args:
        draws: [chain, draw, ...], at least 2 chains of 4 draws.

    Returns:
        `rhat` (rank-normalized, split), `ess_bulk`, `ess_tail`, [...], NaN where all draws of each chain are the same:
        points have nothing to converge. Attributes: `worst_rhat`, `least_ess_bulk`, `least_ess_tail` over all of them.
    """
    az = import_arviz()
    dataset = xr.Dataset({"value": draws})
    with np.errstate(divide="ignore", invalid="ignore"):
        result = xr.Dataset(
            {
                "rhat": az.rhat(dataset)["value"],
                "ess_bulk": az.ess(dataset, method="bulk")["value"],
                "ess_tail": az.ess(dataset, method="tail")["value"],
            }
        )
    result = result.where((draws.max("draw") > draws.min("draw")).any("chain"))
    ends = {"worst_rhat": result["rhat"].max(), "least_ess_bulk": result["ess_bulk"].min()}
    ends["least_ess_tail"] = result["ess_tail"].min()
    return result.assign_attrs({name: float(value) for name, value in ends.items()})

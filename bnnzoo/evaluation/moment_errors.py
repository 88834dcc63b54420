"""How accurate propagated moments are, layer by layer: the measures of the moment propagation paper.

Shekhovtsov & Flach 2018 (Feed-forward uncertainty propagation in belief and neural networks), Tables 2 and 3.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor, nn

from bnnzoo._vectorize import seeded
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION
from bnnzoo.moments import Moments, per_layer, propagate
from bnnzoo.moments.softmax import Softmax, log_softmax

OUTPUT = "output"
"""The name of a network's output among its layers."""

_BLOCKS = 10  # of draws, for the jackknife
_Row = dict[str, float]
_Layers = Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True)
class MomentReference:
    """Means and variances of a network's layers over Monte Carlo draws, what `moment_accuracy` compares with.

    Attributes:
        blocks: The moments of each of ten equal parts of the draws: by layer, in the order of the calls.
        probs: The classes' probabilities, the mean of the softmax over draws, by part; empty if there are no classes.
        num_samples: Draws in all.
    """

    blocks: Sequence[Mapping[str, Moments]]
    probs: Sequence[Moments]
    num_samples: int

    def without(self, block: int | None = None) -> tuple[dict[str, Moments], Moments | None]:
        """The layers' moments and the probabilities', over all draws but one part's.

        Args:
            block: The part to leave out; None: none.
        """
        kept = [each for each in range(len(self.blocks)) if each != block]
        size = self.num_samples // len(self.blocks)
        layers = {name: _pooled([self.blocks[i][name] for i in kept], size) for name in self.blocks[0]}
        return layers, _pooled([self.probs[i] for i in kept], size) if self.probs else None


def moment_reference(
    network: nn.Module,
    x: Tensor,
    variance: Tensor | float | None = None,
    *,
    num_samples: int = 1000,
    layers: _Layers = None,
    classes: bool = True,
    seed: int | None = 0,
) -> MomentReference:
    """Draw all noise of a network and of its input, and record the moments of its layers.

    For `moment_accuracy(reference=...)`, where several ways of propagating are compared with the same draws. It holds
    20 numbers for every unit of the layers and every input.

    Args:
        network: As of `moment_accuracy`.
        x: As of `moment_accuracy`.
        variance: As of `moment_accuracy`.
        num_samples: As of `moment_accuracy`.
        layers: As of `moment_accuracy`.
        classes: As of `moment_accuracy`.
        seed: As of `moment_accuracy`.

    Raises:
        ValueError: As of `moment_accuracy`.
    """
    whole = not isinstance(num_samples, bool) and isinstance(num_samples, int)
    if not whole or num_samples < 2 * _BLOCKS or num_samples % _BLOCKS:
        raise ValueError(f"num_samples must be a multiple of {_BLOCKS}, at least {2 * _BLOCKS}, not {num_samples!r}")
    # the output, and the classes' probabilities, as layers of their own
    recorded = nn.Sequential(OrderedDict(network=network, output=nn.Identity(), probs=_Softmax(classes)))
    blocks, probs = [], []
    with torch.no_grad(), seeded(seed, x.device):
        for _ in range(_BLOCKS):
            found = per_layer(recorded, x, variance, "sample", num_samples=num_samples // _BLOCKS, seed=None)
            output, prob = found.pop("output"), found.pop("probs")
            found.pop("network", None)  # a network that is a single layer: its output
            named = {**{path.removeprefix("network."): value for path, value in found.items()}, OUTPUT: output}
            blocks.append({path: named[path] for path in _chosen(layers, list(named)).values()})
            probs += [prob] if classes else []
    return MomentReference(blocks, probs, num_samples)


def moment_accuracy(
    network: nn.Module,
    x: Tensor,
    variance: Tensor | float | None = None,
    *,
    num_samples: int = 1000,
    layers: _Layers = None,
    classes: bool = True,
    kinds: Sequence[Softmax] = get_args(Softmax),
    reference: MomentReference | None = None,
    seed: int | None = 0,
    **settings: Any,
) -> xr.Dataset:
    """Errors of propagated means and standard deviations by layer, and of the class probabilities.

    The ordinary forward pass (AP1) and propagated moments (AP2), see `moments.propagate`, against the mean μ* and
    standard deviation σ* over Monte Carlo draws of all noise (Shekhovtsov & Flach 2018, section 4). Over all units of
    a layer and all inputs:

    - `eps_mu`: mean of |μ - μ*| over mean of σ*, of AP1 and of AP2; NaN where nothing is random. The draws alone make
      it `sqrt(2 / (π num_samples))` for exact means of Gaussian units: `eps_mu_floor`;
    - `eps_sigma`: geometric mean of σ / σ* of AP2: 1 is right, less is too sure. Units whose draws were all the same
      (σ* = 0) are left out: their share is `excluded`;
    - `kl`: KL(p* || q) from the draws' mean softmax p* to the class probabilities q of AP1 (the softmax of its logits)
      and of AP2 (by kind of `moments.softmax.log_softmax`), mean over inputs, nats. The draws alone make it
      `kl_floor` for exact probabilities.

    Standard errors (`..._se`) are those of the draws, for these inputs: jackknife over ten parts of the draws.

    Args:
        network: Any module that takes one tensor and returns one: of a BayesianNetwork its `network`; calibrated ones
            (`moments.calibrate`) too.
        x: Inputs (means), [N, ...].
        variance: The inputs' variances, as of `moments.propagate`. None: the inputs are certain.
        num_samples: Draws, a multiple of 10, at least 20.
        layers: Module paths, as `moments.per_layer` names them, `"output"` among them; or a mapping from a column's
            name to one. Default: all modules without children, in the order of the calls, then the output.
        classes: Whether the outputs are logits of classes, along dimension 1. False: no KL.
        kinds: Of `moments.softmax.log_softmax`, those wanted; `"exact"` is slow for images of labels.
        reference: What `moment_reference` returned for this network, these inputs and layers; saves the draws, and
            takes the place of `num_samples`, `classes` and `seed`.
        seed: Fixes the draws; None: torch's generator goes on.
        **settings: Of `moments.propagate`, for AP2: `covariance`, `approximation`, `fallback`. With
            `covariance="sensitivity"`, which is about outputs, the other layers are NaN.

    Returns:
        Variables by `layer`, all without a unit but the KLs: `eps_mu_ap1`, `eps_mu_ap2`, `eps_sigma`, `kl_ap1`,
        `kl_simplified`, `kl_logistic`, ... (NaN but for the output), each with its `_se`; `eps_mu_floor`, `kl_floor`,
        `excluded`, and `units`, the number of units times inputs. `dataset.to_dataframe()` is a table.

    Raises:
        ValueError: If an argument is out of range; a layer is unknown, or was not recorded in the reference; outputs
            are no logits of several classes, and `classes` is True.
        NoRuleError: As of `moments.propagate`.

    Example:
        >>> import torch
        >>> from bnnzoo import evaluation
        >>> network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> table = evaluation.moment_accuracy(network, torch.randn(5, 3), 0.1, num_samples=100)
        >>> list(table.layer.values)
        ['0', '1', '2', 'output']
    """
    with torch.no_grad():
        plain = {**per_layer(network, x, mode="ap1"), OUTPUT: propagate(network, x, mode="ap1")}
        hidden = {} if settings.get("covariance") == "sensitivity" else per_layer(network, x, variance, **settings)
        moments = {**hidden, OUTPUT: propagate(network, x, variance, **settings)}
    if reference is None:
        reference = moment_reference(
            network, x, variance, num_samples=num_samples, layers=layers, classes=classes, seed=seed
        )
    chosen = _chosen(layers, list(reference.blocks[0]))
    unknown = [kind for kind in kinds if kind not in get_args(Softmax)]
    if isinstance(kinds, str) or unknown:
        raise ValueError(f"kinds must be a list of {', '.join(map(repr, get_args(Softmax)))}, not {kinds!r}")
    ways = {path: _Ways(plain.get(path), moments.get(path)) for path in chosen.values()}
    for path, way in ways.items():
        found = reference.blocks[0][path].shape
        if way.ap1 is None or way.ap1.shape != found:
            given = "the network none" if way.ap1 is None else f"in the network it is {list(way.ap1.shape)}"
            raise ValueError(f"the reference has a layer {path!r} of shape {list(found)}, and {given}")
    with torch.no_grad():
        log_q = _log_probs(plain[OUTPUT], moments[OUTPUT], kinds) if reference.probs else {}
        estimate = _measures(ways, log_q, reference)
        parts = [_measures(ways, log_q, reference, block) for block in range(_BLOCKS)]
    return _dataset(chosen, estimate, parts, reference, len(x), settings)


def plot_moment_accuracy(tables: xr.Dataset | Mapping[str, xr.Dataset], *, title: str = "") -> Figure:
    """Errors of means and standard deviations by layer.

    Args:
        tables: What `moment_accuracy` returned; or several, by the name of the way of propagating (AP2, calibrated,
            ...), with the same layers; AP1 is drawn from the first.
        title: Of the figure.

    Returns:
        A figure of two panels: `eps_mu`, logarithmic, with the draws' own part of it, and `eps_sigma`, with 2 standard
        errors.

    Raises:
        ValueError: If there are no tables, or their layers differ.
    """
    named = {"AP2": tables} if isinstance(tables, xr.Dataset) else dict(tables)
    if not named:
        raise ValueError("tables must be a dataset of moment_accuracy, or several by name; given: none")
    first = next(iter(named.values()))
    names = list(map(str, first.layer.values))
    for name, table in named.items():
        if list(map(str, table.layer.values)) != names:
            raise ValueError(f"tables must have the same layers: {name!r} has {list(table.layer.values)}, not {names}")
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_moment_accuracy(left, right, named)
    left.legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def draw_moment_accuracy(left: Axes, right: Axes, tables: Mapping[str, xr.Dataset]) -> None:
    """The panels of `plot_moment_accuracy`.

    Args:
        left: Where to draw `eps_mu`.
        right: Where to draw `eps_sigma`.
        tables: By the name of the way of propagating.
    """
    first = next(iter(tables.values()))
    at = np.arange(first.sizes["layer"])
    curves = [(left, first, "AP1", GRAY, "v", "eps_mu_ap1")]
    for index, (name, table) in enumerate(tables.items()):
        color, marker = _STYLES[index % len(_STYLES)]
        curves += [(left, table, name, color, marker, "eps_mu_ap2")]
        curves += [(right, table, name, color, marker, "eps_sigma")]
    for ax, table, label, color, marker, variable in curves:
        values, errors = table[variable].values, 2 * table[f"{variable}_se"].values
        ax.errorbar(at, values, errors, color=color, marker=marker, ms=5, lw=1.2, capsize=2, label=label)
    left.axhline(float(first.eps_mu_floor), color="black", lw=0.8, ls=":", label="exact means: the draws' error")
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("error of means / true σ")
    right.axhline(1.0, color="black", lw=0.8, ls=":")
    right.set_ylabel("σ / true σ")
    names = [str(name) for name in first.layer.values]
    rotation = 45 if max(map(len, names)) > 4 else 90 if len(names) > 12 else 0
    for ax in (left, right):
        ax.set_xticks(at, names, rotation=rotation, fontsize=9)
        ax.grid(True, color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


_STYLES = ((BLUE, "o"), (VERMILION, "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#E69F00", "P"))


class _Ways(NamedTuple):
    """A layer's moments; None where a way has none."""

    ap1: Moments | None
    ap2: Moments | None


class _Softmax(nn.Module):
    """Class probabilities, where outputs are logits."""

    def __init__(self, classes: bool) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, output: Tensor) -> Tensor:
        if not self.classes:
            return output
        if output.dim() < 2 or output.shape[1] < 2:
            raise ValueError(
                f"outputs of shape {list(output.shape)} are no logits of several classes along dimension 1: for a "
                "network of another kind give classes=False"
            )
        return output.softmax(1)


def _chosen(layers: _Layers, known: Sequence[str]) -> dict[str, str]:
    """Columns and their layers' paths."""
    if layers is None:
        return {path: path for path in known}
    if isinstance(layers, str) or not isinstance(layers, Mapping | Sequence) or not layers:
        raise ValueError(f"layers must be a list of module paths, or a mapping to them, not {layers!r}")
    chosen = dict(layers) if isinstance(layers, Mapping) else {path: path for path in layers}
    for path in chosen.values():
        if path not in known:
            raise ValueError(f"layers: no layer {path!r}; there are {', '.join(known)}")
    return chosen


def _pooled(parts: Sequence[Moments], size: int) -> Moments:
    """Mean and variance (unbiased) of all draws from those of parts of a size.

    In double precision, in which the mean of equal means is that mean: where nothing is random the variance is 0.
    """
    means = torch.stack([each.loc.double() for each in parts])
    within = torch.stack([each.variance.double() for each in parts]).mean(0)
    mean, count = means.mean(0), size * len(parts)
    return Moments(mean, (within + (means - mean).square().mean(0)) * count / (count - 1))


def _measures(
    ways: Mapping[str, _Ways], log_q: Mapping[str, Tensor], reference: MomentReference, without: int | None = None
) -> list[_Row]:
    """The measures of each layer, without a part of the draws."""
    layers, probs = reference.without(without)
    rows = []
    for path, way in ways.items():
        truth = layers[path]
        random = truth.variance > 0
        row = {"units": float(random.numel()), "excluded": 1.0 - random.double().mean().item()}
        for name, moments in (("eps_mu_ap1", way.ap1), ("eps_mu_ap2", way.ap2)):
            if moments is not None and bool(random.any()):
                row[name] = ((moments.loc - truth.loc).abs().mean() / truth.scale.mean()).item()
        if way.ap2 is not None and bool(random.any()):
            # a standard deviation of 0 where there is one makes the geometric mean 0
            row["eps_sigma"] = (way.ap2.scale.double() / truth.scale)[random].log().mean().exp().item()
        if probs is not None and path == OUTPUT:
            row |= _divergences(log_q, probs, reference.num_samples)
        rows.append(row)
    return rows


def _log_probs(ap1: Moments, ap2: Moments, kinds: Sequence[Softmax]) -> dict[str, Tensor]:
    """Logarithms of the class probabilities by way."""
    mean, variance = ap2.loc.double(), ap2.variance.double()
    log_q = {"ap1": ap1.loc.double().log_softmax(1)}
    return log_q | {kind: log_softmax(mean, variance, 1, kind) for kind in kinds}


def _divergences(log_q: Mapping[str, Tensor], probs: Moments, num_samples: int) -> _Row:
    """KL(p* || q) by way, the mean over inputs."""
    p = probs.loc
    # to second order; a class that no draw gave any probability adds nothing
    floor = torch.where(p > 0, probs.variance / p.clamp_min(1e-300), 0.0).sum(1) / (2 * num_samples)
    row = {"kl_floor": floor.mean().item()}
    for kind, log_probs in log_q.items():
        row[f"kl_{kind}"] = (torch.xlogy(p, p) - p * log_probs).sum(1).mean().item()
    return row


_MEANINGS = {
    "eps_mu_ap1": ("error of the means of the ordinary forward pass, in true standard deviations", "1"),
    "eps_mu_ap2": ("error of the propagated means, in true standard deviations", "1"),
    "eps_sigma": ("propagated standard deviation over the true one, geometric mean", "1"),
    "kl_ap1": ("KL divergence of the softmax of the ordinary forward pass from the true class probabilities", "nat"),
    "excluded": ("share of units that did not vary, left out of eps_sigma", "1"),
    "units": ("units times inputs", "1"),
    "kl_floor": ("what the draws' error alone makes of the KL divergences", "nat"),
}
_EXACT = ("units", "excluded", "kl_floor")  # without a standard error


def _dataset(
    chosen: Mapping[str, str],
    estimate: Sequence[_Row],
    parts: Sequence[Sequence[_Row]],
    reference: MomentReference,
    inputs: int,
    settings: Mapping[str, Any],
) -> xr.Dataset:
    # columns with the same path share its row
    places = [list(dict.fromkeys(chosen.values())).index(path) for path in chosen.values()]
    names = dict.fromkeys([*list(_MEANINGS)[:3], *(name for row in estimate for name in row)])
    result: dict[str, Any] = {}
    for name in names:
        long, unit = _MEANINGS.get(name, (f"KL divergence of propagated class probabilities ({name[3:]})", "nat"))
        attributes = {"long_name": long, "units": unit}
        values = _column(estimate, name)[places]
        result[name] = ("layer", values, attributes)
        if name not in _EXACT:
            spread = np.stack([_column(rows, name)[places] for rows in parts])
            errors = np.sqrt((len(parts) - 1) / len(parts) * ((spread - spread.mean(0)) ** 2).sum(0))
            result[f"{name}_se"] = ("layer", errors, {"long_name": f"standard error of {name}", "units": unit})
    floor = {"long_name": "what the draws' error alone makes of eps_mu", "units": "1"}
    result["eps_mu_floor"] = ((), math.sqrt(2 / (math.pi * reference.num_samples)), floor)
    described = {name: str(value) for name, value in settings.items()}
    return xr.Dataset(
        result,
        coords={"layer": list(chosen), "module": ("layer", list(chosen.values()))},
        attrs={"num_samples": reference.num_samples, "inputs": inputs, **described},
    )


def _column(rows: Sequence[_Row], name: str) -> np.ndarray:
    return np.array([row.get(name, math.nan) for row in rows])

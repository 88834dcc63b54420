"""Out of distribution: how well an uncertainty tells inputs that the network was not made for from those it was."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from scipy.stats import gmean
from sklearn.metrics import auc
from torch import Tensor

from bnnzoo.data import Dataset
from bnnzoo.prediction import Prediction

_TPR = 0.95
_NOTHING = 1e-12  # of the whole: an epistemic part below is rounding, of draws that agree

SCORES: dict[str, tuple[str, str]] = {
    "auroc": ("probability that an outside input is more uncertain than an inside one", "higher"),
    "aupr_out": ("average precision of finding outside inputs", "higher"),
    "aupr_in": ("average precision of finding inside inputs", "higher"),
    "fpr_95": ("share of outside inputs that pass where 95% of the inside ones do", "lower"),
}
"""Variables of `ood_scores`: what each says, and which direction is better."""


def ood_scores(inside: Prediction, outside: Prediction, *, resamples: int = 100, seed: int = 0) -> xr.Dataset:
    """How well the uncertainty of predictions tells outside inputs from inside ones.

    A detector calls an input outside if its uncertainty is above a threshold. Each variable sums up all thresholds:

    | name | what | better | by chance |
    |---|---|---|---|
    | `auroc` | area under the ROC curve: an outside input is the more uncertain one, ties half | higher | 1/2 |
    | `aupr_out` | average precision, outside inputs the positives, found by high uncertainty | higher | their share |
    | `aupr_in` | average precision, inside inputs the positives, found by low uncertainty | higher | their share |
    | `fpr_95` | share of outside inputs that pass as inside where 95% of the inside ones do | lower | 0.95 |

    for each measure of uncertainty (see `uncertainties`). `<name>_se` is the standard error: the spread over bootstrap
    resamples of the inputs, inside and outside each for themselves. It tells of other inputs, not of another fit.

    Chains are scored one by one; `ood_scores(inside.pooled, outside.pooled)` scores them as one ensemble. Precision
    depends on how many inputs there are of each kind; the other two do not.

    Args:
        inside: Of inputs like those trained on.
        outside: Of other inputs, by the same posterior.
        resamples: Bootstrap resamples, ≥ 2.
        seed: Fixes them.

    Returns:
        Dataset with dims (chain, measure).

    Raises:
        ValueError: If the predictions are not of one kind (task, classes, chains), an uncertainty is not finite, or
            `resamples` is below 2.

    Source: Hendrycks & Gimpel (2017), AUROC and AUPR; Liang, Li & Srikant (2018), FPR at 95% TPR with inside inputs as
    the positives; Efron & Tibshirani (1993), bootstrap.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, given {resamples}")
    _check_alike(inside, outside)
    chains = range(inside.shape[0])
    pairs = [(uncertainties(inside.chain(chain)), uncertainties(outside.chain(chain))) for chain in chains]
    measures = list(pairs[0][0])
    rng = np.random.default_rng(seed)
    found = np.array([[_scored(low[m], high[m], resamples, rng) for m in measures] for low, high in pairs])
    result = xr.Dataset(coords={"chain": list(chains), "measure": measures})
    for index, (name, (long_name, better)) in enumerate(SCORES.items()):
        about = {"units": "", "better": better}
        result[name] = (("chain", "measure"), found[..., 0, index], {"long_name": long_name, **about})
        error = {"long_name": f"standard error of {name}", "units": "", "better": "none"}
        result[f"{name}_se"] = (("chain", "measure"), found[..., 1, index], error)
    result.attrs = {"inside": len(inside), "outside": len(outside), "resamples": resamples}
    return result


def uncertainties(prediction: Prediction) -> dict[str, np.ndarray]:
    """Measures of uncertainty, one number an input, larger where less is known; all chains pooled.

    Classification: `entropy` and `mutual_information` (its epistemic part) in nats, and `max_probability`, 1 minus the
    largest class probability; of several labels an input (segmentation) their means. Regression and counts: the
    predictive `variance` and its `epistemic` part, in squared units of the target; of several targets an input their
    geometric means, which no choice of units reorders.

    Probabilities are computed in float64, in which those of sure predictions still differ. An epistemic part below
    1e-12 of the whole (mutual information: of log K) counts as none: it is rounding, of draws that agree.

    Args:
        prediction: What `Posterior.predict` returned.

    Returns:
        {measure: [N], float64}.

    Raises:
        ValueError: If one is not finite.
    """
    precise = prediction.double()
    if prediction.task == "classification":
        probs = precise.probs
        entropy, most = torch.special.entr(probs).sum(-1), torch.tensor(math.log(probs.shape[-1]))
        found = {
            "entropy": entropy,
            "mutual_information": _part(precise.mutual_information, most),
            # The sum of the others: 1 - max is 0 for every sure prediction.
            "max_probability": probs.sort(-1).values[..., :-1].sum(-1),
        }
        measures = {name: _numpy(values).reshape(len(values), -1).mean(1) for name, values in found.items()}
    else:
        found = {"variance": precise.variance, "epistemic": _part(precise.epistemic, precise.variance)}
        flat = {name: _numpy(values).reshape(len(values), -1) for name, values in found.items()}
        measures = {name: v[:, 0] if v.shape[1] == 1 else _geometric(v) for name, v in flat.items()}
    for name, values in measures.items():
        if not np.isfinite(values).all():
            count = np.count_nonzero(~np.isfinite(values))
            raise ValueError(f"{name} of {count} of {len(values)} predictions is not finite")
    return measures


class HeldOut(NamedTuple):
    """A classification cut in two by class.

    Attributes:
        kept: The classes to train on, relabelled 0, 1, ... in their old order.
        hidden: The others, relabelled likewise: labels of `hidden` have nothing to do with those of `kept`.
    """

    kept: Dataset
    hidden: Dataset


def held_out_classes(dataset: Dataset, classes: Iterable[int | str]) -> HeldOut:
    """Hide some classes of a data set: training sees the rest, and what was hidden is out of distribution.

    The MNF paper (section 4.1) hides the last five classes of CIFAR-10:

        kept, hidden = held_out_classes(data.load("cifar10"), range(5, 10))

    An official test set is cut likewise: `kept.test` and `hidden.test`.

    Args:
        dataset: A classification with one label a row.
        classes: The classes to hide: labels or class names.

    Returns:
        `(kept, hidden)`; names of the classes stay with them.

    Raises:
        ValueError: If the data are no such classification, a class is unknown or given twice, or no class or fewer than
            two would be left on a side: at least one hidden, two kept.
    """
    count = dataset.num_classes
    if count is None or dataset.y.dim() != 1:
        raise ValueError(f"classes can be held out of data with one class label a row, not of {dataset!r}")
    names = dataset.class_names
    chosen = []
    for entry in classes:
        label = names.index(entry) if names is not None and isinstance(entry, str) and entry in names else entry
        if isinstance(label, str) or not 0 <= int(label) < count or int(label) != label:
            known = "" if names is None else f", or of {', '.join(names)}"
            raise ValueError(
                f"there is no class {entry!r} in data set {dataset.name!r}: give labels 0 to {count - 1}{known}"
            )
        chosen.append(int(label))
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes are given twice: {chosen}")
    rest = [label for label in range(count) if label not in chosen]
    if not chosen or len(rest) < 2:
        raise ValueError(f"one class or more must be hidden and two or more kept; of {count}, {len(chosen)} are hidden")
    return HeldOut(_only(dataset, rest, "kept classes"), _only(dataset, sorted(chosen), "hidden classes"))


def _only(dataset: Dataset, labels: list[int], what: str) -> Dataset:
    """The rows of some classes, relabelled by their place in `labels`."""
    assert dataset.num_classes is not None
    new = torch.full((dataset.num_classes,), -1, device=dataset.y.device)
    new[labels] = torch.arange(len(labels), device=dataset.y.device)
    rows = dataset.subset(new[dataset.y] >= 0)
    names = dataset.class_names
    return rows._copy(
        y=new[rows.y],
        name=f"{dataset.name}, {what}",
        class_names=None if names is None else tuple(names[label] for label in labels),
        _num_classes=len(labels),
        test=None if dataset.test is None else _only(dataset.test, labels, what),
    )


def _check_alike(inside: Prediction, outside: Prediction) -> None:
    def kind(prediction: Prediction) -> tuple[object, ...]:
        classes = prediction.probs.shape[-1] if prediction.task == "classification" else None
        return prediction.task, prediction.shape[0], classes, prediction.shape[3:]

    if kind(inside) != kind(outside):
        raise ValueError(f"inside and outside must be predictions by one posterior, given {inside!r} and {outside!r}")
    if len(inside) == 0 or len(outside) == 0:
        raise ValueError(f"there must be inputs of both kinds, given {len(inside)} inside and {len(outside)} outside")


def _scored(low: np.ndarray, high: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of uncertainties of inside and outside inputs, and their standard errors, [2, score]."""
    values = np.concatenate([low, high])
    order = np.argsort(-values)
    outside = order >= len(low)
    last = np.flatnonzero(np.diff(values[order], append=np.nan))  # of each distinct value: what ties goes together
    again = np.empty((resamples, len(SCORES)))
    weights = np.ones(len(values))
    found = _summed_up(outside, weights, last)
    for row in again:
        for kind in (outside, ~outside):
            count = np.count_nonzero(kind)
            weights[kind] = np.bincount(rng.integers(count, size=count), minlength=count)
        row[:] = _summed_up(outside, weights, last)
    return np.stack([found, again.std(0, ddof=1)])


def _summed_up(outside: np.ndarray, weights: np.ndarray, last: np.ndarray) -> list[float]:
    """The scores of weighted inputs, sorted from the most to the least uncertain.

    From the numbers of inside and of outside inputs above each threshold. scikit-learn's curves have the same, and take
    ten times as long for checks and sorting, which resamples do not need again.
    """
    in_above = np.append(0.0, np.cumsum(weights * ~outside)[last])
    out_above = np.append(0.0, np.cumsum(weights * outside)[last])
    many_in, many_out = in_above[-1], out_above[-1]
    # The lowest threshold at which 95% of the inside inputs pass: they are not above it.
    place = np.flatnonzero(many_in - in_above >= _TPR * many_in - 1e-9)[-1]
    return [
        auc(in_above / many_in, out_above / many_out),
        _average_precision(out_above, in_above),
        _average_precision(many_in - in_above[::-1], many_out - out_above[::-1]),
        1.0 - out_above[place] / many_out,
    ]


def _average_precision(found: np.ndarray, wrong: np.ndarray) -> float:
    """Precision at every threshold, weighted by the share of positives that it adds (no interpolation)."""
    added, called = np.diff(found), (found + wrong)[1:]
    return float(np.sum(added * found[1:] / np.maximum(called, 1.0)) / found[-1])


def _part(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(part < _NOTHING * whole, 0.0, part)


def _geometric(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return gmean(values, axis=1)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()

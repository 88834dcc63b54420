"""Two models that a Bayesian network must beat: a constant and a (generalized) linear one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, PoissonRegressor, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bnnzoo.data import Dataset, Split
from bnnzoo.evaluation.metrics import score, to_numpy
from bnnzoo.prediction import Prediction

_DRAWS = 1000  # predictive draws that the intervals of counts are taken from


def baselines(split: Split, *, max_rows: int = 10_000, seed: int = 0) -> dict[str, xr.Dataset]:
    """Fit the baselines to the training set and score them on the test set.

    | task | `constant` | second model |
    |---|---|---|
    | regression | Gaussian: mean and standard deviation of the training targets | `ridge` |
    | counts | Poisson: mean of the training counts | `poisson` |
    | classification | class frequencies of the training set, one added to each count | `logistic` |

    `ridge` has its penalty chosen by leave-one-out and Gaussian noise of the size of the leave-one-out error;
    `poisson` and `logistic` are regressions with a weak penalty (0.001 a mean squared coefficient, and 1 a summed
    one). Inputs are standardized, images taken as rows of pixels. Dense labels [N, H, W] have the constant alone.

    Args:
        split: A training and a test set, `Dataset.split()` or any pair of data sets.
        max_rows: The second model is fitted to at most so many training rows, chosen at random.
        seed: Chooses these rows.

    Returns:
        {model: scores}, as of `score`, with one chain.

    Raises:
        ValueError: If the two sets do not have the same task and shapes, or `max_rows` is less than 2.
    """
    predictions = predict(split, max_rows=max_rows, seed=seed)
    return {name: score(prediction, split[1].y) for name, prediction in predictions.items()}


def predict(split: Split, *, max_rows: int = 10_000, seed: int = 0) -> dict[str, Prediction]:
    """The baselines' predictions for the test set, to score or plot as any other.

    Args:
        split: As for `baselines`.
        max_rows: As for `baselines`.
        seed: As for `baselines`.

    Returns:
        {model: prediction}.

    Raises:
        ValueError: As `baselines`.
    """
    train, test = split
    if train.task != test.task or train.y.shape[1:] != test.y.shape[1:] or train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(f"the training and the test set must be alike, given {train!r} and {test!r}")
    if max_rows < 2:
        raise ValueError(f"max_rows must be at least 2, given {max_rows}")
    return {"regression": _regression, "counts": _counts, "classification": _classification}[train.task](
        train, test, max_rows, seed
    )


def _regression(train: Dataset, test: Dataset, max_rows: int, seed: int) -> dict[str, Prediction]:
    y = _table(train.y)
    constant = _gaussian(np.broadcast_to(y.mean(0), (len(test), y.shape[1])), y.std(0), train.y)
    x, y = _sample(train, y, max_rows, seed)
    center, scale = y.mean(0), np.where(y.std(0) > 0.0, y.std(0), 1.0)
    ridge = RidgeCV(alphas=np.logspace(-4, 5, 37), alpha_per_target=y.shape[1] > 1)
    model = make_pipeline(StandardScaler(), ridge).fit(x, (y - center) / scale)
    loc = model.predict(_rows(test.x)).reshape(len(test), -1) * scale + center
    noise = np.sqrt(-np.atleast_1d(ridge.best_score_)) * scale  # leave-one-out, so overfitting is paid for
    return {"constant": constant, "ridge": _gaussian(loc, noise, train.y)}


def _gaussian(loc: np.ndarray, scale: np.ndarray, like: Tensor) -> Prediction:
    """Gaussians of the targets' shape."""
    floor = np.finfo(np.float32).tiny + 1e-6 * np.abs(loc).max(0)  # constant targets leave no spread
    parameters = {"loc": loc, "scale": np.broadcast_to(np.maximum(scale, floor), loc.shape)}
    return _prediction({name: _like(values, like) for name, values in parameters.items()}, dist.Normal, "regression")


def _counts(train: Dataset, test: Dataset, max_rows: int, seed: int) -> dict[str, Prediction]:
    y = _table(train.y)
    constant = np.broadcast_to(np.maximum(y.mean(0), 1e-6), (len(test), y.shape[1]))
    x, y = _sample(train, y, max_rows, seed)
    rates = []
    for counts in y.T:
        model = make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-3, max_iter=1000))
        rates.append(_fit(model, x, counts).predict(_rows(test.x)))
    rate = np.maximum(np.stack(rates, -1), 1e-6)
    return {
        name: _prediction({"rate": _like(values, train.y)}, dist.Poisson, "counts")
        for name, values in (("constant", constant), ("poisson", rate))
    }


def _classification(train: Dataset, test: Dataset, max_rows: int, seed: int) -> dict[str, Prediction]:
    if train.y.is_floating_point() or (train.y.ndim == 2):  # several yes/no targets
        return _yes_no(train, test, max_rows, seed)
    labels = to_numpy(train.y)
    classes = max(train.num_classes or 0, test.num_classes or 0, int(max(train.y.max(), test.y.max())) + 1, 2)
    frequencies = np.bincount(labels.reshape(-1), minlength=classes) + 1.0
    shape = (*test.y.shape, classes)
    result = {"constant": _categorical(np.broadcast_to(frequencies / frequencies.sum(), shape))}
    if labels.ndim == 1 and len(np.unique(labels)) > 1:
        x, labels = _sample(train, labels, max_rows, seed)
        model = _fit(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), x, labels)
        # A class without a training row in the sample keeps a little probability: else its log likelihood is infinite.
        probs = np.full(shape, 1.0 / (len(labels) + classes) / classes)
        probs[:, model.classes_] += model.predict_proba(_rows(test.x))
        result["logistic"] = _categorical(probs / probs.sum(-1, keepdims=True))
    return result


def _categorical(probs: np.ndarray) -> Prediction:
    logits = torch.as_tensor(np.log(probs), dtype=torch.get_default_dtype())
    return _prediction({"logits": logits}, dist.Categorical, "classification")


def _yes_no(train: Dataset, test: Dataset, max_rows: int, seed: int) -> dict[str, Prediction]:
    y = _table(train.y)
    constant = np.broadcast_to((y.sum(0) + 1.0) / (len(y) + 2.0), (len(test), y.shape[1]))
    x, y = _sample(train, y, max_rows, seed)
    columns: list[np.ndarray] = []
    for labels in y.T:
        if len(np.unique(labels)) == 1:
            columns.append(constant.T[len(columns)])
            continue
        model = _fit(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), x, labels)
        columns.append(model.predict_proba(_rows(test.x)).T[1])
    probs = np.clip(np.stack(columns, -1), 1e-6, 1.0 - 1e-6)
    return {
        name: _prediction({"logits": torch.logit(_like(values, train.y))}, dist.Bernoulli, "classification")
        for name, values in (("constant", constant), ("logistic", probs))
    }


def _fit(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        # Separable classes have no optimum; where the solver stops is as good a baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def _sample(train: Dataset, y: np.ndarray, max_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = _rows(train.x)
    if len(x) <= max_rows:
        return x, y
    rows = np.random.default_rng(seed).choice(len(x), max_rows, replace=False)
    return x[rows], y[rows]


def _rows(x: Tensor) -> np.ndarray:
    return to_numpy(x.flatten(1) if x.ndim > 1 else x[:, None]).astype(np.float64)


def _table(y: Tensor) -> np.ndarray:
    return to_numpy(y).astype(np.float64).reshape(len(y), -1)


def _like(values: np.ndarray, y: Tensor) -> Tensor:
    """[N, C] in the shape and dtype of targets [N] or [N, C]."""
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    tensor = torch.as_tensor(np.ascontiguousarray(values), dtype=dtype)
    return tensor[:, 0] if y.ndim == 1 else tensor


def _prediction(parameters: dict[str, Tensor], family: type, task: str) -> Prediction:
    """A prediction without uncertainty about its parameters: all draws agree."""
    draws = _DRAWS if task == "counts" else 1
    return Prediction({name: value.expand(1, draws, *value.shape) for name, value in parameters.items()}, family, task)

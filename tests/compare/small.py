"""Small comparisons that tests share."""

import numpy as np

from bnnzoo import guides
from bnnzoo.compare import Method, compare
from bnnzoo.data import Dataset

SETTINGS = {
    "splits": 2, "seeds": 2, "folds": 2, "hidden": (4,), "steps": 6, "batch_size": 16, "draws": 8, "cv_draws": 5,
}  # fmt: skip


def line(rows=41, name="line"):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, 2))
    return Dataset(x.astype(np.float32), (3 * x[:, 0] + rng.normal(size=rows)).astype(np.float32), name=name)


def classes(rows=60, name="classes"):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(rows, 2)).astype(np.float32)
    return Dataset(x, (x[:, 0] + 0.3 * rng.normal(size=rows) > 0).astype(np.int64), name=name)


def point(name="point", **settings):
    settings = {"grid": {"weight_decay": (1e-1, 1e-4)}, "noise": 1.0, "single": True, **settings}
    return Method(name, guides.Map, **settings)


def dropout(name="drop", **settings):
    settings = {"grid": {"rate": (0.5, 0.05), "weight_decay": (1e-4,)}, "noise": 1.0, **settings}
    return Method(name, guides.Dropout, **settings)


def small(data=None, methods=None, **settings):
    settings = {**SETTINGS, **settings}
    settings.setdefault("progress", False)
    return compare(line() if data is None else data, [point(), dropout()] if methods is None else methods, **settings)


def numbers(results):
    """All that must be the same wherever and however often it was computed."""
    return results.drop_vars("seconds")

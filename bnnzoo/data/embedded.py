"""Data sets that come with scikit-learn: always there."""

from __future__ import annotations

import numpy as np

from bnnzoo.data.dataset import Dataset

DIABETES_FEATURES = (
    "age",
    "sex",
    "bmi",
    "blood_pressure",
    "total_cholesterol",
    "ldl",
    "hdl",
    "cholesterol_ratio",
    "log_triglycerides",
    "glucose",
)


def diabetes() -> Dataset:
    """Return the diabetes data in own units: ``x`` [442, 10], ``y`` [442] a disease progression score."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return Dataset(x, y, name="diabetes", task="regression", feature_names=DIABETES_FEATURES, target_name="progression")


def digits() -> Dataset:
    """Return the small handwritten digits: ``x`` [1797, 1, 8, 8] in [0, 1], ``y`` [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Dataset(
        (bunch.images / 16.0)[:, None].astype(np.float32),
        bunch.target,
        name="digits",
        task="classification",
        target_name="digit",
        class_names=tuple("0123456789"),
    )

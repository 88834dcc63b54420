"""Small generated data sets whose truth is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnnzoo.data.dataset import Dataset
from bnnzoo.data.partition import sample_generator
from bnnzoo.data.scenes import shapes as shapes


def cubic(num_samples: int = 20, noise: float = 3.0, seed: int = 0) -> Dataset:
    """Return y = x³ + N(0, noise²) with x uniform on [-4, 4]: the toy regression of the MNF paper.

    Look at the prediction on [-6, 6]: beyond the data its uncertainty should grow.

    Args:
        num_samples: The number of rows N.
        noise: Standard deviation of the noise.
        seed: Fixes the draw.

    Returns:
        A regression data set, ``x`` [N, 1] and ``y`` [N].
    """
    rng = sample_generator(num_samples, seed)
    x = rng.uniform(-4.0, 4.0, num_samples)
    y = x**3 + noise * rng.standard_normal(num_samples)
    return _regression(x, y, "cubic", "y = x^3 + N(0, 9), 20 points on [-4, 4]")


def gap(num_samples: int = 200, seed: int = 0) -> Dataset:
    """Return a sine with noise that depends on x, and no data in the middle.

    x is uniform on [-2, -0.7] and [0.7, 2], with half of the rows (rounded) on the left; y is normal with mean
    :func:`gap_mean` and standard deviation :func:`gap_scale`. A good fit finds both, and is unsure in the gap.

    Args:
        num_samples: The number of rows N.
        seed: Fixes the draw.

    Returns:
        A regression data set, ``x`` [N, 1] and ``y`` [N].
    """
    rng = sample_generator(num_samples, seed)
    side = np.where(np.arange(num_samples) < num_samples // 2, -1.0, 1.0)
    x = side * rng.uniform(0.7, 2.0, num_samples)
    points = torch.from_numpy(x)
    y = gap_mean(points).numpy() + gap_scale(points).numpy() * rng.standard_normal(num_samples)
    return _regression(x, y, "gap", "sine with noise that grows with x, and no data on [-0.7, 0.7]")


def gap_mean(x: Tensor) -> Tensor:
    """Return the true mean sin(3x) of :func:`gap`, elementwise."""
    return torch.sin(3.0 * x)


def gap_scale(x: Tensor) -> Tensor:
    """Return the true noise scale 0.05 + 0.1 (x + 2) / 2 of :func:`gap`, elementwise: 0.05 at -2, 0.25 at 2."""
    return 0.05 + 0.05 * (x + 2.0)


def moons(num_samples: int = 200, noise: float = 0.2, seed: int = 0) -> Dataset:
    """Return two interleaved half circles of radius 1, one for each class.

    Args:
        num_samples: The number of rows N; class 0 has half of them, rounded up.
        noise: Standard deviation of the noise on both coordinates.
        seed: Fixes the draw.

    Returns:
        A classification data set, ``x`` [N, 2] and ``y`` [N] (0 the upper moon, 1 the lower one).
    """
    rng = sample_generator(num_samples, seed)
    y = np.arange(num_samples) % 2
    angle = rng.uniform(0.0, np.pi, num_samples)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    x = np.where(y[:, None] == 0, upper, lower) + noise * rng.standard_normal((num_samples, 2))
    return Dataset(
        x,
        y,
        name="moons",
        task="classification",
        feature_names=("x1", "x2"),
        target_name="moon",
        class_names=("upper", "lower"),
        description="two interleaved half circles",
    )


def counts(num_samples: int = 200, seed: int = 0) -> Dataset:
    """Return counts that follow a Poisson distribution with rate :func:`counts_rate`, x uniform on [-2, 2].

    Args:
        num_samples: The number of rows N.
        seed: Fixes the draw.

    Returns:
        A data set of counts, ``x`` [N, 1] and ``y`` [N].
    """
    rng = sample_generator(num_samples, seed)
    x = rng.uniform(-2.0, 2.0, num_samples)
    y = rng.poisson(counts_rate(torch.from_numpy(x)).numpy()).astype(np.float64)
    return Dataset(
        x[:, None],
        y,
        name="counts",
        task="counts",
        feature_names=("x",),
        target_name="y",
        description="Poisson counts with rate exp(1 + sin 2x)",
    )


def counts_rate(x: Tensor) -> Tensor:
    """Return the true rate exp(1 + sin 2x) of :func:`counts`, elementwise: between 1 and 7.4."""
    return torch.exp(1.0 + torch.sin(2.0 * x))


def _regression(x: np.ndarray, y: np.ndarray, name: str, description: str) -> Dataset:
    return Dataset(
        x[:, None],
        y,
        name=name,
        task="regression",
        feature_names=("x",),
        target_name="y",
        description=description,
    )

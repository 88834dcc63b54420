"""Generated images with a label for every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnnzoo.data.dataset import Dataset
from bnnzoo.data.partition import sample_generator

Array = NDArray[np.float64]

CLASSES = ("background", "disk", "rectangle", "triangle")
"""Names of the labels 0, 1, 2, 3 of :func:`shapes`."""

_MOST = 4  # shapes in an image


@dataclass(frozen=True)
class Shape:
    """One shape of an image; lengths and places in pixels.

    Attributes:
        label: Its class, 1 to 3: see :data:`CLASSES`.
        center: Row and column, [2]; a pixel covers the unit square around its whole-numbered row and column.
        radius: Of a disk; of the circle around a triangle; half of a rectangle's longer side.
        aspect: Shorter by longer side of a rectangle, in (0, 1].
        angle: By how much it is turned, in radians: of the direction, from rows to columns, in which a triangle's first
            corner and a rectangle's longer side lie.
        color: Red, green and blue, in [0, 1], [3].
        blur: Width of the edge, over which its color becomes that of what lies behind.
    """

    label: int
    center: Array
    radius: float
    aspect: float
    angle: float
    color: Array
    blur: float

    def distance(self, rows: Array, columns: Array) -> Array:
        """How far points lie outside; negative inside, 0 on the edge.

        Beyond a corner it is the largest distance to a side's line, less than that to the corner.

        Args:
            rows: Of the points, any shape.
            columns: Of the same shape.
        """
        down, right = rows - self.center[0], columns - self.center[1]
        if CLASSES[self.label] == "disk":
            return np.hypot(down, right) - self.radius
        if CLASSES[self.label] == "rectangle":
            normals = self.angle + np.array([0.0, 0.5, 1.0, 1.5]) * math.pi
            reach = self.radius * np.array([1.0, self.aspect, 1.0, self.aspect])
        else:
            normals = self.angle + np.array([1.0, 3.0, 5.0]) * math.pi / 3.0
            reach = np.full(3, self.radius / 2.0)
        along = np.multiply.outer(np.cos(normals), down) + np.multiply.outer(np.sin(normals), right)
        return np.max(along - reach.reshape(-1, *(1,) * down.ndim), axis=0)


def shapes(num_samples: int = 500, size: int = 32, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Return pictures of one to four shapes on a shaded ground, with the class of every pixel.

    Disks, rectangles and triangles of random size, place, angle and color lie over each other, the later ones in front.
    What is uncertain: edges are blurred by up to three pixels (a pixel's label is that of its center), colors may be
    near to those behind them and say nothing of the class, small or half hidden shapes may be of any class, and every
    pixel is noisy.

    Args:
        num_samples: The number of images N.
        size: Height and width in pixels, at least 8.
        noise: Standard deviation of the pixels' noise, at least 0; the brightest pixel is 1.
        seed: Fixes the draw.

    Returns:
        A classification data set, ``x`` [N, 3, size, size] in [0, 1] and ``y`` [N, size, size] (see :data:`CLASSES`).

    Raises:
        ValueError: If an argument is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 8:
        raise ValueError(f"size must be an integer of at least 8 pixels, but it is {size!r}")
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise must be a finite number of at least 0, but it is {noise!r}")
    rng = sample_generator(num_samples, seed)
    images, labels = zip(*(_picture(rng, size, noise) for _ in range(num_samples)), strict=True)
    return Dataset(
        np.stack(images),
        np.stack(labels),
        name="shapes",
        task="classification",
        target_name="shape",
        class_names=CLASSES,
        description="disks, rectangles and triangles over each other, with a label for every pixel",
    )


def scene(rng: np.random.Generator, size: int) -> list[Shape]:
    """Draw the shapes of one image, the one in front last.

    Args:
        rng: Where the numbers come from.
        size: Height and width of the image in pixels.
    """
    return [_shape(rng, size) for _ in range(rng.integers(1, _MOST + 1))]


def render(chosen: list[Shape], ground: Array) -> tuple[Array, NDArray[np.int64]]:
    """Put shapes on a ground.

    Args:
        chosen: The shapes, the one in front last.
        ground: The image without them, [3, H, W].

    Returns:
        The image, [3, H, W], and the classes of the pixels' centers, [H, W].
    """
    places = np.indices(ground.shape[1:]).astype(np.float64)
    image, labels = ground, np.zeros(ground.shape[1:], dtype=np.int64)
    for shape in chosen:
        distance = shape.distance(places[0], places[1])
        cover = np.clip(0.5 - distance / shape.blur, 0.0, 1.0)
        image = image + cover * (shape.color[:, None, None] - image)
        labels[distance <= 0.0] = shape.label
    return image, labels


def _shape(rng: np.random.Generator, size: int) -> Shape:
    label = int(rng.integers(1, len(CLASSES)))
    stretch = 1.4 if CLASSES[label] == "triangle" else 1.0  # it fills less of the circle around it
    return Shape(
        label=label,
        center=rng.uniform(0.1 * size, 0.9 * size, 2),
        radius=rng.uniform(0.09, 0.27) * size * stretch,
        aspect=rng.uniform(0.5, 1.0),
        angle=rng.uniform(0.0, 2.0 * math.pi),
        color=rng.uniform(0.0, 1.0, 3),
        blur=rng.uniform(0.5, 3.0),
    )


def _picture(rng: np.random.Generator, size: int, noise: float) -> tuple[Array, NDArray[np.int64]]:
    place = (np.indices((size, size)) / (size - 1) - 0.5)[:, None]
    slope = rng.uniform(-0.2, 0.2, (2, 3, 1, 1))
    ground = rng.uniform(0.2, 0.8, (3, 1, 1)) + (slope * place).sum(0)
    image, labels = render(scene(rng, size), ground)
    return np.clip(image + noise * rng.standard_normal(image.shape), 0.0, 1.0), labels

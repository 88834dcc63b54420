"""The figure of a segmentation: where in an image the prediction is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from bnnzoo.evaluation.style import PALETTE
from bnnzoo.prediction import Prediction

_COLORS = ("#DDDDDD", *PALETTE)
_COLUMNS = ("image", "truth", "predicted class", "entropy", "mutual information")
_MAP = "magma"  # dark is sure; its lightness rises evenly, in gray print too


def plot_segmentation(
    prediction: Prediction,
    x: Any,
    y: Any,
    *,
    rows: Sequence[int] = (0, 1, 2, 3),
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Images with a class for every pixel, and maps of how unsure the prediction is.

    A row an image: the image, its true classes, the predicted ones, the entropy of the predictive distribution of each
    pixel's class (total uncertainty, from 0 to that of equal probabilities), and the mutual information of class and
    weights, its epistemic part (from 0 to the largest of the figure).

    Args:
        prediction: Of labels [N, H, W]: what `Posterior.predict(x)` returned.
        x: The images, [N, C, H, W] with 1 (gray) or 3 (RGB) channels in [0, 1].
        y: The true labels, [N, H, W].
        rows: Which images to show, at least one.
        class_names: Names of the classes, one each; default 0, 1, ...

    Returns:
        The figure, 1.6 inches high for each image.

    Raises:
        ValueError: The prediction has no class for every pixel, shapes differ, there is no image or no such one to
            show, or not a name for each class.
    """
    _check(prediction, rows)
    images, labels = _array(x), _array(y)
    count, *size = prediction.shape[2:]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[:1] + images.shape[2:] != (count, *size):
        raise ValueError(f"x must be [{count}, 1 or 3, {size[0]}, {size[1]}], given {list(images.shape)}")
    if labels.shape != (count, *size):
        raise ValueError(f"y must be [{count}, {size[0]}, {size[1]}], given {list(labels.shape)}")
    chosen = torch.as_tensor(list(rows))
    probs = _array(prediction.probs.cpu()[chosen])
    classes = probs.shape[-1]
    names = [str(label) for label in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(f"class_names must have {classes} names, given {len(names)}")

    colors = _colors(classes)
    entropy, information = (
        _array(values.cpu()[chosen]) for values in (prediction.entropy, prediction.mutual_information)
    )
    figure = Figure(figsize=(9.2, 1.6 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    as_classes: dict[str, Any] = {"cmap": colors, "vmin": -0.5, "vmax": classes - 0.5, "interpolation": "nearest"}
    maps: list[Any] = []
    for line, (row, own) in enumerate(zip(axes, rows, strict=True)):
        picture = np.clip(np.moveaxis(images[own], 0, -1), 0.0, 1.0)
        row[0].imshow(picture.repeat(3, -1) if picture.shape[-1] == 1 else picture, interpolation="nearest")
        row[1].imshow(labels[own], **as_classes)
        row[2].imshow(probs[line].argmax(-1), **as_classes)
        maps = [
            ax.imshow(values[line], cmap=_MAP, vmin=0.0, vmax=top, interpolation="nearest")
            for ax, values, top in (
                (row[3], entropy, np.log(classes)),
                (row[4], information, max(float(information.max()), 1e-6)),
            )
        ]
        _bare(row)
        row[0].set_ylabel(f"image {own}", fontsize=9)
    for ax, title in zip(axes[0], _COLUMNS, strict=True):
        ax.set_title(title, fontsize=10)
    for column, (shown, name) in enumerate(zip(maps, ("entropy (nats)", "mutual information (nats)"), strict=True), 3):
        bar = figure.colorbar(shown, ax=axes[:, column].tolist(), location="bottom", shrink=0.9, aspect=14, pad=0.02)
        bar.set_label(name, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    patches = [Patch(facecolor=colors(label), edgecolor="#767676", label=name) for label, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower left", ncols=min(classes, 4), fontsize=9, frameon=False)
    return figure


def _check(prediction: Prediction, rows: Sequence[int]) -> None:
    shape = prediction.shape
    if prediction.task != "classification" or len(shape) != 5:
        raise ValueError(f"plot_segmentation needs classes of pixels, [N, H, W]; this is {prediction!r}")
    if not len(rows):
        raise ValueError("rows must name at least one image")
    for row in rows:
        if not 0 <= row < shape[2]:
            raise ValueError(f"rows must be 0 to {shape[2] - 1}, given {row}")


def _colors(classes: int) -> Colormap:
    if classes <= len(_COLORS):
        return ListedColormap(_COLORS[:classes])
    return matplotlib.colormaps["viridis"].resampled(classes)


def _bare(row: Sequence[Axes]) -> None:
    for ax in row:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_color("#BBBBBB")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

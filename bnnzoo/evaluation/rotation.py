"""Rotated images: what a network says as an image turns away from what it was trained on (MNF paper, Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo.evaluation.scores import entropy
from bnnzoo.evaluation.style import MARKERS, PALETTE, STYLES, styled
from bnnzoo.prediction import Prediction

# Okabe and Ito's eight and two more; the names in the bars tell classes apart without color.
_COLORS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#882255",
)  # fmt: skip
_LIGHT = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#999999")
_NAMED = 0.12  # bars lower than this have no room for a name


def rotated(image: Any, angles: Iterable[float]) -> Tensor:
    """An image turned about its center by each angle, at its own size.

    Values between pixels are interpolated linearly, in float64; what turns in from outside is 0, corners that turn out
    are cut off. Multiples of 90° only move the pixels of a square image (up to
    rounding).

    Args:
        image: [..., H, W], such as [C, H, W]; floating point.
        angles: In degrees, counterclockwise.

    Returns:
        [angle, ..., H, W], of the image's dtype.

    Raises:
        ValueError: If the image has fewer than two dimensions or is not floating point, or there is no angle, or one
            that is not finite.
    """
    pixels = torch.as_tensor(image)
    if pixels.dim() < 2 or not pixels.is_floating_point():
        raise ValueError(
            f"image must be floating point of shape [..., H, W], given {pixels.dtype} of shape {list(pixels.shape)}"
        )
    turns = torch.as_tensor(list(angles), dtype=torch.float64, device=pixels.device)
    if turns.dim() != 1 or len(turns) == 0 or not torch.isfinite(turns).all():
        raise ValueError(f"angles must be one or more finite numbers of degrees, given {turns.tolist()}")
    height, width = pixels.shape[-2:]
    cos, sin = turns.deg2rad().cos(), turns.deg2rad().sin()
    # The grid says where an output pixel comes from, y downward, in units of half the width and half the height.
    zero = torch.zeros_like(cos)
    across = torch.stack([cos, -sin * height / width, zero], -1)
    down = torch.stack([sin * width / height, cos, zero], -1)
    planes = pixels.detach().double().reshape(1, -1, height, width).expand(len(turns), -1, -1, -1)
    grid = nn.functional.affine_grid(torch.stack([across, down], 1), list(planes.shape), align_corners=False)
    turned = nn.functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.reshape(len(turns), *pixels.shape).to(pixels.dtype)


def plot_rotated(
    predictions: Prediction | Mapping[str, Prediction],
    images: Any,
    angles: Sequence[float],
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Class probabilities of an image as it turns (MNF paper, Figure 1).

    On top the images; then for each prediction stacked bars of its class probabilities, all chains pooled, with the
    classes' names; at the bottom the entropies of all predictions, up to the log K nats of K equally probable classes.

        images = rotated(image, angles)
        plot_rotated({"MNF": posterior.predict(images)}, images, angles)

    Args:
        predictions: Of the images; one, or several by name.
        images: What was predicted, [angle, C, H, W] or [angle, H, W], values from 0 (black) to 1; of one channel they
            are shown dark on white.
        angles: In degrees, one an image; they are the labels below the bars.
        class_names: Short names of the classes; by default their numbers.

    Returns:
        A figure 9 inches wide.

    Raises:
        ValueError: If there is no prediction, one is not of single class labels, or numbers of images, angles,
            predictions or names differ.
    """
    named = {"": predictions} if isinstance(predictions, Prediction) else dict(predictions)
    if not named:
        raise ValueError("there is no prediction to plot")
    shown = torch.as_tensor(images).detach().cpu().float()
    if shown.dim() not in (3, 4) or len(shown) != len(angles):
        raise ValueError(
            f"images must be [{len(angles)}, C, H, W] or [{len(angles)}, H, W], one for each angle, "
            f"given {list(shown.shape)}"
        )
    probs = {name: _probabilities(name, prediction, len(angles)) for name, prediction in named.items()}
    count = {values.shape[1] for values in probs.values()}
    if len(count) > 1:
        raise ValueError(f"predictions have different numbers of classes: {sorted(count)}")
    (classes,) = count
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names for {classes} classes")
    names = [str(label) for label in (range(classes) if class_names is None else class_names)]
    heights = [0.62, *[1.8] * len(probs), 1.5]
    figure = Figure(figsize=(9.0, sum(heights) + 0.9), layout="constrained")
    top, *middle, bottom = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_images(top, shown)
    for ax, (name, values) in zip(middle, probs.items(), strict=True):
        _draw_bars(styled(ax), values, names)
        ax.set_title(name, fontsize=10, loc="left")
    _draw_entropies(styled(bottom), {name: entropy(values) for name, values in probs.items()}, classes)
    bottom.set_xlim(-0.6, len(angles) - 0.4)
    bottom.set_xticks(range(len(angles)), [f"{angle:g}°" for angle in angles])
    bottom.set_xlabel("rotation, counterclockwise")
    return figure


def _probabilities(name: str, prediction: Prediction, images: int) -> np.ndarray:
    what = f"prediction {name!r}" if name else "the prediction"
    if prediction.task != "classification" or len(prediction.shape) > 3:
        raise ValueError(f"{what} must be of one class label an image, not {prediction!r}")
    if len(prediction) != images:
        raise ValueError(f"{what} is of {len(prediction)} images, and there are {images} angles")
    return prediction.probs.detach().cpu().double().numpy()


def _draw_images(ax: Axes, images: Tensor) -> None:
    for place, image in enumerate(images):
        gray = image if image.dim() == 2 else image[0] if len(image) == 1 else None
        pixels = image.movedim(0, -1).numpy().clip(0.0, 1.0) if gray is None else 1.0 - gray.numpy()
        extent = (place - 0.42, place + 0.42, 0.0, 1.0)
        ax.imshow(pixels, cmap="gray", extent=extent, aspect="auto", vmin=0.0, vmax=1.0)
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([])
    ax.tick_params(bottom=False)
    ax.spines[:].set_visible(False)


def _draw_bars(ax: Axes, probs: np.ndarray, names: Sequence[str]) -> None:
    bottom = np.zeros(len(probs))
    for label, name in enumerate(names):
        color, height = _COLORS[label % len(_COLORS)], probs[:, label]
        ax.bar(range(len(probs)), height, 0.85, bottom, color=color, edgecolor="white", linewidth=0.5)
        for place in np.flatnonzero(height > _NAMED):
            middle = bottom[place] + height[place] / 2
            ink = "black" if color in _LIGHT else "white"
            ax.text(float(place), middle, name, color=ink, ha="center", va="center", fontsize=9)
        bottom = bottom + height
    ax.grid(False)
    ax.set_ylim(0.0, 1.0)
    ax.set_ylabel("class probability", fontsize=9)


def _draw_entropies(ax: Axes, entropies: Mapping[str, np.ndarray], classes: int) -> None:
    most = math.log(classes)
    ax.axhline(most, color="black", lw=0.8, ls=":")
    ax.annotate(
        f"log {classes}",
        (1, most),
        (-2, -3),
        ("axes fraction", "data"),
        "offset points",
        fontsize=8,
        ha="right",
        va="top",
    )
    for number, (name, values) in enumerate(entropies.items()):
        ax.plot(
            values,
            color=PALETTE[number % len(PALETTE)],
            ls=STYLES[number % len(STYLES)],
            marker=MARKERS[number % len(MARKERS)],
            ms=4,
            lw=1.3,
            label=name,
        )
    ax.set_ylim(0.0, 1.08 * most)
    ax.set_ylabel("entropy (nats)", fontsize=9)
    if any(entropies):
        ax.legend(
            fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 0.97), ncols=min(4, len(entropies))
        )

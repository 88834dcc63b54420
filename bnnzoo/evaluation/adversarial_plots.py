"""Figures of adversarial attacks: scores as an attack grows, and what the attacked inputs look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bnnzoo.evaluation.adversarial import Attack, FastGradientSign
from bnnzoo.evaluation.attack_curves import chain_mean
from bnnzoo.evaluation.style import MARKERS, PALETTE, STYLES, styled
from bnnzoo.posterior import Posterior

_PANELS = (("accuracy", "target_accuracy", "entropy"), ("rmse", "target_rmse", "width_95"))
_UNITS = {"1": "", "nats": " (nats)", "target": " (unit of the target)"}


def plot_attack(
    curves: xr.Dataset | Mapping[str, xr.Dataset],
    variables: Sequence[str] | None = None,
    *,
    title: str = "",
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Scores against the size of an attack, one panel a score: Figures 6 and 7 of Li & Gal (2017), left.

    Lines are means over chains, bands one standard error to either side (`chain_mean`).

    Args:
        curves: What `attack_curve` returned; or several, by name, of the same kind of attack.
        variables: Which scores; default accuracy and entropy, or RMSE and the width of 95% intervals, and with a target
            its accuracy or RMSE between them.
        title: Of the figure.
        axes: Where to draw, as many as there are scores. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no curves, they are of different kinds of attack or lack a score, or `axes` are too
            few or many.
    """
    named = {"": curves} if isinstance(curves, xr.Dataset) else dict(curves)
    if not named:
        raise ValueError("curves must be what attack_curve returned, or several of them by name; given: none")
    first = next(iter(named.values()))
    (dim,) = (str(name) for name in first.dims if name != "chain")
    if variables is None:
        variables = next(names for names in _PANELS if names[0] in first)
        variables = [name for name in variables if name in first]
    for name, curve in named.items():
        missing = [each for each in (dim, *variables) if each not in curve.variables]
        if missing:
            raise ValueError(f"the curve {name!r} has no {', '.join(missing)}: it has {', '.join(map(str, curve))}")
    if axes is None:
        figure = Figure(figsize=(0.4 + 4.1 * len(variables), 3.6), layout="constrained")
        axes = list(figure.subplots(1, len(variables), squeeze=False)[0])
    if len(axes) != len(variables):
        raise ValueError(f"{len(variables)} scores need as many axes, not {len(axes)}: {', '.join(variables)}")
    for ax, variable in zip(axes, variables, strict=True):
        styled(ax)
        for number, (name, curve) in enumerate(named.items()):
            _draw(ax, chain_mean(curve), variable, dim, number, name)
        about = first[variable].attrs
        ax.set_xlabel(first[dim].attrs.get("long_name", dim))
        ax.set_ylabel(about.get("long_name", variable) + _UNITS.get(about.get("units", "1"), ""))
        if "accuracy" in variable:
            ax.set_ylim(-0.03, 1.03)
        else:
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    if any(named):
        axes[0].legend(fontsize=8, frameon=False)
    found = axes[0].get_figure(root=True)
    assert isinstance(found, Figure)
    if title:
        found.suptitle(title, fontsize=11)
    return found


def plot_adversarial_examples(
    posteriors: Posterior | Mapping[str, Posterior],
    image: Any,
    attack: Attack | None = None,
    *,
    label: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
    seed: int = 0,
    **predict: Any,
) -> Figure:
    """What an image looks like as an attack on each posterior grows, with the prediction below each: strips.

    Figure 6 of Li & Gal (2017), below the axis. All chains of a posterior are attacked as one predictive; for one of
    them give `posterior.chain(index)`. The prediction below an image is by draws of its own, not the attack's.

    Args:
        posteriors: What is attacked; or several, by name, one row each.
        image: One image in its own units, [H, W], [1, H, W] or [3, H, W] (RGB in [0, 1]), as the network takes it.
        attack: The attack; default `FastGradientSign()` at 0, 0.1, ... 0.5. Its path makes the columns.
        label: The true class, for attacks away from it.
        class_names: Names of the classes; default their numbers.
        title: Of the figure.
        seed: Fixes the draws.
        **predict: Of `Posterior.predict`: `num_samples`, `method`, and what belongs to moments.

    Returns:
        The figure. Gray values span the range of the image as it came (or the attack's bounds): darker or lighter ones
        are shown as its ends.

    Raises:
        ValueError: If the image's shape is another, the posterior is none of classes, or as `Attack.path`.
    """
    named = {"": posteriors} if isinstance(posteriors, Posterior) else dict(posteriors)
    if not named:
        raise ValueError("posteriors must be one, or several by name; given: none")
    attack = FastGradientSign(epsilons=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)) if attack is None else attack
    image = torch.as_tensor(image)
    if image.dim() not in (2, 3) or (image.dim() == 3 and len(image) not in (1, 3)):
        raise ValueError(f"image must be [H, W], [1, H, W] or [3, H, W], not {list(image.shape)}")
    y = None if label is None else torch.as_tensor(label).reshape(1)
    strips = {}
    for name, posterior in named.items():
        path = attack.path(posterior, image[None], y, pooled=True, seed=seed, **predict)
        strips[name] = [(value, moved[0, 0], _classes(posterior, moved[0], seed + 1, predict)) for value, moved in path]
    low, high = (float(torch.as_tensor(end).amin()) for end in attack.bounds or (image.min(), image.max()))
    columns = len(next(iter(strips.values())))
    figure = Figure(figsize=(1.1 * columns + 0.7, 1.42 * len(strips) + 0.4), layout="constrained")
    for row, (name, strip) in zip(figure.subplots(len(strips), columns, squeeze=False), strips.items(), strict=True):
        for ax, (value, moved, probs) in zip(row, strip, strict=True):
            best = int(probs.argmax())
            ax.imshow(_pixels(moved, low, high), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(f"{best if class_names is None else class_names[best]}: {float(probs[best]):.0%}", fontsize=9)
            if row[0].get_subplotspec().is_first_row():
                ax.set_title(f"{attack.symbol} {value:g}", fontsize=9)
        row[0].set_ylabel(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw(ax: Axes, curve: xr.Dataset, variable: str, dim: str, number: int, name: str) -> None:
    color = PALETTE[number % len(PALETTE)]
    at, mean = curve[dim].values, curve[variable].values
    error = np.nan_to_num(curve[f"{variable}_se"].values) if f"{variable}_se" in curve else np.zeros_like(mean)
    ax.fill_between(at, mean - error, mean + error, color=color, alpha=0.2, lw=0)
    marks: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "ms": 4, "markevery": max(1, len(at) // 10)}
    ax.plot(at, mean, color=color, ls=STYLES[number % len(STYLES)], lw=1.4, label=name or None, **marks)


def _classes(posterior: Posterior, x: Tensor, seed: int, predict: dict[str, Any]) -> Tensor:
    """Class probabilities of one input, [K]."""
    prediction = posterior.predict(x, seed=seed, **predict)
    if prediction.task != "classification" or len(prediction.shape) != 3:
        raise ValueError("strips of examples are for one class label an image")
    return prediction.probs[0]


def _pixels(image: Tensor, low: float, high: float) -> np.ndarray:
    """[H, W] or [H, W, 3] in [0, 1]."""
    image = ((image - low) / (high - low or 1.0)).clamp(0.0, 1.0).cpu()
    if image.dim() == 2:
        return image.numpy()
    return image[0].numpy() if len(image) == 1 else image.movedim(0, -1).numpy()

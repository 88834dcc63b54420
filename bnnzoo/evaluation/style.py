"""The look of every figure: colors, axes, and how a figure is found again from its axes.

Colors are Okabe and Ito's, told apart by color-blind readers and in gray print, where markers and line styles differ
too. Figures are `matplotlib.figure.Figure` objects made without pyplot: no global state, no display needed.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GRAY = "#0072B2", "#D55E00", "#767676"
PALETTE = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", VERMILION, "#000000")
"""Colors of the members of a group, in this order."""

MARKERS = ("o", "s", "^", "D", "v", "X", "P")
"""Markers beside the colors of `PALETTE`: in gray print they tell the members apart."""

STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
"""Line styles beside the colors of `PALETTE`."""


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (4.5, 4.2)) -> Axes:
    """The axes given, or those of a new figure, with light grid lines and no box.

    Args:
        ax: Where to draw; None makes a figure.
        size: Width and height of a new figure in inches.
    """
    ax = Figure(figsize=size, layout="constrained").subplots() if ax is None else ax
    return styled(ax)


def styled(ax: Axes) -> Axes:
    """Axes with light grid lines behind the data and without a box; returns them.

    Args:
        ax: What to style.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)
    return ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes belong to.

    Args:
        ax: Any axes.
    """
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure

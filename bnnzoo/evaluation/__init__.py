"""Evaluation: scores, baselines, plots, and the export to ArviZ.

score, score_table, pointwise, pit       scores in the target's own units, with standard errors, and by datum
baselines                                a constant and a linear model, scored alike
plot_fit, plot_history, plot_predictions, plot_calibration
plot_band                                mean and bands of a toy regression along its input
moment_accuracy, plot_moment_accuracy    propagated means and variances against draws, layer by layer
to_arviz, pareto_k, save_netcdf          ArviZ 0.23 and 1.x
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnnzoo.evaluation.arviz_export import to_arviz
    from bnnzoo.evaluation.band_plots import plot_band
    from bnnzoo.evaluation.baseline_models import baselines
    from bnnzoo.evaluation.inference_data import pareto_k, save_netcdf
    from bnnzoo.evaluation.metrics import Score, pit, pointwise, score, score_table
    from bnnzoo.evaluation.moment_errors import (
        MomentReference,
        moment_accuracy,
        moment_reference,
        plot_moment_accuracy,
    )
    from bnnzoo.evaluation.plots import plot_calibration, plot_fit, plot_history, plot_predictions

__all__ = [
    "MomentReference",
    "Score",
    "baselines",
    "moment_accuracy",
    "moment_reference",
    "pareto_k",
    "pit",
    "plot_band",
    "plot_calibration",
    "plot_fit",
    "plot_history",
    "plot_moment_accuracy",
    "plot_predictions",
    "pointwise",
    "save_netcdf",
    "score",
    "score_table",
    "to_arviz",
]

_HOMES = {
    "arviz_export": ("to_arviz",),
    "band_plots": ("plot_band",),
    "baseline_models": ("baselines",),
    "inference_data": ("pareto_k", "save_netcdf"),
    "metrics": ("Score", "pit", "pointwise", "score", "score_table"),
    "moment_errors": ("MomentReference", "moment_accuracy", "moment_reference", "plot_moment_accuracy"),
    "plots": ("plot_calibration", "plot_fit", "plot_history", "plot_predictions"),
}


def __getattr__(name: str) -> Any:
    # Imported at first use: scikit-learn, xarray, scoringrules and matplotlib take longer to load than bnnzoo itself.
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

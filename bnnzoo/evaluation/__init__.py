"""Evaluation: scores, baselines, plots, and the export to ArviZ.

score, pointwise, pit                    scores in the target's own units, with standard errors, and by datum
scores                                   the single scores, functions of plain arrays
constant_uncertainty, optimum            bounds that an uncertainty lies between: constant, and the best for each point
normalized_scores, t_test                scores as shares of the way between them; whether a mean differs from a bound
baselines                                a constant and a linear model, scored alike
plot_fit, plot_history, plot_predictions, plot_calibration
plot_uncertainty_error, plot_pit         errors sorted by predicted uncertainty; histogram of where targets fall
plot_band                                mean and bands of a toy regression along its input
plot_segmentation                        images, their classes, and maps of the uncertainty of each pixel
moment_accuracy, plot_moment_accuracy    propagated means and variances against draws, layer by layer
rotated, plot_rotated                    an image as it turns, and what is said of it
psis, convergence, distance              a guide's k̂, R-hat of predictions, how far predictions are from a reference's
sbc, vsbc, sbc_test, plot_sbc            simulation-based calibration of a sampler, and of a guide
ood_scores, held_out_classes            how well an uncertainty tells what was never seen; hiding classes
attack_curve, plot_attack                scores as an adversarial attack grows (FastGradientSign, IteratedGradientSign)
input_gradient, plot_adversarial_examples
plot_entropy_cdf, plot_ood               entropies by method; inside beside outside
html_report                              all of it about one posterior, on one page
to_arviz, pareto_k, save_netcdf          ArviZ 0.23 and 1.x
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnnzoo.evaluation import scores
    from bnnzoo.evaluation.adversarial import Attack, FastGradientSign, IteratedGradientSign
    from bnnzoo.evaluation.adversarial_plots import plot_adversarial_examples, plot_attack
    from bnnzoo.evaluation.arviz_export import to_arviz
    from bnnzoo.evaluation.attack_curves import attack_curve, breaking_point, chain_mean
    from bnnzoo.evaluation.band_plots import plot_band
    from bnnzoo.evaluation.baseline_models import baselines
    from bnnzoo.evaluation.bounds import (
        ConstantUncertainty,
        constant_uncertainty,
        normalized_scores,
        optimum,
        point_prediction,
        t_test,
    )
    from bnnzoo.evaluation.diagnostics import convergence, distance, khat_threshold, psis
    from bnnzoo.evaluation.inference_data import pareto_k, save_netcdf
    from bnnzoo.evaluation.metrics import pit, pointwise, score
    from bnnzoo.evaluation.moment_errors import (
        MomentReference,
        moment_accuracy,
        moment_reference,
        plot_moment_accuracy,
    )
    from bnnzoo.evaluation.ood import held_out_classes, ood_scores, uncertainties
    from bnnzoo.evaluation.ood_plots import plot_entropy_cdf, plot_ood
    from bnnzoo.evaluation.page import html_report
    from bnnzoo.evaluation.plots import plot_calibration, plot_fit, plot_history, plot_predictions
    from bnnzoo.evaluation.predictive_gradient import input_gradient
    from bnnzoo.evaluation.rotation import plot_rotated, rotated
    from bnnzoo.evaluation.segmentation_plots import plot_segmentation
    from bnnzoo.evaluation.simulated_calibration import plot_sbc, sbc, sbc_test, vsbc
    from bnnzoo.evaluation.uncertainty_plots import plot_pit, plot_uncertainty_error

__all__ = [
    "Attack",
    "ConstantUncertainty",
    "FastGradientSign",
    "IteratedGradientSign",
    "MomentReference",
    "attack_curve",
    "baselines",
    "breaking_point",
    "chain_mean",
    "constant_uncertainty",
    "convergence",
    "distance",
    "held_out_classes",
    "html_report",
    "input_gradient",
    "khat_threshold",
    "moment_accuracy",
    "moment_reference",
    "normalized_scores",
    "ood_scores",
    "optimum",
    "pareto_k",
    "pit",
    "plot_adversarial_examples",
    "plot_attack",
    "plot_band",
    "plot_calibration",
    "plot_entropy_cdf",
    "plot_fit",
    "plot_history",
    "plot_moment_accuracy",
    "plot_ood",
    "plot_pit",
    "plot_predictions",
    "plot_rotated",
    "plot_sbc",
    "plot_segmentation",
    "plot_uncertainty_error",
    "point_prediction",
    "pointwise",
    "psis",
    "rotated",
    "save_netcdf",
    "sbc",
    "sbc_test",
    "score",
    "scores",
    "t_test",
    "to_arviz",
    "uncertainties",
    "vsbc",
]

_HOMES = {
    "adversarial": ("Attack", "FastGradientSign", "IteratedGradientSign"),
    "attack_curves": ("attack_curve", "breaking_point", "chain_mean"),
    "predictive_gradient": ("input_gradient",),
    "adversarial_plots": ("plot_adversarial_examples", "plot_attack"),
    "arviz_export": ("to_arviz",),
    "band_plots": ("plot_band",),
    "baseline_models": ("baselines",),
    "diagnostics": ("convergence", "distance", "khat_threshold", "psis"),
    "inference_data": ("pareto_k", "save_netcdf"),
    "bounds": (
        "ConstantUncertainty",
        "constant_uncertainty",
        "normalized_scores",
        "optimum",
        "point_prediction",
        "t_test",
    ),
    "metrics": ("pit", "pointwise", "score"),
    "moment_errors": ("MomentReference", "moment_accuracy", "moment_reference", "plot_moment_accuracy"),
    "scores": (),
    "page": ("html_report",),
    "plots": ("plot_calibration", "plot_fit", "plot_history", "plot_predictions"),
    "segmentation_plots": ("plot_segmentation",),
    "rotation": ("plot_rotated", "rotated"),
    "uncertainty_plots": ("plot_pit", "plot_uncertainty_error"),
    "simulated_calibration": ("plot_sbc", "sbc", "sbc_test", "vsbc"),
    "ood": ("held_out_classes", "ood_scores", "uncertainties"),
    "ood_plots": ("plot_entropy_cdf", "plot_ood"),
}


def __getattr__(name: str) -> Any:
    # Imported at first use: scikit-learn, xarray, scoringrules and matplotlib take longer to load than bnnzoo itself.
    if name in _HOMES:
        return import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

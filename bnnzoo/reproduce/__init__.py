"""Tables and figures of the four papers, each a named entry that puts our numbers beside theirs.

    bnnzoo reproduce list
    bnnzoo reproduce mnf/figure-6 --scale cpu

`entries()` has them all; a module of this package lists its own as `ENTRIES`, and `_MODULES` names the modules.
"""

from importlib import import_module

from bnnzoo.reproduce.entry import SCALES, Context, Entry, Result, Scale, Table, mean_and_error, plus_minus

__all__ = ["SCALES", "Context", "Entry", "Result", "Scale", "Table", "entries", "mean_and_error", "plus_minus"]

_MODULES: tuple[str, ...] = (
    "bb_alpha_adversarial",
    "bb_alpha_mnist",
    "bb_alpha_uci",
    "mnf_adversarial",
    "mcbn_batch",
    "mcbn_cifar",
    "mcbn_segmentation",
    "mcbn_statistics",
    "mcbn_toy",
    "mcbn_uci",
    "mnf_errors",
    "mnf_ood",
    "mnf_toy",
    "moments_accuracy",
    "moments_curves",
    "moments_dropout",
    "moments_image",
    "moments_normalization",
    "moments_stability",
    "moments_units",
)


def entries() -> dict[str, Entry]:
    """Every entry by its name, sorted."""
    found = [entry for module in _MODULES for entry in import_module(f"{__name__}.{module}").ENTRIES]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}

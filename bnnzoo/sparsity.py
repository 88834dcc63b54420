"""Sparsity of a factorized Gaussian posterior, and pruning by signal-to-noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnnzoo._vectorize import Pair
from bnnzoo.guides import MeanField, MomentPropagation, PrunedMeanField
from bnnzoo.posterior import Posterior


@dataclass(frozen=True, eq=False)
class Sparsity:
    """Which share of the weights a threshold prunes, see `Posterior.sparsity`.

    Attributes:
        threshold: The threshold on `log σ² - log μ²`.
        sites: Share of each site's weights that are pruned, in [0, 1], [chain].
        total: Share of all weights, [chain].
    """

    threshold: float
    sites: dict[str, np.ndarray]
    total: np.ndarray


def sparsity(posterior: Posterior, threshold: float = 5.0) -> Sparsity:
    """Share of weights that are pruned at a threshold; see `Posterior.sparsity`."""
    guide, kept = _kept(posterior, threshold)
    weights = posterior.bnn.priors
    parts = zip(guide.layout.names, kept.split(guide.layout.sizes, dim=1), strict=True)
    pruned = {name: (~part).cpu().numpy() for name, part in parts if name in weights}
    return Sparsity(
        float(threshold),
        {name: part.mean(1) for name, part in pruned.items()},
        np.concatenate(list(pruned.values()), axis=1).mean(1),
    )


def prune(posterior: Posterior, threshold: float = 5.0) -> Posterior:
    """A posterior whose weights below a signal-to-noise ratio are 0; see `Posterior.prune`."""
    guide, kept = _kept(posterior, threshold)
    if isinstance(guide, MomentPropagation):
        raise TypeError(
            "a pruned posterior is that of guides.PrunedMeanField, which would train and predict by draws again: to "
            "prune, train guides.MeanField with objectives.MomentELBO(), and predict with method='moments'"
        )
    parameters, buffers = posterior.state()
    buffers["guide.kept"] = kept
    model = posterior._pair.copy().model
    pair = Pair(model, PrunedMeanField(model, guide.init_scale, guide.sampling).to(posterior.device))
    pair.train(posterior._pair.training)
    total = sparsity(posterior, threshold).total.tolist()
    pruned = {"threshold": float(threshold), "share": total}
    return posterior._changed(pair, (parameters, buffers), pruned=pruned)


def _kept(posterior: Posterior, threshold: float) -> tuple[MeanField, Tensor]:
    """The guide, and which of its elements are kept, [chain, layout.size]; sites of the likelihood always are."""
    guide = posterior.guide
    if type(guide) not in (MeanField, MomentPropagation, PrunedMeanField):
        raise TypeError(
            "sparsity and pruning compare the mean and the standard deviation of every weight, which guides.MeanField "
            f"has (best under priors.LogUniform): this posterior's guide is a {type(guide).__name__}"
        )
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number (a bound on log σ² - log μ²), not {threshold!r}")
    assert isinstance(guide, MeanField)
    loc, log_scale = posterior._parameters["guide.loc"], posterior._parameters["guide.log_scale"]
    kept = 2 * (log_scale - loc.abs().log()) < threshold
    kept |= torch.cat(
        [
            torch.full((size,), name not in posterior.bnn.priors, device=kept.device)
            for name, size in zip(guide.layout.names, guide.layout.sizes, strict=True)
        ]
    )
    return guide, kept & posterior._buffers.get("guide.kept", torch.ones_like(kept))

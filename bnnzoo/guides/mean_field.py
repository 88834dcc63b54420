"""`MeanField`: a factorized Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bnnzoo._types import Distribution
from bnnzoo.guides.base import Guide, resolve_per_site
from bnnzoo.network import BayesianNetwork
from bnnzoo.weights import SAMPLINGS, NormalBlock, Sampling


class MeanField(Guide):
    """Fully factorized Gaussian `q(w) = Π N(w_i; loc_i, scale_i²)` (Graves 2011; Blundell et al. 2015).

    Sites of the likelihood (a noise scale with a prior) are Gaussian in unconstrained space.

    Args:
        bnn: The model.
        init_scale: Initial standard deviation of every weight, > 0.
        sampling: How an objective that allows it draws pre-activations, see `bnnzoo.weights`: `"local"`, `"flipout"`
            or `"dense"`, or a dict from glob patterns on site names or module types to these, first match wins, e.g.
            `{torch.nn.Conv2d: "dense", "*": "local"}`. Draws of weights are the same under all. Tied weights, whose
            uses must agree, are always dense.

    Raises:
        ValueError: If `init_scale` is not positive, or `sampling` is unknown or matches no weight.
    """

    def __init__(
        self, bnn: BayesianNetwork, init_scale: float = 0.1, sampling: Sampling | dict[Any, Sampling] = "local"
    ) -> None:
        super().__init__(bnn)
        if not (math.isfinite(init_scale) and init_scale > 0):
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        self.init_scale = init_scale
        self.sampling = sampling
        names = [name for layout in self._blocks for name in layout.names]
        choices = resolve_per_site(sampling, names, bnn.network, SAMPLINGS, "sampling")
        choice = dict(zip(names, choices, strict=True)) | dict.fromkeys(bnn.tied, "dense")
        self._samplings = [[choice[name] for name in layout.names] for layout in self._blocks]
        self.loc = nn.Parameter(self.initial_loc())
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Start at the network's own values, every scale at `init_scale`."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.log_scale.fill_(math.log(self.init_scale))

    def distributions(self) -> dict[str, Distribution]:
        """A `NormalWeight` for each weight; a transformed Gaussian for each site of the likelihood."""
        locs, other_locs = self.split_blocks(self.loc)
        log_scales, other_log_scales = self.split_blocks(self.log_scale)
        sites: dict[str, Distribution] = {}
        for loc, log_scale, layout, sampling in zip(locs, log_scales, self._blocks, self._samplings, strict=True):
            sites.update(NormalBlock(loc, log_scale, layout, sampling).sites())
        sites.update(self.likelihood_normals(other_locs, other_log_scales))
        return sites

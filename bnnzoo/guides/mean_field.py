"""`MeanField`: a factorized Gaussian."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnzoo._types import Distribution
from bnnzoo.guides.base import Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.weights import NormalBlock, Sampling


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

    in_state: ClassVar[tuple[str, ...]] = ("init_scale",)

    def __init__(
        self, bnn: BayesianNetwork, init_scale: float = 0.1, sampling: Sampling | dict[Any, Sampling] = "local"
    ) -> None:
        super().__init__(bnn)
        if not (math.isfinite(init_scale) and init_scale > 0):
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        self.init_scale = init_scale
        self.sampling = sampling
        self._samplings = self.resolve_sampling(sampling)
        self.loc = nn.Parameter(self.initial_loc())
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Start at the network's own values, every scale at `init_scale`."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.log_scale.fill_(math.log(self.init_scale))

    def distributions(self) -> dict[str, Distribution]:
        """A `NormalWeight` for each weight; a transformed Gaussian for each site of the likelihood."""
        return self.normals(self.loc, self.log_scale, self._block)

    def _block(self, index: int, loc: Tensor, log_scale: Tensor) -> NormalBlock:
        return NormalBlock(loc, log_scale, self._blocks[index], self._samplings[index])

"""`Map`: a point at the posterior mode."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from bnnzoo._types import Distribution
from bnnzoo.guides.base import Guide
from bnnzoo.network import BayesianNetwork


class Map(Guide):
    """Maximum a posteriori: `q(w) = δ(w - loc)`.

    Under the ELBO it minimizes `-log p(y | w) - log p(w)`: the usual training with weight decay if the prior is normal.
    With several chains (`fit(..., chains=10)`) it is a deep ensemble (Lakshminarayanan et al. 2017). Sites of the
    likelihood are points in their constrained space.

    Args:
        bnn: The model.
    """

    has_density: ClassVar[bool] = False
    bounds_evidence: ClassVar[bool] = False

    def __init__(self, bnn: BayesianNetwork) -> None:
        super().__init__(bnn)
        self.loc = nn.Parameter(self.initial_loc())

    def reset_parameters(self) -> None:
        """Start at the network's own values."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())

    def distributions(self) -> dict[str, Distribution]:
        """A `Delta` for each site."""
        return self.points(self.loc)

"""`Empirical`: stored draws, as from MCMC."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from bnnzoo._types import Distribution
from bnnzoo.guides.base import Guide
from bnnzoo.network import BayesianNetwork


class Empirical(Guide):
    """The distribution of stored draws: what `bnnzoo.sample` puts into its `Posterior`.

    As a Pyro guide it picks one of its draws at random, the same for all sites.

    Args:
        bnn: The model.
        draws: For each of its sites, [draw, *shape].

    Raises:
        ValueError: If sites are missing or unknown, their numbers of draws differ, or their shapes are not the sites'.
    """

    has_density: ClassVar[bool] = False
    bounds_evidence: ClassVar[bool] = False

    def __init__(self, bnn: BayesianNetwork, draws: dict[str, Tensor]) -> None:
        super().__init__(bnn)
        if set(draws) != set(bnn.sites):
            raise ValueError(f"draws are needed for the sites {sorted(bnn.sites)}, not for {sorted(draws)}")
        counts = {len(value) for value in draws.values()}
        if len(counts) != 1:
            raise ValueError(f"all sites need the same number of draws, not {sorted(counts)}")
        (self.num_draws,) = counts
        for name, prior in bnn.sites.items():
            if draws[name].shape[1:] != prior.shape():
                needed = ", ".join(["draw", *map(str, prior.shape())])
                raise ValueError(f"draws of {name!r} must have shape [{needed}], not {list(draws[name].shape)}")
        # A buffer's name has no dots.
        self.keys = {name: f"draws_{index}" for index, name in enumerate(draws)}
        for name, key in self.keys.items():
            self.register_buffer(key, draws[name])

    def distributions(self) -> dict[str, Distribution]:
        """A `Delta` at one draw, picked at random, for each site."""
        index = torch.randint(self.num_draws, ())
        return {
            name: dist.Delta(getattr(self, key)[index], event_dim=getattr(self, key).dim() - 1)
            for name, key in self.keys.items()
        }

    def center(self) -> None:
        """None: the middle of draws from several modes is in none of them."""

    def pick(self, num_samples: int) -> Tensor:
        """Indexes of `num_samples` evenly spaced draws.

        Raises:
            ValueError: If there are not that many.
        """
        if num_samples > self.num_draws:
            raise ValueError(f"this posterior holds {self.num_draws} draws a chain; {num_samples} were asked for")
        return torch.linspace(0, self.num_draws - 1, num_samples).round().long()

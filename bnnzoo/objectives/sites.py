"""The sites of a program's run, and their log densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bnnzoo._types import Site
from bnnzoo.rules import RandomWeight


class Sites(Messenger):
    """Record the sample sites of a program, and give some of them their values first.

    A lighter `poutine.trace` and `poutine.replay` in one: no graph, no copies of messages, no log probabilities.

    Args:
        values: Values for latent sites, by name.
        structured: Draw weights that have structure as `RandomWeight`s.
    """

    def __init__(self, values: dict[str, Any] | None = None, structured: bool = False) -> None:
        super().__init__()
        self.values = values or {}
        self.structured = structured
        self.messages: dict[str, Site] = {}
        self._subsamples: dict[str, Site] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"]:
            return
        assert msg["name"] is not None
        if site_is_subsample(msg):
            if msg["value"] is None and msg["name"] in self.values:
                msg["value"] = self.values[msg["name"]]
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
        elif self.structured and msg["value"] is None and hasattr(msg["fn"], "structured"):
            msg["value"] = msg["fn"].structured()
            msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        assert msg["name"] is not None
        (self._subsamples if site_is_subsample(msg) else self.messages)[msg["name"]] = msg

    def run(self, program: Callable, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """Run a program and return its sample sites, by name."""
        with self:
            program(*args, **kwargs)
        return self.messages

    @property
    def drawn(self) -> dict[str, Any]:
        """The values of the recorded latent sites, and the rows that plates drew."""
        own = {name: msg["value"] for name, msg in self.messages.items() if not msg["is_observed"]}
        return {**self.rows, **own}

    @property
    def rows(self) -> dict[str, Any]:
        """The rows that plates are of, drawn or given, by the plates' names."""
        return {name: msg["value"] for name, msg in self._subsamples.items()}


def log_prob(site: Site) -> Tensor:
    """Log density of a site's value, scaled and masked as its handlers say, summed.

    A structured draw may be one of several values (one a row of the batch, say): their mean.
    """
    value = site["value"]
    if isinstance(value, RandomWeight):
        value = value.dense()
    density = site["fn"].log_prob(value)
    several = density.dim() - len(site["fn"].batch_shape)
    if several > 0:
        density = density.mean(tuple(range(several)))
    return scale_and_mask(density, site["scale"], site["mask"]).sum()

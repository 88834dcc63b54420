"""The sites of a program's run, and their log densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from bnnzoo._types import Distribution, Site
from bnnzoo.moments import Moments, Nodes, gaussian_nodes, site_moments
from bnnzoo.moments.value import mean_of
from bnnzoo.rules import RandomWeight

Form = Literal["dense", "structured", "moments"]


class Sites(Messenger):
    """Record the sample sites of a program, and give some of them their values first.

    A lighter `poutine.trace` and `poutine.replay` in one: no graph, no copies of messages, no log probabilities.

    Args:
        values: Values for latent sites, by name.
        form: What the other latent sites are given: `"dense"`, a draw; `"structured"`, a `RandomWeight` where a
            weight has structure; `"moments"`, their mean and variance (`bnnzoo.moments.site_moments`), nothing drawn.
    """

    def __init__(self, values: dict[str, Any] | None = None, form: Form = "dense") -> None:
        super().__init__()
        self.values = values or {}
        self.form = form
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
        elif msg["value"] is not None:
            return
        elif self.form == "structured" and hasattr(msg["fn"], "structured"):
            msg["value"] = msg["fn"].structured()
            msg["done"] = True
        elif self.form == "moments":
            msg["value"] = site_moments(msg["name"], msg["fn"])
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

    A structured draw may be one of several values (one a row of the batch, say): their mean. Of a value that is known
    by its moments, or by nodes, it is the expectation, by quadrature: exact for polynomials.

    Raises:
        ValueError: If that is asked of a density that does not factorize over the elements.
    """
    value = site["value"]
    if isinstance(value, RandomWeight):
        value = value.dense()
    if isinstance(value, Moments):
        fn = _elements(site["fn"])
        if isinstance(fn, Delta):  # of Pyro's AutoNormal, which lets points carry a log density
            return scale_and_mask(mean_of(fn.log_density), site["scale"], site["mask"]).sum()
        value = gaussian_nodes(value.loc, value.scale)
    if isinstance(value, Nodes):
        return _expected_log_prob(site, value)
    density = site["fn"].log_prob(value)
    several = density.dim() - len(site["fn"].batch_shape)
    if several > 0:
        density = density.mean(tuple(range(several)))
    return scale_and_mask(density, site["scale"], site["mask"]).sum()


def _expected_log_prob(site: Site, nodes: Nodes) -> Tensor:
    fn = _elements(site["fn"])
    if fn.event_shape and nodes.values[0].numel() > 1 and not hasattr(fn, "moments"):
        raise ValueError(
            f"the density {type(fn).__name__} of site {site['name']!r} does not factorize over the elements: its "
            "expectation needs draws (objectives.ELBO), or a prior with independent elements"
        )
    terms = [log_prob({**site, "value": value}) for value in nodes.values]
    return torch.dot(nodes.weights, torch.stack(terms))


def _elements(fn: Distribution) -> Distribution:
    """The distribution under independence and expansion."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn

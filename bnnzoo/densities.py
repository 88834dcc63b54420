"""Log densities of draws under a guide, bnnzoo's or Pyro's own, and under the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, AutoNormal, AutoNormalizingFlow
from torch import Tensor, nn
from torch.distributions import biject_to

from bnnzoo.guides import Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Sites, log_prob

if TYPE_CHECKING:
    from bnnzoo.posterior import Posterior


def log_q(posterior: Posterior, samples: dict[str, Tensor]) -> Tensor | None:
    """Log density of draws under the guide, [chain, draw], or None; see `Posterior.log_q`."""
    if isinstance(posterior.guide, Guide):
        if not posterior.guide.has_density:
            return None
        return posterior._map(lambda model, guide, values: guide.log_prob(values), samples)
    if isinstance(posterior.guide, AutoNormalizingFlow):
        return None  # the inverse of Pyro's flows does not run under vmap
    known = True

    def density(model: BayesianNetwork, guide: nn.Module, values: dict[str, Tensor]) -> Tensor:
        given = _unconstrained(guide, values)
        sites = Sites(given).run(guide, None)
        # A point has no density, and where a guide draws further sites only the joint density is known.
        nonlocal known
        known = set(given) == {name for name, site in sites.items() if not _is_point(site["fn"])}
        return torch.stack([log_prob(site) for site in sites.values()]).sum()

    result = posterior._map(density, samples)
    return result if known else None


def log_prior(posterior: Posterior, samples: dict[str, Tensor]) -> Tensor:
    """Log density of draws under the prior, [chain, draw]."""

    def density(model: BayesianNetwork, guide: nn.Module, values: dict[str, Tensor]) -> Tensor:
        return torch.stack([prior.log_prob(values[name]).sum() for name, prior in model.sites.items()]).sum()

    return posterior._map(density, samples)


def _unconstrained(guide: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What to give a guide's random sites for given weights; Pyro's AutoGuides draw in unconstrained space."""
    if not isinstance(guide, AutoNormal | AutoContinuous):
        return values
    sites = dict(guide.prototype_trace.iter_stochastic_nodes())
    latent = {name: biject_to(site["fn"].support).inv(values[name]) for name, site in sites.items()}
    if isinstance(guide, AutoNormal):
        return {f"{name}_unconstrained": value for name, value in latent.items()}
    return {f"_{guide._pyro_name}_latent": torch.cat([value.reshape(-1) for value in latent.values()])}


def _is_point(distribution: Any) -> bool:
    return isinstance(getattr(distribution, "base_dist", distribution), dist.Delta)

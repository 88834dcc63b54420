"""Objectives: what a fit minimizes, as `pyro.infer.ELBO`s.

Each is used as Pyro uses its own: `objective(model, guide)` is a module whose call with the model's arguments returns
the loss on that batch, scaled to the whole data set; `SVI(model, guide, optim, loss=objective)` works too. Any Pyro
guide will do whose draws are reparameterized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.infer
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bnnzoo._types import Distribution, Site
from bnnzoo._vectorize import vectorize
from bnnzoo.rules import RandomWeight
from bnnzoo.weights import Block


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

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        assert msg["name"] is not None
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
        elif self.structured and msg["value"] is None and hasattr(msg["fn"], "structured"):
            msg["value"] = msg["fn"].structured()
            msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        if not site_is_subsample(msg):
            assert msg["name"] is not None
            self.messages[msg["name"]] = msg

    def run(self, program: Callable, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """Run a program and return its sample sites, by name."""
        with self:
            program(*args, **kwargs)
        return self.messages

    @property
    def drawn(self) -> dict[str, Any]:
        """The values of the recorded latent sites."""
        return {name: msg["value"] for name, msg in self.messages.items() if not msg["is_observed"]}


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


class ELBO(pyro.infer.ELBO):
    r"""The evidence lower bound, `-E_q[log p(y | w)] + β KL(q(w) || p(w))`, as a loss.

    The KL divergence is analytic wherever torch or Pyro has one registered for a site's pair of distributions, and
    sampled where not. Weights are drawn in the guide's structured form (`guides.MeanField(sampling=...)`).

    Args:
        num_particles: Number K of draws of the weights in the estimate, ≥ 1; mapped by `vmap`.
        kl_weight: β ≥ 0: a number, or a function of the epoch (a float that grows through training from 0), for KL
            annealing; `KLAnnealing(epochs)` is the usual one.

    Attributes:
        epoch: What `kl_weight` is called with; `fit` keeps it.

    Raises:
        ValueError: If `num_particles` or `kl_weight` is out of range.
    """

    def __init__(self, num_particles: int = 1, kl_weight: float | Callable[[float], float] = 1.0) -> None:
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 1:
            raise ValueError(f"num_particles must be an integer of at least 1, not {num_particles!r}")
        if not callable(kl_weight) and not 0 <= kl_weight < math.inf:
            raise ValueError(f"kl_weight must be a finite number of at least 0, or a function, not {kl_weight}")
        super().__init__(num_particles=num_particles)
        self.kl_weight = kl_weight
        self.epoch = 0.0

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on one batch, differentiable; a scalar, summed over the data set that the batch stands for."""
        return self._mean_over_particles(lambda: self._particle(model, guide, args, kwargs), model)

    def loss(self, model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, its gradients accumulated in the parameters: what `pyro.infer.SVI` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _get_trace(self, model: nn.Module, guide: nn.Module, args: Any, kwargs: Any) -> Any:
        # Pyro's interface asks for it; traces of one draw, weights dense.
        return get_importance_trace("flat", math.inf, model, guide, args, kwargs)

    def _particle(self, model: nn.Module, guide: nn.Module, args: Any, kwargs: Any) -> Tensor:
        guide_sites = Sites(structured=True)
        q = guide_sites.run(guide, *args, **kwargs)
        p = Sites(guide_sites.drawn).run(model, *args, **kwargs)
        weight = self.kl_weight(self.epoch) if callable(self.kl_weight) else self.kl_weight
        loss: Any = 0.0
        for site in p.values():
            if site["is_observed"]:
                loss = loss - log_prob(site)
        for divergence in kl_terms(q, p):
            loss = loss + (divergence if weight == 1.0 else weight * divergence)
        return loss

    def _mean_over_particles(self, particle: Callable[[], Tensor], model: nn.Module) -> Tensor:
        if self.num_particles == 1:
            return particle()
        modules = model.modules() if isinstance(model, nn.Module) else ()  # Pyro's handlers return functions
        if any(_updates_buffers(module) for module in modules):
            # Each particle moves the running statistics in turn; mapped particles cannot share that write.
            return torch.stack([particle() for _ in range(self.num_particles)]).mean()
        # Pyro's global store takes in new parameters outside of vmap only: there a first particle announces them.
        first = [] if pyro.settings.get("module_local_params") else [particle()[None]]
        with pyro.validation_enabled(False):  # it calls .item()
            rest = vectorize(lambda _: particle())(torch.arange(self.num_particles - len(first)))
        return torch.cat([*first, rest]).mean()


def _updates_buffers(module: nn.Module) -> bool:
    return module.training and getattr(module, "track_running_stats", False)


class KLAnnealing:
    """A `kl_weight` that rises linearly from 0 to 1 over the first `epochs` epochs (> 0) and stays at 1."""

    def __init__(self, epochs: float) -> None:
        if not epochs > 0:
            raise ValueError(f"epochs must be positive, not {epochs}")
        self.epochs = epochs

    def __call__(self, epoch: float) -> float:
        """The weight of the KL divergence at an epoch."""
        return min(1.0, epoch / self.epochs)


def kl_terms(q: dict[str, Site], p: dict[str, Site]) -> list[Tensor]:
    """KL(q || p) by site, or by block of sites where guide and model agree on one.

    Args:
        q: The guide's sites.
        p: The model's sites, run on the guide's values.

    Returns:
        Scalars whose sum is an unbiased estimate of the divergence, exact where the divergences are registered.

    Raises:
        ValueError: If a site is latent in one of the two programs only, or its draws are not reparameterized.
    """
    missing = [name for name, site in p.items() if not site["is_observed"] and name not in q]
    if missing:
        raise ValueError(f"the guide has no site for the model's latent {', '.join(map(repr, missing))}")
    terms = []
    done: set[str] = set()
    for name, site in q.items():
        if name in done:
            continue
        if name not in p:
            terms.append(_auxiliary(name, site))
            continue
        if p[name]["is_observed"]:
            raise ValueError(f"site {name!r} is observed in the model and sampled by the guide")
        block = _shared_block(site, p, q)
        if block is None:
            terms.append(_kl(name, site, p[name]))
        else:
            terms.append(_divergence(block[0].joint, block[1].joint))
            done.update(block[0].layout.names)
    return terms


def _shared_block(site: Site, p: dict[str, Site], q: dict[str, Site]) -> tuple[Block, Block] | None:
    """The blocks of a guide's site and of its prior, if they span the same sites and nothing interferes with any."""
    block: Block | None = getattr(site["fn"], "block", None)
    if block is None or block.layout.names[0] not in p:
        return None
    prior: Block | None = getattr(p[block.layout.names[0]]["fn"], "block", None)
    if prior is None or prior.layout.names != block.layout.names:
        return None
    for name in block.layout.names:
        if not (_plain_part(q.get(name), block) and _plain_part(p.get(name), prior)):
            return None
    return block, prior


def _plain_part(site: Site | None, block: Block) -> bool:
    """Whether a site is a latent part of the block that no handler scales, masks or replaces."""
    if site is None or site["is_observed"] or site["mask"] is not None:
        return False
    return isinstance(site["scale"], float) and site["scale"] == 1.0 and getattr(site["fn"], "block", None) is block


def _kl(name: str, q: Site, p: Site) -> Tensor:
    _check_reparameterized(name, q)
    same_handling = q["scale"] is p["scale"] or (isinstance(q["scale"], float) and q["scale"] == p["scale"])
    if same_handling and q["mask"] is None and p["mask"] is None and not _is_point(q["fn"]):
        try:
            return (p["scale"] * kl_divergence(q["fn"], p["fn"])).sum()
        except NotImplementedError:
            pass
    return log_prob(q) - log_prob(p)


def _divergence(q: Distribution, p: Distribution) -> Tensor:
    """KL of two flat distributions, or one draw's estimate of it."""
    try:
        return kl_divergence(q, p).sum()
    except NotImplementedError:
        w = q.rsample()
        return (q.log_prob(w) - p.log_prob(w)).sum()


def _auxiliary(name: str, site: Site) -> Tensor:
    """A guide's own site: an auxiliary variable or a factor."""
    if not site["is_observed"]:
        if not site["infer"].get("is_auxiliary"):
            raise ValueError(f"the guide's site {name!r} is not in the model; mark it infer={{'is_auxiliary': True}}")
        _check_reparameterized(name, site)
    return log_prob(site)


def _is_point(q: Distribution) -> bool:
    # Pyro's KL of a Delta drops its log_density, in which guides hide Jacobians.
    return getattr(getattr(q, "base_dist", q), "log_density", None) is not None


def _check_reparameterized(name: str, site: Site) -> None:
    if not getattr(site["fn"], "has_rsample", False):
        raise ValueError(
            f"the guide's site {name!r} ({type(site['fn']).__name__}) cannot be reparameterized, and this objective "
            "has no score-function gradient: use pyro.infer.TraceGraph_ELBO"
        )

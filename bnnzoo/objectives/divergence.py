"""How far a guide is from the prior: KL divergences, and the log ratio of the densities at a draw."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import TransformedDistribution, kl_divergence

from bnnzoo._types import Distribution, Site
from bnnzoo.moments import Moments, gaussian_nodes
from bnnzoo.objectives.sites import log_prob
from bnnzoo.priors import LogUniform
from bnnzoo.weights import Block


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
    _check_sites(q, p)
    terms = []
    done: set[str] = set()
    for name, site in q.items():
        if name in done:
            continue
        if name not in p:
            terms.append(_auxiliary(name, site))
            continue
        block = _shared_block(site, p, q)
        if block is None:
            terms.append(_kl(name, site, p[name]))
        else:
            by_moments = isinstance(site["value"], Moments)
            terms.append(_divergence(block[0].joint, block[1].joint, by_moments))
            done.update(block[0].layout.names)
    return terms


def log_ratio(q: dict[str, Site], p: dict[str, Site]) -> Tensor:
    """`log q(w) - log p(w)` at a draw of the guide, auxiliary sites and factors of the guide counted in log q.

    Args:
        q: The guide's sites, drawn as values.
        p: The model's sites, run on the guide's values.

    Returns:
        A scalar, whose mean is the KL divergence.

    Raises:
        ValueError: As of `kl_terms`, or if there is no ratio: the guide is a point, or a prior cannot be normalized.
    """
    _check_sites(q, p)
    if all(isinstance(_base(site["fn"]), Delta) for site in q.values()):
        raise ValueError("the guide is a point, which has no density to weigh draws by: use objectives.ELBO or BBAlpha")
    total: Any = 0.0
    for name, site in q.items():
        if name not in p:
            total = total + _auxiliary(name, site)
            continue
        if isinstance(_base(p[name]["fn"]), LogUniform):
            raise ValueError(
                f"the prior of {name!r} is LogUniform, of infinite mass around 0: draws cannot be weighed by it; use "
                "objectives.ELBO or objectives.BBAlpha, or another prior"
            )
        _check_reparameterized(name, site)
        total = total + log_prob(site) - log_prob(p[name])
    return total


def _check_sites(q: dict[str, Site], p: dict[str, Site]) -> None:
    missing = [name for name, site in p.items() if not site["is_observed"] and name not in q]
    if missing:
        raise ValueError(f"the guide has no site for the model's latent {', '.join(map(repr, missing))}")
    for name in q:
        if name in p and p[name]["is_observed"]:
            raise ValueError(f"site {name!r} is observed in the model and sampled by the guide")


def _base(fn: Distribution) -> Distribution:
    """The distribution under independence, masks and expansion."""
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return fn


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


def _divergence(q: Distribution, p: Distribution, by_moments: bool) -> Tensor:
    """KL of two flat distributions; where none is known one draw's estimate of it, or, by moments, quadrature."""
    try:
        return kl_divergence(q, p).sum()
    except NotImplementedError:
        if by_moments:
            nodes = gaussian_nodes(q.mean, q.variance.sqrt())
            terms = [(q.log_prob(w) - p.log_prob(w)).sum() for w in nodes.values]
            return nodes.weights @ torch.stack(terms)
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

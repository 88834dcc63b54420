"""The moments of a guide's sites."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution

from bnnzoo._types import Distribution
from bnnzoo.hermite import gauss_hermite
from bnnzoo.moments.value import Moments

_NODES = 9


class NoMomentsError(ValueError):
    """A site has no mean and variance that go through a network."""


class Nodes(NamedTuple):
    """A random variable as points and their weights, for the parameters of a likelihood.

    Attributes:
        values: The points, [Q, *shape].
        weights: Their probabilities, [Q].
    """

    values: Tensor
    weights: Tensor


def site_moments(name: str, distribution: Distribution) -> Any:
    """What a site is in a pass without draws.

    Args:
        name: The site's name, for messages.
        distribution: Its distribution.

    Returns:
        `Moments` of a weight whose elements are independent Gaussians, or have multiplicative noise on their input
        units; the value of a point; `Nodes`, of Gauss-Hermite quadrature, of a transformed Gaussian (a noise scale).

    Raises:
        NoMomentsError: If the distribution has no such form.
    """
    if hasattr(distribution, "moments"):
        return distribution.moments()
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if hasattr(base, "v") and hasattr(base, "log_density"):  # Pyro's Delta
        return base.v
    if isinstance(base, Normal):
        return Moments(base.mean, base.variance)
    if isinstance(base, TransformedDistribution):
        normal = base.base_dist
        while isinstance(normal, Independent):
            normal = normal.base_dist
        if isinstance(normal, Normal):
            values, weights = gaussian_nodes(normal.loc, normal.scale)
            for transform in base.transforms:
                values = transform(values)
            return Nodes(values, weights)
    raise NoMomentsError(
        f"site {name!r} is a {type(distribution).__name__}: only independent Gaussians, points, and points under "
        "dropout have a mean and variance that go through a network"
    )


def gaussian_nodes(loc: Tensor, scale: Tensor) -> Nodes:
    """Nodes of Gaussians; one for all elements, so that they are for functions that are sums over the elements."""
    z, weights = (each.to(dtype=loc.dtype, device=loc.device) for each in gauss_hermite(_NODES))
    return Nodes(loc + scale * z.view(-1, *[1] * loc.dim()), weights)

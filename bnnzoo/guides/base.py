"""What the guides share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from bnnzoo._types import Distribution
from bnnzoo.network import BayesianNetwork, Program
from bnnzoo.objectives import ELBO, Objective
from bnnzoo.prediction import Method
from bnnzoo.weights import SAMPLINGS, Block, DeltaBlock, Layout, Sampling


class Guide(Program):
    """A Pyro guide over all sites of a `BayesianNetwork`; parameters are flat, sites are views.

    A subclass implements `reset_parameters` and `distributions`, for one chain and one particle. One that draws further
    sites of its own overrides `forward` and names them in `auxiliary`; one that takes something from the data besides
    gradient steps overrides `collect`. A guide may behave differently in training (`guide.training`) and after it.

    Args:
        bnn: The model; its network's values are where the guide starts.

    Attributes:
        has_density: Whether the guide has a density over the sites (a point does not).
        bounds_evidence: Whether what is trained has a density over the sites, or jointly over them and auxiliary ones,
            so that the ELBO is a bound of the evidence and draws can be weighed by p / q.
        one_draw_a_batch: Whether in training all particles of a batch are the same draw.
        prediction: How `Posterior.predict` predicts where it is not told: by `"draws"` or by `"moments"`.
        in_state: Options that parameters or buffers hold, in which guides that are trained together may differ.
        layout: Order of all sites in the guide's flat parameters.
    """

    has_density: ClassVar[bool] = True
    bounds_evidence: ClassVar[bool] = True
    one_draw_a_batch: ClassVar[bool] = False
    prediction: ClassVar[Method] = "draws"
    in_state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, bnn: BayesianNetwork) -> None:
        if not isinstance(bnn, BayesianNetwork):
            raise TypeError(f"{type(self).__name__} is built from a BayesianNetwork, not from {type(bnn).__name__}")
        super().__init__()
        self._model = (bnn,)  # in a tuple: the model is not a part of the guide
        shapes = {name: shape for block in bnn.blocks for name, shape in _shapes(block.layout)}
        shapes |= {name: prior.shape() for name, prior in bnn.likelihood.sites().items()}
        self.layout = Layout({name: torch.Size(shape) for name, shape in shapes.items()})
        self._blocks = [block.layout for block in bnn.blocks]
        self._others = [Layout({name: prior.shape()}) for name, prior in bnn.likelihood.sites().items()]

    @property
    def model(self) -> BayesianNetwork:
        """The model that the guide was built from."""
        return self._model[0]

    def options(self) -> dict[str, Any]:
        """The options that the guide was built with, by name."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "bnn" and hasattr(self, name)]
        return {name: getattr(self, name) for name in names}

    def fixed_options(self) -> dict[str, Any]:
        """What guides must agree in to be trained together, besides names and shapes of parameters and buffers."""
        return {name: value for name, value in self.options().items() if name not in self.in_state}

    def reset_parameters(self) -> None:
        """Set the parameters to where training starts, from the model's initial values."""
        raise NotImplementedError

    def distributions(self) -> dict[str, Distribution]:
        """The distribution of each site."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments and returns a value for each site."""
        return {name: pyro.sample(name, q) for name, q in self.distributions().items()}

    @property
    def auxiliary(self) -> dict[str, torch.Size]:
        """Shapes of the sites that the guide draws besides the model's (a mixing variable, say), by name."""
        return {}

    def objective(self, kl_weight: float | Callable[[float], float] = 1.0) -> Objective:
        """What `fit` minimizes where it is not told; the ELBO by default.

        Args:
            kl_weight: See `bnnzoo.objectives.Objective`.
        """
        return ELBO(kl_weight=kl_weight)

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        """Log density of values for all sites, a scalar; only where `has_density`.

        Args:
            values: A value for each site.
        """
        terms = [q.log_prob(values[name]).sum() for name, q in self.distributions().items()]
        return torch.stack(terms).sum()

    def center(self) -> dict[str, Tensor] | None:
        """A value for each site in the middle of the guide, or None where it has none.

        The means of weights, and the likelihood's sites at their medians: with these the network is the ordinary one,
        without the guide's uncertainty.
        """
        return {name: _middle(q) for name, q in self.distributions().items()}

    def collect(self, x: Tensor, y: Tensor, batch_size: int) -> dict[str, Tensor]:
        """What the guide needs to know of the training data once its parameters stand, for one chain.

        `fit` calls it in eval mode, under a seed of the chain's own, after training and before each validation, and
        writes what it returns into the guide's buffers. Default: nothing.

        Args:
            x: All training inputs as the model sees them, [N, ...].
            y: All training targets as the model sees them, [N, ...].
            batch_size: Rows of a training batch.

        Returns:
            New values of buffers of the guide, by name.
        """
        return {}

    def initial_loc(self) -> Tensor:
        """The model's initial values in unconstrained space, flat [layout.size]; likelihood sites at their prior mean.

        Where the prior has no finite mean it is the origin of unconstrained space: 1 for a scale.
        """
        values = dict(self.model.initial_values())
        like = next(self.model.network.parameters(), torch.empty(()))
        for name, prior in self.model.likelihood.sites().items():
            values[name] = torch.zeros(prior.shape(), dtype=like.dtype, device=like.device)
            try:
                mean = prior.mean.detach().expand(prior.shape())
            except NotImplementedError:
                continue
            values[name] = torch.where(mean.isfinite(), biject_to(prior.support).inv(mean), values[name])
        return self.layout.join(values)

    def points(
        self, flat: Tensor, jacobian: bool = False, block: Callable[[Tensor, Layout], Block] = DeltaBlock
    ) -> dict[str, Distribution]:
        """A `Delta` for each site at a flat point [layout.size]; likelihood sites are mapped into their support.

        Args:
            flat: The point, in unconstrained space.
            jacobian: Let the likelihood's sites carry the log density of that map, for a point that is random.
            block: Makes the distributions of weights from their part of the vector, if they are more than points.
        """
        blocks, others = self.split_blocks(flat)
        sites: dict[str, Distribution] = {}
        for loc, layout in zip(blocks, self._blocks, strict=True):
            sites.update(block(loc, layout).sites())
        for loc, (name, prior) in zip(others, self.model.likelihood.sites().items(), strict=True):
            transform, loc = biject_to(prior.support), loc.view(prior.shape())
            value = transform(loc)
            density = -transform.log_abs_det_jacobian(loc, value).sum() if jacobian else 0.0
            sites[name] = dist.Delta(value, density, event_dim=value.dim())
        return sites

    def normals(
        self, loc: Tensor, log_scale: Tensor, block: Callable[[int, Tensor, Tensor], Block]
    ) -> dict[str, Distribution]:
        """A Gaussian for each site; those of the likelihood are in unconstrained space, mapped into their support.

        Args:
            loc: Means, flat [layout.size].
            log_scale: Logarithms of the standard deviations, flat [layout.size].
            block: Makes the distributions of a block's weights from the block's number and its part of both vectors.
        """
        locs, other_locs = self.split_blocks(loc)
        log_scales, other_log_scales = self.split_blocks(log_scale)
        sites: dict[str, Distribution] = {}
        for index, parts in enumerate(zip(locs, log_scales, strict=True)):
            sites.update(block(index, *parts).sites())
        for loc, log_scale, (name, prior) in zip(
            other_locs, other_log_scales, self.model.likelihood.sites().items(), strict=True
        ):
            normal = dist.Normal(loc.view(prior.shape()), log_scale.exp().view(prior.shape()))
            site = dist.TransformedDistribution(normal, [biject_to(prior.support)])
            sites[name] = site.to_event(len(prior.batch_shape))
        return sites

    def resolve_sampling(self, sampling: Sampling | dict[Any, Sampling]) -> list[list[Sampling]]:
        """The sampling rule of each weight, block by block; tied weights, whose uses must agree, are dense.

        Args:
            sampling: One rule for all, or a dict from glob patterns on names or module types to rules.

        Raises:
            ValueError: If a rule is unknown or matches no weight, or a weight is matched by none.
        """
        bnn = self.model
        names = [name for layout in self._blocks for name in layout.names]
        choices = resolve_per_site(sampling, names, bnn.network, SAMPLINGS, "sampling")
        choice = dict(zip(names, choices, strict=True)) | dict.fromkeys(bnn.tied, "dense")
        return [[choice[name] for name in layout.names] for layout in self._blocks]

    def split_blocks(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Cut a flat vector [layout.size] into the weights' blocks, and the likelihood's sites, one each."""
        if len(self._blocks) == 1 and not self._others:
            return [flat], []
        parts = flat.split([layout.size for layout in [*self._blocks, *self._others]])
        return list(parts[: len(self._blocks)]), list(parts[len(self._blocks) :])


def _middle(q: Distribution) -> Tensor:
    """The mean, or of a mapped distribution, whose mean is not known, the mapped mean."""
    if isinstance(q, dist.Independent):
        return _middle(q.base_dist)
    if not isinstance(q, dist.TransformedDistribution):
        return q.mean
    value = _middle(q.base_dist)
    for transform in q.transforms:
        value = transform(value)
    return value


def _shapes(layout: Layout) -> list[tuple[str, torch.Size]]:
    return list(zip(layout.names, layout.shapes, strict=True))


def resolve_per_site(
    rule: Any, names: list[str], network: nn.Module, allowed: tuple[Any, ...], what: str, of: str = "random weight"
) -> list[Any]:
    """One choice a site, from one for all or a dict of glob patterns on names or module types.

    Args:
        rule: A choice, or a dict from glob pattern or module type to a choice; the first key that matches decides.
        names: Site names.
        network: Where the sites' modules are looked up.
        allowed: What may be chosen.
        what: Name of the option, for messages.
        of: What the sites are, for messages.

    Raises:
        ValueError: If a choice is not allowed, a key matches nothing, or a site is matched by no key.
    """
    rules = dict(rule) if isinstance(rule, dict) else {"*": rule}
    for key, choice in rules.items():
        if not isinstance(key, str | type):
            raise ValueError(f"{what}: keys are glob patterns on names or module types, not {key!r}")
        if choice not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, not {choice!r}")

    def matches(key: Any, name: str) -> bool:
        if isinstance(key, str):
            return fnmatchcase(name, key)
        return isinstance(network.get_submodule(name.rpartition(".")[0]), key)

    unused = [key for key in rules if not any(matches(key, name) for name in names)]
    if unused and names:
        raise ValueError(f"{what} names {unused[0]!r}, which matches no {of}; they are {', '.join(names)}")
    choices = []
    for name in names:
        found = [choice for key, choice in rules.items() if matches(key, name)]
        if not found:
            raise ValueError(f"{what} says nothing of {name!r}: add a '*' for the rest")
        choices.append(found[0])
    return choices

"""`BayesianNetwork`: any `nn.Module`, a prior and a likelihood as one Pyro model."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bnnzoo._types import Distribution
from bnnzoo.likelihoods import Likelihood, MomentTargets
from bnnzoo.moments import Moments
from bnnzoo.moments.origins import Origin
from bnnzoo.priors import Prior, map_tensors, resolve
from bnnzoo.weights import Block, Layout, ScalarNormal

_instances = itertools.count()

_STANDARD_NORMAL = dist.Normal(0.0, 1.0)


class Program(PyroModule):
    """A Pyro program whose parameters are its own: the base of `BayesianNetwork` and of the guides.

    Under Pyro's default settings `SVI` trains what it hears of through `pyro.param`, in a global store; each call tells
    it the trainable parameters, under a name that no other instance has. With `module_local_params` on, as in `fit`,
    nobody is told.
    """

    def __init__(self) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__(name=f"{type(self).__name__}_{next(_instances)}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            RuntimeError: If Pyro's store holds other parameters under this program's name, as a copy's: they would
                silently not be trained.
        """
        if not pyro.settings.get("module_local_params"):
            for name, parameter in self.named_parameters():
                # The outermost attribute access of a PyroModule would do this too, and warn of every random weight.
                if parameter.requires_grad and pyro.param(f"{self._pyro_name}.{name}", parameter) is not parameter:
                    raise RuntimeError(
                        f"Pyro's parameter store already holds a {self._pyro_name}.{name}, of a copy of this "
                        "program: call pyro.clear_param_store(), or use fit, which keeps parameters local"
                    )
        return self.forward(*args, **kwargs)


class BayesianNetwork(Program):
    """A network with random weights, as a Pyro model `p(w) p(y | f(x; w))`.

    Every parameter with a prior is a site, named as in `network.named_parameters()`; tied parameters are one site. The
    rest stay ordinary parameters, learned by maximum likelihood. The data are the site `y` inside the plate `data`.
    Buffers (batch normalization's running statistics) stay the network's; `train()` and `eval()` act as usual.

    The network is copied; the one passed in is never changed. Its values at that moment are where guides start.

    Args:
        network: Any module that maps inputs [N, ...] to outputs [N, C] (or [N, K, H, W] for dense classification).
        likelihood: How targets are distributed given outputs.
        prior: A rule for the parameters' priors, see `bnnzoo.priors`. Default: the standard normal for all.

    Attributes:
        network: The copy. Parameters with a prior have `requires_grad=False`: samples take their place.
        likelihood: The likelihood, a copy too.
        priors: The prior of every random parameter, as its rule gave it: not expanded to the parameter's shape.

    Raises:
        TypeError: If `network` is not a module, or `likelihood` not a `Likelihood`.
        ValueError: If the prior does not fit the network (see `bnnzoo.priors.resolve`), or nothing at all is random.

    Example:
        >>> import torch
        >>> from bnnzoo import BayesianNetwork, likelihoods
        >>> bnn = BayesianNetwork(torch.nn.Linear(3, 1), likelihoods.Gaussian(scale=0.5))
        >>> list(bnn.sites)
        ['weight', 'bias']
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood, prior: Prior = _STANDARD_NORMAL) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, not {type(network).__name__}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"likelihood must be one of bnnzoo.likelihoods (an instance), not {type(likelihood).__name__}"
            )
        super().__init__()
        lazy = [name for name, p in network.named_parameters() if nn.parameter.is_lazy(p)]
        if lazy:
            raise ValueError(f"network has uninitialized lazy parameters {lazy}: run it once on an example first")
        self.network = copy.deepcopy(network)
        self.likelihood = copy.deepcopy(likelihood)
        floating = [p for p in self.network.parameters() if p.is_floating_point()]
        if floating:  # a guide holds the weights and the noise in one tensor
            self.likelihood._apply(partial(_to, floating[0]))
        random = {name: prior for name, prior in resolve(prior, self.network).items() if prior is not None}
        self.priors = _like_parameters(random, self.network)
        clash = set(random) & {*likelihood.sites(), "y", "data"}
        if clash:
            raise ValueError(f"parameter names {sorted(clash)} are taken by the likelihood's sites or by the data")
        self.stacked_priors: Any = None  # of several tasks, see bnnzoo.together
        self._places: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in random}
        names = {id(p): name for name, p in self.network.named_parameters()}
        for module in self.network.modules():
            for attribute, parameter in module._parameters.items():
                name = names.get(id(parameter))
                if name in random:
                    self._places[name].append((module, attribute))
        for name in random:
            self.network.get_parameter(name).requires_grad_(False)
        self._build_blocks()
        if not self.sites:
            raise ValueError("nothing is random: every parameter's prior is None and the likelihood has no site")

    @property
    def sites(self) -> dict[str, Distribution]:
        """The prior of every latent site: weights by parameter name, then the likelihood's own sites."""
        return {**self._prior_sites, **self._noise_sites()}

    def _noise_sites(self) -> dict[str, Distribution]:
        return {name: _joint(prior) for name, prior in self.likelihood.sites().items()}

    @property
    def blocks(self) -> list[Block]:
        """The weights' priors, grouped into flat blocks of one family."""
        return self._blocks

    @property
    def tied(self) -> set[str]:
        """Sites whose weight is found in several places of the network: tied, or of a module that is there twice."""
        counts = Counter(p for _, p in self.network.named_parameters(remove_duplicate=False))
        return {name for name in self.priors if counts[self.network.get_parameter(name)] > 1}

    def initial_values(self) -> dict[str, Tensor]:
        """The values that the network's random weights have in the network itself: where guides start."""
        return {name: self.network.get_parameter(name).detach() for name in self._prior_sites}

    def reset_parameters(self) -> None:
        """Draw fresh initial values by the `reset_parameters` of the network's own modules, where they have one.

        Frozen parameters (neither random nor trained, as of a pretrained layer) stay as they are, with the buffers of
        layers that have no others.
        """
        frozen = {p: p.clone() for name, p in self.network.named_parameters() if self._is_frozen(name, p)}
        for module in self.network.modules():
            own = list(module.parameters(recurse=False))
            # Torch's attention has a private one.
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset) and not (own and all(p in frozen for p in own)):
                reset()
        with torch.no_grad():
            for parameter, value in frozen.items():
                parameter.copy_(value)

    def _is_frozen(self, name: str, parameter: Tensor) -> bool:
        return name not in self.priors and not parameter.requires_grad

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """The Pyro model.

        Args:
            x: Inputs, [B, ...].
            y: Targets, [B, ...], as the likelihood's `prepare` returns them ([B], not [B, 1]); None samples them.
            size: Number N ≥ B of data that the batch stands for: its log likelihood is scaled by N/B. Default B.

        Returns:
            The network's output, [B, ...].

        Raises:
            ValueError: If `y` has not the shape of the likelihood's targets, or `size` is less than B.
        """
        priors = self._prior_sites if self.stacked_priors is None else self.stacked_priors.sites()
        values = {name: pyro.sample(name, prior) for name, prior in priors.items()}
        output = self.output(values, x)
        likelihood = self.likelihood
        latent = {name: pyro.sample(name, prior) for name, prior in self._noise_sites().items()}
        targets = (
            MomentTargets(likelihood, output, latent)
            if isinstance(output, Moments)
            else likelihood.distribution(output, **latent)
        )
        if y is not None and y.shape != targets.shape():
            # [B, 1] would broadcast against [B] without a word.
            raise ValueError(f"targets y must have shape {list(targets.shape())} here, not {list(y.shape)}")
        batch = x.shape[0]
        if size is not None and size < batch:
            raise ValueError(f"size is the number of data that the batch of {batch} stands for; {size} are too few")
        subsample: Any = None if size is None or size == batch else range(batch)
        with pyro.plate("data", batch if size is None else size, subsample=subsample):
            pyro.sample("y", targets, obs=y)
        return output

    def output(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        """The network's output for given weights.

        Args:
            values: A value for each random weight; other entries are ignored.
            x: Inputs, [B, ...].
        """
        with self._substituted(values):
            return self.network(x)

    @contextmanager
    def _substituted(self, values: dict[str, Tensor]) -> Iterator[None]:
        # torch.func.functional_call does the same for five times the cost, and this runs in every step.
        originals = []
        try:
            for name, places in self._places.items():
                value = values[name]
                if isinstance(value, Moments) and not value.certain:
                    value.origin = Origin(name)  # each pass counts its own uses
                for module, attribute in places:
                    originals.append((module, attribute, module._parameters[attribute]))
                    module._parameters[attribute] = value  # type: ignore[assignment]
            yield
        finally:
            for module, attribute, original in originals:
                module._parameters[attribute] = original

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BayesianNetwork:
        # `.to(device)`, `.double()` and the like: the priors follow.
        super()._apply(fn, recurse)
        moved = {id(prior): map_tensors(prior, fn) for prior in self.priors.values()}
        self.priors = {name: moved[id(prior)] for name, prior in self.priors.items()}
        self._build_blocks()
        return self

    def _build_blocks(self) -> None:
        self._blocks = _group(self.priors, {name: self.network.get_parameter(name).shape for name in self.priors})
        self._prior_sites = {name: site for block in self._blocks for name, site in block.sites()}


def _joint(prior: Distribution) -> Distribution:
    """All of a prior's dimensions as one event: a site outside of plates has no batch."""
    return prior.to_event(len(prior.batch_shape)) if prior.batch_shape else prior


def _like_parameters(priors: dict[str, Distribution], network: nn.Module) -> dict[str, Distribution]:
    """Priors in their parameters' dtypes and on their devices; one that several parameters share stays one."""
    moved: dict[Any, Distribution] = {}
    result = {}
    for name, prior in priors.items():
        like = network.get_parameter(name)
        key = (id(prior), like.dtype, like.device)
        if key not in moved:
            moved[key] = map_tensors(prior, partial(_to, like))
        result[name] = moved[key]
    return result


def _to(like: Tensor, value: Tensor) -> Tensor:
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def _group(priors: dict[str, Distribution], shapes: dict[str, torch.Size]) -> list[Block]:
    """Merge the sites' priors into blocks: one a distribution object, and one a family of independent elements."""
    groups: dict[Any, list[str]] = {}
    for name, prior in priors.items():
        elementwise = type(prior) in MERGEABLE
        scalar = not prior.batch_shape and not prior.event_shape
        key = type(prior) if elementwise else id(prior) if scalar else name
        groups.setdefault(key, []).append(name)
    return [_merge({name: priors[name] for name in names}, shapes) for names in groups.values()]


MERGEABLE = (dist.Normal, dist.Laplace, dist.StudentT, dist.Cauchy)


def _merge(priors: dict[str, Distribution], shapes: dict[str, torch.Size]) -> Block:
    layout = Layout({name: shapes[name] for name in priors})
    first = next(iter(priors.values()))
    if type(first) not in MERGEABLE:
        if not first.batch_shape and not first.event_shape:
            return Block(first, layout)
        return _Whole(first, layout)
    arguments = {name: [getattr(p, name) for p in priors.values()] for name in first.arg_constraints}
    if all(v.numel() == 1 and torch.equal(v.reshape(()), vs[0].reshape(())) for vs in arguments.values() for v in vs):
        scalars = {name: vs[0].reshape(()) for name, vs in arguments.items()}
        fixed = type(first) is dist.Normal and not any(v.requires_grad or v.is_meta for v in scalars.values())
        return Block((ScalarNormal if fixed else type(first))(**scalars), layout)
    flat = {
        name: torch.cat([v.expand(shapes[site]).reshape(-1) for v, site in zip(vs, priors, strict=True)])
        for name, vs in arguments.items()
    }
    return Block(type(first)(**flat), layout)


class _Whole(Block):
    """The prior of a single weight that is not flat: its sites are not marked as parts of a flat block."""

    def sites(self) -> Iterator[tuple[str, Distribution]]:
        (name,), (shape,) = self.layout.names, self.layout.shapes
        prior = self.joint.expand(shape[: len(shape) - len(self.joint.event_shape)])
        yield name, prior.to_event(len(prior.batch_shape))

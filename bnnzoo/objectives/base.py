"""What the objectives share: particles, the weight of the KL divergence, Pyro's interface."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import pyro.infer
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.enum import get_importance_trace
from pyro.poutine import unwrap
from torch import Tensor, nn

from bnnzoo._types import Site
from bnnzoo._vectorize import vectorize
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives.divergence import kl_terms, log_ratio
from bnnzoo.objectives.sites import Form, Sites

#: Log likelihoods of the elements of an observed site, [K, N...], and how many data each of them stands for.
DataTerm = tuple[Tensor, float | Tensor]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def total_log_likelihood(data: list[DataTerm]) -> Any:
    """The log likelihood under each particle of the data set that the batch stands for, [K]; 0 without data.

    Args:
        data: As `Objective.combine` has it.
    """
    return sum((count * values).reshape(len(values), -1).sum(1) for values, count in data)


class Objective(pyro.infer.ELBO):
    """What a fit minimizes: a function of K draws of the weights ("particles"), of which `combine` makes a loss.

    A subclass writes `combine`, says by `joint` what draws it needs, and keeps its arguments as attributes of the same
    names.

    Args:
        num_particles: Number K ≥ 1 of draws of the weights; mapped by `vmap`, or one by one where each moves running
            statistics of the model's batch normalization. For K = 1 every objective of bnnzoo is the ELBO.
        kl_weight: β ≥ 0, which multiplies log q - log p₀ wherever it occurs: a number, or a function of the epoch (a
            float that grows through training from 0), for KL annealing; `KLAnnealing(epochs)` is the usual one. A
            number other than 1 tempers the posterior: the likelihood counts with the power 1/β.

    Attributes:
        epoch: What `kl_weight` is called with, 0 at first; `fit` keeps it, a loop of your own has to.

    Raises:
        ValueError: If `num_particles` or `kl_weight` is out of range.
    """

    def __init__(self, num_particles: int = 1, kl_weight: float | Callable[[float], float] = 1.0) -> None:
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 1:
            raise ValueError(f"num_particles must be an integer of at least 1, not {num_particles!r}")
        if not callable(kl_weight) and not (is_number(kl_weight) and 0 <= kl_weight < math.inf):
            raise ValueError(
                f"kl_weight must be a finite number of at least 0, or a function of the epoch, not {kl_weight!r}"
            )
        super().__init__(num_particles=num_particles)
        self.kl_weight = kl_weight
        self.epoch = 0.0

    @property
    def joint(self) -> bool:
        """Whether a particle must be one value of the weights for all data, with log q and log p₀ at that value.

        Otherwise weights are drawn in the guide's structured form (`guides.MeanField(sampling=...)`, dropout's masks),
        independent for each datum where the guide can, and KL divergences are analytic wherever they are known.
        """
        return False

    @property
    def form(self) -> Form:
        """In what form the sites of the guide reach the model, see `Sites`."""
        return "dense" if self.joint else "structured"

    def log_likelihood(self, site: Site) -> Tensor:
        """Log likelihoods of the elements of an observed site, [N...], under a particle.

        Args:
            site: The message of Pyro's handlers: `site["fn"]` is the targets' distribution, `site["value"]` the data.
        """
        return site["fn"].log_prob(site["value"])

    def combine(self, data: list[DataTerm], divergence: Tensor) -> Tensor:
        """The loss, a differentiable scalar, summed over the data set that the batch stands for.

        One that needs no more of the data than each particle's sum starts from `total_log_likelihood(data)`.

        Args:
            data: For each observed site the log likelihoods of its elements under each particle, [K, N...], and how
                many data an element stands for: a number, or a tensor [N...].
            divergence: β (log q - log p₀) of each particle's draw, [K], or the analytic expectation of that.
        """
        raise NotImplementedError

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on one batch, differentiable; a scalar, summed over the data set that the batch stands for.

        Raises:
            ValueError: If the objective is not defined for the guide; says why.
        """
        for part in _modules(guide):
            self._check(part)
        counts: list[float | Tensor] = []
        rows: dict[str, Tensor] = {}  # that plates drew: one minibatch for all particles

        def particle() -> list[Tensor]:
            log_likelihoods, divergence, counts[:] = self._particle(model, guide, args, kwargs, rows)
            return [*log_likelihoods, divergence]

        *log_likelihoods, divergence = self._draw(particle, model, guide)
        return self.combine(list(zip(log_likelihoods, counts, strict=True)), divergence)

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

    def _check(self, guide: nn.Module) -> None:
        """Refuse a guide, or a part of one, that the objective is not defined for."""
        if self.joint and not getattr(type(guide), "bounds_evidence", True):
            raise ValueError(
                f"{self!r} weighs draws by p(w) / q(w), and what guides.{type(guide).__name__} trains has no density "
                "of the weights to divide by: use objectives.ELBO or objectives.BBAlpha"
            )

    def _particle(
        self, model: nn.Module, guide: nn.Module, args: Any, kwargs: Any, rows: dict[str, Tensor]
    ) -> tuple[list[Tensor], Tensor, list[float | Tensor]]:
        """The log likelihoods and the divergence of one draw, and the elements' counts."""
        guide_sites = Sites(rows, self.form)
        q = guide_sites.run(guide, *args, **kwargs)
        model_sites = Sites({**rows, **guide_sites.drawn})
        p = model_sites.run(model, *args, **kwargs)
        rows.update(model_sites.rows)
        divergence = log_ratio(q, p) if self.joint else _sum(kl_terms(q, p))
        weight = self.kl_weight(self.epoch) if callable(self.kl_weight) else self.kl_weight
        if weight != 1.0:
            divergence = weight * divergence
        observed = [_counted(self.log_likelihood(site), site) for site in p.values() if site["is_observed"]]
        return [log_likelihood for log_likelihood, _ in observed], divergence, [count for _, count in observed]

    def _draw(self, particle: Callable[[], list[Tensor]], model: nn.Module, guide: nn.Module) -> list[Tensor]:
        """What K calls of a function return, stacked."""
        if self.num_particles == 1:
            return [value[None] for value in particle()]
        if any(_updates_buffers(module) for module in _modules(model)):
            # Each particle moves the running statistics in turn; mapped particles cannot share that write.
            particles = [particle() for _ in range(self.num_particles)]
            return [torch.stack(values) for values in zip(*particles, strict=True)]
        # What all particles share comes into being outside of vmap, in a first one: parameters of Pyro's global store
        # or of its guides, and rows that a plate draws.
        made = pyro.settings.get("module_local_params") and not any(_is_unmade(part) for part in _modules(guide))
        first = None if made and isinstance(unwrap(model), BayesianNetwork) else particle()
        with pyro.validation_enabled(False):  # it calls .item()
            rest = vectorize(lambda _: particle())(torch.arange(self.num_particles - (first is not None)))
        if first is None:
            return rest
        return [torch.cat([one[None], others]) for one, others in zip(first, rest, strict=True)]

    def __repr__(self) -> str:
        own = inspect.signature(type(self)).parameters.values()
        names = [parameter.name for parameter in own if parameter.kind not in _VARIADIC]
        if len(names) < len(own):  # the others are passed on
            names += ["num_particles", "kl_weight"]
        texts = []
        for name in dict.fromkeys(names):
            if not hasattr(self, name):
                raise AttributeError(f"{type(self).__name__} must keep its argument {name!r} as an attribute")
            value = getattr(self, name)
            # Addresses of functions and the like are others in every process.
            text = getattr(value, "__qualname__", None) or re.sub(" at 0x[0-9a-f]+", "", repr(value))
            texts.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(texts)})"


def _sum(terms: list[Tensor]) -> Tensor:
    if not terms:
        return torch.zeros(())  # nothing is random: maximum likelihood
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _counted(log_likelihood: Tensor, site: Site) -> DataTerm:
    """Log likelihoods of a site, and how many data each of them stands for."""
    count, mask = site["scale"], site["mask"]
    if mask is not None and mask is not True:
        mask = torch.as_tensor(mask, device=log_likelihood.device)
        log_likelihood, count = torch.where(mask, log_likelihood, 0.0), count * mask
    if isinstance(count, Tensor):
        shape = torch.broadcast_shapes(log_likelihood.shape, count.shape)
        log_likelihood, count = log_likelihood.expand(shape), count.expand(shape)
    return log_likelihood, count


def _modules(program: Any) -> Iterator[nn.Module]:
    """The modules of a model or a guide, within Pyro's handlers too; none of a function."""
    program = unwrap(program)
    return program.modules() if isinstance(program, nn.Module) else iter(())


def _updates_buffers(module: nn.Module) -> bool:
    return module.training and getattr(module, "track_running_stats", False)


def _is_unmade(guide: nn.Module) -> bool:
    """Whether a guide of Pyro's has yet to make its parameters, which it does in its first call."""
    return isinstance(guide, AutoGuide) and guide.prototype_trace is None


def is_number(value: Any) -> bool:
    """Whether an argument is a real number (NaN and infinities are), and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


class KLAnnealing:
    """A `kl_weight` that rises linearly from 0 over the first epochs of a fit and stays where it is then.

    Args:
        epochs: How many epochs the rise takes, > 0.
        final: The weight β that it rises to, ≥ 0; other than 1 it tempers the posterior.

    Raises:
        ValueError: If `epochs` is not a positive number, or `final` is out of range.
    """

    def __init__(self, epochs: float, final: float = 1.0) -> None:
        if not (is_number(epochs) and 0 < epochs < math.inf):
            raise ValueError(f"epochs must be positive and finite, not {epochs!r}")
        if not (is_number(final) and 0 <= final < math.inf):
            raise ValueError(f"final must be a finite number of at least 0, not {final!r}")
        self.epochs = epochs
        self.final = final

    def __call__(self, epoch: float) -> float:
        """The weight of the KL divergence at an epoch."""
        return self.final * min(1.0, epoch / self.epochs)

    def __repr__(self) -> str:
        return f"KLAnnealing(epochs={self.epochs!r}, final={self.final!r})"

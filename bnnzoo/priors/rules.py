"""From a prior declared by rule to one distribution for every parameter."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import Distribution as TorchBase
from torch.nn.parameter import is_lazy

from bnnzoo.priors.tools import check_parameters, element_support, is_real

Rule: TypeAlias = Callable[[str, Tensor, nn.Module], Distribution | None]
Prior: TypeAlias = "Distribution | Rule | Mapping[str | type, Prior] | None"


@dataclass(frozen=True)
class _Entry:
    """A parameter, under every name it has (tied parameters have several), with the modules that own it."""

    name: str
    parameter: Tensor
    owners: tuple[tuple[str, nn.Module], ...]
    frozen: bool


def resolve(prior: Prior, network: nn.Module) -> dict[str, Distribution | None]:
    """Find the prior of every floating-point parameter of a network.

    A dict's keys select parameters: by exact name, by glob pattern (`fnmatch`, case sensitive), by module type (the
    parameter's own module is an instance of it), or all with `"*"`. A more specific key wins, in this order. Values are
    priors again, dicts included. A tied parameter appears once, under its first name; keys may use any of its names.
    Parameters with `requires_grad=False` stay deterministic unless a key other than `"*"` selects them.

    Args:
        prior: A distribution, a callable `(name, parameter, module) -> distribution or None`, a dict, or `None`. A
            distribution broadcasts to the parameter's shape, or (if it has event dimensions) has exactly its shape; its
            support is the real line.
        network: The network.

    Returns:
        For every parameter its prior, not yet expanded to the parameter's shape, or `None`: deterministic.

    Raises:
        ValueError: A key selects nothing, two equally specific keys clash, a parameter is selected by none, a
            distribution does not fit its parameter, or the network has lazy parameters without a shape.
        TypeError: Something is not a prior at all.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    parameters: dict[int, Tensor] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise ValueError(
                f"Parameter {name!r} is lazy and has no shape yet: call the network on a batch of inputs first."
            )
        if parameter.is_floating_point():
            parameters[id(parameter)] = parameter
            owners.setdefault(id(parameter), []).append((name, network.get_submodule(name.rpartition(".")[0])))
    entries = [
        _Entry(owners[key][0][0], parameter, tuple(owners[key]), not parameter.requires_grad)
        for key, parameter in parameters.items()
    ]
    resolved = _assign(prior, entries)
    return {entry.name: resolved[entry.name] for entry in entries}


def _assign(prior: Prior, entries: list[_Entry]) -> dict[str, Distribution | None]:
    """`resolve` for some of the parameters."""
    if isinstance(prior, Mapping):
        return _assign_mapping(prior, entries)
    if isinstance(prior, TorchBase) and not isinstance(prior, Distribution):
        raise TypeError(
            f"The prior {prior} is a torch.distributions object, which Pyro cannot sample at a site: use "
            f"pyro.distributions.{type(prior).__name__} with the same arguments."
        )
    if isinstance(prior, type):
        raise TypeError(f"The prior is the class {prior.__name__}; give an instance of it, {prior.__name__}(...).")
    if prior is not None and not isinstance(prior, Distribution) and not callable(prior):
        raise TypeError(
            f"{prior!r} (a {type(prior).__name__}) is not a prior: give a Pyro distribution, a callable "
            "(name, parameter, module) -> distribution or None, a dict of these, or None."
        )
    return {entry.name: None if entry.frozen else _apply_rule(prior, entry) for entry in entries}


def _apply_rule(prior: Distribution | Rule | None, entry: _Entry) -> Distribution | None:
    if prior is None:
        return None
    given = prior if isinstance(prior, Distribution) else prior(entry.name, entry.parameter, entry.owners[0][1])
    if given is None:
        return None
    if not isinstance(given, Distribution):
        raise TypeError(
            f"The prior rule {prior!r} returned {given!r} (a {type(given).__name__}) for parameter {entry.name!r}; "
            "it must return a Pyro distribution or None."
        )
    _check(given, entry)
    return given


def _assign_mapping(prior: Mapping[str | type, Prior], entries: list[_Entry]) -> dict[str, Distribution | None]:
    used: set[str | type] = set()
    chosen: dict[str | type, list[_Entry]] = {}
    resolved: dict[str, Distribution | None] = {}
    for key in prior:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(f"Prior key {key!r} must be a parameter name, a glob pattern or a subclass of nn.Module.")
    for entry in entries:
        levels: dict[int, list[str | type]] = {}
        for key in prior:
            level = _level(key, entry)
            if level is not None:
                used.add(key)
                levels.setdefault(level, []).append(key)
        if not levels:
            if not entry.frozen:
                raise ValueError(
                    f"No prior for parameter {entry.name!r}: none of the keys {_names(prior)} selects it. Add a key "
                    'for it, or "*" for all the rest ({"*": None} leaves them deterministic).'
                )
            resolved[entry.name] = None
            continue
        best = min(levels)
        key, *rivals = levels[best]
        for rival in rivals:
            if prior[rival] is not prior[key]:
                raise ValueError(
                    f"Prior keys {_names([key, rival])} clash: both select parameter {entry.name!r} and are equally "
                    "specific. Make one of them an exact name, or narrow the patterns."
                )
        chosen.setdefault(key, []).append(replace(entry, frozen=False) if best < _CATCH_ALL else entry)
    for key in prior:
        if key not in used and key != "*":
            raise ValueError(_unmatched(key, entries))
    for key, selected in chosen.items():
        resolved |= _assign(prior[key], selected)
    return resolved


_CATCH_ALL = 3


def _level(key: str | type, entry: _Entry) -> int | None:
    """How specifically a key selects a parameter (lower wins); `None`: not at all."""
    names = [name for name, _ in entry.owners]
    if isinstance(key, type):
        return 2 if any(isinstance(owner, key) for _, owner in entry.owners) else None
    if key in names:
        return 0
    if key == "*":
        return _CATCH_ALL
    return 1 if any(fnmatch.fnmatchcase(name, key) for name in names) else None


def _names(keys: Iterable[str | type]) -> str:
    return ", ".join(repr(key) if isinstance(key, str) else key.__name__ for key in keys) or "(none)"


def _unmatched(key: str | type, entries: list[_Entry]) -> str:
    names = [name for entry in entries for name, _ in entry.owners]
    shown = ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
    if isinstance(key, type):
        types = sorted({type(owner).__name__ for entry in entries for _, owner in entry.owners})
        return (
            f"Prior key {key.__name__} selects no parameter: the modules that own parameters are of type "
            f"{', '.join(types)}."
        )
    if any(name.startswith(f"{key}.") for name in names):
        hint = f" Did you mean {key + '.*'!r}?"
    else:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Prior key {key!r} selects no parameter.{hint} The parameters are: {shown}."


def _check(prior: Any, entry: _Entry) -> None:
    """Raise ValueError where a distribution cannot be the prior of a parameter."""
    shape, where = entry.parameter.shape, f"The prior {prior} of parameter {entry.name!r}"
    if prior.event_dim == 0:
        try:
            fits = torch.broadcast_shapes(prior.batch_shape, shape) == shape
        except RuntimeError:
            fits = False
        needed = f"its batch shape must broadcast to the parameter's shape {tuple(shape)}"
    else:
        fits = prior.batch_shape + prior.event_shape == shape
        needed = f"with event dimensions, batch + event shape must be exactly the parameter's shape {tuple(shape)}"
    if not fits:
        raise ValueError(
            f"{where} has batch shape {tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}: {needed}."
        )
    support = element_support(prior)
    if getattr(support, "is_discrete", False) or not is_real(support):
        raise ValueError(
            f"{where} has support {support}: a weight is unconstrained and needs a continuous prior on "
            "the whole real line."
        )
    check_parameters(prior, where)

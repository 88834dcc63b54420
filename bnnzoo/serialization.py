"""`save` and `load` of posteriors: tensors and plain descriptions; reading a file runs no code from it.

Modules, distributions and rules are described by class and constructor arguments, and built again from an allowed set
of packages: `torch.nn`, `pyro.distributions`, Pyro's AutoGuides and bnnzoo itself. An object's arguments are its
attributes of the same names (or what its `arguments()` returns). A network of another class is given to `load` by the
user, who has its code.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bnnzoo import files
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import hold
from bnnzoo.data import Standardization
from bnnzoo.guides import Empirical, Guide
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior

_FORMAT = "bnnzoo.posterior"

#: Packages whose classes a file may name.
_ALLOWED = ("torch.nn.", "pyro.distributions.", "torch.distributions.", "pyro.infer.autoguide.", "bnnzoo.")


class NotDescribable(ValueError):  # noqa: N818  (it says what the object is)
    """An object cannot be described in a file."""


def save(posterior: Posterior, path: Path) -> None:
    """Write a posterior; see `Posterior.save`."""
    pair, bnn, guide = posterior._pair, posterior.bnn, posterior.guide
    parameters, buffers = posterior.state()
    frozen = {
        name: p.detach() for name, p in bnn.network.named_parameters() if not p.requires_grad and name not in bnn.sites
    }
    try:
        network = _describe_network(bnn.network)
    except NotDescribable:
        network = None
    try:
        guide_description = _describe_guide(guide)
    except NotDescribable:
        guide_description = None
    content = {
        "network": network,
        "network_class": _path(type(bnn.network)),
        "shapes": {name: list(parameter.shape) for name, parameter in bnn.network.named_parameters()},
        "likelihood": encode(bnn.likelihood),
        "likelihood_state": bnn.likelihood.state_dict(),
        "prior": {name: encode(prior) for name, prior in bnn.priors.items()},
        "guide": guide_description,
        "guide_class": _path(type(guide)),
        "frozen": frozen,
        "parameters": parameters,
        "buffers": buffers,
        "standardization": posterior.standardization and posterior.standardization.state_dict(),
        "history": {name: torch.as_tensor(value) for name, value in posterior.history.items()},
        "info": encode(posterior.info),
        "training": pair.training,
        "dtype": str(next(bnn.network.parameters()).dtype).removeprefix("torch."),
    }
    files.write(path, _FORMAT, content)


def load(
    path: str | Path,
    network: nn.Module | None = None,
    guide: Callable[[BayesianNetwork], nn.Module] | None = None,
    device: torch.device | str = "cpu",
) -> Posterior:
    """Read a posterior that `Posterior.save` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        network: A network of the posterior's architecture (its values do not matter), needed if it is neither made of
            `torch.nn` modules nor one of `bnnzoo.models`.
        guide: Builds the guide from the model, needed if it is neither one of `bnnzoo.guides` nor of Pyro's AutoGuides.
        device: Where to put it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, foreign or of a later version, or the network does not fit it.
    """
    content = files.read(Path(path), _FORMAT, device)
    try:
        with seeded(0):  # layers draw initial values, which the file's replace
            return _build(content, network, guide, torch.device(device))
    except (KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _build(
    content: dict[str, Any],
    network: nn.Module | None,
    make_guide: Callable[[BayesianNetwork], nn.Module] | None,
    device: torch.device,
) -> Posterior:
    if network is None:
        if content["network"] is None:
            raise ValueError(
                f"the posterior's network is a {content['network_class']}, which a file cannot hold: build one and "
                "pass it, load(path, network=...)"
            )
        network = decode(content["network"])
    network = copy.deepcopy(network).to(device=device, dtype=getattr(torch, content["dtype"]))
    parameters = dict(network.named_parameters())
    _compare(content["shapes"], {n: list(p.shape) for n, p in parameters.items()}, "the network does", "parameter")
    with torch.no_grad():
        for name, value in content["frozen"].items():
            parameters[name].copy_(value)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in content["frozen"])
    likelihood = decode(content["likelihood"])
    likelihood.load_state_dict(content["likelihood_state"])
    prior = {name: decode(each) for name, each in content["prior"].items()}
    rest: dict[Any, Any] = {"*": None} if set(parameters) - set(prior) else {}
    bnn = BayesianNetwork(network, likelihood.to(device), {**prior, **rest})
    if make_guide is not None:
        guide = _with_parameters(make_guide(bnn), bnn, content)
    elif content["guide"] is None:
        raise ValueError(
            f"the posterior's guide is a {content['guide_class']}, which a file cannot hold: pass how to build it, "
            "load(path, guide=lambda bnn: ...)"
        )
    else:
        guide = _build_guide(content, bnn)
    pair = Pair(bnn, guide.to(device))
    for stored, own, what in (
        (content["parameters"], {n: p for n, p in pair.named_parameters() if p.requires_grad}, "parameter"),
        (content["buffers"], dict(pair.named_buffers()), "buffer"),
    ):
        theirs = {name: list(value.shape[1:]) for name, value in stored.items()}
        _compare(theirs, {name: list(value.shape) for name, value in own.items()}, "network and guide do", what)
    hold(pair, (content["parameters"], content["buffers"]))
    state = content["standardization"]
    return Posterior(
        pair.train(content["training"]),
        content["parameters"],
        content["buffers"],
        standardization=None if state is None else Standardization.from_state(state),
        history={name: np.asarray(value.cpu()) for name, value in content["history"].items()},
        info=decode(content["info"]),
    )


def _compare(theirs: dict[str, list[int]], ours: dict[str, list[int]], subject: str, what: str) -> None:
    """Raise ValueError where shapes in the file and shapes of what was built differ."""
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            here, there = ("none" if each is None else f"shape {each}" for each in (ours.get(name), theirs.get(name)))
            raise ValueError(f"{subject} not fit the file: {what} {name!r} has {here}, the file's {there}")


def _describe_network(network: nn.Module) -> Any:
    """A network's description, checked: what is built from it is the same architecture."""
    description = encode(network)
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the constructor had to say, it said to the user
        try:
            built = decode(description)
        except Exception as error:  # a constructor that cannot take what it was given back may raise anything
            raise NotDescribable(f"{type(network).__name__} cannot be built again: {error}") from error
    if _architecture(built) != _architecture(network):
        raise NotDescribable(f"{type(network).__name__} is not determined by its constructor's arguments")
    return description


def _architecture(network: nn.Module) -> tuple[Any, ...]:
    shapes = {name: getattr(value, "shape", None) for name, value in network.state_dict().items()}
    # Tied parameters are named once there, and twice in the state.
    return repr(network), shapes, [name for name, _ in network.named_parameters()]


def _describe_guide(guide: nn.Module) -> Any:
    if isinstance(guide, Empirical):
        return {"stored": [guide.num_draws, list(guide.keys)]}
    if isinstance(guide, Guide):
        return encode(guide)
    # Pyro's AutoGuides learn their sites by running the model: the shapes of two rows are enough to run it again.
    arguments = {"model"}
    values = _arguments(guide, skip=arguments | {"init_loc_fn", "create_plates"})
    return {"module": _allowed_path(type(guide)), "arguments": {n: encode(v) for n, v in values.items()}}


def _build_guide(content: dict[str, Any], bnn: BayesianNetwork) -> nn.Module:
    description = content["guide"]
    if "stored" in description:
        count, names = description["stored"]
        return Empirical(bnn, {name: torch.zeros(count, *bnn.sites[name].shape()) for name in names})
    cls = _class(description["module"])
    arguments = {name: decode(value) for name, value in description["arguments"].items()}
    return _with_parameters(cls(bnn, **arguments), bnn, content)


def _with_parameters(guide: nn.Module, bnn: BayesianNetwork, content: dict[str, Any]) -> nn.Module:
    """The guide, run once if it is none of bnnzoo's: Pyro's AutoGuides make their parameters then."""
    if not isinstance(guide, Guide):
        example = decode(content["info"])["example"]
        x, y = (torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in example)
        device = next(bnn.parameters()).device
        with seeded(0), pyro_settings(bnn, guide):
            guide(x.to(device), y.to(device), size=len(x))
    return guide


def encode(value: Any) -> Any:
    """Describe a value by tensors, numbers, strings, lists and dicts.

    Raises:
        NotDescribable: If it, or something in it, is of a class outside the allowed packages.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [encode(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    if isinstance(value, type):
        return {"class": _allowed_path(value)}
    if isinstance(value, dist.Distribution | torch.distributions.Distribution):
        return _encode_distribution(value)
    if isinstance(value, nn.Sequential | nn.ModuleList):
        names = list(value._modules)
        return {"children": _allowed_path(type(value)), "names": names, "modules": [encode(m) for m in value]}
    kind = "module" if isinstance(value, nn.Module) else "object"
    arguments = value.arguments() if hasattr(value, "arguments") else _arguments(value, skip={"bnn"})
    return {kind: _allowed_path(type(value)), "arguments": {n: encode(v) for n, v in arguments.items()}}


def decode(description: Any) -> Any:
    """Build what `encode` described.

    Raises:
        ValueError: If the description names a class outside the allowed packages.
    """
    if isinstance(description, list):
        return [decode(each) for each in description]
    if not isinstance(description, dict):
        return description
    if "tuple" in description:
        return tuple(decode(each) for each in description["tuple"])
    if "dict" in description:
        return {decode(key): decode(each) for key, each in description["dict"]}
    if "class" in description:
        return _class(description["class"])
    if "children" in description:
        modules = [decode(each) for each in description["modules"]]
        container = _class(description["children"])()
        for name, module in zip(description["names"], modules, strict=True):
            container.add_module(name, module)
        return container
    path = description.get("module") or description.get("object")
    arguments = {name: decode(value) for name, value in description["arguments"].items()}
    if path is not None:
        return _class(path)(**arguments)
    return _decode_distribution(description["distribution"], arguments)


def _encode_distribution(value: Any) -> dict[str, Any]:
    base = getattr(value, "base_dist", None)
    if isinstance(value, torch.distributions.Independent):
        arguments = {"base": encode(base), "dims": value.reinterpreted_batch_ndims}
        return {"distribution": "Independent", "arguments": arguments}
    if type(value).__name__ == "ExpandedDistribution":
        arguments = {"base": encode(base), "shape": list(value.batch_shape)}
        return {"distribution": "Expanded", "arguments": arguments}
    names = [name for name in value.arg_constraints if name in value.__dict__] or list(value.arg_constraints)
    if not names:
        names = list(_arguments(value, skip=set()))
    arguments = {name: encode(getattr(value, name)) for name in names}
    return {"distribution": _allowed_path(type(value)), "arguments": arguments}


def _decode_distribution(path: str, arguments: dict[str, Any]) -> Any:
    if path == "Independent":
        return arguments["base"].to_event(arguments["dims"])
    if path == "Expanded":
        return arguments["base"].expand(torch.Size(arguments["shape"]))
    return _class(path)(**arguments)


def _arguments(value: Any, skip: set[str]) -> dict[str, Any]:
    """Constructor arguments, read from attributes of the same names (or with a leading underscore)."""
    found: dict[str, Any] = {}
    if type(value).__init__ is nn.Module.__init__ or isinstance(value, nn.Identity):
        return found  # nn.Tanh and others without a constructor of their own
    for name, parameter in inspect.signature(type(value).__init__).parameters.items():
        if name in {"self", "device", "dtype"} | skip:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise NotDescribable(f"the arguments of {type(value).__name__} are not named")
        attribute = next((a for a in (name, f"_{name}") if hasattr(value, a)), None)
        if attribute is None:
            if parameter.default is parameter.empty:
                raise NotDescribable(f"{type(value).__name__} does not keep its argument {name!r}")
            continue
        given = getattr(value, attribute)
        if name == "bias" and isinstance(value, nn.Module):
            given = given is not None and given is not False  # torch's layers keep the parameter under that name
        found[name] = given
    return found


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _allowed_path(cls: type) -> str:
    path = _path(cls)
    if not path.startswith(_ALLOWED):
        raise NotDescribable(f"{path} is of no package that a file may name")
    return path


def _class(path: str) -> Any:
    """The class that an allowed path names. Nothing is imported for it: an import runs code."""
    module, _, name = path.rpartition(".")
    if not path.startswith(_ALLOWED):
        raise ValueError(f"the file names {path!r}, which is of no package that it may name: {', '.join(_ALLOWED)}")
    cls = getattr(sys.modules.get(module), name, None)
    kinds = (nn.Module, torch.distributions.Distribution)
    plain = isinstance(cls, type) and path.startswith("bnnzoo.priors.")
    if not (isinstance(cls, type) and (issubclass(cls, kinds) or plain)):
        raise ValueError(f"the file names {path!r}, which is no module, distribution or prior")
    return cls

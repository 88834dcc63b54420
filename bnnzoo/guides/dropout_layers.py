"""What `guides.Dropout` reads off a network: weights with input units, and the dropout layers in front of them."""

from __future__ import annotations

import torch
import torch.fx
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from bnnzoo.guides.masked_weight import InputUnits
from bnnzoo.network import BayesianNetwork

_ELEMENTWISE = (nn.Dropout,)
_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

#: Layers that a nonnegative factor on an element (or channel) passes through to the next layer's input.
_PASSING = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity)
_PASSING_ELEMENTS = (*_PASSING, nn.Flatten, nn.Unflatten)
_PASSING_CHANNELS = (
    *_PASSING,
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    nn.Upsample,
)


def input_units(bnn: BayesianNetwork) -> dict[str, InputUnits]:
    """The random weights of linear layers and (transposed) convolutions, in the network's order."""
    units = {}
    for name in (name for name, _ in bnn.network.named_parameters() if name in bnn.priors):
        path, _, leaf = name.rpartition(".")
        module = bnn.network.get_submodule(path)
        if leaf != "weight":
            continue
        if isinstance(module, nn.Linear):
            units[name] = InputUnits(module.weight.shape)
        elif isinstance(module, _ConvNd):
            units[name] = InputUnits(module.weight.shape, module.groups, module.transposed)
    return units


def first_weight(network: nn.Module) -> str:
    """The name of the weight of the network's first linear layer or convolution, random or not."""
    path = next(path for path, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd))
    return f"{path}.weight" if path else "weight"


def dropout_layers(network: nn.Module) -> dict[str, _DropoutNd]:
    """The dropout layers of a network that do something, by module path."""
    return {
        path: module for path, module in network.named_modules() if isinstance(module, _DropoutNd) and module.p != 0
    }


def noisy_weights(bnn: BayesianNetwork, units: dict[str, InputUnits]) -> dict[str, str]:
    """Which weight's inputs each dropout layer of the network drops.

    It is the layer that comes next in the order of calls, found by `torch.fx`, which runs the network symbolically.
    Where that is impossible (control flow that depends on the input) the order of registration is taken for it.

    Args:
        bnn: The model.
        units: Its weights that can be treated.

    Returns:
        Paths of dropout layers by name of the weight.

    Raises:
        ValueError: If the network has no dropout layers, or one of them is not the same as noise on the input units of
            a single random weight; says which and why.
    """
    network = bnn.network
    layers = dropout_layers(network)
    if not layers:
        raise ValueError("from_dropout_layers=True, and the network has no dropout layer: give the rates as rate=")
    calls = _calls(network)
    found: dict[str, str] = {}
    for path, layer in layers.items():
        _check_kind(path, layer)
        behind = {_consumer(network, path, calls[i + 1 :]) for i, call in enumerate(calls) if call == path}
        if not behind:
            raise _not_weight_noise(path, "the network's forward pass does not call it, or a larger torch module does")
        if len(behind) > 1:
            raise _not_weight_noise(path, f"it is used before {sorted(behind)}: give each a dropout layer of its own")
        (consumer,) = behind
        name = f"{consumer}.weight" if consumer else "weight"
        if name not in units:
            raise _not_weight_noise(path, f"the weight {name!r} behind it has no prior (or is tied to another name)")
        if name in found:
            raise _not_weight_noise(path, f"{found[name]!r} already drops the inputs of {name!r}")
        if calls.count(consumer) > calls.count(path):
            raise _not_weight_noise(path, f"{consumer!r} behind it is also used without it")
        found[name] = path
    return found


def _calls(network: nn.Module) -> list[str]:
    """Paths of the modules without children that a forward pass calls, in order."""
    try:
        graph = torch.fx.Tracer().trace(network)
    except Exception:  # anything may fail that a network does with what is no tensor yet
        return [path for path, module in network.named_modules() if not list(module.children())]
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


def _check_kind(path: str, layer: _DropoutNd) -> None:
    if type(layer) not in (*_ELEMENTWISE, *_CHANNELWISE):
        raise _not_weight_noise(path, f"{type(layer).__name__} does more than multiply its input by a mask")
    if layer.p >= 1:
        raise _not_weight_noise(path, f"its rate is {layer.p}, and a rate must be in [0, 1)")


def _consumer(network: nn.Module, path: str, later: list[str]) -> str:
    """The weight layer that a dropout layer's output goes to."""
    elementwise = isinstance(network.get_submodule(path), _ELEMENTWISE)
    for name in later:
        module = network.get_submodule(name)
        if isinstance(module, nn.Linear | _ConvNd):
            if elementwise and isinstance(module, _ConvNd):
                raise _not_weight_noise(
                    path,
                    f"it drops single pixels, and noise on the weight of the convolution {name!r} drops whole "
                    "channels: use nn.Dropout2d (1d, 3d) there, or no layer and rate=",
                )
            if not elementwise and isinstance(module, nn.Linear):
                raise _not_weight_noise(
                    path,
                    f"it drops whole channels, and noise on the weight of the linear layer {name!r} drops single "
                    "inputs: use nn.Dropout there, or no layer and rate=",
                )
            return name
        if isinstance(module, _DropoutNd):
            if module.p == 0:
                continue
            raise _not_weight_noise(path, f"the dropout layer {name!r} comes next, before any weight layer")
        if not isinstance(module, _PASSING_ELEMENTS if elementwise else _PASSING_CHANNELS):
            raise _not_weight_noise(
                path,
                f"{name!r} ({type(module).__name__}) comes between it and the next weight layer, and does not hand "
                "on a mask as it is: put the dropout layer behind it",
            )
    raise _not_weight_noise(path, "no weight layer comes behind it")


def _not_weight_noise(path: str, why: str) -> ValueError:
    return ValueError(f"the dropout layer {path!r} is not noise on a weight's inputs: {why}")

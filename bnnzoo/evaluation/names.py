"""Names of the exported arrays' dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnnzoo.posterior import Posterior

_SPACE = {1: ("kernel",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def legal(site: str) -> str:
    """A site's name as netCDF and a DataTree take it: "/" becomes "_"."""
    return site.replace("/", "_")


def site_dims(network: nn.Module, site: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of a site's own dimensions, by the module that holds it.

    Linear weights: (out, in); convolutions (out, in, kernel), (out, in, height, width), (out, in, depth, height,
    width), transposed ones with in before out; normalization layers: channel; embeddings: (token, feature); biases:
    out; anything else: dim_0, dim_1, ... Each has the site's name in front, so that no two sites share a dimension.

    Args:
        network: The network that the site is a parameter of.
        site: The site's name.
        shape: The shape of one value.

    Returns:
        As many names as `shape` has dimensions.
    """
    holder, _, attribute = site.rpartition(".")
    try:
        module = network.get_submodule(holder)
        known = attribute in module._parameters
    except AttributeError:
        known = False
    if not known:  # a site of the likelihood
        own: tuple[str, ...] = ("output",) if len(shape) == 1 else ()
    elif attribute == "bias":
        own = ("out",)
    elif attribute != "weight":
        own = ()
    elif isinstance(module, nn.Linear):
        own = ("out", "in")
    elif isinstance(module, nn.Bilinear):
        own = ("out", "in1", "in2")
    elif isinstance(module, nn.Embedding):
        own = ("token", "feature")
    elif isinstance(module, _CONVOLUTIONS):
        own = ("out", "in", *_SPACE[len(shape) - 2])
    elif isinstance(module, _TRANSPOSED):
        own = ("in", "out", *_SPACE[len(shape) - 2])
    else:
        own = ("channel",) if len(shape) == 1 else ()
    if len(own) != len(shape):
        own = tuple(f"dim_{i}" for i in range(len(shape)))
    return tuple(f"{legal(site)}_{name}" for name in own)


def input_dims(x: Tensor) -> tuple[str, ...]:
    """Names of the dimensions of inputs [N, ...]."""
    own = {1: (), 2: ("feature",), 3: ("channel", "position"), 4: ("channel", "height", "width")}.get(x.dim())
    return ("obs", *(own if own is not None else (f"x_dim_{i}" for i in range(x.dim() - 1))))


def event_dims(count: int) -> tuple[str, ...]:
    """Names of the dimensions of one datum's targets."""
    return {0: (), 1: ("output",), 2: ("row", "column")}.get(count, tuple(f"y_dim_{i}" for i in range(count)))


def fed_by_inputs(posterior: Posterior, x: Tensor) -> list[str]:
    """The input dimensions of the linear layers that take the data's inputs [N, Q] as they are.

    Found by running the network once and watching what reaches its layers.

    Args:
        posterior: Whose network.
        x: Inputs in own units.

    Returns:
        Names of dimensions, such as `layers.0.weight_in`.
    """
    if x.dim() != 2:
        return []
    network = posterior.bnn.network
    rows = posterior._inputs(x[:2])
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            given = args[0] if args else None
            if isinstance(given, Tensor) and given.shape == rows.shape and given.data_ptr() == rows.data_ptr():
                found.append(f"{legal(name)}_in")

        return hook

    handles = [
        module.register_forward_pre_hook(watch(f"{name}.weight" if name else "weight"))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            posterior.bnn.output(posterior.bnn.initial_values(), rows)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found

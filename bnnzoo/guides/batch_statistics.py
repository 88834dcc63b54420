"""Statistics of the inputs of batch normalization layers: of random batches, and the Gaussians they come close to.

`run` is a network in eval mode, as a function of its inputs; `layers` are its batch normalization layers by path. The
network is run as it is: its layers are watched, and told by what to normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnnzoo._vectorize import CountingBytes, vectorize

Run = Callable[[Tensor], Tensor]
Layers = dict[str, _BatchNorm]

#: Bytes that the passes of several batches at once may take.
_MEMORY = 2**28


@dataclass(frozen=True)
class Statistics:
    """Batch statistics of one layer of C units: those of S batches, or Gaussians.

    Attributes:
        means: Batch means, [S, C]; of Gaussians their mean, [C].
        stds: Batch standard deviations, [S, C]; of Gaussians their center, [C].
        mean_scales: Standard deviations of the batch means, [C]; only of Gaussians.
        std_scales: Standard deviations of the batch standard deviations, [C]; only of Gaussians.
    """

    means: Tensor
    stds: Tensor
    mean_scales: Tensor | None = None
    std_scales: Tensor | None = None


def random_batches(size: int, batch_size: int, count: int) -> Tensor:
    """Rows of random batches, [count, batch_size], as training draws them: shuffled data are cut into batches.

    No row is twice in a batch; a last batch that is smaller is left out.

    Args:
        size: Number of data, at least `batch_size`.
        batch_size: Rows of a batch.
        count: Number of batches.
    """
    each = size // batch_size
    orders = [torch.randperm(size)[: each * batch_size] for _ in range(-(-count // each))]
    return torch.cat(orders).view(-1, batch_size)[:count]


def of_batches(run: Run, layers: Layers, x: Tensor, batches: Tensor) -> dict[str, Statistics]:
    """Mean and standard deviation (with divisor M) of every unit in every batch, by `vmap` over blocks of batches.

    Each batch goes through the network alone, all layers normalizing by its statistics, as in training.

    Args:
        run: The network.
        layers: Its layers.
        x: All inputs, [N, ...].
        batches: Rows of the batches, [S, M].

    Returns:
        Statistics by path of a layer; layers that do not run are left out.

    Raises:
        ValueError: If a layer runs more than once in one pass.
    """

    def statistics(rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        with _watching(layers) as inputs, _normalizing(layers, dict.fromkeys(layers)):
            run(rows)
        return {path: (h.mean(_but_channels(h)), _variance(h).sqrt()) for path, h in inputs.items()}

    with CountingBytes() as counting:
        statistics(x[batches[0]])
    together = max(1, _MEMORY // (3 * counting.bytes))  # mapped operations make more tensors than plain ones
    mapped = vectorize(statistics)
    parts = [mapped(x[block.to(x.device)]) for block in batches.split(together)]
    return {path: Statistics(*map(torch.cat, zip(*(part[path] for part in parts), strict=True))) for path in parts[0]}


def gaussian_form(run: Run, layers: Layers, x: Tensor, batch_size: int) -> dict[str, Statistics]:
    r"""Gaussians close to the distributions of random batches' means and standard deviations (Teye et al. 2018).

    A layer's inputs are taken over all N data while the layers before it normalize by *their* exact mean and variance
    over all N data: the network as it is at inference. One pass a layer, which ends there.

    With `a_n` the mean over positions of a unit's input `h` in example n, and `b_n` that of `(h - μ)²`, a batch of M
    examples has mean `μ_B = mean_B(a)` and variance `σ_B² = mean_B(b) - (μ_B - μ)²`, whose last term is of order 1/M.
    Examples are independent, the positions within one (of a convolution) are not, so

        Var μ_B = Var_n(a) f / M,    Var σ_B ≈ Var_n(b) f / (4 σ² M),    f = (N - M) / (N - 1),

    the second to first order in 1/M, of which order σ_B also lies below its center σ. f is due to drawing without
    replacement. Without positions `a = h`, `b = (h - μ)²`: σ²/M and (E[(h-μ)⁴] - σ⁴)/(4σ²M), the paper's (section 1.3
    of its appendix), which draws with replacement (f = 1). What batches do to the layers before is not in there.

    Args:
        run: The network.
        layers: Its layers.
        x: All inputs, [N, ...].
        batch_size: Rows M of a batch.

    Returns:
        Gaussians by path of a layer; layers that do not run are left out.

    Raises:
        ValueError: If a layer runs more than once in one pass, or not on one row an example.
    """
    probe = x[: min(len(x), batch_size)]
    with CountingBytes() as counting, _watching(layers) as inputs:
        run(probe)
    for path, h in inputs.items():
        if len(h) != len(probe):
            raise ValueError(
                f"{describe(path, layers[path])} gets {len(h)} rows for {len(probe)} examples, and "
                "statistics='gaussian' needs one an example: use statistics='batches'"
            )
    order = list(inputs)
    rows = max(1, _MEMORY // counting.bytes) * len(probe)
    exact: dict[str, tuple[Tensor, Tensor] | None] = {}
    result = {}
    for path in order:
        with _normalizing(layers, exact):
            moments = [_moments(_reaching(layers[path], run, block)) for block in x.split(rows)]
        a, spread = (torch.cat(parts) for parts in zip(*moments, strict=True))
        mean = a.mean(0)
        b = spread + (a - mean).square()
        variance = b.mean(0)
        factor = (len(x) - batch_size) / max(1, len(x) - 1) / batch_size
        mean_scale = (factor * a.var(0, correction=0)).sqrt()
        std_scale = (factor * b.var(0, correction=0) / (4 * variance)).sqrt().nan_to_num(0.0)  # 0 / 0: a constant unit
        like = layers[path].weight
        exact[path] = mean.to(like), variance.to(like)
        result[path] = Statistics(*(v.to(like) for v in (mean, variance.sqrt(), mean_scale, std_scale)))
    return result


def describe(path: str, layer: _BatchNorm) -> str:
    """A layer as messages name it."""
    return f"{path or 'the network'} ({type(layer).__name__})"


def _but_channels(h: Tensor) -> list[int]:
    return [dim for dim in range(h.dim()) if dim != 1]


def _variance(h: Tensor) -> Tensor:
    return h.var(_but_channels(h), correction=0)


def _moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over positions in each example, [N, C] each."""
    positions = h.flatten(2) if h.dim() > 2 else h.unsqueeze(-1)
    if h.device.type != "mps":  # it has no float64
        positions = positions.double()
    return positions.mean(-1), positions.var(-1, correction=0)


class _Reached(Exception):  # noqa: N818  (no error: it ends a pass)
    """A pass has reached the layer that it was for."""


def _reaching(layer: _BatchNorm, run: Run, x: Tensor) -> Tensor:
    """A layer's input, by a pass that ends there."""

    def stop(_: Any, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        run(x)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise AssertionError("the layer ran in an earlier pass")


@contextmanager
def _watching(layers: Layers) -> Iterator[dict[str, Tensor]]:
    """What the layers are given inside, by path, in the order they run."""
    inputs: dict[str, Tensor] = {}

    def watch(path: str, layer: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        if path in inputs:
            raise ValueError(
                f"{describe(path, layer)} runs more than once in one pass, each time on a batch with statistics of "
                "its own: give each use a layer of its own"
            )
        inputs[path] = args[0]

    with ExitStack() as stack:
        for path, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(watch, path)).remove)
        yield inputs


@contextmanager
def _normalizing(layers: Layers, given: dict[str, tuple[Tensor, Tensor] | None]) -> Iterator[None]:
    """Let layers in eval mode normalize by given means and variances; by their batch's, where those are None."""
    held = {path: (layers[path].running_mean, layers[path].running_var) for path in given}
    try:
        for path, statistics in given.items():
            # Without running statistics, eval mode takes the batch's.
            layers[path].running_mean, layers[path].running_var = statistics or (None, None)
        yield
    finally:
        for path, (mean, variance) in held.items():
            layers[path].running_mean, layers[path].running_var = mean, variance

"""What the checks of `bnnzoo.testing` measure with: mapped losses, comparisons of means, live memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnnzoo._vectorize import Pair, evaluating, pyro_settings, seeded, vectorize
from bnnzoo.chains import State, stack
from bnnzoo.guides import Guide
from bnnzoo.objectives import Sites

#: Standard errors that an estimate may be off: 2e-9 of normal ones are further.
WITHIN = 6.0

#: A loss as objectives have it: `loss(model, guide, x, y, size=N)`.
Loss = Callable[..., Tensor]


def require(condition: bool | Tensor, message: str) -> None:
    """Raise AssertionError with a message unless a condition holds, under `python -O` too."""
    if not condition:
        raise AssertionError(message)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put the name of what is tested in front of the messages of failures inside."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def require_close(found: Tensor, expected: Tensor, what: str, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Require equal values up to rounding."""
    require(found.shape == expected.shape, f"{what}: shape {list(found.shape)}, expected {list(expected.shape)}")
    found, expected = found.detach().double(), expected.detach().double()
    same = torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if not bool(same.all()):
        worst = int(torch.where(same, 0.0, (found - expected).abs()).argmax())
        pair = [value.flatten()[worst].item() for value in (found, expected)]
        raise AssertionError(f"{what}: {pair[0]:.7g} instead of {pair[1]:.7g}, at element {worst}")


def require_finite(values: dict[str, Tensor], what: str) -> None:
    """Require that no value is NaN or infinite."""
    for name, value in values.items():
        bad = int((~value.isfinite()).sum())
        require(bad == 0, f"{what} {name!r}: {bad} of {value.numel()} elements are NaN or infinite")


def require_equal_means(first: Tensor, second: Tensor, what: str) -> None:
    """Require that draws [S, ...] and [T, ...] have one mean, within their standard errors."""
    first, second = first.detach().double(), second.detach().double()
    a, b = first.mean(0), second.mean(0)
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    within = _quantile(min(len(first), len(second)) - 1)
    # Rounding is no deviation, where hardly anything is random.
    allowed = within * error + 1e-5 * torch.maximum(a.abs(), b.abs()) + 1e-7
    excess = ((a - b).abs() / allowed).reshape(-1)
    worst = int(torch.where(excess.isfinite(), excess, torch.inf).argmax())
    if not bool(excess[worst] <= 1):
        one, other, standard = (value.reshape(-1)[worst].item() for value in (a, b, error))
        raise AssertionError(
            f"{what}: means {one:.5g} and {other:.5g}, {abs(one - other) / (standard + 1e-300):.3g} standard errors "
            f"apart (allowed: {within:.3g}), at element {worst}"
        )


def _quantile(freedom: int) -> float:
    """How many estimated standard errors are as improbable as `WITHIN` true ones: Student's t, by Wallace (1959)."""
    z = WITHIN * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z * z / freedom))


def require_equal_moments(first: Tensor, second: Tensor, what: str) -> None:
    """Require that draws [S, ...] and [T, ...] have one mean and one variance, within standard errors."""
    require_equal_means(first, second, f"{what}, mean")
    center = torch.cat([first, second]).mean(0)
    require_equal_means((first - center).square(), (second - center).square(), f"{what}, variance")


def prepare(model: nn.Module, guide: nn.Module, x: Tensor, y: Tensor) -> Pair:
    """Model and guide as one module; Pyro's AutoGuides make their parameters here, as in `fit`."""
    pair = Pair(model, guide)
    with pyro_settings(pair), evaluating(pair):
        if not isinstance(guide, Guide):
            guide(x, y, size=len(x))
    return pair


def parameters_of(pair: Pair) -> dict[str, nn.Parameter]:
    """What is trained, by name."""
    return {name: p for name, p in pair.named_parameters() if p.requires_grad}


def perturb(pair: Pair, size: float, seed: int) -> None:
    """Add normal noise of a standard deviation to all trained parameters, in place."""
    with torch.no_grad(), seeded(seed):
        for parameter in parameters_of(pair).values():
            parameter.add_(size * torch.randn_like(parameter))


def call(pair: Pair, fn: Callable, *args: Any, **kwargs: Any) -> Any:
    """`fn(model, guide, *args)`, under the settings that mapped programs need."""
    with pyro_settings(pair):
        return pair(fn, *args, **kwargs)


def mapped(pair: Pair, state: State, count: int, fn: Callable, *args: Any, seed: int = 0) -> Any:
    """`fn(model, guide, *args)` for each chain of stacked states and `count` draws, [chain, draw, ...]."""
    parameters, buffers = state

    def once(parameters: dict[str, Tensor], buffers: dict[str, Tensor], _: Tensor) -> Any:
        return functional_call(pair, (parameters, buffers), (fn, *args))

    over_draws = vectorize(once, (None, 0, 0))
    each = {n: b[:, None].expand(-1, count, *b.shape[1:]).clone() for n, b in buffers.items()}  # passes may write them
    with pyro_settings(pair), seeded(seed), torch.no_grad():
        return vectorize(over_draws, (0, 0, None))(parameters, each, torch.arange(count))


def draws(pair: Pair, count: int, fn: Callable, *args: Any, seed: int = 0) -> Any:
    """`fn(model, guide, *args)` for `count` draws of a pair, [draw, ...]."""
    result = mapped(pair, stack([pair]), count, fn, *args, seed=seed)
    return {name: value[0] for name, value in result.items()} if isinstance(result, dict) else result[0]


def with_gradients(fn: Loss, parameters: Mapping[str, Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A loss and parts of its gradient by the named parameters, as a function to be mapped.

    A parameter's gradient is seen from two random directions: single elements may be zero in all draws but a few, which
    says little of their mean.
    """
    generator = torch.Generator().manual_seed(0)
    directions = {n: torch.randn(2, p.numel(), generator=generator).to(p) for n, p in parameters.items()}

    def both(model: nn.Module, guide: nn.Module, *args: Any) -> dict[str, Tensor]:
        pair = Pair(model, guide)
        own = dict(pair.named_parameters())

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in pair.named_buffers()}  # passes may write them
            return functional_call(pair, (parameters, buffers), (fn, *args))

        gradient, value = torch.func.grad_and_value(loss)({name: own[name] for name in parameters})
        seen = {f"gradient by {name!r}": directions[name] @ each.reshape(-1) for name, each in gradient.items()}
        return {"loss": value, **seen}

    return both


def drawn(_: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """The values of one draw's latent sites, of a guide that sees no data."""
    sites = Sites()
    sites.run(guide, None)
    return sites.drawn


def trace(_: nn.Module, guide: Any, *args: Any) -> Any:
    """Pyro's trace of the guide."""
    return poutine.trace(guide).get_trace(*args)


def sampled_loss(model: nn.Module, guide: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What Pyro's `Trace_ELBO` estimates by one draw of dense weights, in a form that can be mapped."""
    q = poutine.trace(guide).get_trace(x, y, size=len(x))
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x, y, size=len(x))
    return torch.as_tensor(q.log_prob_sum() - p.log_prob_sum())


class PeakMemory(TorchDispatchMode):
    """Follows the bytes of all tensors made inside that are still alive.

    Attributes:
        peak: Most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result

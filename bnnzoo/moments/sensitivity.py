"""Sensitivities: the covariance of a network's outputs, pulled back to every independent source of noise.

Variances that are propagated element by element take units for independent, which in trained networks they are not.
But what makes them dependent is known: they are functions of the same independent noise. `TracedMoments` propagate the
same means and variances and remember, as a tape, how each value depends on those before it. At the end the
sensitivities J of the outputs to every source are pulled back through the tape, and

    Cov(outputs) = Σ over sources of J s² Jᵀ

with the sources' variances s². At an elementwise function f the tape holds the gate `E f'(X) = ∂E f(X) / ∂E X`, the
slope of the best linear approximation of f (Stein's lemma); what f does beyond it, of variance
`Var f(X) - (E f'(X))² Var X`, is a source of its own. So are the noise of dropout, of units and of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from bnnzoo.moments.covariance import JointMoments, by_example, derivatives, lifted
from bnnzoo.moments.value import Moments, mean_of, paired, random_values, substituted

#: From sensitivities [K, *shape] to a value, to its share in the outputs' covariance, [N, K, K].
Source = Callable[[Tensor], Tensor]
#: From sensitivities [K, *shape] to a value, to those to each of its parents.
Pullback = Callable[[Tensor], tuple[Tensor, ...]]

#: Elements of the largest intermediate result of the noise of shared weights.
_BLOCK = 2**24


@dataclass(eq=False)
class Node:
    """A value on the tape.

    Attributes:
        shape: Its shape.
        sources: The noise that enters there.
        parents: The values that it was made of.
        pullback: To them.
    """

    shape: torch.Size
    sources: Sequence[Source] = ()
    parents: Sequence[Node] = ()
    pullback: Pullback | None = None


class TracedMoments(Moments):
    """Moments that remember what they were made of, so that covariances can be pulled back to the sources of noise.

    Means and variances are those of `Moments`. `covariance`, computed when it is asked for, is the full covariance of
    the elements of each example; it costs about as much as K plain backward passes from K elements down to the first
    source (K = 10 outputs of a dense network: some 5 passes of moments), in memory K times the largest layers. All of
    it is differentiable and runs under `torch.func.vmap` (over chains, say), without and with gradients.

    First-order: of a product of two random factors, and of noise that elements share times random values, what is of
    second order counts as independent by element; gates are taken at the variances of `Moments`.

    Values, noise too, must have the batch as their first dimension. Plain random `Moments` that are met, such as random
    weights, become sources, one for each example; at every meeting another one, so that weights that are used twice
    count as independent.

    Args:
        mean: Means, [N, ...].
        variance: As of `Moments`: of a source of independent elements.
    """

    node: Node

    @staticmethod
    def __new__(cls, mean: Tensor, variance: Tensor | float | None = None) -> TracedMoments:  # noqa: D102
        value: Any = Moments.__new__(cls, mean, variance)
        value.node = Node(value.shape, () if value.certain else (partial(_independent, value._variance),))
        return value

    @property
    def covariance(self) -> Tensor:
        """The covariances of the elements of each example, flattened, [N, K, K]; computed at every call.

        Raises:
            ValueError: If noise entered a value whose first dimension is not the batch.
        """
        examples = self.shape[0]
        size = math.prod(self.shape[1:])
        seeds = torch.eye(size, dtype=self.dtype, device=self.device)
        pending = {self.node: seeds.view(size, 1, *self.shape[1:]).expand(size, *self.shape)}
        total = self.loc.new_zeros(examples, size, size)
        for node in _from_the_end(self.node):
            sensitivity = pending.pop(node)
            for source in node.sources:
                share = source(sensitivity)
                if len(share) != examples:
                    raise ValueError(
                        f"noise enters a value of shape {list(node.shape)}: sensitivities need the batch, here of "
                        f"{examples}, as the first dimension"
                    )
                total = total + share
            if node.pullback is None:
                continue
            for parent, part in zip(node.parents, node.pullback(sensitivity), strict=True):
                pending[parent] = pending[parent] + part if parent in pending else part
        return total

    def resolved(self) -> JointMoments:
        """The means with the covariance, and with its diagonal as the variances."""
        return JointMoments.with_covariance(self.loc, self.covariance)

    def plus_noise(self, variance: Tensor, shape: Sequence[int] | None = None) -> TracedMoments:
        """With independent noise of mean 0 added: a source."""
        if shape is None or tuple(shape) == tuple(self.shape):
            source = partial(_independent, variance.expand(self.shape))
        else:
            source = partial(_shared, None, by_example(variance.expand(shape), self))
        return self._then(self.variance + variance, source)

    def times_noise(self, variance: Tensor | float, shape: Sequence[int] | None = None) -> TracedMoments:
        """Multiplied by independent noise of mean 1: a source, and one more for what it does to the value's own."""
        spread = torch.as_tensor(variance, dtype=self.dtype, device=self.device)
        if shape is None or tuple(shape) == tuple(self.shape):
            noise = spread * self.second_moment
            return self._then(self.variance + noise, partial(_independent, noise))
        sources = [partial(_shared, self.loc, by_example(spread.expand(torch.Size(shape)), self))]
        if not self.certain:
            sources.append(partial(_independent, spread * self.variance))
        return self._then(self.variance + spread * self.second_moment, *sources)

    def plus_weight_noise(
        self, op: Callable, input: Moments, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> TracedMoments:
        """The output of a layer with the noise of its weights added, which the positions of an example share."""
        noise = op(input.second_moment, weight, bias, *args, **kwargs)
        if op is F.linear and input.dim() == 2:  # every output has weights of its own
            return self._then(self.variance + noise, partial(_independent, noise))

        def layer(x: Tensor, kernel: Tensor) -> Tensor:
            return op(x, kernel, None, *args, **kwargs)

        sources: list[Source] = [partial(_shared_weights, layer, input.loc, weight)]
        if not input.certain:
            sources.append(partial(_independent, layer(input.variance, weight)))
        if bias is not None:
            channels = bias if op is F.linear else bias.view(-1, *[1] * (weight.dim() - 2))
            sources.append(partial(_shared, None, by_example(channels, self)))
        return self._then(self.variance + noise, *sources)

    @classmethod
    def affine(cls, func: Callable, variance: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Apply a function that is affine in its random arguments, jointly; its transpose pulls back."""
        args, kwargs = _lifted(args, kwargs)
        inputs = _traced(args, kwargs)
        if not inputs:
            return super().affine(func, variance, args, kwargs)
        position = {id(value): index for index, value in enumerate(inputs)}

        def on_means(*locs: Tensor) -> tuple[list[Tensor], Any]:
            def put(value: Any) -> Any:
                return locs[position[id(value)]] if id(value) in position else mean_of(value)

            result = func(*substituted(put, args), **substituted(put, kwargs))
            several = isinstance(result, tuple | list)
            return [each for each in (result if several else [result]) if _is_real(each)], result

        means, pull, result = vjp(on_means, *(value.loc for value in inputs), has_aux=True)
        result = paired(result, variance(*args, **kwargs), cls)
        several = isinstance(result, tuple | list)
        for index, part in enumerate(each for each in (result if several else [result]) if _is_real(each)):
            back = partial(_one_of, pull, means, index)
            part.node = Node(part.shape, (), [value.node for value in inputs], vmap(back))
        return result

    @classmethod
    def elementwise(cls, moments: Callable[..., tuple[Tensor, Tensor]], args: Any, kwargs: Any) -> TracedMoments:
        """Apply an elementwise function of random arguments: gates, and the rest of its variance as a source."""
        args, kwargs = _lifted(args, kwargs)
        inputs = [value for value in args if isinstance(value, TracedMoments) and not value.certain]
        if not inputs:
            return cast(TracedMoments, super().elementwise(moments, args, kwargs))

        mean, variance, slopes = derivatives(moments, args, kwargs, inputs)
        gates = [gate for (gate,) in slopes]
        rest = variance
        for value, gate in zip(inputs, gates, strict=True):
            rest = rest - gate.square() * value.variance
        result = cls(mean, variance)
        result.node = Node(
            mean.shape,
            [partial(_independent, rest.clamp_min(0.0))],
            [value.node for value in inputs],
            partial(_gated, gates, [value.shape for value in inputs]),
        )
        return result

    def _then(self, variance: Tensor, *sources: Source) -> TracedMoments:
        """The value with further sources added, of the variances given."""
        result = type(self)(self.loc, variance)
        result.node = Node(self.shape, sources) if self.certain else Node(self.shape, sources, [self.node], _same)
        return result


def _same(sensitivity: Tensor) -> tuple[Tensor]:
    return (sensitivity,)


def _gated(gates: Sequence[Tensor], shapes: Sequence[torch.Size], sensitivity: Tensor) -> tuple[Tensor, ...]:
    return tuple(_summed(sensitivity * gate, shape) for gate, shape in zip(gates, shapes, strict=True))


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _one_of(pull: Callable, outputs: list[Tensor], index: int, sensitivity: Tensor) -> tuple[Tensor, ...]:
    """The pullback of one of a function's outputs."""
    return pull([sensitivity if each == index else torch.zeros_like(other) for each, other in enumerate(outputs)])


def _independent(variance: Tensor, sensitivity: Tensor) -> Tensor:
    """The share of noise that is independent by element, of variances [N, ...]."""
    rows = sensitivity.flatten(2) if sensitivity.dim() > 2 else sensitivity.unsqueeze(-1)
    rows = rows.transpose(0, 1)  # [N, K, D]
    return (rows * variance.reshape(len(variance), 1, -1)) @ rows.mT


def _shared(factor: Tensor | None, variance: Tensor, sensitivity: Tensor) -> Tensor:
    """The share of noise that elements share, times a factor of their own."""
    if factor is not None:
        sensitivity = sensitivity * factor
    return _independent(variance, _summed(sensitivity, variance.shape))


def _shared_weights(layer: Callable, input: Tensor, variance: Tensor, sensitivity: Tensor) -> Tensor:
    """The share of the noise of weights, of variances in the weight's shape, that all positions share."""

    def one(x: Tensor, rows: Tensor) -> Tensor:
        _, pull = vjp(lambda kernel: layer(x.unsqueeze(0), kernel).squeeze(0), variance)
        (gradients,) = vmap(pull)(rows)
        gradients = gradients.flatten(1)
        return (gradients * variance.flatten()) @ gradients.mT

    at_once = max(1, _BLOCK // (len(sensitivity) * variance.numel()))
    return vmap(one, in_dims=(0, 1), chunk_size=at_once)(input, sensitivity)


def _summed(sensitivity: Tensor, shape: Sequence[int]) -> Tensor:
    """Sensitivities [K, ...] to a value that was broadcast from `shape`, [K, *shape]."""
    extra = sensitivity.dim() - 1 - len(shape)
    if extra:
        sensitivity = sensitivity.sum(tuple(range(1, 1 + extra)))
    stretched = [1 + dim for dim, size in enumerate(shape) if size == 1 and sensitivity.shape[1 + dim] != 1]
    return sensitivity.sum(stretched, keepdim=True) if stretched else sensitivity


def _lifted(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A function's arguments with plain random moments as sources, one for each example of the batch."""
    like = next((each for each in random_values(args, kwargs) if isinstance(each, TracedMoments)), None)
    if like is None or not like.is_floating_point():
        return args, kwargs

    lift = partial(lifted, like, {})
    return substituted(lift, args), substituted(lift, kwargs)


def _traced(args: Any, kwargs: Any) -> list[TracedMoments]:
    """The random ones among a function's arguments, each once."""
    found = {id(each): each for each in random_values(args, kwargs) if isinstance(each, TracedMoments)}
    return [each for each in found.values() if not each.certain]


def _from_the_end(last: Node) -> Iterator[Node]:
    """A value and all that it was made of, each before those that it was made of."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(last, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return reversed(order)

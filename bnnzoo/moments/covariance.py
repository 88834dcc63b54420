"""Full covariances: `JointMoments`, a mean and the covariances of all elements of each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from bnnzoo.moments.value import (
    Moments,
    NoRuleError,
    current,
    mean_of,
    means,
    random_values,
    substituted,
)

#: Elements of the largest intermediate result when rows of a covariance go through an operation at once.
_BLOCK = 2**24


class JointMoments(Moments):
    """A random tensor [N, ...] known by its means and, example by example, the covariances of all its elements.

    Covariances go through affine operations exactly, `A C Aᵀ`. Through elementwise functions f they go by Price's
    theorem: of jointly Gaussian X_i and X_j with covariance C_ij,

        Cov(f(X_i), f(X_j)) = Σ_{k≥1} C_ijᵏ / k! · E f⁽ᵏ⁾(X_i) · E f⁽ᵏ⁾(X_j),

    cut after `order` terms (`bnnzoo.moments.options`), with the exact variance of f(X_i) on the diagonal. Each term is
    positive semi-definite, and what the diagonal has beyond the terms is not negative, so that the result is positive
    semi-definite. `E f⁽ᵏ⁾` are derivatives of the rule of the mean by the mean.

    Memory and time of K elements go with K² and, in dense layers, K³: for up to about 1,000 of them. The covariance of
    the last layer's outputs (class logits, say) given that of the last hidden layer is exact.

    Only one value carries covariances: where two different random values meet (a residual connection, max pooling),
    nothing is known of their covariance and `NoRuleError` is raised; `covariance="sensitivity"` has no such limit.
    Independent noise, and random weights and biases that are plain `Moments`, may be met.

    Args:
        mean: Means, [N, ...].
        variance: As of `Moments`; the elements are independent then. See `with_covariance` else.
    """

    #: None: the elements are independent, as far as their variances tell.
    _covariance: Tensor | None

    @staticmethod
    def __new__(cls, mean: Tensor, variance: Tensor | float | None = None) -> JointMoments:  # noqa: D102
        value: Any = Moments.__new__(cls, mean, variance)
        value._covariance = None
        return value

    @classmethod
    def with_covariance(cls, mean: Tensor, covariance: Tensor) -> JointMoments:
        """Of means [N, ...] and covariances [N, K, K] of each example's K elements, flattened."""
        value = cls(mean, covariance.diagonal(dim1=-2, dim2=-1).reshape(mean.shape).clamp_min(0.0))
        value._covariance = covariance
        return value

    @property
    def covariance(self) -> Tensor:
        """The covariances of the elements of each example, flattened, [N, K, K]."""
        if self._covariance is not None:
            return self._covariance
        return torch.diag_embed(self.variance.reshape(len(self.loc), -1))

    def plus_noise(self, variance: Tensor, shape: Sequence[int] | None = None) -> JointMoments:
        """With independent noise of mean 0 added."""
        if self._covariance is None and self._is_own(shape):
            return JointMoments(self.loc, self.variance + variance)
        return self.with_covariance(self.loc, self.covariance + self._noise(variance, shape))

    def times_noise(self, variance: Tensor | float, shape: Sequence[int] | None = None) -> JointMoments:
        """Multiplied by independent noise of mean 1."""
        variance = torch.as_tensor(variance, dtype=self.dtype, device=self.device)
        if self._is_own(shape):
            return self.plus_noise(variance * self.second_moment)
        loc = self.loc.flatten(1)
        second_moments = self.covariance + loc.unsqueeze(-1) * loc.unsqueeze(-2)
        return self.with_covariance(self.loc, self.covariance + self._noise(variance, shape) * second_moments)

    def plus_weight_noise(
        self, op: Callable, input: Moments, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> JointMoments:
        """The output of a dense layer with the noise of its weights added.

        Raises:
            NoRuleError: If outputs share weights: in a convolution, or along extra dimensions.
        """
        if op is not F.linear or input.dim() != 2:
            raise NoRuleError(
                f"covariance='full' has no rule for {op.__name__} of random weights on an input of "
                f"{input.dim()} dimensions, whose outputs share weights: use covariance='sensitivity'"
            )
        return self.plus_noise(op(input.second_moment, weight, bias))

    @classmethod
    def affine(cls, func: Callable, variance: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Apply a function that is affine in its random arguments, jointly, to rows and columns of covariances."""
        args, kwargs, inputs = _joint(func, args, kwargs)
        if not inputs:
            return super().affine(func, variance, args, kwargs)
        mean = func(*means(args), **means(kwargs))
        if isinstance(mean, tuple | list):
            parts = [
                cls.with_covariance(part, _transformed(func, args, kwargs, inputs, index))
                if part.is_floating_point()
                else part
                for index, part in enumerate(mean)
            ]
            return type(mean)(*parts) if hasattr(mean, "_fields") else type(mean)(parts)
        return cls.with_covariance(mean, _transformed(func, args, kwargs, inputs))

    @classmethod
    def elementwise(cls, moments: Callable[..., tuple[Tensor, Tensor]], args: Any, kwargs: Any) -> JointMoments:
        """Apply an elementwise function by the series of Price's theorem; of several arguments, its first term."""
        args, kwargs, inputs = _joint(moments, args, kwargs, one=True)
        if not inputs:
            return cast(JointMoments, super().elementwise(moments, args, kwargs))
        order = current().order if len(inputs) == 1 else 1
        mean, variance, slopes = derivatives(moments, args, kwargs, inputs, order)
        if all(value._covariance is None and value.shape == mean.shape for value in inputs):
            return cls(mean, variance)
        terms = []
        for value, gates in zip(inputs, slopes, strict=True):
            stretched: Any = value if value.shape == mean.shape else value.expand(mean.shape)
            power = covariance = stretched.covariance
            for k, gate in enumerate(gates, 1):
                power = power if k == 1 else power * covariance / k
                gate = gate.reshape(len(mean), -1)
                terms.append(power * (gate.unsqueeze(-1) * gate.unsqueeze(-2)))
        total = terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)
        rest = variance.reshape(len(mean), -1) - total.diagonal(dim1=-2, dim2=-1)
        return cls.with_covariance(mean, total + torch.diag_embed(rest.clamp_min(0.0)))

    def _is_own(self, shape: Sequence[int] | None) -> bool:
        """Whether noise of that shape is independent from element to element."""
        return shape is None or tuple(shape) == tuple(self.shape)

    def _noise(self, variance: Tensor, shape: Sequence[int] | None) -> Tensor:
        """Covariance [N, K, K] of noise of a shape that broadcasts with the value's."""
        if shape is None or self._is_own(shape):
            return torch.diag_embed(variance.expand(self.shape).flatten(1))
        variance = variance.expand(torch.Size(shape)).expand(self.shape).flatten(1)
        event = tuple(shape)[1:] if len(shape) == self.dim() else tuple(shape)
        index = torch.arange(math.prod(event), device=self.device).view(event).expand(self.shape[1:]).flatten()
        return variance.unsqueeze(-1) * (index.unsqueeze(-1) == index)


def _joint(func: Callable, args: Any, kwargs: Any, one: bool = False) -> tuple[Any, Any, list[JointMoments]]:
    """A function's arguments, plain random ones made joint; and the random ones, each once, independent of each other.

    Raises:
        NoRuleError: If more than one of them carries covariances (or, if `one`, does so twice).
    """
    like = next(each for each in random_values(args, kwargs) if isinstance(each, JointMoments))
    found = [each for each in random_values(args, kwargs) if isinstance(each, JointMoments) and not each.certain]
    if len({id(each) for each in found}) > 1 or (one and len(found) > 1):
        raise NoRuleError(
            f"two random values meet in {getattr(func, '__name__', func)}, between which covariance='full' knows no "
            "covariance: use covariance='sensitivity'"
        )

    lift = partial(lifted, like, {})
    args, kwargs = substituted(lift, args), substituted(lift, kwargs)
    values = {id(each): each for each in random_values(args, kwargs) if isinstance(each, JointMoments)}
    return args, kwargs, [each for each in values.values() if not each.certain]


def _transformed(
    func: Callable, args: Any, kwargs: Any, inputs: Sequence[JointMoments], index: int | None = None
) -> Tensor:
    """The covariance [N, M, M] of an affine function, or of one of its results, of independent random arguments."""

    def of(value: JointMoments) -> Tensor:
        if func is F.linear and value.dim() == args[1].dim() == 2:
            weight = args[1]  # a tensor: random ones are none of an affine function's arguments
            if value._covariance is None:
                return (weight * value.variance.unsqueeze(1)) @ weight.mT
            return weight @ value.covariance @ weight.mT

        def on_mean(loc: Tensor) -> Tensor:
            def put(each: Any) -> Any:
                return loc if each is value else mean_of(each)

            result = func(*substituted(put, args), **substituted(put, kwargs))
            return result if index is None else result[index]

        output, pull = vjp(on_mean, value.loc)
        # the transpose of the transpose: torch's forward mode warns of its own use of TorchScript
        _, push = vjp(lambda cotangent: pull(cotangent)[0], torch.zeros_like(output))

        def linear(rows: Tensor) -> Tensor:
            """The linear part on rows [N, R, K]: [N, R, M]."""

            def on_row(row: Tensor) -> Tensor:
                return push(row.reshape(value.shape))[0].reshape(len(row), -1)

            at_once = max(1, _BLOCK // value.loc.numel())
            return vmap(on_row, in_dims=1, out_dims=1, chunk_size=at_once)(rows)

        return linear(linear(value.covariance).mT)

    return torch.stack([of(value) for value in inputs]).sum(0) if len(inputs) > 1 else of(inputs[0])


def derivatives(
    moments: Callable[..., tuple[Tensor, Tensor]], args: Any, kwargs: Any, inputs: Sequence[Moments], order: int = 1
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Mean and variance of an elementwise function, and derivatives of the mean by the means of its arguments.

    Args:
        moments: As of `Moments.elementwise`.
        args: The same.
        kwargs: The same.
        inputs: The arguments by which to differentiate, in their order.
        order: Of the highest derivative, ≥ 1; of several arguments 1.

    Returns:
        The mean, the variance, and for each argument its derivatives, `order` of them, in the mean's shape.
    """

    def at(shape: torch.Size) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        def rule(*locs: Tensor) -> tuple[Tensor, Tensor]:
            given = iter(locs)
            flat: list[Any] = []
            for value in args:
                if any(value is each for each in inputs):
                    flat += [next(given), value.variance.expand(shape)]
                else:
                    flat += [value.loc, value.variance] if isinstance(value, Moments) else [value]
            return moments(*flat, **kwargs)

        function: Callable[..., Any] = rule
        for _ in range(order):
            function = _differentiated(function)
        found, rest = function(*(value.loc.expand(shape) for value in inputs))
        slopes: list[Any] = []
        for _ in range(order):
            slopes.insert(0, found)
            found, rest = rest
        return found, rest, [slopes] if len(inputs) == 1 else [[each] for each in slopes[0]]

    shape = torch.broadcast_shapes(*(value.shape for value in inputs))
    result = at(shape)
    # a certain argument may be larger
    return result if result[0].shape == shape else at(result[0].shape)


def _differentiated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The derivatives of a function of elements, one or a tuple of them, and with them what it returns itself.

    The function returns a value and anything besides.
    """

    def derivative(*locs: Tensor) -> Any:
        value, pull, rest = vjp(function, *locs, has_aux=True)
        slopes = pull(torch.ones_like(value))
        return slopes[0] if len(slopes) == 1 else slopes, (value, rest)

    return derivative


def lifted(like: Moments, known: dict[int, Moments], value: Any) -> Any:
    """Plain random moments that are met, as a source of noise, one for each example; any other value as it is.

    Args:
        like: What meets them; gives its class and its batch.
        known: What has been made of them, by their ids: the same of the same.
        value: Any value.
    """
    if type(value) is not Moments or value.certain or not like.is_floating_point():
        return value
    if id(value) not in known:
        loc, variance = value.loc, value.variance
        if value.dim() < like.dim() or (value.dim() == like.dim() and value.shape[0] == 1):
            loc, variance = by_example(loc, like), by_example(variance, like)
        known[id(value)] = type(like)(loc, variance)
    return known[id(value)]


def by_example(value: Tensor, like: Tensor) -> Tensor:
    """A tensor that broadcasts with one of a batch, with a batch dimension of its own."""
    padded = value.view(*[1] * (like.dim() - value.dim()), *value.shape)
    return padded.expand(like.shape[0], *padded.shape[1:])

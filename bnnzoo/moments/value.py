"""`Moments`: a mean and a variance for every element of a tensor, as one value that flows through a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from bnnzoo.rules import METADATA

if TYPE_CHECKING:
    from bnnzoo.moments.origins import Origin

Approximation = Literal["exact", "paper"]
Fallback = Literal["linearize", "quadrature", "sample"]
Softmax = Literal["normal", "logistic", "simplified", "exact"]


def check_softmax(kind: Any, optional: bool = False) -> None:
    """Refuse what is no approximation of class probabilities.

    Args:
        kind: Any value.
        optional: Whether None is allowed too.

    Raises:
        ValueError: If it is none.
    """
    if kind not in get_args(Softmax) and not (optional and kind is None):
        known = ", ".join(map(repr, get_args(Softmax))) + (" or None" if optional else "")
        raise ValueError(f"softmax must be one of {known}, not {kind!r}")


@dataclass(frozen=True)
class Options:
    """How operations treat moments.

    Attributes:
        approximation: `"exact"`: closed forms or quadrature; `"paper"`: the approximations of the paper where it has
            one (Shekhovtsov & Flach 2018, appendix C.1).
        fallback: What an operation without a rule does; None: it raises `NoRuleError`.
        order: Terms of covariances through elementwise functions, see `JointMoments`.
        softmax: The approximation of class probabilities, see `bnnzoo.moments.softmax.log_softmax`.
    """

    approximation: Approximation = "exact"
    fallback: Fallback | None = None
    order: int = 1
    softmax: Softmax = "logistic"

    def __post_init__(self) -> None:
        if self.approximation not in ("exact", "paper"):
            raise ValueError(f"approximation must be 'exact' or 'paper', not {self.approximation!r}")
        if self.fallback not in (None, "linearize", "quadrature", "sample"):
            raise ValueError(f"fallback must be 'linearize', 'quadrature', 'sample' or None, not {self.fallback!r}")
        if isinstance(self.order, bool) or self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {self.order!r}")
        check_softmax(self.softmax)


_DEFAULT = Options()
_options: ContextVar[Options] = ContextVar("moment_options", default=_DEFAULT)


def current() -> Options:
    """The options in force."""
    return _options.get()


@contextmanager
def options(
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
    order: int = 1,
    softmax: Softmax = "logistic",
) -> Iterator[None]:
    """Set how operations treat moments inside, for this thread.

    Args:
        approximation: `"exact"` (closed forms where they exist, else quadrature) or `"paper"`, see `Options`.
        fallback: What an operation without a rule does, see `bnnzoo.moments.fallbacks`: `"linearize"`, `"quadrature"`
            or `"sample"`; None raises `NoRuleError`.
        order: Terms, 1 to 3, of covariances through elementwise functions, of `covariance="full"`; see `JointMoments`.
        softmax: The approximation of class probabilities in softmax and log-softmax: `"normal"`, `"logistic"`,
            `"simplified"` or `"exact"`, see `bnnzoo.moments.softmax.log_softmax`.

    Raises:
        ValueError: If one of them is unknown.
    """
    token = _options.set(Options(approximation, fallback, order, softmax))
    try:
        yield
    finally:
        _options.reset(token)


class NoRuleError(NotImplementedError):
    """An operation has no rule for moments; says which, and where in the network."""


class Moments(torch.Tensor):
    """A random tensor of independent elements, known by their means and variances.

    It looks like a tensor of the mean's shape and flows through networks that know nothing of it: each operation
    applies its rule (`bnnzoo.moments.table`) and returns moments again, taking its arguments' elements for independent
    and, where it is not linear, for Gaussian ("AP2" of Shekhovtsov & Flach 2018). Where nothing is uncertain, the
    operation is applied to the mean as it is.

    Args:
        mean: Means, any shape, floating-point (integers, as of an embedding, where there is no variance).
        variance: Variances ≥ 0, of a shape that broadcasts to the mean's, or a number. None: the value is certain, and
            costs no more than its mean, until it meets something random.

    Attributes:
        loc: The means. (`mean` is the method of tensors: networks call it to average.)

    Raises:
        ValueError: If the variance does not broadcast to the mean's shape, or the mean is not floating-point.

    Example:
        >>> import torch
        >>> from bnnzoo.moments import Moments
        >>> x = torch.nn.functional.relu(Moments(torch.zeros(2), torch.ones(2)))
        >>> x.loc, x.variance
        (tensor([0.3989, 0.3989]), tensor([0.3408, 0.3408]))
    """

    loc: Tensor
    _variance: Tensor | None

    #: Of a weight: the variance α of multiplicative noise of mean 1 on its input units; `variance` is α loc² then.
    input_noise: Tensor | None = None

    #: Of a random weight, and of what is made of one alone: where it comes from.
    origin: Origin | None = None

    #: Whether elements share the noise of a weight's input units, which variances do not tell.
    shares_noise: bool = False

    @staticmethod
    def __new__(cls, mean: Tensor, variance: Tensor | float | None = None) -> Moments:  # noqa: D102
        value = torch.Tensor._make_wrapper_subclass(cls, mean.shape, dtype=mean.dtype, device=mean.device)
        if variance is not None:
            if not mean.is_floating_point():
                raise ValueError(f"a mean of {mean.dtype} has no variance: means are floating-point where there is one")
            if not isinstance(variance, Tensor):
                variance = mean.new_full((), variance).expand(mean.shape)
            elif variance.shape != mean.shape:
                try:
                    variance = variance.expand(mean.shape)
                except RuntimeError as error:
                    raise ValueError(
                        f"variance of shape {list(variance.shape)} does not broadcast to the mean's shape "
                        f"{list(mean.shape)}"
                    ) from error
        if variance is not None and variance.dtype != mean.dtype:
            variance = variance.to(mean.dtype)
        value.loc = mean
        value._variance = variance
        return value

    def __init__(self, mean: Tensor, variance: Tensor | float | None = None) -> None: ...

    @property
    def variance(self) -> Tensor:
        """The variances, in the mean's shape."""
        return torch.zeros_like(self.loc) if self._variance is None else self._variance

    @property
    def scale(self) -> Tensor:
        """The standard deviations, in the mean's shape."""
        return self.variance.sqrt()

    @property
    def certain(self) -> bool:
        """Whether the value is known to have no variance."""
        return self._variance is None

    @property
    def second_moment(self) -> Tensor:
        """The means of the squares, in the mean's shape."""
        square = self.loc.square()
        return square if self._variance is None else square + self._variance

    @property
    def covariance(self) -> Tensor:
        """The covariances of the elements of each example, flattened, [N, K, K].

        Raises:
            AttributeError: If this way of propagating takes elements for independent and has none.
        """
        raise AttributeError(
            f"{type(self).__name__} have variances alone: for covariances propagate with covariance='sensitivity' or "
            "covariance='full'"
        )

    def resolved(self) -> Moments:
        """The value at the end of a network: as good a covariance and variance as this way of propagating has."""
        return self

    def plus_noise(self, variance: Tensor, shape: Sequence[int] | None = None) -> Moments:
        """With independent noise of mean 0 added.

        Args:
            variance: Of the noise, broadcastable with `shape`.
            shape: The noise's own shape, where elements share it: broadcastable with the value's. Default: the value's.
        """
        return type(self)(self.loc, variance if self._variance is None else self._variance + variance)

    def times_noise(self, variance: Tensor | float, shape: Sequence[int] | None = None) -> Moments:
        """Multiplied by independent noise of mean 1.

        Args:
            variance: Of the noise, a number or broadcastable with `shape`.
            shape: The noise's own shape, where elements share it: broadcastable with the value's. Default: the value's.
        """
        spread = variance * self.loc.square()
        if self._variance is not None:
            spread = spread + (1 + variance) * self._variance
        return type(self)(self.loc, spread)

    def plus_weight_noise(
        self, op: Callable, input: Moments, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> Moments:
        """The output of a linear layer or a convolution with the noise of its weights added, independent by element.

        Args:
            op: The operation, `op(input, weight, bias, ...)`, whose output for the weights' means this is.
            input: Its input.
            weight: The weights' variances.
            bias: The biases' variances, or None.
            args: Further arguments of the operation (stride, padding, ...).
            kwargs: The same by name.
        """
        return self.plus_noise(op(input.second_moment, weight, bias, *args, **kwargs))

    @classmethod
    def affine(cls, func: Callable, variance: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Apply a function that is affine in its random arguments, jointly.

        Args:
            func: The function.
            variance: Takes the function's arguments, moments among them, and returns the result's variances.
            args: The function's positional arguments.
            kwargs: And those by name.
        """
        return paired(func(*means(args), **means(kwargs)), variance(*args, **kwargs), cls)

    @classmethod
    def elementwise(cls, moments: Callable[..., tuple[Tensor, Tensor]], args: Any, kwargs: Any) -> Moments:
        """Apply an elementwise function of one or several random arguments, independent of each other.

        Args:
            moments: Takes the function's arguments, a mean and a variance in place of each random one, and returns the
                result's mean and variance.
            args: The function's positional arguments.
            kwargs: And those by name.
        """
        flat: list[Any] = []
        for value in args:
            flat += [value.loc, value.variance] if isinstance(value, Moments) else [value]
        return cls(*moments(*flat, **kwargs))

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply the operation's rule; the operation itself to the means, where nothing is uncertain."""
        from bnnzoo.moments.table import IN_PLACE, PLAIN, RANDOM, RULES

        kwargs = kwargs or {}
        if kwargs.pop("inplace", False) or func in IN_PLACE:
            return in_place(IN_PLACE.get(func, func), args, kwargs)
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in PLAIN:
            return func(*means(args), **means(kwargs))
        values = random_values(args, kwargs)
        if func not in RANDOM and all(value.certain for value in values):
            return paired(func(*means(args), **means(kwargs)), cls=family(args, kwargs))

        def apply(args: Any, kwargs: Any) -> Any:
            rule = RULES.get(func)
            if rule is not None:
                return rule(*args, **kwargs)
            from bnnzoo.moments.fallbacks import fall_back

            return fall_back(func, args, kwargs)

        if any(value.origin is not None or value.input_noise is not None or value.shares_noise for value in values):
            from bnnzoo.moments.origins import applied

            return applied(apply, func, args, kwargs)
        return apply(args, kwargs)

    def become(self, result: Moments) -> Moments:
        """Take a result's place of the same shape and dtype: what operations in place do.

        Views that were made of the value before do not change with it, unlike those of a tensor.

        Raises:
            NoRuleError: If the result has another shape or dtype.
        """
        if result.shape != self.shape or result.dtype != self.dtype:
            raise NoRuleError(
                f"moments of shape {list(self.shape)} and {self.dtype} cannot become {list(result.shape)} and "
                f"{result.dtype} in place"
            )
        self.__class__ = type(result)
        self.__dict__.clear()
        self.__dict__.update(result.__dict__)
        return self

    def __copy__(self) -> Moments:
        copied = type(self)(self.loc, self._variance)
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: Any) -> Moments:
        copied = type(self)(self.loc, self._variance)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (type(self), self.loc, self._variance, self.__dict__)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Never reached through Python: operations are answered by `__torch_function__`."""
        raise NotImplementedError(f"{func} reached moments below torch's Python API")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(mean={self.loc!r}, variance={None if self.certain else self.variance!r})"


def _restored(cls: type[Moments], mean: Tensor, variance: Tensor | None, state: dict[str, Any]) -> Moments:
    value = cls(mean, variance)
    value.__dict__.update(state)
    return value


#: What the arguments of functions are nested in; a tuple is much faster to ask for than a union of types.
_NESTED = (tuple, list, dict)


def substituted(fn: Callable[[Any], Any], value: Any) -> Any:
    """A function's arguments with a function applied to each, within lists, tuples and dicts too."""
    if not isinstance(value, _NESTED):
        return fn(value)
    if isinstance(value, dict):
        return {name: substituted(fn, each) for name, each in value.items()} if value else value
    return type(value)([substituted(fn, each) if isinstance(each, _NESTED) else fn(each) for each in value])


def in_place(func: Callable, args: Any, kwargs: Any) -> Any:
    """Apply the operation that does the same out of place; moments that are its first argument become the result."""
    result = func(*args, **kwargs)
    target = args[0] if args else kwargs.get("input")
    return target.become(result) if isinstance(target, Moments) and isinstance(result, Moments) else result


def mean_of(value: Any) -> Any:
    """The mean of a value that has moments; any other value as it is."""
    return value.loc if isinstance(value, Moments) else value


def variance_of(value: Any) -> Any:
    """The variance of a value that has moments; zeros for any other tensor, other values as they are."""
    if isinstance(value, Moments):
        return value.variance if value.loc.is_floating_point() else value.loc  # indices stay
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def means(arguments: Any) -> Any:
    """A function's arguments with means in place of moments."""
    return substituted(mean_of, arguments)


def variances(arguments: Any) -> Any:
    """A function's arguments with variances in place of moments, and zeros in place of other tensors."""
    return substituted(variance_of, arguments)


def paired(mean: Any, variance: Any = None, cls: type[Moments] = Moments) -> Any:
    """Moments of means and variances, for each of several results; certain ones without variances."""
    if isinstance(mean, tuple | list):
        given = (None,) * len(mean) if variance is None else variance
        parts = [paired(*both, cls) for both in zip(mean, given, strict=True)]
        return type(mean)(*parts) if hasattr(mean, "_fields") else type(mean)(parts)  # named ones keep their names
    return cls(mean, variance if mean.is_floating_point() else None) if isinstance(mean, Tensor) else mean


def random_values(*arguments: Any) -> list[Moments]:
    """The values among a function's arguments that have moments."""
    found: list[Moments] = []
    for value in arguments:
        if isinstance(value, Moments):
            found.append(value)
        elif isinstance(value, _NESTED) and value:
            found += random_values(*(value.values() if isinstance(value, dict) else value))
    return found


def family(*arguments: Any) -> type[Moments]:
    """The class whose way of propagating holds for several values together: the most derived one."""
    return max((type(value) for value in random_values(*arguments)), key=lambda each: len(each.__mro__))

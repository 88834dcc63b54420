"""Likelihoods: the distribution of a target given the output of the network.

Every likelihood is a module whose hyperparameters are buffers or parameters, written for one draw of the weights and
fit to run under `torch.func.vmap`: `conditional`, `distribution`, `log_prob` and `expected_log_prob` never look at
values. What a user can get wrong is caught before, by `prepare` (targets) and `check` (targets against outputs).

Shapes: N examples, C outputs, K classes. A network with one output gives [N, 1], its targets are [N].
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pyro import distributions as dist
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from bnnzoo.priors import _base_support, map_tensors

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "Gaussian", "HeteroscedasticGaussian", "Likelihood", "Poisson"]

_LOG_2PI = math.log(2.0 * math.pi)
# E f(x) for x ~ N(m, s^2) is sum_i weight_i f(m + s node_i)
_points, _mass = np.polynomial.hermite_e.hermegauss(32)
_NODES, _WEIGHTS = torch.from_numpy(_points), torch.from_numpy(_mass / _mass.sum())


def _expect(fn: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """E fn(x) for x ~ N(mean, variance), elementwise, by 32-point Gauss-Hermite quadrature."""
    nodes = _NODES.to(device=mean.device, dtype=mean.dtype)
    weights = _WEIGHTS.to(device=mean.device, dtype=mean.dtype)
    # the floor keeps the gradient of the root finite at zero variance
    std = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    return fn(mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes) @ weights


def _squeeze(output: Tensor) -> Tensor:
    """[N, 1] -> [N]: one output has no event dimension."""
    return output.squeeze(-1) if output.dim() == 2 and output.shape[-1] == 1 else output


def _sum(values: Tensor) -> Tensor:
    """[N, ...] -> [N]."""
    return values.flatten(1).sum(-1) if values.dim() > 1 else values


def _dims(shape: torch.Size) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


class Likelihood(nn.Module):
    """Base class of likelihoods.

    Attributes:
        family: The Pyro distribution of one target.
        task: `"regression"`, `"classification"` or `"counts"`.
        standardizes_targets: Whether `fit` may standardize targets, and `rescale` undoes it.
    """

    family: ClassVar[type[Distribution]]
    task: ClassVar[str]
    standardizes_targets: ClassVar[bool] = False

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments: `type(self)(**self.arguments())` with this state dict is this likelihood."""
        return {}

    def sites(self) -> dict[str, Distribution]:
        """Priors of the likelihood's own latent sites, expanded to the sites' shapes."""
        return {}

    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        """Parameters of `family` for every target, of equal rank, the examples first.

        Args:
            output: The network's output, [N, ...].
            **sites: Values of the latent sites of `sites()`.
        """
        raise NotImplementedError

    def distribution(self, output: Tensor, **sites: Tensor) -> Distribution:
        """The distribution of the targets: batch shape [N], all else event.

        Args:
            output: The network's output, [N, ...].
            **sites: Values of the latent sites of `sites()`.
        """
        targets = self.family(**self.conditional(output, **sites))
        return targets.to_event(len(targets.batch_shape) - 1)

    def log_prob(self, output: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Log density of targets, [N].

        Args:
            output: The network's output, [N, ...].
            y: Targets as `prepare` returns them.
            **sites: Values of the latent sites of `sites()`.
        """
        return self.distribution(output, **sites).log_prob(y)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Expectation of `log_prob` over independent Gaussian outputs, [N].

        Args:
            mean: Means of the network's outputs, [N, ...].
            variance: Their variances, non-negative, of the same shape.
            y: Targets as `prepare` returns them.
            **sites: Values of the latent sites of `sites()`.
        """
        raise NotImplementedError

    def rescale(self, parameters: dict[str, Tensor], loc: Tensor | float, scale: Tensor | float) -> dict[str, Tensor]:
        """Undo the standardization of targets: the parameters for `y * scale + loc`.

        Args:
            parameters: As `conditional` returns them, with any leading dimensions.
            loc: What was subtracted from targets: a number or [C].
            scale: What they were divided by then: a number or [C], positive.

        Raises:
            ValueError: The targets of this likelihood cannot be standardized.
        """
        raise ValueError(f"{type(self).__name__} targets have no units to standardize: there is nothing to rescale.")

    def prepare(self, y: Any) -> Tensor:
        """Bring targets into this likelihood's dtype and shape.

        Args:
            y: Tensor or array, [N], [N, 1] or [N, C].

        Returns:
            [N] for one output ([N, 1] is squeezed), else [N, C].

        Raises:
            ValueError: These cannot be targets of this likelihood.
        """
        y = self._tensor(y)
        if y.dim() not in (1, 2):
            raise ValueError(f"{self._me} targets must have shape [N] or [N, C]; y has shape {_dims(y.shape)}.")
        return _squeeze(y)

    def check(self, output: Tensor, y: Tensor) -> None:
        """Check that outputs of the network fit the targets.

        Args:
            output: The network's output for a batch.
            y: The targets of the batch, as `prepare` returns them.

        Raises:
            ValueError: They do not fit; says what was given and what is needed.
        """
        needed = (*y.shape[:1], self.num_outputs(y))
        if output.shape != needed:
            raise ValueError(
                f"{self._me} needs network outputs of shape {_dims(torch.Size(needed))} for targets of shape "
                f"{_dims(y.shape)}; the network returns {_dims(output.shape)}."
            )

    def num_outputs(self, y: Tensor) -> int:
        """How many outputs a network needs for these targets.

        Args:
            y: Targets as `prepare` returns them.
        """
        return 1 if y.dim() == 1 else y.shape[1]

    @property
    def _me(self) -> str:
        return f"A {type(self).__name__} likelihood"

    def _tensor(self, y: Any) -> Tensor:
        """Targets as a finite real tensor."""
        try:
            y = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self._me} needs numeric targets; y is {type(y).__name__}: {error}") from None
        if y.is_complex():
            raise ValueError(f"{self._me} needs real targets; y has dtype {y.dtype}.")
        if y.dim() == 0 or y.shape[0] == 0:
            raise ValueError(f"{self._me} needs at least one target; y has shape {_dims(y.shape)}.")
        bad = ~torch.isfinite(y)
        if bad.any():
            first = bad.nonzero()[0].tolist()
            raise ValueError(f"y holds {int(bad.sum())} values that are NaN or infinite, the first at index {first}.")
        return y

    def _integers(self, y: Tensor, what: str) -> None:
        if y.is_floating_point() and bool((y != y.round()).any()):
            example = y[y != y.round()].flatten()[0].item()
            raise ValueError(f"{self._me} needs {what}; y holds {example:g}.")


class _GaussianTargets(Likelihood):
    """What Gaussian likelihoods share."""

    family = dist.Normal
    task = "regression"
    standardizes_targets = True

    @override
    def log_prob(self, output: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        given = self.conditional(output, **sites)
        residual = (y.to(output.dtype) - given["loc"]) / given["scale"]
        return _sum(-0.5 * (residual.square() + _LOG_2PI) - given["scale"].log())

    @override
    def rescale(self, parameters: dict[str, Tensor], loc: Tensor | float, scale: Tensor | float) -> dict[str, Tensor]:
        return {"loc": parameters["loc"] * scale + loc, "scale": parameters["scale"] * scale}

    @override
    def prepare(self, y: Any) -> Tensor:
        y = super().prepare(y)
        return y if y.is_floating_point() else y.to(torch.get_default_dtype())


class Gaussian(_GaussianTargets):
    """Gaussian noise of one scale for all examples: network outputs are the means.

    Args:
        scale: A positive number or tensor [C]: fixed. `None`: learned by maximum likelihood from 0.5. A distribution
            on positive numbers: the prior of the site `noise`.
        num_outputs: How many noise scales there are: 1 (shared by all targets) or C (one each). A tensor of scales sets
            it.

    Attributes:
        prior: The prior of `noise`, or `None`.

    Raises:
        ValueError: The scale is not positive, the prior has not positive support, or the shapes do not fit.
    """

    fixed_scale: Tensor | None
    log_scale: Tensor | None

    def __init__(self, scale: float | Tensor | Distribution | None = None, num_outputs: int = 1) -> None:
        super().__init__()
        if isinstance(num_outputs, bool) or not isinstance(num_outputs, int) or num_outputs < 1:
            raise ValueError(f"Gaussian(num_outputs={num_outputs!r}): must be a whole number, at least 1.")
        self.prior: Distribution | None = None
        self.register_buffer("fixed_scale", None)
        self.register_parameter("log_scale", None)
        self._count = num_outputs
        if scale is None:
            self.log_scale = nn.Parameter(torch.full(self._shape, math.log(0.5)))
        elif isinstance(scale, Distribution):
            self.prior = self._checked_prior(scale)
        else:
            self.fixed_scale = self._checked_scale(scale)

    @property
    def scale(self) -> Tensor | None:
        """The scale, fixed or as learned so far, [] or [C]; `None` where it is a latent site."""
        return self.fixed_scale if self.log_scale is None else self.log_scale.exp()

    @override
    def arguments(self) -> dict[str, Any]:
        scale = self.prior if self.fixed_scale is None else self.fixed_scale
        return {"scale": scale, "num_outputs": self._count}

    @override
    def sites(self) -> dict[str, Distribution]:
        if self.prior is None:
            return {}
        return {"noise": self.prior if self.prior.event_dim else self.prior.expand(self._shape)}

    @override
    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        loc = _squeeze(output)
        scale = self.scale
        if scale is None:
            scale = sites["noise"]
        # equal ranks: stacked over draws, [draw, 1, C] still broadcasts against [draw, N, C]
        return {"loc": loc, "scale": scale.reshape((1,) * (loc.dim() - scale.dim()) + tuple(scale.shape))}

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Expectation of `log_prob` over independent Gaussian outputs, [N]: exact.

        Args:
            mean: Means of the outputs, [N, C].
            variance: Their variances, [N, C].
            y: Targets, [N] or [N, C].
            **sites: `noise`, where the scale has a prior.
        """
        scale = self.conditional(mean, **sites)["scale"]
        return self.log_prob(mean, y, **sites) - _sum(0.5 * _squeeze(variance) / scale.square())

    @override
    def check(self, output: Tensor, y: Tensor) -> None:
        super().check(output, y)
        if self._count not in (1, output.shape[1]):
            raise ValueError(
                f"{self._me} with {self._count} noise scales cannot describe targets of shape {_dims(y.shape)}: give "
                f"one scale, or num_outputs={output.shape[1]}."
            )

    @override
    def extra_repr(self) -> str:
        if self.prior is not None:
            return f"scale={self.prior}, num_outputs={self._count}"
        return f"scale={None if self.fixed_scale is None else self.fixed_scale.tolist()}, num_outputs={self._count}"

    @property
    def _shape(self) -> tuple[int, ...]:
        return () if self._count == 1 else (self._count,)

    def _checked_scale(self, scale: float | Tensor) -> Tensor:
        try:
            fixed = torch.as_tensor(scale).detach().clone()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"Gaussian(scale={scale!r}): must be a positive number, a tensor [C], a Pyro distribution or None."
            ) from None
        fixed = fixed if fixed.is_floating_point() else fixed.to(torch.get_default_dtype())
        if not bool((torch.isfinite(fixed) & (fixed > 0)).all()):
            raise ValueError(f"Gaussian(scale={scale!r}): a scale must be positive and finite.")
        fixed = fixed.reshape(()) if fixed.numel() == 1 else fixed
        if fixed.dim() > 1 or (fixed.dim() == 1 and self._count not in (1, len(fixed))):
            raise ValueError(
                f"Gaussian(scale of shape {_dims(fixed.shape)}, num_outputs={self._count}): needs a number "
                "or one scale for each output."
            )
        self._count = max(self._count, fixed.numel())
        return fixed

    def _checked_prior(self, prior: Distribution) -> Distribution:
        support = _base_support(prior)
        lower = getattr(support, "lower_bound", None)
        if getattr(prior, "is_discrete", False) or lower is None or bool((torch.as_tensor(lower) < 0).any()):
            raise ValueError(
                f"Gaussian(scale={prior}): the prior of a scale needs positive support, such as LogNormal, HalfNormal, "
                f"HalfCauchy or Gamma; this one has {support}."
            )
        try:
            fits = torch.broadcast_shapes(prior.batch_shape + prior.event_shape, self._shape) == torch.Size(self._shape)
        except RuntimeError:
            fits = False
        if not fits or (prior.event_dim and prior.batch_shape + prior.event_shape != self._shape):
            raise ValueError(
                f"Gaussian(scale={prior}, num_outputs={self._count}): a prior of shape "
                f"{_dims(prior.batch_shape + prior.event_shape)} does not fit the site `noise` of shape "
                f"{_dims(torch.Size(self._shape))}."
            )
        return prior

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Gaussian":
        super()._apply(fn, recurse)
        if self.prior is not None:  # a distribution is no module: .to(device) would pass it by
            self.prior = map_tensors(self.prior, fn)
        return self


class HeteroscedasticGaussian(_GaussianTargets):
    """Gaussian noise whose scale the network predicts for every example.

    Outputs are [N, 2C]: C means, then C unconstrained scales; a scale is `min_scale + softplus(output)`.

    Args:
        min_scale: Smallest scale, positive, in units of standardized targets: keeps the likelihood bounded.

    Raises:
        ValueError: `min_scale` is not a positive finite number.
    """

    def __init__(self, min_scale: float = 1e-3) -> None:
        super().__init__()
        if not (math.isfinite(min_scale) and min_scale > 0):
            raise ValueError(f"HeteroscedasticGaussian(min_scale={min_scale!r}): must be positive and finite.")
        self.min_scale = float(min_scale)

    @override
    def arguments(self) -> dict[str, Any]:
        return {"min_scale": self.min_scale}

    @override
    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        loc, raw = output.chunk(2, -1)
        return {"loc": _squeeze(loc), "scale": self._scale(_squeeze(raw))}

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Expectation of `log_prob` over independent Gaussian outputs, [N].

        Exact in the means; the scale's `E log s` and `E s^-2` by 32-point Gauss-Hermite quadrature.

        Args:
            mean: Means of the outputs, [N, 2C].
            variance: Their variances, [N, 2C].
            y: Targets, [N] or [N, C].
            **sites: None.
        """
        loc, raw = (_squeeze(half) for half in mean.chunk(2, -1))
        loc_variance, raw_variance = (_squeeze(half) for half in variance.chunk(2, -1))
        square = (y.to(mean.dtype) - loc).square() + loc_variance
        log_scale = _expect(lambda value: self._scale(value).log(), raw, raw_variance)
        precision = _expect(lambda value: self._scale(value).pow(-2), raw, raw_variance)
        return _sum(-0.5 * (_LOG_2PI + square * precision) - log_scale)

    @override
    def num_outputs(self, y: Tensor) -> int:
        return 2 * super().num_outputs(y)

    @override
    def extra_repr(self) -> str:
        return f"min_scale={self.min_scale}"

    def _scale(self, raw: Tensor) -> Tensor:
        return self.min_scale + F.softplus(raw)


class Categorical(Likelihood):
    """Class labels: outputs are logits, [N, K], or [N, K, H, W] for labels [N, H, W] (or more such dimensions)."""

    family = dist.Categorical
    task = "classification"

    @override
    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        return {"logits": output.movedim(1, -1)}

    @override
    def log_prob(self, output: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        return _sum(-F.cross_entropy(output, y, reduction="none"))

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """A lower bound of the expectation of `log_prob` over independent Gaussian logits, [N].

        `E log sum_k exp f_k` has no closed form. For every `a`, it is at most
        `sum_k a_k^2 v_k / 2 + log sum_k exp(m_k + (1 - 2 a_k) v_k / 2)` (Knowles and Minka 2011): Jensen's bound
        at `a = 0`, and convex in `a`; ten majorization steps from `softmax(m)` come close to the best `a`.
        The bound is exact at zero variance.

        Args:
            mean: Means of the logits, [N, K, ...].
            variance: Their variances, of the same shape.
            y: Labels, [N, ...].
            **sites: None.
        """
        tilt = mean.softmax(1)
        for _ in range(10):
            probs = (mean + (0.5 - tilt) * variance).softmax(1)
            tilt = tilt + (probs - tilt) / (1.0 + 0.5 * variance)  # diagonal bound of the Hessian: never a step too far
        bound = 0.5 * (tilt.square() * variance).sum(1) + (mean + (0.5 - tilt) * variance).logsumexp(1)
        return _sum(mean.gather(1, y.unsqueeze(1)).squeeze(1) - bound)

    def prepare(self, y: Any) -> Tensor:
        """Bring labels into shape and dtype.

        Args:
            y: Whole numbers from 0: [N], [N, 1] (squeezed) or [N, H, W].

        Returns:
            int64, [N] or [N, H, W].

        Raises:
            ValueError: Labels are negative, not whole, NaN, or have an impossible shape.
        """
        y = _squeeze(self._tensor(y))
        if y.dim() == 2:
            raise ValueError(
                f"{self._me} needs class labels of shape [N] (or [N, H, W]); y has shape {_dims(y.shape)}. For one-hot "
                "rows give y.argmax(1); for several yes/no targets use Bernoulli()."
            )
        self._integers(y, "class labels 0, 1, 2, ...")
        y = y.long()
        if bool((y < 0).any()):
            raise ValueError(f"{self._me} needs class labels from 0; y holds {int(y.min())}.")
        return y

    @override
    def check(self, output: Tensor, y: Tensor) -> None:
        if output.dim() < 2 or output.shape[:1] + output.shape[2:] != y.shape:
            needed = ["N", "K", *map(str, y.shape[1:])]
            raise ValueError(
                f"{self._me} needs logits of shape [{', '.join(needed)}] for {y.shape[0]} labels of shape "
                f"{_dims(y.shape)}; the network returns {_dims(output.shape)}."
            )
        classes = output.shape[1]
        if classes < 2:
            raise ValueError(f"{self._me} needs at least 2 logits, one a class; use Bernoulli() with a single logit.")
        if bool(((y < 0) | (y >= classes)).any()):
            raise ValueError(
                f"Class labels must be 0 to {classes - 1} for a network of {classes} outputs; y holds labels "
                f"{int(y.min())} to {int(y.max())}."
            )

    def num_outputs(self, y: Tensor) -> int:
        """Number of classes: the largest label + 1, at least 2."""
        return max(int(y.max()) + 1, 2)


class Bernoulli(Likelihood):
    """Yes/no targets: outputs are logits, [N, 1] for targets [N], or [N, C] for C targets each."""

    family = dist.Bernoulli
    task = "classification"

    @override
    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        return {"logits": _squeeze(output)}

    @override
    def log_prob(self, output: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        logits = _squeeze(output)
        return _sum(y.to(logits.dtype) * logits - F.softplus(logits))

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Expectation of `log_prob` over independent Gaussian logits, [N].

        `E softplus(f)` is that of a Gaussian-smoothed ReLU, which is exact, plus 32-point Gauss-Hermite quadrature of
        the small difference.

        Args:
            mean: Means of the logits, [N, C].
            variance: Their variances, [N, C].
            y: Targets, [N] or [N, C].
            **sites: None.
        """
        mean, variance = _squeeze(mean), _squeeze(variance)
        return _sum(y.to(mean.dtype) * mean - _expected_softplus(mean, variance))

    @override
    def prepare(self, y: Any) -> Tensor:
        y = super().prepare(y)
        if bool(((y != 0) & (y != 1)).any()):
            bad = y[(y != 0) & (y != 1)].flatten()[0].item()
            raise ValueError(f"{self._me} needs targets 0 and 1; y holds {bad:g}.")
        return y if y.is_floating_point() else y.to(torch.get_default_dtype())


# softplus is relu smoothed by logistic noise of variance pi^2 / 3
_LOGISTIC_VARIANCE = math.pi**2 / 3.0


def _smooth_relu(mean: Tensor, variance: Tensor) -> Tensor:
    """E relu(x) for x ~ N(mean, variance), positive variance."""
    std = variance.sqrt()
    ratio = mean / std
    return mean * torch.special.ndtr(ratio) + std * torch.exp(-0.5 * (ratio.square() + _LOG_2PI))


def _expected_softplus(mean: Tensor, variance: Tensor) -> Tensor:
    def rest(value: Tensor) -> Tensor:
        return F.softplus(value) - _smooth_relu(value, torch.full_like(value, _LOGISTIC_VARIANCE))

    return _smooth_relu(mean, variance + _LOGISTIC_VARIANCE) + _expect(rest, mean, variance)


class Poisson(Likelihood):
    """Counts: outputs are log rates, [N, 1] for targets [N], or [N, C] for C counts each."""

    family = dist.Poisson
    task = "counts"

    @override
    def conditional(self, output: Tensor, **sites: Tensor) -> dict[str, Tensor]:
        return {"rate": _squeeze(output).exp()}

    @override
    def log_prob(self, output: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        return self.expected_log_prob(output, torch.zeros_like(output), y)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor, **sites: Tensor) -> Tensor:
        """Expectation of `log_prob` over independent Gaussian log rates, [N]: exact.

        Args:
            mean: Means of the log rates, [N, C].
            variance: Their variances, [N, C].
            y: Counts, [N] or [N, C].
            **sites: None.
        """
        mean, variance = _squeeze(mean), _squeeze(variance)
        y = y.to(mean.dtype)
        return _sum(y * mean - torch.exp(mean + 0.5 * variance) - torch.lgamma(y + 1.0))

    @override
    def prepare(self, y: Any) -> Tensor:
        y = super().prepare(y)
        self._integers(y, "counts 0, 1, 2, ...")
        if bool((y < 0).any()):
            raise ValueError(f"{self._me} needs counts 0, 1, 2, ...; y holds {y.min().item():g}.")
        return y if y.is_floating_point() else y.to(torch.get_default_dtype())


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic": HeteroscedasticGaussian,
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
}
"""The likelihoods by name; each constructor may be called without arguments."""

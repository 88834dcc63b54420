"""What all likelihoods share."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnzoo._types import Distribution
from bnnzoo.power_mean import TINY

LOG_2PI = math.log(2.0 * math.pi)


def squeeze(output: Tensor) -> Tensor:
    """[N, 1] -> [N]: one output has no event dimension."""
    return output.squeeze(-1) if output.dim() == 2 and output.shape[-1] == 1 else output


def total(values: Tensor) -> Tensor:
    """[N, ...] -> [N]."""
    return values.flatten(1).sum(-1) if values.dim() > 1 else values


def dims(shape: torch.Size) -> str:
    """A shape as messages show it: [8, 1]."""
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
        targets: Any = self.family(**self.conditional(output, **sites))
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

    def log_power_mean(self, mean: Tensor, variance: Tensor, y: Tensor, alpha: float, **sites: Tensor) -> Tensor:
        """`(1/α) log E[p(y | f)^α]` over independent Gaussian outputs f, [N]: the data term of BB-α without sampling.

        Rises with α, from `expected_log_prob` at α = 0, its limit there, to the log predictive density at α = 1.

        Args:
            mean: Means of the network's outputs, [N, ...].
            variance: Their variances, non-negative, of the same shape.
            y: Targets as `prepare` returns them.
            alpha: α, a finite number; below 1e-30 in size it counts as 0.
            **sites: Values of the latent sites of `sites()`.

        Raises:
            ValueError: If α is not finite, or below the least that the likelihood can do.
            NotImplementedError: If the likelihood has no such method.
        """
        raise NotImplementedError(
            f"{self._me} has no `log_power_mean`: the (1/α) log E[p(y | f)^α] over Gaussian outputs f that BB-α needs "
            "where it does not sample"
        )

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
            raise ValueError(f"{self._me} targets must have shape [N] or [N, C]; y has shape {dims(y.shape)}.")
        return squeeze(y)

    def check(self, output: Tensor, y: Tensor) -> None:
        """Check that outputs of the network fit the targets.

        Args:
            output: The network's output for the first few examples, [B, ...] (all N will do).
            y: The targets of all N examples, as `prepare` returns them.

        Raises:
            ValueError: They do not fit; says what was given and what is needed.
        """
        needed = self.num_outputs(y)
        if output.dim() != 2 or output.shape[1] != needed or len(output) > len(y):
            raise ValueError(
                f"{self._me} needs network outputs of shape [N, {needed}] for targets of shape {dims(y.shape)}; the "
                f"network returns {dims(output.shape)}."
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
            raise ValueError(f"{self._me} needs at least one target; y has shape {dims(y.shape)}.")
        bad = ~torch.isfinite(y)
        if bad.any():
            first = bad.nonzero()[0].tolist()
            raise ValueError(f"y holds {int(bad.sum())} values that are NaN or infinite, the first at index {first}.")
        return y

    def _alpha(self, alpha: float, least: float = -math.inf, below: str = "") -> float:
        """A checked α, 0 where single precision cannot divide by it."""
        if not math.isfinite(alpha):
            raise ValueError(f"{self._me} needs a finite alpha, not {alpha!r}.")
        if alpha < least:
            raise ValueError(f"{self._me} needs alpha of at least {least:g}, not {alpha!r}: {below}.")
        return 0.0 if abs(alpha) < TINY else float(alpha)

    def _integers(self, y: Tensor, what: str) -> None:
        if y.is_floating_point() and bool((y != y.round()).any()):
            example = y[y != y.round()].flatten()[0].item()
            raise ValueError(f"{self._me} needs {what}; y holds {example:g}.")

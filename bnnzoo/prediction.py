"""`Prediction`: the posterior predictive of a batch of inputs, in the target's own units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor

from bnnzoo._types import Distribution
from bnnzoo._vectorize import seeded

#: How a posterior predicts: by draws of the weights, or by their moments.
Method = Literal["draws", "moments"]

#: Elements that one block of a reduction over draws may hold.
_BLOCK = 2**23

#: Least number of sampled targets that quantiles of counts are taken from.
_COUNTS = 1000


@dataclass(frozen=True)
class Prediction:
    """A mixture over draws: one distribution of the targets for every chain, draw and input.

    Attributes:
        parameters: Parameters of `family`, each [chain, draw, N, *event] or broadcastable to it (Categorical: with a
            last dimension of K classes).
        family: The distribution of one target.
        task: `"regression"`, `"classification"` or `"counts"`.
    """

    parameters: dict[str, Tensor]
    family: type[Distribution]
    task: str

    @property
    def distribution(self) -> Distribution:
        """The targets' distribution for each draw; batch shape [chain, draw, N, *event]."""
        return self.family(**self.parameters)

    @property
    def shape(self) -> torch.Size:
        """[chain, draw, N, *event]."""
        shape = torch.broadcast_shapes(*(value.shape for value in self.parameters.values()))
        return shape[:-1] if issubclass(self.family, dist.Categorical) else shape

    def __len__(self) -> int:
        return self.shape[2]

    def __repr__(self) -> str:
        chains, draws, *rest = self.shape
        return f"Prediction({self.family.__name__}, {chains} chains x {draws} draws of {rest} targets)"

    @property
    def draws(self) -> Tensor:
        """Means of the targets given each draw, [chain, draw, N, *event]; class probabilities, with K last."""
        distribution = self.distribution
        return distribution.probs if self.task == "classification" else distribution.mean

    @property
    def mean(self) -> Tensor:
        """Mean of the posterior predictive, [N, *event].

        Raises:
            TypeError: For classes, which have no mean: use `probs`.
        """
        return self._reduce(lambda d: self._number(d, "mean").mean((0, 1)))

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean over draws: what more data would remove, [N, *event]."""
        return self._reduce(lambda d: self._number(d, "mean").var((0, 1), correction=0))

    @property
    def aleatoric(self) -> Tensor:
        """Mean over draws of the conditional variance: the noise, [N, *event]."""
        return self._reduce(lambda d: self._number(d, "variance").mean((0, 1)))

    @property
    def variance(self) -> Tensor:
        """Variance of the posterior predictive, epistemic + aleatoric, [N, *event]."""
        return self.epistemic + self.aleatoric

    @property
    def std(self) -> Tensor:
        """Standard deviation of the posterior predictive, [N, *event]."""
        return self.variance.sqrt()

    @property
    def probs(self) -> Tensor:
        """Class probabilities of the posterior predictive, [N, K]; two classes for Bernoulli targets."""
        return self._reduce(lambda d: self._classes(d).mean((0, 1)))

    @property
    def classes(self) -> Tensor:
        """The most probable class, [N]."""
        return self.probs.argmax(-1)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the class probabilities in nats, total uncertainty, [N]."""
        return _entropy(self.probs)

    @property
    def mutual_information(self) -> Tensor:
        """Mutual information of class and weights in nats, the epistemic part of `entropy`, ≥ 0, [N]."""
        expected = self._reduce(lambda d: _entropy(self._classes(d)).mean((0, 1)))
        return (self.entropy - expected).clamp_min(0.0)

    def log_prob(self, y: Any) -> Tensor:
        """Log density of targets under the mixture over all chains and draws, [N].

        Args:
            y: Targets in their own units, [N, *event].

        Raises:
            ValueError: If `y` does not have the prediction's shape.
        """
        y = self._targets(y)

        def mixture(d: Distribution, rows: Tensor) -> Tensor:
            log_density = d.log_prob(rows)
            log_density = log_density.flatten(3).sum(-1) if log_density.dim() > 3 else log_density
            return log_density.logsumexp((0, 1)) - math.log(math.prod(log_density.shape[:2]))

        return self._reduce(mixture, y)

    def cdf(self, y: Any) -> Tensor:
        """Distribution function of the posterior predictive at targets, [N, *event]: uniform if calibrated.

        Args:
            y: Targets in their own units, [N, *event].

        Raises:
            TypeError: For discrete targets.
        """
        self._continuous("a cdf")
        return self._reduce(lambda d, rows: d.cdf(rows).mean((0, 1)), self._targets(y))

    def quantile(self, q: float, seed: int = 0) -> Tensor:
        """Quantile of the posterior predictive, [N, *event].

        Exact (bisection on the mixture's distribution function) for continuous targets; of sampled targets for counts,
        one a draw, and as many times more as it takes to have 1000.

        Args:
            q: Probability, in (0, 1).
            seed: Seed of the sampled targets.

        Raises:
            ValueError: If `q` is out of range.
            TypeError: For classes.
        """
        if not 0 < q < 1:
            raise ValueError(f"q must be in (0, 1), not {q}")
        if self.task == "counts":
            times = math.ceil(_COUNTS / math.prod(self.shape[:2]))
            with seeded(seed, next(iter(self.parameters.values())).device), torch.no_grad():
                counts = self.distribution.sample((times,)).flatten(0, 2)
            return counts.kthvalue(math.ceil(q * (len(counts) - 1)) + 1, 0).values.double()
        self._continuous("a quantile")

        def bisect(d: Distribution) -> Tensor:
            centers, spread = d.mean, 12 * d.stddev
            low, high = (centers - spread).amin((0, 1)), (centers + spread).amax((0, 1))
            for _ in range(60 if low.dtype == torch.float64 else 30):
                middle = (low + high) / 2
                below = d.cdf(middle).mean((0, 1)) < q
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            return (low + high) / 2

        return self._reduce(bisect)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central interval of the posterior predictive: lower and upper ends, [N, *event] each.

        Args:
            level: Probability inside, in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), not {level}")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def sample(self, seed: int = 0) -> Tensor:
        """One target for each draw, from the posterior predictive, [chain, draw, N, *event]."""
        with seeded(seed, next(iter(self.parameters.values())).device), torch.no_grad():
            return self.distribution.sample()

    def chain(self, index: int) -> Self:
        """The prediction of one chain alone."""
        chains = self.shape[0]
        if not 0 <= index < chains:
            raise IndexError(f"there is no chain {index}; chains are 0 to {chains - 1}")
        return replace(self, parameters=of_chain(self.parameters, index))

    @property
    def pooled(self) -> Self:
        """The prediction with all chains as one: an ensemble's, [1, chain x draw, N, *event]."""
        return replace(self, parameters=of_groups(self.parameters, *self.shape[:2], members=self.shape[0]))

    def double(self) -> Self:
        """The same in float64, in which sure probabilities still differ and small differences do not cancel."""
        return replace(self, parameters={name: value.double() for name, value in self.parameters.items()})

    def _reduce(self, fn: Callable[..., Tensor], *targets: Tensor) -> Tensor:
        """Apply a reduction over chains and draws to blocks of rows, so that its temporaries stay small."""
        parts = [fn(d, *(y[rows] for y in targets)) for rows, d in self._blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _blocks(self) -> Iterator[tuple[slice, Distribution]]:
        size = len(self)
        per_row = max(value.numel() for value in self.parameters.values()) // max(size, 1)
        step = max(1, _BLOCK // max(per_row, 1))
        for start in range(0, max(size, 1), step):
            rows = slice(start, start + step)
            block = {n: v if v.shape[2] == 1 and size > 1 else v[:, :, rows] for n, v in self.parameters.items()}
            yield rows, self.family(**block)

    def _number(self, d: Distribution, moment: str) -> Tensor:
        if isinstance(d, dist.Categorical):
            raise TypeError("classes have no mean or variance: use probs, entropy or mutual_information")
        return getattr(d, moment)

    def _classes(self, d: Distribution) -> Tensor:
        if self.task != "classification":
            raise TypeError(f"{self.family.__name__} targets are not classes: use mean, epistemic and aleatoric")
        if isinstance(d, dist.Categorical):
            return d.probs
        # Of a sure yes 1 - p rounds to 0, where p of as sure a no does not.
        no = torch.sigmoid(-d.logits) if "logits" in self.parameters else 1 - d.probs
        return torch.stack([no, d.probs], dim=-1)

    def _log_classes(self) -> Tensor:
        """Logarithms of `probs`, finite wherever those of the draws are, though a probability be too small for one."""

        def mixture(d: Distribution) -> Tensor:
            if "logits" not in self.parameters:
                each = self._classes(d).log()
            elif isinstance(d, dist.Categorical):
                each = d.logits.log_softmax(-1)
            else:
                each = torch.nn.functional.logsigmoid(torch.stack([-d.logits, d.logits], dim=-1))
            return each.logsumexp((0, 1)) - math.log(math.prod(each.shape[:2]))

        return self._reduce(mixture)

    def _continuous(self, what: str) -> None:
        if self.task != "regression":
            raise TypeError(f"{self.family.__name__} targets have no {what.removeprefix('a ')} here")

    def _targets(self, y: Any) -> Tensor:
        reference = next(iter(self.parameters.values()))
        y = torch.as_tensor(y, device=reference.device)
        expected = self.shape[2:]
        if y.shape == (*expected, 1):
            y = y.squeeze(-1)
        if y.shape != expected:
            raise ValueError(f"y must have the prediction's shape {list(expected)}, not {list(y.shape)}")
        return y if issubclass(self.family, dist.Categorical) else y.to(reference.dtype)


@dataclass(frozen=True)
class Summary:
    """The moments of a posterior predictive, accumulated without keeping draws; see `Posterior.summarize`.

    Attributes:
        mean: Mean, [N, *event]; None for classes.
        epistemic: Variance of the conditional mean over draws, [N, *event]; None for classes.
        aleatoric: Mean of the conditional variance, [N, *event]; None for classes.
        probs: Class probabilities, [N, K]; None for numbers.
        entropy: Entropy of `probs` in nats, [N]; None for numbers.
        mutual_information: Epistemic part of the entropy, [N]; None for numbers.
        num_samples: Number of draws, all chains together.
    """

    num_samples: int
    mean: Tensor | None = None
    epistemic: Tensor | None = None
    aleatoric: Tensor | None = None
    probs: Tensor | None = None
    entropy: Tensor | None = None
    mutual_information: Tensor | None = None

    @property
    def variance(self) -> Tensor | None:
        """Variance of the posterior predictive, [N, *event]; None for classes."""
        return None if self.epistemic is None or self.aleatoric is None else self.epistemic + self.aleatoric


def summarize(parts: Iterator[Prediction]) -> Summary:
    """Combine predictions of the same inputs by different draws into one `Summary`."""
    count = 0
    total: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        total[name] = total[name] + value if name in total else value

    reference = None
    for part in parts:
        size = math.prod(part.shape[:2])
        count += size
        if part.task == "classification":
            add("probs", part.probs.double() * size)
            add("expected", part._reduce(lambda d, p=part: _entropy(p._classes(d)).mean((0, 1))).double() * size)
            continue
        mean = part.mean.double()
        reference = mean if reference is None else reference  # squares around a value near the mean do not cancel
        add("mean", (mean - reference) * size)
        add("square", (part.epistemic.double() + (mean - reference) ** 2) * size)
        add("aleatoric", part.aleatoric.double() * size)
    if reference is None:
        probs = total["probs"] / count
        entropy = _entropy(probs)
        information = (entropy - total["expected"] / count).clamp_min(0.0)
        return Summary(count, probs=probs, entropy=entropy, mutual_information=information)
    shift = total["mean"] / count
    epistemic = (total["square"] / count - shift**2).clamp_min(0.0)
    return Summary(count, mean=reference + shift, epistemic=epistemic, aleatoric=total["aleatoric"] / count)


def of_chain(values: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """The part of one chain, [1, ...], of values [chain, ...], or of such as all chains share, [1, ...]."""
    return {name: value if len(value) == 1 else value[index : index + 1] for name, value in values.items()}


def of_groups(values: dict[str, Tensor], chains: int, draws: int, members: int) -> dict[str, Tensor]:
    """Values [chain, draw, ...], or such as all chains or draws share, with each `members` chains as one.

    Returns:
        [chain / members, members x draw, ...].
    """

    def pooled(value: Tensor) -> Tensor:
        if value.shape[:2] == (1, 1):
            return value
        whole = value.expand(chains, draws, *value.shape[2:])
        return whole.reshape(chains // members, members * draws, *value.shape[2:])

    return {name: pooled(value) for name, value in values.items()}


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)

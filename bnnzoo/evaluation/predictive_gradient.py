"""The gradient of a posterior predictive by its inputs: what an attack follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnzoo._vectorize import CountingBytes
from bnnzoo.evaluation.metrics import as_targets
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction

ATTACK, SCORE = 0, 1
"""Streams of draws: those that a gradient goes through, and those that are scored."""


def input_gradient(
    posterior: Posterior,
    x: Any,
    y: Any,
    *,
    pooled: bool = False,
    seed: int = 0,
    max_memory: int = 2**30,
    **predict: Any,
) -> Tensor:
    """The gradient of `log p(y|x)` by the inputs, of the posterior predictive, each input by itself.

    By draws it is the gradient of `log (1/T) Σ_t p(y|x, w_t)`, through the average, and not the average of the draws'
    gradients. By moments (`method="moments"`) it is that of the propagated predictive. The density is taken in float64,
    so that the gradient does not vanish as soon as a probability rounds to 1 (at 1e-7 in float32; at 1e-16 it does).

    Args:
        posterior: What is attacked.
        x: Inputs in their own units, real numbers, [N, ...]. A standardization is gone through.
        y: Targets in their own units: labels [N], yes/no targets [N] or [N, C], numbers or counts [N] or [N, C].
        pooled: Whether all chains are one predictive (an ensemble), or each chain is one.
        seed: Fixes the draws.
        max_memory: Bytes that the work may take; the inputs are cut into blocks that fit.
        **predict: Of `Posterior.predict`: `num_samples` (draws a chain), `method`, and what belongs to moments.

    Returns:
        [chain, N, ...], in the inputs' dtype, per unit of the inputs; `pooled` makes it one "chain".

    Raises:
        ValueError: If `x` are no real numbers or have no gradient, `y` does not fit, or `max_memory` is too small.
    """
    x = real_inputs(posterior, x)
    members = predictives(posterior, pooled, max_memory, predict)
    return torch.stack([each.gradient(x, as_targets(each.at(x, seed), y), seed) for each in members])


def real_inputs(posterior: Posterior, x: Any) -> Tensor:
    """Inputs that have a gradient, where the posterior is.

    Args:
        posterior: Whose inputs they are.
        x: Real numbers, [N, ...].

    Raises:
        ValueError: If they are no real numbers, or none.
    """
    x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if not x.is_floating_point():
        raise ValueError(f"x must be real numbers, which have gradients, not {x.dtype}: images of bytes as x / 255")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError("x is empty")
    return x.to(posterior.device)


@dataclass
class Predictive:
    """One predictive that is attacked: a chain's, or that of all of them.

    Attributes:
        posterior: Whose average over all draws it is.
        max_memory: Bytes that a gradient may take, and a prediction.
        predict: Settings of predictions.
        rows: How many inputs one gradient takes at a time; 0 until that is known.
    """

    posterior: Posterior
    max_memory: int
    predict: dict[str, Any]
    rows: int = 0

    def at(self, x: Tensor, seed: int) -> Prediction:
        """The prediction of inputs, [N, ...]."""
        return self.posterior.predict(x, seed=seed, max_memory=self.max_memory, **self.predict)

    def gradient(self, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """The gradient of `log p(y|x)`, [N, ...]."""
        self.rows = self.rows or self._rows(x, y, seed)
        blocks = zip(x.split(self.rows), y.split(self.rows), strict=True)
        return torch.cat([self._gradient(inputs, targets, seed) for inputs, targets in blocks])

    def _gradient(self, x: Tensor, y: Tensor, seed: int) -> Tensor:
        x = x.detach().requires_grad_()
        log_prob = self.at(x, seed).double().log_prob(y)
        if not log_prob.requires_grad:
            raise ValueError("the network's outputs have no gradient by its inputs: there is no direction to attack in")
        return torch.autograd.grad(log_prob.sum(), x)[0]

    def _rows(self, x: Tensor, y: Tensor, seed: int) -> int:
        used = []
        for rows in (1, 2):
            with CountingBytes() as counting:
                self._gradient(x[:1].expand(rows, *x.shape[1:]), y[:1].expand(rows, *y.shape[1:]), seed)
            used.append(counting.bytes)
        each = max(1, used[1] - used[0])
        fixed = max(0, used[0] - each)
        if fixed + each > self.max_memory:
            raise ValueError(
                f"max_memory is too small: the gradient of one input needs {(fixed + each) / 2**20:.1f} MiB of work, "
                f"and max_memory={self.max_memory}"
            )
        return min(len(x), (self.max_memory - fixed) // each)


def predictives(posterior: Posterior, pooled: bool, max_memory: int, predict: dict[str, Any]) -> list[Predictive]:
    """What is attacked: each chain, or all of them as one.

    Args:
        posterior: All chains.
        pooled: Whether they are one predictive.
        max_memory: Bytes that a gradient may take, and a prediction.
        predict: Settings of predictions.
    """
    alone = pooled or posterior.chains == 1
    members = [posterior] if alone else [posterior.chain(chain) for chain in range(posterior.chains)]
    return [Predictive(member, max_memory, predict) for member in members]


def seed_of(seed: int, stream: int, step: int) -> int:
    """The seed of the draws of one step.

    Args:
        seed: Of the whole.
        stream: `ATTACK` or `SCORE`.
        step: Its number, from 0.
    """
    return int(np.random.SeedSequence([seed, stream, step]).generate_state(1)[0])

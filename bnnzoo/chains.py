"""Chains: independent copies of a model and its guide as stacked tensors, and one step of training on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from bnnzoo._vectorize import Pair, evaluating, pyro_settings, seeded, vectorize
from bnnzoo.guides import Guide
from bnnzoo.objectives import Objective

#: Stacked parameters and buffers of all chains, [chain, ...].
State = tuple[dict[str, Tensor], dict[str, Tensor]]


class DivergenceWarning(UserWarning):
    """A chain's loss or parameters became NaN or infinite; it stays at its last finite epoch."""


def initial_state(pair: Pair, chains: int, seed: int, x: Tensor, y: Tensor) -> State:
    """Stacked parameters and buffers of all chains."""
    copies = []
    for chain in range(chains):
        # The last chain is the template itself, so that a single chain is not copied.
        each = pair.copy() if chain < chains - 1 else pair
        with seeded(chain_seed(seed, chain), x.device):
            if chain > 0:
                each.model.reset_parameters()
                if isinstance(each.guide, Guide):
                    each.guide.reset_parameters()
            if not isinstance(each.guide, Guide):
                with evaluating(each):  # two rows are no batch to take running statistics from
                    each.guide(x, y, size=len(x))  # Pyro's AutoGuides make their parameters at the first call
        copies.append(each)
    return stack(copies)


def stack(pairs: list[Pair]) -> State:
    """The trainable parameters and the buffers of several copies, stacked along a chain dimension."""
    parameters = [{n: p.detach() for n, p in pair.named_parameters() if p.requires_grad} for pair in pairs]
    buffers = [dict(pair.named_buffers()) for pair in pairs]
    return (
        {name: torch.stack([each[name] for each in parameters]) for name in parameters[0]},
        {name: torch.stack([each[name] for each in buffers]) for name in buffers[0]},
    )


def hold(pair: Pair, state: State) -> None:
    """Let the programs of a single chain hold its values; those of several chains hold the values of none."""
    values = {name: value for part in state for name, value in part.items()}
    if len(next(iter(values.values()))) > 1:
        return
    own = {**dict(pair.named_parameters()), **dict(pair.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value[0])


def collect(pair: Pair, state: State, x: Tensor, y: Tensor, batch_size: int, seed: int) -> None:
    """Let every chain's guide take what it needs from the data (`Guide.collect`), into the stacked buffers.

    A chain whose parameters are not finite has diverged, and is about to be put back: it keeps what it had.
    """
    if not isinstance(pair.guide, Guide) or type(pair.guide).collect is Guide.collect:
        return
    parameters, buffers = state

    def run(model: Any, guide: Guide) -> dict[str, Tensor]:
        return guide.collect(x, y, batch_size)

    for chain in range(len(next(iter((parameters or buffers).values())))):
        own = [{name: value[chain] for name, value in values.items()} for values in state]
        if not all(bool(value.isfinite().all()) for value in own[0].values()):
            continue
        with evaluating(pair), seeded(chain_seed(seed, chain) + 2, x.device), pyro_settings(pair):
            collected = functional_call(pair, tuple(own), (run,))
        with torch.no_grad():
            for name, value in collected.items():
                buffers[f"guide.{name}"][chain] = value


def chain_seed(seed: int, chain: int) -> int:
    """The seed of one chain, independent of how many there are."""
    return int(np.random.SeedSequence([seed, chain]).generate_state(1)[0])


class Trainer:
    """Chains as stacked tensors, and one optimizer step on them.

    Args:
        pair: Model and guide; for one chain its parameters are trained in place.
        state: The chains' parameters and buffers, [chain, ...].
        objective: A `pyro.infer.ELBO`.
        data: Inputs and targets as the model sees them, [N, ...].
        optimizer: Makes the optimizer from a list of parameters.
        clip_norm: Bound of each chain's gradient norm, or None.
        reach: How far adversarial examples are from the data, a number or one an input feature, or beside inputs
            [chain, B, ...]; None for none.
        size: Number of data of a chain, which its minibatches stand for; default all of `data`.

    Attributes:
        parameters: Stacked parameters, [chain, ...]; views of what the optimizer steps.
        buffers: Stacked buffers, [chain, ...].
        optimizer: The torch optimizer.
    """

    def __init__(
        self,
        pair: Pair,
        state: State,
        objective: Any,
        data: tuple[Tensor, Tensor],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        clip_norm: float | None = None,
        reach: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        self.pair = pair
        self.objective = objective
        self.x, self.y = data
        self.size = len(self.x) if size is None else size
        self.clip_norm = clip_norm
        self.reach = reach
        parameters, buffers = state
        self.chains = len(next(iter(parameters.values())))
        if self.chains == 1:
            own = dict(pair.named_parameters())
            own_buffers = dict(pair.named_buffers())
            hold(pair, state)
            self._leaves: list[Tensor] = [own[name] for name in parameters]
            self.parameters = {name: own[name].detach()[None] for name in parameters}
            self.buffers = {name: own_buffers[name].detach()[None] for name in buffers}
        else:
            leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
            self._leaves = list(leaves.values())
            self.parameters = {name: leaf.detach() for name, leaf in leaves.items()}
            self.buffers = {name: value.clone() for name, value in buffers.items()}
            self._stacked = leaves
            self._mapped = vectorize(self._loss) if self._can_be_mapped() else self._one_by_one
        self.optimizer = optimizer(self._leaves)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS evaluates a step's loss repeatedly, and this one is random: use Adam or SGD")

    def losses(self, index: Tensor) -> Tensor:
        """Each chain's loss on its minibatch, [chain]; `index` holds rows of the data, [chain, B]."""
        return self._losses(*self._batch(index))

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Each chain's rows, [chain, B, ...]; a single chain's without the first dimension."""
        if self.chains == 1:
            return self.x.index_select(0, index[0]), self.y.index_select(0, index[0])
        return self.x[index], self.y[index]

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        if self.chains == 1:
            return self.objective.differentiable_loss(self.pair.model, self.pair.guide, x, y, size=self.size)[None]
        return self._mapped(self._stacked, self.buffers, x, y)

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss = partial(self.objective.differentiable_loss, size=self.size)
        return functional_call(self.pair, (parameters, buffers), (loss, x, y))

    def _one_by_one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for c in range(self.chains):
            own = [{name: value[c] for name, value in values.items()} for values in (parameters, buffers)]
            losses.append(self._loss(own[0], own[1], x[c], y[c]))
        return torch.stack(losses)

    def _can_be_mapped(self) -> bool:
        # Pyro's own ELBOs, and batch normalization with a cumulative average, call `.item()`.
        items = any(isinstance(m, _BatchNorm) and m.momentum is None for m in self.pair.modules())
        return isinstance(self.objective, Objective) and not items

    def step(self, index: Tensor) -> Tensor:
        """One optimizer step; returns the losses before it, [chain]."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.reach is None:
            losses = self.losses(index)
            torch.autograd.backward(losses, torch.ones_like(losses))
        else:
            losses = self._adversarial(*self._batch(index), self.reach)
        if self.clip_norm is not None:
            self._clip(self.clip_norm)
        self.optimizer.step()
        return losses.detach()

    def _adversarial(self, x: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Gradients of the mean loss of a batch and of its adversarial examples; returns that mean, [chain].

        The examples of the fast gradient sign are constants: one backward pass for the parameters' gradient on the
        batch gives the inputs' too, whose signs are all that counts.
        """
        x.requires_grad_()
        losses = self._losses(x, y)
        half = torch.full_like(losses, 0.5)
        torch.autograd.backward(losses, half)
        if x.grad is None:
            raise ValueError("adversarial training needs a network whose outputs can be differentiated by its inputs")
        attacked = self._losses(x.detach() + reach * x.grad.sign(), y)
        torch.autograd.backward(attacked, half)
        return (losses + attacked) / 2

    def _clip(self, bound: float) -> None:
        grads = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        norms = torch.linalg.vector_norm(torch.stack([g.reshape(self.chains, -1).norm(dim=1) for g in grads]), dim=0)
        factors = (bound / (norms + 1e-12)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors[0] if self.chains == 1 else factors.view(-1, *[1] * (grad.dim() - 1)))

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers together, by name: views, [chain, ...]."""
        return {**self.parameters, **self.buffers}


class Keeper:
    """Which chains still train, and the parameters that the finished ones are held at.

    A chain ends when it diverges (held at its last finite epoch) or runs out of patience (held at its best one). It
    stays in the stack, where it cannot touch the others, and is put back after every epoch.
    """

    def __init__(self, trainer: Trainer, patience: int | None, names: list[str]) -> None:
        self.trainer = trainer
        self.names = names  # of the chains, in messages
        self.patience = patience
        self.active = torch.ones(trainer.chains, dtype=torch.bool)
        self.best = torch.full((trainer.chains,), math.inf)
        self.since = torch.zeros(trainer.chains, dtype=torch.long)
        self.held = {name: value.clone() for name, value in trainer.state().items()}
        self.diverged: list[int] = []

    def after_epoch(self, epoch: int, scores: dict[str, Tensor]) -> None:
        """Hold what is good, end the chains that are done, and put those back.

        Args:
            epoch: Number of finished epochs.
            scores: `loss`, and `validation` where there is patience, [chain].

        Raises:
            FloatingPointError: If every chain has diverged.
        """
        state = self.trainer.state()
        finite = scores["loss"].isfinite().cpu()
        for value in self.trainer.parameters.values():
            finite &= value.isfinite().reshape(self.trainer.chains, -1).all(1).cpu()
        for chain in torch.nonzero(self.active & ~finite).flatten().tolist():
            self.active[chain] = False
            self.diverged.append(chain)
            message = f"{self.names[chain]} diverged in epoch {epoch} (loss {scores['loss'][chain].item():g})"
            warnings.warn(f"{message}; it stays as it was before that epoch", DivergenceWarning, stacklevel=5)
        if len(self.diverged) == self.trainer.chains:
            raise FloatingPointError(
                f"every chain diverged, the last in epoch {epoch}: lower lr or init_scale, set clip_norm, or "
                "standardize the data"
            )
        keep = self.active.clone()
        if self.patience is not None:
            score = scores["validation"].cpu()
            better = self.active & (score < self.best)
            self.best = torch.where(better, score, self.best)
            self.since = torch.where(better, 0, self.since + 1)
            keep &= better | self.best.isinf()  # the last one, where no score has been finite
            self.active &= self.since < self.patience
        for name, value in state.items():
            self.held[name][keep] = value[keep]
            value[~self.active] = self.held[name][~self.active]

    def finish(self) -> None:
        """Return to what is held, but keep what a callback did to chains that trained to the end."""
        done = ~self.active if self.patience is None else torch.ones_like(self.active)
        for name, value in self.trainer.state().items():
            value[done] = self.held[name][done]

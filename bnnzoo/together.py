"""Tasks as one stack of chains: whether they are alike, and programs that can be all of them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bnnzoo._types import Distribution
from bnnzoo._vectorize import Pair
from bnnzoo.chains import State
from bnnzoo.guides import Guide
from bnnzoo.network import MERGEABLE
from bnnzoo.weights import Block, ScalarNormal


class StackedPriors(nn.Module):
    """The priors of a network's blocks, their numbers in buffers: those of stacked chains may differ.

    Args:
        blocks: The blocks of the model that this stands in for.
    """

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self._blocks = blocks
        for name, value in prior_numbers(blocks).items():
            self.register_buffer(name, value)

    def sites(self) -> dict[str, Distribution]:
        """The prior of every random weight, by the buffers' present values."""
        found: dict[str, Distribution] = {}
        for number, block in enumerate(self._blocks):
            family = _family(block)
            if family in MERGEABLE:
                numbers = {name: getattr(self, f"{number}_{name}") for name in family.arg_constraints}
                block = Block(family(**numbers), block.layout)
            found |= dict(block.sites())
        return found


_PREFIX = "model.stacked_priors."


def is_stacked_prior(name: str) -> bool:
    """Whether a buffer of a pair is one of `StackedPriors`, which a task's own model has not."""
    return name.startswith(_PREFIX)


def prior_numbers(blocks: list[Block]) -> dict[str, Tensor]:
    """The numbers of the priors that tasks may differ in, one an element, by block and argument."""
    return {
        f"{number}_{name}": getattr(block.joint, name).detach().expand(block.layout.size).clone()
        for number, block in enumerate(blocks)
        if _family(block) in MERGEABLE
        for name in _family(block).arg_constraints
    }


def check_alike(pairs: list[Pair]) -> None:
    """Check that one program can be all of these.

    Args:
        pairs: Model and guide of each task.

    Raises:
        ValueError: If one differs from the first in anything but what tensors hold.
    """
    first = _structure(pairs[0])
    for number, pair in enumerate(pairs[1:], 1):
        for name, value in _structure(pair).items():
            if value != first[name]:
                raise ValueError(
                    f"tasks that are fitted together must be alike: task {number} differs from task 0 in its {name}, "
                    f"{_shortened(value)} instead of {_shortened(first[name])}"
                )


def together(pairs: list[Pair], states: list[State]) -> tuple[Pair, State]:
    """One program that all chains run, and their stacked parameters and buffers.

    Args:
        pairs: Model and guide of each task, alike.
        states: Their parameters and buffers, [chain, ...].

    Returns:
        The pair, and the state, [task x chain, ...]; of a single task, its own.
    """
    if len(pairs) == 1:
        return pairs[0], states[0]
    pair = pairs[0].copy()
    parameters, buffers = ({name: torch.cat([s[k][name] for s in states]) for name in states[0][k]} for k in (0, 1))
    numbers = [prior_numbers(each.model.blocks) for each in pairs]
    if any(not torch.equal(value, numbers[0][name]) for each in numbers[1:] for name, value in each.items()):
        pair.model.stacked_priors = StackedPriors(pair.model.blocks)
        chains = len(next(iter({**states[0][0], **states[0][1]}.values())))
        for name in numbers[0]:
            stacked = torch.stack([each[name] for each in numbers])
            buffers[f"{_PREFIX}{name}"] = stacked.repeat_interleave(chains, 0)
    return pair, (parameters, buffers)


def _family(block: Block) -> Any:
    family = type(block.joint)
    return dist.Normal if family is ScalarNormal else family


def _structure(pair: Pair) -> dict[str, Any]:
    """What tasks must agree in, by what it is called in a message."""
    model, guide = pair.model, pair.guide
    tensors = {**dict(pair.named_parameters()), **dict(pair.named_buffers())}
    options = model.likelihood.arguments()
    if getattr(model.likelihood, "fixed_scale", None) is not None:
        options = {name: value for name, value in options.items() if name != "scale"}  # a buffer
    return {
        "network": str(model.network),
        "likelihood": f"{type(model.likelihood).__name__} {options}",
        "priors": [
            (block.layout.names, _family(block).__name__ if _family(block) in MERGEABLE else str(block.joint))
            for block in model.blocks
        ],
        "guide": type(guide).__name__,
        "guide's options": guide.fixed_options() if isinstance(guide, Guide) else str(guide),
        "tensors": {name: (list(value.shape), value.dtype, value.requires_grad) for name, value in tensors.items()},
    }


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:300] + " ..."

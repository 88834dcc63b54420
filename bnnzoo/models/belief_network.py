"""The sigmoid belief network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.models.arguments import wholes
from bnnzoo.moments.gates import Gate
from bnnzoo.moments.units import BernoulliUnit, LogisticBernoulli

#: Logarithm to base 2 of the largest number of pairs of states that are enumerated.
_MOST = 24


class SigmoidBeliefNetwork(nn.Module):
    """Layers of binary units, each 1 with a probability that is the sigmoid of a linear map of the layer before.

    `p(X_i^k = 1 | X^(k-1)) = S(W_i^k X^(k-1) + b_i^k)`, independent given the layer before (Neal 1992; Shekhovtsov &
    Flach 2018, section 3.3). Inputs are probabilities: 0 and 1 of observed units, others of uncertain ones.

    The modes of `bnnzoo.moments.propagate`: AP1 is the sigmoid network, AP2 propagates the probabilities of all units
    as independent, `sample` draws every unit, inputs too. In training mode a plain call draws. Weights are named
    `layers.1.weight` [sizes[1], sizes[0]], `layers.1.bias`, `layers.3.weight`, ...

    Args:
        sizes: Units of each layer, the input layer first: two layers at least.
        approximation: The mean of the units under moments, see `LogisticBernoulli`.

    Raises:
        ValueError: If there are not two sizes, one is below 1, or the approximation is unknown.

    Example:
        >>> import torch
        >>> from bnnzoo.moments import propagate
        >>> network = SigmoidBeliefNetwork((5, 5, 5))
        >>> propagate(network, torch.full((1, 5), 0.5)).shape
        torch.Size([1, 5])
    """

    def __init__(self, sizes: Sequence[int], approximation: Gate | None = None) -> None:
        super().__init__()
        self.sizes = wholes("SigmoidBeliefNetwork", "sizes", sizes, "a sequence of layer sizes such as (10, 10, 10)")
        if len(self.sizes) < 2:
            raise ValueError(f"SigmoidBeliefNetwork: sizes must be of two layers at least; given: {sizes!r}")
        if approximation is not None and approximation not in get_args(Gate):
            raise ValueError(
                f"SigmoidBeliefNetwork: approximation must be one of {', '.join(map(repr, get_args(Gate)))} or None; "
                f"given: {approximation!r}"
            )
        self.approximation = approximation
        layers: list[nn.Module] = [BernoulliUnit()]
        for before, units in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(before, units), LogisticBernoulli(approximation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network.

        Args:
            x: Probabilities of the input units, or their values 0 and 1, [..., sizes[0]].

        Returns:
            The last layer's units [..., sizes[-1]]: drawn in training mode, probabilities (AP1) in eval mode.
        """
        return self.layers(x)

    def marginals(self, x: Tensor) -> list[Tensor]:
        """The exact probabilities of all units, by enumeration of the states of neighboring layers; differentiable.

        Args:
            x: Probabilities of the input units, [N, sizes[0]], taken for independent.

        Returns:
            Probabilities that the units are 1, [N, sizes[k]], of each layer, the input layer (x itself) first.

        Raises:
            ValueError: If two neighboring layers before the last have more than 24 units together (2²⁴ pairs of
                states), or one has, or x is no batch of probabilities.
        """
        for before, after in zip(self.sizes, [*self.sizes[1:-1], 0], strict=False):
            if before + after > _MOST:
                raise ValueError(
                    f"SigmoidBeliefNetwork: layers of {before} and {after} units have 2^{before + after} pairs of "
                    f"states; at most 2^{_MOST} are enumerated"
                    if after
                    else f"SigmoidBeliefNetwork: a layer of {before} units has 2^{before} states; at most 2^{_MOST} "
                    "are enumerated"
                )
        if x.dim() != 2 or x.shape[1] != self.sizes[0] or not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(
                f"SigmoidBeliefNetwork: x must hold probabilities, [N, {self.sizes[0]}]; given: {list(x.shape)} from "
                f"{x.min().item():g} to {x.max().item():g}"
            )
        found, given = [x], x.double()
        states = _states(self.sizes[0], x)
        probability = (given.unsqueeze(1) * states + (1 - given.unsqueeze(1)) * (1 - states)).prod(-1)
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for layer in linear:
            logits = F.linear(states, layer.weight.double(), layer.bias.double())
            found.append((probability @ logits.sigmoid()).to(x.dtype))
            if layer is not linear[-1]:
                states = _states(layer.out_features, x)
                # log p(state | state before), one row for each state before
                log_p = F.logsigmoid(logits) @ states.T + F.logsigmoid(-logits) @ (1 - states).T
                probability = probability @ log_p.exp()
        return found


def _states(units: int, like: Tensor) -> Tensor:
    """All states of binary units, [2^units, units]."""
    numbers = torch.arange(2**units, device=like.device)
    return (numbers.unsqueeze(1) >> torch.arange(units, device=like.device) & 1).double()

"""Stochastic units as modules: each runs in the three modes of `bnnzoo.moments.propagate`."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticUnit(nn.Module):
    """A layer with noise of its own.

    In training mode a tensor meets a draw of the noise and moments meet its moments; in eval mode the noise is replaced
    by its mean, as dropout's is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the unit."""
        if not self.training:
            return self.mean(input)
        return self.noisy(input)

    def mean(self, input: Tensor) -> Tensor:
        """The unit without its noise."""
        raise NotImplementedError

    def noisy(self, input: Tensor) -> Tensor:
        """The unit with its noise: a draw for a tensor, moments for moments."""
        raise NotImplementedError

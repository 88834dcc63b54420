"""Gauss-Hermite quadrature: its nodes, computed once."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache
def gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes z and weights w with `E f(x) ≈ Σ w f(m + s z)` for x ~ N(m, s²).

    Exact for polynomials of degree up to 2 count - 1.

    Args:
        count: How many.

    Returns:
        Both [count], float64, on the CPU; the weights sum to 1.
    """
    nodes, mass = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(mass / mass.sum())

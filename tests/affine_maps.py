"""Affine maps of random tensors: their moments by the Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from bnnzoo.moments import Moments


def random_tensor(*shape: int, seed: int = 0) -> Moments:
    """Means and variances in double precision; some elements have no variance."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    variance = torch.rand(shape, generator=generator, dtype=torch.float64)
    return Moments(mean, torch.where(variance < 0.1, 0.0, variance))


def leaves(result: object) -> list[Tensor]:
    """The tensors of a result, one or several."""
    return list(result) if isinstance(result, tuple | list) else [result]  # type: ignore[list-item]


def assert_affine(op: Callable, *arguments: Moments) -> None:
    """`op(*arguments)` has the moments of an affine map: op at the means, and variances `Σ_i J_oi² σ_i²`."""
    means = [x.loc for x in arguments]
    found, expected = leaves(op(*arguments)), leaves(op(*means))
    assert len(found) == len(expected)
    for index, (value, mean) in enumerate(zip(found, expected, strict=True)):
        assert isinstance(value, Moments)
        assert value.shape == mean.shape
        assert value.dtype == mean.dtype
        torch.testing.assert_close(value.loc, mean, rtol=1e-12, atol=1e-12)
        parts = jacobian(lambda *m, i=index: leaves(op(*m))[i], tuple(means))
        flat = (part.flatten(mean.dim()).square() for part in parts)
        variance = sum(part @ x.variance.flatten() for part, x in zip(flat, arguments, strict=True))
        torch.testing.assert_close(value.variance, variance, rtol=1e-10, atol=1e-12)

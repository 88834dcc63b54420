"""Normalizing flows over the mixing variables of `guides.MNF`: invertible maps of vectors with a known Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.transforms import AffineAutoregressive, AffineCoupling
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

#: Gates start at S(2) = 0.88, as those of `AffineAutoregressive(stable=True)` do.
_OPEN = 2.0


class Masked(ConditionalTransformModule):
    """A step of the MNF paper's flow, given its mask (Louizos & Welling 2017, eq. 6).

        h = tanh(f(m ⊙ x)),  y = m ⊙ x + (1 - m) ⊙ (x ⊙ σ + (1 - σ) ⊙ μ),  μ = g(h),  σ = S(k(h)),  f, g, k linear

    Elements under the mask pass, and steer the others. `step.condition(mask)` is an ordinary Pyro transform.

    Args:
        dim: Length D of the vectors.
        hidden: Length of h.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, 2 * dim)

    def condition(self, context: Tensor) -> MaskedGiven:
        """The transform with a given mask.

        Args:
            context: The mask, [..., D]: 1 where an element passes unchanged, 0 where it is transformed.
        """
        return MaskedGiven(self, context)

    def reset_parameters(self) -> None:
        """Start near the identity."""
        _start_small(self.inner, self.outer)
        with torch.no_grad():
            self.outer.bias[len(self.outer.bias) // 2 :] = _OPEN


class MaskedGiven(Transform):
    """`Masked` with a given mask: an invertible map with a triangular Jacobian.

    Args:
        step: The parameters.
        mask: [..., D].
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, step: Masked, mask: Tensor) -> None:
        super().__init__(cache_size=1)
        self.step = step
        self.mask = mask
        self._logit: Tensor | None = None

    def _shift_and_gate(self, passed: Tensor) -> tuple[Tensor, Tensor]:
        """μ, and a gate that is σ where the mask is 0 and 1 where it is 1, from the elements that pass."""
        shift, self._logit = self.step.outer(self.step.inner(passed).tanh()).chunk(2, -1)
        # m x + (1 - m) (x σ + (1 - σ) μ) is x gate + (1 - gate) μ with this gate.
        return shift, torch.addcmul(self.mask, self._logit.sigmoid(), 1 - self.mask)

    def _call(self, x: Tensor) -> Tensor:
        shift, gate = self._shift_and_gate(self.mask * x)
        return torch.lerp(shift, x, gate)

    def _inverse(self, y: Tensor) -> Tensor:
        shift, gate = self._shift_and_gate(self.mask * y)
        return shift + (y - shift) / gate

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`Σ (1 - m) log σ`, [...]."""
        if self._logit is None or x is not self._cached_x_y[0] or y is not self._cached_x_y[1]:
            self._shift_and_gate(self.mask * x)
        assert self._logit is not None
        # Not the gate's logarithm: a gate that is closed up to rounding has a finite one.
        return ((1 - self.mask) * F.logsigmoid(self._logit)).sum(-1)


class Flip(Transform):
    """Vectors in reverse order, so that the next step treats their elements in other roles."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero, [...]."""
        return x.new_zeros(x.shape[:-1])


class ElementwiseAffine(TransformModule):
    """`y = exp(log_scale) ⊙ x + loc`: what is left of every flow where vectors have one element.

    Args:
        dim: Length D of the vectors.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Start at the identity."""
        with torch.no_grad():
            self.loc.zero_()
            self.log_scale.zero_()

    def _call(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.loc, self.log_scale.exp(), x)

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the logarithms of the scales, [...]."""
        return self.log_scale.sum().expand(x.shape[:-1])


def _coupling(dim: int, hidden: int) -> AffineCoupling:
    first = dim // 2
    return AffineCoupling(first, DenseNN(first, [hidden], [dim - first, dim - first]))


def _autoregressive(dim: int, hidden: int) -> AffineAutoregressive:
    # Its masks need a hidden unit an element at least; an order that is not drawn is the same in all chains.
    order: Any = torch.arange(dim)
    network = AutoRegressiveNN(dim, [max(hidden, dim)], permutation=order)
    return AffineAutoregressive(network, stable=True)


#: Makers of one step of a flow, `make(dim, hidden)`, for dim ≥ 2, by name.
FLOWS: dict[str, Callable[[int, int], nn.Module]] = {
    "masked": Masked,
    "realnvp": _coupling,
    "iaf": _autoregressive,
}


class Flow(nn.Module):
    """Several steps of one kind in a row; it starts near the identity, flips aside.

    ============  ==================================================================================================
    `"masked"`    The MNF paper's, `Masked`; a random map: every call draws masks anew, for each vector its own.
    `"realnvp"`   Pyro's `AffineCoupling` (Dinh et al. 2017) between which vectors are flipped; ReLU network.
    `"iaf"`       Pyro's `AffineAutoregressive(stable=True)` in its fast direction (Kingma et al. 2016), flipped
                  likewise; at least D hidden units, so quadratic in D.
    ============  ==================================================================================================

    Vectors of one element have nothing to be split into: there all kinds are one `ElementwiseAffine`.

    Args:
        kind: One of `FLOWS`.
        dim: Length D of the vectors, ≥ 1.
        length: Number of steps, ≥ 0; none is the identity.
        hidden: Hidden units of each step, ≥ 1.
    """

    def __init__(self, kind: str, dim: int, length: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if dim == 1:
            steps: list[nn.Module] = [ElementwiseAffine(dim)] if length else []
        else:
            steps = [FLOWS[kind](dim, hidden) for _ in range(length)]
        self.steps = nn.ModuleList(steps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw parameters with which the flow is nearly the identity."""
        for step in self.steps:
            if isinstance(step, Masked | ElementwiseAffine):
                step.reset_parameters()
            else:
                _start_small(*[layer for layer in step.modules() if isinstance(layer, nn.Linear)])

    def draw(self, like: Tensor) -> list[Transform]:
        """The flow as Pyro transforms, for vectors `like` [..., D]; masks are drawn here, one a vector and step.

        Transforms of Pyro are shared between calls: they keep their last input and output until `forward` ends.
        """
        steps: Any = self.steps
        if self.kind == "masked" and like.shape[-1] > 1:
            masks = fair_coins(like.expand(len(steps), *like.shape))
            return [step.condition(mask) for step, mask in zip(steps, masks, strict=True)]
        return [part for step in steps for part in (Flip(), step)][1:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors.

        Args:
            x: [..., D].

        Returns:
            What becomes of them, [..., D], and the logarithms of the Jacobian's absolute determinants, [...].
        """
        log_det: Tensor | None = None
        for part in self.draw(x):
            y = part(x)
            if not isinstance(part, Flip):
                term = part.log_abs_det_jacobian(x, y)
                log_det = term if log_det is None else log_det + term
            if isinstance(part, TransformModule):
                _forget(part)
            x = y
        return x, x.new_zeros(x.shape[:-1]) if log_det is None else log_det


def fair_coins(like: Tensor) -> Tensor:
    """Independent zeros and ones of equal probability in the shape and dtype of a tensor [..., D].

    Random numbers are the most expensive part of a masked flow on a CPU; here one integer gives 62 coins.
    """
    *batch, dim = like.shape
    words = torch.randint(2**62, (*batch, math.ceil(dim / 62), 1), device=like.device)
    bits = (words >> torch.arange(62, device=like.device)) & 1
    return bits.flatten(-2)[..., :dim].to(like.dtype)


def _start_small(*layers: nn.Linear) -> None:
    """Draw layers anew, the last of them close to zero."""
    for layer in layers:
        layer.reset_parameters()
    with torch.no_grad():
        layers[-1].weight.mul_(0.01)
        layers[-1].bias.zero_()


def _forget(part: TransformModule) -> None:
    """Empty a transform's cache: a module that holds a step's graph cannot be copied, and keeps it alive."""
    part._cached_x_y = None, None
    if isinstance(part, AffineAutoregressive | AffineCoupling):
        part._cached_log_scale = None

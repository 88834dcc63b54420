"""`MNF`: multiplicative normalizing flows."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnnzoo._types import Distribution
from bnnzoo._vectorize import seeded
from bnnzoo.guides.base import Guide
from bnnzoo.guides.flows import FLOWS, Flow
from bnnzoo.guides.mnf_weights import Factors, Mixing, MultiplicativeBlock
from bnnzoo.network import BayesianNetwork
from bnnzoo.rules import RandomWeight
from bnnzoo.weights import Sampling

#: The paper's initial log variance of the weights is -9.
_INIT_SCALE = math.exp(-4.5)
#: Initial standard deviation of b₁ and b₂.
_INIT_B = 0.1


class MNF(Guide):
    r"""Multiplicative normalizing flows (Louizos & Welling 2017): `q(W) = ∫ q(W | z) q(z) dz`.

    The means of each weight's Gaussian are multiplied by a random vector z, and a normalizing flow makes z non-Gaussian
    and its elements dependent: q(W) may be multimodal, with correlated weights. z runs over the inputs of linear layers
    and over the output filters of convolutions (plain and transposed). For a weight `w`, the guide draws

    - `w.z0` from a factorized Gaussian, [D]; auxiliary,
    - `w.z` = 1 + flow(w.z0), [D]; auxiliary, a deterministic function,
    - `w` from `q(W | z) = N(z ⊙ loc, scale²)` (eqs. 4 and 5), z along one dimension of the weight,

    and `w.r`, a factor, adds `-log |det ∂z/∂z0| - log r(z | W)`. So the guide's log density totals
    `log q(z) + log q(W | z) - log r(z | W)`, and every ELBO, Pyro's too, bounds the evidence from below (eq. 7): by
    `log Z - KL(q(W) q(z | W) || p(W | data) r(z | W))`. The masks of `flow="masked"` are random, which changes nothing:
    given any masks, q(z) and r(z | W) are densities, and the bound is a mean of bounds.

    **r(z | W)** (eqs. 8 to 12) is a flow of the same kind from z - 1 to v, where v is Gaussian with

        mean = a₁ + b₁ t̄,  scale = S(a₂ + b₂ t̄),  t̄ = mean of tanh(cᵀW),  a, b, c [D],

    cᵀW contracting the dimension that z multiplies. For a linear layer it has one element an output, for a convolution
    (mat(W) c) one an input channel and position of the kernel; t̄ averages over all of these. The paper has no offsets
    a₁ and a₂; without, the scale would stay near one half in wide layers, where the mean of many tanh is close to zero.
    They start so that r has the width of q(z).

    **Draws.** An objective that needs no joint draw gets one z a row of the batch on linear layers, one z a batch on
    convolutions, and cᵀW sampled from its Gaussian given z; the KL divergence is analytic given z, averaged over the
    rows under normal priors, given the first row's z under others. A linear layer whose input has leading dimensions
    other than the batch's (time first, tokens flattened) gets one z for all; mind that a first dimension that has
    the batch's length by accident is taken for the batch. All other draws are of whole weights.

    Biases are factorized Gaussian, as are sites of the likelihood (in unconstrained space). There is no marginal
    density of the weights.

    Args:
        bnn: The model.
        flow: The flow of q(z) and r(z | W), see `bnnzoo.guides.flows.Flow`: `"masked"`, `"realnvp"` or `"iaf"`.
        flow_length: Steps of the flow of q(z), ≥ 0.
        hidden: Hidden units in each of them, ≥ 1.
        r_flow_length: Steps of the flow of r(z | W), ≥ 0.
        r_hidden: Hidden units in each of them, ≥ 1.
        init_scale: Initial standard deviation of every weight given z, > 0; the paper's log variance is -9.
        init_z_scale: Initial standard deviation of z0 around 0, in (0, 1): z starts near 1, weights near `loc`.
        max_scale: Bound > 0 on the standard deviations of weights and biases in draws (the paper: 0.5 on MNIST, 0.4 on
            CIFAR), or None. `q(W | z)` is then the bounded Gaussian, and so are posterior draws, but the analytic KL
            divergence goes on with the scale as it is: otherwise nothing would move a scale that has passed the bound.
            So the loss of the objectives here is not the bound of this q: under a prior wider than `max_scale` it is
            too low where scales are above. Pyro's sampled ELBOs use the bounded density throughout, and are bounds.
        sampling: How an objective that allows it draws pre-activations: `"local"`, `"flipout"` or `"dense"`, for all or
            by site or module type, as of `MeanField`. A `"dense"` linear layer has one z a batch.
        others: What becomes of random weights that are no weight or bias of a linear or convolutional layer:
            `"error"`, or `"mean-field"` for a factorized Gaussian as for biases.

    Raises:
        ValueError: If an argument is out of range, or a weight cannot be treated; the message has the module's path.
    """

    has_density: ClassVar[bool] = False

    in_state: ClassVar[tuple[str, ...]] = ("init_scale", "init_z_scale")

    def __init__(
        self,
        bnn: BayesianNetwork,
        flow: Literal["masked", "realnvp", "iaf"] = "masked",
        flow_length: int = 2,
        hidden: int = 50,
        r_flow_length: int = 2,
        r_hidden: int = 100,
        init_scale: float = _INIT_SCALE,
        init_z_scale: float = 0.1,
        max_scale: float | None = None,
        sampling: Sampling | dict[Any, Sampling] = "local",
        others: Literal["error", "mean-field"] = "error",
    ) -> None:
        super().__init__(bnn)
        if flow not in FLOWS:
            raise ValueError(f"flow must be one of {', '.join(map(repr, FLOWS))}, not {flow!r}")
        for what, number, least in (
            ("flow_length", flow_length, 0),
            ("hidden", hidden, 1),
            ("r_flow_length", r_flow_length, 0),
            ("r_hidden", r_hidden, 1),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ValueError(f"{what} must be an integer of at least {least}, not {number!r}")
        for what, scale in (("init_scale", init_scale), ("max_scale", max_scale)):
            if scale is not None and not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"{what} must be positive, not {scale}")
        if not 0 < init_z_scale < 1:
            raise ValueError(f"init_z_scale must be between 0 and 1, not {init_z_scale}")
        if others not in ("error", "mean-field"):
            raise ValueError(f"others must be 'error' or 'mean-field', not {others!r}")
        self.flow, self.flow_length, self.hidden = flow, flow_length, hidden
        self.r_flow_length, self.r_hidden = r_flow_length, r_hidden
        self.init_scale, self.init_z_scale, self.max_scale = init_scale, init_z_scale, max_scale
        self.sampling, self.others = sampling, others
        self._samplings = self.resolve_sampling(sampling)
        parts = zip(self._blocks, self._samplings, strict=True)
        rules = {name: rule for layout, own in parts for name, rule in zip(layout.names, own, strict=True)}
        self._factors = _find_factors(bnn, rules, others)
        self._sizes = [factors.size for factors in self._factors.values()]

        self.loc = nn.Parameter(self.initial_loc())
        self.log_scale = nn.Parameter(torch.empty_like(self.loc))
        self.z_loc = nn.Parameter(self.loc.new_empty(sum(self._sizes)))
        self.z_log_scale = nn.Parameter(torch.empty_like(self.z_loc))
        #: Rows: a₁, a₂, b₁, b₂, c of r(z | W).
        self.r = nn.Parameter(self.loc.new_empty(5, sum(self._sizes)))
        with seeded(0, self.loc.device):  # where training starts depends on fit's seed alone
            self.q_flows = nn.ModuleList(Flow(flow, size, flow_length, hidden).to(self.loc) for size in self._sizes)
            self.r_flows = nn.ModuleList(Flow(flow, size, r_flow_length, r_hidden).to(self.loc) for size in self._sizes)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at the network's own values, with z near 1, and draw the flows and r anew."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.log_scale.fill_(math.log(self.init_scale))
            self.z_loc.zero_()
            self.z_log_scale.fill_(math.log(self.init_z_scale))
            self.r[0] = 0.0
            self.r[1] = math.log(self.init_z_scale / (1 - self.init_z_scale))
            self.r[2:4].normal_(0.0, _INIT_B)
            self.r[4].normal_()
        for flow in [*self.q_flows, *self.r_flows]:
            flow.reset_parameters()

    @property
    def auxiliary(self) -> dict[str, torch.Size]:
        """Shapes of `z0` and `z` of each treated weight."""
        return {f"{f.name}.{v}": torch.Size([f.size]) for f in self._factors.values() for v in ("z0", "z")}

    def forward(self, x: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments and returns a value for each of the model's sites.

        Args:
            x: The batch of inputs; only its number of rows matters, and only to structured draws.
            args: Ignored.
            kwargs: Ignored.
        """
        rows = x.shape[0] if isinstance(x, Tensor) and x.dim() else None
        mixing = self._mix(rows)
        sites = self.distributions({name: z for name, (z, _, _) in mixing.items()})
        values = {name: pyro.sample(name, q) for name, q in sites.items()}
        parts = zip(mixing.items(), self.r_flows, self.r.split(self._sizes, 1), strict=True)
        for (name, (_, centered, log_det)), flow, r in parts:
            log_r = _log_r(self._factors[name], flow, r, values[name], centered)
            pyro.factor(f"{name}.r", -(log_det + log_r).mean(), has_rsample=True)
        return values

    def distributions(self, z: dict[str, Tensor] | None = None) -> dict[str, Distribution]:
        """The distribution of each of the model's sites given the mixing vectors.

        Args:
            z: Mixing vectors by weight, [D], or [B, D] for one a row; drawn where None.
        """
        if z is None:
            z = {name: vector for name, (vector, _, _) in self._mix(None).items()}
        mixing = z

        def block(index: int, loc: Tensor, log_scale: Tensor) -> MultiplicativeBlock:
            layout, sampling = self._blocks[index], self._samplings[index]
            return MultiplicativeBlock(loc, log_scale, layout, sampling, self._factors, mixing, self.max_scale)

        return self.normals(self.loc, self.log_scale, block)

    def center(self) -> None:
        """None: the mean of what the flow makes of the mixing variables has no closed form."""

    def _mix(self, rows: int | None) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Draw the mixing vectors: by weight z, z - 1 and the flow's log determinant."""
        mixing = {}
        locs, log_scales = self.z_loc.split(self._sizes), self.z_log_scale.split(self._sizes)
        for (name, factors), flow, loc, log_scale in zip(
            self._factors.items(), self.q_flows, locs, log_scales, strict=True
        ):
            q0 = Mixing(loc, log_scale, rows if factors.per_row else None)
            centered, log_det = flow(pyro.sample(f"{name}.z0", q0, infer={"is_auxiliary": True}))
            z = centered + 1
            # A point has no density of its own: what the flow does to z0's is in the factor.
            point = dist.Delta(z, event_dim=1, validate_args=False).mask(False)
            mixing[name] = pyro.sample(f"{name}.z", point, infer={"is_auxiliary": True}), centered, log_det
        return mixing


def _log_r(factors: Factors, flow: nn.Module, parameters: Tensor, weight: Tensor, centered: Tensor) -> Tensor:
    """`log r(z | W)` for each z.

    Args:
        factors: What z multiplies.
        flow: From z - 1 to v.
        parameters: a₁, a₂, b₁, b₂ and c, [5, D].
        weight: W, or a `RandomWeight` of which only cᵀW is drawn.
        centered: z - 1, [D] or [B, D].

    Returns:
        A scalar, or [B].
    """
    a1, a2, b1, b2, c = parameters.unbind()
    law: Any = weight.distribution if isinstance(weight, RandomWeight) else None
    projected = factors.columns(weight) @ c if law is None else law.project(c)
    average = projected.tanh().mean(-1, keepdim=True)
    v, log_det = flow(centered)
    logit = torch.addcmul(a2, b2, average)
    precision = 1 + (-logit).exp()  # one over the scale S(logit)
    deviation = (v - torch.addcmul(a1, b1, average)) * precision
    density = precision.log() - 0.5 * deviation.square()
    return density.sum(-1) - 0.5 * math.log(2 * math.pi) * factors.size + log_det


def _find_factors(bnn: BayesianNetwork, sampling: dict[str, Sampling], others: str) -> dict[str, Factors]:
    """What is multiplied in each weight that can be treated.

    Args:
        bnn: The model.
        sampling: The rule of each weight.
        others: As of `MNF`.

    Raises:
        ValueError: If a weight cannot be and `others` is `"error"`, or none can.
    """
    found, left = {}, []
    for name, rule in sampling.items():
        path, _, kind = name.rpartition(".")
        module = bnn.network.get_submodule(path)
        plain = isinstance(module, nn.Linear | _ConvNd) and kind in ("weight", "bias")
        if not plain or (kind == "weight" and isinstance(module, _ConvTransposeNd) and module.groups > 1):
            left.append((name, path, type(module).__name__))
        elif kind == "weight":
            dim = 1 if isinstance(module, nn.Linear | _ConvTransposeNd) else 0
            per_row = isinstance(module, nn.Linear) and rule != "dense"
            found[name] = Factors(name, dim, bnn.network.get_parameter(name).shape[dim], per_row)
    if left and others == "error":
        name, path, kind = left[0]
        raise ValueError(
            f"MNF has no multiplicative form for {name!r} of module {path or 'the network itself'!r} ({kind}), only "
            "for linear and convolutional layers (transposed ones with groups=1): pass others='mean-field', or give "
            "that parameter the prior None"
        )
    if not found:
        raise ValueError("MNF finds no weight of a linear or convolutional layer to multiply: use guides.MeanField")
    return found

"""`Laplace`: a Gaussian around the posterior mode, with the curvature there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vjp

from bnnzoo._types import Distribution
from bnnzoo._vectorize import vectorize
from bnnzoo.guides.base import _shapes
from bnnzoo.guides.map import Map
from bnnzoo.network import BayesianNetwork
from bnnzoo.weights import Layout, NormalBlock

Structure = Literal["diagonal", "last_layer"]

#: Numbers that a block of rows may take at once.
_WORKING_SET = 2**22


class Laplace(Map):
    """Laplace approximation `q(w) = N(loc, P⁻¹)` around the posterior mode (MacKay 1992; Daxberger et al. 2021).

    Training is that of `Map`. After it, `collect` computes the posterior's precision at the point, by the generalized
    Gauss-Newton matrix `P = Σ_n J_nᵀ H_n J_n + prior precision`, where J_n is the Jacobian of the network's output for
    row n in the weights and H_n the Hessian of `-log p(y_n | output)` in the output, its negative eigenvalues (which a
    predicted noise scale brings) set to 0. On a linear network with Gaussian noise the last-layer posterior is exact.

    In training, and as long as nothing was collected, draws are the point; afterwards, in eval mode, they are Gaussian.
    Sites of the likelihood (a noise scale with a prior) stay points. Draws go through the network as it is: there is no
    linearized predictive.

    Collecting takes a backward pass a row and output, and so does each validation during `fit`. Beside the diagonal it
    keeps nothing; for a last layer of K weights it takes K² numbers and O(K³) time.

    Args:
        bnn: The model. The weights that get a Gaussian need independent Gaussian priors, whose constant curvature keeps
            P positive definite whatever the data say.
        structure: `"diagonal"`: all weights, P's diagonal. `"last_layer"`: the weight and bias of the last layer, the
            full matrix; other weights are points. The last layer is the last module, in order of registration, that
            holds parameters of its own: it has to be an `nn.Linear`. Its two sites are drawn together, at the
            auxiliary site `last_layer`.

    Attributes:
        scale: Standard deviations of the weights, [D], for the diagonal; 0 before anything was collected.
        scale_tril: Cholesky factor of the covariance, [K, K], weight before bias, for the last layer; 0 before.

    Raises:
        ValueError: If the structure is unknown, a weight's prior is not Gaussian, or the last layer is not linear or
            has no random weight of its own.
    """

    def __init__(self, bnn: BayesianNetwork, structure: Structure = "diagonal") -> None:
        super().__init__(bnn)
        if structure not in get_args(Structure):
            raise ValueError(f"structure must be one of {', '.join(map(repr, get_args(Structure)))}, not {structure!r}")
        self.structure = structure
        weights = {name: shape for layout in self._blocks for name, shape in _shapes(layout)}
        if structure == "last_layer":
            weights = {name: weights[name] for name in _last_layer(bnn)}
            if "last_layer" in self.layout.names:
                raise ValueError("the network has a weight 'last_layer', a name that Laplace needs for its own site")
        self._random = Layout(weights)
        for name in weights:
            prior = _base(bnn.priors[name])
            if not isinstance(prior, dist.Normal):
                raise ValueError(
                    f"Laplace needs an independent Gaussian prior on every weight that it draws, and that of {name!r} "
                    f"is {type(prior).__name__}, whose curvature may be 0 or negative: use priors.Normal or another "
                    "Gaussian one"
                )
        size = self._random.size
        if structure == "diagonal":
            self.register_buffer("scale", self.loc.detach().new_zeros(size))
        else:
            self.register_buffer("scale_tril", self.loc.detach().new_zeros(size, size))

    @property
    def has_density(self) -> bool:  # type: ignore[override]
        """Whether no site is a point."""
        return self._random.names == self.layout.names

    def reset_parameters(self) -> None:
        """Start at the network's own values, with nothing collected."""
        super().reset_parameters()
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def distributions(self) -> dict[str, Distribution]:
        """A `Delta` for each site in training; in eval mode Gaussians for the diagonal's weights."""
        sites = super().distributions()
        if self.structure == "diagonal" and not self.training:
            loc = self.loc[: self._random.size]  # the likelihood's sites come last
            sites.update(NormalBlock(loc, self.scale.log(), self._random, ["dense"] * len(self._random.names)).sites())
        return sites

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments and returns a value for each site."""
        sites = self.distributions()
        if self.structure == "last_layer" and not self.training:
            flat = pyro.sample("last_layer", self._joint(), infer={"is_auxiliary": True})
            for name, part in zip(self._random.names, self._random.split(flat), strict=True):
                sites[name] = dist.Delta(part, event_dim=part.dim())
        return {name: pyro.sample(name, q) for name, q in sites.items()}

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        """Log density of values for all sites once collected, in eval mode, a scalar; only where `has_density`.

        Args:
            values: A value for each site.
        """
        if self.structure == "last_layer" and not self.training:
            return self._joint().log_prob(self._random.join(values))
        return super().log_prob(values)

    def _joint(self) -> Distribution:
        """The Gaussian of the last layer, over its flat vector."""
        sites = super().distributions()
        loc = self._random.join({name: sites[name].mean for name in self._random.names})
        return dist.MultivariateNormal(loc, scale_tril=self.scale_tril, validate_args=False)  # it may be 0

    def collect(self, x: Tensor, y: Tensor, batch_size: int) -> dict[str, Tensor]:
        """The standard deviations, or the Cholesky factor, at the point as it is, for one chain.

        Args:
            x: All training inputs as the model sees them, [N, ...].
            y: All training targets as the model sees them, [N, ...].
            batch_size: Most rows to take at once; fewer where their Jacobians would take more than 16 MiB.

        Returns:
            `scale` [D] or `scale_tril` [K, K].
        """
        with torch.no_grad():
            factors, outputs = self._square_root(x[:1])
            per_row = outputs * outputs + self._random.size * (1 if self.structure == "diagonal" else outputs)
            rows = max(1, min(batch_size, _WORKING_SET // per_row))
            blocks = [(x[start : start + rows], y[start : start + rows]) for start in range(0, len(x), rows)]
            precision = self._prior_precision().double()
            if self.structure == "diagonal":
                squares = vectorize(lambda x, y: _sum_of_squares(factors(x, y)))
                for block in blocks:
                    summed = {name: value.sum(0) for name, value in squares(*block).items()}
                    precision += self._random.join(summed)
                return {"scale": precision.rsqrt().to(self.loc)}
            precision = precision.diag()
            stacked = vectorize(lambda x, y: torch.stack([self._random.join(g) for g in factors(x, y)]))
            for block in blocks:
                root = stacked(*block).flatten(0, 1).double()
                precision.addmm_(root.T, root)
            exact = dist.MultivariateNormal(torch.zeros_like(precision[0]), precision_matrix=precision)
            return {"scale_tril": exact.scale_tril.to(self.loc)}

    def _square_root(self, x: Tensor) -> tuple[Callable[[Tensor, Tensor], Iterator[dict[str, Tensor]]], int]:
        """A function of one row that yields the columns of Jᵀ √H, by site, and how many they are."""
        model, sites = self.model, self.points(self.loc.detach())
        fixed = {name: site.mean for name, site in sites.items()}
        noise = {name: fixed[name] for name in model.likelihood.sites()}
        point = {name: fixed[name] for name in self._random.names}

        def columns(x: Tensor, y: Tensor) -> Iterator[dict[str, Tensor]]:
            f, pull = vjp(lambda values: model.output(fixed | values, x[None]), point)
            curvature = jacrev(grad(lambda f: -model.likelihood.log_prob(f, y[None], **noise).sum()))(f)
            values, vectors = torch.linalg.eigh(curvature.reshape(f.numel(), f.numel()))
            for column in (vectors * values.clamp_min(0).sqrt()).unbind(1):
                yield pull(column.view_as(f))[0]

        return columns, model.output(fixed, x).numel()

    def _prior_precision(self) -> Tensor:
        priors = [_base(self.model.priors[name]).scale.expand(shape) for name, shape in _shapes(self._random)]
        return torch.cat([scale.reshape(-1) for scale in priors]) ** -2


def _base(prior: Distribution) -> Any:
    """A prior without the wrappers that only say which of its dimensions are one event."""
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    return prior


def _sum_of_squares(parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    # In place, for this is most of the work: it is bound by memory.
    total = {name: value.square() for name, value in next(parts).items()}
    for part in parts:
        for name, value in part.items():
            total[name] += value.square()
    return total


def _last_layer(bnn: BayesianNetwork) -> list[str]:
    """The sites of the last layer."""
    path, module = [(n, m) for n, m in bnn.network.named_modules() if list(m.parameters(recurse=False))][-1]
    prefix = f"{path}." if path else ""
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"structure='last_layer' needs a network that ends with an nn.Linear; the last module with parameters is "
            f"{path!r}, {type(module).__name__}"
        )
    names = [f"{prefix}{name}" for name in ("weight", "bias") if f"{prefix}{name}" in bnn.priors]
    if f"{prefix}weight" not in names:
        raise ValueError(f"the last layer {path!r} has no random weight of its own: its prior is None, or it is tied")
    return names

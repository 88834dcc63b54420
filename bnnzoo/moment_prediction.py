"""`MomentPrediction`: the posterior predictive by the moments of the network's outputs, without draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn

from bnnzoo import likelihoods
from bnnzoo._types import Distribution
from bnnzoo._vectorize import CountingBytes, seeded
from bnnzoo.guides import Empirical, MomentPropagation
from bnnzoo.hermite import gauss_hermite
from bnnzoo.likelihoods import Likelihood
from bnnzoo.likelihoods.base import squeeze
from bnnzoo.likelihoods.moment_targets import check_sites
from bnnzoo.likelihoods.quadrature import root
from bnnzoo.moment_families import BernoulliTargets, CategoricalTargets, NormalTargets, PoissonTargets, expected
from bnnzoo.moments import Nodes, options
from bnnzoo.moments.errors import located
from bnnzoo.moments.propagation import Covariance, entering, leaving
from bnnzoo.moments.sites import NoMomentsError
from bnnzoo.moments.softmax import Softmax, log_softmax
from bnnzoo.moments.value import Approximation, Fallback, Options, check_softmax
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Sites
from bnnzoo.prediction import Prediction, of_chain, of_groups

if TYPE_CHECKING:
    from bnnzoo.posterior import Posterior

#: Of quadrature over the noise scale that a network predicts.
_NODES = 32


@dataclass(frozen=True)
class MomentPrediction(Prediction):
    """A mixture over chains: one distribution of the targets for every chain and input, by moments.

    All that `Prediction` offers, with one "draw" a chain, whose outputs are Gaussian: `epistemic` is the variance of
    the conditional mean over outputs and chains, `mutual_information` that of class and outputs. Nothing is random but
    `sample`. `pooled` has one chain, with the chains that it had as its draws.

    Attributes:
        outputs: Of the network's outputs, as the model has them (for standardized targets): `mean` and `variance`,
            [chain, 1, N, ...]; pooled [1, chain, N, ...].
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        chains, pooled, *rest = self.shape
        words = f"{pooled} pooled chains" if pooled > 1 else f"{chains} chain{'s' if chains > 1 else ''}"
        return f"MomentPrediction({words} of {rest} targets)"

    @property
    def shape(self) -> torch.Size:
        """[chain, 1, N, *event]; pooled [1, chain, N, *event]."""
        shape = self.parameters["loc"].shape
        return shape[:-1] if self.family is CategoricalTargets else shape

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean over outputs and chains: what more data would remove, [N, *event]."""
        return self._reduce(lambda d: d.between.mean((0, 1)) + self._number(d, "mean").var((0, 1), correction=0))

    @property
    def aleatoric(self) -> Tensor:
        """Mean of the conditional variance: the noise, [N, *event]."""
        return self._reduce(lambda d: self._number(d, "within").mean((0, 1)))

    @property
    def mutual_information(self) -> Tensor:
        """Mutual information of class, chain and outputs in nats, the epistemic part of `entropy`, ≥ 0, [N].

        By quadrature: one-dimensional of two classes with one logit (an error below 1e-6), else 1024 fixed points of
        quasi-Monte Carlo, of an error of about 5e-3 for ten logits of standard deviation 3.
        """
        if self.task != "classification":
            raise TypeError(f"{self.family.__name__} are not classes: use mean, epistemic and aleatoric")
        expected = self._reduce(lambda d: d.expected_entropy.mean((0, 1)))
        return (self.entropy - expected).clamp_min(0.0)

    def log_prob(self, y: Any) -> Tensor:
        """Log density of targets under the mixture over all chains, [N].

        Several targets of an input are independent given its chain, but for a noise scale that they share.

        Args:
            y: Targets in their own units, [N, *event].

        Raises:
            ValueError: If `y` does not have the prediction's shape.
        """
        if self.task != "regression" or len(self.shape) < 4:
            return super().log_prob(y)

        def mixture(d: NormalTargets, rows: Tensor) -> Tensor:
            log_density = d.joint_log_prob(rows)
            return log_density.logsumexp((0, 1)) - math.log(math.prod(log_density.shape[:2]))

        return self._reduce(mixture, self._targets(y))

    def quantile(self, q: float, seed: int = 0) -> Tensor:
        """Quantile of the posterior predictive, [N, *event], by bisection on the mixture's distribution function.

        Of counts the least one whose distribution function, which is off by 1/1024 at most, reaches q.

        Args:
            q: Probability, in (0, 1).
            seed: Not used: nothing is drawn.

        Raises:
            ValueError: If `q` is out of range.
            TypeError: For classes.
        """
        if self.task != "counts" or not 0 < q < 1:
            return super().quantile(q, seed)

        def bisect(d: PoissonTargets) -> Tensor:
            high = d.highest().amax((0, 1))
            low = torch.full_like(high, -1.0)
            for _ in range(64):
                middle = ((low + high) / 2).floor()
                below = d.cdf(middle.expand(d.batch_shape)).mean((0, 1)) < q
                low, high = torch.where(below, middle, low), torch.where(below, high, middle.clamp_min(0.0))
                if bool((high - low <= 1.0).all()):
                    break
            return high.double()

        with torch.no_grad():
            return self._reduce(bisect)

    def sample(self, seed: int = 0, num_samples: int = 1) -> Tensor:
        """Targets from the posterior predictive, [chain, num_samples, N, *event].

        Args:
            seed: Fixes the draws.
            num_samples: Targets a chain, ≥ 1; pooled, of each of the chains that there were.
        """
        with seeded(seed, self.parameters["loc"].device), torch.no_grad():
            return self.distribution.sample((num_samples,)).movedim(0, 2).flatten(1, 2)

    def chain(self, index: int) -> Self:
        """The prediction of one chain alone."""
        return replace(super().chain(index), outputs=of_chain(self.outputs, index))

    def _classes(self, d: Distribution) -> Tensor:
        if isinstance(d, BernoulliTargets):
            return torch.stack([d.complement, d.probs], dim=-1)
        return super()._classes(d)

    @property
    def pooled(self) -> Self:
        """The prediction with all chains as one: an ensemble's, [1, chain, N, *event]."""
        return replace(super().pooled, outputs=of_groups(self.outputs, *self.shape[:2], members=self.shape[0]))


#: What `predict` may be told besides the inputs.
SETTINGS = ("softmax", "covariance", "approximation", "fallback")

_INSTEAD = "predict by draws, or with guides.MomentPropagation, MeanField, Dropout or Map"


def predict(
    posterior: Posterior,
    x: Tensor,
    max_memory: int,
    *,
    softmax: Softmax | None = None,
    covariance: Covariance = "diagonal",
    approximation: Approximation | None = None,
    fallback: Fallback | None = None,
) -> MomentPrediction:
    """Predict by moments.

    Args:
        posterior: The posterior.
        x: Inputs as the model has them, [N, ...].
        max_memory: See `Posterior.predict`.
        softmax: See `Posterior.predict`, as the others.
        covariance: See there.
        approximation: See there.
        fallback: See there.
    """
    guide, likelihood = posterior.guide, posterior.bnn.likelihood
    family, extract = _family(likelihood)
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance must be one of {', '.join(map(repr, get_args(Covariance)))}, not {covariance!r}")
    if softmax is not None and not isinstance(likelihood, likelihoods.Categorical):
        raise ValueError(f"softmax={softmax!r} is for class labels, not for {type(likelihood).__name__} targets")
    check_softmax(softmax, optional=True)
    if softmax is not None and covariance != "diagonal":
        raise ValueError(f"softmax={softmax!r} is for independent logits, not for covariance={covariance!r}")
    if isinstance(guide, Empirical) or getattr(guide, "auxiliary", None):
        raise ValueError(f"guides.{type(guide).__name__} has no mean and variance to propagate: {_INSTEAD}")
    held: Any = guide if isinstance(guide, MomentPropagation) else Options()
    chosen = Options(approximation or held.approximation, fallback or held.fallback)
    run = partial(_propagated, extract, chosen, covariance)
    try:
        parts = [posterior._map_chains(run, rows) for rows in x.split(_rows(posterior, run, x, max_memory))]
    except NoMomentsError as error:
        raise ValueError(f"guides.{type(guide).__name__} has no moments to predict by ({error}): {_INSTEAD}") from error
    found = {name: _joined([part[name] for part in parts]).unsqueeze(1) for name in parts[0]}
    outputs = {name.removeprefix("output "): found.pop(name) for name in list(found) if name.startswith("output ")}
    if family is CategoricalTargets:
        kind = softmax or (getattr(guide, "softmax", None) if covariance == "diagonal" else None)
        found["logits"] = _class_logits(found, kind)
    return MomentPrediction(_in_own_units(posterior, found), family, likelihood.task, outputs)


def _family(likelihood: Likelihood) -> tuple[Any, Callable[..., dict[str, Tensor]]]:
    for kind, entry in _FAMILIES.items():
        if isinstance(likelihood, kind):
            return entry
    known = ", ".join(each.__name__ for each in _FAMILIES)
    raise TypeError(
        f"predictions by moments are for the likelihoods {known}; {type(likelihood).__name__} needs method='draws'"
    )


def _propagated(
    extract: Callable[..., dict[str, Tensor]],
    chosen: Options,
    covariance: Covariance,
    model: BayesianNetwork,
    guide: nn.Module,
    x: Tensor,
) -> dict[str, Tensor]:
    """The parameters of the targets' family for one chain, and the moments of the outputs."""
    sites = Sites(form="moments")
    sites.run(guide, None)
    values = sites.drawn
    with options(chosen.approximation, chosen.fallback), located(model.network):
        output = leaving(model.output(values, entering(x, covariance=covariance)), covariance)
    likelihood = model.likelihood
    found = {"mean": output.loc, "variance": output.variance}
    if covariance != "diagonal" and output.dim() == 2:
        found["covariance"] = output.covariance
    parameters = extract(likelihood, found, {name: values[name] for name in likelihood.sites()})
    return {**parameters, **{f"output {name}": value for name, value in found.items()}}


def _gaussian(likelihood: Likelihood, output: dict[str, Tensor], sites: dict[str, Any]) -> dict[str, Tensor]:
    check_sites(sites)
    loc = output["mean"]
    noises, probs = [sites], loc.new_ones(1)
    for name, value in sites.items():
        if isinstance(value, Nodes):
            noises, probs = [{name: each} for each in value.values], value.weights
    given = [likelihood.conditional(loc, **each) for each in noises]
    scale = torch.stack([each["scale"] for each in given], -1)
    return {"loc": given[0]["loc"], **_spread(output, loc.shape[-1]), "scale": scale, "probs": _of_each(probs, scale)}


def _heteroscedastic(likelihood: Likelihood, output: dict[str, Tensor], sites: dict[str, Any]) -> dict[str, Tensor]:
    size = output["mean"].shape[-1] // 2
    loc, raw = output["mean"].chunk(2, -1)
    points, weights = (each.to(loc) for each in gauss_hermite(_NODES))
    raw = raw.unsqueeze(-1) + root(output["variance"][..., size:]).unsqueeze(-1) * points
    scale = torch.stack([likelihood.conditional(torch.cat([loc, each], -1))["scale"] for each in raw.unbind(-1)], -1)
    probs = _of_each(weights, scale)
    return {"loc": squeeze(loc), **_spread(output, size), "scale": scale, "probs": probs}


def _of_each(probs: Tensor, scale: Tensor) -> Tensor:
    """Probabilities [Q] of the values of scales [N, Q] or [N, C, Q], for each of the scales: [1, Q] or [1, C, Q]."""
    return probs.expand(1, *scale.shape[1:])


def _spread(output: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Variances, and covariances of several, of the first outputs."""
    spread = {"output_variance": squeeze(output["variance"][..., :size])}
    if "covariance" in output and size > 1:
        spread["covariance"] = output["covariance"][..., :size, :size]
    return spread


def _single(likelihood: Likelihood, output: dict[str, Tensor], sites: dict[str, Any]) -> dict[str, Tensor]:
    return {"loc": squeeze(output["mean"]), "output_variance": squeeze(output["variance"])}


def _classes(likelihood: Likelihood, output: dict[str, Tensor], sites: dict[str, Any]) -> dict[str, Tensor]:
    logits = {"loc": output["mean"].movedim(1, -1), "output_variance": output["variance"].movedim(1, -1)}
    return {**logits, "covariance": output["covariance"]} if "covariance" in output else logits


_FAMILIES: dict[type[Likelihood], tuple[Any, Callable[..., dict[str, Tensor]]]] = {
    likelihoods.Gaussian: (NormalTargets, _gaussian),
    likelihoods.HeteroscedasticGaussian: (NormalTargets, _heteroscedastic),
    likelihoods.Bernoulli: (BernoulliTargets, _single),
    likelihoods.Categorical: (CategoricalTargets, _classes),
    likelihoods.Poisson: (PoissonTargets, _single),
}


def _class_logits(given: dict[str, Tensor], softmax: Softmax | None) -> Tensor:
    loc, variance = given["loc"], given["output_variance"]
    if softmax is not None:
        return log_softmax(loc, variance, -1, softmax)
    probs = expected(lambda logits: logits.softmax(-1), loc, variance, given.get("covariance"))
    return (probs / probs.sum(-1, keepdim=True)).clamp_min(torch.finfo(probs.dtype).tiny).log()


def _in_own_units(posterior: Posterior, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the standardization of targets."""
    if "scale" not in found:
        return found
    loc = found["loc"]
    unit = posterior._rescaled({"loc": loc.new_zeros(loc.shape[3:]), "scale": loc.new_ones(loc.shape[3:])})["scale"]
    own = posterior._rescaled({"loc": loc, "scale": found["scale"].movedim(-1, 0)})
    changed = {
        "loc": own["loc"],
        "output_variance": found["output_variance"] * unit.square(),
        "scale": own["scale"].movedim(0, -1),
    }
    if "covariance" in found:
        changed["covariance"] = found["covariance"] * unit.unsqueeze(-1) * unit
    return {**found, **changed}


def _joined(parts: list[Tensor]) -> Tensor:
    """Blocks of rows, [chain, rows, ...], together; a value shared by all rows stays one row."""
    return parts[0] if len(parts) == 1 or all(part.shape[1] == 1 for part in parts) else torch.cat(parts, 1)


def _rows(posterior: Posterior, run: Callable[..., Any], x: Tensor, max_memory: int) -> int:
    """How many rows one pass may take."""
    used = []
    with torch.no_grad():
        for rows in (1, 2):
            with CountingBytes() as counting:
                posterior._map_chains(run, x[:1].detach().expand(rows, *x.shape[1:]))
            used.append(counting.bytes)
    each = max(1, used[1] - used[0])
    fixed = used[0] - each
    if fixed + each > max_memory:
        raise ValueError(
            f"max_memory is too small: the moments of {posterior.chains} chains for one input need "
            f"{(fixed + each) / 2**20:.1f} MiB of work, and max_memory={max_memory}"
        )
    return max(1, min(len(x), (max_memory - fixed) // each))

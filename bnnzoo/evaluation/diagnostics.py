"""How good a posterior is: importance sampling (k̂), convergence of predictions, the distance to a reference.

These ask how near a fitted guide is to the posterior of its model; scores ask how good the model's predictions are. A
guide can fail here and predict well, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Delta
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from bnnzoo._vectorize import seeded
from bnnzoo.data import as_dataset
from bnnzoo.evaluation.inference_data import chain_statistics, pareto_shape
from bnnzoo.guides import Guide
from bnnzoo.moment_prediction import MomentPrediction
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Sites, log_prob
from bnnzoo.posterior import Posterior
from bnnzoo.prediction import Prediction
from bnnzoo.priors import LogUniform
from bnnzoo.training_data import checksum, training_tensors

LEAST_DRAWS = 25
"""Fewer draws have no tail to fit a Pareto distribution to."""

_BLOCK = 2**22  # log densities that are computed at once


def psis(
    posterior: Posterior, data: Any, *, num_samples: int = 1000, seed: int = 0, max_memory: int = 2**28
) -> xr.Dataset:
    """How far the guide is from the posterior, by importance sampling: k̂ of each chain (Yao et al. 2018, section 2).

    Of draws w_s from the guide, the ratios p(w_s, y) / q(w_s) over the whole data set would make exact expectations of
    the guide's draws, if their mean settled. It does as fast as the ratios' right tail allows: k̂ is the shape of the
    generalized Pareto distribution fitted to that tail. Below 0.5 the ratios' variance is finite and q is close to the
    posterior; up to `threshold` importance weights still help; above, q misses much of the posterior, or is far too
    narrow. The threshold is min(1 - 1 / log₁₀ S, 0.7) for S draws (Vehtari et al. 2024, section 3.2): 0.67 for 1000.

    k̂ judges the joint distribution of all weights. Of a network with many weights it is nearly always above 1, even
    where the predictions are good: then `distance` and `sbc` say more. A mode that the guide misses altogether goes
    unseen, for no draw comes near it.

    This is not the k̂ of leave-one-out (`arviz.loo`), which has one number a datum and is about the likelihood alone.
    `pareto_k` takes this one from an export, for guides with a density over the weights alone.

    Where a guide draws auxiliary variables (`guides.MNF`, with its r(z | w)), draws are weighed in the joint space:
    p(w, y) r(z | w) / q(w, z). That is importance sampling too, but its k̂ also counts how badly r fits, and is an upper
    bound, roughly, of that of q(w).

    Args:
        posterior: A fitted posterior.
        data: The data it was fitted to, whatever `fit` takes.
        num_samples: Draws a chain, ≥ 25; those of `posterior.sample(num_samples, seed)`.
        seed: Fixes the draws.
        max_memory: Bytes that the work may take.

    Returns:
        `khat` [chain], infinite where a few draws carry all the weight and minus infinity where all ratios are equal
        (q is the posterior); `elbo` [chain] and its `elbo_se`, nats, of targets as the model sees them; `log_ratio`
        [chain, draw], log p(w, y) - log q(w), of which importance weights can be made. Attributes: `threshold`,
        `num_samples`.

    Raises:
        ValueError: If the guide has no density to divide by (points, dropout, stored draws), the prior is improper, the
            data are not those of the fit, or there are too few draws.

    Example:
        >>> import torch, bnnzoo
        >>> x, y = torch.randn(50, 3), torch.randn(50)
        >>> bnn = bnnzoo.BayesianNetwork(torch.nn.Linear(3, 1), bnnzoo.likelihoods.Gaussian(scale=1.0))
        >>> posterior = bnnzoo.fit(bnn, bnnzoo.guides.MeanField(bnn), (x, y), epochs=2)
        >>> sorted(bnnzoo.evaluation.psis(posterior, (x, y)).data_vars)
        ['elbo', 'elbo_se', 'khat', 'log_ratio']
    """
    if num_samples < LEAST_DRAWS:
        raise ValueError(f"psis needs at least {LEAST_DRAWS} draws a chain, given num_samples={num_samples}")
    _check_weighable(posterior)
    x, y = _data_of_the_fit(posterior, data)
    log_ratio = np.concatenate(list(_log_ratios(posterior, x, y, num_samples, seed, max_memory)), 1)
    spread = log_ratio.std(1, ddof=1) / math.sqrt(num_samples)
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "khat": ("chain", [pareto_shape(chain) for chain in log_ratio], {"long_name": "PSIS k̂", "better": "lower"}),
            "elbo": ("chain", log_ratio.mean(1), {"long_name": "evidence lower bound", "better": "higher"} | nats),
            "elbo_se": ("chain", spread, nats),
            "log_ratio": (("chain", "draw"), log_ratio, {"long_name": "log p(w, y) - log q(w)"} | nats),
        },
        coords={"chain": np.arange(posterior.chains), "draw": np.arange(num_samples)},
        attrs={"threshold": khat_threshold(num_samples), "num_samples": num_samples, "seed": seed},
    )


def khat_threshold(num_samples: int) -> float:
    """The k̂ up to which importance weights of this many draws help: min(1 - 1 / log₁₀ S, 0.7).

    Vehtari et al. 2024, "Pareto smoothed importance sampling", section 3.2. 0.5 for 100 draws, 0.67 for 1000.

    Args:
        num_samples: Number S of draws, ≥ 25.
    """
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7)


def _check_weighable(posterior: Posterior) -> None:
    guide = posterior.guide
    if isinstance(guide, Guide) and not (guide.has_density or guide.bounds_evidence):
        raise ValueError(
            f"psis weighs draws by p(w, y) / q(w), and guides.{type(guide).__name__} has no density q(w) to divide by; "
            "evaluation.distance and evaluation.sbc need draws alone"
        )
    improper = [name for name, prior in posterior.bnn.priors.items() if isinstance(prior, LogUniform)]
    if improper:
        raise ValueError(
            f"the prior of {', '.join(improper)} is LogUniform, under which the posterior has no finite integral: "
            "draws cannot be weighed by it"
        )


def _data_of_the_fit(posterior: Posterior, data: Any) -> tuple[Tensor, Tensor]:
    """The data as the model sees them."""
    x, y = training_tensors(posterior.bnn, as_dataset(data), posterior.standardization)
    fitted = posterior.info.get("checksum")
    if fitted is not None and checksum(x, y) != fitted:
        raise ValueError(
            f"psis needs the data that the posterior was fitted to, and these {len(x)} are not the "
            f"{posterior.info['num_data']} of the fit (which a validation set does not belong to)"
        )
    return x, y


def _log_ratios(
    posterior: Posterior, x: Tensor, y: Tensor, num_samples: int, seed: int, max_memory: int
) -> Iterator[np.ndarray]:
    """Log p(w, y) - log q(w) by blocks of draws, [chain, block] each."""
    most, rows = posterior._block(x, max_memory, num_samples)
    for _, size, own in posterior._blocks_of_draws(num_samples, seed):
        values, log_q = posterior._map_draws(_draw_and_weigh, size, own)
        for start in range(0, log_q.shape[1], most):
            part = {name: value[:, start : start + most] for name, value in values.items()}
            total = posterior.log_prior(part).double() - log_q[:, start : start + most].double()
            for first in range(0, len(x), rows):
                some = slice(first, first + rows)
                total += posterior._map(_log_likelihood, part, x[some], y[some])
            yield total.cpu().numpy()


def _draw_and_weigh(model: BayesianNetwork, guide: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """One draw from a guide, and its log density with the guide's own sites and factors."""
    sites = Sites()
    q = sites.run(guide, None)
    if all(isinstance(getattr(site["fn"], "base_dist", site["fn"]), Delta) for site in q.values()):
        raise ValueError(f"psis weighs draws by p(w, y) / q(w), and {type(guide).__name__} is a point")
    return {name: sites.drawn[name] for name in model.sites}, torch.stack([log_prob(s) for s in q.values()]).sum()


def _log_likelihood(
    model: BayesianNetwork, guide: nn.Module, values: dict[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    latent = {name: values[name] for name in model.likelihood.sites()}
    return model.likelihood.distribution(model.output(values, x), **latent).log_prob(y).double().sum()


def convergence(prediction: Prediction) -> xr.Dataset:
    """Whether the chains predict alike: R-hat and effective sample sizes of the predictions' draws, not of the weights.

    Weights of a network have no R-hat to speak of: units can be permuted and signs flipped without changing the
    function, so chains that agree on every prediction differ in every weight. Here the quantities are the targets'
    conditional means, or the class probabilities, given each draw. Rank-normalized split R-hat, and bulk and tail
    effective sample sizes (Vehtari et al. 2021), by ArviZ.

    For NUTS, R-hat says whether the chains explore one distribution. For a guide, whose draws are independent, it says
    whether the restarts found the same answer: above 1.01 the optima differ.

    Args:
        prediction: What `Posterior.predict` returned, of two chains or more and at least 4 draws.

    Returns:
        `rhat`, `ess_bulk`, `ess_tail`, [obs, ...], NaN where no draw differs from another. Attributes: `worst_rhat`,
        `least_ess_bulk`, `least_ess_tail`, over all.

    Raises:
        ValueError: If there is one chain, or fewer than 4 draws, or the draws of a chain are all the same (a point).
    """
    _check_draws(prediction, "convergence")
    draws = prediction.draws.detach().double().cpu()
    chains, count = draws.shape[:2]
    if chains < 2 or count < 4:
        raise ValueError(f"convergence needs at least 2 chains of 4 draws, given {chains} of {count}")
    if bool((draws == draws[:, :1]).all()):
        raise ValueError("the draws of each chain are all the same: points have nothing to converge")
    event = [f"event_{number}" for number in range(draws.dim() - 3)]
    return chain_statistics(xr.DataArray(draws.numpy(), dims=["chain", "draw", "obs", *event]))


def distance(prediction: Prediction, reference: Prediction, *, num_targets: int = 500, seed: int = 0) -> xr.Dataset:
    """How far the predictions of each chain are from a reference's, as those of NUTS: same inputs, same targets.

    - `kl`: KL(reference ‖ prediction) of the predictive distributions of a target, the mixtures over draws, in nats,
      averaged over the inputs: what is lost in log density by predicting with this instead of the reference. For
      classes exact; for numbers a Monte Carlo estimate from `num_targets` targets that the reference predicts for each
      input, with the standard error `kl_se` of that sampling.
    - `kl_gaussian` (regression): the same of Gaussians with the mixtures' means and variances, in closed form.
    - `energy`: energy distance 2 E‖F - G‖ - E‖F - F'‖ - E‖G - G'‖ (Székely & Rizzo 2013) of the functions: of the
      vectors of conditional means (class probabilities) at all inputs given a draw, ‖·‖ the root mean square over the
      inputs: in the target's units. It sees the functions' joint distribution, without noise; distances of weights
      would see permuted units as different.

    Each has a `_floor`: the same between the first and the second half of the reference's draws of each chain, which
    have half as many. A distance near its floor is none that this reference can show: sampling alone, with as many
    draws as the reference has, makes about half of it.

    Args:
        prediction: By draws; each chain is compared by itself (`prediction.pooled` for all chains as one).
        reference: By draws; its chains are one distribution, at least 4 draws.
        num_targets: Targets drawn for each input, ≥ 2.
        seed: Fixes them.

    Returns:
        `kl`, `kl_se`, `kl_gaussian`, `energy` [chain], and scalars `kl_floor`, `kl_gaussian_floor`, `energy_floor`.

    Raises:
        ValueError: If the two do not predict the same kind of target for the same number of inputs, or one of them was
            made by moments, or there are too few draws.
    """
    for each in (prediction, reference):
        _check_draws(each, "distance")
    if prediction.shape[2:] != reference.shape[2:] or prediction.task != reference.task:
        raise ValueError(
            f"the prediction ({prediction.task} of {list(prediction.shape[2:])}) and the reference ({reference.task} "
            f"of {list(reference.shape[2:])}) must be for the same inputs and targets"
        )
    if reference.shape[1] < 4 or num_targets < 2:
        raise ValueError(
            f"distance needs at least 4 draws a chain of the reference and 2 targets, given {reference.shape[1]} "
            f"and {num_targets}"
        )
    half = reference.shape[1] // 2
    first, second = (_some_draws(reference, part).pooled for part in (slice(half), slice(half, None)))
    chains = [prediction.chain(index) for index in range(prediction.shape[0])]
    measures: dict[str, Callable[[Prediction, Prediction], float]] = {"energy": _energy}
    if reference.task == "regression":
        measures["kl_gaussian"] = _gaussian_kl
    kl = np.array([_kl(chain, reference.pooled, num_targets, seed) for chain in chains])
    floor = _kl(second, first, num_targets, seed)[0]
    nats = {"units": "nats", "better": "lower"}
    variables: dict[str, Any] = {
        "kl": ("chain", kl[:, 0], {"long_name": "KL(reference ‖ prediction)", **nats}),
        "kl_se": ("chain", kl[:, 1], {"units": "nats"}),
        "kl_floor": ((), floor, {"units": "nats"}),
    }
    for name, measure in measures.items():
        about = nats if name == "kl_gaussian" else {"long_name": "energy distance", "better": "lower"}
        variables[name] = ("chain", [measure(chain, reference.pooled) for chain in chains], about)
        variables[f"{name}_floor"] = ((), measure(second, first), about)
    return xr.Dataset(variables, coords={"chain": np.arange(len(chains))})


def _check_draws(prediction: Prediction, what: str) -> None:
    if isinstance(prediction, MomentPrediction):
        raise ValueError(f"{what} compares draws, and moments draw nothing: predict(x, num_samples, method='draws')")


def _some_draws(prediction: Prediction, part: slice) -> Prediction:
    """The prediction with some of its draws."""
    parameters = {n: v if v.shape[1] == 1 else v[:, part] for n, v in prediction.parameters.items()}
    count = len(range(prediction.shape[1])[part])
    first = next(iter(parameters))  # one that has all draws: those that all draws share would leave none
    parameters[first] = parameters[first].expand(-1, count, *[-1] * (parameters[first].dim() - 2))
    return Prediction(parameters, prediction.family, prediction.task)


def _kl(prediction: Prediction, reference: Prediction, num_targets: int, seed: int) -> tuple[float, float]:
    """KL(reference ‖ prediction), averaged over inputs, and its standard error."""
    if reference.task == "classification":
        log_p, log_q = reference.double()._log_classes(), prediction.double()._log_classes()
        p = log_p.exp()
        terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
        return terms.reshape(len(p), -1).sum(1).mean().item(), 0.0
    y = _targets(reference, num_targets, seed)
    each = (_log_density(reference, y) - _log_density(prediction, y)).mean(1)
    return each.mean().item(), (each.std() / math.sqrt(len(each))).item()


def _targets(prediction: Prediction, count: int, seed: int) -> Tensor:
    """Targets that a prediction of one chain draws, [count, N, ...]: of all draws in turn, in random order."""
    generator = torch.Generator().manual_seed(seed)
    times = math.ceil(count / prediction.shape[1])
    with seeded(seed, next(iter(prediction.parameters.values())).device), torch.no_grad():
        samples = prediction.distribution.sample((times,))[:, 0]
    orders = [torch.randperm(prediction.shape[1], generator=generator) for _ in range(times)]
    return torch.cat([each[order] for each, order in zip(samples, orders, strict=True)])[:count]


def _log_density(prediction: Prediction, y: Tensor) -> Tensor:
    """Log density of targets [count, N, ...] under the mixture over chains and draws, [count, N]."""
    distribution, parts = prediction.distribution, []
    for part in y.split(max(1, _BLOCK // prediction.shape.numel())):
        density = distribution.log_prob(part[:, None, None]).double()
        density = density.flatten(4).sum(-1) if density.dim() > 4 else density
        parts.append(density.logsumexp((1, 2)) - math.log(density.shape[1] * density.shape[2]))
    return torch.cat(parts)


def _gaussian_kl(prediction: Prediction, reference: Prediction) -> float:
    mean, variance = prediction.mean.double(), prediction.variance.double()
    true_mean, true_variance = reference.mean.double(), reference.variance.double()
    terms = 0.5 * ((true_variance + (true_mean - mean) ** 2) / variance - 1.0 + (variance / true_variance).log())
    return terms.reshape(len(terms), -1).sum(1).mean().item()


def _energy(prediction: Prediction, reference: Prediction) -> float:
    a, b = (each.draws.detach().double().flatten(0, 1).flatten(1).cpu().numpy() for each in (prediction, reference))
    total = 2.0 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    return max(0.0, float(total)) / math.sqrt(len(prediction))

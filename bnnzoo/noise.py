"""The noise scale of a Gaussian likelihood, chosen on held-out data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import scoringrules
import torch
from torch import Tensor

from bnnzoo.data import as_dataset
from bnnzoo.likelihoods import Gaussian
from bnnzoo.posterior import Posterior

CRITERIA = ("crps", "pll")
"""What a noise scale can be chosen by."""

#: The smallest scale that is tried, in units of the root mean squared error, and how many are, on a logarithmic grid.
_FLOOR, _GRID = 1e-3, 60

Criterion = Callable[[Tensor, Tensor], Tensor]


def tune_noise(
    posterior: Posterior, data: Any, by: str = "crps", num_samples: int | None = None, seed: int = 0
) -> Posterior:
    """Choose the noise scale τ^(-1/2) of a Gaussian likelihood on held-out data, for any guide.

    Each chain gets the scale that is best for it alone, or one for each target where the likelihood has as many. By
    `"crps"` it minimizes the continuous ranked probability score of a Gaussian with the predictive's mean and variance,
    `N(mean_t f_t, s² + var_t f_t)`, averaged over data and (standardized) targets; by `"pll"` it maximizes the log
    likelihood of the predictive itself, `Σ_n log mean_t N(y_n; f_t(x_n), s²)` (Teye et al. 2018, section 4.1 and
    appendix 1.5). The best log s is searched for on a grid from 1/1000 of the root mean squared error on, then by a
    quasi-Newton method.

    Args:
        posterior: A posterior with a `likelihoods.Gaussian` whose scale is fixed or learned.
        data: Validation data in their own units: whatever `fit` takes.
        by: `"crps"` or `"pll"`.
        num_samples: Draws a chain, default 200, see `Posterior.predict`; also of guides that predict by moments.
        seed: Fixes the draws.

    Returns:
        A new posterior with these scales, in the units that the model sees; `info["noise"]` says how they came about.

    Raises:
        TypeError: If the likelihood is another one, or its scale has a prior.
        ValueError: If `by` is unknown, the data do not fit, or the predictions equal the targets.

    Warns:
        UserWarning: If a scale ends at its lower bound: the draws alone spread more than the errors.
    """
    _check_criterion(by)
    likelihood = posterior.bnn.likelihood
    if not isinstance(likelihood, Gaussian):
        raise TypeError(
            f"tune_noise chooses the scale of a Gaussian likelihood, and this one is {type(likelihood).__name__}"
        )
    if likelihood.prior is not None:
        raise TypeError(
            "the noise scale has a prior, and the posterior is about it, too: tune_noise is for Gaussian() and "
            "Gaussian(scale=number)"
        )
    dataset = as_dataset(data)
    # By draws whatever the guide's own way: the draws' spread is part of the predictive, and not of moments' `loc`.
    prediction = posterior.predict(dataset.x, num_samples, seed, method="draws")
    with torch.no_grad():
        y = prediction._targets(likelihood.prepare(dataset.y)).double()
        targets = math.prod(y.shape[1:])
        f = prediction.parameters["loc"].double().reshape(*prediction.shape[:2], len(y), targets)
        errors = y.reshape(len(y), targets) - f
    name = "log_scale" if likelihood.log_scale is not None else "fixed_scale"
    parameters, buffers = posterior.state()
    holder = parameters if name == "log_scale" else buffers
    held = holder[f"model.likelihood.{name}"]
    # Errors are in the target's own units, scales in those of the model.
    units = posterior._rescaled({"loc": torch.zeros(1), "scale": torch.ones(1)})["scale"].double().to(errors.device)
    scales = _best(errors / units, by, held[0].numel(), stacklevel=4)
    new = scales.reshape(held.shape).to(held)
    holder[f"model.likelihood.{name}"] = new.log() if name == "log_scale" else new
    noise = {"by": by, "data": dataset.name, "num_data": len(dataset)}
    return posterior._changed(posterior._pair.copy(), (parameters, buffers), noise=noise)


def best_scale(errors: Tensor, by: str = "crps", *, each_target: bool = False) -> Tensor:
    """The constant noise scale that is best for errors of predictions: what `tune_noise` chooses, of errors alone.

    By `"crps"` it minimizes the mean CRPS of a Gaussian with the mean and the variance over draws, and the noise's
    variance s²; by `"pll"` it maximizes the mean log density of the mixture over draws of Gaussians of scale s (Teye et
    al. 2018, section 4.1 and appendix 1.5). Of one draw, the constant-uncertainty baseline of a point prediction.

    Args:
        errors: Targets less predictions, [chain, draw, N, C]: of several draws of the predictive, or of one. Errors
            of several splits or folds together may stand in one N.
        by: `"crps"` or `"pll"`.
        each_target: Whether each of the C targets has a scale of its own; one for all by default.

    Returns:
        Scales in the units of the errors, [chain, 1] or [chain, C], float64.

    Raises:
        ValueError: If `by` is unknown, the errors have another number of dimensions or are not finite, or those of a
            chain are all 0.

    Warns:
        UserWarning: If a scale ends at its lower bound, 1/1000 of the root mean squared error: the draws alone spread
            more than the errors.
    """
    _check_criterion(by)
    if errors.dim() != 4 or not errors.numel() or not bool(errors.isfinite().all()):
        raise ValueError(f"errors must be finite numbers [chain, draw, N, C], given {list(errors.shape)}")
    return _best(errors.detach().double(), by, errors.shape[-1] if each_target else 1, stacklevel=3)


def _check_criterion(by: str) -> None:
    if by not in CRITERIA:
        raise ValueError(f"by must be one of {', '.join(map(repr, CRITERIA))}, not {by!r}")


def _best(errors: Tensor, by: str, count: int, stacklevel: int) -> Tensor:
    """The best scales, [chain, count], for errors [chain, draw, N, C]."""
    criterion = _crps if by == "crps" else _negative_pll
    rms = errors.square().mean((1, 2)).sqrt()
    if count == 1:
        rms = rms.square().mean(1, keepdim=True).sqrt()
    if not bool((rms > 0).all()):
        raise ValueError("the predictions equal the targets: there is no noise to choose a scale of")
    errors = errors / rms[:, None, None]  # the search's tolerances are absolute
    # From the best of a grid on, along which the targets are independent of each other.
    top = errors.abs().amax((1, 2)) / math.sqrt(math.log(2.0))  # beyond that the scores of all data get worse
    top = top.amax(1, keepdim=True) if count == 1 else top
    steps = torch.linspace(0.0, 1.0, _GRID, dtype=errors.dtype, device=errors.device)[:, None, None]
    low = math.log(_FLOOR)
    grid = low + steps * (top.log() - low)
    scores = torch.stack([_by_scale(criterion, errors, each.exp(), count) for each in grid])
    log_scale = grid.gather(0, scores.argmin(0, keepdim=True))[0].requires_grad_()
    optimizer = torch.optim.LBFGS(
        [log_scale], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(errors, log_scale.exp()).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    log_scale = log_scale.detach()
    if bool((log_scale <= low).any()):
        warnings.warn(
            f"the draws alone spread more than the errors: the best noise scale by {by} is 0, and "
            f"{_FLOOR:g} of the root mean squared error is taken",
            UserWarning,
            stacklevel=stacklevel,
        )
    return rms * log_scale.clamp_min(low).exp()


def _by_scale(criterion: Criterion, errors: Tensor, scale: Tensor, count: int) -> Tensor:
    """What each of the scales [chain, count] makes of the targets that it is for, [chain, count]."""
    if count == 1:
        return criterion(errors, scale)[:, None]
    return torch.stack([criterion(errors[..., c : c + 1], scale[:, c : c + 1]) for c in range(count)], -1)


def _crps(errors: Tensor, scale: Tensor) -> Tensor:
    """Mean CRPS of Gaussians with the predictive's moments, [chain].

    Args:
        errors: Targets less the draws' means of them, [chain, draw, N, C].
        scale: Noise scales, [chain, 1 or C].
    """
    std = (scale.square()[:, None] + errors.var(1, correction=0)).sqrt()
    bias = errors.mean(1)
    return scoringrules.crps_normal(bias, torch.zeros_like(bias), std, backend="torch").mean((1, 2))


def _negative_pll(errors: Tensor, scale: Tensor) -> Tensor:
    """Mean negative log density of the mixture over draws, [chain]; arguments as of `_crps`."""
    scale = scale[:, None, None].expand(errors.shape)
    density = -0.5 * ((errors / scale).square() + math.log(2.0 * math.pi)) - scale.log()
    return (math.log(errors.shape[1]) - density.sum(-1).logsumexp(1)).mean(1)

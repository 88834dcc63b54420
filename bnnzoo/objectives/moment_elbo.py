"""`MomentELBO`: the ELBO, and BB-α, without sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch.nn.functional as F
from pyro.poutine import unwrap
from torch import Tensor, nn

from bnnzoo._types import Site
from bnnzoo.likelihoods import Categorical, MomentTargets
from bnnzoo.moments import Moments, options
from bnnzoo.moments.errors import located
from bnnzoo.moments.sites import NoMomentsError
from bnnzoo.moments.softmax import Softmax, log_softmax
from bnnzoo.moments.value import Approximation, Fallback, Options, check_softmax
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives.base import DataTerm, Objective, is_number, total_log_likelihood
from bnnzoo.objectives.sites import Form


class MomentELBO(Objective):
    r"""The ELBO, or the BB-α energy, of outputs whose mean and variance are propagated: no draws, no gradient noise.

    Mean and variance of every weight go through the network (`bnnzoo.moments`) and give independent Gaussian outputs
    f_n, under which the likelihood's terms are closed forms or quadrature:

        L(q) = β KL(q || p₀) - (N / B) Σ_n (1/α) log E[p(y_n | f_n)^α],

    with `E[log p(y_n | f_n)]` for α = 0, the ELBO; α = 1 is minus the log predictive probability. For classes these
    terms are lower bounds (`Categorical.log_power_mean`), so that at α = 0 the loss bounds the ELBO of the propagated
    outputs; `softmax` takes the paper's approximations of `-log q(y)` instead (Shekhovtsov & Flach 2018, eq. 12 and
    section 3.5).

    The guide's weights must be independent Gaussians (`guides.MomentPropagation`, whose own objective this is,
    `MeanField`, Pyro's `AutoNormal`), under dropout (`guides.Dropout`: analytic dropout, the paper's with α = 1 and
    `softmax="simplified"`), or points (`guides.Map`; `Laplace` in training); the network's own dropout layers and
    stochastic units have their moments taken in training. Inputs are certain: noise on them is a layer,
    `moments.units.InputNoise`.

    With Gaussian noise and one hidden layer the loss is the ELBO itself: its units are independent given a certain
    input. Divergences are closed forms, or nine nodes of Gauss-Hermite quadrature where a prior has none (Student's
    t: to about 0.01 a weight; `Dropout` under priors other than normal takes one draw). A noise scale with a prior is
    integrated by nine nodes too: for a logarithm of standard deviation 0.2 to 1e-5 of the data term for any α, and for
    α = 0 to 1e-9 up to 0.5 and 1e-5 at 1.

    Args:
        alpha: α, any finite number that the likelihood can do (`Categorical`: ≥ -1; `Poisson`: ≥ 0).
        softmax: For class labels, at α = 1: `"normal"`, `"logistic"` or `"simplified"`, the approximation of the
            predictive probabilities to maximize; None: the likelihood's bound.
        kl_weight: β, see `Objective`.
        approximation: See `bnnzoo.moments.options`.
        fallback: See `bnnzoo.moments.options`.

    Raises:
        ValueError: If an argument is out of range, or `softmax` is given for another α than 1.
    """

    def __init__(
        self,
        alpha: float = 0.0,
        softmax: Softmax | None = None,
        kl_weight: float | Callable[[float], float] = 1.0,
        approximation: Approximation = "exact",
        fallback: Fallback | None = None,
    ) -> None:
        super().__init__(1, kl_weight)
        if not (is_number(alpha) and math.isfinite(alpha)):
            raise ValueError(f"alpha must be a finite number, not {alpha!r}")
        check_softmax(softmax, optional=True)
        if softmax is not None and alpha != 1:
            raise ValueError(
                f"softmax={softmax!r} approximates predictive probabilities, which is alpha=1, not alpha={alpha!r}"
            )
        self.alpha = float(alpha)
        self.softmax = softmax
        self.approximation = approximation
        self.fallback = fallback
        Options(approximation, fallback)  # checks them

    @property
    def form(self) -> Form:
        """Mean and variance."""
        return "moments"

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on one batch, differentiable; a scalar, summed over the data set that the batch stands for.

        Raises:
            TypeError: If the model is not a `BayesianNetwork`.
            ValueError: If the guide has no mean and variance for a site, or `softmax` is given and the targets are not
                class labels.
            NoRuleError: If an operation of the network has no rule, and there is no fallback; or if a random weight is
                used more than once in a pass (tied weights, a layer that is called again).
        """
        bnn = unwrap(model)
        if not isinstance(bnn, BayesianNetwork):
            raise TypeError(f"{self!r} propagates through the network of a BayesianNetwork, not {type(bnn).__name__}")
        if self.softmax and not isinstance(bnn.likelihood, Categorical):
            raise ValueError(
                f"softmax={self.softmax!r} is for class labels (likelihoods.Categorical), not for "
                f"{type(bnn.likelihood).__name__}"
            )
        x, *rest = args
        try:
            # Pyro's checks of arguments compare their values, which moments have none of
            with pyro.validation_enabled(False), options(self.approximation, self.fallback), located(bnn.network):
                return super().differentiable_loss(model, guide, Moments(x), *rest, **kwargs)
        except NoMomentsError as error:
            raise ValueError(self._refusal(unwrap(guide), str(error))) from error

    def log_likelihood(self, site: Site) -> Tensor:
        """The data terms of the targets, [N]."""
        targets: MomentTargets = site["fn"]
        if self.softmax is None:
            return targets.log_power_mean(site["value"], self.alpha)
        log_probs = log_softmax(targets.output.loc, targets.output.variance, 1, self.softmax)
        labels = site["value"]
        return -F.nll_loss(log_probs, labels, reduction="none").reshape(len(labels), -1).sum(-1)

    def _check(self, guide: nn.Module) -> None:
        super()._check(guide)
        own = getattr(guide, "auxiliary", None)
        if own:
            name = next(iter(own))
            raise ValueError(self._refusal(guide, f"it draws sites of its own, such as {name!r}"))

    def _refusal(self, guide: Any, why: str) -> str:
        return (
            f"{self!r} draws nothing, and guides.{type(guide).__name__} has no mean and variance to propagate ({why}): "
            "use objectives.ELBO, or guides.MomentPropagation, MeanField, Dropout or Map"
        )

    def combine(self, data: list[DataTerm], divergence: Tensor) -> Tensor:
        """Divergence less log likelihood."""
        return (divergence - total_log_likelihood(data)).sum()

"""`MomentPropagation`: a factorized Gaussian that is trained and predicts by its mean and variance, undrawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch

from bnnzoo.guides.mean_field import MeanField
from bnnzoo.moments.softmax import Softmax
from bnnzoo.moments.value import Approximation, Fallback, Options, check_softmax
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import MomentELBO
from bnnzoo.prediction import Method
from bnnzoo.priors import fan_in


class MomentPropagation(MeanField):
    """A factorized Gaussian `q(w) = Π N(w_i; loc_i, scale_i²)` whose mean and variance go through the network.

    The family of `MeanField`, used without draws (Shekhovtsov & Flach 2018, on weights: their eq. 8). `fit` minimizes
    `objectives.MomentELBO` for it unless it is told otherwise, with gradients that have no noise, and
    `Posterior.predict` predicts by moments unless it is asked for draws; both with the guide's own approximation and
    fallback. Draws of weights are there all the same (`Posterior.sample`, ArviZ), dense.

    Training starts narrow: a draw of the weights changes a layer's output by about `init_scale` for inputs of size 1,
    whatever the layer's width.

    `guides.Dropout` and `guides.MeanField` can be trained by `MomentELBO` as well (`fit(..., objective=MomentELBO())`)
    and predict by moments on request (`predict(x, method="moments")`).

    Args:
        bnn: The model. Every operation of its network must have a rule for moments (`bnnzoo.moments`), or there must be
            a fallback; the first pass says where there is none.
        init_scale: Initial standard deviation of every weight times the root of its fan-in (`bnnzoo.priors.fan_in`),
            > 0; of the likelihood's sites as it is.
        approximation: `"exact"` or `"paper"`, see `bnnzoo.moments.options`.
        fallback: What operations without a rule do, see `bnnzoo.moments.options`.
        softmax: Of class labels: how probabilities are predicted, see `Posterior.predict`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> from bnnzoo import BayesianNetwork, fit, guides, likelihoods
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> bnn = BayesianNetwork(torch.nn.Linear(1, 1), likelihoods.Gaussian(0.5))
        >>> posterior = fit(bnn, guides.MomentPropagation(bnn), (x, 2 * x[:, 0]), epochs=300, lr=0.05)
        >>> posterior.predict(x[:3])
        MomentPrediction(1 chain of [3] targets)
    """

    prediction: ClassVar[Method] = "moments"

    def __init__(
        self,
        bnn: BayesianNetwork,
        init_scale: float = 0.1,
        approximation: Approximation = "exact",
        fallback: Fallback | None = None,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(bnn, init_scale, sampling="dense")
        Options(approximation, fallback)  # checks them
        check_softmax(softmax, optional=True)
        self.approximation = approximation
        self.fallback = fallback
        self.softmax = softmax
        self._set_scales()

    def reset_parameters(self) -> None:
        """Start at the network's own values, the scales small beside them."""
        super().reset_parameters()
        self._set_scales()

    def objective(self, kl_weight: float | Callable[[float], float] = 1.0) -> MomentELBO:
        """`MomentELBO` with the guide's approximation and fallback.

        Args:
            kl_weight: See `bnnzoo.objectives.Objective`.
        """
        return MomentELBO(kl_weight=kl_weight, approximation=self.approximation, fallback=self.fallback)

    def _set_scales(self) -> None:
        network = self.model.network
        with torch.no_grad():
            for name, part in zip(self.layout.names, self.layout.split(self.log_scale), strict=True):
                if name in self.model.priors:
                    module = network.get_submodule(name.rpartition(".")[0])
                    inputs = fan_in(name, network.get_parameter(name), module)
                    part.fill_(math.log(self.init_scale) - 0.5 * math.log(inputs))

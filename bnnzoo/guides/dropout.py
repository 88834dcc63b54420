"""`Dropout`: multiplicative noise on the inputs of weights, as an approximate posterior."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bnnzoo._types import Distribution
from bnnzoo.guides.base import Guide, resolve_per_site
from bnnzoo.guides.dropout_layers import dropout_layers, first_weight, input_units, noisy_weights
from bnnzoo.guides.masked_weight import MaskedBlock, MaskSampling, Noise, UnitNoise
from bnnzoo.network import BayesianNetwork
from bnnzoo.priors import LogUniform

if TYPE_CHECKING:
    from bnnzoo.posterior import Posterior

_DEFAULT_RATE = 0.5


class Dropout(Guide):
    r"""Dropout as inference: `q(W) = M diag(z)`, `z` multiplicative noise on the input units of each treated weight.

    A unit is a column of a linear layer's weight, or an input channel of a convolution (the mask of `nn.Dropout2d`).
    With `p` the rate, `z` has mean 1 and variance `α = p / (1 - p)`:

    - `noise="bernoulli"`: `z = 1 / (1 - p)` with probability `1 - p`, else 0 (Gal & Ghahramani 2016, in torch's
      scaling);
    - `noise="gaussian"`: `z ~ N(1, α)` (Srivastava et al. 2014, section 10).

    Everything else (biases, embeddings, normalization layers, layers of rate 0, sites of the likelihood) is a point, as
    in `Map`. Under the objectives of bnnzoo every row of the data draws a mask of its own in every particle, shared by
    the positions of a convolution and by extra dimensions of a linear layer's input. Plain draws (of `Posterior`,
    `Predictive`, `Trace_ELBO`) are weights: one mask for all rows.

    **The KL divergence**, in Gal's form, is `E_q[log q(z)] - E_q[log p(W)]`, registered with torch. For a normal prior
    `N(μ, s²)` it is, for a weight of I input units and D elements,

        Σ [(m - μ)² + α m²] / (2 s²)  +  D log(s √(2π))  -  I h,

    that is `‖m_i‖² / (2 s² (1 - p))` a unit for Bernoulli noise and a centered prior (`p_i ‖M_i‖²` of Li & Gal 2017,
    where `M_i` and the mask are not rescaled), with `h` the entropy of one unit's noise: that of Bernoulli(p), or
    `½ log(2πeα)`. For another prior `-E_q[log p]` is estimated from one draw. q has no density over weights, for its
    draws fill no volume; Gal & Ghahramani (2015, appendix A) smear each out by a Gaussian of width σ, whose KL exceeds
    the expression above by `-½ D (1 + log 2πσ²) + O(σ²)`. That is dropped, as it depends neither on M nor on p (but
    grows without bound as σ → 0). All else is kept, so that values can be compared: at rate 0 the loss is that of
    `Map`. The loss is thus no bound of the evidence, and `has_density` is False. Gaussian noise has a density instead
    of probabilities: as α → 0, its `h` goes to -∞.

    **Learned rates** (`learn_rate=True`, one a weight): in training, Bernoulli masks are relaxed to
    `sigmoid((logit u - logit p) / temperature) / (1 - p)`, u uniform on (0, 1) (Gal, Hron & Kendall 2017, concrete
    dropout). Their gradients have little variance and a bias that vanishes with the temperature. The MNF paper (Louizos
    & Welling 2017, section 4) learns its rates by REINFORCE, the score-function gradient of hard masks: unbiased, of
    far higher variance, and in need of a baseline. In eval mode masks are hard. Gaussian noise is reparameterized
    exactly, `1 + √α ε`.

    **Analytic dropout** (Shekhovtsov & Flach 2018, section 5): `fit(..., objective=objectives.MomentELBO())` propagates
    mean and variance over all masks instead of drawing them, in training, and `predict(x, method="moments")` in
    predictions; `MomentELBO(1.0, softmax="simplified")` is the paper's objective for classes. A mask that the positions
    of a convolution share counts there as if each had its own.

    Args:
        bnn: The model.
        rate: Rate p in [0, 1), the probability to drop for Bernoulli noise: a number for every treated weight but the
            first layer's, whose inputs are the data (of a network's only layer if it has one only); or a dict from glob
            patterns on names or module types to rates for all of them, first match wins, e.g.
            `{"layers.0.weight": 0.1, "*": 0.5}`. With `learn_rate` it is where training starts; rates of 0 stay.
            Treated can be every random weight of linear layers and (transposed) convolutions. Default 0.5.
        noise: `"bernoulli"` or `"gaussian"`.
        learn_rate: Learn the rates.
        from_dropout_layers: Take the rates from the network's `nn.Dropout` layers (before linear layers) and
            `nn.Dropout1d`, `2d`, `3d` layers (before convolutions). In training they go on drawing the masks
            themselves, so training is the usual one; in eval mode, where they are off, the guide draws the masks.
            Programs that score a draw of weights in training (`Trace_ELBO`) then see M: switch the model to eval mode
            for them. A dropout layer belongs to the weight layer that the network calls next (found by `torch.fx`; if
            that cannot trace the network, the order of registration is taken for it).
        sampling: `"mask"`, a mask a row as said above, or `"dense"`, one mask for all rows, for weights that are used
            several times in one pass; or a dict as for `rate`. Tied weights are dense.
        temperature: Of the relaxed masks, > 0.

    Raises:
        ValueError: If an option is out of range or contradicts another, the network has nothing to treat, the prior of
            a treated weight is `LogUniform` (infinitely dense where a dropped weight is), or the network has active
            dropout layers, which would drop a second time, or with `from_dropout_layers` ones that are not noise on
            one weight's inputs.
    """

    has_density: ClassVar[bool] = False
    bounds_evidence: ClassVar[bool] = False

    in_state: ClassVar[tuple[str, ...]] = ("rate",)

    def __init__(
        self,
        bnn: BayesianNetwork,
        rate: float | dict[Any, float] | None = None,
        *,
        noise: Noise = "bernoulli",
        learn_rate: bool = False,
        from_dropout_layers: bool = False,
        sampling: MaskSampling | dict[Any, MaskSampling] = "mask",
        temperature: float = 0.1,
    ) -> None:
        super().__init__(bnn)
        if noise not in ("bernoulli", "gaussian"):
            raise ValueError(f"noise must be 'bernoulli' or 'gaussian', not {noise!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.rate = rate
        self.noise = noise
        self.learn_rate = learn_rate
        self.from_dropout_layers = from_dropout_layers
        self.sampling = sampling
        self.temperature = temperature
        units = input_units(bnn)
        if not units:
            raise ValueError(
                "the network has no random weight of a linear layer or a convolution, whose inputs could be dropped"
            )
        self._layers: dict[str, str] = {}
        if from_dropout_layers:
            self._check_layers_draw()
            self._layers = noisy_weights(bnn, units)
            layers = dropout_layers(bnn.network)
            rates = {name: layers[path].p for name, path in self._layers.items()}
        else:
            active = list(dropout_layers(bnn.network))
            if active:
                raise ValueError(
                    f"the network's dropout layers {', '.join(map(repr, active))} would drop a second time in "
                    "training: set from_dropout_layers=True, which takes their rates, or set their p to 0"
                )
            rates = _resolve_rates(rate, list(units), first_weight(bnn.network), bnn.network)
        self._units = {name: units[name] for name in units if rates.get(name, 0.0) > 0}
        if learn_rate and not self._units:
            raise ValueError("learn_rate=True, and every rate is 0: say where learning starts, above 0")
        improper = [name for name in self._units if isinstance(bnn.priors[name], LogUniform)]
        if improper:
            raise ValueError(
                f"the prior of {improper[0]!r} is LogUniform, infinitely dense at 0, where dropped weights are"
            )
        choices = resolve_per_site(sampling, list(units), bnn.network, ("mask", "dense"), "sampling")
        self._samplings = dict(zip(units, choices, strict=True)) | dict.fromkeys(bnn.tied, "dense")
        self.loc = nn.Parameter(self.initial_loc())
        self._initial_logits = [math.log(rates[name] / (1 - rates[name])) for name in self._units]
        logits = torch.tensor(self._initial_logits, dtype=self.loc.dtype, device=self.loc.device)
        self.rate_logits: Tensor
        if learn_rate:
            self.register_parameter("rate_logits", nn.Parameter(logits))
        else:
            self.register_buffer("rate_logits", logits)

    def _check_layers_draw(self) -> None:
        if self.rate is not None:
            raise ValueError(
                f"the rates come from the network's dropout layers or from rate={self.rate}, not from both"
            )
        if self.noise != "bernoulli":
            raise ValueError(
                f"dropout layers draw Bernoulli noise: from_dropout_layers does not go with {self.noise!r}"
            )
        if self.learn_rate:
            raise ValueError(
                "the network's dropout layers draw the masks in training, at rates that get no gradient: to learn the "
                "rates, set the layers' p to 0 and give rate= instead of from_dropout_layers"
            )

    def fixed_options(self) -> dict[str, Any]:
        """What guides must agree in to be trained together: options but the rates, and which weights are treated."""
        return {**super().fixed_options(), "weights of a rate above 0": sorted(self._units)}

    def reset_parameters(self) -> None:
        """Start at the network's own values, rates that are learned at the given ones."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.rate_logits.copy_(torch.tensor(self._initial_logits, dtype=self.loc.dtype))

    def rates(self, posterior: Posterior | None = None) -> dict[str, Tensor]:
        """The rate of each treated weight, by site name.

        Args:
            posterior: A posterior of this guide, for the rates of its chains.

        Returns:
            Scalars, or [chain].
        """
        if posterior is None:
            logits = self.rate_logits
        else:
            parameters, buffers = posterior.state()
            logits = {**parameters, **buffers}["guide.rate_logits"]
        return dict(zip(self._units, logits.detach().sigmoid().unbind(-1), strict=True))

    def distributions(self) -> dict[str, Distribution]:
        """A `MaskedWeight` for each treated weight, a `Delta` for every other site."""
        temperature = self.temperature if self.learn_rate and self.training else None
        noises = {
            name: UnitNoise(self.noise, units, logit, temperature, self._drawn_by_layer(name), self._samplings[name])
            for (name, units), logit in zip(self._units.items(), self.rate_logits.unbind(), strict=True)
        }
        return self.points(self.loc, block=partial(MaskedBlock, noises=noises))

    def _drawn_by_layer(self, name: str) -> bool:
        return name in self._layers and self.model.network.get_submodule(self._layers[name]).training


def _resolve_rates(
    rate: float | dict[Any, float] | None, names: list[str], first: str, network: nn.Module
) -> dict[str, float]:
    rule = _DEFAULT_RATE if rate is None else rate
    values = tuple(rule.values()) if isinstance(rule, dict) else (rule,)
    for value in values:
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"rate must be in [0, 1), not {value!r}")
    if not isinstance(rule, dict):
        names = [name for name in names if name != first] or names
    of = "random weight of a linear layer or convolution"
    resolved = resolve_per_site(rule, names, network, values, "rate", of)
    return {name: float(value) for name, value in zip(names, resolved, strict=True)}

"""The zoo: the catalogue of named recipes. A new one is one `Entry`, or one `replace` of another, in `ENTRIES`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from pyro.distributions import LogNormal
from torch import nn

from bnnzoo import guides, priors
from bnnzoo.models.entry import (
    Entry,
    categorical,
    cosine,
    elbo,
    gaussian,
    heteroscedastic,
    lenet,
    mean_field,
    mlp,
    normal,
)

_BLUNDELL = "Blundell et al. 2015, Weight uncertainty in neural networks"
_MNF = "Louizos and Welling 2017, Multiplicative normalizing flows for variational Bayesian neural networks"
_ENSEMBLE = "Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation"
_NEAL = "Neal 1996, Bayesian learning for neural networks"

NOISE = LogNormal(-1.0, 1.0)
"""Prior of a noise scale in standard deviations of the target: median 0.37, 95% between 0.05 and 2.6."""

_NUTS = {"num_samples": 500, "warmup_steps": 500, "chains": 2}

_uci = Entry(
    name="mean-field/uci-mlp",
    description="independent Gaussians; two hidden layers of 50",
    reference=_BLUNDELL,
    data="concrete",
    network=mlp(50, 50),
    prior=normal(),
    likelihood=gaussian(),
    guide=mean_field(init_scale=0.03),
    objective=elbo(annealing=0.25),
    schedule=cosine,
    training={"epochs": 1300, "batch_size": 64, "lr": 1e-2},
)

_cubic = Entry(
    name="mean-field/cubic",
    description="the toy y = x³ with known noise",
    reference=_MNF,
    data="cubic",
    network=mlp(100),
    prior=normal(),
    likelihood=gaussian(3.0),
    guide=mean_field(init_scale=0.03),
    objective=elbo(annealing=0.25),
    schedule=cosine,
    training={"epochs": 1000, "batch_size": 20, "lr": 1e-2, "chains": 4},
)

_digits = Entry(
    name="mean-field/digits",
    description="8x8 digits; one hidden layer of 50",
    reference=_BLUNDELL,
    data="digits",
    network=mlp(50),
    prior=partial(priors.FanIn, 4.0),
    likelihood=categorical(),
    guide=mean_field(init_scale=0.03),
    objective=elbo(annealing=0.25),
    schedule=cosine,
    training={"epochs": 100, "batch_size": 100, "lr": 1e-2, "chains": 4},
)

_lenet = Entry(
    name="mean-field/lenet-mnist",
    description="LeNet-5 on MNIST: FFG of the MNF paper",
    reference=_MNF,
    data="mnist",
    network=lenet(),
    prior=normal(),
    likelihood=categorical(),
    # Local reparameterization costs nothing on dense layers, but doubles the time of a convolution.
    guide=mean_field(init_scale=0.02, sampling={nn.Conv2d: "dense", "*": "local"}),
    objective=elbo(annealing=0.5),
    schedule=cosine,
    training={"epochs": 10, "batch_size": 100, "lr": 2e-3},
)

ENTRIES = (
    replace(
        _uci,
        name="mean-field/diabetes",
        description="independent Gaussians; one hidden layer of 20, four chains: what `bnnzoo fit` does",
        data="diabetes",
        network=mlp(20, activation="tanh"),
        prior=priors.FanIn,
        objective=elbo(),
        training={"epochs": 120, "batch_size": 32, "lr": 1e-2, "chains": 4},
    ),
    _uci,
    replace(
        _uci,
        name="mean-field/uci-heteroscedastic",
        description="the same, with the noise predicted from the inputs",
        likelihood=heteroscedastic(),
    ),
    _cubic,
    replace(
        _digits,
        name="mean-field/moons",
        description="two classes in the plane",
        data="moons",
        network=mlp(50, 50),
        prior=normal(),
        training={"epochs": 200, "batch_size": 50, "lr": 1e-2, "chains": 4},
    ),
    _digits,
    replace(
        _lenet,
        name="mean-field/mlp-mnist",
        description="two hidden layers of 400 on MNIST",
        reference=_BLUNDELL,
        network=mlp(400, 400),
        guide=mean_field(init_scale=0.02),
    ),
    _lenet,
    replace(_uci, name="map/uci-mlp", description="one point: weight decay", reference=_NEAL, guide=guides.Map),
    replace(_lenet, name="map/lenet-mnist", description="LeNet-5 with weight decay: L2 of the paper", guide=guides.Map),
    replace(
        _uci,
        name="ensemble/uci-mlp",
        description="deep ensemble: ten networks that predict their noise",
        reference=_ENSEMBLE,
        likelihood=heteroscedastic(),
        guide=guides.Map,
        training={**_uci.training, "chains": 10},
    ),
    replace(
        _digits,
        name="ensemble/digits",
        description="deep ensemble: ten classifiers",
        reference=_ENSEMBLE,
        guide=guides.Map,
        training={**_digits.training, "chains": 10},
    ),
    replace(
        _cubic,
        name="nuts/cubic",
        description="the toy y = x³, sampled: the reference for the others",
        reference=_NEAL,
        network=mlp(20, activation="tanh"),
        prior=priors.FanIn,
        guide=None,
        training=_NUTS,
    ),
    replace(
        _uci,
        name="nuts/uci-mlp",
        description="a small MLP, sampled: minutes, not seconds",
        reference=_NEAL,
        data="yacht",
        network=mlp(10),
        prior=priors.FanIn,
        likelihood=gaussian(NOISE),
        guide=None,
        training=_NUTS,
    ),
)

catalogue: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in ENTRIES})
"""The zoo's entries by name."""

"""The zoo: the catalogue of named recipes. A new one is one `Entry`, or one `replace` of another, in `ENTRIES`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from pyro.distributions import LogNormal
from torch import nn

from bnnzoo import guides, objectives, priors
from bnnzoo.models.entry import (
    Entry,
    bb_alpha,
    categorical,
    cosine,
    gaussian,
    heteroscedastic,
    keras_cnn,
    lenet,
    mean_field,
    mlp,
    normal,
    resnet,
)

_BLUNDELL = "Blundell et al. 2015, Weight uncertainty in neural networks"
_MNF = "Louizos and Welling 2017, Multiplicative normalizing flows for variational Bayesian neural networks"
_ENSEMBLE = "Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation"
_NEAL = "Neal 1996, Bayesian learning for neural networks"

NOISE = LogNormal(-1.0, 1.0)
"""Prior of a noise scale in standard deviations of the target: median 0.37, 95% between 0.05 and 2.6."""

_DROPOUT = "Gal and Ghahramani 2016, Dropout as a Bayesian approximation"
_CONCRETE = "Gal, Hron and Kendall 2017, Concrete dropout"
_MCBN = "Teye, Azizpour and Smith 2018, Bayesian uncertainty estimation for batch normalized deep networks"
_FFLU = "Molchanov, Ashukha and Vetrov 2017, Variational dropout sparsifies deep neural networks"
_BB_ALPHA = "Li and Gal 2017, Dropout inference in Bayesian neural networks with alpha-divergences"

_MOMENTS = "Shekhovtsov and Flach 2018, Feed-forward uncertainty propagation in belief and neural networks"

_NUTS = {"num_samples": 500, "warmup_steps": 500, "chains": 2}

# Of the prior of Li and Gal 2017, section 5.2: weight decay 1e-6, a squared length scale of 0.1.
_MNIST_SCALE = math.sqrt(1 / 0.1)

_uci = Entry(
    name="mean-field/uci-mlp",
    description="independent Gaussians; two hidden layers of 50",
    reference=_BLUNDELL,
    data="concrete",
    network=mlp(50, 50),
    prior=normal(),
    likelihood=gaussian(),
    guide=mean_field(init_scale=0.03),
    annealing=0.25,
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
    annealing=0.25,
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
    annealing=0.25,
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
    annealing=0.5,
    schedule=cosine,
    training={"epochs": 10, "batch_size": 100, "lr": 2e-3},
)


def _log_uniform(entry: Entry, name: str, description: str) -> Entry:
    # A weight without signal costs nothing there: the KL divergence comes in late, or all are cut at the start.
    own = replace(entry, name=name, description=description, reference=_FFLU)
    return replace(own, prior=priors.LogUniform, annealing=0.5)


def _bb_alpha(entry: Entry, name: str, description: str, **changes: Any) -> Entry:
    """An entry with Bernoulli noise on hidden units, trained by BB-α as in the paper: α = 0.5, ten particles."""
    own = {"reference": _BB_ALPHA, "guide": guides.Dropout, "objective": bb_alpha(0.5, 10), "annealing": 0.0}
    return replace(entry, name=name, description=description, **{**own, **changes})


def _moments(entry: Entry, name: str, description: str, **changes: Any) -> Entry:
    """An entry that draws nothing: moments of the weights in training and in predictions."""
    own = {"reference": _MOMENTS, "guide": guides.MomentPropagation, "objective": objectives.MomentELBO}
    return replace(entry, name=name, description=description, **{**own, **changes})


_mcbn = replace(
    _uci,
    name="mcbn/uci-mlp",
    description="Monte Carlo batch normalization; two hidden layers of 50",
    reference=_MCBN,
    network=mlp(50, 50, batch_norm=True),
    guide=guides.BatchNorm,
    annealing=0.0,
    training={"epochs": 500, "batch_size": 32, "lr": 1e-3},
)

ENTRIES = (
    replace(
        _uci,
        name="mean-field/diabetes",
        description="independent Gaussians; one hidden layer of 20, four chains: what `bnnzoo fit` does",
        data="diabetes",
        network=mlp(20, activation="tanh"),
        prior=priors.FanIn,
        annealing=0.0,
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
    replace(_uci, name="mnf/uci-mlp", description="two hidden layers of 50", reference=_MNF, guide=guides.MNF),
    replace(_cubic, name="mnf/cubic", guide=guides.MNF),
    replace(_digits, name="mnf/digits", reference=_MNF, guide=guides.MNF),
    replace(
        _lenet,
        name="mnf/lenet-mnist",
        description="LeNet-5 on MNIST: MNFG of the paper",
        guide=partial(guides.MNF, max_scale=0.5, sampling={nn.Conv2d: "dense", "*": "local"}),
    ),
    replace(
        _lenet,
        name="mnf/lenet-cifar10",
        description="LeNet with 192 filters and 1000 units on CIFAR-10; the paper takes the first five classes",
        data="cifar10",
        network=lenet((192, 192), 1000),
        guide=partial(guides.MNF, max_scale=0.4, sampling={nn.Conv2d: "dense", "*": "local"}),
    ),
    replace(
        _uci,
        name="dropout/uci-mlp",
        description="Bernoulli noise on units; two hidden layers of 50",
        reference=_DROPOUT,
        guide=partial(guides.Dropout, rate=0.05),
        annealing=0.0,
        training={"epochs": 1000, "batch_size": 32, "lr": 1e-3},
    ),
    replace(_cubic, name="dropout/cubic", guide=partial(guides.Dropout, rate=0.5), annealing=0.0),
    replace(
        _cubic,
        name="dropout-learned/cubic",
        description="the toy y = x³ with known noise, rates learned",
        reference=_CONCRETE,
        guide=partial(guides.Dropout, learn_rate=True),
        annealing=0.0,
    ),
    replace(_digits, name="dropout/digits", reference=_DROPOUT, guide=guides.Dropout, annealing=0.0),
    replace(
        _lenet,
        name="dropout/lenet-mnist",
        description="LeNet-5 with dropout of 0.5 on MNIST",
        guide=guides.Dropout,
        annealing=0.0,
    ),
    _mcbn,
    replace(
        _digits,
        name="mcbn/digits",
        description="Monte Carlo batch normalization; one hidden layer of 50",
        reference=_MCBN,
        network=mlp(50, batch_norm=True),
        guide=guides.BatchNorm,
        annealing=0.0,
    ),
    replace(
        _lenet,
        name="mcbn/lenet-mnist",
        description="LeNet-5 with batch normalization on MNIST",
        reference=_MCBN,
        network=lenet(batch_norm=True),
        guide=guides.BatchNorm,
        annealing=0.0,
    ),
    replace(
        _lenet,
        name="mcbn/resnet32-cifar10",
        description="ResNet-32 on CIFAR-10: hours without a GPU",
        reference=_MCBN,
        data="cifar10",
        network=resnet(32),
        prior=normal(0.316),  # 1 / sqrt(N λ), the paper's weight decay λ of 2e-4 a datum
        guide=guides.BatchNorm,
        annealing=0.0,
        training={
            "epochs": 200,
            "batch_size": 32,
            "lr": 2e-6,  # the paper's 0.1 on the mean loss of 50,000 data; ours is their sum
            "optimizer": partial(torch.optim.SGD, momentum=0.9),
        },
    ),
    _bb_alpha(
        _uci,
        "bb-alpha/uci-mlp",
        "dropout trained by BB-α 0.5; one hidden layer of 50, as in the paper's regressions",
        reference=f"{_BB_ALPHA}, section 5.1",
        network=mlp(50),
        guide=partial(guides.Dropout, rate=0.05),
        training={"epochs": 100, "batch_size": 64, "lr": 1e-2},
    ),
    _bb_alpha(
        _uci,
        "bb-alpha/diabetes",
        "dropout trained by BB-α 0.5; one hidden layer of 50, four chains",
        data="diabetes",
        network=mlp(50),
        prior=priors.FanIn,
        guide=partial(guides.Dropout, rate=0.2),
        training={"epochs": 100, "batch_size": 32, "lr": 1e-2, "chains": 4},
    ),
    _bb_alpha(_cubic, "bb-alpha/cubic", "the toy y = x³ with known noise, dropout trained by BB-α 0.5"),
    _bb_alpha(
        _digits,
        "bb-alpha/digits",
        "8x8 digits; one hidden layer of 50, dropout trained by BB-α 0.5",
        guide=partial(guides.Dropout, rate=0.1),
        training={"epochs": 50, "batch_size": 100, "lr": 1e-2, "chains": 4},
    ),
    _bb_alpha(
        _lenet,
        "bb-alpha/mlp-mnist",
        "dropout trained by BB-α 0.5; two hidden layers of 100 on MNIST",
        reference=f"{_BB_ALPHA}, section 5.2",
        network=mlp(100, 100),
        prior=normal(_MNIST_SCALE),
        training={"epochs": 60, "batch_size": 128, "lr": 1e-3},
    ),
    _bb_alpha(
        _lenet,
        "bb-alpha/cnn-mnist",
        "dropout trained by BB-α 0.5; the Keras example's convolutional network on MNIST",
        reference=f"{_BB_ALPHA}, section 5.2",
        network=keras_cnn(),
        prior=normal(_MNIST_SCALE),
        guide=partial(guides.Dropout, from_dropout_layers=True),  # as the paper's: masks by the network's own layers
        training={"epochs": 12, "batch_size": 128, "lr": 1e-3},
    ),
    _moments(_uci, "moment-propagation/uci-mlp", "independent Gaussians, by moments; two hidden layers of 50"),
    _moments(_cubic, "moment-propagation/cubic", "the toy y = x³ with known noise, by moments"),
    _moments(_digits, "moment-propagation/digits", "8x8 digits, by moments; one hidden layer of 50"),
    _moments(
        _lenet,
        "moment-propagation/mlp-mnist",
        "independent Gaussians, by moments; two hidden layers of 400 on MNIST",
        network=mlp(400, 400),
        training={"epochs": 10, "batch_size": 100, "lr": 1e-3},
    ),
    _moments(
        _lenet,
        "analytic-dropout/mlp-mnist",
        "analytic dropout: trained on the predictive probability of propagated moments; two hidden layers of 400",
        network=mlp(400, 400),
        guide=guides.Dropout,
        objective=partial(objectives.MomentELBO, alpha=1.0, softmax="simplified"),
        annealing=0.0,
        training={"epochs": 10, "batch_size": 100, "lr": 1e-3},
    ),
    _log_uniform(_cubic, "fflu/cubic", "the toy y = x³ with known noise, under the log-uniform prior"),
    _log_uniform(_digits, "fflu/digits", "8x8 digits; prunes itself"),
    _log_uniform(_lenet, "fflu/lenet-mnist", "LeNet-5 on MNIST: FFLU of the MNF paper"),
    replace(
        _uci,
        name="low-rank/uci-mlp",
        description="a Gaussian of rank 10",
        reference="Ong, Nott and Smith 2018, Gaussian variational approximation with a factor covariance structure",
        guide=partial(guides.LowRank, rank=10),
    ),
    replace(
        _uci,
        name="laplace/uci-mlp",
        description="a Gaussian around the mode",
        reference="MacKay 1992, A practical Bayesian framework for backpropagation networks",
        guide=guides.Laplace,
    ),
    replace(_uci, name="map/uci-mlp", description="one point: weight decay", reference=_NEAL, guide=guides.Map),
    replace(_lenet, name="map/lenet-mnist", description="LeNet-5 with weight decay: L2 of the paper", guide=guides.Map),
    replace(
        _uci,
        name="ensemble/uci-mlp",
        description="deep ensemble: ten networks that predict their noise, trained adversarially",
        reference=_ENSEMBLE,
        likelihood=heteroscedastic(),
        guide=guides.Map,
        training={**_uci.training, "chains": 10, "adversarial": 0.01},
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

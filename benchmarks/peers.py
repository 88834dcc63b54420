"""Other libraries, used as their manuals say, on the benchmark networks under a standard normal prior.

TyXe and bayesian-torch are optional: `pip install --no-deps tyxe==0.0.2 bayesian-torch==0.5.0`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import DATA_SIZE, LR, NOISE
from floors import Step, negative_log_likelihood
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

INSTALL = "pip install --no-deps tyxe==0.0.2 bayesian-torch==0.5.0"


def installed(name: str) -> bool:
    """Whether an optional competitor can be imported."""
    return importlib.util.find_spec(name) is not None


class PyroNetwork(PyroModule):
    """A network as a Pyro model, written the way Pyro's own tutorial writes it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        to_pyro_module_(self.network)
        for module in self.network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                prior = dist.Normal(torch.zeros(()), torch.ones(())).expand(parameter.shape).to_event(parameter.dim())
                setattr(module, name, PyroSample(prior))

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Outputs for x [N, ...]; observes y [N]."""
        output = self.network(x)
        regression = output.shape[-1] == 1
        with pyro.plate("data", size or len(x), subsample=x):
            family = dist.Normal(output.squeeze(-1), NOISE) if regression else dist.Categorical(logits=output)
            pyro.sample("y", family, obs=y)
        return output


def pyro_step(network: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Stock Pyro: PyroSample, AutoNormal, SVI with Trace_ELBO and Pyro's own Adam."""
    model = PyroNetwork(network)
    guide = AutoNormal(model, init_scale=0.01)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())  # type: ignore[attr-defined]
    return lambda: svi.step(x, y, size=DATA_SIZE)


def own_store() -> Callable[[], AbstractContextManager]:
    """A context with a parameter store of its own: Pyro's is global, and equal names would mix two contenders."""
    state = None

    @contextmanager
    def context() -> Iterator[None]:
        nonlocal state
        with pyro.get_param_store().scope(state) as state:
            yield

    return context


def tyxe_step(network: nn.Module, x: Tensor, y: Tensor) -> Step:
    """TyXe's VariationalBNN with local reparameterization: what its `fit` does for a minibatch."""
    tyxe = _tyxe()
    regression = y.is_floating_point()
    if regression:
        likelihood = tyxe.likelihoods.HomoskedasticGaussian(DATA_SIZE, scale=NOISE)
        y = y.unsqueeze(-1)
    else:
        likelihood = tyxe.likelihoods.Categorical(DATA_SIZE)
    prior = tyxe.priors.IIDPrior(dist.Normal(torch.zeros(()), torch.ones(())))

    def guide(model: Callable) -> Any:
        return tyxe.guides.AutoNormal(model, init_scale=0.01)

    bnn = tyxe.VariationalBNN(network, prior, likelihood, guide)
    svi = SVI(bnn.model, bnn.guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())  # type: ignore[attr-defined]

    def step() -> float:
        with tyxe.poutine.local_reparameterization():
            return svi.step((x,), y)

    return step


def _tyxe() -> Any:
    """TyXe, with the function that Pyro 1.9 no longer has."""
    if not hasattr(pyro.util, "deep_getattr"):

        def deep_getattr(obj: object, name: str) -> Any:
            for part in name.split("."):
                obj = getattr(obj, part)
            return obj

        pyro.util.deep_getattr = deep_getattr  # type: ignore[attr-defined]
    return importlib.import_module("tyxe")


def bayesian_torch_step(network: nn.Module, x: Tensor, y: Tensor) -> Step:
    """bayesian-torch's converted network (one weight sample a batch) with a fused Adam and its own KL."""
    dnn_to_bnn = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    settings = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": -4.6,
        "type": "Reparameterization",
        "moped_enable": False,
    }
    dnn_to_bnn.dnn_to_bnn(network, settings)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = negative_log_likelihood(network(x), y) + dnn_to_bnn.get_kl_loss(network)
        loss.backward()
        optimizer.step()
        return loss

    return step

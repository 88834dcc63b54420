"""Models whose losses under every objective are known, by `benchmarks/energies.py`; evaluations of the library's."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from conjugate import Conjugate
from torch import Tensor
from torch.func import functional_call

from bnnzoo import guides
from bnnzoo._vectorize import Pair, pyro_settings, vectorize

_spec = importlib.util.spec_from_file_location(
    "energies", Path(__file__).resolve().parents[1] / "benchmarks" / "energies.py"
)
energies = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(energies)
Gaussian, LinearModel, Quadratic = energies.Gaussian, energies.LinearModel, energies.Quadratic


def exact_model(model: Conjugate, rows: slice = slice(None)):
    """The `LinearModel` of some rows of a `Conjugate`."""
    return LinearModel(model.design[rows], model.y[rows].double(), model.noise, model.prior_scale)


def set_guide(guide: guides.MeanField, loc: Tensor, scale: Tensor):
    """Give a `MeanField` its means and scales; what it then is."""
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.log_scale.copy_(scale.log())
    return Gaussian(guide.loc.detach().double(), guide.log_scale.detach().double())


def evaluations(objective, model: Callable, guide: Callable, *args, count: int, block: int = 10**6, **kwargs) -> Tensor:
    """Independent evaluations of the loss, [count], about `block` particles at a time."""
    with torch.no_grad(), pyro_settings(*(m for m in (model, guide) if isinstance(m, torch.nn.Module))):
        once = vectorize(lambda _: objective.differentiable_loss(model, guide, *args, **kwargs))
        blocks = torch.arange(count).split(max(1, block // objective.num_particles))
        return torch.cat([once(each) for each in blocks]).double()


def gradients(objective, model: torch.nn.Module, guide: torch.nn.Module, *args, count: int, **kwargs) -> Tensor:
    """Independent gradients of the loss by all that is trained, in the order of its names, [count, P]."""
    pair = Pair(model, guide)
    trained = {name: p.detach() for name, p in sorted(pair.named_parameters()) if p.requires_grad}
    loss = partial(objective.differentiable_loss, **kwargs)
    with pyro_settings(pair):
        gradient = torch.func.grad(lambda values: functional_call(pair, values, (loss, *args)))
        drawn = vectorize(lambda _: gradient(trained))(torch.arange(count))
    return torch.cat([drawn[name].reshape(count, -1) for name in trained], 1).double()

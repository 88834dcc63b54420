"""Every guide under every objective: the pairs that are defined train, the others say why not; the README's table."""

import functools
import importlib.util
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI
from statistical import bound

from bnnzoo import fit
from bnnzoo._contract.measure import call, mapped, parameters_of, perturb
from bnnzoo._vectorize import pyro_settings, seeded
from bnnzoo.chains import initial_state

ROOT = Path(__file__).resolve().parents[2]


def _load(path: Path):
    """A benchmark as a module, without its folder on the path, where others are called as tests' helpers are."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


matrix = _load(ROOT / "benchmarks" / "matrix.py")
verdict = functools.cache(matrix.verdict)

REFUSED = ("no density", "one draw", "no moments")

#: Evaluations of an objective before and after training.
COUNT = 400

everywhere = [(g, o, t) for g in matrix.GUIDES for o in matrix.OBJECTIVES for t in matrix.TASKS]


@pytest.mark.parametrize(("guide", "objective", "task"), everywhere)
def test_pairs(guide, objective, task):
    (_refuses if verdict(guide, objective, task) in REFUSED else _trains)(guide, objective, task)


def _trains(guide, objective, task):
    """The objective falls in each of two chains, and every parameter takes part in it."""
    own, loss = matrix.pair(guide, task), matrix.OBJECTIVES[objective](matrix.PARTICLES)
    x, y = matrix.X, matrix.TASKS[task].y
    settings = {"epochs": 5, "batch_size": 12, "chains": 2, "lr": 0.02, "seed": 1}
    trained = fit(own.model, own.guide, (x, y), objective=loss, **settings)
    with pyro_settings(own):
        start = initial_state(own.copy(), 2, 1, x[:2], y[:2])
    first, last = (
        mapped(own, state, COUNT, loss.differentiable_loss, x, y, seed=seed).double()
        for seed, state in enumerate((start, trained.state()))
    )
    fallen = first.mean(1) - last.mean(1)
    error = ((first.var(1) + last.var(1)) / COUNT).sqrt()
    assert (fallen > bound(2 * len(everywhere)) * error).all(), (fallen, error)
    _check_gradients(own, loss, x, y)


def _check_gradients(own, loss, x, y):
    """Gradients of a minibatch's loss are finite, and those of each parameter are not all zero; none is without one.

    Most guides keep all of a kind in one flat parameter: there no element may be without a gradient. In the networks of
    MNF's flows, ReLU units that are off and autoregressive masks leave some elements without.
    """
    perturb(own, 0.1, 0)  # a flow starts as the identity
    parameters = parameters_of(own)
    seen = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with seeded(3):
        for _ in range(5):
            value = call(own, loss.differentiable_loss, x[:12], y[:12], size=len(x))
            for name, grad in zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True):
                assert grad.isfinite().all(), name
                seen[name] += grad.abs()
    for name, each in seen.items():
        assert each.any() if "flows" in name else each.all(), (name, each)


def _refuses(guide, objective, task):
    """However it is called, before anything was done; the message names both and says what to use instead."""
    own, loss = matrix.pair(guide, task), matrix.OBJECTIVES[objective](matrix.PARTICLES)
    x, y = matrix.X, matrix.TASKS[task].y
    before = {name: value.clone() for name, value in own.state_dict().items()}
    svi = SVI(own.model, own.guide, pyro.optim.Adam({"lr": 0.1}), loss)
    ways = [
        lambda: fit(own.model, own.guide, (x, y), objective=loss, epochs=1),
        lambda: loss(own.model, own.guide)(x, y),
        lambda: svi.step(x, y),
        lambda: svi.evaluate_loss(x, y),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r": use objectives\.ELBO") as error:
            way()
        assert repr(loss) in str(error.value)
        assert f"guides.{type(own.guide).__name__}" in str(error.value)
    after = own.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in own.parameters())


def test_the_readme_shows_the_matrix():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- matrix -->") == text.count("<!-- /matrix -->") == 1
    shown = text.split("<!-- matrix -->")[1].split("<!-- /matrix -->")[0]
    found = matrix.markdown(matrix.matrix(verdict))
    assert shown.strip() == found, "put what `python benchmarks/matrix.py` prints between the README's markers"

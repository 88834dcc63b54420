"""Checks of what training a guide leads to: chains, draws, predictions, files, exports."""

from __future__ import annotations

import copy
import functools
import random
import tempfile
import unittest
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnzoo._contract.measure import (
    WITHIN,
    PeakMemory,
    mapped,
    naming,
    perturb,
    require,
    require_close,
    require_equal_means,
    require_finite,
)
from bnnzoo._contract.problems import GuideCase, Problem, auxiliary_shapes, each_problem
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import Trainer, stack
from bnnzoo.evaluation.inference_data import import_arviz
from bnnzoo.evaluation.names import legal
from bnnzoo.objectives import ELBO, Objective
from bnnzoo.posterior import Posterior
from bnnzoo.serialization import load
from bnnzoo.training import fit


@each_problem
def check_draws(case: GuideCase, problem: Problem) -> None:
    """`posterior.sample` gives [chain, draw, ...] for each site, and for auxiliary ones when asked; draws differ."""
    posterior = case.posterior(problem)
    shapes = {name: prior.shape() for name, prior in posterior.bnn.sites.items()}
    for auxiliary in (False, True):
        drawn = posterior.sample(5, auxiliary=auxiliary)
        expected = {**shapes, **(auxiliary_shapes(posterior.guide) if auxiliary else {})}
        require(drawn.keys() == expected.keys(), f"draws have sites {sorted(drawn)}, expected {sorted(expected)}")
        for name, value in drawn.items():
            found, right = list(value.shape), [2, 5, *expected[name]]
            require(found == right, f"draws of {name!r} have shape {found}, expected [chain, draw, ...] = {right}")
        require_finite(drawn, "draws of")
    log_q = posterior.log_q(drawn)
    if log_q is not None:
        require(list(log_q.shape) == [2, 5], f"log_q has shape {list(log_q.shape)}, expected [chain, draw] = [2, 5]")
        require_finite({"log_q": log_q}, "the posterior's")
    if not case.bound:
        return  # a point is the same in every draw
    for name in shapes:
        flat = drawn[name].flatten(0, 1)
        require(len(flat.unique(dim=0)) == len(flat), f"draws of {name!r} are not all different over chains and draws")


@each_problem
def check_chains(case: GuideCase, problem: Problem) -> None:
    """Mapped chains are as separate ones: in losses, in gradient steps, and no chain acts on another."""
    pairs = [case.pair(problem) for _ in range(3)]
    for seed, pair in enumerate(pairs):
        perturb(pair, 0.1, seed)
    compare_chains(pairs, ELBO(), problem.x, problem.y)
    if problem is case.problems[0]:
        compare_steps(pairs[0], ELBO(), problem.x, problem.y)


def compare_chains(pairs: list[Pair], objective: Objective, x: Tensor, y: Tensor) -> None:
    """Require that losses of three chains, mapped, are as one by one, and do not act on one another."""
    pair, state = pairs[0], stack(pairs)
    loss = functools.partial(objective.differentiable_loss, size=len(x))
    together = mapped(pair, state, 400, loss, x, y)
    alone = []
    for each in pairs:
        with seeded(8), torch.no_grad(), pyro_settings(each):
            alone.append(torch.stack([each(loss, x, y) for _ in range(25)]))
    require_equal_means(together.T, torch.stack(alone, 1), "losses of chains mapped and alone")
    changed = ({name: value.clone() for name, value in state[0].items()}, state[1])
    for value in changed[0].values():
        value[1] += 0.5
    again = mapped(pair, changed, 400, loss, x, y)
    require_close(again[[0, 2]], together[[0, 2]], "losses of chains whose neighbor has other parameters", 1e-4, 1e-4)
    same = mapped(pair, stack([pair, pair]), 1000, loss, x, y, seed=2).double()
    if bool((same.std(1) > 1e-5 * same.mean(1).abs()).all()):
        # Ranks, for the losses' tails would make their own correlation vary more.
        correlation = torch.corrcoef(same.argsort(1).argsort(1).double())[0, 1].item()
        shared = abs(correlation) * len(same[0]) ** 0.5 > WITHIN
        require(not shared, f"losses of two chains have rank correlation {correlation:.2f}: they share their noise")


def compare_steps(pair: Pair, objective: Objective, x: Tensor, y: Tensor) -> None:
    """Require that four optimizer steps from one start agree, of many mapped chains and of chains one by one."""

    def run(chains: int, seed: int) -> Tensor:
        own = pair.copy()
        state = stack([own] * chains)
        with seeded(seed), pyro_settings(own):
            trainer = Trainer(own, state, objective, (x, y), functools.partial(torch.optim.Adam, lr=0.03))
            losses = [trainer.step(torch.arange(len(x)).expand(chains, -1)) for _ in range(4)]
        norms = [value.reshape(chains, -1).norm(dim=1) for value in trainer.parameters.values()]
        return torch.stack([*losses, *norms], 1).detach()

    separate = torch.cat([run(1, seed) for seed in range(20)])
    require_equal_means(run(80, 0), separate, "losses in four steps and norms after them, of chains mapped and alone")


@each_problem
def check_seeds(case: GuideCase, problem: Problem) -> None:
    """One seed fixes a fit, its draws and predictions, another one changes them; global generators stay as they are."""
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    first, second, other = case.posterior(problem), case.fit(problem), case.fit(problem, seed=2)
    with naming("two fits of one seed"):
        _check_same(first, second, problem.x)
    states = [each.state()[0] for each in (first, other)]
    differ = any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    require(differ or not states[0], "a fit with another seed has the same parameters")
    if case.bound:
        drawn, others = (first.sample(3, seed=seed) for seed in (0, 1))
        same = [name for name, value in drawn.items() if torch.equal(value, others[name])]
        require(not same, f"draws of {same} are the same for another seed")
    require(torch.equal(before[0], torch.get_rng_state()), "fitting or drawing changed torch's global generator")
    require(before[1] == random.getstate(), "fitting or drawing changed Python's global generator")
    untouched = before[2] == str(np.random.get_state())  # noqa: NPY002
    require(untouched, "fitting or drawing changed NumPy's global generator")


@each_problem
def check_saving(case: GuideCase, problem: Problem) -> None:
    """A file holds all of a posterior: the same draws and predictions from its bytes, in a new model and guide."""
    posterior = case.posterior(problem)
    mine = type(posterior.guide).__module__.split(".")[0] not in ("bnnzoo", "pyro")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.bnn"
        posterior.save(path)
        ways: list[dict[str, Any]] = [{"guide": case.make, "network": problem.network()}]
        if not mine:  # a guide of another package is built by `load(path, guide=...)` only
            ways.append({})
        for way in ways:
            loaded = load(path, **way)
            with naming("loaded by load(path, guide=...)" if way else "loaded by load(path)"):
                _check_same(posterior, loaded, problem.x)


def _check_same(posterior: Posterior, other: Posterior, x: Tensor) -> None:
    ours, theirs = (each.sample(4, seed=3, auxiliary=True) for each in (posterior, other))
    require(ours.keys() == theirs.keys(), f"draws have sites {sorted(theirs)}, expected {sorted(ours)}")
    for name, value in ours.items():
        require_close(theirs[name], value, f"draws of {name!r} of the same seed", 1e-6, 1e-7)
    ours, theirs = (each.predict(x, 4, seed=3).parameters for each in (posterior, other))
    for name, value in ours.items():
        require_close(theirs[name], value, f"predictions' {name!r} of the same seed")


@each_problem
def check_device(case: GuideCase, problem: Problem) -> None:
    """A fit runs on a GPU, and a posterior that moves there draws and predicts there.

    Raises:
        unittest.SkipTest: If there is no GPU.
    """
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device here: moves between devices are not checked")
    with seeded(4):
        bnn = problem.bnn().cuda()
        guide = case.make(bnn)
    fitted = fit(bnn, guide, problem.data, epochs=2, batch_size=6, chains=2)
    moved = {"fitted on the GPU": fitted, "moved to the GPU": copy.deepcopy(case.posterior(problem)).to("cuda")}
    for what, posterior in moved.items():
        drawn = {**posterior.sample(3, auxiliary=True), **posterior.predict(problem.x, 3).parameters}
        for name, value in drawn.items():
            require(value.device.type == "cuda", f"{what}, {name!r} is on {value.device}")
        require_finite(drawn, f"{what},")
        back = posterior.to("cpu").predict(problem.x, 3)
        require_finite(back.parameters, f"{what} and back,")


@each_problem
def check_memory(case: GuideCase, problem: Problem) -> None:
    """`predict` keeps within `max_memory`, and its result does not depend on the blocks that this makes."""
    posterior = case.posterior(problem)
    x = problem.x.repeat(30, *[1] * (problem.x.dim() - 1))
    with PeakMemory() as free:
        whole = posterior.predict(x, 8, seed=2)
    # At least twice the result is asked for: twice that leaves some room for the work, and more is given until it does.
    budget = 4 * sum(value.numel() * value.element_size() for value in whole.parameters.values())
    small = None
    while small is None:
        with PeakMemory() as used:
            try:
                small = posterior.predict(x, 8, seed=2, max_memory=budget)
            except ValueError as error:
                if "max_memory" not in str(error):
                    raise
                budget = round(1.5 * budget)
    require(
        used.peak <= budget,
        f"predict(max_memory={budget}) has {used.peak} bytes alive at once (without a limit {free.peak})",
    )
    for name, value in whole.parameters.items():
        found, value = torch.broadcast_tensors(small.parameters[name], value)
        require_close(found, value, f"predictions' {name!r} in small blocks", 1e-4, 1e-5)


@each_problem
def check_arviz(case: GuideCase, problem: Problem) -> None:
    """The export has every site, auxiliary ones too, [chain, draw, ...] and finite; `az.summary` reads it."""
    posterior = case.posterior(problem)
    idata = posterior.to_arviz(problem.data, num_samples=20, num_prior_samples=0)
    shapes = {name: prior.shape() for name, prior in posterior.bnn.sites.items()} | auxiliary_shapes(posterior.guide)
    group = idata["posterior"]
    for name, shape in shapes.items():
        require(legal(name) in group, f"the group `posterior` has no variable {legal(name)!r}: {sorted(group)}")
        values = torch.as_tensor(group[legal(name)].values)
        right = [2, 20, *shape]
        require(list(values.shape) == right, f"exported {name!r} has shape {list(values.shape)}, expected {right}")
        require_finite({name: values}, "exported")
    if problem is not case.problems[0]:
        return  # summaries are slow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a point, whose draws have no variance to divide by
        table = import_arviz().summary(group if not hasattr(idata, "groups") else idata, kind="stats")
    count = sum(max(1, shape.numel()) for shape in shapes.values())
    require(len(table) == count, f"az.summary has {len(table)} rows, and the sites {count} elements")

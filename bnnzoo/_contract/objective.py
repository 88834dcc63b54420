"""Checks of an objective: as a Pyro ELBO, as a function of particles, and of what `fit` makes with it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.func import functional_call

from bnnzoo import guides
from bnnzoo._contract.measure import (
    WITHIN,
    draws,
    mapped,
    naming,
    parameters_of,
    perturb,
    require,
    require_close,
    require_equal_means,
    require_finite,
    with_gradients,
)
from bnnzoo._contract.objective_case import (
    ObjectiveCase,
    evaluate,
    everywhere,
    gradients_of,
    moved,
    once,
    scaled_loss,
    with_each_guide,
)
from bnnzoo._contract.posterior import compare_chains, compare_steps
from bnnzoo._contract.problems import GuideCase, Problem, targets
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import initial_state
from bnnzoo.objectives import ELBO, KLAnnealing
from bnnzoo.serialization import load

#: Another prior than that of any problem.
_ELSEWHERE = dist.Normal(1.0, 0.5)


@everywhere
def check_interface(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """It is a `pyro.infer.ELBO`, whose call, `loss` and `loss_and_grads` tell the same as `differentiable_loss`."""
    objective, pair = case.objective(3), moved(guide, problem)
    kind = type(objective).__name__
    require(isinstance(objective, pyro.infer.ELBO), f"{kind} is no pyro.infer.ELBO: derive it from Objective")
    x, y, size = problem.x[:6], problem.y[:6], len(problem.x)
    right = evaluate(objective, pair, x, y, size)
    gradients = gradients_of(right, pair)
    values: dict[str, Any] = {}
    with pyro_settings(pair):
        module = objective(pair.model, pair.guide)
        require(isinstance(module, nn.Module), f"{kind}()(model, guide) is a {type(module).__name__}, not a module")
        with seeded(0):
            values["objective(model, guide)(...)"] = module(x, y, size=size).detach()
        for name in ("loss", "loss_and_grads"):
            with seeded(0):
                value = getattr(objective, name)(pair.model, pair.guide, x, y, size=size)
            require(isinstance(value, float), f"{name} returns a {type(value).__name__}, not a float")
            values[name] = torch.tensor(value)
    for name, value in values.items():
        require_close(value, right.float(), f"{name}, beside differentiable_loss under the same seed")
    for name, parameter in parameters_of(pair).items():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        require_close(found, gradients[name], f"gradient by {name!r} of loss_and_grads, beside autograd", 1e-4)


@everywhere
def check_finite(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """Losses and every parameter's gradient are finite, and none is zero: near the start and far from it."""
    x, y = problem.x, problem.y
    # The exponential of a wide Gaussian, as a noise scale is, overflows by itself: no objective could be finite there.
    for size in (0.1, 1.0) if problem.bnn().likelihood.sites() else (0.1, 1.0, 3.0):
        pair = guide.pair(problem)
        perturb(pair, size, 5)
        for particles, rows in ((1, len(x)), (4, len(x)), (4, len(x) // 2 - 1), (4, 1)):
            with naming(f"parameters changed by N(0, {size:g}²), {particles} particles, {rows} of {len(x)} rows"):
                loss = evaluate(case.objective(particles), pair, x[:rows], y[:rows], len(x))
                gradients = gradients_of(loss, pair)
                require_finite(gradients, "the gradient of the loss by")
        idle = [name for name, gradient in gradients.items() if not gradient.any()]
        require(not idle, f"the gradient by {idle} is zero")


@with_each_guide
def check_one_particle(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """With one particle, losses and gradients of minibatches have the means of the ELBO's, also with a KL weight."""
    if not case.elbo:
        return
    x, y, pair = problem.x[:6], problem.y[:6], moved(guide, problem)
    for weight in (1.0, 0.3):
        ours, theirs = (
            draws(pair, 1000, with_gradients(scaled_loss(each, problem.x), parameters_of(pair)), x, y, seed=seed)
            for seed, each in enumerate((case.objective(1, weight), ELBO(1, weight)))
        )
        for name, value in ours.items():
            what = f"{name} by one particle and by the ELBO, kl_weight={weight:g}, a batch of half the data"
            require_equal_means(value, theirs[name], what)


def check_points(case: ObjectiveCase) -> None:
    """For `guides.Map`, whose draws are all alike, it is the ELBO for any K; or it says why it is not defined."""
    for problem in case.problems:
        pair = moved(GuideCase(guides.Map), problem)
        x, y, size = problem.x[:6], problem.y[:6], len(problem.x)
        for particles in (1, 4):
            with naming(f"{problem.name}, Map, {particles} particles"):
                objective = case.objective(particles)
                try:
                    loss = evaluate(objective, pair, x, y, size)
                except ValueError as error:
                    require(not case.points, f"not defined for a point (claim points=False if it is not): {error}")
                    require(bool(str(error)), "the ValueError does not say why")
                    continue
                require(case.points, "takes a guide that is a point, where a ValueError is claimed")
                if case.elbo:
                    right = evaluate(ELBO(), pair, x, y, size)
                    require_close(loss, right, "the loss of a point, beside the ELBO's")


@everywhere
def check_minibatches(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """Losses of minibatches, which `size=N` scales to all data, have on average the mean of the loss on all data."""
    if not case.additive:
        return
    third = len(problem.x) // 3
    x, y = (values[: 3 * third] for values in problem.data)
    batches = [slice(start, start + third) for start in (0, third, 2 * third)]
    what = f"losses of three batches of {third}, averaged, and of all {len(x)} data"
    pair, loss = moved(guide, problem), scaled_loss(case.objective(8), x)
    parts = [draws(pair, 500, loss, x[rows], y[rows], seed=1 + seed) for seed, rows in enumerate(batches)]
    require_equal_means(torch.stack(parts).mean(0), draws(pair, 500, loss, x, y, seed=0), what)
    if case.points:
        pair = moved(GuideCase(guides.Map), problem)
        parts = [evaluate(case.objective(2), pair, x[rows], y[rows], len(x)) for rows in batches]
        require_close(torch.stack(parts).mean(), evaluate(case.objective(2), pair, x, y), f"Map: {what}")


@with_each_guide
def check_divergence(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """`kl_weight=0` drops the divergence, other weights do not, and annealing is the constant weight of the epoch."""
    x, y, pair = problem.x, problem.y, moved(guide, problem)
    other = Pair(replace(problem, prior=_ELSEWHERE).bnn(), pair.guide)
    without, elsewhere = (evaluate(case.objective(3, 0.0), each, x, y) for each in (pair, other))
    require_close(elsewhere, without, "kl_weight=0: the loss under another prior")
    for weight in (1.0, 0.5):
        first, second = (evaluate(case.objective(3, weight), each, x, y) for each in (pair, other))
        require(not torch.isclose(first, second), f"kl_weight={weight:g}: the loss does not depend on the prior")
        require(not torch.isclose(first, without), f"kl_weight={weight:g}: the loss is that of kl_weight=0")
    annealed = case.objective(3, KLAnnealing(2))
    for epoch, weight in ((0.0, 0.0), (0.5, 0.25), (1.5, 0.75), (7.0, 1.0)):
        annealed.epoch = epoch
        found, right = (evaluate(each, pair, x, y) for each in (annealed, case.objective(3, weight)))
        require_close(found, right, f"kl_weight=KLAnnealing(2), epoch {epoch:g}: the loss, beside kl_weight={weight:g}")


@with_each_guide
def check_gradients(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """The mean gradient along a direction is the slope of the mean loss, by differences under the same draws."""
    x, y, pair = problem.x.double(), targets(problem, torch.float64), moved(guide, problem, torch.float64)
    loss, step = scaled_loss(case.objective(4), x), torch.tensor(1e-4).double()
    with seeded(1):
        direction = {name: torch.randn_like(value) for name, value in parameters_of(pair).items()}

    def along(model: nn.Module, guide: nn.Module, t: Tensor) -> Tensor:
        own = Pair(model, guide)
        values = {name: value + t * direction[name] for name, value in own.named_parameters() if name in direction}
        return functional_call(own, values, (loss, x, y))

    below, above = (draws(pair, 300, along, t) for t in (-step, step))
    slope = draws(pair, 300, torch.func.grad(along, argnums=2), 0 * step)
    error = (above - below) / (2 * step) - slope
    allowed = WITHIN * error.std() / len(error) ** 0.5 + 1e-4 * slope.abs().mean() + 1e-5
    require(
        error.mean().abs() <= allowed,
        f"the mean slope of the loss is {(slope + error).mean():.6g} along a direction, and that of its gradients "
        f"{slope.mean():.6g} ± {allowed:.2g}",
    )


@once
def check_chains(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """Mapped chains are as separate ones: in losses, in gradient steps, and no chain acts on another."""
    objective, pairs = case.objective(2), [guide.pair(problem) for _ in range(3)]
    for seed, pair in enumerate(pairs):
        perturb(pair, 0.1, seed)
    compare_chains(pairs, objective, problem.x, problem.y)
    compare_steps(pairs[0], objective, problem.x, problem.y)


@with_each_guide
def check_svi(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """`pyro.infer.SVI` steps by it, with parameters in Pyro's global store."""
    x, y, objective = problem.x, problem.y, case.objective(2)
    with pyro.get_param_store().scope(), seeded(7):
        pyro.clear_param_store()
        bnn = problem.bnn()
        program = guide.make(bnn)
        svi = pyro.infer.SVI(bnn, program, PyroOptim(torch.optim.Adam, {"lr": 0.01}), loss=objective)
        svi.step(x, y, size=len(x))  # Pyro's AutoGuides make their parameters
        before = {name: p.detach().clone() for name, p in program.named_parameters()}
        losses = [svi.step(x[:5], y[:5], size=len(x)), svi.evaluate_loss(x, y, size=len(x))]
        require(all(map(math.isfinite, losses)), f"losses of SVI are {losses}")
        still = [name for name, p in program.named_parameters() if torch.equal(p, before[name])]
        require(not still, f"a step of SVI does not change {still}")


@everywhere
def check_dtype(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """In double precision the loss and its gradients are."""
    pair = guide.pair(problem, torch.float64)
    loss = evaluate(case.objective(3), pair, problem.x.double(), targets(problem, torch.float64))
    kinds = {"loss": loss.dtype} | {f"gradient by {n!r}": g.dtype for n, g in gradients_of(loss, pair).items()}
    wrong = {name: kind for name, kind in kinds.items() if kind != torch.float64}
    require(not wrong, f"in double precision: {wrong}")


@once
def check_seeds(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """A seed fixes the loss, and another seed changes it; the objective keeps nothing of what it has seen."""
    pair, objective = moved(guide, problem), case.objective(3)
    first, other, again = (evaluate(objective, pair, problem.x, problem.y, seed=seed) for seed in (0, 1, 0))
    require(torch.equal(first, again), f"the loss for one seed is {first:.7g} once and {again:.7g} later")
    if case.draws:
        require(not torch.equal(first, other), "the loss is the same for another seed")
    else:
        require(torch.equal(first, other), f"the loss is {first:.7g} for one seed and {other:.7g} for another")
    fresh = evaluate(case.objective(3), pair, problem.x, problem.y)
    require(torch.equal(first, fresh), f"the loss of a new objective for one seed is {fresh:.7g}, not {first:.7g}")


@once
def check_fit(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """`fit` takes it: seeds reproduce, posteriors tell it, save and load; it is named alike in every process."""
    weights = []

    def annealing(epoch: float) -> float:
        weights.append(epoch)
        return 0.5

    settings: dict[str, Any] = {"epochs": 2, "batch_size": 5, "chains": 2}
    objective, again = case.objective(2, annealing), case.objective(2, annealing)
    name = repr(objective)
    require(name == repr(again), f"repr differs for objectives that are alike: {name} and {again!r}")
    if case.draws:
        require(name != repr(case.objective(3, annealing)), f"repr does not tell num_particles: {name}")
    posterior, other = (guide.fit(problem, objective=each, **settings) for each in (objective, again))
    require_finite({"loss": torch.as_tensor(posterior.history["loss"])}, "the history's")
    require(repr(objective) == name and objective.epoch == 0.0, f"fit changed the objective, {name}, to {objective!r}")
    steps = math.ceil(len(problem.x) / 5)
    found, right = sorted(set(weights)), [epoch + step / steps for epoch in (0, 1) for step in range(steps)]
    require(found == right, f"kl_weight was called with the epochs {found}, and not with {right}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.bnn"
        posterior.save(path)
        loaded = load(path, guide=guide.make, network=problem.network())
    for what, each in {"fitted": posterior, "loaded": loaded}.items():
        told = each.info["objective"]
        require(told == name, f"the {what} posterior tells the objective {told}, and not {name}")
    drawn = posterior.sample(3, seed=0)
    for what, each in {"a second fit of the same seed": other, "a loaded posterior": loaded}.items():
        for site, value in each.sample(3, seed=0).items():
            require_close(value, drawn[site], f"draws of {site!r} by {what}")


@once
def check_training(case: ObjectiveCase, problem: Problem, guide: GuideCase) -> None:
    """A short fit brings it down, in both of two chains."""
    objective = case.objective(4)
    settings = {"epochs": case.steps, "batch_size": 12, "lr": case.lr, "chains": 2, "seed": 1}
    posterior = guide.fit(problem, objective=objective, **settings)
    pair = guide.pair(problem)
    with pyro_settings(pair):
        start = initial_state(guide.pair(problem), 2, 1, problem.x[:2], problem.y[:2])
    first, last = (
        mapped(pair, state, 200, scaled_loss(objective, problem.x), problem.x, problem.y, seed=seed).double()
        for seed, state in enumerate((start, posterior.state()))
    )
    error = ((first.var(1) + last.var(1)) / 200).sqrt()
    fallen = bool((first.mean(1) - last.mean(1) > WITHIN * error).all())
    require(
        fallen,
        f"the losses of two chains do not fall: from {_numbers(first.mean(1))} to {_numbers(last.mean(1))} in "
        f"{case.steps} steps, ± {_numbers(error)}",
    )


def _numbers(values: Tensor) -> str:
    return " and ".join(f"{value:.5g}" for value in values.tolist())


#: Checks of an objective, by name.
OBJECTIVE_CHECKS: dict[str, Callable[[ObjectiveCase], None]] = {
    "interface": check_interface,
    "finite": check_finite,
    "one_particle": check_one_particle,
    "points": check_points,
    "minibatches": check_minibatches,
    "divergence": check_divergence,
    "gradients": check_gradients,
    "chains": check_chains,
    "svi": check_svi,
    "dtype": check_dtype,
    "seeds": check_seeds,
    "fit": check_fit,
    "training": check_training,
}

"""Checks of a guide as a program: its sites, losses and parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from bnnzoo import likelihoods
from bnnzoo._contract.measure import (
    WITHIN,
    call,
    drawn,
    draws,
    mapped,
    naming,
    parameters_of,
    perturb,
    require,
    require_close,
    require_equal_means,
    require_equal_moments,
    require_finite,
    sampled_loss,
    trace,
    with_gradients,
)
from bnnzoo._contract.problems import (
    CONVOLUTION,
    PROBLEMS,
    GuideCase,
    Problem,
    auxiliary_shapes,
    each_problem,
    elbo,
    regression,
    targets,
)
from bnnzoo._vectorize import Pair, evaluating, seeded
from bnnzoo.chains import stack
from bnnzoo.guides import Guide
from bnnzoo.objectives import ELBO, Sites


@each_problem
def check_sites(case: GuideCase, problem: Problem) -> None:
    """Each site of the model is drawn once, in its shape and support; other sites are auxiliary, and listed."""
    pair = case.pair(problem)
    priors = pair.model.sites
    for mode, args in (("in training", (problem.x, problem.y)), ("after training, without data", (None,))):
        pair.train(mode == "in training")
        with seeded(0):
            traced = call(pair, trace, *args)
        sites = {name: node for name, node in traced.nodes.items() if node["type"] == "sample"}
        missing, extra = set(priors) - set(sites), {name: sites[name] for name in set(sites) - set(priors)}
        require(not missing, f"{mode} the guide draws no site {sorted(missing)}; it draws {sorted(sites)}")
        returned = traced.nodes["_RETURN"]["value"]
        kind = type(returned).__name__
        require(isinstance(returned, dict), f"the guide returns a {kind}, not a dict of its sites' values")
        for name, prior in priors.items():
            node, value = sites[name], sites[name]["value"]
            require(not node["is_observed"], f"{mode} site {name!r} is observed: the guide must draw it")
            shapes = f"{mode} site {name!r} has shape {list(value.shape)}, and the model's {list(prior.shape())}"
            require(value.shape == prior.shape() == node["fn"].shape(), shapes)
            batch = list(node["fn"].batch_shape)
            require(not batch, f"{mode} site {name!r} has batch shape {batch}: call to_event({len(batch)})")
            inside = prior.support.check(value).all()
            require(inside, f"{mode} site {name!r} is drawn outside of the prior's support {prior.support}")
            require(returned.get(name) is value, f"{mode} the guide does not return the value of site {name!r}")
        for name, node in extra.items():
            marked = node["is_observed"] or node["infer"].get("is_auxiliary")
            require(marked, f"site {name!r} is not in the model and not marked infer={{'is_auxiliary': True}}")
        if isinstance(pair.guide, Guide) and not pair.training:
            found = {name: list(node["value"].shape) for name, node in extra.items() if not node["is_observed"]}
            found = {name: shape for name, shape in found.items() if name not in case.unlisted}
            listed = {name: list(shape) for name, shape in auxiliary_shapes(pair.guide).items()}
            require(found == listed, f"the guide draws the auxiliary sites {found}, and its `auxiliary` lists {listed}")


@each_problem
def check_finite(case: GuideCase, problem: Problem) -> None:
    """Losses, densities and every parameter's gradient are finite at start and far from it."""
    x, y = problem.x, problem.y
    settings: dict[str, Callable[[Pair], None]] = {"at start": lambda pair: None}
    # The exponential of a wide Gaussian, as a noise scale is, overflows by itself: no guide could be finite there.
    far = not problem.bnn().likelihood.sites()
    for size in case.sizes if far else [size for size in case.sizes if size <= 1]:
        settings[f"at parameters changed by N(0, {size:g}²)"] = functools.partial(perturb, size=size, seed=5)
    for value in case.extremes if far else ():
        settings[f"at all parameters {value:g}"] = functools.partial(_fill, value=value)
    for what, change in settings.items():
        pair = case.pair(problem)
        change(pair)
        with naming(what), seeded(6):
            losses = {"loss": call(pair, elbo, x, y), "minibatch": call(pair, elbo, x[:5], y[:5], size=len(x))}
            if what == "at start":
                losses["two particles"] = call(pair, lambda m, g: ELBO(2).differentiable_loss(m, g, x, y))
            require_finite(losses, "the ELBO's")
            own = parameters_of(pair)
            grads = torch.autograd.grad(sum(losses.values()), list(own.values()), allow_unused=True)
            unused = [name for name, grad in zip(own, grads, strict=True) if grad is None]
            require(not unused, f"the loss does not depend on the parameters {unused}: they would never be trained")
            require_finite(dict(zip(own, grads, strict=True)), "the gradient of the loss by")
            if isinstance(pair.guide, Guide) and pair.guide.has_density:
                _check_density(pair)


def _fill(pair: Pair, value: float) -> None:
    with torch.no_grad():
        for parameter in parameters_of(pair).values():
            parameter.fill_(value)


def _check_density(pair: Pair) -> None:
    traced = call(pair, trace, None)
    values = {name: traced.nodes[name]["value"] for name in pair.model.sites}
    density = call(pair, lambda _, guide: guide.log_prob({name: value.detach() for name, value in values.items()}))
    require(density.dim() == 0, f"log_prob of one draw has shape {list(density.shape)}, and not that of a scalar")
    require_finite({"log_prob": density}, "the density's")
    if not auxiliary_shapes(pair.guide):
        require_close(density, traced.log_prob_sum(), "log_prob of a draw, beside the sum over its sites", 1e-4, 1e-4)
    if not density.requires_grad:
        return  # a guide that is a point in training, and finds its width afterwards
    own = dict(pair.guide.named_parameters())
    grads = torch.autograd.grad(density, list(own.values()), allow_unused=True)
    grads_by_name = zip(own, grads, strict=True)
    require_finite({name: g for name, g in grads_by_name if g is not None}, "the gradient of log_prob by")


def check_bound(case: GuideCase) -> None:
    """The ELBO of linear regression is at most its log evidence, at random parameters and where training ends.

    Training on the ELBO seeks its highest value, and so whatever makes it exceed the evidence; a mistake by which
    little is gained within `steps` may stay unseen. Without `bound` there is nothing to check: a point's ELBO has no
    entropy, and may be any number.
    """
    if not case.bound:
        return
    problem = Problem("linear regression", lambda: nn.Linear(3, 1), likelihoods.Gaussian(0.5), regression(3))
    design = torch.cat([problem.x, torch.ones(12, 1)], 1).double()
    covariance = design @ design.T + 0.25 * torch.eye(12).double()
    marginal = dist.MultivariateNormal(torch.zeros(12).double(), covariance)
    evidence = marginal.log_prob(problem.y.double()).item()
    decay = functools.partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=case.steps)
    settings = {"epochs": case.steps, "batch_size": 12, "lr": case.lr, "chains": 3}
    trained = case.fit(problem, objective=ELBO(10), scheduler=decay, **settings)
    random = []
    for seed, size in enumerate((0.0, 0.1, 0.3, 1.0)):
        pair = case.pair(problem)
        perturb(pair, size, seed)
        random.append(pair)
    pair = random[0]
    for what, state in (("random parameters", stack(random)), ("trained parameters", trained.state())):
        elbos = -mapped(pair, state, 2000, elbo, problem.x, problem.y).detach().double()
        require(elbos.isfinite().all(), f"the ELBO at {what} is NaN or infinite in some draws")
        mean, error = elbos.mean(1), elbos.std(1) / elbos.shape[1] ** 0.5
        excess = (mean - WITHIN * error - evidence - 1e-4).max().item()
        require(
            excess <= 0,
            f"the ELBO at {what} is no bound: {mean.max().item():.4f} ± {error[mean.argmax()].item():.4f}, and the log "
            f"evidence is {evidence:.4f} nats",
        )


def check_structured(case: GuideCase) -> None:
    """Outputs of passes with structured weights have mean and variance of passes with dense draws, at each row.

    On networks of dense layers, and a convolution alone: rules that draw a convolution's positions independently keep
    the distribution of each of its outputs, and not that of what the next layers make of them.
    """
    if not case.structured:
        return
    for problem in (*(each for each in case.problems if each.independent), CONVOLUTION):
        if case.problems is not PROBLEMS and problem is CONVOLUTION:
            continue  # the guide is not for any network
        with naming(problem.name):
            pair = case.pair(problem)
            perturb(pair, 0.3, 0)
            first, second = (
                draws(pair, 4000, functools.partial(_outputs, structured=structured), problem.x, problem.y, seed=seed)
                for seed, structured in enumerate((True, False))
            )
            require_equal_moments(first, second, "outputs under structured and dense draws")


def _outputs(model: Any, guide: nn.Module, x: Tensor, y: Tensor, structured: bool) -> Tensor:
    sites = Sites(form="structured" if structured else "dense")
    sites.run(guide, x, y)
    with torch.no_grad():
        return model.output(sites.drawn, x)


@each_problem
def check_pyro_elbo(case: GuideCase, problem: Problem) -> None:
    """`pyro.infer.Trace_ELBO` runs; its losses and gradients have the means of ours, where that is claimed."""
    x, y = problem.x, problem.y
    pair = case.pair(problem)
    perturb(pair, 0.1, 0)
    with seeded(0):
        loss = call(pair, pyro.infer.Trace_ELBO().differentiable_loss, x, y, size=len(x))
    require_finite({"loss": loss}, "Trace_ELBO's")
    own = parameters_of(pair)
    grads = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    require_finite({n: g for n, g in zip(own, grads, strict=True) if g is not None}, "the gradient of Trace_ELBO by")
    if not case.pyro_elbo:
        return
    ours, theirs = (
        draws(pair, 1000, with_gradients(loss, own), x, y, seed=seed) for seed, loss in enumerate((elbo, sampled_loss))
    )
    for name, value in ours.items():
        require_equal_means(value, theirs[name], f"{name} by bnnzoo's ELBO and by pyro.infer.Trace_ELBO")


@each_problem
def check_svi(case: GuideCase, problem: Problem) -> None:
    """`pyro.infer.SVI` trains the guide under both ELBOs, and `pyro.infer.Predictive` draws from it."""
    x, y = problem.x, problem.y
    for objective in (pyro.infer.Trace_ELBO(), ELBO()):
        with pyro.get_param_store().scope(), seeded(7):
            pyro.clear_param_store()
            bnn = problem.bnn()
            guide = case.make(bnn)
            svi = pyro.infer.SVI(bnn, guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), loss=objective)
            svi.loss(bnn, guide, x, y, size=len(x))  # Pyro's AutoGuides make their parameters
            before = {name: p.detach().clone() for name, p in guide.named_parameters()}
            losses = [svi.step(x, y, size=len(x)) for _ in range(2)]
            kind = type(objective).__name__
            require(all(map(math.isfinite, losses)), f"losses of SVI steps under {kind} are {losses}")
            moved = [name for name, p in guide.named_parameters() if not torch.equal(p, before[name])]
            require(bool(moved) or not before, f"SVI under {kind} changes no parameter of the guide")
            try:
                bnn(x)
            except NotImplementedError:
                continue  # the prior is improper, and Predictive begins by drawing from it
            with evaluating(bnn), evaluating(guide):
                predicted = pyro.infer.Predictive(bnn, guide=guide, num_samples=3)(x)["y"]
            right = [3, *y.shape]
            require(list(predicted.shape) == right, f"Predictive gives y in {list(predicted.shape)}, expected {right}")


@each_problem
def check_dtype(case: GuideCase, problem: Problem) -> None:
    """A guide of a model in double precision draws in it, and so does a model moved there with its guide."""
    x, y = problem.x.double(), targets(problem, torch.float64)
    ways = {"built from a model in double precision": case.pair(problem, torch.float64)}
    ways["moved by .double()"] = case.pair(problem).double()
    for what, pair in ways.items():
        with naming(what), seeded(0):
            single = [name for name, p in parameters_of(pair).items() if p.dtype != torch.float64]
            require(not single, f"parameters {single} are not in double precision")
            loss = call(pair, elbo, x, y)
            require(loss.dtype == torch.float64, f"the loss is {loss.dtype}, not torch.float64")
            require_finite({"loss": loss}, "the ELBO's")
            values = call(pair, drawn)
            wrong = {name: value.dtype for name, value in values.items() if value.dtype != torch.float64}
            require(not wrong, f"draws are not in double precision: {wrong}")


@each_problem
def check_copy(case: GuideCase, problem: Problem) -> None:
    """A deep copy with its model is alike and independent; its guide belongs to the copied model."""
    pair = case.pair(problem)
    other = pair.copy()

    def values(pair: Pair) -> dict[str, Tensor]:
        with seeded(0), torch.no_grad():
            return call(pair, drawn)

    before = values(pair)
    for name, value in values(other).items():
        require_close(value, before[name], f"site {name!r} of a copy, drawn with the same seed")
    if isinstance(pair.guide, Guide):
        require(other.guide.model is other.model, "the copied guide's `model` is not the copied model")
        inside = any(part is pair.model for part in pair.guide.modules())
        require(not inside, "the model is a submodule of the guide: its parameters would be counted twice")
    storages = {p.untyped_storage().data_ptr() for p in (*pair.parameters(), *pair.buffers()) if p.numel()}
    shared = [
        name
        for name, p in (*other.named_parameters(), *other.named_buffers())
        if p.numel() and p.untyped_storage().data_ptr() in storages
    ]
    require(not shared, f"a copy shares the memory of {shared}")
    perturb(other, 1.0, 0)
    for name, value in values(pair).items():
        require_close(value, before[name], f"site {name!r} of a guide whose copy was changed")


@each_problem
def check_reset(case: GuideCase, problem: Problem) -> None:
    """`reset_parameters` forgets what was learned; the seed fixes the fresh start, and with it the model's values."""
    pair = case.pair(problem)
    if not isinstance(pair.guide, Guide):
        return  # only bnnzoo's guides have it: `fit` starts Pyro's where they start themselves
    starts = []
    for seed, size in ((1, 0.5), (1, 2.0), (2, 0.5)):
        perturb(pair, size, 3)
        with seeded(seed):
            pair.model.reset_parameters()
            pair.guide.reset_parameters()
        own = {name: p for name, p in pair.guide.named_parameters() if p.requires_grad}
        starts.append({name: p.detach().clone() for name, p in own.items()})
    require_finite(starts[0], "fresh parameters")
    for name, value in starts[0].items():
        require_close(starts[1][name], value, f"parameter {name!r} after two resets of one seed")
    moved = [name for name, value in starts[0].items() if not torch.equal(value, starts[2][name])]
    require(bool(moved) or not starts[0], "a reset of another seed, after the model's own, changes no parameter")

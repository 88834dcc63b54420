"""Contracts for guides and objectives: what the rest of bnnzoo, Pyro and ArviZ rely on, for your own ones too.

Each check is a function of one `GuideCase` (`ObjectiveCase`) and raises AssertionError where the guide (the objective)
breaks its property; the message says what was expected, of which site or parameter, and what was found. They need no
test runner: `check_guide` (`check_objective`) runs all of them, and a parametrized test over `CHECKS`
(`OBJECTIVE_CHECKS`) shows each as a test of its own.

Example:
    >>> from bnnzoo import guides, objectives, testing
    >>> testing.check_guide(guides.Map, ["sites", "draws", "copy"], bound=False)
    >>> testing.check_objective(objectives.BBAlpha, ["interface", "points"])

With pytest, one test a guide and property:

    CASES = {"mine": testing.GuideCase(MyGuide), "mine, wide": testing.GuideCase(lambda bnn: MyGuide(bnn, scale=1.0))}

    @pytest.mark.parametrize("check", testing.CHECKS)
    @pytest.mark.parametrize("case", CASES)
    def test_contract(case, check):
        testing.CHECKS[check](CASES[case])

Random estimates are compared within standard errors that a right guide exceeds with a probability below 1e-5 in a whole
run; seeds are fixed, so that a verdict is the same every time.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from bnnzoo._contract.objective import OBJECTIVE_CHECKS
from bnnzoo._contract.objective_case import ObjectiveCase
from bnnzoo._contract.posterior import (
    check_arviz,
    check_chains,
    check_device,
    check_draws,
    check_memory,
    check_saving,
    check_seeds,
)
from bnnzoo._contract.problems import BATCH_NORM_PROBLEMS, PROBLEMS, GuideCase, Problem
from bnnzoo._contract.program import (
    check_bound,
    check_copy,
    check_dtype,
    check_finite,
    check_pyro_elbo,
    check_reset,
    check_sites,
    check_structured,
    check_svi,
)
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Objective

__all__ = [
    "BATCH_NORM_PROBLEMS",
    "CHECKS",
    "OBJECTIVE_CHECKS",
    "PROBLEMS",
    "GuideCase",
    "ObjectiveCase",
    "Problem",
    "check_arviz",
    "check_bound",
    "check_chains",
    "check_copy",
    "check_device",
    "check_draws",
    "check_dtype",
    "check_finite",
    "check_guide",
    "check_memory",
    "check_objective",
    "check_pyro_elbo",
    "check_reset",
    "check_saving",
    "check_seeds",
    "check_sites",
    "check_structured",
    "check_svi",
]

#: All checks of a guide, by name.
CHECKS: dict[str, Callable[[GuideCase], None]] = {
    "sites": check_sites,
    "draws": check_draws,
    "finite": check_finite,
    "bound": check_bound,
    "pyro_elbo": check_pyro_elbo,
    "svi": check_svi,
    "chains": check_chains,
    "saving": check_saving,
    "dtype": check_dtype,
    "device": check_device,
    "memory": check_memory,
    "arviz": check_arviz,
    "structured": check_structured,
    "copy": check_copy,
    "reset": check_reset,
    "seeds": check_seeds,
}


def check_guide(
    make: Callable[[BayesianNetwork], nn.Module], checks: Iterable[str] | None = None, **options: Any
) -> None:
    """Check that a guide keeps the contract, all of it or the named properties.

    Args:
        make: Builds the guide from a model: its class, or a function that sets options.
        checks: Names in `CHECKS`. Default: all; moves between devices only where there is a GPU.
        **options: Fields of `GuideCase`: what is claimed of the guide, and on which problems.

    Raises:
        AssertionError: If any fail; it tells all failures, and errors inside a check as well.
        ValueError: If a name is not in `CHECKS`.
    """
    _run("guide", CHECKS, GuideCase(make, **options), checks)


def check_objective(make: Callable[..., Objective], checks: Iterable[str] | None = None, **options: Any) -> None:
    """Check that an objective keeps the contract, all of it or the named properties.

    Args:
        make: Builds the objective from the keywords `num_particles` and `kl_weight`: its class, or a function that sets
            further options.
        checks: Names in `OBJECTIVE_CHECKS`. Default: all.
        **options: Fields of `ObjectiveCase`: what is claimed of the objective, with which guides, on which problems.

    Raises:
        AssertionError: If any fail; it tells all failures, and errors inside a check as well.
        ValueError: If a name is not in `OBJECTIVE_CHECKS`.
    """
    _run("objective", OBJECTIVE_CHECKS, ObjectiveCase(make, **options), checks)


def _run(what: str, known: Mapping[str, Callable[[Any], None]], case: Any, checks: Iterable[str] | None) -> None:
    names = list(known) if checks is None else list(checks)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; there are {', '.join(known)}")
    failures: dict[str, Exception] = {}
    for name in names:
        try:
            known[name](case)
        except unittest.SkipTest:
            continue
        except Exception as error:  # whatever a guide or an objective raises is its failure
            failures[name] = error
    if failures:
        lines = [
            f"  {name}: {error if isinstance(error, AssertionError) else f'{type(error).__name__}: {error}'}"
            for name, error in failures.items()
        ]
        first = next(iter(failures.values()))
        raise AssertionError(
            "\n".join([f"the {what} fails {len(failures)} of {len(names)} checks:", *lines])
        ) from first

"""`sample`: the posterior by Pyro's NUTS, as the reference that guides are measured against."""

from __future__ import annotations

import copy
import sys
from typing import Any

from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample

from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import chain_seed, stack
from bnnzoo.data import as_dataset
from bnnzoo.guides import Empirical
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.priors import LogUniform
from bnnzoo.training import _at_least
from bnnzoo.training_data import checksum, training_tensors


def sample(
    bnn: BayesianNetwork,
    data: Any,
    *,
    num_samples: int = 1000,
    warmup_steps: int = 500,
    chains: int = 1,
    seed: int = 0,
    progress: bool | None = None,
    **nuts: Any,
) -> Posterior:
    """Draw from the posterior with the No-U-Turn sampler (Hoffman & Gelman 2014), chain after chain.

    For small networks. Each chain starts at a draw from the prior.

    Args:
        bnn: The model; every parameter needs a prior, for there is nothing to learn others by.
        data: As for `fit`.
        num_samples: Draws a chain, ≥ 1.
        warmup_steps: Adaptation steps a chain, ≥ 0.
        chains: Number of chains, ≥ 1.
        seed: Fixes the draws; torch's global generators are left as they were.
        progress: Show a progress bar; default if standard error is a terminal.
        nuts: Further arguments of `pyro.infer.NUTS`, such as `target_accept_prob`, `max_tree_depth` and
            `init_strategy`.

    Returns:
        A posterior that holds the draws; `info` has divergences and acceptance rates by chain.

    Raises:
        ValueError: If parameters of the model have no prior or an improper one, the data do not fit, or a number is out
            of range.
    """
    num_samples = _at_least(1, num_samples=num_samples)
    warmup_steps = _at_least(0, warmup_steps=warmup_steps)
    chains, seed = _at_least(1, chains=chains), _at_least(0, seed=seed)
    learned = [name for name, p in bnn.named_parameters() if p.requires_grad]
    if learned:
        raise ValueError(
            f"NUTS draws, it does not optimize: {', '.join(learned)} need a prior or a fixed value "
            "(likelihoods.Gaussian(scale=0.1), or scale=pyro.distributions.HalfNormal(1.0))"
        )
    improper = [name for name, prior in bnn.priors.items() if isinstance(prior, LogUniform)]
    if improper:
        raise ValueError(
            f"the prior of {', '.join(improper)} is LogUniform, under which the posterior has no finite integral: "
            "NUTS needs proper priors"
        )
    dataset = as_dataset(data)
    bnn = copy.deepcopy(bnn).eval()
    x, y = training_tensors(bnn, dataset, dataset.standardization)
    shown = sys.stderr.isatty() if progress is None else progress
    draws, diagnostics = [], []
    with pyro_settings(bnn):
        for chain in range(chains):
            with seeded(chain_seed(seed, chain), x.device):
                # Pyro seeds its own workers from the global seed; one process keeps ours.
                kernel = NUTS(bnn, **{"init_strategy": init_to_sample, "max_plate_nesting": 1, **nuts})
                last: dict[str, Any] = {}
                # MCMC's own diagnostics compute effective sample sizes of all weights, and fail on few draws.
                mcmc = MCMC(
                    kernel,
                    num_samples,
                    warmup_steps,
                    num_chains=1,
                    disable_progbar=not shown,
                    hook_fn=lambda kernel, _, stage, __, last=last: (
                        last.update(kernel.diagnostics()) if stage == "Sample" else None
                    ),
                )
                mcmc.run(x, y)
            draws.append({name: value.detach() for name, value in mcmc.get_samples().items()})
            diagnostics.append(last)
    pairs = [Pair(bnn, Empirical(bnn, each)).eval() for each in draws]
    parameters, buffers = stack(pairs)
    info: dict[str, Any] = {
        "method": "NUTS",
        "seed": seed,
        "warmup_steps": warmup_steps,
        "num_data": len(x),
        "checksum": checksum(x, y),
        "data": dataset.name,
        "divergences": [len(each["divergences"]) for each in diagnostics],
        "acceptance_rate": [float(each["acceptance rate"]) for each in diagnostics],
    }
    return Posterior(pairs[0], parameters, buffers, standardization=dataset.standardization, info=info)

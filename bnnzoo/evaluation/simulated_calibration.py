"""Simulation-based calibration: whether a way of inference is right on average over data that the model makes.

Draw weights from the prior, and data from the model given them; infer; ask where the true value of a quantity falls
among the posterior's draws. If the inference is exact, the probabilities of a smaller value are uniform (Cook, Gelman &
Rubin 2006; Talts et al. 2018); if it is variational, their histogram says how it errs (Yao et al. 2018, section 3.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from bnnzoo._vectorize import seeded, vectorize
from bnnzoo.evaluation.style import BLUE, GRAY, axes_or_new, figure_of, styled
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Sites
from bnnzoo.posterior import Posterior
from bnnzoo.priors import LogUniform

Values = Mapping[str, Tensor]
"""Draws of a model's sites, [draw, *shape] each."""

Sampler = Callable[[tuple[Tensor, Tensor], int], Posterior | Values]
"""From data `(x, y)` and a seed to a posterior, or to draws from one."""

_MOST_PANELS = 12


def sbc(
    bnn: BayesianNetwork,
    x: Any,
    sampler: Sampler,
    *,
    replications: int = 200,
    sites: str | Sequence[str] | None = None,
    at: Any = None,
    functions: Mapping[str, Callable[[Values], Tensor]] | None = None,
    num_samples: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Simulation-based calibration of any sampler (Talts et al. 2018, algorithm 1).

    For each replication: weights w* from the prior, targets from p(y | x, w*), draws from the sampler's posterior given
    these, and for each quantity θ the probability p = (#{θ_s < θ*} + U) / (S + 1), U uniform. Were the draws exact
    and independent, p would be exactly uniform. Draws of a Markov chain are not independent: thin them.

    Args:
        bnn: The model; every parameter needs a proper prior, for weights are drawn from it.
        x: Inputs as the model sees them, [N, ...]; all replications share them.
        sampler: `sampler((x, y), seed)` returns a `Posterior`, all chains of which are taken together, or draws: for
            each site [draw, *shape].
        replications: Number of simulated data sets, ≥ 2; a hundred show gross errors.
        sites: The weights to look at: glob patterns of site names, each element by itself; default all of them, or
            none if `at` or `functions` are given.
        at: Inputs [M, ...] at which to look at the predictions: the targets' conditional mean or class probabilities.
        functions: Further quantities: from draws of all sites, [draw, *shape] each, to a value a draw, [draw].
        num_samples: Draws from each posterior and chain, ≥ 1, or as many as it holds; not of a sampler that returns
            draws.
        seed: Fixes everything.

    Returns:
        `p` [replication, quantity] in (0, 1), labeled `weight[0, 1]`, `prediction[3]` and by the functions' names. See
        `sbc_test` and `plot_sbc`.

    Raises:
        ValueError: If the model cannot be drawn from, there is nothing to look at, a number is out of range, draws do
            not fit the model, or a posterior was fitted to standardized data.
        TypeError: If the sampler returns neither a posterior nor draws.
    """
    x = _inputs(bnn, x)
    quantities = _Quantities(bnn, x, sites, at, functions)
    pairs = _simulated(bnn, x, replications, seed)
    found = (sampler((x, y), _seed(seed, number, 1)) for number, (_, y) in enumerate(pairs))
    return _compared(quantities, pairs, found, num_samples, seed)


def vsbc(
    bnn: BayesianNetwork,
    x: Any,
    guide: Callable[[BayesianNetwork], nn.Module],
    *,
    replications: int = 200,
    sites: str | Sequence[str] | None = None,
    at: Any = None,
    functions: Mapping[str, Callable[[Values], Tensor]] | None = None,
    num_samples: int = 200,
    seed: int = 0,
    **settings: Any,
) -> xr.Dataset:
    """Variational simulation-based calibration (Yao et al. 2018, algorithm 2): `sbc` of a guide, all fits in one stack.

    An asymmetric histogram of a quantity's p means that the guide's mean is biased, to the right for mass near 0; a U
    shape that its standard deviation is too small, a hump that it is too large. Yao et al. ask for symmetry alone,
    since variational approximations are often too narrow and still centered.

    Args:
        bnn: As of `sbc`.
        x: As of `sbc`.
        guide: `guide(bnn)` makes a guide, as `guides.MeanField` does.
        replications: Number of simulated data sets, and of chains that are trained at once, ≥ 2.
        sites: As of `sbc`.
        at: As of `sbc`.
        functions: As of `sbc`.
        num_samples: Draws from each guide, ≥ 1.
        seed: Fixes everything.
        **settings: Of the fits, see `bnnzoo.fit`: `epochs`, `lr`, `objective` and so on. Train to the end: what is not
            converged is taken for a bias.

    Returns:
        As `sbc`.

    Raises:
        ValueError: As `sbc` and `fit`.
    """
    import bnnzoo  # not at the top: the package imports this module

    x = _inputs(bnn, x)
    quantities = _Quantities(bnn, x, sites, at, functions)
    pairs = _simulated(bnn, x, replications, seed)
    tasks = [bnnzoo.Task(bnn, guide(bnn), (x, y)) for _, y in pairs]
    found = bnnzoo.fit_each(tasks, seed=_seed(seed, 2), **settings)
    return _compared(quantities, pairs, iter(found), num_samples, seed)


def sbc_test(result: xr.Dataset) -> xr.Dataset:
    """Tests of what `sbc` and `vsbc` found, by quantity; with K quantities compare p-values with 0.01 / K, say.

    - `ks`: Kolmogorov-Smirnov distance of p from the uniform distribution, and its exact `ks_pvalue`.
    - `asymmetry`: the largest distance of the distribution functions of p and of 1 - p, the statistic of Yao et al.
      2018 (section 3.2). They name the two-sample Kolmogorov-Smirnov test for it, whose samples would have to be
      independent; `asymmetry_pvalue` is of the exact distribution under symmetry (Butler 1969), that of the largest
      |S_k| / n of a simple random walk of n steps.
    - `dispersion`: 12 times the mean of (p - 1/2)², 1 if uniform, above if the posteriors are too narrow, below if too
      wide; up to 3. `dispersion_pvalue`, two-sided, by its normal limit of variance 0.8 / n. The most sensitive to a
      wrong scale.

    Args:
        result: What `sbc` or `vsbc` returned.

    Returns:
        The six, [quantity].
    """
    columns = [values for values in result["p"].transpose("quantity", "replication").values]
    tests: dict[str, list[float]] = {}
    for p in columns:
        ks = stats.kstest(p, "uniform", method="exact")
        walk, count = _extreme(p), len(p)
        dispersion = 12.0 * float(np.mean((p - 0.5) ** 2))
        each = {
            "ks": ks.statistic,
            "ks_pvalue": ks.pvalue,
            "asymmetry": walk / count,
            "asymmetry_pvalue": _walk_tail(count, walk),
            "dispersion": dispersion,
            "dispersion_pvalue": 2.0 * stats.norm.sf(abs(dispersion - 1.0) / math.sqrt(0.8 / count)),
        }
        for name, value in each.items():
            tests.setdefault(name, []).append(float(value))
    return xr.Dataset({n: ("quantity", v) for n, v in tests.items()}, coords={"quantity": result["quantity"]})


def plot_sbc(
    result: xr.Dataset, quantities: str | Sequence[str] | None = None, *, bins: int = 20, ax: Axes | None = None
) -> Figure:
    """Histograms of what `sbc` and `vsbc` found; gray: the band in which 99% of the bars of a uniform one fall.

    Args:
        result: What `sbc` or `vsbc` returned.
        quantities: Which, a panel each; default the first 12.
        bins: Number of bars, ≥ 2.
        ax: Where to draw a single quantity. Default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a quantity is unknown, `ax` is given for several, or there are too few bins.
    """
    known = [str(name) for name in result["quantity"].values]
    chosen = known[:_MOST_PANELS] if quantities is None else [quantities] if isinstance(quantities, str) else quantities
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"there is no quantity {', '.join(map(repr, unknown))}; they are {', '.join(known)}")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, given {bins}")
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one axes shows one quantity, and these are {len(chosen)}: {', '.join(chosen)}")
    tests = sbc_test(result)
    if len(chosen) == 1:
        axes = axes_or_new(ax, (4.2, 3.4))
        _draw_histogram(axes, result, tests, chosen[0], bins)
        return figure_of(axes)
    columns = min(len(chosen), 3 if len(chosen) in (3, 5, 6, 9) else 4)
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, name in zip(panels, chosen, strict=False):
        _draw_histogram(styled(panel), result, tests, name, bins)
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    return figure


class _Quantities:
    """What is looked at, as one function of draws.

    Attributes:
        bnn: The model, a copy in eval mode.
        names: Labels, in order.
    """

    def __init__(
        self,
        bnn: BayesianNetwork,
        x: Tensor,
        sites: str | Sequence[str] | None,
        at: Any,
        functions: Mapping[str, Callable[[Values], Tensor]] | None,
    ) -> None:
        _check_simulable(bnn)
        self.bnn = copy.deepcopy(bnn).eval()
        self._functions = dict(functions or {})
        self._at = None if at is None else _inputs(bnn, at)
        if sites is None:
            sites = () if functions or at is not None else "*"
        patterns = [sites] if isinstance(sites, str) else list(sites)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in bnn.sites):
                raise ValueError(f"sites: {pattern!r} matches no site; they are {', '.join(bnn.sites)}")
        self._sites = [name for name in bnn.sites if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not (self._sites or self._functions or self._at is not None):
            raise ValueError("there is nothing to look at: give sites, at or functions")
        with seeded(0):
            example = {name: prior.sample((2,)) for name, prior in bnn.sites.items()}
        self.names = list(self(example))

    def __call__(self, values: Values) -> dict[str, np.ndarray]:
        """Each quantity of draws, [draw]."""
        found: dict[str, np.ndarray] = {}
        for name in self._sites:
            found |= _elements(name, values[name])
        if self._at is not None:
            found |= _elements("prediction", self._predictions(values, self._at))
        draws = len(next(iter(values.values())))
        for name, function in self._functions.items():
            result = function(values)
            if result.shape != (draws,):
                raise ValueError(f"function {name!r} must return a value a draw, [{draws}], not {list(result.shape)}")
            found[name] = result.detach().cpu().numpy()
        return found

    def _predictions(self, values: Values, at: Tensor) -> Tensor:
        likelihood = self.bnn.likelihood

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            latent = {name: draw[name] for name in likelihood.sites()}
            return likelihood.conditional(self.bnn.output(draw, at), **latent)

        with torch.no_grad():
            distribution = likelihood.family(**vectorize(one)(dict(values)))
            return distribution.probs if likelihood.task == "classification" else distribution.mean


def _elements(name: str, values: Tensor) -> dict[str, np.ndarray]:
    """The elements of draws [draw, *shape] by name, [draw] each."""
    array = values.detach().cpu().numpy()
    indexes = list(np.ndindex(*array.shape[1:]))
    labels = [f"{name}[{', '.join(map(str, index))}]" if index else name for index in indexes]
    return {label: array[(slice(None), *index)] for label, index in zip(labels, indexes, strict=True)}


def _inputs(bnn: BayesianNetwork, x: Any) -> Tensor:
    reference = next(iter(bnn.network.parameters()))
    x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x, float))
    return x.to(reference.device, reference.dtype) if x.is_floating_point() else x.to(reference.device)


def _seed(seed: int, *path: int) -> int:
    """A seed for each replication and use: the truth, its posterior and the draws from that share no randomness."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])


def _check_simulable(bnn: BayesianNetwork) -> None:
    learned = [name for name, p in bnn.named_parameters() if p.requires_grad]
    if learned:
        raise ValueError(f"data are simulated from the prior: {', '.join(learned)} need a prior or a fixed value")
    improper = [name for name, prior in bnn.priors.items() if isinstance(prior, LogUniform)]
    if improper:
        raise ValueError(f"data are simulated from the prior, and that of {', '.join(improper)} is improper")


def _simulated(bnn: BayesianNetwork, x: Tensor, replications: int, seed: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Weights from the prior, [1, *shape], and targets given them, for each replication."""
    if replications < 2:
        raise ValueError(f"replications must be at least 2, given {replications}")
    model, pairs = copy.deepcopy(bnn).eval(), []
    for number in range(replications):
        sites = Sites()
        with torch.no_grad(), seeded(_seed(seed, number, 0), x.device):
            sites.run(model, x)  # its targets are a site like the others
        pairs.append(({name: sites.drawn[name][None] for name in bnn.sites}, sites.drawn["y"]))
    return pairs


def _compared(
    quantities: _Quantities,
    pairs: list[tuple[dict[str, Tensor], Tensor]],
    found: Iterator[Posterior | Values],
    num_samples: int,
    seed: int,
) -> xr.Dataset:
    """Where the true values fall among the draws."""
    generator = np.random.default_rng(seed)
    rows = []
    for number, ((truth, _), posterior) in enumerate(zip(pairs, found, strict=True)):
        draws = quantities(_draws(quantities.bnn, posterior, num_samples, _seed(seed, number, 3)))
        true = quantities(truth)
        row = []
        for name in quantities.names:
            below, ties = (draws[name] < true[name]).sum(), (draws[name] == true[name]).sum()
            row.append((below + generator.uniform() * (ties + 1)) / (len(draws[name]) + 1))
        rows.append(row)
    about = {"long_name": "posterior probability of less than the true value"}
    return xr.Dataset(
        {"p": (("replication", "quantity"), np.array(rows), about)},
        coords={"replication": np.arange(len(rows)), "quantity": quantities.names},
        attrs={"seed": seed},
    )


def _draws(bnn: BayesianNetwork, posterior: Posterior | Values, num_samples: int, seed: int) -> Values:
    """Draws of all sites, [draw, *shape]."""
    if isinstance(posterior, Posterior):
        if posterior.standardization is not None:
            raise ValueError(
                "the sampler's posterior was fitted to standardized data: its weights are in other units than the true "
                "ones. Fit it to the data as they are, without with_standardization(); scale x before sbc if need be"
            )
        most = min(num_samples, getattr(posterior.guide, "num_draws", num_samples))
        return {name: value.flatten(0, 1) for name, value in posterior.sample(most, seed).items()}
    if not isinstance(posterior, Mapping):
        raise TypeError(f"a sampler must return a Posterior or draws by site, not {type(posterior).__name__}")
    for name, prior in bnn.sites.items():
        if name not in posterior or posterior[name].shape[1:] != prior.shape():
            given = list(posterior[name].shape) if name in posterior else "nothing"
            needed = ", ".join(["draw", *map(str, prior.shape())])
            raise ValueError(f"a sampler's draws of {name!r} must have shape [{needed}], given {given}")
    return posterior


def _extreme(p: np.ndarray) -> int:
    """The largest |S_k| of the walk whose steps are the sides of 1/2 that p are on, from the outside in."""
    signs = np.where(p < 0.5, -1, 1)[np.argsort(-np.abs(p - 0.5))]
    return int(np.abs(np.cumsum(signs)).max())


def _walk_tail(count: int, extreme: int) -> float:
    """The probability that a simple random walk of this many steps gets as far from 0 as this, or farther."""
    inside = np.zeros(2 * extreme - 1)  # positions -extreme + 1 to extreme - 1
    inside[extreme - 1] = 1.0
    for _ in range(count):
        inside = 0.5 * (np.append(inside[1:], 0.0) + np.append(0.0, inside[:-1]))
    return float(1.0 - inside.sum())


def _draw_histogram(ax: Axes, result: xr.Dataset, tests: xr.Dataset, name: str, bins: int) -> None:
    p = result["p"].sel(quantity=name).values
    low, high = stats.binom.interval(0.99, len(p), 1.0 / bins)
    ax.axhspan(low, high, color=GRAY, alpha=0.25, lw=0)
    counts, _, _ = ax.hist(
        p, [float(edge) for edge in np.linspace(0.0, 1.0, bins + 1)], color=BLUE, edgecolor="white", linewidth=0.6
    )
    ax.axhline(len(p) / bins, color="black", lw=0.8, ls="--")
    test = tests.sel(quantity=name)
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("posterior probability below the true value", fontsize=9)
    ax.text(
        0.02,
        0.98,
        f"p-values: uniform {_short(test['ks_pvalue'])}, symmetric {_short(test['asymmetry_pvalue'])}\n"
        f"dispersion {float(test['dispersion']):.2f} (1 if uniform)",
        transform=ax.transAxes,
        va="top",
        fontsize=8,
    )
    ax.set_ylabel(f"replications (of {len(p)})", fontsize=9)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.3 * max(np.max(counts), high))  # room for the text


def _short(value: Any) -> str:
    number = float(value)
    return f"{number:.2f}" if number >= 0.01 else f"{number:.0e}"

"""`to_arviz`: a posterior, and what it says about data, as ArviZ's groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bnnzoo._vectorize import seeded
from bnnzoo.data import Dataset, as_dataset
from bnnzoo.evaluation import budget, names
from bnnzoo.evaluation.inference_data import Variable, build
from bnnzoo.evaluation.metrics import to_numpy
from bnnzoo.posterior import Posterior, _conditional
from bnnzoo.prediction import Prediction
from bnnzoo.training_data import checksum, training_tensors

_DRAWS = 200
_BLOCK = 2**25  # elements of a prediction's parameters that are held at once
_SAMPLE = ("chain", "draw")


def to_arviz(
    posterior: Posterior,
    data: Any = None,
    x: Any = None,
    *,
    num_samples: int | None = None,
    num_prior_samples: int = 100,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = 2**30,
    container: Literal["auto", "InferenceData", "DataTree"] = "auto",
) -> Any:
    """Export a posterior to ArviZ.

    Groups (D draws a chain, the same ones in all groups that have draws of the posterior; N data, M new inputs):

    | group | variables and dimensions | needs |
    |---|---|---|
    | `posterior` | each site, the guide's own too (as `z` of `guides.MNF`), [chain, draw, ...] | |
    | `sample_stats` | `log_prior`, `log_q`, and with data `log_likelihood`, `lp`, `elbo`, [chain, draw], nats | |
    | `log_likelihood` | `y` [chain, draw, obs]: of the targets of a datum together | `data` |
    | `posterior_predictive` | `y` [chain, draw, obs, ...]: one target drawn a draw | `data` |
    | `observed_data`, `constant_data` | `y` [obs, ...], `x` [obs, ...] | `data` |
    | `predictions`, `predictions_constant_data` | `y` [chain, draw, obs, ...], `x` | `x` |
    | `prior`, `prior_predictive` | each site; `y` for the inputs of `data` | proper priors (`data`) |
    | `history` | `loss`, ... [chain, epoch] | |

    Weights have dimensions named by what they connect: `layers.0.weight` is
    (`layers.0.weight_out`, `layers.0.weight_in`), labeled with the data's feature names where it takes the inputs.
    Inputs and targets, and all densities of targets, are in the data's own units. Weights and the site `noise` are
    those of the model, which saw standardized data; the attributes `x_loc`, `x_scale`, `y_loc`, `y_scale` tell how.

    In `sample_stats`, `log_likelihood` is the sum over data, `lp` = log p(y, w) = `log_prior` + `log_likelihood`, and
    `elbo` = `lp` - `log_q`, whose mean is the ELBO (in own units: it differs from the training loss by N log `y_scale`
    where targets were standardized). `log_q` and `elbo` are absent where the guide has no density (`Map`, NUTS).
    `evaluation.pareto_k` judges the fit by `elbo`; that, and leave-one-out (`az.loo(idata, reff=1.0)`: the draws of a
    guide are independent, so no effective sample size need be estimated) make sense with the data of the fit. For other
    data, `log_likelihood` scores the predictions.

    Args:
        posterior: What `fit` or `sample` returned.
        data: Inputs and targets in own units: a `Dataset`, `(x, y)`, or anything else `fit` takes.
        x: Inputs alone, in own units, to predict.
        num_samples: Draws a chain, ≥ 1. Default: 200; of a sampled posterior (NUTS) all; fewer are evenly spaced.
            Time grows with draws times data: each draw passes all of `data` and `x` through the network.
        num_prior_samples: Draws from the prior a chain, at most as many as of the posterior; 0 leaves both groups out.
        sites: Which sites to export, names or patterns such as `"layers.0.*"`. Default: all.
        seed: Fixes all draws; the posterior's are those of `posterior.sample(num_samples, seed)`.
        max_bytes: What all arrays together may take. If they would take more, fewer draws are exported, but not below
            100 before the prior groups, large inputs and the largest sites are left out; a warning says so.
        container: `"InferenceData"` or `"DataTree"` instead of what the installed ArviZ uses.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x); `evaluation.save_netcdf` writes either.

    Raises:
        ValueError: If an argument is out of range, a pattern matches no site, the data do not fit the model, or
            `max_bytes` is too small for a single draw.

    Warns:
        UserWarning: If something was left out to respect `max_bytes`.
    """
    dataset = None if data is None else as_dataset(data)
    new = None if x is None else _inputs(x)
    export = _Export(posterior, dataset, new, seed)
    stored = getattr(posterior.guide, "num_draws", None)
    if num_samples is None:
        num_samples = _DRAWS if stored is None else stored
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("num_prior_samples", num_prior_samples, 0),
        ("max_bytes", max_bytes, 1),
    ):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, given {value!r}")
    chosen = _selected(posterior, sites)
    improper = [name for name, prior in posterior.bnn.sites.items() if not _is_proper(prior)]
    plan = budget.plan(export.cost(chosen), num_samples, 0 if improper else num_prior_samples, max_bytes)
    notes = [] if plan.note is None else [plan.note]
    if plan.note is not None:
        warnings.warn(
            f"to_arviz: {plan.note}. Raise max_bytes, lower num_samples or choose sites to decide otherwise.",
            UserWarning,
            stacklevel=3,
        )
    if improper and num_prior_samples:
        notes.append(f"no prior groups: the prior of {', '.join(improper)} is improper")
    groups = export.groups(plan)
    coords = export.coords()
    if stored is not None:
        coords["draw"] = posterior.guide.pick(plan.draws).numpy()  # type: ignore[operator]
    attrs = _attributes(posterior, dataset, seed) | {"notes": "; ".join(notes) or None}
    return build(groups, coords=coords, attrs=attrs, container=container)


class _Export:
    """The pieces of one export."""

    def __init__(self, posterior: Posterior, data: Dataset | None, x: Tensor | None, seed: int) -> None:
        self.posterior, self.data, self.x, self.seed = posterior, data, x, seed
        self.y: Tensor | None = None
        if data is not None:
            self.y = posterior.bnn.likelihood.prepare(data.y).to(posterior.device)
            one = posterior.predict(data.x[:1], num_samples=1, seed=seed)
            if one.shape[3:] != self.y.shape[1:]:
                raise ValueError(
                    f"the model's targets have shape {['N', *one.shape[3:]]}, those of the data {list(self.y.shape)}"
                )

    def cost(self, sites: list[str]) -> budget.Cost:
        """What the parts take."""
        item = next(iter(self.posterior.bnn.network.parameters())).element_size()
        per_draw, per_prior_draw, inputs = 5 * 8, 0, 0
        if self.data is not None and self.y is not None:
            per_draw += (len(self.y) + self.y.numel()) * item
            per_prior_draw += self.y.numel() * item
            inputs += self.data.x.numel() * self.data.x.element_size()
        if self.x is not None:
            per_datum = self.posterior.predict(self.x[:1], num_samples=1, seed=self.seed).shape[3:].numel()
            per_draw += len(self.x) * per_datum * item
            inputs += self.x.numel() * self.x.element_size()
        shapes = _shapes(self.posterior)
        weights = {name: shapes[name].numel() * item for name in sites}
        return budget.Cost(self.posterior.chains, weights, per_draw, per_prior_draw, inputs)

    def groups(self, plan: budget.Plan) -> dict[str, dict[str, Variable]]:
        """All groups, in ArviZ's order."""
        posterior, stats = self._posterior(plan)
        groups: dict[str, dict[str, Variable]] = {"posterior": posterior}
        if self.data is not None and self.y is not None:
            log_likelihood, predictive = self._targets(plan.draws)
            total = log_likelihood.astype(np.float64).sum(-1)
            stats["log_likelihood"] = total
            stats["lp"] = stats["log_prior"] + total
            if "log_q" in stats:
                stats["elbo"] = stats["lp"] - stats["log_q"]
            groups["posterior_predictive"] = {"y": (self._y_dims(_SAMPLE), predictive)}
            groups["log_likelihood"] = {"y": ((*_SAMPLE, "obs"), log_likelihood)}
        if self.x is not None:
            drawn = self._rows(self.x, lambda part, rows, seed: [self._integers(part.sample(seed))], plan.draws)[0]
            groups["predictions"] = {"y": (self._y_dims(_SAMPLE, drawn.ndim - 3), drawn)}
        groups["sample_stats"] = {name: (_SAMPLE, values) for name, values in stats.items()}
        if plan.prior_draws:
            groups |= self._prior(plan)
        if self.data is not None and self.y is not None:
            groups["observed_data"] = {"y": (self._y_dims(()), self._integers(self.y))}
            if plan.inputs:
                groups["constant_data"] = {"x": (names.input_dims(self.data.x), to_numpy(self.data.x))}
        if self.x is not None and plan.inputs:
            groups["predictions_constant_data"] = {"x": (names.input_dims(self.x), to_numpy(self.x))}
        groups["history"] = {
            name: (("chain", "epoch"), np.asarray(values)) for name, values in self.posterior.history.items()
        }
        return groups

    def coords(self) -> dict[str, Any]:
        """Labels of dimensions."""
        epochs = max((np.shape(values)[1] for values in self.posterior.history.values()), default=0)
        labels: dict[str, Any] = {"epoch": np.arange(1, epochs + 1)}
        if self.data is not None and self.data.feature_names is not None:
            inputs = ("feature", *names.fed_by_inputs(self.posterior, self.data.x))
            labels |= {key: list(self.data.feature_names) for key in inputs}
        return labels

    def _posterior(self, plan: budget.Plan) -> tuple[dict[str, Variable], dict[str, np.ndarray]]:
        # In blocks: sites that are left out never take memory all at once.
        kept: dict[str, np.ndarray] = {}
        stats: dict[str, list[np.ndarray]] = {}
        start = 0
        for values in self.posterior._draws(plan.draws, self.seed, auxiliary=True):
            start = self._keep(kept, values, plan.sites, start, plan.draws)
            densities = {"log_prior": self.posterior.log_prior(values), "log_q": self.posterior.log_q(values)}
            for name, density in densities.items():
                if density is not None:
                    stats.setdefault(name, []).append(to_numpy(density).astype(np.float64))
        return self._named(kept), {name: np.concatenate(blocks, 1) for name, blocks in stats.items()}

    @staticmethod
    def _keep(kept: dict[str, np.ndarray], values: dict[str, Tensor], sites: list[str], start: int, draws: int) -> int:
        """Copy a block of draws to its place; returns where the next one goes."""
        for name in sites:
            block = to_numpy(values[name])
            if name not in kept:
                kept[name] = np.empty((block.shape[0], draws, *block.shape[2:]), block.dtype)
            kept[name][:, start : start + block.shape[1]] = block
        return start + next(iter(values.values())).shape[1]

    def _targets(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.data is not None
        y = self.y
        assert y is not None

        def both(part: Prediction, rows: slice, seed: int) -> list[np.ndarray]:
            density = part.distribution.log_prob(y[rows])
            return [
                to_numpy(density.flatten(3).sum(-1) if density.dim() > 3 else density),
                self._integers(part.sample(seed)),
            ]

        log_likelihood, predictive = self._rows(self.data.x, both, draws)
        return log_likelihood, predictive

    def _rows(
        self, x: Tensor, fn: Callable[[Prediction, slice, int], list[np.ndarray]], draws: int
    ) -> list[np.ndarray]:
        """`fn` of the predictions for blocks of rows, joined: all draws of all rows at once may be too large."""
        parts = []
        for number, rows in enumerate(self._blocks(x, draws)):
            prediction = self.posterior.predict(x[rows], num_samples=draws, seed=self.seed)
            parts.append(fn(prediction, rows, _seed(self.seed, 0, number)))
        return [np.concatenate(each, 2) for each in zip(*parts, strict=True)]

    def _blocks(self, x: Tensor, draws: int) -> Iterator[slice]:
        one = self.posterior.predict(x[:1], num_samples=1, seed=self.seed)
        per_row = max(v.shape[2:].numel() for v in one.parameters.values()) * draws * self.posterior.chains
        step = max(1, _BLOCK // per_row)
        return (slice(start, start + step) for start in range(0, len(x), step))

    def _prior(self, plan: budget.Plan) -> dict[str, dict[str, Variable]]:
        posterior = self.posterior
        kept: dict[str, np.ndarray] = {}
        predictive: list[np.ndarray] = []
        elements = posterior.chains * sum(_numel(prior) for prior in posterior.bnn.sites.values())
        step = max(1, min(plan.prior_draws, 2**22 // elements))
        for start in range(0, plan.prior_draws, step):
            size = min(step, plan.prior_draws - start)
            with seeded(_seed(self.seed, 1, start), posterior.device):
                values = {name: prior.sample((posterior.chains, size)) for name, prior in posterior.bnn.sites.items()}
            self._keep(kept, values, [site for site in plan.sites if site in values], start, plan.prior_draws)
            if self.data is not None:
                drawn = [
                    self._integers(
                        _predict_from(posterior, values, self.data.x[rows]).sample(_seed(self.seed, 2 + start, i))
                    )
                    for i, rows in enumerate(self._blocks(self.data.x, size))
                ]
                predictive.append(np.concatenate(drawn, 2))
        groups = {"prior": self._named(kept)}
        if predictive:
            groups["prior_predictive"] = {"y": (self._y_dims(_SAMPLE), np.concatenate(predictive, 1))}
        return groups

    def _named(self, arrays: dict[str, np.ndarray]) -> dict[str, Variable]:
        network = self.posterior.bnn.network
        variables: dict[str, Variable] = {}
        for name, values in arrays.items():
            variables[names.legal(name)] = ((*_SAMPLE, *names.site_dims(network, name, values.shape[2:])), values)
        return variables

    def _y_dims(self, leading: tuple[str, ...], event: int | None = None) -> tuple[str, ...]:
        if event is None:
            assert self.y is not None
            event = self.y.dim() - 1
        return (*leading, "obs", *names.event_dims(event))

    def _integers(self, y: Tensor) -> np.ndarray:
        """Targets; whole numbers as such, which ArviZ's plots tell from continuous ones.

        A wide prior on a log rate predicts counts beyond any integer: those stay as they are.
        """
        values = to_numpy(y)
        if self.posterior.bnn.likelihood.task == "regression" or np.abs(values).max() > np.iinfo(np.int32).max:
            return values
        return values.astype(np.int32)


def _predict_from(posterior: Posterior, values: dict[str, Tensor], x: Tensor) -> Prediction:
    """The prediction by given weights, [chain, draw, ...], in own units."""
    likelihood, standardization = posterior.bnn.likelihood, posterior.standardization
    parameters = posterior._map(_conditional, values, posterior._inputs(x))
    if standardization is not None and likelihood.standardizes_targets:
        like = next(iter(parameters.values()))
        parameters = likelihood.rescale(parameters, *(s.to(like) for s in standardization.target_scale()))
    return Prediction(parameters, likelihood.family, likelihood.task)


def _numel(prior: Any) -> int:
    return (prior.batch_shape + prior.event_shape).numel()


def _is_proper(prior: Any) -> bool:
    try:
        with seeded(0):
            prior.sample()
    except NotImplementedError:
        return False
    return True


def _shapes(posterior: Posterior) -> dict[str, torch.Size]:
    """Shapes of everything that a draw holds: the model's sites, then the guide's own."""
    shapes = {name: prior.batch_shape + prior.event_shape for name, prior in posterior.bnn.sites.items()}
    return {**shapes, **getattr(posterior.guide, "auxiliary", {})}


def _selected(posterior: Posterior, sites: str | Sequence[str] | None) -> list[str]:
    known = list(_shapes(posterior))
    if sites is None:
        return known
    patterns = [sites] if isinstance(sites, str) else list(sites)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(f"sites: {pattern!r} matches no site; they are {', '.join(known)}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _inputs(x: Any) -> Tensor:
    x = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    return x.to(torch.get_default_dtype()) if x.dtype == torch.float64 else x


def _seed(seed: int, *path: int) -> int:
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])


def _attributes(posterior: Posterior, data: Dataset | None, seed: int) -> dict[str, Any]:
    from bnnzoo import __version__  # not at the top: the package imports this module

    attrs: dict[str, Any] = {
        "inference_library_version": __version__,
        "guide": type(posterior.guide).__name__,
        "network": type(posterior.bnn.network).__name__,
        "likelihood": repr(posterior.bnn.likelihood),
        "objective": posterior.info.get("objective"),
        "seed": posterior.info.get("seed"),
        "export_seed": seed,
        "fit": {name: value for name, value in posterior.info.items()},
        "units": "x, y and densities of y: own units; weights and noise: of the model, in standardized units where "
        "x_loc, x_scale, y_loc, y_scale are given",
    }
    if data is not None:
        attrs["data"] = data.name
        fitted = posterior.info.get("num_data")
        attrs |= {"num_data": len(data), "num_data_fitted": fitted}
        if fitted is None:
            same = None
        else:
            same = (
                checksum(*training_tensors(posterior.bnn, data, posterior.standardization))
                == posterior.info["checksum"]
            )
        attrs["fitted_to_these_data"] = same
    if posterior.standardization is not None:
        for name in ("x_loc", "x_scale", "y_loc", "y_scale"):
            value = getattr(posterior.standardization, name)
            attrs[name] = None if value is None else np.atleast_1d(value.numpy()).reshape(-1)
    return attrs

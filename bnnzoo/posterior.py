"""`Posterior`: a fitted guide that samples, predicts, saves and exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from bnnzoo import densities
from bnnzoo._vectorize import CountingBytes, Pair, evaluating, pyro_settings, seeded, vectorize
from bnnzoo.chains import State, hold
from bnnzoo.guides import Empirical
from bnnzoo.network import BayesianNetwork
from bnnzoo.objectives import Sites
from bnnzoo.prediction import Method, Prediction, Summary, of_chain, summarize

if TYPE_CHECKING:
    from bnnzoo.data import Standardization
    from bnnzoo.sparsity import Sparsity

#: Elements of weights that are drawn together. Fixed, so that draws do not depend on how much memory may be used.
_DRAWN_TOGETHER = 2**20
#: Elements that a forward pass of several draws works on at once, where memory allows more.
_WORKING_SET = 2**26


class Posterior:
    """A fitted guide, of one or several chains; self-contained.

    Made by `fit`, `sample` and `load`.

    Args:
        pair: Model and guide.
        parameters: Their trained parameters, stacked, [chain, ...].
        buffers: Their buffers, stacked, [chain, ...].
        standardization: What `fit` did to the data, undone in predictions; None if nothing.
        history: Training curves, [chain, epoch].
        info: How the posterior came about: numbers, strings, lists and dicts.

    Attributes:
        history: `{"loss": [chain, epoch], ...}`; the loss is the objective, summed over the data set.
        info: Settings and what happened.
        standardization: See above. Weights, and a noise scale, live in standardized space; predictions do not.
    """

    def __init__(
        self,
        pair: Pair,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        *,
        standardization: Standardization | None = None,
        history: dict[str, np.ndarray] | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        self._pair = pair
        self._parameters = parameters
        self._buffers = buffers
        self.standardization = standardization
        self.history = history or {}
        self.info = info or {}

    @property
    def bnn(self) -> BayesianNetwork:
        """The model."""
        return self._pair.model

    @property
    def guide(self) -> nn.Module:
        """The guide; its parameters are those of no particular chain, unless there is one only."""
        return self._pair.guide

    @property
    def chains(self) -> int:
        """Number of chains."""
        return len(next(iter((self._parameters or self._buffers).values())))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter((self._parameters or self._buffers).values())).device

    def __repr__(self) -> str:
        network = type(self.bnn.network).__name__
        return f"Posterior({type(self.guide).__name__} of {network}, {self.chains} chains, {self._size()} weights)"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the chains' parameters and buffers, [chain, ...]."""
        return (
            {name: value.detach().clone() for name, value in self._parameters.items()},
            {name: value.detach().clone() for name, value in self._buffers.items()},
        )

    def chain(self, index: int) -> Posterior:
        """The posterior of one chain alone; this one stays as it is.

        Args:
            index: The chain, from 0.

        Raises:
            IndexError: If there is no such chain.
        """
        if not 0 <= index < self.chains:
            raise IndexError(f"there is no chain {index}; chains are 0 to {self.chains - 1}")
        parameters, buffers = (of_chain(part, index) for part in self.state())
        alone = self._changed(self._pair.copy(), (parameters, buffers))
        alone.history = {name: curve[index : index + 1] for name, curve in self.history.items()}
        return alone

    def to(self, device: torch.device | str) -> Posterior:
        """Move the posterior to a device, in place."""
        self._pair.to(device)
        self._parameters = {name: value.to(device) for name, value in self._parameters.items()}
        self._buffers = {name: value.to(device) for name, value in self._buffers.items()}
        return self

    def fit(self, data: Any, **settings: Any) -> Posterior:
        """Go on training from here on data in the same units; arguments as of `bnnzoo.fit`, chains as they are.

        The data are standardized as they were in the first fit. The objective is the default one unless it is given
        again, and its epochs, which an annealed `kl_weight` counts, begin at 0.
        """
        from bnnzoo.training import resume

        return resume(self, data, **settings)

    def sample(self, num_samples: int | None = None, seed: int = 0, *, auxiliary: bool = False) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            num_samples: Draws a chain, ≥ 1; default 1000. Of a sampled posterior (`bnnzoo.sample`) as many are picked,
                evenly spaced; default at most as many as it holds.
            seed: Fixes the draws; `predict` with the same seed and number uses the same ones.
            auxiliary: Also return the guide's own sites, such as the mixing variables of `guides.MNF`.

        Returns:
            For each site, [chain, draw, *shape].

        Raises:
            ValueError: If `num_samples` is below 1, or above the number of draws that a sampled posterior holds.
        """
        chunks = list(self._draws(self._number(num_samples, 1000), seed, auxiliary=auxiliary))
        return {name: torch.cat([chunk[name] for chunk in chunks], dim=1) for name in chunks[0]}

    def predict(
        self,
        x: Any,
        num_samples: int | None = None,
        seed: int = 0,
        max_memory: int = 2**30,
        *,
        method: Method | None = None,
        **moments: Any,
    ) -> Prediction:
        """Predict targets in their own units, vectorized over chains and draws.

        By draws of the weights, or by their moments (`method="moments"`, for guides whose weights are independent
        Gaussians, points, or points under dropout: `MomentPropagation`, `MeanField`, `Dropout`, `Map` and others): mean
        and variance go through the network in one pass a chain, nothing is drawn, and the result is a
        `MomentPrediction`, which has one Gaussian of the outputs in place of the draws. Its variances are those of
        `bnnzoo.moments`, which take the units of a layer for independent. The network's own dropout layers are off, as
        they are for draws.

        Args:
            x: Inputs in their own units, [N, ...]; a tensor that requires gradients gets them.
            num_samples: Draws a chain, ≥ 1; default 200, of a sampled posterior at most as many as it holds.
            seed: Fixes the draws, see `sample`.
            max_memory: Bytes that the result and the work may take together; the work is cut into blocks of draws and
                rows that fit.
            method: `"draws"` or `"moments"`; default `"draws"` where `num_samples` is given, else the guide's own way
                (`Guide.prediction`), which is moments for `guides.MomentPropagation` only.
            **moments: Of moments:

                - `softmax`: how class probabilities come of Gaussian logits, `"normal"`, `"logistic"` or `"simplified"`
                  (`bnnzoo.moments.softmax.log_softmax`); by default by quasi-Monte Carlo with 1024 fixed points, whose
                  error is 2e-3 for ten logits of standard deviation 3;
                - `covariance`: `"diagonal"`, `"sensitivity"` or `"full"`, as of `moments.propagate`; default
                  `"diagonal"`;
                - `approximation`, `fallback`: see `bnnzoo.moments.options`.

                Those that `guides.MomentPropagation` has are its own by default.

        Raises:
            ValueError: If `x` does not fit the network or is not finite, an option is unknown or belongs to the other
                method, the guide has no moments, or the draws alone exceed `max_memory`: `summarize` needs no room for
                them.
            TypeError: If the likelihood is none of bnnzoo's, for moments.
            NoRuleError: If an operation of the network has no rule for moments, and there is no fallback.
        """
        x = self._inputs(x)
        if method not in (None, *get_args(Method)):
            raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))} or None, not {method!r}")
        if method is None:
            method = "draws" if num_samples is not None else getattr(self.guide, "prediction", "draws")
        if method == "moments":
            if num_samples is not None:
                raise ValueError(f"moments draw nothing: num_samples={num_samples} belongs to method='draws'")
            return self._by_moments(x, max_memory, moments)
        if moments:
            raise ValueError(f"{next(iter(moments))} belongs to method='moments'")
        num_samples = self._number(num_samples, 200)
        # Of two rows a parameter has two values, or one that all rows share.
        few = self._conditional_once(x, rows=2)
        each = [v.element_size() * v.numel() * (len(x) if len(v) > 1 else 2) // 2 for v in few.values()]
        result = self.chains * num_samples * sum(each)
        if 2 * result > max_memory:
            raise ValueError(
                f"the predictions of {self.chains} x {num_samples} draws for {len(x)} inputs take "
                f"{result / 2**20:.0f} MiB, which max_memory={max_memory} has no room for: raise it, ask for fewer "
                "draws, or use summarize(), which keeps moments only"
            )
        parameters: dict[str, Tensor] = {}
        done = 0
        for part in self._predictions(x, num_samples, seed, max_memory - result):
            size = part.shape[1]
            if size == num_samples:
                return part
            for name, value in part.parameters.items():
                # Written into one tensor, for the heap would not shrink below small parts that live on.
                if name not in parameters:
                    parameters[name] = value.new_empty(value.shape[0], num_samples, *value.shape[2:])
                parameters[name][:, done : done + size] = value
            done += size
        return Prediction(parameters, part.family, part.task)

    def summarize(self, x: Any, num_samples: int | None = None, seed: int = 0, max_memory: int = 2**30) -> Summary:
        """The moments of `predict(x, ...)` without its draws: memory does not grow with their number.

        Args:
            x: Inputs in their own units, [N, ...].
            num_samples: Draws a chain, ≥ 1; default 200, of a sampled posterior at most as many as it holds.
            seed: Fixes the draws, see `sample`.
            max_memory: Bytes that the work may take.
        """
        return summarize(self._predictions(self._inputs(x), self._number(num_samples, 200), seed, max_memory))

    def log_q(self, samples: dict[str, Tensor]) -> Tensor | None:
        """Log density of draws under the guide, [chain, draw]; None if it has none (a point, or stored draws).

        Args:
            samples: As `sample` returns them.
        """
        return densities.log_q(self, samples)

    def log_prior(self, samples: dict[str, Tensor]) -> Tensor:
        """Log density of draws under the prior, [chain, draw].

        Args:
            samples: As `sample` returns them.
        """
        return densities.log_prior(self, samples)

    def sparsity(self, threshold: float = 5.0) -> Sparsity:
        """Share of weights whose signal drowns in their noise, by site and in all.

        A weight with mean μ and standard deviation σ counts where `log σ² - log μ² ≥ threshold`, that is where its
        signal-to-noise ratio |μ| / σ is at most `exp(-threshold / 2)`: 0.08 by default, as in the MNF paper (Louizos &
        Welling 2017, section 4.1). A weight that `prune` has fixed at 0 counts at any threshold. Under
        `priors.LogUniform` the weights that the data can do without tend there.

        Args:
            threshold: On the logarithm of `σ² / μ²`.

        Raises:
            TypeError: If the guide is no `guides.MeanField`: others have no mean and standard deviation a weight.
        """
        from bnnzoo.sparsity import sparsity

        return sparsity(self, threshold)

    def prune(self, threshold: float = 5.0) -> Posterior:
        """A new posterior in which the weights that `sparsity(threshold)` counts are 0 in every draw.

        Each chain is pruned by itself. Densities (`log_q`, KL divergences) are those of the weights that are kept, and
        further training (`fit`) trains those alone.

        Args:
            threshold: On `log σ² - log μ²`, see `sparsity`.

        Returns:
            The pruned posterior, its guide a `guides.PrunedMeanField`, the shares in its `info["pruned"]`; this one
            stays as it is.

        Raises:
            TypeError: If the guide is no `guides.MeanField`, or a `guides.MomentPropagation`.
        """
        from bnnzoo.sparsity import prune

        return prune(self, threshold)

    def tune_noise(self, data: Any, by: str = "crps", num_samples: int | None = None, seed: int = 0) -> Posterior:
        """A new posterior whose Gaussian noise scale is the best one for held-out data, see `bnnzoo.noise.tune_noise`.

        Args:
            data: Validation data in their own units: whatever `fit` takes. Not those of the fit, whose errors are too
                small.
            by: `"crps"` or `"pll"`.
            num_samples: Draws a chain, see `predict`.
            seed: Fixes the draws.
        """
        from bnnzoo.noise import tune_noise

        return tune_noise(self, data, by, num_samples, seed)

    def to_arviz(self, data: Any = None, **settings: Any) -> Any:
        """Export to ArviZ: `InferenceData` (0.x) or `DataTree` (1.x); see `bnnzoo.evaluation.to_arviz`."""
        from bnnzoo.evaluation import to_arviz

        return to_arviz(self, data, **settings)

    def save(self, path: str | Path) -> None:
        """Write the posterior to a file that `bnnzoo.load` reads, in any process and on any device.

        Written beside and renamed: a failed write leaves no half-written file.

        Raises:
            OSError: If the folder is missing or not writable, or the disk is full.
        """
        from bnnzoo.serialization import save

        save(self, Path(path))

    def _changed(self, pair: Pair, state: State, **info: Any) -> Posterior:
        """A posterior made of this one: other programs and values, and what `info` says of them."""
        hold(pair, state)
        return Posterior(
            pair,
            *state,
            standardization=self.standardization,
            history=self.history,
            info={**self.info, **info},
        )

    def _by_moments(self, x: Tensor, max_memory: int, settings: dict[str, Any]) -> Prediction:
        from bnnzoo import moment_prediction

        unknown = settings.keys() - moment_prediction.SETTINGS
        if unknown:
            raise ValueError(
                f"predict has no option {min(unknown)!r}; of moments: {', '.join(moment_prediction.SETTINGS)}"
            )
        self._conditional_once(x)
        return moment_prediction.predict(self, x, max_memory, **settings)

    def _number(self, num_samples: int | None, default: int) -> int:
        if num_samples is not None:
            return num_samples
        return min(default, self.guide.num_draws) if isinstance(self.guide, Empirical) else default

    def _size(self) -> int:
        return sum(prior.shape().numel() for prior in self.bnn.sites.values())

    def _inputs(self, x: Any) -> Tensor:
        reference = next(iter(self.bnn.network.parameters()))
        # As for training: integers are inputs of their own kind (of an embedding) only where they come as a tensor.
        x = x.to(self.device) if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x, float), device=self.device)
        if x.dtype in (torch.bool, torch.uint8):
            x = x.to(reference.dtype)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"x has {int((~x.isfinite()).sum())} NaN or infinite values")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError("x is empty")
        if self.standardization is not None:
            x = self.standardization.x(x)
        return x.to(reference.dtype) if x.is_floating_point() else x

    def _draws(
        self, num_samples: int, seed: int, most: int | None = None, auxiliary: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Blocks of draws, {site: [chain, block, ...]}; `most` cuts them smaller without changing the draws."""
        for start, size, own in self._blocks_of_draws(num_samples, seed):
            if isinstance(self.guide, Empirical):
                index = self.guide.pick(num_samples)[start : start + size]
                values = {n: self._buffers[f"guide.{k}"][:, index] for n, k in self.guide.keys.items()}
            else:
                values = self._draw(size, own, auxiliary)
            step = size if most is None else most
            for first in range(0, size, step):
                yield {name: value[:, first : first + step] for name, value in values.items()}

    def _blocks_of_draws(self, num_samples: int, seed: int) -> Iterator[tuple[int, int, int]]:
        """Draws that are made together: the first one's number, how many, and the seed that is theirs."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        chunk = self._drawn_together()
        for number, start in enumerate(range(0, num_samples, chunk)):
            own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            yield start, min(chunk, num_samples - start), own

    def _drawn_together(self) -> int:
        return max(1, min(256, _DRAWN_TOGETHER // (self.chains * self._size())))

    def _draw(self, size: int, seed: int, auxiliary: bool) -> dict[str, Tensor]:
        names = list(self.bnn.sites)
        if auxiliary:
            names += list(getattr(self.guide, "auxiliary", ()))

        def draw(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
            sites = Sites()
            sites.run(guide, None)  # a guide of weights takes the model's arguments and ignores them
            return {name: sites.drawn[name] for name in names}

        return self._map_draws(draw, size, seed)

    def _map_draws(self, fn: Any, size: int, seed: int) -> Any:
        """`fn(model, guide)` for every chain, as many times: what is drawn in it differs."""
        draws = torch.zeros(self.chains, size, device=self.device)
        with seeded(seed, self.device):
            return self._map(lambda model, guide, _: fn(model, guide), draws)

    def _map(self, fn: Any, values: Any, *shared: Any) -> Any:
        """`fn(model, guide, value, *shared)` for every chain and draw of values, [chain, draw, ...]."""

        def call(state: tuple[dict[str, Tensor], ...], value: Any, draw: Tensor, *rest: Any) -> Any:
            return functional_call(self._pair, state, (fn, value, *rest))

        rest = (None,) * len(shared)
        # What is the same in all draws (a point's weights) is not mapped over them: what depends on nothing else is
        # computed once. `draw` maps the rest, should all be the same.
        over_draws = tree_map(lambda value: None if _is_repeated(value) else 0, values)
        once = tree_map(lambda value: value[:, 0] if _is_repeated(value) else value, values)
        draw = torch.zeros(tree_leaves(values)[0].shape[:2], device=self.device)
        mapped = vectorize(call, in_dims=(None, over_draws, 0, *rest))
        over_chains = vectorize(mapped, in_dims=(0, 0, 0, *rest))
        grad = any(isinstance(v, Tensor) and v.requires_grad for v in shared)
        with evaluating(self._pair), torch.set_grad_enabled(grad), pyro_settings(self._pair):
            return over_chains((self._parameters, self._live_buffers()), once, draw, *shared)

    def _map_chains(self, fn: Any, *shared: Any) -> Any:
        """`fn(model, guide, *shared)` for every chain."""

        def call(state: tuple[dict[str, Tensor], ...], *rest: Any) -> Any:
            return functional_call(self._pair, state, (fn, *rest))

        grad = any(isinstance(v, Tensor) and v.requires_grad for v in shared)
        over_chains = vectorize(call, in_dims=(0, *(None,) * len(shared)))
        with evaluating(self._pair), torch.set_grad_enabled(grad), pyro_settings(self._pair):
            return over_chains((self._parameters, self._live_buffers()), *shared)

    def _live_buffers(self) -> dict[str, Tensor]:
        # Stored draws are picked before the map: mapping over them as buffers would carry them all along.
        if isinstance(self.guide, Empirical):
            return {name: value for name, value in self._buffers.items() if not name.startswith("guide.")}
        return self._buffers

    def _predictions(self, x: Tensor, num_samples: int, seed: int, memory: int) -> Iterator[Prediction]:
        """Predictions of all rows by blocks of draws."""
        draws, rows = self._block(x, memory, num_samples)
        for values in self._draws(num_samples, seed, draws):
            parameters = self._map(_conditional, values, x[:rows])
            if rows < len(x):
                # Into one tensor, as in `predict`.
                parameters = {name: _lengthened(value, rows, len(x)) for name, value in parameters.items()}
                for start in range(rows, len(x), rows):
                    part = self._map(_conditional, values, x[start : start + rows])
                    for name, value in part.items():
                        if parameters[name].shape[2] > 1:  # else it is shared by all rows
                            parameters[name][:, :, start : start + rows] = value
            yield Prediction(self._rescaled(parameters), self.bnn.likelihood.family, self.bnn.likelihood.task)

    def _rescaled(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        likelihood, units = self.bnn.likelihood, self.standardization
        if units is None or units.y_loc is None or units.y_scale is None or not likelihood.standardizes_targets:
            return parameters
        like = next(iter(parameters.values()))
        return likelihood.rescale(parameters, units.y_loc.to(like), units.y_scale.to(like))

    def _block(self, x: Tensor, memory: int, num_samples: int) -> tuple[int, int]:
        """How many draws and rows one pass may take."""
        memory = memory * 3 // 4  # allocators round up, and keep some
        with CountingBytes() as counting:
            self._conditional_once(x[:1])
        # Mapped operations make more tensors than plain ones, two or three times as many. Counting those takes two more
        # passes, which are saved where there is room anyway.
        activations = 4 * counting.bytes * self.chains
        weights = 3 * self.chains * self._size() * x.element_size()
        together = min(num_samples, self._drawn_together())
        if together * (weights + len(x) * activations) <= min(memory, 4 * _WORKING_SET):
            return together, len(x)
        activations = max(1, self._mapped_bytes(x, 2) - self._mapped_bytes(x, 1))
        if activations + weights > memory:
            raise ValueError(
                f"max_memory is too small: one draw of {self.chains} chains for one input needs "
                f"{(activations + weights) / 2**20:.1f} MiB of work, and {memory / 2**20:.1f} MiB are left for it"
            )
        memory = min(memory, 4 * _WORKING_SET)
        draws = max(1, min(together, memory // (weights + min(len(x), 64) * activations)))
        rows = max(1, (memory // draws - weights) // activations)
        return draws, min(rows, len(x))

    def _mapped_bytes(self, x: Tensor, rows: int) -> int:
        """Bytes that a pass of one draw of every chain makes for this many rows."""
        values = {n: v.expand(self.chains, 1, *v.shape) for n, v in self._own_values().items()}
        with CountingBytes() as counting:
            self._map(_conditional, values, x[:1].expand(rows, *x.shape[1:]))
        return counting.bytes

    def _own_values(self) -> dict[str, Tensor]:
        """Values of all sites: the network's own weights."""
        values = self.bnn.initial_values()
        values |= {name: torch.ones(prior.shape()) for name, prior in self.bnn.likelihood.sites().items()}
        return {name: value.to(self.device) for name, value in values.items()}

    def _conditional_once(self, x: Tensor, rows: int = 1) -> dict[str, Tensor]:
        """The conditional's parameters for the network's own weights and the first rows, to learn sizes; checks `x`."""
        try:
            with evaluating(self._pair), torch.no_grad():
                return _conditional(self.bnn, self.guide, self._own_values(), x[:rows])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"the network fails on inputs of shape {list(x.shape)}: {error}") from error


def _is_repeated(value: Tensor) -> bool:
    """Whether values [chain, draw, ...] are one for all draws, as far as memory tells."""
    return value.shape[1] > 1 and value.stride(1) == 0


def _lengthened(value: Tensor, rows: int, total: int) -> Tensor:
    """Room for `total` rows, the first ones filled, [chain, draw, rows, ...]; a value shared by all stays one row."""
    if value.shape[2] == 1 and rows > 1:
        return value
    whole = value.new_empty(*value.shape[:2], total, *value.shape[3:])
    whole[:, :, :rows] = value
    return whole


def _conditional(model: BayesianNetwork, guide: nn.Module, values: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Parameters of the targets' distribution for one draw."""
    likelihood = model.likelihood
    latent = {name: values[name] for name in likelihood.sites()}
    return likelihood.conditional(model.output(values, x), **latent)

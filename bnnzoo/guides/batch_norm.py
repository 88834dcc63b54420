"""`BatchNorm`: Monte Carlo batch normalization."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnnzoo._vectorize import Pair
from bnnzoo.guides.batch_statistics import Statistics, describe, gaussian_form, of_batches, random_batches
from bnnzoo.guides.map import Map
from bnnzoo.likelihoods import Categorical, Gaussian, Likelihood, Poisson
from bnnzoo.network import BayesianNetwork
from bnnzoo.priors import Normal
from bnnzoo.weights import Layout

if TYPE_CHECKING:
    from bnnzoo.data import Dataset
    from bnnzoo.posterior import Posterior

STATISTICS = ("batches", "gaussian")
"""Where draws of the batch statistics come from."""

#: Rows that the noise of an ordinary trained network is found on.
_NOISE_ROWS = 10_000


class BatchNorm(Map):
    r"""Monte Carlo batch normalization (MCBN; Teye, Azizpour & Smith 2018): training with batch norm is the inference.

    The weights are a point. What is random is by what the batch normalization layers normalize: the mean and standard
    deviation of every unit's input, ω, with the distribution that random training batches give them. In training the
    batch itself is the draw: the network's layers, in train mode, normalize by it, and the ELBO is the usual loss with
    the prior as weight decay (`-log p(y | w) - log p(w)`, as for `Map`). After training the guide draws ω as sites of
    its own, `<path>.mean` and `<path>.std` of each layer, [C] each (the standard deviation with divisor M, the batch
    size, without the layer's eps), the same for all rows of a query. The network is not changed: in eval mode its
    layers normalize by their running statistics, and the guide hands over those values of a layer's `weight` and
    `bias` with which that comes to

        weight (h - mean) / sqrt(std² + eps) + bias.

    So `posterior.sample()` holds, for these sites, the values that the network was run with in each draw.

    `fit` lets the guide collect the statistics from the training data (see `collect`): after that, as after `save` and
    `load`, predictions need no training data. Until then ω is the running statistics: ordinary batch norm.

    Draws are collected with the network in eval mode: other layers that are random in training (dropout) are not.
    The batch size of training is a parameter of the posterior: the smaller, the wider it is. Under weight decay λ and
    the paper's simplifications (section 3.3) the implied prior is flat on means and N(0, 1/(2Nτλ)) on standard
    deviations; it takes part in nothing here, for ω is not fitted.

    Args:
        bnn: The model; its network must have BatchNorm1d, 2d or 3d layers, with running statistics, whose weights and
            biases have priors. The layers' inputs may have any number of positions (images).
        statistics: `"batches"`: a draw of ω is that of one of `num_statistics` random training batches, all layers
            together, which keeps the correlations. `"gaussian"`: independent Gaussians for all units, from moments of
            the whole training set, see `bnnzoo.guides.batch_statistics.gaussian_form`; standard deviations are drawn
            folded at 0, which no draw comes near unless a unit's distribution has heavy tails. It is the paper's form,
            close for the first layer. What follows varies less in batches, whose layers have normalized them: in a
            second layer the form's means had several times the spread (`bnnzoo reproduce mcbn/figure-3`).
        num_statistics: Number S ≥ 1 of batches of `"batches"`. Draws pick one at random, and so repeat some.

    Attributes:
        means: Batch means of all layers side by side, [S, C]; for `"gaussian"` their mean, [C].
        stds: Batch standard deviations, [S, C]; for `"gaussian"` their center, [C].
        mean_scales: Only for `"gaussian"`: standard deviations of the batch means, [C].
        std_scales: Only for `"gaussian"`: standard deviations of the batch standard deviations, [C].

    Raises:
        ValueError: If the network has no batch normalization, a layer has no weight, bias or running statistics, these
            have no prior or are shared, or an argument is out of range.
    """

    one_draw_a_batch: ClassVar[bool] = True

    def __init__(self, bnn: BayesianNetwork, statistics: str = "batches", num_statistics: int = 200) -> None:
        super().__init__(bnn)
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(map(repr, STATISTICS))}, not {statistics!r}")
        if not isinstance(num_statistics, int) or isinstance(num_statistics, bool) or num_statistics < 1:
            raise ValueError(f"num_statistics must be an integer of at least 1, not {num_statistics!r}")
        self.statistics = statistics
        self.num_statistics = num_statistics
        layers = _checked_layers(bnn)
        self._channels = Layout({path: torch.Size([layer.num_features]) for path, layer in layers.items()})
        mean, std = self._running()
        shape = [num_statistics, len(mean)] if statistics == "batches" else [len(mean)]
        self.register_buffer("means", mean.expand(shape).clone())
        self.register_buffer("stds", std.expand(shape).clone())
        if statistics == "gaussian":
            self.register_buffer("mean_scales", torch.zeros_like(mean))
            self.register_buffer("std_scales", torch.zeros_like(std))
        self.register_buffer("collected", torch.tensor(False, device=mean.device))

    @property
    def auxiliary(self) -> dict[str, torch.Size]:
        """Shapes of the batch statistics' sites, by name."""
        sites = zip(self._channels.names, self._channels.shapes, strict=True)
        return {_site(path, name): shape for path, shape in sites for name in ("mean", "std")}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments and returns a value for each site of the model.

        In training the weights alone, the point; else statistics are drawn, and set into layers' weights and biases.
        """
        if self.training:
            return super().forward(*args, **kwargs)
        sites = self.distributions()
        means, stds = (self._channels.split(flat) for flat in self._drawn())
        for (path, layer), mean, std in zip(self._layers().items(), means, stds, strict=True):
            mean, std = (
                pyro.sample(_site(path, name), dist.Delta(value, event_dim=1), infer={"is_auxiliary": True})
                for name, value in (("mean", mean), ("std", std))
            )
            weight, bias = _site(path, "weight"), _site(path, "bias")
            values = _equivalent(layer, sites[weight].mean, sites[bias].mean, mean, std)
            sites |= {name: dist.Delta(v, event_dim=1) for name, v in zip((weight, bias), values, strict=True)}
        return {name: pyro.sample(name, q) for name, q in sites.items()}

    def collect(self, x: Tensor, y: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Statistics of the training data for the weights as they are, for one chain.

        `"batches"` passes `num_statistics` batches through the network, all layers normalizing by the batch's own
        statistics; `"gaussian"` passes all data once for every layer, on average to the network's middle.

        Args:
            x: All training inputs as the model sees them, [N, ...].
            y: All training targets; not used.
            batch_size: Rows M of a training batch, at most N.

        Returns:
            New values of the guide's buffers, by name.

        Raises:
            ValueError: If a layer runs more than once in a pass.
        """
        values = {name: q.mean for name, q in self.distributions().items()}
        layers = self._layers()

        def run(rows: Tensor) -> Tensor:
            return self.model.output(values, rows)

        with torch.no_grad():
            if self.statistics == "batches":
                batches = random_batches(len(x), batch_size, self.num_statistics)
                found = of_batches(run, layers, x, batches)
            else:
                found = gaussian_form(run, layers, x, batch_size)
            for path in layers.keys() - found.keys():  # a layer that does not run has its running statistics
                found[path] = self._idle(layers[path])
            collected = {
                name: torch.cat([getattr(found[path], name) for path in layers], -1)
                for name, _ in self.named_buffers()
                if name != "collected"
            }
        return {**collected, "collected": torch.ones_like(self.collected)}

    @classmethod
    def from_trained(
        cls,
        network: nn.Module,
        data: Any,
        *,
        likelihood: Likelihood | None = None,
        batch_size: int | None = None,
        statistics: str = "batches",
        num_statistics: int = 200,
        seed: int = 0,
    ) -> Posterior:
        """The posterior that an ordinary trained network with batch norm is: nothing is trained.

        The network is copied; layers with `affine=False` get weights 1 and biases 0 in the copy. Sites are the weights
        and biases of its batch normalization layers, with a standard normal prior; everything else is a parameter.

        Args:
            network: The trained network, its running statistics included. Its mode does not matter.
            data: What it was trained on, or a large sample of it: whatever `fit` takes. It must come in the units that
                the network was trained in, or carry the standardization that it was trained under.
            likelihood: How targets are distributed given the network's outputs. Default, by the data's task:
                `Categorical()`, `Poisson()`, or `Gaussian` with a noise scale for each target that minimizes the CRPS
                of these data (of at most 10,000 rows): training data, so that it tends to be too small. Tune it on data
                held out: `posterior.tune_noise(validation)`.
            batch_size: Rows of a batch in the network's training; default the smaller of 100 and the number of data.
            statistics: As for the class.
            num_statistics: As for the class.
            seed: Fixes the batches; torch's global generators are left as they were.

        Returns:
            A posterior of one chain.

        Raises:
            ValueError: As for the class, or if the data do not fit the network or the likelihood.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> network = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
            >>> x, y = torch.randn(64, 2), torch.randn(64)  # and the network trained on these, in your own way
            >>> posterior = BatchNorm.from_trained(network, (x, y), batch_size=32)
            >>> posterior.predict(x, num_samples=50).std.shape
            torch.Size([64])
        """
        # These build on the guides.
        from bnnzoo.chains import collect, hold, stack
        from bnnzoo.data import as_dataset
        from bnnzoo.posterior import Posterior
        from bnnzoo.training_data import check_last_batch, checksum, training_tensors

        dataset = as_dataset(data)
        network = _affine(network)
        sites = [_site(path, name) for path in _batch_norms(network) for name in ("weight", "bias")]
        prior: dict[Any, Any] = dict.fromkeys(sites, Normal(0.0, 1.0))
        if len(sites) < len(dict(network.named_parameters())):
            prior["*"] = None
        bnn = BayesianNetwork(network, likelihood or _default_likelihood(dataset), prior)
        pair = Pair(bnn, cls(bnn, statistics, num_statistics)).eval()
        x, y = training_tensors(bnn, dataset, dataset.standardization)
        if batch_size is None:
            batch_size = min(100, len(x))
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= len(x):
            raise ValueError(f"batch_size must be from 1 to the number of data, {len(x)}, not {batch_size!r}")
        if batch_size == 1:
            check_last_batch(bnn, x, 1)
        state = stack([pair])
        collect(pair, state, x, y, batch_size, seed)
        hold(pair, state)
        info = {
            "seed": seed,
            "batch_size": batch_size,
            "num_data": len(x),
            "checksum": checksum(x, y),
            "data": dataset.name,
        }
        posterior = Posterior(pair, *state, standardization=dataset.standardization, info=info)
        if likelihood is None and isinstance(bnn.likelihood, Gaussian):
            step = -(-len(dataset) // _NOISE_ROWS)
            posterior = posterior.tune_noise(dataset[::step], by="crps", seed=seed)
        return posterior

    def _layers(self) -> dict[str, _BatchNorm]:
        return {path: self.model.network.get_submodule(path) for path in self._channels.names}

    def _running(self) -> tuple[Tensor, Tensor]:
        """Running means and standard deviations of all layers side by side, [C] each."""
        means, variances = zip(*map(_running_moments, self._layers().values()), strict=True)
        return torch.cat(means), torch.cat(variances).sqrt()

    def _idle(self, layer: _BatchNorm) -> Statistics:
        """What stands for the statistics of a layer that has none: its running ones, always."""
        mean, variance = _running_moments(layer)
        lead, zeros = self.means.shape[:-1], torch.zeros_like(mean)
        return Statistics(mean.expand(*lead, -1), variance.sqrt().expand(*lead, -1), zeros, zeros)

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """A draw of the batch means and standard deviations of all layers side by side, [C] each."""
        if self.statistics == "batches":
            index = torch.randint(self.num_statistics, (1,), device=self.means.device)
            mean, std = self.means.index_select(0, index)[0], self.stds.index_select(0, index)[0]
        else:
            mean = self.means + self.mean_scales * torch.randn_like(self.means)
            std = (self.stds + self.std_scales * torch.randn_like(self.stds)).abs()
        running_mean, running_std = self._running()
        return torch.where(self.collected, mean, running_mean), torch.where(self.collected, std, running_std)


def _equivalent(layer: _BatchNorm, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias with which a layer that normalizes by its running statistics does so by others, [C] each."""
    running_mean, running_variance = _running_moments(layer)
    scale = weight / (std.square() + layer.eps).sqrt()
    return scale * (running_variance + layer.eps).sqrt(), bias + scale * (running_mean - mean)


def _running_moments(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _site(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalization layers of a network, by path.

    Raises:
        ValueError: If there are none, or one has no running statistics.
    """
    layers = {path: module for path, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not layers:
        kinds = sorted({type(module).__name__ for module in network.modules() if not module._modules})
        raise ValueError(
            "guides.BatchNorm needs a network with batch normalization layers (BatchNorm1d, BatchNorm2d, BatchNorm3d), "
            f"and this {type(network).__name__} has none: its layers are {', '.join(kinds)}"
        )
    for path, layer in layers.items():
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(
                f"{describe(path, layer)} keeps no running statistics (track_running_stats=False), and normalizes "
                "every query by itself: build it with track_running_stats=True"
            )
    return layers


def _checked_layers(bnn: BayesianNetwork) -> dict[str, _BatchNorm]:
    """The batch normalization layers, whose weights and biases are sites of their own."""
    layers = _batch_norms(bnn.network)
    named = dict(bnn.network.named_parameters())
    for path, layer in layers.items():
        if layer.weight is None or layer.bias is None:
            raise ValueError(
                f"{describe(path, layer)} has affine=False, and batch statistics are handed over in a layer's "
                "weight and bias: build it with affine=True, or use guides.BatchNorm.from_trained, which makes it so"
            )
        for name in (_site(path, "weight"), _site(path, "bias")):
            if name not in named or name in bnn.tied:
                raise ValueError(f"{describe(path, layer)}: {name} is shared with another layer, whose batch differs")
            if name not in bnn.priors:
                raise ValueError(
                    f"{describe(path, layer)}: the prior of {name} is None, and batch statistics are handed over in "
                    "it: give it one"
                )
    return layers


def _affine(network: nn.Module) -> nn.Module:
    """A copy whose batch normalization layers all have a weight and a bias."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, not {type(network).__name__}")
    network = copy.deepcopy(network)
    for layer in _batch_norms(network).values():
        if layer.weight is None:
            mean, _ = _running_moments(layer)
            layer.affine = True
            layer.weight, layer.bias = nn.Parameter(torch.ones_like(mean)), nn.Parameter(torch.zeros_like(mean))
    return network


def _default_likelihood(dataset: Dataset) -> Likelihood:
    if dataset.task == "regression":
        # One scale for each target; what it is, the data will tell.
        return Gaussian(torch.ones(dataset.y[0].numel()))
    return Categorical() if dataset.task == "classification" else Poisson()

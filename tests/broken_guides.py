"""A guide as a user writes it, and guides that break the contract of `bnnzoo.testing`, each in one way."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import biject_to

from bnnzoo.guides import Guide, MeanField

AUXILIARY = {"is_auxiliary": True}


class Own(Guide):
    """A user's guide: a Gaussian a site, in torch's own terms."""

    def __init__(self, bnn, scale=0.1):
        super().__init__(bnn)
        self.scale = scale
        self.loc = nn.Parameter(self.initial_loc())
        self.log_scale = nn.Parameter(torch.full_like(self.loc, np.log(scale)))

    def reset_parameters(self):
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.log_scale.fill_(np.log(self.scale))

    def distributions(self):
        sites = {}
        for name, loc, log_scale in zip(
            self.layout.names, self.layout.split(self.loc), self.layout.split(self.log_scale), strict=True
        ):
            transform = biject_to(self.model.sites[name].support)
            q = dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()), [transform])
            sites[name] = q.to_event(len(q.batch_shape))
        return sites


class Dense(MeanField):
    def __init__(self, bnn):
        super().__init__(bnn, sampling="dense")


class MissingSite(Dense):
    def forward(self, *args, **kwargs):
        return {n: pyro.sample(n, q) for n, q in list(self.distributions().items())[1:]}


class WrongShape(Dense):
    def distributions(self):
        sites = super().distributions()
        name, q = next(iter(sites.items()))
        return {**sites, name: q.expand([1]).to_event(1)}


class BatchShape(Dense):
    def distributions(self):
        sites = super().distributions()
        name, q = next(iter(sites.items()))
        return {**sites, name: dist.Normal(q.loc, q.scale)}


class OutsideOfSupport(Dense):
    def distributions(self):
        sites = super().distributions()
        return sites | ({"noise": dist.Delta(torch.full((2,), -1.0), event_dim=1)} if "noise" in sites else {})


class ReturnsNothing(Dense):
    def forward(self, *args, **kwargs):
        super().forward()


class WithSite(Dense):
    """Draws a site `z` [2] of its own."""

    infer = AUXILIARY
    listed = 2
    value = 1.0

    def forward(self, *args, **kwargs):
        z = torch.full_like(self.loc[:2], 1.0 if self.training else self.value)
        pyro.sample("z", dist.Delta(z, event_dim=1), infer=self.infer)
        return super().forward()

    @property
    def auxiliary(self):
        return {"z": torch.Size([self.listed])} if self.listed else {}


class Unmarked(WithSite):
    infer = None


class Unlisted(WithSite):
    listed = None


class ListedWrongly(WithSite):
    listed = 3


class NotANumber(WithSite):
    value = float("nan")


class NoiseOfNumpy(Dense):
    """NumPy's noise is one for all mapped draws, and follows no seed of torch."""

    def forward(self, *args, **kwargs):
        noise = torch.as_tensor(np.random.default_rng().normal(size=self.loc.shape), dtype=self.loc.dtype)
        flat = self.loc + self.log_scale.exp() * noise
        return {name: pyro.sample(name, q) for name, q in self.points(flat).items()}


class OneNoise(NoiseOfNumpy):
    def forward(self, *args, **kwargs):
        flat = self.loc + self.log_scale.exp() * torch.linspace(-1, 1, len(self.loc), dtype=self.loc.dtype)
        return {name: pyro.sample(name, q) for name, q in self.points(flat).items()}


def gaussians(guide, loc=lambda q: q.loc, scale=lambda q: q.scale):
    """A mean-field guide's weights as plain Gaussians, other sites as they are."""
    sites = MeanField.distributions(guide)
    weights = {n: dist.Normal(loc(q), scale(q)).to_event(q.event_dim) for n, q in sites.items() if hasattr(q, "loc")}
    return {**sites, **weights}


class SteepStart(Dense):
    """A square root at 0, where it has no derivative."""

    def distributions(self):
        gate = (self.loc - self.loc.detach()).square().sqrt().sum()
        return gaussians(self, loc=lambda q: q.loc + gate)


class Overflows(Dense):
    """The exponential of an exponential."""

    def distributions(self):
        return gaussians(self, scale=lambda q: q.scale.exp().expm1())


class IdleParameter(Dense):
    def __init__(self, bnn):
        super().__init__(bnn)
        self.forgotten = nn.Parameter(torch.zeros(2))


class DensityOfEachSite(Dense):
    def log_prob(self, values):
        return torch.stack([q.log_prob(values[name]).sum() for name, q in self.distributions().items()])


class DensityWithoutNormalizer(Dense):
    def log_prob(self, values):
        return super().log_prob(values) + 1.0


class HalfEntropy(Dense):
    """Half of `log q`: the divergence is too small."""

    def forward(self, *args, **kwargs):
        with pyro.poutine.scale(scale=0.5):
            return super().forward()


class Gift(Dense):
    def forward(self, *args, **kwargs):
        pyro.factor("gift", -2.0 * torch.ones_like(self.loc[0]), has_rsample=True)
        return super().forward()


class WrongDensity(TorchDistribution):
    """A Gaussian whose density has the wrong sign of the logarithm of its scale."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, normal):
        self.normal = normal
        super().__init__(normal.batch_shape, normal.event_shape, validate_args=False)

    support = property(lambda self: self.normal.support)

    def rsample(self, sample_shape=()):
        return self.normal.rsample(sample_shape)

    def log_prob(self, value):
        return self.normal.log_prob(value) + 2 * self.normal.base_dist.scale.log().sum()


@torch.distributions.register_kl(WrongDensity, dist.Distribution)
def _kl(q, p):
    return torch.distributions.kl_divergence(q.normal, p)


class DensityOfAnother(Dense):
    def distributions(self):
        return {n: WrongDensity(q) if n.endswith("weight") else q for n, q in gaussians(self).items()}


class WideDraws(MeanField):
    """Structured draws are twice as wide as dense ones."""

    def distributions(self):
        sites = super().distributions()
        for block in {q.block for q in sites.values() if hasattr(q, "block")}:
            block.__dict__["variances"] = [4 * variance for variance in block.variances]
        return sites


class HeldParameter(Dense):
    """Reads its parameter from where `functional_call` does not put the chains' values."""

    def __init__(self, bnn):
        super().__init__(bnn)
        self._held = (self.loc,)

    def distributions(self):
        held = dict(zip(self.layout.names, self.layout.split(self._held[0]), strict=True))
        sites = gaussians(self)
        return {
            n: dist.Normal(held[n] + 0 * q.mean, q.stddev).to_event(q.event_dim) if n != "noise" else q
            for n, q in sites.items()
        }


class Branches(Dense):
    def forward(self, *args, **kwargs):
        if self.loc.sum().item() > 1e9:
            raise AssertionError
        return super().forward()


class NoKeywords(Dense):
    def forward(self, x=None):
        return super().forward()


class Forgetful(Dense):
    """Keeps what it collects in a plain attribute."""

    shift = 0.0

    def collect(self, x, y, batch_size):
        self.shift = 3.0
        return {}

    def distributions(self):
        sites = super().distributions()
        return {
            n: dist.Normal(q.loc + self.shift, q.scale).to_event() if hasattr(q, "loc") else q for n, q in sites.items()
        }


class Single(Dense):
    def __init__(self, bnn):
        super().__init__(bnn)
        self.loc = nn.Parameter(self.loc.detach().float())


class Wasteful(Dense):
    def forward(self, *args, **kwargs):
        wasted = torch.randn(50_000, dtype=self.loc.dtype).mean()
        return {name: pyro.sample(name, q) for name, q in self.points(self.loc + 0 * wasted).items()}


class ModelInside(Dense):
    def __init__(self, bnn):
        super().__init__(bnn)
        self.bnn = bnn


class Shared(nn.Parameter):
    def __deepcopy__(self, memo):
        return self


class SharedByCopies(Dense):
    def __init__(self, bnn):
        super().__init__(bnn)
        self.loc = Shared(self.loc.detach())


class ResetsHalf(Dense):
    def reset_parameters(self):
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())


class ResetsAtRandom(Dense):
    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.loc.add_(torch.as_tensor(np.random.default_rng().normal(size=self.loc.shape), dtype=self.loc.dtype))


class TouchesNumpy(Dense):
    def reset_parameters(self):
        super().reset_parameters()
        np.random.normal()  # noqa: NPY002

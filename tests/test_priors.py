"""Priors: the distributions, the rules, and how declarations find their parameters."""

import copy
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from bnnzoo.priors import (
    PRIORS,
    Cauchy,
    FanIn,
    He,
    Laplace,
    LogUniform,
    Normal,
    ScaleMixture,
    StudentT,
    fan_in,
    map_tensors,
    resolve,
)


def close(actual, expected, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=rtol, atol=atol)


# --------------------------------------------------------------------------------------------------- named priors


def test_scale_mixture_density_moments_and_cdf():
    prior = ScaleMixture(torch.tensor(0.3, dtype=torch.float64), 2.0, 0.05)
    points = np.array([-7.0, -1.0, -0.04, 0.0, 1e-3, 0.3, 12.0])

    def density(x):
        return 0.3 * stats.norm.pdf(x, 0, 2) + 0.7 * stats.norm.pdf(x, 0, 0.05)

    close(prior.log_prob(torch.tensor(points)), np.log(density(points)))
    close(prior.cdf(torch.tensor(points)), 0.3 * stats.norm.cdf(points, 0, 2) + 0.7 * stats.norm.cdf(points, 0, 0.05))
    second = integrate.quad(lambda x: x**2 * density(x), -30, 30, points=[-0.2, 0, 0.2], limit=200)[0]
    assert prior.variance.item() == pytest.approx(second)
    assert prior.mean.item() == 0


def test_scale_mixture_samples_follow_its_cdf():
    torch.manual_seed(0)
    sample = ScaleMixture(0.25, 1.0, 0.1).expand([2]).sample((20_000,))
    assert sample.shape == (20_000, 2)
    for column in sample.T.numpy():
        # a Kolmogorov-Smirnov distance this large has probability 1e-6
        distance = stats.kstest(column, lambda x: ScaleMixture(0.25, 1.0, 0.1).cdf(torch.as_tensor(x)).numpy())
        assert distance.statistic < math.sqrt(math.log(2 / 1e-6) / 2 / 20_000)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_scale_mixture_is_stable_far_out_and_at_the_ends_of_the_weight(weight):
    value = torch.tensor([0.0, 1.0, 1e3, -1e6], requires_grad=True)
    log_prob = ScaleMixture(weight).log_prob(value)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), value)[0].isfinite().all()
    if weight in (0.0, 1.0):
        close(log_prob, Normal(0.0, 1.0 if weight else 0.1).log_prob(value), 1e-6, 1e-6)


def test_scale_mixture_expands_and_keeps_its_arguments():
    prior = ScaleMixture(torch.tensor([0.2, 0.8]), 1.0, 0.1)
    expanded = prior.expand([3, 2])
    assert expanded.batch_shape == (3, 2)
    assert expanded.to_event(2).log_prob(torch.ones(3, 2)).shape == ()
    close(expanded.log_prob(torch.ones(3, 2)), prior.log_prob(torch.ones(2)).expand(3, 2))
    rebuilt = ScaleMixture(**{name: getattr(expanded, name) for name in ("weight", "scale1", "scale2")})
    close(rebuilt.log_prob(torch.ones(3, 2)), expanded.log_prob(torch.ones(3, 2)))
    with pytest.raises(ValueError, match="scale2"):
        ScaleMixture(0.5, 1.0, -0.1, validate_args=True)
    with pytest.raises(ValueError, match="weight"):
        ScaleMixture(1.5, validate_args=True)


def test_log_uniform():
    prior = LogUniform()
    value = torch.tensor([-2.0, 1e-20, 3.0, 0.0], requires_grad=True)
    log_prob = prior.log_prob(value)
    close(log_prob[:3], -value[:3].abs().log(), 1e-6)
    assert log_prob[3].item() == pytest.approx(87.34, abs=0.01)
    gradient = torch.autograd.grad(log_prob.sum(), value)[0]
    close(gradient[[0, 2]], torch.tensor([0.5, -1 / 3]), 1e-6)
    assert gradient.isfinite().all()
    assert gradient[3] == 0
    assert prior.expand([4, 3]).batch_shape == (4, 3)
    assert prior.expand([4, 3]).log_prob(torch.ones(())).shape == (4, 3)
    assert prior.expand([4, 3]).to_event(2).log_prob(torch.ones(4, 3)).shape == ()
    for draw in (prior.sample, prior.rsample):
        with pytest.raises(NotImplementedError, match="improper"):
            draw((3,))


# -------------------------------------------------------------------------------------------------- fan-in and He


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(7, 3),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, (3, 5), stride=2, groups=2),
        nn.Conv3d(2, 2, 2, dilation=2, padding=1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_fan_in_of_plain_layers_is_that_of_torch(module):
    expected = nn.init._calculate_fan_in_and_fan_out(module.weight)[0]
    assert fan_in("0.weight", module.weight, module) == expected
    assert fan_in("0.bias", module.bias, module) == expected


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose1d(4, 6, 3, bias=False),
        nn.ConvTranspose1d(4, 2, 4, stride=2, groups=2, bias=False),
        nn.ConvTranspose1d(3, 2, 5, stride=3, bias=False),
        nn.ConvTranspose1d(3, 2, 3, stride=2, dilation=3, bias=False),
    ],
)
def test_fan_in_of_transposed_convolutions_is_the_mean_number_of_terms(module):
    with torch.no_grad():
        terms = F.conv_transpose1d(
            torch.ones(1, module.in_channels, 64),
            torch.ones_like(module.weight),
            stride=module.stride,
            groups=module.groups,
            dilation=module.dilation,
        )
    period = module.stride[0]
    interior = terms[0, 0, 10 * period : 40 * period]
    assert fan_in("weight", module.weight, module) == pytest.approx(interior.mean().item())


def test_fan_in_of_other_layers():
    sparse = nn.ConvTranspose2d(5, 2, (1, 4), stride=(3, 2))
    bilinear, lstm, attention = nn.Bilinear(3, 4, 2), nn.LSTM(5, 7), nn.MultiheadAttention(6, 2)
    norm, layer_norm, embedding = nn.BatchNorm2d(8), nn.LayerNorm((3, 4)), nn.Embedding(10, 6)
    for module, name, expected in [
        (sparse, "weight", 10),  # an output between the taps of a stride gets no term: at least one counts
        (sparse, "bias", 10),
        (bilinear, "weight", 12),
        (lstm, "weight_ih_l0", 5),
        (lstm, "bias_ih_l0", 5),
        (lstm, "bias_hh_l0", 7),
        (attention, "in_proj_bias", 6),
        (norm, "weight", 1),
        (norm, "bias", 1),
        (layer_norm, "weight", 1),
        (layer_norm, "bias", 1),
        (embedding, "weight", 1),
        (nn.PReLU(4), "weight", 1),
    ]:
        assert fan_in(f"block.{name}", getattr(module, name), module) == expected


def test_fan_in_and_he_keep_the_size_of_activations():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(400, 300, bias=False), nn.ReLU(), nn.Linear(300, 5000, bias=False))
    priors = resolve({"0.*": FanIn(), "2.*": He()}, network)
    x = torch.randn(1, 400)
    first = priors["0.weight"].expand([300, 400]).sample() @ x[0] / x.square().mean().sqrt()
    # a mean of 300 squared standard normals has standard error sqrt(2 / 300)
    assert first.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 300))
    hidden = torch.randn(300)
    second = priors["2.weight"].expand([5000, 300]).sample() @ hidden.relu()
    expected = 2 / 300 * hidden.relu().square().sum().item()
    assert second.square().mean().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / 5000))


def test_rules_follow_the_parameter_and_keep_their_arguments():
    network = nn.Linear(4, 2).double()
    prior = resolve(FanIn(scale=3.0), network)["weight"]
    assert prior.scale.dtype == torch.float64
    assert prior.scale.item() == 1.5
    assert FanIn(scale=3.0).scale == 3.0
    assert resolve(He(), network)["bias"].scale.item() == pytest.approx(math.sqrt(0.5))
    for rule in (FanIn(2.0), He()):
        assert repr(pickle.loads(pickle.dumps(rule))) == repr(rule)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive finite"):
            FanIn(scale)


@pytest.mark.parametrize("name", PRIORS)
def test_every_named_prior_resolves_by_default(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    priors = resolve(PRIORS[name](), network)
    assert list(priors) == [name for name, _ in network.named_parameters()]
    for key, parameter in network.named_parameters():
        prior = priors[key].expand(parameter.shape)
        value = parameter.detach().clone().requires_grad_()
        log_prob = prior.log_prob(value)
        assert log_prob.shape == parameter.shape
        assert torch.autograd.grad(log_prob.sum(), value)[0].isfinite().all()
        if name != "log-uniform":
            assert prior.sample((5,)).shape == (5, *parameter.shape)


def test_named_priors_take_arguments_by_keyword():
    assert PRIORS["normal"](scale=0.5).scale.item() == 0.5
    assert PRIORS["student-t"](df=5.0).df.item() == 5.0
    assert PRIORS["fan-in"](scale=2.0).scale == 2.0


# ------------------------------------------------------------------------------------------------------ resolving


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        self.register_buffer("count", torch.zeros(1))
        self.steps = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)


NAMES = ["conv.weight", "conv.bias", "layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
A, B, C = Normal(0.0, 1.0), Laplace(0.0, 2.0), StudentT(3.0, 0.0, 1.0)


def test_one_distribution_for_all_and_none():
    assert resolve(A, Net()) == dict.fromkeys(NAMES, A)
    assert resolve(None, Net()) == dict.fromkeys(NAMES)
    assert list(resolve(A, Net())) == NAMES
    assert resolve(A, nn.ReLU()) == {}


def test_a_callable_sees_name_parameter_and_owner():
    seen, network = {}, Net()

    def rule(name, parameter, module):
        seen[name] = (parameter, module)
        return A if parameter.dim() > 1 else None

    assert resolve(rule, network) == {name: A if name.endswith("weight") else None for name in NAMES}
    assert seen["layers.2.bias"] == (network.layers[2].bias, network.layers[2])


def test_more_specific_keys_win_whatever_their_order():
    rules = {"*": A, nn.Linear: B, "layers.0.*": C, "layers.0.bias": None}
    expected = dict(zip(NAMES, [A, A, C, None, B, B], strict=True))
    assert resolve(rules, Net()) == expected
    assert resolve(dict(reversed(rules.items())), Net()) == expected


def test_dicts_nest_and_narrow():
    rules = {nn.Linear: {"*.bias": None, "*": lambda name, p, m: B}, "conv.*": {nn.Conv1d: C}}
    assert resolve(rules, Net()) == dict(zip(NAMES, [C, C, B, None, B, None], strict=True))
    with pytest.raises(ValueError, match=r"'conv\.\*' selects no parameter"):
        resolve({nn.Linear: {"conv.*": A, "*": B}, "*": C}, Net())


def test_globs_are_case_sensitive_and_know_character_classes():
    assert resolve({"layers.[0-1].weight": A, "*": None}, Net())["layers.0.weight"] is A
    with pytest.raises(ValueError, match="selects no parameter"):
        resolve({"LAYERS.*": A, "*": None}, Net())


def test_module_types_match_subclasses_of_the_owner():
    class MyLinear(nn.Linear):
        pass

    network = nn.Sequential(MyLinear(2, 2), nn.Conv1d(1, 1, 1))
    assert resolve({nn.Linear: A, "*": None}, network)["0.weight"] is A
    with pytest.raises(ValueError, match="Linear, MyLinear clash"):
        resolve({nn.Linear: A, MyLinear: B, "*": None}, network)


def test_equally_specific_keys_clash_unless_they_are_one_rule():
    with pytest.raises(ValueError, match=r"'layers\.\*', '\*\.bias' clash: both select parameter 'layers\.0\.bias'"):
        resolve({"layers.*": A, "*.bias": B, "*": C}, Net())
    assert resolve({"layers.*": A, "*.bias": A, "*": C}, Net())["layers.0.bias"] is A
    # settled by a more specific key
    settled = {"layers.*": A, "*.bias": B, "layers.0.bias": C, "layers.2.bias": C, "*": C}
    assert resolve(settled, Net())["layers.0.bias"] is C


def test_frozen_parameters_stay_deterministic_unless_named():
    network = Net()
    network.conv.requires_grad_(False)
    for prior in (A, FanIn(), {"*": A}, {"layers.*": A}):
        resolved = resolve(prior, network)
        assert resolved["conv.weight"] is resolved["conv.bias"] is None
        assert resolved["layers.0.weight"] is not None
    for key in ("conv.*", nn.Conv1d):
        for value in (A, {"*": A}, lambda name, p, m: A):
            assert resolve({key: value, "*": B}, network)["conv.weight"] is A


def test_tied_parameters_appear_once_and_answer_to_every_name():
    network = nn.ModuleDict({"encoder": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5, bias=False)})
    network["decoder"].weight = network["encoder"].weight
    assert resolve(A, network) == {"encoder.weight": A}
    for key in ("encoder.weight", "decoder.weight", "decoder.*", nn.Linear, nn.Embedding):
        assert resolve({key: B, "*": A}, network) == {"encoder.weight": B}
    with pytest.raises(ValueError, match="clash"):
        resolve({"encoder.*": A, "decoder.*": B}, network)


def test_a_module_used_twice_and_parametrized_weights():
    layer = nn.Linear(3, 3)
    assert list(resolve(A, nn.Sequential(layer, nn.ReLU(), layer))) == ["0.weight", "0.bias"]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    resolved = resolve(FanIn(), normed)
    assert resolved["parametrizations.weight.original1"].scale.item() == pytest.approx(3**-0.5)


def test_correlated_and_broadcast_priors():
    joint = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    rows = Normal(torch.zeros(3, 1), 1.0)
    rules = {"layers.0.bias": joint, "layers.0.weight": rows, "*": A}
    assert resolve(rules, Net())["layers.0.bias"] is joint
    assert resolve(rules, Net())["layers.0.weight"] is rows
    whole = Normal(torch.zeros(3, 4), 1.0).to_event(2)
    assert resolve({"layers.0.weight": whole, "*": A}, Net())["layers.0.weight"] is whole


def test_every_real_prior_is_accepted():
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.ones(2)))
    affine = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [transforms.AffineTransform(1.0, 2.0)])
    improper = dist.ImproperUniform(dist.constraints.real, (), ())
    for prior in (mixture, affine, improper, Cauchy(0.0, 1.0), dist.Stable(1.5, 0.0), A.mask(True), LogUniform()):
        assert resolve(prior, Net())["conv.bias"] is prior


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            {"layer.0.weight": A, "*": B},
            r"'layer\.0\.weight' selects no parameter\. Did you mean 'layers\.0\.weight'\?",
        ),
        ({"layers.0": A, "*": B}, r"Did you mean 'layers\.0\.\*'\?"),
        ({"zzz": A, "*": B}, r"The parameters are: conv\.weight, conv\.bias"),
        ({nn.LSTM: A, "*": B}, r"LSTM selects no parameter: .* of type Conv1d, Linear"),
        ({"layers.*": A}, r"No prior for parameter 'conv\.weight'.*\"\*\""),
        ({}, r"No prior for parameter 'conv\.weight'"),
        (Normal(torch.zeros(7), 1.0), r"batch shape \(7,\).*'s shape \(2, 1, 3\)"),
        (Normal(torch.zeros(5, 2, 1, 3), 1.0), r"must broadcast"),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), r"must be exactly"),
        (dist.HalfNormal(1.0), "unconstrained"),
        (dist.Uniform(-1.0, 1.0), "unconstrained"),
        (dist.Poisson(1.0), "unconstrained"),
        (dist.LogNormal(0.0, 1.0), "unconstrained"),
        (Normal(0.0, -1.0, validate_args=False), r"scale = -1"),
        (Normal(0.0, math.nan, validate_args=False), r"scale = nan"),
        (Normal(torch.zeros(3), -1.0, validate_args=False).mask(True), r"scale ="),
    ],
)
def test_declarations_that_do_not_fit(prior, message):
    with pytest.raises(ValueError, match=message):
        resolve(prior, Net())


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Normal, r"give an instance of it, Normal"),
        (FanIn, r"give an instance of it, FanIn"),
        (3.0, "is not a prior"),
        ("normal", "is not a prior"),
        ({"*": 1.0}, "is not a prior"),
        ({3: A}, "must be a parameter name"),
        ({int: A}, "must be a parameter name"),
        (torch.distributions.Normal(0.0, 1.0), r"use pyro\.distributions\.Normal"),
        (lambda name, p, m: 1.0, r"returned 1\.0 \(a float\) for parameter 'conv\.weight'"),
        (lambda name, p, m: {"*": A}, "returned"),
    ],
)
def test_things_that_are_no_priors(prior, message):
    with pytest.raises(TypeError, match=message):
        resolve(prior, Net())


def test_lazy_parameters_ask_for_a_first_call():
    with pytest.raises(ValueError, match="lazy"):
        resolve(A, nn.LazyLinear(3))


# ---------------------------------------------------------------------------------------------------- map_tensors


def _flow():
    torch.manual_seed(0)
    return dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1), [transforms.affine_coupling(3)]
    )


DISTRIBUTIONS = {
    "normal": Normal(0.0, 1.0),
    "student": StudentT(3.0, 0.0, 1.0),
    "cauchy": Cauchy(0.0, 1.0),
    "scale mixture": ScaleMixture(),
    "log uniform": LogUniform((2,)),
    "lognormal": dist.LogNormal(torch.zeros(2), torch.ones(2)),
    "expanded": dist.InverseGamma(torch.tensor(2.0), torch.tensor(1.0)).expand([3]).to_event(1),
    "pyro expanded": dist.torch_distribution.ExpandedDistribution(Normal(torch.zeros(1), 1.0), [2, 3]),
    "masked": Normal(torch.zeros(2), torch.ones(2)).mask(torch.tensor([True, False])),
    "multivariate": dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2)),
    "low rank": dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    "mixture": dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.ones(2))),
    "affine": dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), torch.ones(2)),
        [transforms.AffineTransform(torch.ones(2), 2 * torch.ones(2)), transforms.ExpTransform().inv.inv],
    ),
    "inverse": dist.TransformedDistribution(
        dist.Gamma(torch.ones(2), torch.ones(2)), [transforms.AffineTransform(0.0, torch.ones(2)).inv]
    ),
    "flow": _flow(),
    "delta": dist.Delta(torch.ones(2), event_dim=1),
}


def _value(prior):
    return torch.full(prior.shape(), 0.7) if not isinstance(prior, dist.Delta) else torch.ones(2)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_map_tensors_maps_everything_and_leaves_the_original(name):
    prior = DISTRIBUTIONS[name]
    value = _value(prior)
    before = prior.log_prob(value).detach()  # fills caches
    mapped = map_tensors(prior, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    assert type(mapped) is type(prior)
    assert mapped.shape() == prior.shape()
    assert type(mapped.batch_shape) is type(prior.batch_shape)
    after = mapped.log_prob(value.double())
    assert after.dtype == torch.float64
    close(after.float(), before, 1e-5, 1e-5)
    assert prior.log_prob(value).dtype == torch.float32
    if name != "log uniform":
        assert mapped.sample().dtype == torch.float64
    if prior.event_dim == 0 and name != "pyro expanded":
        assert mapped.expand([4, *prior.batch_shape]).log_prob(value.double()).shape == (4, *prior.batch_shape)


def test_map_tensors_reaches_every_tensor():
    # on the meta device any tensor left behind would break the arithmetic or stay on the CPU
    for name, prior in DISTRIBUTIONS.items():
        if name in ("log uniform", "flow"):
            continue
        prior.log_prob(_value(prior))
        mapped = map_tensors(prior, lambda tensor: tensor.to("meta"))
        assert _devices(mapped) == {"meta"}, name
        assert _devices(prior) == {"cpu"}, name


def _devices(value, seen=()):
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    if isinstance(value, torch.distributions.Distribution | transforms.Transform) and id(value) not in seen:
        return set().union(*(_devices(each, (*seen, id(value))) for each in vars(value).values()))
    if isinstance(value, list | tuple):
        return set().union(*(_devices(each, seen) for each in value))
    return set()


def test_map_tensors_copies_a_flow_that_remembers_its_last_call():
    base = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
    flow = dist.TransformedDistribution(
        base, [transforms.affine_autoregressive(3), transforms.Permute(torch.arange(3))]
    )
    value = flow.rsample()
    before = flow.log_prob(value)
    mapped = map_tensors(flow, lambda tensor: tensor.clone())
    close(mapped.log_prob(value), before, 1e-5, 1e-5)
    assert mapped.transforms[0] is not flow.transforms[0]


def test_map_tensors_maps_a_shared_tensor_once_and_keeps_integers():
    calls = []
    shared = torch.ones(2)
    prior = dist.Normal(shared, shared, validate_args=False)
    prior.loc = prior.scale = shared
    mapped = map_tensors(prior, lambda tensor: calls.append(tensor) or tensor * 2)
    assert len(calls) == 1
    assert mapped.loc is mapped.scale
    binomial = dist.Binomial(torch.tensor(3), torch.tensor(0.5))
    assert copy.deepcopy(map_tensors(binomial, lambda tensor: tensor)).total_count == 3

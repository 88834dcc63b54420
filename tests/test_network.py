"""`BayesianNetwork` as a model: sites, plates, scaling, tied weights, buffers, dtypes, errors."""

import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods, objectives, priors

N = 12


def data(features: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(N, features, generator=generator), torch.randn(N, generator=generator)


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def draw(bnn: BayesianNetwork) -> dict[str, Tensor]:
    return {name: torch.randn(prior.shape()).abs() for name, prior in bnn.sites.items()}


def trace(bnn: BayesianNetwork, values: dict[str, Tensor], *args, **kwargs):
    traced = poutine.trace(poutine.condition(bnn, values)).get_trace(*args, **kwargs)
    traced.compute_log_prob()
    return traced


def test_the_joint_density_is_that_of_weights_and_targets():
    bnn = BayesianNetwork(
        mlp(), likelihoods.Gaussian(dist.HalfNormal(1.0)), {"2.*": dist.Laplace(0.0, 2.0), "*": dist.Normal(0.5, 0.3)}
    )
    x, y = data()
    values = draw(bnn)
    assert list(values) == ["0.weight", "0.bias", "2.weight", "2.bias", "noise"]
    output = F.linear(
        torch.tanh(F.linear(x, values["0.weight"], values["0.bias"])), values["2.weight"], values["2.bias"]
    )
    expected = dist.Normal(output.squeeze(1), values["noise"]).log_prob(y).sum()
    expected = expected + dist.HalfNormal(1.0).log_prob(values["noise"])
    for name in ("0.weight", "0.bias"):
        expected = expected + dist.Normal(0.5, 0.3).log_prob(values[name]).sum()
    for name in ("2.weight", "2.bias"):
        expected = expected + dist.Laplace(0.0, 2.0).log_prob(values[name]).sum()
    torch.testing.assert_close(trace(bnn, values, x, y).log_prob_sum(), expected)
    torch.testing.assert_close(bnn.output(values, x), output)


@pytest.mark.parametrize("batch", [1, 5, N])
def test_a_minibatch_counts_for_all_data(batch):
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.7))
    x, y = data()
    values = draw(bnn)
    alone = trace(bnn, values, x[:batch], y[:batch]).nodes["y"]
    scaled = trace(bnn, values, x[:batch], y[:batch], size=N).nodes
    assert scaled["y"]["fn"].batch_shape == (batch,)
    torch.testing.assert_close(scaled["y"]["log_prob_sum"], alone["log_prob_sum"] * N / batch)
    torch.testing.assert_close(scaled["0.weight"]["log_prob_sum"], bnn.sites["0.weight"].log_prob(values["0.weight"]))
    assert [frame.name for frame in scaled["y"]["cond_indep_stack"]] == ["data"]


def test_minibatches_of_an_epoch_add_up_to_the_data():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.7))
    x, y = data()
    values = draw(bnn)
    whole = trace(bnn, values, x, y).nodes["y"]["log_prob_sum"]
    parts = [trace(bnn, values, x[i : i + 5], y[i : i + 5], size=N).nodes["y"]["log_prob_sum"] for i in (0, 5, 10)]
    torch.testing.assert_close(sum(p * b / N for p, b in zip(parts, (5, 5, 2), strict=True)), whole)


def test_without_targets_the_model_samples_them():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.7))
    x, _ = data()
    traced = poutine.trace(bnn).get_trace(x)
    assert traced.nodes["y"]["value"].shape == (N,)
    assert not traced.nodes["y"]["is_observed"]
    assert traced.nodes["_RETURN"]["value"].shape == (N, 1)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (likelihoods.Gaussian(0.5), 1, torch.zeros(N)),
        (likelihoods.Gaussian(0.5), 2, torch.zeros(N, 2)),
        (likelihoods.Gaussian(torch.tensor([0.5, 1.0])), 2, torch.zeros(N, 2)),
        (likelihoods.Gaussian(dist.LogNormal(0.0, 1.0), num_outputs=2), 2, torch.zeros(N, 2)),
        (likelihoods.Gaussian(), 1, torch.zeros(N)),
        (likelihoods.HeteroscedasticGaussian(), 2, torch.zeros(N)),
        (likelihoods.Categorical(), 3, torch.zeros(N, dtype=torch.long)),
        (likelihoods.Bernoulli(), 1, torch.zeros(N)),
        (likelihoods.Poisson(), 1, torch.zeros(N)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_every_likelihood_passes_pyros_own_checks(likelihood, outputs, y):
    """`Trace_ELBO` with validation on checks the shapes of log probabilities against the plates."""
    bnn = BayesianNetwork(nn.Linear(3, outputs), likelihood)
    x, _ = data()
    guide = guides.MeanField(bnn)
    loss = pyro.infer.Trace_ELBO().loss(bnn, guide, x, y, size=2 * N)
    assert torch.tensor(loss).isfinite()
    assert poutine.trace(bnn).get_trace(x).nodes["y"]["value"].shape == y.shape


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(torch.tanh(self.encoder(x))))


def test_tied_weights_are_one_site_and_change_together():
    bnn = BayesianNetwork(Tied(), likelihoods.Gaussian(0.5))
    assert list(bnn.sites) == ["encoder.weight", "encoder.bias", "decoder.bias", "head.weight", "head.bias"]
    assert bnn.tied == {"encoder.weight"}
    x, y = data()
    v = draw(bnn)
    hidden = torch.tanh(F.linear(x, v["encoder.weight"], v["encoder.bias"]))
    expected = F.linear(F.linear(hidden, v["encoder.weight"], v["decoder.bias"]), v["head.weight"], v["head.bias"])
    torch.testing.assert_close(bnn.output(v, x), expected)
    for sampling in ("local", "flipout", "dense"):
        guide = guides.MeanField(bnn, sampling=sampling)
        objectives.ELBO()(bnn, guide)(x, y).backward()
        assert guide.loc.grad.isfinite().all()


def test_a_module_that_is_there_twice_is_tied():
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(0.5))
    assert list(bnn.sites) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert bnn.tied == {"0.weight", "0.bias"}
    x, y = data()
    v = draw(bnn)
    layer = lambda h: F.linear(h, v["0.weight"], v["0.bias"])  # noqa: E731
    expected = F.linear(layer(torch.tanh(layer(x))), v["3.weight"], v["3.bias"])
    torch.testing.assert_close(bnn.output(v, x), expected)
    for sampling in ("local", "flipout", "dense"):
        assert objectives.ELBO()(bnn, guides.MeanField(bnn, sampling=sampling))(x, y).isfinite()


def test_a_layer_used_twice_is_refused_under_local_and_works_dense():
    class Recycled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(torch.tanh(self.layer(x))))

    bnn = BayesianNetwork(Recycled(), likelihoods.Gaussian(0.5))
    x, y = data()
    with pytest.raises(RuntimeError, match=r"'layer\.weight' is used more than once"):
        objectives.ELBO()(bnn, guides.MeanField(bnn))(x, y)
    mended = guides.MeanField(bnn, sampling={"layer.*": "dense", "*": "local"})
    assert objectives.ELBO()(bnn, mended)(x, y).isfinite()


def test_the_network_passed_in_is_never_changed():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    likelihood = likelihoods.Gaussian()
    before = copy.deepcopy(network.state_dict())
    bnn = BayesianNetwork(network, likelihood)
    x, y = data()
    objectives.ELBO()(bnn, guides.MeanField(bnn))(x, y).backward()
    bnn.double().eval()
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in network.parameters())
    assert likelihood.log_scale.grad is None
    assert likelihood.log_scale.dtype == torch.float32


def test_a_failing_pass_leaves_the_networks_own_values_in_place():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.5))
    before = dict(bnn.network.named_parameters())
    with pytest.raises(RuntimeError):
        bnn(torch.randn(4, 7))
    assert all(after is before[name] for name, after in bnn.network.named_parameters())


def test_batch_norm_trains_its_buffers_and_uses_them_in_eval():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(0.5))
    x, _ = data()
    values = draw(bnn)
    hidden = F.linear(x, values["0.weight"], values["0.bias"])
    trained = bnn.output(values, x)
    norm = bnn.network[1]
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    torch.testing.assert_close(norm.running_var, hidden.var(0))
    bnn.eval()
    one = torch.cat([bnn.output(values, x[i : i + 1]) for i in range(N)])
    normalized = (hidden - hidden.mean(0)) / (hidden.var(0) + norm.eps).sqrt() * values["1.weight"] + values["1.bias"]
    torch.testing.assert_close(one, F.linear(normalized, values["2.weight"], values["2.bias"]))
    assert not torch.allclose(one, trained)
    assert norm.num_batches_tracked == 1


def test_deterministic_parameters_have_no_site_and_stay_trainable():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(), {"*.bias": None, "*": dist.Normal(0.0, 1.0)})
    assert list(bnn.sites) == ["0.weight", "2.weight"]
    trainable = {name for name, p in bnn.named_parameters() if p.requires_grad}
    assert trainable == {"network.0.bias", "network.2.bias", "likelihood.log_scale"}
    x, y = data()
    objectives.ELBO()(bnn, guides.MeanField(bnn))(x, y).backward()
    for name, parameter in bnn.named_parameters():
        assert (parameter.grad is not None) == (name in trainable)


PRIORS = {
    "default": None,
    "fan-in": priors.FanIn(),
    "mixed": {"0.weight": dist.StudentT(3.0, 0.0, 1.0), "2.weight": priors.ScaleMixture(), "*": dist.Normal(0.0, 1.0)},
    "tensor": {"0.bias": dist.Normal(torch.zeros(4), torch.rand(4)), "*": dist.Laplace(0.0, 1.0)},
    "correlated": {"0.bias": dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 0.5), "*": dist.Cauchy(0.0, 1.0)},
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("order", ["double after", "double before"])
def test_priors_follow_the_networks_dtype(name, order):
    arguments = () if PRIORS[name] is None else (PRIORS[name],)
    likelihood = likelihoods.Gaussian(dist.LogNormal(torch.zeros(2), torch.ones(2)), num_outputs=2)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    if order == "double before":
        bnn = BayesianNetwork(network.double(), likelihood.double(), *arguments)
    else:
        bnn = BayesianNetwork(network, likelihood, *arguments)
        single = {site: prior.sample().dtype for site, prior in bnn.sites.items()}
        assert set(single.values()) == {torch.float32}
        bnn.double()
    x, _ = data()
    assert {prior.sample().dtype for prior in bnn.sites.values()} == {torch.float64}
    assert bnn(x.double()).dtype == torch.float64
    guide = guides.MeanField(bnn)
    loss = objectives.ELBO(num_particles=2)(bnn, guide)(x.double(), torch.zeros(N, 2, dtype=torch.float64))
    assert loss.dtype == guide.loc.dtype == torch.float64
    if name == "default":
        assert bnn.float()(x).dtype == torch.float32


def test_a_double_model_has_the_density_of_a_single_one():
    x, y = data()
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.7), priors.FanIn())
    values = draw(bnn)
    single = trace(bnn, values, x, y).log_prob_sum()
    double = {name: value.double() for name, value in values.items()}
    torch.testing.assert_close(trace(bnn.double(), double, x.double(), y.double()).log_prob_sum().float(), single)


def test_a_correlated_prior_is_the_joint_density_of_its_parameter():
    covariance = torch.eye(4) + 0.5
    prior = {"0.bias": dist.MultivariateNormal(torch.zeros(4), covariance), "*": dist.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.7), prior)
    x, y = data()
    values = draw(bnn)
    site = trace(bnn, values, x, y).nodes["0.bias"]
    exact = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(values["0.bias"])
    torch.testing.assert_close(site["log_prob_sum"], exact)
    draws = bnn.sites["0.bias"].sample((20_000,))
    assert (draws.T.cov() - covariance).abs().max() < 0.1


def test_copies_are_independent():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(), {"*.bias": None, "*": priors.FanIn()})
    x, y = data()
    objectives.ELBO()(bnn, guides.MeanField(bnn))(x, y)
    other = copy.deepcopy(bnn)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    values = {name: torch.zeros(prior.shape()) for name, prior in bnn.sites.items()}
    torch.testing.assert_close(bnn.output(values, x), bnn.network[2].bias.expand(N, 1))
    torch.testing.assert_close(other.output(values, x), bnn.output(values, x) + 1.0)
    other.double()
    assert bnn.sites["0.weight"].sample().dtype == torch.float32
    before = bnn.output(values, x)
    bnn.reset_parameters()
    assert not torch.equal(bnn.output(values, x), before)


@pytest.mark.parametrize(
    ("network", "likelihood", "prior", "error", "message"),
    [
        (
            lambda x: x,
            likelihoods.Gaussian(0.5),
            dist.Normal(0.0, 1.0),
            TypeError,
            "network must be a torch.nn.Module, not function",
        ),
        (
            nn.Linear,
            likelihoods.Gaussian(0.5),
            dist.Normal(0.0, 1.0),
            TypeError,
            "network must be a torch.nn.Module, not type",
        ),
        (mlp(), dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), TypeError, "likelihood must be .* not Normal"),
        (mlp(), likelihoods.Gaussian, dist.Normal(0.0, 1.0), TypeError, "likelihood must be .* not type"),
        (mlp(), likelihoods.Gaussian(0.5), 1.0, TypeError, "1.0 .a float. is not a prior"),
        (
            mlp(),
            likelihoods.Gaussian(0.5),
            {"3.*": dist.Normal(0.0, 1.0), "*": None},
            ValueError,
            r"'3\.\*' selects no parameter",
        ),
        (nn.LazyLinear(1), likelihoods.Gaussian(0.5), dist.Normal(0.0, 1.0), ValueError, "lazy .*weight.* run it once"),
        (mlp(), likelihoods.Gaussian(), None, ValueError, "nothing is random"),
        (nn.Tanh(), likelihoods.Gaussian(), dist.Normal(0.0, 1.0), ValueError, "nothing is random"),
    ],
)
def test_what_cannot_be_a_bayesian_network_is_refused(network, likelihood, prior, error, message):
    with pytest.raises(error, match=message):
        BayesianNetwork(network, likelihood, prior)


@pytest.mark.parametrize("name", ["noise", "y", "data"])
def test_a_parameter_with_the_name_of_another_site_is_refused(name):
    network = nn.Linear(3, 1)
    network.register_parameter(name, nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=rf"\['{name}'\] are taken"):
        BayesianNetwork(network, likelihoods.Gaussian(dist.HalfNormal(1.0)))
    # deterministic, the name is free
    BayesianNetwork(network, likelihoods.Gaussian(dist.HalfNormal(1.0)), {name: None, "*": dist.Normal(0.0, 1.0)})


def test_a_random_noise_alone_is_a_model():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(dist.HalfNormal(1.0)), None)
    assert list(bnn.sites) == ["noise"]
    x, y = data()
    guide = guides.MeanField(bnn)
    objectives.ELBO()(bnn, guide)(x, y).backward()
    assert guide.loc.grad.isfinite().all()
    assert all(p.grad is not None for p in bnn.network.parameters())


@pytest.mark.parametrize("shape", [(N, 1), (1,), (N - 1,), (N, N)])
def test_targets_that_would_broadcast_are_refused(shape):
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.5))
    x, _ = data()
    with pytest.raises(ValueError, match=rf"y must have shape \[{N}\] here, not \[{', '.join(map(str, shape))}\]"):
        objectives.ELBO()(bnn, guides.MeanField(bnn))(x, torch.zeros(shape))


def test_a_size_below_the_batch_is_refused():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.5))
    with pytest.raises(ValueError, match=f"batch of {N} stands for; 3 are too few"):
        bnn(*data(), size=3)

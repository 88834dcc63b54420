"""`guides.Dropout`: its objective, optima and predictions against closed forms, and ordinary dropout training."""

import math

import pyro.distributions as dist
import pyro.infer
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import BayesianNetwork, fit, likelihoods, load, models, objectives, priors
from bnnzoo._vectorize import Pair, pyro_settings, seeded, vectorize
from bnnzoo.guides import Dropout, Map
from bnnzoo.guides.masked_weight import MaskedWeight
from bnnzoo.objectives import Sites
from tests.statistical import assert_covariance, assert_equal_means, assert_mean

NOISES = ["bernoulli", "gaussian"]
COMPARISONS = 1000  # an upper bound of this file's


class Linear:
    """Linear regression without bias under dropout of rate p: everything is known (Srivastava et al. 2014, 9.1).

    With `α = p / (1 - p)`, noise scale σ, prior N(0, s²) and `D = diag(XᵀX)`, the expected loss at weights m is
    `[|y - Xm|² + α mᵀDm] / (2σ²) + (1 + α) |m|² / (2s²) - I h(p) + const`: ridge regression.
    """

    def __init__(self, rate=0.4, sigma=0.5, scale=1.5, n=30, d=3):
        generator = torch.Generator().manual_seed(3)
        mixing = torch.eye(d) + 0.5 * torch.randn(d, d, generator=generator)
        self.x = torch.randn(n, d, generator=generator) @ mixing
        self.y = self.x @ torch.tensor([1.0, -0.7, 0.4]) + sigma * torch.randn(n, generator=generator)
        self.rate, self.sigma, self.scale, self.n, self.d = rate, sigma, scale, n, d
        with seeded(0):
            net = nn.Linear(d, 1, bias=False)
        self.bnn = BayesianNetwork(net, likelihoods.Gaussian(sigma), dist.Normal(0.0, scale))

    def loss(self, m, logit, noise="bernoulli"):
        x, y, alpha, p = self.x.double(), self.y.double(), logit.exp(), logit.sigmoid()
        errors = (y - x @ m).square().sum() + alpha * (x.square().sum(0) * m.square()).sum()
        if noise == "bernoulli":
            h = -p * p.log() - (1 - p) * (1 - p).log()
        else:
            h = 0.5 * (2 * math.pi * math.e * alpha).log()
        likelihood = errors / (2 * self.sigma**2) + self.n * math.log(self.sigma * math.sqrt(2 * math.pi))
        prior = (1 + alpha) * m.square().sum() / (2 * self.scale**2)
        return likelihood + prior + self.d * (math.log(self.scale * math.sqrt(2 * math.pi)) - h)

    def optimum(self, alpha=None):
        alpha = self.rate / (1 - self.rate) if alpha is None else alpha
        x, y = self.x.double(), self.y.double()
        ridge = alpha * (x.T @ x).diag().diag() / self.sigma**2 + (1 + alpha) * torch.eye(self.d) / self.scale**2
        return torch.linalg.solve(x.T @ x / self.sigma**2 + ridge, x.T @ y / self.sigma**2)

    @property
    def logit(self):
        return torch.tensor(self.rate / (1 - self.rate)).double().log()


def losses(bnn, guide, x, y, count, objective=None):
    """Independent estimates of the objective."""
    objective = objective or objectives.ELBO()
    with pyro_settings(bnn, guide):
        return vectorize(lambda _: objective.differentiable_loss(bnn, guide, x, y))(torch.arange(count))


def kl(guide):
    bnn = guide.model
    with pyro_settings(bnn, guide):
        x = torch.zeros(1, next(iter(bnn.network.parameters())).shape[1])
        sites = Sites(form="structured")
        q = sites.run(guide)
        return torch.stack(objectives.kl_terms(q, Sites(sites.drawn).run(bnn, x, torch.zeros(1)))).sum()


def mlp(hidden=8, dropout=None, activation=nn.ReLU):
    with seeded(0):
        layers = [nn.Linear(3, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, 1)]
    if dropout is not None:
        layers.insert(2, nn.Dropout(dropout[0]))
        layers.insert(5, nn.Dropout(dropout[1]))
    return nn.Sequential(*layers)


def data(n=20):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 3, generator=generator)
    return x, x.sum(1) + 0.1 * torch.randn(n, generator=generator)


@pytest.mark.parametrize("noise", NOISES)
def test_the_loss_is_the_expected_one_of_linear_regression(noise):
    model = Linear()
    guide = Dropout(model.bnn, model.rate, noise=noise)
    expected = model.loss(guide.loc.detach().double(), model.logit, noise)
    estimates = losses(model.bnn, guide, model.x, model.y, 10_000)
    assert_mean(estimates.detach().double(), expected, COMPARISONS)
    dense = Dropout(model.bnn, model.rate, noise=noise, sampling="dense")
    more = losses(model.bnn, dense, model.x, model.y, 10_000).detach().double()
    assert_mean(more, expected, COMPARISONS)
    # masks that rows share make the estimate noisier
    assert more.std() > 1.5 * estimates.std()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO])
def test_pyros_objectives_agree(noise, kind):
    model = Linear()
    guide = Dropout(model.bnn, model.rate, noise=noise)
    expected = model.loss(guide.loc.detach().double(), model.logit, noise)
    estimates = torch.tensor([kind().loss(model.bnn, guide, model.x, model.y) for _ in range(200)]).double()
    assert_mean(estimates, expected, COMPARISONS)


@pytest.mark.parametrize("noise", NOISES)
def test_the_optimum_of_linear_regression_is_ridge(noise):
    model = Linear()
    optimum = model.optimum()
    guide = Dropout(model.bnn, model.rate, noise=noise)
    with torch.no_grad():
        guide.loc.copy_(optimum)

    def gradient(_):
        def loss(loc):
            return torch.func.functional_call(
                pair, {"guide.loc": loc}, (objectives.ELBO().differentiable_loss, model.x, model.y)
            )

        return torch.func.grad(loss)(guide.loc.detach())

    pair = Pair(model.bnn, guide)
    with pyro_settings(model.bnn, guide):
        gradients = vectorize(gradient)(torch.arange(20_000))
    assert_mean(gradients.double(), torch.zeros(3).double(), COMPARISONS)
    # and training gets there
    scheduler = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)  # noqa: E731
    posterior = fit(
        model.bnn,
        Dropout(model.bnn, model.rate, noise=noise),
        (model.x, model.y),
        objective=objectives.ELBO(num_particles=30),
        epochs=400,
        lr=0.05,
        scheduler=scheduler,
    )
    found = posterior.state()[0]["guide.loc"][0].double()
    least_squares = torch.linalg.lstsq(model.x, model.y[:, None]).solution[:, 0].double()
    assert (found - optimum).norm() < 0.03 * (least_squares - optimum).norm()


@pytest.mark.parametrize("noise", NOISES)
def test_predictions_have_the_mean_and_variance_of_linear_regression(noise):
    model = Linear()
    posterior = fit(model.bnn, Dropout(model.bnn, model.rate, noise=noise), (model.x, model.y), epochs=2)
    m = posterior.state()[0]["guide.loc"][0].double()
    draws = posterior.predict(model.x[:3], num_samples=20_000).parameters["loc"][0].double()
    x = model.x[:3].double()
    alpha = model.rate / (1 - model.rate)
    covariance = alpha * (x * m.square()) @ x.T  # a draw is one mask for all rows
    assert_mean(draws.reshape(20_000, 3), x @ m, COMPARISONS)
    assert_covariance(draws.reshape(20_000, 3), x @ m, covariance, COMPARISONS)


@pytest.mark.parametrize("noise", NOISES)
def test_the_gradient_of_a_learned_rate(noise):
    """Unbiased for Gaussian noise; for relaxed masks the bias is small."""
    model = Linear()
    logit = model.logit.clone().requires_grad_()

    guide = Dropout(model.bnn, model.rate, noise=noise, learn_rate=True)
    pair = Pair(model.bnn, guide)

    def gradient(_):
        def loss(rate_logits):
            parameters = {"guide.rate_logits": rate_logits}
            return torch.func.functional_call(
                pair, parameters, (objectives.ELBO().differentiable_loss, model.x, model.y)
            )

        return torch.func.grad(loss)(guide.rate_logits.detach())[0]

    with pyro_settings(model.bnn, guide):
        found = vectorize(gradient)(torch.arange(20_000)).double()
    (exact,) = torch.autograd.grad(model.loss(guide.loc.detach().double(), logit, noise), logit)
    if noise == "gaussian":
        assert_mean(found, exact, COMPARISONS)
        return
    # About 3% of noise, and of bias less.
    assert abs(found.mean() - exact) < 0.2 * abs(exact)


@pytest.mark.parametrize(("noise", "start"), [("bernoulli", 0.6), ("gaussian", 0.03)])
def test_a_learned_rate_finds_the_best_one(noise, start):
    model = Linear(sigma=2.0, n=10)  # little and noisy data, so that the entropy counts
    logits = torch.linspace(-6, 2, 801).double()
    values = torch.stack([model.loss(model.optimum(logit.exp()), logit, noise) for logit in logits])
    best = logits[values.argmin()]
    assert -5 < best < 1
    posterior = fit(
        model.bnn,
        Dropout(model.bnn, start, noise=noise, learn_rate=True),
        (model.x, model.y),
        epochs=600,
        lr=0.1,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.992),
    )
    (rate,) = posterior.guide.rates().values()
    assert abs(rate.logit() - best) < 0.6, (start, rate, best.sigmoid())
    found = model.loss(posterior.state()[0]["guide.loc"][0].double(), rate.double().logit(), noise)
    assert found < values.min() + 0.05


def test_training_is_ordinary_dropout_training():
    x, y = data()
    rates = (0.2, 0.6)
    explicit = BayesianNetwork(mlp(), likelihoods.Gaussian(0.3))
    layered = BayesianNetwork(mlp(dropout=rates), likelihoods.Gaussian(0.3))
    guide = Dropout(explicit, {"2.weight": 0.2, "4.weight": 0.6, "*": 0.0})
    own = losses(explicit, guide, x, y, 4000).detach() - kl(guide).detach()
    net = layered.network.train()
    with torch.no_grad():
        outputs = vectorize(lambda _: net(x))(torch.arange(4000))[..., 0]
        ordinary = -dist.Normal(outputs, 0.3).log_prob(y).sum(-1)
    assert_equal_means(own, ordinary, COMPARISONS)
    assert_equal_means(own.square(), ordinary.square(), COMPARISONS)


def test_rates_from_dropout_layers_are_explicit_rates():
    x, y = data()
    layered = BayesianNetwork(mlp(dropout=(0.2, 0.6)), likelihoods.Gaussian(0.3))
    guide = Dropout(layered, from_dropout_layers=True)
    assert {name: round(rate.item(), 6) for name, rate in guide.rates().items()} == {"3.weight": 0.2, "6.weight": 0.6}
    explicit = BayesianNetwork(mlp(), likelihoods.Gaussian(0.3))
    other = Dropout(explicit, {"0.weight": 0.0, "2.weight": 0.2, "4.weight": 0.6})
    torch.testing.assert_close(kl(guide), kl(other))
    # in training the layers draw: the guide hands over plain weights
    drawn = Sites(form="structured")
    drawn.run(guide)
    assert all(type(value) is torch.Tensor for value in drawn.drawn.values())
    assert guide()["3.weight"].equal(layered.network[3].weight)
    first, second = (losses(m, g, x, y, 4000).detach() for m, g in ((layered, guide), (explicit, other)))
    assert_equal_means(first, second, COMPARISONS)
    assert_equal_means(first.square(), second.square(), COMPARISONS)
    # in eval mode the guide does
    posteriors = [fit(m, g, (x, y), epochs=1, lr=1e-9, seed=2) for m, g in ((layered, guide), (explicit, other))]
    predictions = [p.predict(x, num_samples=50, seed=1).parameters["loc"] for p in posteriors]
    torch.testing.assert_close(*predictions)
    assert predictions[0].std(1).min() > 1e-3
    layered.eval()
    assert not guide()["3.weight"].equal(layered.network[3].weight)
    evaluated = losses(layered, guide, x, y, 4000).detach()
    assert_equal_means(evaluated, second, COMPARISONS)
    trace = torch.tensor([pyro.infer.Trace_ELBO().loss(layered, guide, x, y) for _ in range(200)])
    assert_equal_means(trace, second, COMPARISONS)


def test_rate_zero_is_map():
    x, y = data()
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(dist.HalfNormal(1.0)))
    results = [
        fit(bnn, guide, (x, y), epochs=5, lr=0.01).history["loss"]
        for guide in (Map(bnn), Dropout(bnn, 0.0), Dropout(bnn, {"*": 0}))
    ]
    torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[0]))
    assert (results[1] == results[2]).all()
    assert Dropout(bnn, 0.0).rates() == {}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (None, {"layers.2.weight": 0.5, "layers.4.weight": 0.5}),
        (0.1, {"layers.2.weight": 0.1, "layers.4.weight": 0.1}),
        ({"*": 0.25}, {"layers.0.weight": 0.25, "layers.2.weight": 0.25, "layers.4.weight": 0.25}),
        ({"layers.0.weight": 0, "*": 0.25}, {"layers.2.weight": 0.25, "layers.4.weight": 0.25}),
        ({nn.Linear: 0.25, "*": 0.0}, None),
    ],
)
def test_which_weights_are_treated(rate, expected):
    bnn = BayesianNetwork(models.MLP(3, 1, (4, 4)), likelihoods.Gaussian())
    expected = expected or dict.fromkeys(["layers.0.weight", "layers.2.weight", "layers.4.weight"], 0.25)
    found = {name: round(float(value), 6) for name, value in Dropout(bnn, rate).rates().items()}
    assert found == expected
    sites = Dropout(bnn, rate).distributions()
    assert {name for name, q in sites.items() if isinstance(q, MaskedWeight)} == set(expected)
    assert set(sites) == set(bnn.sites)


def test_the_only_layer_is_treated():
    model = Linear()
    assert list(Dropout(model.bnn).rates()) == ["weight"]


def test_the_first_random_layer_is_treated_where_its_inputs_are_not_the_data():
    prior = {"layers.0.*": None, "*": priors.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(models.MLP(3, 1, (4, 4)), likelihoods.Gaussian(), prior)
    assert list(Dropout(bnn, 0.1).rates()) == ["layers.2.weight", "layers.4.weight"]


def test_other_modules_are_points_and_tied_weights_dense():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.conv = nn.Conv1d(4, 4, 1)
            self.norm = nn.LayerNorm(4)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            h = self.conv(self.embed(x).transpose(1, 2)).mean(-1)
            return self.b(self.a(self.norm(h)))

    bnn = BayesianNetwork(Net(), likelihoods.Categorical())
    guide = Dropout(bnn, {"*": 0.5})
    assert list(guide.rates()) == ["conv.weight", "a.weight"]
    values = Sites(form="structured")
    values.run(guide)
    assert type(values.drawn["conv.weight"]).__name__ == "RandomWeight"
    assert type(values.drawn["a.weight"]) is torch.Tensor
    posterior = fit(bnn, guide, (torch.randint(5, (20, 3)), torch.randint(4, (20,))), epochs=2, chains=2)
    assert posterior.predict(torch.randint(5, (6, 3)), 4).parameters["logits"].shape == (2, 4, 6, 4)
    with pytest.raises(ValueError, match=r"rate names 'embed\.\*', which matches no random weight of a linear layer"):
        Dropout(bnn, {"embed.*": 0.1, "*": 0.5})


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("learn_rate", [False, True])
def test_fit_save_load_predict_and_export(noise, learn_rate, tmp_path):
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 3))
    bnn = BayesianNetwork(net, likelihoods.Categorical())
    x, y = torch.randn(30, 1, 4, 4), torch.randint(3, (30,))
    guide = Dropout(bnn, {nn.Conv2d: 0.1, "*": 0.5}, noise=noise, learn_rate=learn_rate)
    objective = objectives.ELBO(num_particles=2)
    posterior = fit(bnn, guide, (x, y), epochs=3, chains=3, batch_size=10, objective=objective, lr=0.02)
    assert torch.tensor(posterior.history["loss"]).isfinite().all()
    rates = posterior.guide.rates(posterior)
    assert list(rates) == ["0.weight", "2.weight", "4.weight"]
    assert all(rate.shape == (3,) for rate in rates.values())
    moved = [(rate - start).abs().min() > 1e-4 for rate, start in zip(rates.values(), (0.1, 0.1, 0.5), strict=True)]
    assert all(moved) if learn_rate else not any(moved)
    assert posterior.log_q(posterior.sample(2)) is None
    drawn = posterior.sample(40)["4.weight"]
    locs = posterior.state()[0]["guide.loc"]
    if noise == "bernoulli":  # masks are hard, whatever they were in training
        off = (drawn == 0).float()
        assert ((off == off[:, :, :1]).all(), 0 < off.mean() < 1) == (True, True)
        assert len((drawn[0, :, 0, 0]).abs().unique()) == 2
    assert locs.shape[0] == 3
    posterior.save(tmp_path / "dropout.bnn")
    again = load(tmp_path / "dropout.bnn")
    assert again.guide.rates(again)["0.weight"].equal(rates["0.weight"])
    first, second = (p.predict(x, 5, seed=1).parameters["logits"] for p in (posterior, again))
    assert first.equal(second)
    idata = posterior.to_arviz((x, y))
    assert "4.weight" in idata.posterior


def test_chains_and_reset():
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian())
    guide = Dropout(bnn, 0.3, learn_rate=True)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    guide.reset_parameters()
    assert all(torch.allclose(rate, torch.tensor(0.3)) for rate in guide.rates().values())
    assert guide.loc.equal(Map(bnn).loc)
    double = Dropout(bnn.double(), 0.3)
    assert {value.dtype for value in double().values()} == {torch.float64}


def test_training_on_minibatches_lowers_the_loss():
    x, y = data(40)
    bnn = BayesianNetwork(mlp(), likelihoods.Gaussian(0.3))
    posterior = fit(bnn, Dropout(bnn, 0.1), (x, y), epochs=60, batch_size=10, lr=0.02)
    assert posterior.history["loss"][0, -1] < 0.5 * posterior.history["loss"][0, 0]


REFUSED = [
    (dict(rate=1.0), r"rate must be in \[0, 1\), not 1\.0"),
    (dict(rate=-0.1), r"rate must be in \[0, 1\)"),
    (dict(rate=math.nan), r"rate must be in \[0, 1\), not nan"),
    (dict(rate=True), r"rate must be in \[0, 1\), not True"),
    (dict(rate="learned"), r"rate must be in \[0, 1\), not 'learned'"),
    (dict(rate={"*": 2}), r"rate must be in \[0, 1\), not 2"),
    (dict(rate={"0.*": 0.1}), r"rate says nothing of '2\.weight'"),
    (
        dict(rate={"*.bias": 0.1, "*": 0.5}),
        r"rate names '\*\.bias', which matches no random weight of a linear layer or",
    ),
    (dict(noise="normal"), "noise must be 'bernoulli' or 'gaussian', not 'normal'"),
    (dict(rate=0.0, learn_rate=True), "every rate is 0"),
    (dict(temperature=0.0), "temperature must be positive"),
    (dict(sampling="local"), "sampling must be one of 'mask', 'dense', not 'local'"),
    (dict(from_dropout_layers=True), "the network has no dropout layer"),
    (dict(from_dropout_layers=True, rate=0.1), "not from both"),
    (dict(from_dropout_layers=True, noise="gaussian"), "draw Bernoulli noise"),
    (dict(from_dropout_layers=True, learn_rate=True), "at rates that get no gradient"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Dropout(BayesianNetwork(mlp(), likelihoods.Gaussian()), **settings)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"dropout layers '2', '5' would drop a second time in training"):
        Dropout(BayesianNetwork(mlp(dropout=(0.1, 0.2)), likelihoods.Gaussian()))
    Dropout(BayesianNetwork(mlp(dropout=(0.0, 0.0)), likelihoods.Gaussian()))
    with pytest.raises(ValueError, match="no random weight of a linear layer or a convolution"):
        Dropout(BayesianNetwork(mlp(), likelihoods.Gaussian(), {"*.bias": dist.Normal(0.0, 1.0), "*": None}))
    improper = BayesianNetwork(mlp(), likelihoods.Gaussian(), priors.LogUniform())
    with pytest.raises(ValueError, match=r"the prior of '2\.weight' is LogUniform, infinitely dense at 0"):
        Dropout(improper)


class Calls(nn.Module):
    """Calls its layers in an order other than that of registration; `choose` defeats symbolic tracing."""

    def __init__(self, order, choose=False, **layers):
        super().__init__()
        self.order, self.choose = order, choose
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        if self.choose and x.sum() > 1e9:
            return x
        for name in self.order:
            x = self.get_submodule(name)(x) if hasattr(self, name) else getattr(F, name)(x)
        return x


def linear():
    return nn.Linear(3, 3)


def conv():
    return nn.Conv2d(3, 3, 1)


LAYERS = [
    (nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.2), linear()), {"3.weight": 0.2}),
    (nn.Sequential(linear(), nn.Dropout(0.2), nn.ReLU(), linear()), {"3.weight": 0.2}),
    (nn.Sequential(nn.Dropout(0.1), linear(), nn.Tanh(), nn.Dropout(0.0), linear()), {"1.weight": 0.1}),
    (nn.Sequential(conv(), nn.Dropout2d(0.2), nn.MaxPool2d(1), conv(), nn.Flatten(), nn.Dropout(0.3), linear()),
     {"3.weight": 0.2, "6.weight": 0.3}),
    (nn.Sequential(conv(), nn.Dropout(0.3), nn.Flatten(), linear()), {"3.weight": 0.3}),
    (Calls(["a", "relu", "drop", "b"], drop=nn.Dropout(0.2), a=linear(), b=linear()), {"b.weight": 0.2}),
    (Calls(["a", "relu", "drop", "b"], choose=True, a=linear(), drop=nn.Dropout(0.2), b=linear()), {"b.weight": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("net", "expected"), LAYERS)
def test_which_weights_dropout_layers_belong_to(net, expected):
    guide = Dropout(BayesianNetwork(net, likelihoods.Gaussian()), from_dropout_layers=True)
    assert {name: round(rate.item(), 6) for name, rate in guide.rates().items()} == expected


NOT_NOISE = [
    ([linear(), nn.Dropout(0.2)], "'1'.*no weight layer comes behind it"),
    ([conv(), nn.Dropout(0.2), conv()], "'1'.*single pixels.*convolution '2'.*use nn.Dropout2d"),
    ([conv(), nn.Dropout2d(0.2), linear()], "'1'.*whole channels.*linear layer '2'"),
    ([conv(), nn.Dropout2d(0.2), nn.Flatten(), linear()], r"'1'.*'2' \(Flatten\) comes between"),
    (
        [linear(), nn.Dropout(0.2), nn.Tanh(), linear()],
        r"'1'.*'2' \(Tanh\) comes between.*put the dropout layer behind",
    ),
    ([linear(), nn.AlphaDropout(0.2), linear()], "'1'.*AlphaDropout does more than multiply"),
    ([conv(), nn.FeatureAlphaDropout(0.2), conv()], "'1'.*FeatureAlphaDropout does more"),
    ([linear(), nn.Dropout(0.2), nn.Dropout(0.2), linear()], "'1'.*'2' comes next"),
    ([linear(), nn.Dropout(1.0), linear()], r"'1'.*its rate is 1\.0"),
]


@pytest.mark.parametrize(("layers", "message"), NOT_NOISE)
def test_dropout_layers_that_are_not_weight_noise_are_refused(layers, message):
    bnn = BayesianNetwork(nn.Sequential(*layers), likelihoods.Gaussian())
    with pytest.raises(ValueError, match=f"the dropout layer {message}"):
        Dropout(bnn, from_dropout_layers=True)


def test_layers_that_are_used_otherwise_are_refused():
    def build(order, prior=None, **layers):
        rule = {} if prior is None else {"prior": prior}
        bnn = BayesianNetwork(Calls(order.split(), **layers), likelihoods.Gaussian(), **rule)
        return Dropout(bnn, from_dropout_layers=True)

    with pytest.raises(ValueError, match=r"'drop'.*is used before \['b', 'c'\]"):
        build("a drop b drop c", a=linear(), drop=nn.Dropout(0.2), b=linear(), c=linear())
    with pytest.raises(ValueError, match=r"'drop'.*'b' behind it is also used without it"):
        build("a drop b b", a=linear(), drop=nn.Dropout(0.2), b=linear())
    with pytest.raises(ValueError, match=r"'drop'.*forward pass does not call it"):
        build("a b", a=linear(), drop=nn.Dropout(0.2), b=linear())
    prior = {"b.weight": None, "*": dist.Normal(0.0, 1.0)}
    with pytest.raises(ValueError, match=r"'drop'.*'b\.weight' behind it has no prior"):
        build("a drop b", prior, a=linear(), drop=nn.Dropout(0.2), b=linear())
    with pytest.raises(ValueError, match="forward pass does not call it, or a larger torch module does"):
        Dropout(
            BayesianNetwork(
                nn.Sequential(nn.TransformerEncoderLayer(4, 1, 4), nn.Linear(4, 1)), likelihoods.Gaussian()
            ),
            from_dropout_layers=True,
        )


def test_a_layer_that_is_used_twice_needs_dense_masks():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    bnn = BayesianNetwork(Twice(), likelihoods.Gaussian())
    x, y = torch.randn(10, 3), torch.randn(10, 3)
    with pytest.raises(RuntimeError, match="used more than once"):
        fit(bnn, Dropout(bnn), (x, y), epochs=1)
    fit(bnn, Dropout(bnn, sampling="dense"), (x, y), epochs=1)

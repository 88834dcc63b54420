"""`Objective`: as Pyro's ELBOs are used, on any Pyro program, in `fit`, and as the base of one's own."""

import copy
import math
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate
from gaussian_losses import evaluations
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from saving import fitted, round_trip, same
from statistical import assert_equal_means, assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods
from bnnzoo._vectorize import pyro_settings
from bnnzoo.objectives import (
    ELBO,
    BBAlpha,
    ImportanceWeighted,
    KLAnnealing,
    Objective,
    Predictive,
    Renyi,
    total_log_likelihood,
)

MODEL = Conjugate(n=8, d=2)
COMPARISONS = 1000


class Median(Objective):
    """The median particle's loss, to which one draw far off does nothing."""

    def combine(self, data, divergence):
        return (divergence - total_log_likelihood(data)).median()


class Tail(Objective):
    """The mean of the worst losses, a conditional value at risk, of weights for all data; takes any other option."""

    def __init__(self, fraction: float = 0.5, **options) -> None:
        super().__init__(**options)
        self.fraction = fraction

    @property
    def joint(self) -> bool:
        return True

    def combine(self, data, divergence):
        losses = divergence - total_log_likelihood(data)
        return losses.topk(math.ceil(self.fraction * len(losses))).values.mean()


OBJECTIVES = {
    "ELBO": ELBO(),
    "ELBO of 3": ELBO(3),
    "BBAlpha": BBAlpha(0.5, 3),
    "BBAlpha, exact": BBAlpha(-0.5, 3, exact=True),
    "Predictive": Predictive(3),
    "Renyi": Renyi(0.5, 3),
    "VR-max": Renyi(-math.inf, 3),
    "ImportanceWeighted": ImportanceWeighted(3),
    "own": Median(3),
    "own, joint": Tail(0.6, num_particles=3),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
one_or_more = pytest.mark.parametrize("particles", [1, 3])


def seeded(fn, *args, **kwargs):
    torch.manual_seed(7)
    return fn(*args, **kwargs)


@every_objective
def test_the_module_of_pyros_interface(objective):
    """`objective(model, guide)` is a module with the parameters of both, its call the loss, trained by torch."""
    with pyro.settings.context(module_local_params=True):
        bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), {"bias": None, "*": dist.Normal(0.0, 1.0)})
        guide = guides.MeanField(bnn, init_scale=0.02)
        loss = objective(bnn, guide)
        names = {name for name, p in loss.named_parameters() if p.requires_grad}
        assert names == {"model.network.bias", "model.likelihood.log_scale", "guide.loc", "guide.log_scale"}
        assert seeded(loss, *MODEL.data).shape == ()
        assert torch.equal(seeded(loss, *MODEL.data), seeded(objective.differentiable_loss, bnn, guide, *MODEL.data))
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            losses.append(loss(*MODEL.data))
            losses[-1].backward()
            assert all(p.grad.isfinite().all() for p in loss.parameters() if p.requires_grad)
            optimizer.step()
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not pyro.get_param_store()


@every_objective
@pytest.mark.parametrize("kind", [guides.MeanField, AutoNormal, AutoLowRankMultivariateNormal])
def test_svi_lowers_the_loss(objective, kind):
    """With the parameters in Pyro's global store: those of the guide, and those that the model learns."""
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(), {"bias": None, "*": dist.Normal(0.0, 1.0)})
    guide = kind(bnn, init_scale=0.02)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.05}), loss=objective)
    losses = [svi.step(*MODEL.data) for _ in range(40)]
    assert all(isinstance(loss, float) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert isinstance(svi.evaluate_loss(*MODEL.data), float)
    held = set(pyro.get_param_store().values())
    trained = [p for part in (bnn, guide) for p in part.parameters() if p.requires_grad]
    assert len(held) == len(trained) == (4 if kind is not AutoLowRankMultivariateNormal else 5)


@every_objective
def test_loss_and_gradients(objective):
    bnn = MODEL.bnn()
    guide = guides.MeanField(bnn)
    value = seeded(objective.loss, bnn, guide, *MODEL.data)
    assert isinstance(value, float)
    assert guide.loc.grad is None
    assert seeded(objective.loss_and_grads, bnn, guide, *MODEL.data) == value
    gradient = guide.loc.grad.clone()
    seeded(objective.loss_and_grads, bnn, guide, *MODEL.data)
    torch.testing.assert_close(guide.loc.grad, 2 * gradient)  # they accumulate
    assert pickle.loads(pickle.dumps(objective)).loss(bnn, guide, *MODEL.data) > 0
    assert repr(copy.deepcopy(objective)) == repr(objective)


def two_guides(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["weight"])))
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["bias"])))
    return guide


FRESH = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoIAFNormal,
    two_guides,
]


@pytest.mark.parametrize("objective", [ELBO(3), BBAlpha(0.5, 3), Renyi(0.5, 3)], ids=repr)
@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("kind", FRESH)
def test_pyros_guides_make_their_parameters_in_the_first_call(kind, local, objective):
    """Outside of vmap, or what they make would be of one particle."""
    with pyro.settings.context(module_local_params=local):
        bnn = MODEL.bnn()
        loss = objective(bnn, kind(bnn))
        loss(*MODEL.data).backward()
        trained = [p for p in loss.parameters() if p.requires_grad]
        assert len(trained) >= 2
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        assert loss(*MODEL.data).isfinite()


def batch_normalized() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), likelihoods.Gaussian(0.5)
    )


@every_objective
def test_running_statistics_move_once_a_particle(objective):
    """Particles run one by one then, a model in Pyro's handlers too; in eval mode nothing moves."""
    bnn = batch_normalized()
    guide = guides.MeanField(bnn)
    particles = objective.num_particles
    for turn, model in enumerate((bnn, poutine.scale(bnn, scale=0.5)), 1):
        before = bnn.network[1].running_mean.clone()
        objective.differentiable_loss(model, guide, *MODEL.data).backward()
        assert bnn.network[1].num_batches_tracked == turn * particles
        assert not torch.equal(bnn.network[1].running_mean, before)
    bnn.eval()
    objective(bnn, guide)(*MODEL.data).backward()
    assert bnn.network[1].num_batches_tracked == 2 * particles
    assert guide.loc.grad.isfinite().all()


@pytest.mark.parametrize("objective", [BBAlpha(0.5, 3), Renyi(0.5, 3), Median(3)], ids=repr)
def test_running_statistics_of_chains(objective):
    bnn = batch_normalized()
    posterior = fit(bnn, guides.MeanField(bnn), MODEL.data, objective=objective, epochs=4, batch_size=4, chains=2)
    assert posterior.state()[1]["model.network.1.num_batches_tracked"].tolist() == [24, 24]
    assert posterior.history["loss"].shape == (2, 4)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("joint", [True, False])
def test_what_combine_is_handed_of_a_plain_pyro_model(joint, particles):
    """Two observed sites and a factor; scales, masks and plates of the model's, one datum of a site each."""
    x, z = torch.randn(3), torch.randn(2, 4)
    mask = torch.tensor([True, False, True, True])
    weights = torch.tensor([[1.0], [3.0]])

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.5))
        pyro.factor("itself", w)
        with pyro.plate("few", 12, subsample=[4, 5, 6]):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        halved, each, masked = poutine.scale(scale=0.5), poutine.scale(scale=weights), poutine.mask(mask=mask)
        with halved, each, masked, pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", dist.Normal(2 * w, 0.5), obs=z)

    class Plain(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.scale = nn.Parameter(torch.tensor(0.3)), 0.8

        def forward(self) -> None:
            pyro.sample("w", dist.Normal(self.loc, self.scale))

    handed = []

    class Looking(Objective):
        @property
        def joint(self) -> bool:
            return joint

        def combine(self, data, divergence):
            handed[:] = data, divergence
            return divergence.sum()

    loss = Looking(particles, kl_weight=0.7)(model, Plain())()
    data, divergence = handed
    (w, one), (of_x, count_x), (of_z, count_z) = data
    assert torch.equal(loss, divergence.sum())
    assert w.shape == divergence.shape == (particles,)
    assert len(w.unique()) == particles
    q, p = dist.Normal(0.3, 0.8), dist.Normal(0.0, 1.5)
    if joint:
        torch.testing.assert_close(divergence, 0.7 * (q.log_prob(w) - p.log_prob(w)))
    else:
        torch.testing.assert_close(divergence, 0.7 * torch.distributions.kl_divergence(q, p).expand(particles))
    assert one == 1
    assert count_x == 4
    torch.testing.assert_close(of_x, dist.Normal(w[:, None], 1.0).log_prob(x))
    torch.testing.assert_close(count_z, 0.5 * weights * mask)
    expected = torch.where(mask, dist.Normal(2 * w[:, None, None], 0.5).log_prob(z), 0.0)
    torch.testing.assert_close(of_z, expected)


@every_objective
def test_masks_and_scales_wider_than_the_likelihood(objective):
    """They repeat it, as in Pyro: a scalar site under a mask of three, two of which hold, is there twice."""
    y = torch.tensor(0.4)

    def scaled() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=torch.tensor([0.5, 2.0])):
            pyro.sample("y", dist.Normal(w, 0.5), obs=y)

    def wide() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=torch.tensor([True, False, True])), poutine.scale(scale=torch.tensor([2.0, 9.0, 0.5])):
            pyro.sample("y", dist.Normal(w, 0.5), obs=y)

    def spelled() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        for name, scale in (("a", 2.0), ("b", 0.5)):
            with poutine.scale(scale=scale):
                pyro.sample(name, dist.Normal(w, 0.5), obs=y)

    def guide() -> None:
        pyro.sample("w", dist.Normal(0.2, 0.7))

    losses = [seeded(objective.loss, model, guide) for model in (scaled, wide, spelled)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


@one_or_more
@pytest.mark.parametrize("kind", [ELBO, partial(Renyi, 1.0)], ids=["ELBO", "Renyi"])
def test_model_and_guide_draw_the_same_rows_of_a_plate(kind, particles):
    """Local latent variables of a subsampled plate belong to rows: those that the guide has drawn."""
    data = 3 * torch.arange(20.0) + torch.randn(20)

    def model() -> None:
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 50.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows])

    def guide() -> None:
        with pyro.plate("data", 20, subsample_size=5) as rows:
            pyro.sample("z", dist.Normal(data[rows], 0.3))

    ours = evaluations(kind(num_particles=particles), model, guide, count=400)
    theirs = torch.tensor([Trace_ELBO().loss(model, guide) for _ in range(150)]).double()
    assert_equal_means(ours, theirs, COMPARISONS, "losses")
    likelihood = -0.5 * 0.3**2 - 0.5 * math.log(2 * math.pi)
    kl = torch.distributions.kl_divergence(dist.Normal(data, 0.3), dist.Normal(0.0, 50.0)).sum().double()
    assert_mean(ours, kl - 20 * likelihood, COMPARISONS, "loss")


@one_or_more
@pytest.mark.parametrize("kind", [ELBO, BBAlpha])
def test_a_guide_without_sites_is_maximum_likelihood(kind, particles):
    y = torch.tensor([1.0, 2.0, 4.0])

    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=y)

    def guide() -> None:
        pass

    objective = kind(num_particles=particles)
    assert objective.loss(model, guide) == pytest.approx(-dist.Normal(0.0, 1.0).log_prob(y).sum().item())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=objective)
    for _ in range(100):
        svi.step()
    assert pyro.param("loc").item() == pytest.approx(7 / 3, abs=0.02)


@every_objective
def test_functions_and_handled_programs_are_programs_too(objective):
    """A function has no modules to look at, and conditioning leaves a latent site less."""
    bnn = MODEL.bnn()

    def guide(x, y) -> None:
        scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        pyro.sample("weight", dist.Normal(torch.zeros(1, 2), scale).to_event(2))

    conditioned = poutine.condition(bnn, {"bias": torch.zeros(1)})
    losses = [
        seeded(objective.loss, model, program, *MODEL.data)
        for model in (conditioned, lambda x, y: conditioned(x, y))
        for program in (guide, poutine.scale(guide, scale=1.0))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) == pytest.approx(losses[3], rel=1e-6)
    svi = SVI(conditioned, guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    before = pyro.param("scale").item()
    svi.step(*MODEL.data)
    assert pyro.param("scale").item() != before


@every_objective
def test_the_weight_of_the_divergence_acts_in_all(objective):
    """0 forgets prior and guide's density; annealing is a weight that the epoch sets."""
    narrow, wide = (
        BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(0.5), dist.Normal(0.0, scale)) for scale in (0.5, 5.0)
    )
    guide = guides.MeanField(narrow)

    def loss(weight, epoch: float = 0.0, model: BayesianNetwork = narrow) -> float:
        weighted = copy.copy(objective)
        weighted.kl_weight, weighted.epoch = weight, epoch
        return seeded(weighted.loss, model, guide, *MODEL.data)

    assert loss(0.0) == loss(0.0, model=wide)
    assert abs(loss(1.0) - loss(1.0, model=wide)) > 0.1
    for epoch, weight in ((0.0, 0.0), (2.0, 0.2), (5.0, 0.5), (10.0, 1.0), (1000.0, 1.0)):
        assert loss(KLAnnealing(10), epoch) == pytest.approx(loss(weight), rel=1e-6)
    assert loss(lambda epoch: epoch**2, 0.5) == pytest.approx(loss(0.25), rel=1e-6)
    assert len({loss(weight) for weight in (0.0, 0.5, 1.0, 2.0)}) == 4


@every_objective
def test_fit_keeps_the_epoch_of_a_copy(objective):
    seen = []

    def weight(epoch: float) -> float:
        seen.append(epoch)
        return epoch

    annealed = copy.copy(objective)
    annealed.kl_weight = weight
    bnn = MODEL.bnn()
    fit(bnn, guides.MeanField(bnn), MODEL.data, objective=annealed, epochs=2, batch_size=4, chains=2)
    assert sorted(set(seen)) == [0.0, 0.5, 1.0, 1.5]
    assert annealed.epoch == 0


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("objective", [Median(5), Tail(0.4, num_particles=5)], ids=repr)
def test_ones_own_objective_trains(objective, chains):
    bnn = MODEL.bnn()
    settings = {"epochs": 80, "lr": 0.05, "batch_size": 8, "chains": chains}
    posterior = fit(bnn, guides.MeanField(bnn), MODEL.data, objective=objective, **settings)
    loss = posterior.history["loss"]
    assert loss.shape == (chains, 80)
    assert (loss[:, -10:].mean(1) < loss[:, :10].mean(1) - 1).all()
    assert posterior.info["objective"] == repr(objective)
    draws = posterior.sample(200)["weight"].reshape(chains, 200, 2).mean(1)
    deviation = MODEL.covariance.diag().sqrt()[:2]
    assert ((draws - MODEL.mean[:2]).abs() < 4 * deviation).all()


def test_the_whole_tail_is_the_elbo():
    bnn = MODEL.bnn()
    guide = guides.MeanField(bnn)
    losses = [
        seeded(objective.loss, bnn, guide, *MODEL.data) for objective in (Tail(1.0, num_particles=6), Renyi(1.0, 6))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("objective", [BBAlpha(0.5, 3), BBAlpha(-1.0, 2), Predictive(3)], ids=repr)
def test_particles_that_would_all_be_the_batch_are_refused(objective):
    """In training, Pyro's handlers or not; not one particle, not the ELBO, and not in eval mode."""
    bnn = batch_normalized()
    guide = guides.BatchNorm(bnn)
    message = r"the draw of guides.BatchNorm is the batch itself, the same for all particles.*use objectives.ELBO\(\)"
    for program in (guide, poutine.scale(guide, scale=0.5)):
        with pytest.raises(ValueError, match=message):
            objective(bnn, program)(*MODEL.data)
    with pytest.raises(ValueError, match=message):
        fit(bnn, guide, MODEL.data, objective=objective, epochs=1)
    for fine in (ELBO(3), BBAlpha(0.0, 3), BBAlpha(0.5, 1)):
        assert fine(bnn, guide)(*MODEL.data).isfinite()


class Constant:
    """A weight without a representation of its own."""

    def __call__(self, epoch: float) -> float:
        return 0.5


def test_objectives_say_what_they_are():
    assert repr(ELBO()) == "ELBO(num_particles=1, kl_weight=1.0)"
    assert repr(Renyi(0, 4)) == "Renyi(alpha=0.0, num_particles=4, kl_weight=1.0)"
    assert repr(ImportanceWeighted(4, KLAnnealing(3))).startswith(
        "ImportanceWeighted(num_particles=4, kl_weight=KLAnnealing(epochs=3"
    )
    assert repr(Tail(0.3, num_particles=4)) == "Tail(fraction=0.3, num_particles=4, kl_weight=1.0)"
    assert repr(ELBO(kl_weight=math.sqrt)) == "ELBO(num_particles=1, kl_weight=sqrt)"
    # nothing that differs between processes
    assert repr(ELBO(kl_weight=partial(KLAnnealing.__call__, KLAnnealing(2)))).count("0x") == 0
    assert repr(ELBO(kl_weight=Constant())).endswith("Constant object>)")


def test_an_objective_that_hides_its_arguments_is_refused_before_training():
    class Hiding(Median):
        def __init__(self, strength: float) -> None:
            super().__init__(3)
            self._strength = strength

    bnn = MODEL.bnn()
    with pytest.raises(AttributeError, match="Hiding must keep its argument 'strength' as an attribute"):
        fit(bnn, guides.MeanField(bnn), MODEL.data, objective=Hiding(1.0), epochs=10**6)


def test_an_objective_is_an_instance():
    bnn = MODEL.bnn()
    with pytest.raises(TypeError, match=r"objective must be an instance, BBAlpha\(...\), not the class"):
        fit(bnn, guides.MeanField(bnn), MODEL.data, objective=BBAlpha)


@every_objective
def test_posteriors_of_all_are_saved(objective, tmp_path):
    posterior = fitted(objective=objective, chains=2)
    assert posterior.info["objective"] == repr(objective)
    same(posterior, round_trip(posterior, tmp_path))


OTHERS = [
    (BBAlpha(0.5, 3), BBAlpha(1.0, 3)),
    (BBAlpha(0.5, 3), BBAlpha(0.5, 4)),
    (BBAlpha(0.5, 3), BBAlpha(0.5, 3, exact=True)),
    (BBAlpha(1.0, 3), Predictive(3)),
    (Renyi(0.5, 3), Renyi(-math.inf, 3)),
    (Renyi(0.0, 3), ImportanceWeighted(3)),
    (ELBO(), ELBO(kl_weight=0.5)),
    (ELBO(kl_weight=KLAnnealing(5)), ELBO(kl_weight=KLAnnealing(6))),
    (Tail(0.5, num_particles=3), Tail(0.7, num_particles=3)),
    (Tail(0.5, num_particles=3), Tail(0.5, num_particles=4)),
]


class InterruptionError(Exception):
    pass


def interrupt(progression) -> None:
    if progression.epoch == 2:  # the file holds the first epoch
        raise InterruptionError


@pytest.mark.parametrize(("first", "other"), OTHERS, ids=repr)
def test_a_checkpoint_belongs_to_its_objective(first, other, tmp_path):
    with pytest.raises(InterruptionError):
        fitted(objective=first, checkpoint=tmp_path / "c", callback=interrupt, epochs=3)
    with pytest.raises(ValueError, match="belongs to another run: its objective is") as error:
        fitted(objective=other, checkpoint=tmp_path / "c", epochs=3)
    assert repr(first) in str(error.value)
    assert repr(other) in str(error.value)


@every_objective
def test_a_checkpoint_is_resumed_under_the_same_objective(objective, tmp_path):
    annealed = copy.copy(objective)
    annealed.kl_weight = KLAnnealing(3)
    with pytest.raises(InterruptionError):
        fitted(objective=annealed, checkpoint=tmp_path / "c", callback=interrupt, epochs=4)
    resumed = fitted(objective=copy.deepcopy(annealed), checkpoint=tmp_path / "c", epochs=4)
    same(resumed, fitted(objective=annealed, epochs=4))


def test_annealing_is_checked():
    for epochs in (True, math.inf, math.nan, 0, -1.0, "3", None):
        with pytest.raises(ValueError, match=r"^epochs must be positive and finite, not "):
            KLAnnealing(epochs)


class Scaled(PyroModule):
    """A guide of one's own, with a constrained parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.scale = PyroParam(torch.full((3,), 0.1), dist.constraints.positive)

    def forward(self, *args, **kwargs) -> None:
        pyro.sample("weight", dist.Normal(self.loc[None, :2], self.scale[:2]).to_event(2))
        pyro.sample("bias", dist.Normal(self.loc[2:], self.scale[2:]).to_event(1))


@every_objective
def test_ones_own_guide_trains_under_all(objective):
    with pyro.settings.context(module_local_params=True):
        bnn, guide = MODEL.bnn(), Scaled()
    with pyro_settings(guide):
        loss = objective(bnn, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        before = evaluations(objective, bnn, guide, *MODEL.data, count=100).mean()
        for _ in range(60):
            optimizer.zero_grad()
            loss(*MODEL.data).backward()
            optimizer.step()
        after = evaluations(objective, bnn, guide, *MODEL.data, count=100).mean()
    assert after < before - 5
    assert all(isinstance(p, Tensor) and p.isfinite().all() for p in loss.parameters())

"""`bnnzoo.testing`: own guides and objectives pass; of broken ones, each is caught by the check of what it breaks."""

import doctest
import functools
import re

import broken_guides as broken
import broken_objectives
import pytest

from bnnzoo import guides, objectives, testing
from bnnzoo._contract import measure
from bnnzoo._vectorize import vectorize
from bnnzoo.guides import MeanField
from bnnzoo.testing import CHECKS, OBJECTIVE_CHECKS, PROBLEMS, GuideCase, ObjectiveCase, check_guide, check_objective

BROKEN = [
    (broken.MissingSite, "sites", r"dense: in training the guide draws no site \['0.weight'\]; it draws"),
    (broken.WrongShape, "sites", r"site '0.weight' has shape \[1, 4, 3\], and the model's \[4, 3\]"),
    (broken.BatchShape, "sites", r"site '0.weight' has batch shape \[4, 3\]: call to_event\(2\)"),
    (broken.OutsideOfSupport, "sites", "site 'noise' is drawn outside of the prior's support"),
    (broken.ReturnsNothing, "sites", "the guide returns a NoneType, not a dict"),
    (broken.Unmarked, "sites", "site 'z' is not in the model and not marked infer={'is_auxiliary': True}"),
    (broken.Unlisted, "sites", r"draws the auxiliary sites {'z': \[2\]}, and its `auxiliary` lists {}"),
    (broken.ListedWrongly, "sites", r"draws the auxiliary sites {'z': \[2\]}, and its `auxiliary` lists {'z': \[3\]}"),
    (
        broken.ListedWrongly,
        "draws",
        r"draws of 'z' have shape \[2, 5, 2\], expected .* = \[2, 5, 3\]",
    ),
    (broken.NotANumber, "draws", "draws of 'z': 20 of 20 elements are NaN or infinite"),
    (broken.NoiseOfNumpy, "draws", "draws of '0.weight' are not all different"),
    (broken.SteepStart, "finite", "at start: the gradient of the loss by 'guide.loc': .* elements are NaN or infinite"),
    (broken.Overflows, "finite", "at parameters changed by .*: the ELBO's 'loss': 1 of 1 elements are NaN"),
    (
        broken.IdleParameter,
        "finite",
        r"the loss does not depend on the parameters \['guide.forgotten'\]",
    ),
    (broken.DensityOfEachSite, "finite", r"log_prob of one draw has shape \[5\]"),
    (broken.DensityWithoutNormalizer, "finite", "log_prob of a draw, beside the sum over its sites: .* instead of"),
    (broken.HalfEntropy, "bound", "the ELBO at .* parameters is no bound"),
    (broken.Gift, "bound", "the ELBO at trained parameters is no bound"),
    (guides.Map, "bound", "the ELBO at .* parameters is no bound"),
    (
        broken.DensityOfAnother,
        "pyro_elbo",
        "loss by bnnzoo's ELBO and by pyro.infer.Trace_ELBO: means .* standard errors apart",
    ),
    (broken.WideDraws, "pyro_elbo", "by bnnzoo's ELBO and by pyro.infer.Trace_ELBO: means .* standard errors apart"),
    (
        broken.WideDraws,
        "structured",
        "outputs under structured and dense draws, (mean|variance): .* standard errors apart",
    ),
    (broken.NoKeywords, "svi", "TypeError: .*unexpected keyword argument 'size'"),
    (broken.HeldParameter, "chains", "of chains mapped and alone: means .* standard errors apart"),
    (broken.Branches, "chains", r"RuntimeError: .*\.item\(\)"),
    (
        broken.Forgetful,
        "saving",
        r"loaded by load\(path, guide=...\): draws of '0.weight' of the same seed: ",
    ),
    (broken.Single, "dtype", r"parameters \['guide.loc'\] are not in double precision"),
    (broken.Wasteful, "memory", r"predict\(max_memory=.*\) has .* bytes alive at once"),
    (broken.NotANumber, "arviz", "exported 'z': .* elements are NaN or infinite"),
    (broken.ModelInside, "copy", "the model is a submodule of the guide"),
    (broken.SharedByCopies, "copy", r"a copy shares the memory of \['guide.loc'\]"),
    (broken.ResetsHalf, "reset", "parameter 'log_scale' after two resets of one seed"),
    (broken.ResetsAtRandom, "reset", "parameter 'loc' after two resets of one seed"),
    (broken.ResetsAtRandom, "seeds", "two fits of one seed: draws of '0.weight' of the same seed"),
    (broken.NoiseOfNumpy, "seeds", "two fits of one seed: draws of '0.weight' of the same seed"),
    (broken.OneNoise, "seeds", "are the same for another seed"),
    (broken.TouchesNumpy, "seeds", "changed NumPy's global generator"),
]


@pytest.mark.parametrize(("guide", "check", "message"), BROKEN, ids=[f"{g.__name__}-{c}" for g, c, _ in BROKEN])
def test_a_broken_guide_is_caught(guide, check, message):
    with pytest.raises(AssertionError, match=f"(?s)the guide fails 1 of 1 checks:.*{check}: .*{message}"):
        check_guide(guide, [check])


@pytest.mark.parametrize("check", CHECKS)
def test_an_own_guide_passes(check):
    CHECKS[check](OWN)


OWN = GuideCase(functools.partial(broken.Own, scale=0.05))


def test_every_check_is_seen_to_fail():
    assert {check for _, check, _ in BROKEN} | {"device"} == set(CHECKS)


def test_chains_that_share_noise_are_caught(monkeypatch):
    def shared(fn, in_dims):  # noise of its own for each draw, the same for all chains
        return vectorize(fn, in_dims, "same" if in_dims == (0, 0, None) else "different")

    monkeypatch.setattr(measure, "vectorize", shared)
    with pytest.raises(AssertionError, match=r"dense: losses of two chains have rank correlation 1\.00"):
        testing.check_chains(GuideCase(broken.Dense))


def test_all_failures_are_told():
    message = (
        r"the guide fails 2 of 3 checks:\n  sites: dense: in training the guide draws no site .*\n"
        r"  draws: ValueError: the guide has no site for the model's latent '0\.weight'"
    )
    with pytest.raises(AssertionError, match=message) as failure:
        check_guide(broken.MissingSite, ["sites", "reset", "draws"])
    assert "draws no site" in str(failure.value.__cause__)


def test_a_check_on_some_problems_only():
    check_guide(broken.OutsideOfSupport, ["sites"], problems=PROBLEMS[1:])


BROKEN_OBJECTIVES = [
    ("Plain", "interface", "dense, MeanField: Plain is no pyro.infer.ELBO: derive it from Objective"),
    ("Vector", "interface", r"the loss has shape \[1\], and not that of a scalar, \[\]"),
    ("Number", "interface", "the loss is a float, not a tensor"),
    ("Constant", "interface", "the loss depends on no parameter"),
    ("NoGradients", "interface", "gradient by 'guide.loc' of loss_and_grads, beside autograd: 0 instead of"),
    ("ToldByDatum", "interface", "loss_and_grads, beside differentiable_loss under the same seed: .* instead of"),
    (
        "Overflows",
        "finite",
        r"parameters changed by .*, . particles, .* of 12 rows: the objective's 'loss': .* infinite",
    ),
    ("DataDetached", "finite", r"the loss does not depend on the parameters \['model.network.2.bias'\]"),
    ("CountsDropped", "one_particle", "loss by one particle and by the ELBO, .* half the data: means .* errors apart"),
    (
        "CountsDropped",
        "minibatches",
        "losses of three batches of 4, averaged, and of all 12 data: means .* errors apart",
    ),
    ("MeanOverData", "one_particle", "loss by one particle and by the ELBO, .*: means .* standard errors apart"),
    ("WrongSign", "one_particle", "loss by one particle and by the ELBO, .*: means .* standard errors apart"),
    ("SumOverParticles", "points", "dense, Map, 4 particles: the loss of a point, beside the ELBO's: .* instead of"),
    ("RefusesPoints", "points", r"not defined for a point \(claim points=False if it is not\): no points here"),
    ("WeightIgnored", "divergence", "kl_weight=0: the loss under another prior: .* instead of"),
    ("WeightAtTheStart", "divergence", r"kl_weight=KLAnnealing\(2\), epoch 0.5: the loss, beside kl_weight=0.25: "),
    ("EqualShares", "gradients", "the mean slope of the loss is .* along a direction, and that of its gradients"),
    ("DataDetached", "gradients", "the mean slope of the loss is .* along a direction, and that of its gradients"),
    ("Branches", "chains", r"RuntimeError: .*\.item\(\)"),
    ("NoGradients", "svi", r"a step of SVI does not change \['loc', 'log_scale'\]"),
    ("Single", "dtype", r"in double precision: {'loss': torch.float32}"),
    ("NoiseOfNumpy", "seeds", "the loss for one seed is .* once and .* later"),
    ("Remembers", "seeds", "the loss for one seed is .* once and .* later"),
    ("Nameless", "fit", "repr differs for objectives that are alike: <.* at 0x.*> and <.* at 0x"),
    ("Forgets", "fit", "AttributeError: Forgets must keep its argument 'strength' as an attribute"),
    ("WeightAtTheStart", "fit", r"kl_weight was called with the epochs \[0.0\], and not with \[0.0, 0.33"),
    ("Ascends", "training", "the losses of two chains do not fall: from .* and .* to .* and .* in 10 steps"),
]


@pytest.mark.parametrize(("name", "check", "message"), BROKEN_OBJECTIVES)
def test_a_broken_objective_is_caught(name, check, message):
    with pytest.raises(AssertionError, match=f"(?s)the objective fails 1 of 1 checks:.*{check}: .*{message}"):
        check_objective(getattr(broken_objectives, name), [check])


def test_every_check_of_objectives_is_seen_to_fail():
    assert {check for _, check, _ in BROKEN_OBJECTIVES} == set(OBJECTIVE_CHECKS)


@pytest.mark.parametrize("check", OBJECTIVE_CHECKS)
def test_an_own_objective_passes(check):
    OBJECTIVE_CHECKS[check](ObjectiveCase(broken_objectives.WorstCase))


def test_what_is_claimed_of_an_objective():
    """A multiple of another objective is not the ELBO of one particle; nor is a refusal right that says nothing."""

    def double(num_particles, kl_weight):
        return broken_objectives.Multiple(2.0, num_particles, kl_weight)

    check_objective(double, elbo=False, problems=PROBLEMS[:1])
    with pytest.raises(AssertionError, match=r"fails 2 of 2 checks:\n  one_particle: .*\n  points: dense, Map, 1 part"):
        check_objective(double, ["one_particle", "points"])
    with pytest.raises(AssertionError, match="the ValueError does not say why"):
        check_objective(broken_objectives.RefusesSilently, ["points"], points=False)
    with pytest.raises(AssertionError, match="takes a guide that is a point, where a ValueError is claimed"):
        check_objective(objectives.ELBO, ["points"], points=False)
    with pytest.raises(AssertionError, match="losses of three batches of 4, averaged, and of all 12 data"):
        check_objective(objectives.Renyi, ["minibatches"], points=False)


def test_users_mistakes():
    with pytest.raises(ValueError, match=re.escape("there is no check 'site'; there are sites, draws, finite, ")):
        check_guide(MeanField, ["site"])
    with pytest.raises(TypeError, match="make builds a guide from a model: a class or a function, not 'MeanField'"):
        check_guide("MeanField")
    with pytest.raises(ValueError, match=re.escape("there is no check 'sites'; there are interface, finite, ")):
        check_objective(objectives.ELBO, ["sites"])
    with pytest.raises(TypeError, match="make builds an objective: a class or a function, not ELBO"):
        check_objective(objectives.ELBO())


def test_the_example_runs():
    assert doctest.testmod(testing) == (0, 3)

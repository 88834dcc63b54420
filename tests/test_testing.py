"""`bnnzoo.testing`: an own guide passes; of broken ones, each is caught by the check of what it breaks."""

import doctest
import functools
import re

import broken_guides as broken
import pytest

from bnnzoo import guides, testing
from bnnzoo._contract import measure
from bnnzoo._vectorize import vectorize
from bnnzoo.guides import MeanField
from bnnzoo.testing import CHECKS, PROBLEMS, GuideCase, check_guide

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


def test_users_mistakes():
    with pytest.raises(ValueError, match=re.escape("there is no check 'site'; there are sites, draws, finite, ")):
        check_guide(MeanField, ["site"])
    with pytest.raises(TypeError, match="make builds a guide from a model: a class or a function, not 'MeanField'"):
        check_guide("MeanField")


def test_the_example_runs():
    assert doctest.testmod(testing) == (0, 2)

"""Posteriors: densities of draws, and training that goes on."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from posteriors import NOISE, X, Y, fitted
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import transform_to

from bnnzoo import BayesianNetwork, data, fit, guides, likelihoods, load, priors, sample


def transformed(value, loc, scale):
    """log q of a positive site that is Gaussian in log space."""
    return dist.LogNormal(loc, scale).log_prob(value)


class TestDensities:
    @pytest.mark.parametrize("chains", [1, 2])
    def test_mean_field(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains)
        draws = fit_.sample(5)
        loc, scale = fit_._parameters["guide.loc"], fit_._parameters["guide.log_scale"].exp()
        names = list(fit_.guide.layout.names)
        assert names[-1] == "noise"
        flat = torch.cat([draws[name].flatten(2) for name in names[:-1]], 2)
        expected = dist.Normal(loc[:, None, :-1], scale[:, None, :-1]).log_prob(flat).sum(2)
        expected = expected + transformed(draws["noise"], loc[:, None, -1], scale[:, None, -1])
        torch.testing.assert_close(fit_.log_q(draws), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_pyros_normal(self, chains):
        fit_ = fitted(likelihood=NOISE, chains=chains, guide=AutoNormal)
        draws = fit_.sample(5)
        expected = 0.0
        for name, value in draws.items():
            loc = fit_._parameters[f"guide.locs.{name}_unconstrained"].reshape(chains, 1, -1)
            scale = fit_._parameters[f"guide.scales.{name}_unconstrained"].reshape(chains, 1, -1)
            scale = transform_to(AutoNormal.scale_constraint)(scale)
            family = dist.LogNormal if name == "noise" else dist.Normal
            expected = expected + family(loc, scale).log_prob(value.reshape(chains, 5, -1)).sum(2)
        torch.testing.assert_close(fit_.log_q(draws), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoLowRankMultivariateNormal])
    def test_pyros_joint_normals(self, guide):
        fit_ = fitted(likelihood=NOISE, guide=guide)
        draws = fit_.sample(5)
        values = {name: value[0] for name, value in draws.items()}
        sites = [name for name, _ in fit_.guide.prototype_trace.iter_stochastic_nodes()]
        unconstrained = {**values, "noise": values["noise"].log()}
        latent = torch.cat([unconstrained[name].reshape(5, -1) for name in sites], 1)
        expected = fit_.guide.get_posterior().log_prob(latent) - unconstrained["noise"]
        torch.testing.assert_close(fit_.log_q(draws)[0], expected, rtol=1e-4, atol=1e-3)

    def test_a_plain_pyro_guide(self):
        import pyro

        class Plain(PyroModule):
            def __init__(self, bnn):
                super().__init__("plain")
                self.loc = nn.Parameter(torch.zeros(1, 3))

            def forward(self, x, y=None, size=None):
                pyro.sample("weight", dist.Normal(self.loc, 0.5).to_event(2))

        bnn = BayesianNetwork(nn.Linear(3, 1, bias=False), likelihoods.Gaussian(0.3))
        fit_ = fit(bnn, Plain(bnn), (X, Y), epochs=2, chains=2, lr=0.1)
        draws = fit_.sample(4)
        loc = fit_._parameters["guide.loc"][:, None]
        torch.testing.assert_close(fit_.log_q(draws), dist.Normal(loc, 0.5).log_prob(draws["weight"]).sum((2, 3)))

    def test_points_and_what_has_no_known_density(self):
        for guide in (guides.Map, AutoDelta, lambda bnn: AutoIAFNormal(bnn, hidden_dim=[40])):
            fit_ = fitted(guide=guide)
            assert fit_.log_q(fit_.sample(2)) is None

    def test_a_guide_with_sites_of_its_own_has_none_either(self):
        import pyro

        class Hidden(PyroModule):
            def __init__(self, bnn):
                super().__init__("hidden")
                self.loc = nn.Parameter(torch.zeros(1, 3))

            def forward(self, x, y=None, size=None):
                z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
                pyro.sample("weight", dist.Normal(self.loc + z, 0.5).to_event(2))

        bnn = BayesianNetwork(nn.Linear(3, 1, bias=False), likelihoods.Gaussian(0.3))
        fit_ = fit(bnn, Hidden(bnn), (X, Y), epochs=2)
        draws = fit_.sample(4)
        assert set(draws) == {"weight"}
        assert fit_.log_q(draws) is None

    @pytest.mark.parametrize("chains", [1, 2])
    def test_prior(self, chains):
        prior = {
            "0.weight": priors.StudentT(4.0, 0.0, 2.0),
            "0.bias": priors.ScaleMixture(0.3, 1.0, 0.1),
            "2.weight": priors.FanIn(2.0),
            "2.bias": priors.Laplace(0.0, 3.0),
        }
        fit_ = fitted(likelihood=NOISE, prior=prior, chains=chains)
        draws = fit_.sample(4)
        mixture = torch.logaddexp(
            np.log(0.3) + dist.Normal(0.0, 1.0).log_prob(draws["0.bias"]),
            np.log(0.7) + dist.Normal(0.0, 0.1).log_prob(draws["0.bias"]),
        )
        expected = (
            dist.StudentT(4.0, 0.0, 2.0).log_prob(draws["0.weight"]).sum((2, 3))
            + mixture.sum(2)
            + dist.Normal(0.0, 2 / 5**0.5).log_prob(draws["2.weight"]).sum((2, 3))
            + dist.Laplace(0.0, 3.0).log_prob(draws["2.bias"]).sum(2)
            + dist.LogNormal(-1.0, 0.5).log_prob(draws["noise"])
        )
        torch.testing.assert_close(fit_.log_prior(draws), expected, rtol=1e-4, atol=1e-4)

    def test_stored_draws_have_a_prior_density_but_none_of_their_own(self):
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        fit_ = sample(bnn, (X, Y), num_samples=6, warmup_steps=6, chains=2)
        draws = fit_.sample(6)
        assert fit_.log_q(draws) is None
        expected = sum(dist.Normal(0.0, 1.0).log_prob(value).flatten(2).sum(2) for value in draws.values())
        torch.testing.assert_close(fit_.log_prior(draws), expected)

    def test_guides_of_guides(self):
        from pyro import poutine

        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        guide = AutoGuideList(bnn)
        guide.append(AutoNormal(poutine.block(bnn, hide=["bias"])))
        guide.append(AutoNormal(poutine.block(bnn, hide=["weight"])))
        fit_ = fit(bnn, guide, (X, Y), epochs=2, chains=2)
        draws = fit_.sample(3)
        assert set(draws) == {"weight", "bias"}
        assert fit_.log_q(draws) is None


class TestGoingOn:
    @pytest.mark.parametrize("chains", [1, 3])
    @pytest.mark.parametrize("guide", [guides.Map, guides.MeanField, AutoNormal])
    def test_training_goes_on_from_a_file(self, tmp_path, guide, chains):
        dataset = data.Dataset(5 + 3 * X, 100 + 20 * Y).with_standardization()
        first = fitted(
            likelihood=likelihoods.Gaussian(), dataset=dataset, guide=guide, chains=chains, epochs=150, lr=0.03
        )
        first.save(tmp_path / "p")
        loaded = load(tmp_path / "p")
        before = loaded.state()
        second = loaded.fit(dataset, epochs=20, lr=0.003)
        assert second.chains == chains
        assert second.history["loss"].shape == (chains, 20)
        start, end = first.history["loss"][:, 0], first.history["loss"][:, -10:].mean(1)
        gap = np.abs(second.history["loss"][:, 0] - end)
        if guide is guides.Map:
            assert (gap < 0.02 * (start - end)).all()
        else:  # single draws are noisy
            assert (gap < 0.5 * (start - end)).all()
            drawn = first.history["loss"][:, -20:].mean(), first.history["loss"][:, -20:].std()
            assert abs(second.history["loss"].mean() - drawn[0]) < 1.5 * drawn[1]
        for name, value in loaded.state()[0].items():
            assert torch.equal(value, before[0][name])
        assert second.standardization is loaded.standardization

    def test_no_step_no_change(self):
        first = fitted(chains=2, guide=guides.Map)
        second = first.fit((X, Y), epochs=1, lr=1e-12)
        for name, value in first.state()[0].items():
            torch.testing.assert_close(second.state()[0][name], value, rtol=0, atol=1e-6)

    def test_data_are_standardized_as_before(self):
        dataset = data.Dataset(5 + 3 * X, 100 + 20 * Y).with_standardization()
        first = fitted(dataset=dataset, chains=2)
        one, two = first.fit(dataset, epochs=2), first.fit((dataset.x, dataset.y), epochs=2)
        np.testing.assert_array_equal(one.history["loss"], two.history["loss"])

    def test_settings(self):
        fit_ = fitted(chains=2)
        with pytest.raises(TypeError, match=r"chains.* is no setting of Posterior\.fit"):
            fit_.fit((X, Y), chains=3)
        with pytest.raises(TypeError, match=r"epoch.* is no setting of Posterior\.fit"):
            fit_.fit((X, Y), epoch=3)
        with pytest.raises(ValueError, match="epochs must be an integer"):
            fit_.fit((X, Y), epochs=0)

    def test_stored_draws_cannot_be_trained(self):
        bnn = BayesianNetwork(nn.Linear(3, 1), likelihoods.Gaussian(0.3))
        with pytest.raises(TypeError, match="stored draws have nothing to train"):
            sample(bnn, (X, Y), num_samples=4, warmup_steps=4).fit((X, Y))

    def test_state_is_a_copy(self):
        fit_ = fitted()
        fit_.state()[0]["guide.loc"].zero_()
        assert (fit_.state()[0]["guide.loc"] != 0).any()

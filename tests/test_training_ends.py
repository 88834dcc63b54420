"""`fit`: validation, early stopping, callbacks, progress, divergence."""

import math

import numpy as np
import pytest
import torch
from fitting import LABELS, N, Record, X, Y, assert_equal, gen, model, network, parameters, quick
from torch import nn

from bnnzoo import data, guides, likelihoods, models, priors
from bnnzoo._vectorize import seeded
from bnnzoo.chains import DivergenceWarning


def stopping(scores, patience):
    """The best epoch and the last one, counted from 0, of a chain with these scores."""
    best = 0
    for epoch, score in enumerate(scores):
        if score < scores[best]:
            best = epoch
        if epoch - best >= patience:
            return best, epoch
    return best, len(scores) - 1


class TestValidation:
    def test_the_score_is_the_mean_negative_log_density_of_held_out_data(self):
        held = (X[:10] + 0.1, Y[:10])
        posterior = quick(chains=2, validation=held, epochs=4)
        prediction = posterior.predict(held[0], 1)
        expected = [-prediction.chain(c).log_prob(held[1]).mean().item() for c in range(2)]
        np.testing.assert_allclose(posterior.history["validation"][:, -1], expected, rtol=1e-4)

    def test_scores_of_large_sets_are_computed_in_parts(self, monkeypatch):
        settings = {"chains": 2, "guide": guides.MeanField, "validation": (X, Y)}
        whole = quick(**settings).history["validation"]
        monkeypatch.setattr("bnnzoo.loop.Validation.memory", 5000)
        np.testing.assert_allclose(quick(**settings).history["validation"], whole, rtol=1e-5)

    def test_a_fraction_is_held_out(self):
        posterior = quick(validation=0.25)
        assert posterior.info["num_data"] == 30
        assert quick(validation=0.01).info["num_data"] == N - 1

    def test_the_held_out_rows_are_no_training_rows(self):
        # Rows that the network could only know by heart.
        x = torch.eye(N)
        y = torch.randn(N, generator=gen()) * 10
        bnn = model(nn.Linear(N, 1, bias=False), likelihoods.Gaussian(1.0), priors.Normal(0.0, 100.0))
        posterior = quick(bnn, dataset=(x, y), validation=0.25, epochs=200, lr=0.5, batch_size=30)
        learned = (posterior.predict(x, 1).mean - y).abs() < 0.5
        assert learned.sum() == 30

    @pytest.mark.parametrize("chains", [1, 3])
    def test_each_chain_stops_at_its_best_epoch(self, chains):
        record = Record()
        x = torch.randn(12, 3, generator=gen(5))
        y = torch.randn(12, generator=gen(6))  # nothing to learn: the score worsens sooner or later
        posterior = quick(
            dataset=(x, y),
            validation=(X[:20], torch.randn(20, generator=gen(7))),
            patience=5,
            epochs=300,
            lr=0.05,
            chains=chains,
            callback=record,
        )
        scores = posterior.history["validation"]
        assert scores.shape[1] < 300
        lengths = []
        for chain in range(chains):
            at, stop = stopping(scores[chain], 5)
            lengths.append(stop + 1)
            for name, value in record.seen[at][2].items():
                assert torch.equal(posterior._parameters[name][chain], value[chain]), name
            for epoch, _, values, active in record.seen:
                assert active[chain] == (epoch <= stop)
                if epoch > stop:  # put back at once, and after every epoch
                    assert torch.equal(values["guide.loc"][chain], record.seen[at][2]["guide.loc"][chain])
        assert max(lengths) == scores.shape[1]

    def test_without_stopping_the_best_epoch_is_returned(self):
        record = Record()
        posterior = quick(chains=2, validation=0.3, patience=1000, epochs=15, lr=0.3, callback=record)
        for chain in range(2):
            best = int(np.argmin(posterior.history["validation"][chain]))
            assert torch.equal(posterior._parameters["guide.loc"][chain], record.seen[best][2]["guide.loc"][chain])

    def test_a_stopped_chain_does_not_touch_the_others(self):
        settings = {"chains": 3, "epochs": 12, "batch_size": 16, "lr": 0.2, "validation": 0.3}
        free = quick(**settings)
        record = Record()
        quick(**settings, patience=1, callback=record)
        *_, active = record.seen[-1]
        assert not active.all()
        for epoch, history, _, active in record.seen:
            for chain in torch.nonzero(active).flatten().tolist():
                assert history["loss"][chain, epoch - 1] == free.history["loss"][chain, epoch - 1]

    def test_batch_statistics_of_the_best_epoch_come_back_too(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        posterior = quick(model(net), chains=2, validation=0.3, patience=2, epochs=30, lr=0.3, batch_size=28)
        best = [1 + stopping(scores, 2)[0] for scores in posterior.history["validation"]]
        assert posterior._buffers["model.network.1.num_batches_tracked"].tolist() == best

    def test_scores_that_are_never_finite_leave_the_last_parameters(self):
        bnn = model(network(), likelihoods.Poisson())
        counts = torch.ones(N)
        record = Record()
        posterior = quick(
            bnn,
            dataset=(X, counts),
            validation=(1e30 * torch.ones(2, 3), torch.tensor([3.0, 1.0])),
            patience=10,
            callback=record,
        )
        if not np.isfinite(posterior.history["validation"]).any():
            assert torch.equal(posterior._parameters["guide.loc"], record.seen[-1][2]["guide.loc"])

    def test_validation_data_are_standardized_as_the_training_data(self):
        split = data.Dataset(50 + 9 * X, 300 + 40 * Y).split(0.25)
        own = quick(dataset=split.train, validation=split.test)
        pair = quick(dataset=split.train, validation=(split.test.x, split.test.y))
        np.testing.assert_array_equal(own.history["validation"], pair.history["validation"])
        assert own.history["validation"].max() < 1000


class TestCallback:
    def test_what_it_is_shown(self):
        record = Record()
        posterior = quick(chains=2, epochs=4, validation=0.2, callback=record)
        assert [entry[0] for entry in record.seen] == [1, 2, 3, 4]
        for epoch, history, values, active in record.seen:
            assert history["loss"].shape == history["validation"].shape == (2, epoch)
            np.testing.assert_array_equal(history["loss"], posterior.history["loss"][:, :epoch])
            assert active.tolist() == [True, True]
            assert values["guide.loc"].shape == posterior._parameters["guide.loc"].shape
        assert torch.equal(record.seen[-1][2]["guide.loc"], posterior._parameters["guide.loc"])

    @pytest.mark.parametrize("chains", [1, 2])
    def test_true_ends_training(self, chains):
        posterior = quick(chains=chains, epochs=50, callback=lambda progression: progression.epoch == 3)
        assert posterior.history["loss"].shape == (chains, 3)

    @pytest.mark.parametrize("answer", [None, False, 1, "yes"])
    def test_nothing_else_does(self, answer):
        assert quick(epochs=4, callback=lambda progression: answer).history["loss"].shape == (1, 4)

    @pytest.mark.parametrize("chains", [1, 2])
    def test_what_it_writes_to_parameters_stays(self, chains):
        def prune(progression):
            progression.parameters["guide.loc"][:, :5] = 0.0

        posterior = quick(chains=chains, callback=prune)
        assert (posterior._parameters["guide.loc"][:, :5] == 0).all()
        assert (posterior._parameters["guide.loc"][:, 5:] != 0).any()

    def test_its_errors_pass(self):
        def fail(progression):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            quick(callback=fail)


class TestProgress:
    def test_silent_where_there_is_no_terminal(self, capfd):
        quick()
        assert capfd.readouterr() == ("", "")

    def test_bar_goes_to_standard_error(self, capfd):
        quick(progress=True, epochs=2)
        out, err = capfd.readouterr()
        assert out == ""
        assert "2/2" in err
        assert "loss" in err


class TestDivergence:
    settings = {"chains": 3, "epochs": 6, "batch_size": 16}  # noqa: RUF012

    def run(self, callback=None, **settings):
        with seeded(0):
            net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
        return quick(
            model(net), settings.pop("guide", guides.MeanField), **{**self.settings, **settings}, callback=callback
        )

    @pytest.mark.parametrize("broken", [0, 1, 2])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_broken_chain_is_reported_and_leaves_the_others_bit_identical(self, broken, value):
        def spoil(progression):
            if progression.epoch == 2:
                progression.parameters["guide.loc"][broken] = value

        healthy = self.run()
        with pytest.warns(DivergenceWarning, match=f"chain {broken} diverged in epoch 3") as caught:
            posterior = self.run(spoil)
        assert len(caught) == 1
        others = [chain for chain in range(3) if chain != broken]
        assert_equal(parameters(posterior), parameters(healthy), others)
        np.testing.assert_array_equal(posterior.history["loss"][others], healthy.history["loss"][others])
        assert not np.isfinite(posterior.history["loss"][broken, 2])
        assert posterior.info["diverged"] == [broken]
        for value in parameters(posterior).values():
            assert value.isfinite().all()
        assert posterior.predict(X, 5).mean.isfinite().all()

    @pytest.mark.parametrize("options", [{"clip_norm": 10.0}, {"validation": 0.2}, {"validation": 0.2, "patience": 50}])
    def test_with_other_options(self, options):
        def spoil(progression):
            if progression.epoch == 2:
                progression.parameters["guide.loc"][1, 0] = math.nan

        healthy = self.run(**options)
        with pytest.warns(DivergenceWarning, match="chain 1"):
            posterior = self.run(spoil, **options)
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])

    def test_a_diverged_chain_stays_as_before_the_epoch(self):
        record = Record()

        def spoil(progression):
            record(progression)
            if progression.epoch == 2:
                progression.parameters["guide.log_scale"][1] = math.nan

        with pytest.warns(DivergenceWarning):
            posterior = self.run(spoil)
        for name, value in posterior._parameters.items():
            assert torch.equal(value[1], record.seen[1][2][name][1])
        assert [entry[3].tolist() for entry in record.seen] == [[True] * 3] * 2 + [[True, False, True]] * 4

    def test_a_chain_that_really_diverges(self):
        # The Poisson rate of the second chain's start overflows.
        class Start(nn.Linear):
            calls = 0

            def reset_parameters(self):
                super().reset_parameters()
                type(self).calls += 1
                if type(self).calls == 1:  # of the second chain: the first one keeps its values
                    with torch.no_grad():
                        self.bias.fill_(200.0)

        def run(explode):
            Start.calls = 100
            with seeded(0):
                bnn = model(Start(3, 1), likelihoods.Poisson())
            Start.calls = 0 if explode else 100
            return quick(bnn, guides.MeanField, (X, torch.ones(N)), chains=3, epochs=4, batch_size=16)

        healthy = run(False)
        with pytest.warns(DivergenceWarning, match=r"chain 1 diverged in epoch 1 \(loss (inf|nan)\)"):
            posterior = run(True)
        assert posterior.info["diverged"] == [1]
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])
        np.testing.assert_array_equal(posterior.history["loss"][[0, 2]], healthy.history["loss"][[0, 2]])

    def test_convolutions_of_other_chains_do_not_notice(self):
        x = torch.randn(N, 1, 16, 16, generator=gen())

        def run(callback=None):
            with seeded(0):
                bnn = model(models.LeNet(1, 3, (2, 3), 8, 16), likelihoods.Categorical(), priors.He())
            return quick(bnn, guides.MeanField, (x, LABELS), chains=3, epochs=3, callback=callback)

        def spoil(progression):
            if progression.epoch == 1:
                progression.parameters["guide.loc"][1] = math.nan

        healthy = run()
        with pytest.warns(DivergenceWarning, match="chain 1"):
            posterior = run(spoil)
        assert_equal(parameters(posterior), parameters(healthy), [0, 2])

    @pytest.mark.parametrize("chains", [1, 2])
    def test_when_all_diverge_it_is_an_error(self, chains):
        with (
            pytest.warns(DivergenceWarning),
            pytest.raises(FloatingPointError, match=r"every chain diverged, the last in epoch .*lower lr"),
        ):
            quick(optimizer=torch.optim.SGD, lr=1e6, chains=chains, epochs=50)

"""Checkpoints: an interrupted and resumed fit is the uninterrupted one, bit for bit."""

import copy
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.optim import lr_scheduler

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives, priors
from bnnzoo._vectorize import seeded
from bnnzoo.chains import DivergenceWarning

N = 30
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1) + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(1))
HELD = (X.flip(0) + 0.5, Y.flip(0))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("bnnzoo.files.os.fsync", lambda descriptor: None)


class InterruptionError(Exception):
    pass


def run(guide=guides.MeanField, network=None, likelihood=None, data=(X, Y), prior=None, seed=0, **settings):
    # The network starts elsewhere in every process: what counts is in the file.
    with seeded(seed):
        network = network or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
    bnn = BayesianNetwork(network, likelihood or likelihoods.Gaussian(), prior or priors.Normal(0.0, 1.0))
    return fit(bnn, guide(bnn), data, **{"epochs": 8, "lr": 0.02, "batch_size": 8, **settings})


def interrupt(epoch):
    def callback(progression):
        if progression.epoch == epoch:
            raise InterruptionError

    return callback


def interrupted(path, *epochs, network_seed=1, **settings):
    """A run that fails in its callback at some epochs, and is started again each time."""
    for epoch in epochs:
        with pytest.raises(InterruptionError):
            run(checkpoint=path, callback=interrupt(epoch), **copy.deepcopy(settings))
    # A network of other values: the user need not build the same one in the next process.
    return run(checkpoint=path, seed=network_seed, **copy.deepcopy(settings))


def assert_same(first, second):
    for one, two in ((first._parameters, second._parameters), (first._buffers, second._buffers)):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    assert first.history.keys() == second.history.keys()
    for name, value in first.history.items():
        np.testing.assert_array_equal(value, second.history[name])
    assert first.info == second.info


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("guide", [guides.Map, guides.MeanField, AutoNormal, AutoLowRankMultivariateNormal])
def test_resumed_is_uninterrupted(tmp_path, guide, chains):
    settings = {"guide": guide, "chains": chains}
    if guide in (guides.Map, guides.MeanField):
        settings |= {
            "scheduler": partial(lr_scheduler.StepLR, step_size=2, gamma=0.7),
            "validation": HELD,
            "patience": 20,
            "clip_norm": 20.0,
        }
    assert_same(run(**settings), interrupted(tmp_path / "c", 3, 6, **settings))


def test_a_checkpoint_changes_nothing(tmp_path):
    assert_same(run(chains=2), run(chains=2, checkpoint=tmp_path / "c"))


@pytest.mark.parametrize("epoch", [1, 2, 8])
def test_interrupted_at_the_first_and_last_epoch(tmp_path, epoch):
    assert_same(run(), interrupted(tmp_path / "c", epoch, network_seed=0 if epoch == 1 else 1))


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize(
    "scheduler",
    [
        partial(lr_scheduler.MultiStepLR, milestones=[2, 5], gamma=0.3),
        partial(lr_scheduler.CosineAnnealingLR, T_max=8),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9),
        partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, cycle_momentum=False),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
        partial(lr_scheduler.ExponentialLR, gamma=0.9),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.ExponentialLR(optimizer, 0.8)],
            milestones=[3],
        ),
    ],
)
def test_schedulers(tmp_path, scheduler, chains):
    settings = {"scheduler": scheduler, "chains": chains, "guide": guides.Map}
    assert_same(run(**settings), interrupted(tmp_path / "c", 4, **settings))


def test_plateau(tmp_path):
    settings = {"scheduler": partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.3), "lr": 0.5}
    assert_same(run(**settings), interrupted(tmp_path / "c", 4, **settings))


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, momentum=0.9),
        torch.optim.RMSprop,
        torch.optim.AdamW,
        torch.optim.NAdam,
        partial(torch.optim.Adam, amsgrad=True),
    ],
)
@pytest.mark.parametrize("chains", [1, 2])
def test_optimizers(tmp_path, optimizer, chains):
    settings = {"optimizer": optimizer, "chains": chains, "lr": 1e-3}
    assert_same(run(**settings), interrupted(tmp_path / "c", 4, **settings))


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("epoch", [2, 4, 6])
def test_early_stopping(tmp_path, chains, epoch):
    settings = {
        "chains": chains,
        "data": (X, torch.randn(N, generator=torch.Generator().manual_seed(2))),
        "validation": HELD,
        "patience": 2,
        "epochs": 60,
        "lr": 0.1,
    }
    whole = run(**settings)
    assert whole.history["loss"].shape[1] < 60
    if epoch < whole.history["loss"].shape[1]:
        assert_same(whole, interrupted(tmp_path / "c", epoch, **settings))


@pytest.mark.parametrize("chains", [1, 2])
def test_a_finished_run_is_returned_as_it_was(tmp_path, chains):
    settings = {
        "chains": chains,
        "validation": HELD,
        "patience": 2,
        "epochs": 60,
        "lr": 0.3,
        "checkpoint": tmp_path / "c",
    }
    first = run(**settings)
    assert first.history["loss"].shape[1] < 60  # stopped, and not continued by the second call
    called = []
    assert_same(first, run(**settings, seed=1, callback=lambda progression: called.append(1)))
    assert not called
    full = run(checkpoint=tmp_path / "d", chains=chains)
    assert_same(full, run(checkpoint=tmp_path / "d", chains=chains))


def test_more_epochs_continue(tmp_path):
    run(epochs=3, checkpoint=tmp_path / "c")
    assert_same(run(epochs=8), run(epochs=8, checkpoint=tmp_path / "c"))


def test_batch_statistics(tmp_path):
    def network():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    for chains in (1, 2):
        with seeded(0):
            whole = run(network=network(), chains=chains)
        path = tmp_path / str(chains)
        with seeded(0), pytest.raises(InterruptionError):
            run(network=network(), chains=chains, checkpoint=path, callback=interrupt(4))
        assert_same(whole, run(network=network(), chains=chains, checkpoint=path))


def test_annealing_and_learned_and_latent_noise(tmp_path):
    for likelihood in (likelihoods.Gaussian(), likelihoods.Gaussian(dist.HalfNormal(1.0))):
        settings = {
            "objective": objectives.ELBO(num_particles=2, kl_weight=objectives.KLAnnealing(6)),
            "likelihood": likelihood,
            "chains": 2,
        }
        assert_same(run(**settings), interrupted(tmp_path / type(likelihood.prior).__name__, 4, **settings))


def test_double_precision(tmp_path):
    with seeded(0):
        network = nn.Linear(3, 1).double()
    settings = {"network": network, "chains": 2}
    assert_same(run(**settings), interrupted(tmp_path / "c", 4, **settings))


def test_diverged_chains_stay_diverged(tmp_path):
    def spoil(progression):
        if progression.epoch == 2:
            progression.parameters["guide.loc"][1] = math.nan

    def spoil_and_interrupt(progression):
        spoil(progression)
        interrupt(5)(progression)

    with pytest.warns(DivergenceWarning, match="chain 1 diverged in epoch 3"):
        whole = run(chains=3, callback=spoil)
    with pytest.warns(DivergenceWarning), pytest.raises(InterruptionError):
        run(chains=3, callback=spoil_and_interrupt, checkpoint=tmp_path / "c")
    resumed = run(chains=3, checkpoint=tmp_path / "c")
    assert_same(whole, resumed)
    assert resumed.info["diverged"] == [1]


def test_the_global_generator_is_left_alone(tmp_path):
    with pytest.raises(InterruptionError):
        run(checkpoint=tmp_path / "c", callback=interrupt(3))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    run(checkpoint=tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), before)


def test_posterior_goes_on_with_a_checkpoint(tmp_path):
    posterior = run(chains=2)
    settings = {"epochs": 6, "batch_size": 8, "lr": 0.01}
    whole = posterior.fit((X, Y), **settings)
    with pytest.raises(InterruptionError):
        posterior.fit((X, Y), **settings, checkpoint=tmp_path / "c", callback=interrupt(4))
    assert_same(whole, posterior.fit((X, Y), **settings, checkpoint=tmp_path / "c"))


BASE = {"chains": 2, "epochs": 3}
OTHERS = {
    "seed": ({"seed_of_fit": 1}, "its seed is 0, this one's 1"),
    "chains": ({"chains": 3}, "its chains is 2, this one's 3"),
    "batch size": ({"batch_size": 10}, "its batch_size is 8, this one's 10"),
    "rate": ({"lr": 0.01}, r"its lr is 0\.02"),
    "number of data": ({"data": (X[:-1], Y[:-1])}, "its num_data is 30, this one's 29"),
    "inputs": ({"data": (X + 1, Y)}, "its checksum of the data"),
    "targets": ({"data": (X, Y.flip(0))}, "its checksum of the data"),
    "validation": ({"validation": HELD}, "its checksum of the validation data is None"),
    "clipping": ({"clip_norm": 1.0}, r"its clip_norm is None, this one's 1\.0"),
    "objective": ({"objective": objectives.ELBO(num_particles=2)}, "its objective is"),
    "kl weight": ({"objective": objectives.ELBO(kl_weight=0.5)}, "its objective is"),
    "optimizer": ({"optimizer": torch.optim.RMSprop}, "its optimizer is"),
    "weight decay": ({"optimizer": partial(torch.optim.Adam, fused=True, weight_decay=0.1)}, "its optimizer is"),
    "scheduler": ({"scheduler": partial(lr_scheduler.StepLR, step_size=2)}, "its scheduler is"),
    "guide": ({"guide": guides.Map}, r"its guide is .MeanField\(.*, this one's 'Map\(\)'"),
    "guide's option": ({"guide": partial(guides.MeanField, sampling="dense")}, "its guide is .*sampling='dense'"),
    "prior": ({"prior": priors.Normal(0.0, 2.0)}, "its prior is"),
    "likelihood": ({"likelihood": likelihoods.Gaussian(0.3)}, "its likelihood is"),
    "network": ({"network": nn.Linear(3, 1)}, "its network is"),
    "activation": (
        {"network": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 1))},
        r"its network is .*Tanh\(\).*, this one's .*ReLU\(\)",
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    run(**BASE, checkpoint=path)
    return path.read_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(tmp_path, checkpoint, name):
    changes, message = OTHERS[name]
    path = tmp_path / "c"
    path.write_bytes(checkpoint)
    settings = {**BASE, **changes}
    seed_of_fit = settings.pop("seed_of_fit", 0)
    network = settings.pop("network", None) or nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1)
    )
    bnn = BayesianNetwork(
        network, settings.pop("likelihood", likelihoods.Gaussian()), settings.pop("prior", priors.Normal(0.0, 1.0))
    )
    guide = settings.pop("guide", guides.MeanField)(bnn)
    data = settings.pop("data", (X, Y))
    with pytest.raises(ValueError, match=rf"c belongs to another run: ({message}).*remove the file"):
        fit(bnn, guide, data, **{"lr": 0.02, "batch_size": 8, **settings}, seed=seed_of_fit, checkpoint=path)
    assert path.read_bytes() == checkpoint


def test_a_schedule_of_other_numbers_is_refused(tmp_path):
    # Its saved state would take the place of the new numbers: a cosine of 3 epochs rises again after them.
    path = tmp_path / "c"
    run(epochs=3, scheduler=partial(lr_scheduler.CosineAnnealingLR, T_max=3), checkpoint=path)
    with pytest.raises(ValueError, match=r"its scheduler is .*'T_max': 3.*, this one's .*'T_max': 6"):
        run(epochs=6, scheduler=partial(lr_scheduler.CosineAnnealingLR, T_max=6), checkpoint=path)


def test_damaged_checkpoint(tmp_path, checkpoint):
    path = tmp_path / "c"
    for content in (b"", checkpoint[: len(checkpoint) // 2], b"PK" + checkpoint[::-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c is not a bnnzoo\.checkpoint file, or is damaged"):
            run(**BASE, checkpoint=path)
    run(**BASE).save(path)
    with pytest.raises(ValueError, match=r"not a bnnzoo\.checkpoint file but a bnnzoo\.posterior file"):
        run(**BASE, checkpoint=path)


def test_the_file_has_one_entry_for_the_whole_history(tmp_path):
    sizes = []
    for epochs in (2, 40):
        run(epochs=epochs, checkpoint=tmp_path / str(epochs), validation=HELD)
        with zipfile.ZipFile(tmp_path / str(epochs)) as archive:
            sizes.append(len(archive.namelist()))
    assert sizes[0] == sizes[1]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    whole = run()

    def fill(progression):
        if progression.epoch == 4:

            def fail(*args):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr("bnnzoo.files.os.fsync", fail)

    with pytest.raises(OSError, match="No space left"):
        run(checkpoint=path, callback=fill)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["c"]
    assert_same(whole, run(checkpoint=path))


PROGRAM = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from test_checkpoint import *

class Slow:
    def __call__(self, progression):
        print(progression.epoch, flush=True)
        time.sleep(float(sys.argv[4]))

posterior = run(guide=getattr(guides, sys.argv[2]), chains=int(sys.argv[3]), epochs=30, checkpoint="checkpoint",
                callback=Slow(), scheduler=partial(lr_scheduler.StepLR, step_size=2, gamma=0.9), validation=HELD,
                patience=25, seed=int(sys.argv[5]))
posterior.save("posterior")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "chains"), [("MeanField", 3), ("Map", 1)])
def test_killed_process_resumes_in_another(tmp_path, guide, chains):
    from bnnzoo import load

    def start(pause, seed):
        command = [sys.executable, "-c", PROGRAM, os.path.dirname(__file__), guide, str(chains), str(pause), str(seed)]
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)

    for seed, until in ((0, 5), (1, 12)):
        process = start(0.05, seed)
        for line in process.stdout:
            if int(line) >= until:
                time.sleep(0.02)  # somewhere in the next epoch, its checkpoint or the pause
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (tmp_path / "posterior").exists()
    process = start(0, 2)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(out.split()[0]) > 10  # it did not start afresh
    expected = run(
        guide=getattr(guides, guide),
        chains=chains,
        epochs=30,
        scheduler=partial(lr_scheduler.StepLR, step_size=2, gamma=0.9),
        validation=HELD,
        patience=25,
    )
    assert_same(expected, load(tmp_path / "posterior"))

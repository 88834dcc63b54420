"""Comparisons as a whole: killed and resumed, by one worker, two, or a cluster; refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from bnnzoo import compare as library
from bnnzoo.compare import METHODS, Method, Protocol, compare, load_results, running
from bnnzoo.compare.cell import Cell
from bnnzoo.data import Dataset
from tests.compare.small import SETTINGS, classes, dropout, line, numbers, point, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted comparison, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return small(out=out, max_chains=3), out


def test_results_have_all_runs(whole):
    results, out = whole
    assert dict(results.sizes) == {"data": 1, "method": 2, "split": 2, "seed": 2}
    assert results["data"].values.tolist() == ["line"]
    assert results["method"].values.tolist() == ["point", "drop"]
    assert results["crps"].dims == ("data", "method", "split", "seed")
    for name, values in results.drop_vars(["chosen_rate"]).items():
        assert np.isfinite(values).all(), name
    # Seeds and splits are different fits.
    assert len(np.unique(results["rmse"])) == 8
    assert np.isnan(results["chosen_rate"].sel({"method": "point"})).all()
    assert set(results["chosen_rate"].sel({"method": "drop"}).values.ravel()) <= {0.5, 0.05}
    assert json.loads(results.attrs["protocol"])["steps"] == 6
    xr.testing.assert_identical(
        load_results(out).drop_vars("label"), results.sel({"method": ["drop", "point"]}).drop_vars("label")
    )


def test_finished_cells_are_not_run_again(whole, monkeypatch):
    results, out = whole
    monkeypatch.setattr("bnnzoo.compare.running.run", None)
    xr.testing.assert_identical(small(out=out, max_chains=3), results)


def test_sets_and_methods_may_join(whole, tmp_path):
    results, _ = whole
    ran = []
    small(line(), [point()], out=tmp_path, max_chains=3)
    with pytest.MonkeyPatch.context() as patch:
        original = library.running.run
        patch.setattr(library.running, "run", lambda stage: ran.append(stage) or original(stage))
        more = small([line(), line(30, "short")], [point(), dropout()], out=tmp_path, max_chains=3)
    assert {(stage.data.name, stage.method.name) for stage in ran} == {
        ("line", "drop"),
        ("short", "point"),
        ("short", "drop"),
    }
    assert dict(more.sizes) == {"data": 2, "method": 2, "split": 2, "seed": 2}
    both = more.sel({"data": ["line"]}).drop_vars("seconds")
    xr.testing.assert_identical(both, numbers(results))
    assert np.isfinite(more["rmse"]).all()


def test_what_nobody_asked_for_is_in_the_results_too(whole, tmp_path):
    small(line(), [point(grid={})], out=tmp_path)
    results = small(line(30, "short"), [dropout(grid={})], out=tmp_path)
    assert results["data"].values.tolist() == ["short", "line"]
    assert results["method"].values.tolist() == ["drop", "point"]
    present = results["rmse"].notnull().all(("split", "seed"))
    assert present.values.tolist() == [[True, False], [False, True]]


KILLED = """
from tests.compare.small import small
small(out={out!r}, max_chains=3, **{more!r})
"""


def started(out, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", KILLED.format(out=str(out), more=more)], env=environment)


def stages(out):
    return sorted(path.relative_to(out) for path in out.glob("cells/*/*.pt"))


def killed_in_the_middle(out, **more):
    process = started(out, **more)
    try:
        deadline = time.monotonic() + 300
        while len(stages(out)) < 2:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return stages(out)


def test_a_killed_comparison_goes_on(whole, tmp_path):
    results, _ = whole
    before = killed_in_the_middle(tmp_path)
    assert not list(tmp_path.glob("cells/*/result.pt"))
    stamps = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    kept = {}

    def written(cell, name, result, original=library.folder.write_stage):
        kept[Path("cells") / cell.name / f"{name}.pt"] = result
        original(cell, name, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.folder, "write_stage", written)
        resumed = small(out=tmp_path, max_chains=3)
    assert stamps
    assert not stamps.keys() & kept.keys()  # what was finished was used as it was
    xr.testing.assert_identical(numbers(resumed), numbers(results))
    header, rows, _ = library.table(resumed)
    assert [row[:-1] for row in rows] == [row[:-1] for row in library.table(results)[1]]
    assert header[-1] == "CPU s"


def test_a_comparison_killed_before_its_last_stage_goes_on(whole, tmp_path):
    results, _ = whole

    def dies(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.folder, "write_result", dies)
        with pytest.raises(KeyboardInterrupt):
            small(out=tmp_path, max_chains=3)
    xr.testing.assert_identical(numbers(small(out=tmp_path, max_chains=3)), numbers(results))


def test_two_workers_give_the_same_numbers(whole, tmp_path):
    results, _ = whole
    threads = torch.get_num_threads()
    xr.testing.assert_identical(numbers(small(out=tmp_path, max_chains=3, workers=2)), numbers(results))
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_killed_with_two_workers(whole, tmp_path):
    results, _ = whole
    killed_in_the_middle(tmp_path, workers=2)
    xr.testing.assert_identical(numbers(small(out=tmp_path, max_chains=3, workers=2)), numbers(results))


def test_a_dask_cluster_gives_the_same_numbers(whole):
    results, _ = whole
    from dask.distributed import LocalCluster

    # One thread: two in a process would share Pyro's settings.
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        found = small(max_chains=3, backend="dask", scheduler=cluster.scheduler_address)
    xr.testing.assert_identical(numbers(found), numbers(results))


@pytest.mark.slow
def test_a_dask_cluster_of_processes_is_started(whole):
    results, _ = whole
    xr.testing.assert_identical(numbers(small(max_chains=3, backend="dask", workers=2)), numbers(results))


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_numbers(whole):
    pytest.importorskip("ray")
    results, _ = whole
    xr.testing.assert_identical(numbers(small(max_chains=3, backend="ray", workers=2)), numbers(results))


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_package_is_named(backend, monkeypatch, tmp_path):
    for name in ("dask.distributed", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'bnnzoo\[{backend}\]'"):
        small(backend=backend, out=tmp_path)


def test_the_seed_changes_everything(whole):
    results, _ = whole
    other = small(max_chains=3, seed=1)
    assert not np.isclose(other["rmse"], results["rmse"]).any()


def test_classification():
    results = small(classes(), [point(), dropout()])
    assert results.attrs["task"] == "classification"
    assert {"accuracy", "pll", "brier", "ece"} <= set(results)
    assert "noise" not in results
    assert ((results["accuracy"] >= 0) & (results["accuracy"] <= 1)).all()


def test_several_targets():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    y = np.stack([x[:, 0], 10 * x[:, 1]], 1) + rng.normal(size=(40, 2)).astype(np.float32)
    results = small(Dataset(x, y, name="two"), [dropout()])
    assert np.isfinite(results["pll_normalized"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name):
    small_grid = {n: values[:1] for n, values in METHODS[name].grid.items()}
    method = Method(**{**vars(METHODS[name]), "grid": small_grid})
    assert np.isfinite(small(line(), [method])["crps"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": 3}, "splits is 2 there and 3 now"),
        ({"hidden": (5,)}, r"hidden is \[4\] there and \[5\] now"),
        ({"steps": 7, "seed": 1}, "steps is 6 there and 7 now; seed is 0 there and 1 now"),
        ({"data": line(40)}, "rows is 41 there and 40 now"),
        ({"data": Dataset(line().x, line().y + 1, name="line")}, "checksum is .* there and .* now"),
        (
            {"methods": [point(grid={"weight_decay": (0.5,)})]},
            r"method grid weight_decay is \[0.1, 0.0001\] there and \[0.5\]",
        ),
        ({"methods": [point(noise=0.5)]}, "'point' on 'line' .* method noise is 1.0 there and 0.5 now"),
    ],
)
def test_a_folder_of_other_settings_is_refused(whole, settings, message):
    _, out = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=message):
        small(**{"out": out, "max_chains": 3, **settings})
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_of_another_task_is_refused_before_all_work(whole, monkeypatch):
    results, out = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr("bnnzoo.compare.running.run", None)
    with pytest.raises(ValueError, match=r"classes is a classification, and .* has a regression, line: they need"):
        small(classes(), out=out, max_chains=3)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert load_results(out).sizes == results.sizes


def test_a_folder_of_an_earlier_version_is_read(whole, tmp_path, monkeypatch):
    results, out = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("cells/*/cell.json"):
        about = json.loads(path.read_text())
        assert about.pop("task") == "regression"
        path.write_text(json.dumps(about))
    xr.testing.assert_identical(load_results(tmp_path), load_results(out))
    monkeypatch.setattr("bnnzoo.compare.running.run", None)
    xr.testing.assert_identical(small(out=tmp_path, max_chains=3), results)


LOCKED = """
import sys, time
from pathlib import Path
from bnnzoo.compare.folder import Folder
with Folder(Path({out!r})).locked():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_comparison_at_a_time_in_a_folder_and_a_dead_one_is_none(whole, tmp_path, monkeypatch):
    results, out = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("bnnzoo.compare.running.run", None)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOCKED.format(out=str(tmp_path))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(ValueError, match=r"another comparison is at work in .*: wait until it ends"):
                small(out=tmp_path, max_chains=3)
        finally:
            process.send_signal(signal.SIGKILL)
    xr.testing.assert_identical(small(out=tmp_path, max_chains=3), results)


def test_what_was_finished_before_does_not_count_as_speed(tmp_path):
    mine = Cell(line(), point(), Protocol(**SETTINGS, max_chains=1), tmp_path)
    stages, clock = mine.validation(), [0.0]
    half = len(stages) // 2
    for stage in stages[:half]:
        library.folder.write_stage(tmp_path, running._name(stage), {})

    def pool(todo):
        for number, _ in enumerate(todo):
            clock[0] += 10.0
            yield number, {}

    with running._Bar(False, [mine]) as bar:
        bar.progress.get_time = lambda: clock[0]
        running._finish([(mine, stage) for stage in stages], pool, bar)
        [task] = bar.progress.tasks
        assert task.completed == pytest.approx(sum(stage.work for stage in stages))
        assert task.speed == pytest.approx(stages[0].work / 10.0)
        assert bar.fits[0] == len(stages)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "concret"}, ValueError, "Did you mean 'concrete'"),
        ({"data": [3]}, TypeError, "a name or a bnnzoo.data.Dataset, not int"),
        ({"data": []}, ValueError, "there are no data sets"),
        ({"data": [line(), line(30)]}, ValueError, "two data sets are called 'line'"),
        ({"data": [line(), classes()]}, ValueError, "line is a regression and classes a classification"),
        ({"data": line(8), "folds": 5}, ValueError, "line has 6 training rows, too few for 5 folds"),
        ({"data": Dataset([[0.0], [1.0]] * 9, [1, 2] * 9, task="counts")}, ValueError, "has counts as targets"),
        ({"methods": "mcdn"}, ValueError, "no method 'mcdn'. Did you mean 'mcbn'"),
        ({"methods": [1]}, TypeError, "not int"),
        ({"methods": []}, ValueError, "there are no methods"),
        ({"methods": [point(), point()]}, ValueError, "two methods are called 'point'"),
        ({"splits": 0}, ValueError, "splits must be a whole number of at least 1, not 0"),
        ({"folds": 1}, ValueError, "folds must be a whole number of at least 2, not 1"),
        ({"seeds": 1.5}, ValueError, "seeds must be a whole number"),
        ({"hidden": (0,)}, ValueError, "hidden"),
        ({"test_size": 1.5}, ValueError, "test_size must be a fraction"),
        ({"lr": 0.0}, ValueError, "lr must be a number above 0"),
        ({"noise_by": "rmse"}, ValueError, "noise_by must be one of 'crps', 'pll', not 'rmse'"),
        ({"schedule": "step"}, ValueError, "schedule must be one of"),
        ({"workers": 0}, ValueError, "workers must be a whole number"),
        ({"backend": "threads"}, ValueError, "backend must be one of 'loky', 'dask', 'ray', not 'threads'"),
        ({"scheduler": "tcp://here:1"}, ValueError, "loky has none"),
        ({"split": 3}, TypeError, "split is no setting of a comparison"),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"grid": {"rate": ()}}, "no value for 'rate'"),
        ({"grid": {"weight_decay": (1.0,), "prior_scale": (1.0,)}}, "two names of one thing"),
        ({"grid": {"epochs": (1,), "steps": (1,)}}, "two names of one thing"),
        ({"grid": {"weight_decay": (0.0,)}}, "weight_decay must be above 0"),
        ({"grid": {"weight_decay": (1.0,)}, "noise": None}, "set noise=1.0"),
        ({"members": 0}, "members must be at least 1"),
        ({"kl_annealing": 1.5}, r"kl_annealing in \[0, 1\]"),
    ],
)
def test_methods_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        point(**settings)


def test_the_same_name_in_another_spelling_has_a_folder_of_its_own():
    names = {library.folder.cell_name(*each) for each in [("a", "b:1"), ("a", "b-1"), ("a", "b/1"), ("a~b", "1")]}
    assert len(names) == 4
    assert all("/" not in name and ":" not in name for name in names)


def test_a_damaged_settings_file_is_named(tmp_path):
    small(line(), [point(grid={})], out=tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        small(line(), [point(grid={})], out=tmp_path)


def test_no_folder_of_a_comparison(tmp_path):
    with pytest.raises(ValueError, match="no folder of a comparison"):
        load_results(tmp_path)


def test_progress_is_shown_on_demand(capsys):
    small(line(), [point(grid={})], progress=True)
    shown = capsys.readouterr()
    assert "cells 1/1" in shown.err
    assert "fits 8/8" in shown.err
    small(line(), [point(grid={})], progress=False)
    assert capsys.readouterr().err == ""


def test_protocol_is_kept_whole():
    protocol = Protocol(**SETTINGS)
    assert Protocol(**protocol.as_dict()) == protocol
    assert Protocol(test_size=10).split(line(), 0)[1].x.shape == (10, 2)
    assert compare is library.compare

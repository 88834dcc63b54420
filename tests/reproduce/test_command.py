"""`bnnzoo reproduce`: what it lists, runs, writes and refuses."""

import json
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from bnnzoo import cli
from bnnzoo.cli import reproducing
from bnnzoo.reproduce import Entry, Result, Table


class Ran:
    """An entry's work, which keeps the contexts it was given."""

    def __init__(self) -> None:
        self.contexts = []

    def __call__(self, context):
        self.contexts.append(context)
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([1, 2])
        context.say("half way")
        table = Table("Errors, %", ["", "ours", "paper"], [["Map [L2]", "0.6", "0.7"]])
        return Result([table], {"errors": figure}, ["One seed."], {"error": 0.6, "worst": float("inf")})


@pytest.fixture
def entries(monkeypatch):
    """Three entries of two papers, the only ones that there are."""
    known = {
        name: Entry(name, f"title of {name}", "A & B 2017, Table 2", Ran(), data, minutes=3)
        for name, data in (("mnf/figure-1", ()), ("mnf/table-2", ("notmnist",)), ("moments/table-1", ()))
    }
    monkeypatch.setattr(reproducing, "entries", lambda: known)
    monkeypatch.setenv("COLUMNS", "200")
    return known


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command; returns its code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["reproduce", *words])
        output = capsys.readouterr()
        return exit_.value.code or 0, output.out, re.sub(r"[\s│╭╮╰╯─]+", " ", output.err)

    return command


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["mnf/figure-1", "mnf/table-2", "moments/table-1"]),
        (["list"], ["mnf/figure-1", "mnf/table-2", "moments/table-1"]),
        (["list", "mnf"], ["mnf/figure-1", "mnf/table-2"]),
        (["list", "moments", "mnf/table-2"], ["moments/table-1", "mnf/table-2"]),
    ],
)
def test_entries_are_listed(entries, run, tmp_path, words, named):
    code, out, _ = run(*words)
    assert code == 0
    assert re.findall(r"│ (m\S+/\S+) +│ title of", out) == named
    assert not any(entry.make.contexts for entry in entries.values())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("scale", "said"), [("smoke", 1), ("cpu", 0)])
def test_a_smoke_run_says_that_its_numbers_mean_nothing(entries, run, tmp_path, scale, said):
    assert run("moments/table-1", "--scale", scale, "--out", "here")[0] == 0
    page = (tmp_path / "here" / f"moments-table-1-{scale}-0" / "result.md").read_text()
    assert page.count("numbers mean nothing") == said


def test_an_entry_leaves_a_page_figures_and_numbers(entries, run, tmp_path):
    code, out, _ = run("mnf/figure-1", "--scale", "smoke", "--out", "here", "--seed", "3", "--workers", "2")
    assert code == 0
    (context,) = entries["mnf/figure-1"].make.contexts
    folder = tmp_path / "here" / "mnf-figure-1-smoke-3"
    assert (context.scale, context.seed, context.workers, context.quiet) == ("smoke", 3, 2, False)
    assert context.folder.resolve() == folder
    assert context.fits.resolve() == tmp_path / "here" / "fits-smoke-3"
    page = (folder / "result.md").read_text()
    assert "# title of mnf/figure-1" in page
    assert "A & B 2017, Table 2; `bnnzoo reproduce mnf/figure-1 --scale smoke --seed 3`" in page
    assert "| Map [L2] | 0.6 | 0.7 |" in page
    assert "![errors](errors.png)" in page
    assert "- One seed." in page
    assert (folder / "errors.png").stat().st_size > 1000
    record = json.loads((folder / "result.json").read_text())
    assert (record["entry"], record["scale"], record["seed"]) == ("mnf/figure-1", "smoke", 3)
    assert record["values"] == {"error": 0.6, "worst": None}
    for said in ("half way", "Map [L2]", "One seed.", "result.md", "errors.png"):
        assert said in out


def test_papers_and_entries_are_run_once_each_in_their_order(entries, run):
    code, out, _ = run("moments", "mnf/table-2", "mnf", "--scale", "smoke")
    assert code == 0
    heads = re.findall(r"(\d of \d: \S+)", out)
    assert heads == ["1 of 3: moments/table-1", "2 of 3: mnf/table-2", "3 of 3: mnf/figure-1"]
    folders = [entry.make.contexts[0].folder.name for entry in entries.values()]
    assert folders == ["mnf-figure-1-smoke-0", "mnf-table-2-smoke-0", "moments-table-1-smoke-0"]


def test_quiet_prints_nothing(entries, run):
    assert run("mnf/figure-1", "--scale", "smoke", "-q")[1] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnf/figure-2"], "there is no entry or paper 'mnf/figure-2'. Did you mean 'mnf/figure-1'?"),
        (["mnf", "moment"], "there is no entry or paper 'moment'. Did you mean 'moments'? See bnnzoo reproduce list"),
        (["list", "mcmc"], "there is no entry or paper 'mcmc'."),
        (["mnf/figure-1", "--scale", "large"], "must be one of smoke, cpu, paper; given: large"),
        (["mnf/figure-1", "--workers", "0"], "'--workers'"),
        (["mnf/figure-1", "--seed", "-1"], "'--seed'"),
    ],
)
def test_mistakes_are_refused_before_any_work(entries, run, tmp_path, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert not any(entry.make.contexts for entry in entries.values())
    assert not [*tmp_path.iterdir()]


def test_missing_data_are_told_before_any_work(entries, run, tmp_path, monkeypatch):
    monkeypatch.setenv("BNNZOO_DATA", str(tmp_path))
    monkeypatch.setattr("bnnzoo.data.files.cache_dir", lambda: tmp_path / "cache")
    entries["moments/table-1"] = replace(entries["moments/table-1"], paper_data=("power",))
    code, _, err = run("mnf", "--scale", "cpu")
    assert code == 1
    assert "notmnist" in err
    code, _, err = run("moments", "--scale", "paper")
    assert code == 1
    assert "power" in err
    assert not any(entry.make.contexts for entry in entries.values())
    assert run("mnf", "--scale", "smoke")[0] == 0
    assert run("moments", "--scale", "cpu")[0] == 0

"""What a reproduction is made of: scales, tables, means with errors."""

import math

import pytest
import torch

from bnnzoo import data
from bnnzoo.reproduce import (
    SCALES,
    Context,
    Entry,
    Result,
    Table,
    bb_alpha_uci,
    entries,
    mcbn_batch,
    mcbn_statistics,
    mcbn_toy,
    mcbn_uci,
    mean_and_error,
    plus_minus,
)


def test_a_scale_picks_its_value(tmp_path):
    assert [Context(scale, tmp_path).pick(1, 2, 3) for scale in SCALES] == [1, 2, 3]
    with pytest.raises(KeyError):
        Context("large", tmp_path).pick(1, 2, 3)


def test_fits_are_kept_in_the_shared_folder_or_the_entrys_own(tmp_path):
    assert Context("smoke", tmp_path).fits == tmp_path
    shared = tmp_path / "a" / "shared"
    assert Context("smoke", tmp_path, shared=shared).fits == shared
    assert shared.is_dir()


def test_progress_is_said_unless_quiet(tmp_path, capsys):
    Context("smoke", tmp_path).say("epoch 1")
    Context("smoke", tmp_path, quiet=True).say("epoch 2")
    assert capsys.readouterr().out == "epoch 1\n"


def test_a_table_in_markdown():
    table = Table("Errors, %", ["", "ours", "paper"], [["Map", "0.61", "0.6"], ["MNF", "0.71", "0.7"]])
    assert table.markdown().splitlines() == [
        "**Errors, %**",
        "",
        "|  | ours | paper |",
        "| --- | --- | --- |",
        "| Map | 0.61 | 0.6 |",
        "| MNF | 0.71 | 0.7 |",
    ]


def test_bars_in_a_table_do_not_end_its_cells():
    lines = Table("p(y|x)", ["|z|", "b"], [["a|b", "1"]]).markdown().splitlines()
    assert lines == [r"**p(y\|x)**", "", r"| \|z\| | b |", "| --- | --- |", r"| a\|b | 1 |"]


class AskedError(Exception):
    """In place of data."""


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_entries_say_what_they_load(tmp_path, monkeypatch, scale):
    asked = []

    def load(name, *args, **kwargs):
        asked.append(name)
        raise AskedError

    monkeypatch.setattr(data, "load", load)
    for entry in entries().values():
        said = entry.data + (entry.paper_data if scale == "paper" else ())
        if said:
            (folder := tmp_path / entry.name).mkdir(parents=True)
            with pytest.raises(AskedError):
                entry.run(Context(scale, folder, quiet=True))
            assert asked.pop() in said, entry.name


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_entries_of_several_data_sets_say_all_of_them(tmp_path, scale):
    context, known = Context(scale, tmp_path), entries()
    regressions = {name for part in mcbn_uci.comparisons(context) for name in part.data}
    used = {f"mcbn/table-{number}": regressions for number in range(4, 8)}
    used |= {f"mcbn/table-{number}": set(mcbn_batch._sets(context)) for number in range(8, 12)}
    used["mcbn/figure-2"], used["mcbn/figure-3"] = set(mcbn_toy.SETS), set(mcbn_statistics.SETS[scale])
    by_alpha = {name for names in bb_alpha_uci.SIZES[scale].sets.values() for name in names}
    used |= {"bb-alpha/figure-2": by_alpha, "bb-alpha/figure-3": by_alpha}
    for name, sets in used.items():
        assert {*known[name].data, *(known[name].paper_data if scale == "paper" else ())} == sets, name


def test_an_entry_leaves_the_global_generator_alone(tmp_path):
    def make(context):
        torch.manual_seed(context.seed)
        return Result([], values={"drawn": torch.rand(()).item()})

    entry, before = Entry("a/b", "", "", make), torch.get_rng_state()
    first, second = (entry.run(Context("smoke", tmp_path, seed=seed)).values["drawn"] for seed in (1, 1))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_and_its_standard_error():
    mean, error = mean_and_error([1.0, 2.0, 6.0])  # variance (4 + 1 + 9) / 2 = 7
    assert (mean, error) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert math.isnan(mean_and_error([2.0])[1])
    assert plus_minus([1.0, 2.0, 6.0], ".1f") == "3.0 ± 1.5"
    assert plus_minus([1.0, 2.0, 6.0], "+.2f") == "+3.00 ± 1.53"
    assert plus_minus([-2.0], "+.1f") == "-2.0"


def test_entries_are_named_after_their_papers_items():
    for name, entry in entries().items():
        paper, _, item = name.partition("/")
        assert (entry.name, paper) == (name, paper if paper in ("mcbn", "mnf", "bb-alpha", "moments") else None)
        assert item
        assert entry.title
        assert entry.source
        assert entry.minutes > 0
    assert [*entries()] == sorted(entries())


def test_every_item_of_the_two_papers_has_an_entry():
    ours = {"mnf/table-2-mnist", "mnf/table-2-cifar5", "mnf/sparsity", "mnf/figure-1", "mnf/figure-6"}
    ours |= {f"bb-alpha/figure-{number}" for number in (2, 3, 4, 5)}
    assert ours <= set(entries())

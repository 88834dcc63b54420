"""What a reproduction is made of: scales, tables, means with errors."""

import math

import pytest

from bnnzoo.reproduce import SCALES, Context, Table, entries, mean_and_error, plus_minus


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

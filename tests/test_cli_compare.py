"""`bnnzoo compare`: the command over the library of the same name."""

import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from bnnzoo.cli.app import app
from bnnzoo.cli.comparing import _split, method_of
from bnnzoo.compare import METHODS, load_results, markdown
from bnnzoo.guides import BatchNorm, Dropout
from tests.compare.small import line

SMALL = [
    *("--splits", 2, "--seeds", 2, "--folds", 2, "--steps", 4, "--hidden", 4),
    *("--batch-size", 16, "--draws", 6, "--cv-draws", 4),
]


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def text(result):
    return re.sub(r"[│╭╮╰╯─\s]+", " ", result.output)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file."""
    data = line()
    path = tmp_path_factory.mktemp("data") / "points.csv"
    frame = pd.DataFrame(data.x.numpy(), columns=["a", "b"])
    frame.assign(y=data.y.numpy()).to_csv(path, index=False)
    return path


def test_it_writes_tables_and_figures(table, tmp_path):
    out = tmp_path / "comparison"
    result = run("--csv", table, "--target", "y", "--methods", "dropout:0.1,mean-field", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert "dropout:0.1" in result.output
    assert "mean field" in result.output
    for name in ("results.nc", "results.csv", "results.md", "forest.png"):
        assert (out / name).is_file()
    results = load_results(out)
    assert dict(results.sizes) == {"data": 1, "method": 2, "split": 2, "seed": 2}
    assert "± " in markdown(results)
    again = run("--csv", table, "--target", "y", "--methods", "dropout:0.1", "--out", out, *SMALL, "--quiet")
    assert (again.exit_code, again.output) == (0, "")
    assert load_results(out).equals(results)
    other = run("--csv", table, "--target", "y", "--methods", "dropout:0.1", "--out", out, *SMALL, "--lr", "0.1")
    assert other.exit_code == 2
    assert "lr is 0.01 there and 0.1 now" in text(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "concret"], "no data set 'concret'. Did you mean 'concrete'?"),
        (["--methods", "mcbm"], "no 'mcbm'. Did you mean 'mcbn'?"),
        (["--methods", "dropout:0.1,0.2"], "dropout takes rate; given: 0.1,0.2"),
        (["--methods", "dropout,dropout"], "two methods are called 'dropout'"),
        (["--splits", "0"], "greater than or equal to 1"),
        (["--folds", "1"], "greater than or equal to 2"),
        (["--test-size", "1.5"], "test_size must be a fraction in (0, 1) or a number of rows"),
        (["--noise-by", "rmse"], "noise_by must be one of 'crps', 'pll'"),
        (["--hidden", "a"], "'a' is no number"),
        (["--backend", "threads"], "backend must be one of 'loky', 'dask', 'ray'"),
        (["--scheduler", "tcp://x:1"], "loky has none"),
        (["--target", "y"], "there is no --csv"),
        (["--csv", "missing.csv"], "name the target column"),
        (["--out", "missing/folder"], "there is no folder"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in text(result)
    assert list(tmp_path.iterdir()) == []


def test_any_guide_is_a_method():
    dropout = method_of("dropout:0.1")
    assert (dropout.name, dropout.grid) == ("dropout:0.1", {})
    assert dropout.guide.func is Dropout
    assert dropout.guide.keywords == {"rate": 0.1}
    assert method_of("dropout") is METHODS["dropout"]
    gaussian = method_of("mcbn-gaussian")
    assert gaussian.network == {"batch_norm": True}
    assert gaussian.guide.func is BatchNorm
    assert method_of("mcbn:50").network == {"batch_norm": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mcbn, dropout", ["mcbn", "dropout"]),
        ("mnf:2,50,map", ["mnf:2,50", "map"]),
        ("mnf:1e-3,-1,+2.5E1,map", ["mnf:1e-3,-1,+2.5E1", "map"]),
        ("dropout:0.1,dropout:.05", ["dropout:0.1", "dropout:.05"]),
    ],
)
def test_numbers_belong_to_the_name_before_them(given, expected):
    assert _split(given) == expected

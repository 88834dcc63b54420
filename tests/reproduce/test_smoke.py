"""Every entry runs, end to end through the command, on what needs no files."""

import json
import os

import pytest

from bnnzoo import cli
from bnnzoo.reproduce import entries


@pytest.mark.slow
@pytest.mark.parametrize("name", entries())
@pytest.mark.filterwarnings("default")  # of two draws and one epoch there is much to warn of
def test_an_entry_at_the_scale_of_seconds(name, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BNNZOO_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no data"))
    monkeypatch.setenv("COLUMNS", "200")

    def page() -> str:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["reproduce", name, "--scale", "smoke", "--out", str(tmp_path / "out")])
        assert not exit_.value.code, capsys.readouterr().err
        return (folder / "result.md").read_text()

    folder = tmp_path / "out" / f"{name.replace('/', '-')}-smoke-0"
    first = page()
    assert "| --- |" in first
    assert f"`bnnzoo reproduce {name} --scale smoke --seed 0`" in first
    figures = [line.split("(")[-1].rstrip(")") for line in first.splitlines() if line.startswith("![")]
    assert {path.name for path in folder.glob("*.png")} == set(figures)
    assert all((folder / figure).stat().st_size > 1000 for figure in figures)
    record = json.loads((folder / "result.json").read_text())
    assert (record["entry"], record["scale"], record["seed"]) == (name, "smoke", 0)
    assert record["values"]

    kept = {
        path: os.stat(path).st_mtime_ns
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.suffix in (".bnn", ".json") and path.name != "result.json"
    }
    again = page()
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in first.splitlines() if line.startswith("|")
    ]
    assert {path: os.stat(path).st_mtime_ns for path in kept} == kept, "what was kept was made again"

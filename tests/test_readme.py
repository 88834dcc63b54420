"""The README is true: its Python runs in order, its commands run as they stand, what it points to exists."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnnzoo import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")  # a reader's session does not stop at a warning either
def test_python_blocks_run_in_order(here, capsys):
    namespace: dict = {}
    found = blocks("python")
    assert len(found) >= 10
    for number, block in enumerate(found):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
    assert (here / "posterior.nc").is_file()
    assert (here / "houses.bnn").is_file()
    assert "rmse " in capsys.readouterr().out


def test_the_contract_takes_six_lines():
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert lines[0].startswith("from bnnzoo import ")
    assert len(lines) == 1 + 6


@pytest.mark.slow
def test_commands_run_as_documented(here, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["size", "age"])
    frame.to_csv("new_houses.csv", index=False)
    frame.assign(price=100 + 10 * frame["size"] + rng.normal(size=60)).to_csv("houses.csv", index=False)
    ours = [command for command in commands() if command.startswith("bnnzoo ")]
    assert len(ours) >= 6
    for command in ours:
        with pytest.raises(SystemExit) as exit_:
            cli.main(shlex.split(command)[1:])
        assert not exit_.value.code, command
    assert len(pd.read_csv("predictions.csv")) == 60
    table = [line for line in README.splitlines() if line.startswith(("data   ", "network  ", "settings  "))]
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert len(table) == 3
    assert [line for line in table if line not in printed] == [], "the README shows what `bnnzoo fit` printed once"


def test_install_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    installs = [part.strip() for command in commands() for part in command.split("&&") if "pip install" in part]
    assert len(installs) == 4
    assert installs[0] == installs[2] == "pip install torch==2.13.0"
    for install in (installs[0], installs[3]):
        assert install.replace("pip install", "pip install -qq") in ci
    assert [command.split("&&")[-1].strip() for command in commands()[:2]] == ["bnnzoo fit", "pytest -n 2"]


def test_commands_are_known():
    assert {command.split()[0] for command in commands()} == {"python3.11", "bnnzoo"}


def test_links_and_named_files_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    targets += re.findall(r"(?:examples|benchmarks|docs)/[\w.]+", README)
    assert len(targets) >= 4
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []
    assert os.path.getsize(ROOT / "docs" / "bands.png") < 200_000

"""The package as built and installed: the code once, no top-level `models`, consistent metadata."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUFF = (sys.executable, "-m", "ruff", "check")
LINKS = ("models", "guides", "evaluation")


def run(*command: str, timeout: int = 120) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "bnnzoo").rglob("*.py")}


@pytest.mark.parametrize("name", LINKS)
def test_top_level_names_are_relative_links_into_the_package(name):
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"bnnzoo/{name}"
    assert (link / "__init__.py").is_file()


def test_links_are_tracked_as_links():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    modes = {line.split("\t")[1]: line[:6] for line in run("git", "ls-files", "-s", *LINKS).splitlines()}
    assert modes == dict.fromkeys(LINKS, "120000")


def test_wheel_holds_the_code_once(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert {name for name in names if name.endswith(".py")} == sources()
    assert {name.split("/")[0] for name in names} == {"bnnzoo", f"bnnzoo-{project()['project']['version']}.dist-info"}
    assert "bnnzoo/py.typed" in names


def test_sdist_holds_the_code_once(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = [name.split("/", 1)[1] for name in sdist.getnames()]
    assert {name for name in names if name.endswith(".py") and name.startswith("bnnzoo/")} == sources()
    assert not [name for name in names if name.split("/")[0] in LINKS]


def test_ruff_sees_the_code_once():
    seen = [Path(line).relative_to(ROOT).as_posix() for line in run(*RUFF, "--show-files", ".").splitlines()]
    assert sources() <= set(seen)
    assert not [name for name in seen if name.split("/")[0] in LINKS]


def test_mypy_is_pointed_at_the_package_only():
    settings = project()["tool"]["mypy"]
    assert settings["packages"] == ["bnnzoo"]
    assert "files" not in settings


def test_pytest_collects_tests_only():
    assert project()["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]
    assert not list((ROOT / "bnnzoo").rglob("test_*.py"))


def test_nothing_imports_through_the_links():
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(LINKS)})\b", re.MULTILINE)
    files = [path for folder in ("bnnzoo", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert not [path for path in files if pattern.search(path.read_text())]


def test_constraints_pin_every_dependency():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins.setdefault(name.lower().replace("_", "-"), version)
    assert all(pins.values())
    assert "+" not in pins["torch"], "a local version such as 2.13.0+cpu cannot be installed elsewhere"
    table = project()["project"]
    requirements = table["dependencies"] + [r for extra in table["optional-dependencies"].values() for r in extra]
    needed = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements} - {"bnnzoo"}
    assert needed <= set(pins)


def test_installed_metadata_agrees_with_the_source():
    import bnnzoo

    assert bnnzoo.__version__ == project()["project"]["version"]
    assert f"## [{bnnzoo.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_command_runs_as_a_module():
    assert "fit" in run(sys.executable, "-m", "bnnzoo.cli", "--help")

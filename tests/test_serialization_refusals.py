"""Files that are no whole posterior: nothing in them runs, none passes."""

import contextlib
import os
import random

import pytest
import torch
from saving import fitted, mlp, same

from bnnzoo import load, serialization


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What a file of a posterior holds."""
    path = tmp_path_factory.mktemp("content") / "p"
    fitted().save(path)
    return torch.load(path)


@pytest.fixture
def tampered(tmp_path, content):
    """Writes such a file with some of its fields changed."""

    def write(**changes):
        torch.save({**content, **changes}, tmp_path / "p")
        return tmp_path / "p"

    return write


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.nn.functional.relu",
        "torch.nn.init.zeros_",
        "torch.nn.nowhere.Linear",
        "torch.nn.modules.linear.Nothing",
        "torch.nn.modules.linear.math.sqrt",
        "torch.nn.modules.os.system",
        "bnnzoo.load",
        "bnnzoo.serialization.load",
        "bnnzoo.data.dataset.Dataset",
        "bnnzoo.files.Path",
        "pyro.distributions.torch.torch.save",
        "Linear",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["module", "object", "class"])
def test_files_name_nothing_but_modules_distributions_and_priors(tampered, name, kind):
    description = {kind: name} if kind == "class" else {kind: name, "arguments": {}}
    for field in ("network", "likelihood", "guide"):
        with pytest.raises(ValueError, match=r"the file names|damaged"):
            load(tampered(**{field: description}))
    with pytest.raises(ValueError, match=r"the file names|damaged"):
        load(tampered(prior={"0.weight": {"distribution": name, "arguments": {}}}))


def test_loading_imports_nothing(tmp_path, monkeypatch, tampered):
    # The import of such a module would run a program.
    package = tmp_path / "folder"
    package.mkdir()
    (package / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(serialization, "_ALLOWED", (*serialization._ALLOWED, "trap."))
    with pytest.raises(ValueError, match=r"the file names 'trap\.Trap'"):
        load(tampered(network={"module": "trap.Trap", "arguments": {}}))
    for name in ("bnnzoo.cli.__main__.main", "bnnzoo.__main__.main"):
        with pytest.raises(ValueError, match="the file names"):
            load(tampered(network={"module": name, "arguments": {}}))
    assert not (tmp_path / "ran").exists()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_does_not_run(tmp_path, tampered):
    for key in ("network", "info", "history"):
        with pytest.raises(ValueError, match="damaged"):
            load(tampered(**{key: Attack(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_posterior(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    torch.save(mlp().state_dict(), path)
    with pytest.raises(ValueError, match=r"is not a bnnzoo\.posterior file$"):
        load(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"file is not a bnnzoo\.posterior file, or is damaged"):
        load(path)


def test_checkpoint_is_no_posterior(tmp_path):
    fitted(checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"not a bnnzoo\.posterior file but a bnnzoo\.checkpoint file"):
        load(tmp_path / "c")


def test_truncated_file(tmp_path):
    fitted().save(tmp_path / "p")
    raw = (tmp_path / "p").read_bytes()
    for length in (10, len(raw) // 2, len(raw) - 1):
        (tmp_path / "p").write_bytes(raw[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(tmp_path / "p")


def test_later_version(tampered):
    with pytest.raises(ValueError, match="layout version 99, this bnnzoo reads up to 1: update bnnzoo"):
        load(tampered(version=99))


FIELDS = [
    "network",
    "shapes",
    "likelihood",
    "likelihood_state",
    "prior",
    "guide",
    "frozen",
    "parameters",
    "buffers",
    "standardization",
    "history",
    "info",
    "dtype",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("wrong", [{"absent": 1}, 7, "text", [1, 2]])
def test_nonsense_in_a_field(tampered, field, wrong):
    with contextlib.suppress(ValueError):  # and no other error
        load(tampered(**{field: wrong}))


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field(tmp_path, content, field):
    torch.save({name: value for name, value in content.items() if name != field}, tmp_path / "p")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "p")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    posterior = fitted()
    posterior.save(tmp_path / "p")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bnnzoo.files.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            fitted(epochs=3).save(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]
    same(posterior, load(tmp_path / "p"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        posterior.save(tmp_path / "nowhere" / "p")

"""Files: whole or not at all, and nothing that is read runs code or passes damaged."""

import contextlib
import errno
import os
import pickle
import random
import resource
import shutil
import stat
import tempfile
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from bnnzoo import files

FORMAT = "bnnzoo.test"


def content():
    return {
        "tensors": {"a": torch.arange(5000.0), "b": torch.tensor([True, False]), "c": torch.zeros(0, 3)},
        "plain": [1, 2.5, "text", None, True, {"deep": [[]]}],
        "double": torch.tensor(0.1, dtype=torch.float64),
    }


def listing(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def open_folder():
    """A folder that other users can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def unprivileged():
    """Root may write everywhere; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def small_disk(size):
    """Every file that grows beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_round_trip(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, content())
    back = files.read(path, FORMAT)
    assert torch.equal(back["tensors"]["a"], content()["tensors"]["a"])
    assert torch.equal(back["tensors"]["b"], content()["tensors"]["b"])
    assert back["tensors"]["c"].shape == (0, 3)
    assert back["plain"] == content()["plain"]
    assert back["double"].dtype == torch.float64
    assert back["double"].item() == 0.1
    assert listing(tmp_path) == ["file"]


def test_a_path_may_be_a_string(tmp_path):
    files.write(str(tmp_path / "file"), FORMAT, content())
    assert files.read(str(tmp_path / "file"), FORMAT)["plain"] == content()["plain"]


def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "file", FORMAT, {})
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_writing_replaces(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, {"n": 1})
    files.write(path, FORMAT, {"n": 2})
    assert files.read(path, FORMAT)["n"] == 2


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        files.write(tmp_path / "nowhere" / "file", FORMAT, {})
    assert listing(tmp_path) == []


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, {"n": 1})
    old = path.read_bytes()
    with small_disk(50_000), pytest.raises(OSError, match=r"cannot write .*file: .*File too large"):
        files.write(path, FORMAT, {"big": torch.rand(100_000)})
    assert path.read_bytes() == old
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_failure_at_any_step_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    files.write(path, FORMAT, {"n": 1})

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            files.write(path, FORMAT, {"n": 2})
    assert files.read(path, FORMAT)["n"] == 1
    assert listing(tmp_path) == ["file"]


def test_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, FORMAT, {"n": 1})

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write(path, FORMAT, {"n": 2})
    assert files.read(path, FORMAT)["n"] == 1
    assert listing(tmp_path) == ["file"]


def test_content_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, {"n": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        files.write(path, FORMAT, {"n": lambda: None})
    assert files.read(path, FORMAT)["n"] == 1
    assert listing(tmp_path) == ["file"]


def test_folder_without_permission(open_folder):
    with unprivileged(), pytest.raises(PermissionError):
        files.write(open_folder / "file", FORMAT, {})
    assert listing(open_folder) == []


def test_unreadable_file_is_not_called_damaged(open_folder):
    path = open_folder / "file"
    files.write(path, FORMAT, {})
    path.chmod(0o600 if os.geteuid() == 0 else 0o000)
    with unprivileged(), pytest.raises(PermissionError):
        files.read(path, FORMAT)


def test_target_is_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        files.write(tmp_path / "folder", FORMAT, {})
    assert listing(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError, match="there is no file"):
        files.read(tmp_path / "folder", FORMAT)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent"):
        files.read(tmp_path / "absent", FORMAT)


def test_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"empty is not a bnnzoo\.test file, or is damaged"):
        files.read(tmp_path / "empty", FORMAT)


def test_random_bytes(tmp_path):
    path = tmp_path / "noise"
    generator = random.Random(0)
    for length in (1, 10, 100, 1000):
        for start in (b"", b"PK\x03\x04", b"\x80\x02"):
            path.write_bytes(start + generator.randbytes(length))
            with pytest.raises(ValueError, match="damaged"):
                files.read(path, FORMAT)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(3)}, [1, 2], torch.zeros(3), OrderedDict(version=1)])
def test_other_torch_files(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a bnnzoo\.test file$"):
        files.read(tmp_path / "other.pt", FORMAT)


def test_another_of_our_formats_is_named(tmp_path):
    files.write(tmp_path / "file", "bnnzoo.checkpoint", {})
    with pytest.raises(ValueError, match=r"is not a bnnzoo\.test file but a bnnzoo\.checkpoint file"):
        files.read(tmp_path / "file", FORMAT)


def test_later_version(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "VERSION", files.VERSION + 1)
        files.write(tmp_path / "file", FORMAT, {})
    with pytest.raises(ValueError, match=f"version {files.VERSION + 1}.*reads up to {files.VERSION}: update"):
        files.read(tmp_path / "file", FORMAT)


@pytest.mark.parametrize("version", [{}, {"version": "1"}, {"version": None}])
def test_no_version(tmp_path, version):
    torch.save({"format": FORMAT, **version}, tmp_path / "file")
    with pytest.raises(ValueError, match="damaged"):
        files.read(tmp_path / "file", FORMAT)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, zipped):
    path, mark = tmp_path / "file", tmp_path / "ran"
    attack = {"format": FORMAT, "version": 1, "attack": Attack(mark)}
    torch.save(attack, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="damaged"):
        files.read(path, FORMAT)
    path.write_bytes(pickle.dumps(attack))
    with pytest.raises(ValueError, match="damaged"):
        files.read(path, FORMAT)
    assert not mark.exists()
    # The attack itself works: with pickle allowed it runs.
    torch.save(attack, path)
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_truncation_anywhere_is_noticed(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, content())
    raw = path.read_bytes()
    for length in range(1, len(raw), len(raw) // 60):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="damaged"):
            files.read(path, FORMAT)


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, content())
    raw = path.read_bytes()
    generator = random.Random(1)
    noticed = 0
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and zipfile may have more to say about such files
            try:
                back = files.read(path, FORMAT)
            except ValueError:
                noticed += 1
                continue
        assert torch.equal(back["tensors"]["a"], content()["tensors"]["a"])
        assert back["plain"] == content()["plain"]
    assert noticed > 200


def test_a_changed_number_is_noticed(tmp_path):
    path = tmp_path / "file"
    files.write(path, FORMAT, content())
    raw = bytearray(path.read_bytes())
    place = raw.find(torch.arange(100.0, 200.0).numpy().tobytes())
    assert place > 0
    raw[place + 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged: the checksum"):
        files.read(path, FORMAT)

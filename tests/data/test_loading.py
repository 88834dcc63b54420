import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bnnzoo.data import files, load, loading
from bnnzoo.data.download import DownloadError
from bnnzoo.data.registry import info

REAL = os.environ.get("BNNZOO_DATA")
"""The developer's own data, looked up before the tests set the variable."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty machine without network: its cache is in tmp_path / "cache"."""
    monkeypatch.delenv("BNNZOO_DATA", raising=False)
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")

    def offline(entry):
        raise DownloadError("no network")

    monkeypatch.setattr(loading, "download", offline)
    return tmp_path


def yacht(first, rows=10):
    x = np.random.default_rng(0).normal(size=(rows, 6))
    x[0, 0] = first
    return {"x": x, "y": np.arange(float(rows))}


def test_the_order_of_places(place, monkeypatch):
    folder = place / "mine"
    files.write_npz(place / "cache" / "yacht.npz", yacht(1))
    assert load("yacht").x[0, 0] == 1
    monkeypatch.setenv("BNNZOO_DATA", str(folder))
    assert load("yacht").x[0, 0] == 1
    files.write_npz(folder / "uci" / "yacht.npz", yacht(2))
    assert load("yacht").x[0, 0] == 2
    files.write_npz(folder / "yacht.npz", yacht(3))
    assert load("yacht").x[0, 0] == 3
    other = place / "other.npz"
    files.write_npz(other, yacht(4))
    assert load("yacht", path=other).x[0, 0] == 4
    assert load("yacht", path=str(place / "cache")).x[0, 0] == 1


def test_a_download_is_cached(place, monkeypatch):
    monkeypatch.setattr(loading, "download", lambda entry: {**yacht(5), "feature_names": np.array(list("abcdef"))})
    first = load("yacht")
    monkeypatch.setattr(loading, "download", None)
    again = load("Yacht")
    assert torch.equal(first.x, again.x)
    assert again.feature_names == tuple("abcdef")
    assert os.listdir(place / "cache") == ["yacht.npz"]


def test_an_unusable_download_is_not_cached(place, monkeypatch):
    monkeypatch.setattr(loading, "download", lambda entry: {"x": np.full((3, 6), np.nan), "y": np.zeros(3)})
    with pytest.raises(ValueError, match="'OpenML': x has 18 NaN"):
        load("yacht")
    assert not (place / "cache").exists()


def test_offline_and_absent_says_how_to_provide_the_file(place, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        load("concrete")
    text = str(caught.value)
    for part in ("'concrete'", "no network", "$BNNZOO_DATA (not set)", str(place / "cache"), "numpy.savez"):
        assert part in text
    assert "concrete.npz" in text
    assert "x [1030, 8] and y [1030]" in text
    monkeypatch.setenv("BNNZOO_DATA", str(place))
    with pytest.raises(FileNotFoundError, match=r"x_train uint8 \[50000, 32, 32, 3\].*or cifar10\.zip") as caught:
        load("cifar10")
    assert f"$BNNZOO_DATA ({place})" in str(caught.value)


def test_paths_that_do_not_serve(place):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load("yacht", path=place / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no yacht\.npz.*To provide it"):
        load("yacht", path=place)
    with pytest.raises(ValueError, match="'cubic' is generated: it is not read from a path"):
        load("cubic", path=place)
    (place / "yacht.npz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable npz"):
        load("yacht", path=place)


def test_npz_goes_before_zip(place, monkeypatch):
    asked = []
    arrays = {"x_test": np.zeros((2, 32, 32, 3), np.uint8), "y_test": np.array([0, 1])}
    monkeypatch.setattr(files, "read_image_zip", lambda path, entry: asked.append(path) or arrays)
    (place / "cifar10.zip").write_bytes(b"")
    assert len(load("cifar10", path=place)) == 2
    assert asked == [place / "cifar10.zip"]
    files.write_npz(place / "cifar10.npz", {**arrays, "x_test": np.ones((2, 32, 32, 3), np.uint8)})
    assert load("cifar10", path=place).x.max() > 0
    assert len(asked) == 1


def real(name):
    folder = Path(REAL or "")
    files_of = [folder / f"{name}.npz", folder / "uci" / f"{name}.npz"]
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            not REAL or not any(file.is_file() for file in files_of), reason=f"$BNNZOO_DATA holds no {name}.npz"
        ),
    )


@pytest.mark.parametrize(
    "name",
    [
        real(name)
        for name in ("boston", "concrete", "energy", "kin8nm", "power", "protein", "wine", "yacht", "mnist", "notmnist")
    ],
)
def test_real_files_are_what_the_registry_says(name, monkeypatch):
    monkeypatch.setenv("BNNZOO_DATA", REAL)
    entry, data = info(name), load(name)
    assert len(data) == entry.rows
    assert data.input_shape == entry.input_shape
    assert data.task == entry.task
    if entry.test_rows:
        assert tuple(torch.bincount(data.test.y).tolist()) == entry.test_counts
    train, _ = data.split(0.2, seed=1)
    if entry.kind == "table":
        x, y = train.standardized()
        assert abs(x.double().mean(0)).max() < 1e-5
        assert y.double().std(correction=0) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(train.standardization.inverse_y(y), train.y, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not REAL or not (Path(REAL) / "cifar10.zip").is_file(), reason="$BNNZOO_DATA holds no cifar10.zip")
@pytest.mark.slow
def test_real_cifar10_is_decoded_from_its_zip(monkeypatch):
    data = load("cifar10", path=Path(REAL) / "cifar10.zip")
    assert (len(data), len(data.test)) == (50000, 10000)
    assert torch.bincount(data.y).tolist() == [5000] * 10
    first = torch.bincount(data.test.y[:1000], minlength=10)
    assert (first - 100).abs().max() < 50  # in the order of the folders they would all be airplanes
    assert 0.4 < data.test.x.mean() < 0.55

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from bnnzoo.data import files
from bnnzoo.data.registry import info


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(files, "cache_dir", lambda: folder)
    return folder


def write_zip(path, value=200, parts=("train", "test"), folders=("cat", "airplane"), size=32, ending="png"):
    with zipfile.ZipFile(path, "w") as archive:
        for part in parts:
            for row, folder in enumerate(folders):
                pixels = np.full((size, size, 3), value + row, dtype=np.uint8)
                pixels[0, 1] = (1, 2, 3)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, format={"png": "PNG", "jpg": "JPEG"}[ending])
                archive.writestr(f"{part}/{folder}/{row:04}.{ending}", stream.getvalue())
        archive.writestr("README.txt", "no image")
    return path


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "a.npz"
    files.write_npz(path, {"x": np.eye(2), "names": np.array(["p", "q"])})
    arrays = files.read_npz(path)
    assert arrays["x"].tolist() == [[1, 0], [0, 1]]
    assert arrays["names"].tolist() == ["p", "q"]
    assert os.listdir(path.parent) == ["a.npz"]


def test_a_cache_that_cannot_be_written_is_a_warning_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="was not cached"):
        files.write_npz(tmp_path / "file" / "a.npz", {"x": np.eye(2)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.warns(UserWarning, match="no space left"):
        files.write_npz(tmp_path / "b" / "a.npz", {"x": np.eye(2)})
    assert os.listdir(tmp_path / "b") == []


@pytest.mark.parametrize("content", [b"", b"garbage", None, "object", "npy"])
def test_damaged_and_pickled_files(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is None:
        np.savez(path, x=np.zeros(1000), y=np.zeros(10))
        path.write_bytes(path.read_bytes()[:600])
    elif content == "object":
        np.savez(path, x=np.array([{}], dtype=object))
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz' is not a readable npz file of plain arrays"):
        files.read_npz(path)


def test_zip_of_images_is_decoded_once(tmp_path, cache, monkeypatch):
    path = write_zip(tmp_path / "cifar10.zip")
    arrays = files.read_image_zip(path, info("cifar10"))
    assert arrays["x_train"].shape == (2, 32, 32, 3)
    assert sorted(arrays["y_train"].tolist()) == [0, 3]  # airplane, cat
    assert arrays["x_train"][arrays["y_train"] == 3][0, 5, 5, 0] == 200
    assert arrays["x_test"][0, 0, 1].tolist() == [1, 2, 3]
    assert len(os.listdir(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(files, "_decode", None)
        again = files.read_image_zip(path, info("cifar10"))
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    other = files.read_image_zip(write_zip(path, value=100), info("cifar10"))
    assert other["x_train"][other["y_train"] == 3][0, 5, 5, 0] == 100
    assert len(os.listdir(cache)) == 2


def test_jpegs_are_read(tmp_path):
    arrays = files.read_image_zip(write_zip(tmp_path / "a.zip", ending="jpg"), info("cifar10"))
    assert abs(int(arrays["x_train"][arrays["y_train"] == 3][0, 20, 20, 0]) - 200) <= 2


def test_rows_of_a_zip_are_mixed(tmp_path, cache):
    folders = ("cat",) * 30 + ("airplane",) * 30
    labels = files.read_image_zip(write_zip(tmp_path / "a.zip", value=100, folders=folders), info("cifar10"))["y_train"]
    assert sorted(labels.tolist()) == [0] * 30 + [3] * 30
    for part in (labels[:20], labels[20:40], labels[40:], labels[::3]):
        assert 4 <= (part == 0).sum() <= 16  # of 20, 10 ± 1.8 if mixed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("train",)}, "has no images test/<class>"),
        ({"folders": ("cat", "cow")}, "'train/cow/0001.png' is not in the folder of a class"),
        ({"size": 28}, r"has \(28, 28\) pixels, not \(32, 32\)"),
    ],
)
def test_zips_of_another_layout(tmp_path, cache, options, message):
    with pytest.raises(ValueError, match=message):
        files.read_image_zip(write_zip(tmp_path / "a.zip", **options), info("cifar10"))
    assert not cache.exists()


def test_no_zip_at_all(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        files.read_image_zip(path, info("cifar10"))


def test_tables_are_built_with_the_names_of_the_registry_or_the_file():
    entry = info("yacht")
    arrays = {"x": np.random.default_rng(0).normal(size=(5, 6)), "y": np.arange(5.0)}
    data = files.build(entry, arrays, "f")
    assert data.feature_names == entry.feature_names
    assert data.target_name == "resistance"
    data = files.build(entry, {**arrays, "feature_names": np.array(list("abcdef"))}, "f")
    assert data.feature_names == tuple("abcdef")


def test_images_are_built_with_their_test_set():
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(7, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(3, dtype=np.uint8),
    }
    data = files.build(info("cifar10"), arrays, "f")
    assert (len(data), len(data.test)) == (7, 3)
    np.testing.assert_allclose(data.x[2, 1], arrays["x_train"][2, :, :, 1] / 255, rtol=1e-6)
    assert data.class_names[1] == "automobile"
    train, test = data.split()
    assert test.y.tolist() == [0, 1, 2]
    assert len(train) == 7
    only_test = files.build(info("cifar10"), {name: arrays[name] for name in ("x_test", "y_test")}, "f")
    assert len(only_test) == 3
    assert only_test.test is None


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("yacht", {"a": np.zeros(2)}, r"holds the arrays \['a'\]: it should hold x \[308, 6\] and y \[308\]"),
        ("yacht", {"x": np.zeros((2, 5)), "y": np.zeros(2)}, "6 feature names for inputs of shape"),
        ("yacht", {"x": np.full((2, 6), np.nan), "y": np.zeros(2)}, "'f': x has 12 NaN"),
        ("mnist", {"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": [0, 1]}, r"\(1, 8, 8\), not \(1, 28, 28\)"),
        ("mnist", {"x_test": np.zeros((2, 28, 28)), "y_test": [0, 1]}, "images must be uint8.*y_train"),
        ("mnist", {"x_test": np.zeros((1, 28, 28), np.uint8), "y_test": [10]}, "label 10 is out of range"),
        ("notmnist", {"x": np.zeros(1)}, r"it should hold x_test uint8 \[10000, 28, 28\] and y_test \[10000\]"),
    ],
)
def test_arrays_that_do_not_fit(name, arrays, message):
    with pytest.raises(ValueError, match=message):
        files.build(info(name), arrays, "f")

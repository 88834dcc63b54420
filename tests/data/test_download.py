from dataclasses import replace
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets

from bnnzoo.data import download
from bnnzoo.data.registry import info


@pytest.fixture
def openml(monkeypatch):
    """A stand-in for the client: tests set its answer, and see what it was asked for."""
    client = SimpleNamespace(answer=None, asked=None)

    def fetch_openml(**asked):
        client.asked = asked
        if isinstance(client.answer, Exception):
            raise client.answer
        return client.answer

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    return client


def table(rows, columns, target="t"):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(rows, columns)), columns=[f"c{number}" for number in range(columns)])
    return SimpleNamespace(data=frame, target=pd.Series(np.arange(rows) / 2, name=target))


def smaller(name):
    """The entry of a data set of images, with a hundredth of its rows."""
    entry = info(name)
    counts = tuple(count // 100 for count in entry.test_counts)
    return replace(entry, rows=entry.rows // 100, test_rows=sum(counts), test_counts=counts)


def images(entry, labels=None):
    rows = entry.rows + entry.test_rows
    pixels = np.zeros((rows, entry.num_features))
    pixels[:, 1] = np.arange(rows) % 256
    if labels is None:
        labels = np.concatenate(
            [np.arange(entry.rows) % 10, *(np.full(count, label) for label, count in enumerate(entry.test_counts))]
        )
    return SimpleNamespace(data=pixels, target=labels.astype(str).astype(object))


def test_tables_come_with_their_column_names(openml):
    openml.answer = table(308, 6)
    arrays = download.download(info("yacht"))
    assert openml.asked["name"] == "yacht_hydrodynamics"
    assert openml.asked["version"] == 1
    assert "data_id" not in openml.asked
    np.testing.assert_array_equal(arrays["x"], openml.answer.data.to_numpy())
    np.testing.assert_array_equal(arrays["y"], np.arange(308) / 2)
    assert arrays["feature_names"].tolist() == [f"c{number}" for number in range(6)]
    assert arrays["feature_names"].dtype.kind == "U"


def test_numbers_that_are_called_nominal_keep_their_values(openml):
    openml.answer = table(506, 13)
    values = np.resize([24.0, 4.0, 5.0], 506)
    openml.answer.data["c8"] = pd.Categorical([f"{value:g}" for value in values])
    arrays = download.download(info("boston"))
    assert openml.asked["data_id"] == 531
    np.testing.assert_array_equal(arrays["x"][:, 8], values)


def test_a_second_target_is_dropped(openml):
    openml.answer = table(768, 8)
    openml.answer.data["cooling_load"] = 1.0
    assert download.download(info("energy"))["x"].shape == (768, 8)


def test_another_data_set_of_that_name_is_refused(openml):
    openml.answer = table(308, 7)
    with pytest.raises(ValueError, match="has 308 rows and 7 columns, but 'yacht' has 308 and 6"):
        download.download(info("yacht"))


def test_images_are_cut_at_the_official_place(openml):
    entry = smaller("mnist")
    openml.answer = images(entry)
    arrays = download.download(entry)
    assert openml.asked["data_id"] == 554
    assert arrays["x_train"].shape == (600, 28, 28)
    assert arrays["x_test"].dtype == np.uint8
    assert arrays["x_test"][5, 0, 1] == 605 % 256
    assert np.bincount(arrays["y_test"]).tolist() == list(entry.test_counts)


def test_color_images_have_their_channels_last(openml, monkeypatch):
    entry = smaller("cifar10")
    openml.answer = images(entry)
    openml.answer.data = np.zeros((600, 3072), dtype=np.uint8)
    openml.answer.data[:, 1024] = 9  # the first green pixel
    arrays = download.download(entry)
    assert arrays["x_train"].shape == (500, 32, 32, 3)
    assert arrays["x_train"][0, 0, 0].tolist() == [0, 9, 0]


def test_another_order_of_rows_is_refused(openml):
    entry = smaller("mnist")
    openml.answer = images(entry)
    openml.answer.target = np.random.default_rng(0).permutation(openml.answer.target)
    with pytest.raises(ValueError, match="not in the official order"):
        download.download(entry)


def test_pixels_of_another_range_are_refused(openml):
    entry = smaller("mnist")
    openml.answer = images(entry)
    openml.answer.data /= 255
    with pytest.raises(ValueError, match=r"pixels from 0\.0 to 1\.0"):
        download.download(entry)


def test_images_of_another_size_are_refused(openml):
    openml.answer = images(smaller("mnist"))
    with pytest.raises(ValueError, match=r"has shape \(69\d, 784\), not \(70000, 784\)"):
        download.download(info("mnist"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (URLError("no route"), "cannot be reached.*no route"),
        (TimeoutError("slow"), "cannot be reached: slow"),
        (ValueError("No active dataset"), "does not give it: No active"),
    ],
)
def test_failures_are_one_error(openml, error, message):
    openml.answer = error
    with pytest.raises(download.DownloadError, match=message):
        download.download(info("concrete"))


def test_what_openml_is_not_known_to_have(openml):
    with pytest.raises(download.DownloadError, match="not known to have"):
        download.download(info("power"))
    assert openml.asked is None

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from bnnzoo.data import Dataset, Split, Standardization


def regression(rows=50, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(5, 3, (rows, 3)), rng.normal(-100, 20, rows), name="r", feature_names=["a", "b", "c"])


def classification(sizes=(60, 30, 10)):
    y = np.repeat(np.arange(len(sizes)), sizes)
    return Dataset(np.arange(len(y), dtype=float).reshape(-1, 1), y, name="c")


def images(rows=6, channels=1):
    pixels = np.arange(rows * 4 * 5 * channels, dtype=np.uint8).reshape(rows, 4, 5, channels)
    return Dataset.from_images(pixels, np.arange(rows) % 2)


def test_it_unpacks_indexes_and_loads_in_batches():
    data = regression()
    x, y = data
    assert x is data.x
    assert y is data.y
    assert len(data) == 50
    row = data[np.int64(7)]
    assert torch.equal(row[0], x[7])
    assert torch.equal(row[1], y[7])
    batches = list(DataLoader(data, batch_size=20))
    assert [len(batch[1]) for batch in batches] == [20, 20, 10]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    with pytest.raises(IndexError):
        data[50]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(2, 6), [2, 3, 4, 5]),
        ([4, 1], [4, 1]),
        (np.array([9, 0]), [9, 0]),
        (torch.tensor([3]), [3]),
        (np.arange(50) == 8, [8]),
    ],
)
def test_subsets_keep_everything_else(index, rows):
    data = regression().with_standardization()
    part = data[index]
    assert torch.equal(part.y, data.y[rows])
    assert torch.equal(part.x, data.x[rows])
    assert part.standardization is data.standardization
    assert part.feature_names == ("a", "b", "c")


def test_an_empty_subset_is_an_error():
    with pytest.raises(ValueError, match=r"no row of data set 'r' \(50 rows\)"):
        regression()[:0]


def test_repr_says_what_it_is():
    assert repr(regression()) == "Dataset('r': 50 rows of 3, regression)"
    assert repr(classification()) == "Dataset('c': 100 rows of 1, classification, 3 classes)"
    assert "6 rows of 1 x 4 x 5, classification, 2 classes" in repr(images())
    assert "2 targets" in repr(Dataset(np.zeros((4, 1)), np.zeros((4, 2))))


def test_names_come_from_frames():
    data = Dataset(pd.DataFrame({"p": [1, 2], "q": [3.0, 4.0]}), pd.Series([0.5, 1.5], name="t"))
    assert data.feature_names == ("p", "q")
    assert data.target_name == "t"
    assert data.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_names": ["a"]}, "1 feature names for inputs of shape"),
        ({"task": "regresion"}, "unknown task 'regresion'.*Did you mean 'regression'"),
        ({"class_names": ["a"]}, "class names do not fit"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Dataset(np.zeros((3, 2)), np.zeros(3), **options)


def test_labels_beyond_the_class_names():
    with pytest.raises(ValueError, match="label 2 is out of range for 2 class names"):
        Dataset(np.zeros((3, 2)), [0, 1, 2], class_names=["a", "b"])


def test_split_is_standardized_by_the_training_rows_only():
    split = regression().split(0.2, seed=1)
    assert isinstance(split, Split)
    train, test = split
    assert (len(train), len(test)) == (40, 10)
    assert train.standardization is test.standardization
    x, y = train.standardized()
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(correction=0), 1, atol=1e-6)
    assert train.y.mean() < -50  # own units
    x, y = test.standardized()
    assert abs(x.mean(0)).max() > 1e-3
    torch.testing.assert_close(train.standardization.inverse_y(y), test.y, rtol=1e-5, atol=1e-4)


def test_split_is_a_partition_fixed_by_its_seed():
    data = Dataset(np.arange(30.0).reshape(-1, 1), np.arange(30.0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = data.split(seed=1), data.split(seed=1), data.split(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.test.y, second.test.y)
    assert not torch.equal(first.test.y, other.test.y)
    assert len(first.test) == 3
    assert sorted([*first.train.y.tolist(), *first.test.y.tolist()]) == list(range(30))
    assert torch.equal(first.train.x.squeeze(1), first.train.y)


def test_standardize_false():
    train, test = regression().with_standardization().split(standardize=False)
    assert train.standardization is None
    assert test.standardization is None
    assert train.standardized()[0] is train.x


def test_what_is_standardized_depends_on_the_task_and_the_inputs():
    s = classification().split().train.standardization
    assert s.x_loc is not None
    assert s.y_loc is None
    s = Dataset(np.zeros((9, 1)), np.arange(9), task="counts").split().train.standardization
    assert s.y_loc is None
    assert images().split(2).train.standardization is None
    s = Dataset(torch.zeros(9, 2, 3), torch.randn(9)).split().train.standardization
    assert s.x_loc is None
    assert s.y_loc is not None
    tokens = Dataset(torch.arange(18).reshape(9, 2), torch.arange(9))
    assert tokens.x.dtype == torch.int64
    assert tokens.split().train.standardization is None


def test_classes_are_stratified_unless_told_otherwise():
    data = classification()
    for seed in range(5):
        assert torch.bincount(data.split(0.2, seed=seed).test.y).tolist() == [12, 6, 2]
    seen = {
        tuple(torch.bincount(data.split(0.2, seed=s, stratify=False).test.y, minlength=3).tolist()) for s in range(9)
    }
    assert len(seen) > 1
    with pytest.raises(ValueError, match="only class labels"):
        regression().split(stratify=True)


def test_official_test_set():
    test = regression(rows=4, seed=1)
    data = Dataset(*regression(), test=test)
    train, official = data.split()
    assert torch.equal(train.y, data.y)
    assert torch.equal(official.y, test.y)
    assert train.test is None
    torch.testing.assert_close(official.standardization.y_loc, data.y.double().mean())
    train, random = data.split(0.5)
    assert len(train) == len(random) == 25
    with pytest.raises(ValueError, match="those of the test set"):
        Dataset(np.zeros((3, 2)), np.zeros(3), test=test)


def test_folds_cover_every_row_once():
    data = Dataset(np.arange(23.0).reshape(-1, 1), np.arange(23.0))
    splits = data.folds(5, seed=3)
    assert sorted(y for split in splits for y in split.test.y.tolist()) == list(range(23))
    for train, test in splits:
        assert len(train) + len(test) == 23
        assert not set(train.y.tolist()) & set(test.y.tolist())
        torch.testing.assert_close(test.standardization.y_loc, train.y.double().mean())
    assert [torch.bincount(s.test.y).tolist() for s in classification().folds(10)] == [[6, 3, 1]] * 10


def test_with_standardization():
    data = regression()
    assert data.standardization is None
    given = Standardization.fit(y=torch.tensor([0.0, 2.0]))
    assert data.with_standardization(given).standardization is given
    own = data.with_standardization()
    torch.testing.assert_close(own.standardized()[1].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert data.standardization is None


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 1, 4, 5)), (3, (6, 3, 4, 5))])
def test_images_are_bytes_inside_and_unit_floats_outside(channels, shape):
    data = images(channels=channels)
    assert data._x.dtype == torch.uint8
    assert data.input_shape == shape[1:]
    assert data._scaled is None
    assert torch.equal(data[1][0], data[1:2].x[0])
    assert data._scaled is None
    assert data.x.shape == shape
    assert data.x.dtype == torch.float32
    assert data.x is data.x
    assert data[3][0][0, 0, 1].item() == pytest.approx((3 * 20 + 1) * channels % 256 / 255)
    part = data.subset([2, 4])
    assert torch.equal(part.x, data.x[[2, 4]])
    flat = data.flatten()
    assert flat.x.shape == (6, 20 * channels)
    assert torch.equal(flat.x, data.x.flatten(1))
    assert flat.with_standardization().standardization is None


def test_image_layouts():
    pixels = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    assert Dataset.from_images(pixels, [0, 1]).input_shape == (3, 8, 8)
    assert Dataset.from_images(pixels[:, 0], [0, 1]).input_shape == (1, 8, 8)
    odd = np.zeros((2, 3, 8, 3), dtype=np.uint8)
    assert Dataset.from_images(odd, [0, 1]).input_shape == (3, 3, 8)
    assert Dataset.from_images(odd, [0, 1], layout="NCHW").input_shape == (3, 8, 3)
    with pytest.raises(ValueError, match="uint8"):
        Dataset.from_images(pixels / 255, [0, 1])
    with pytest.raises(ValueError, match=r"not \(2, 64\)"):
        Dataset.from_images(np.zeros((2, 64), dtype=np.uint8), [0, 1])
    with pytest.raises(ValueError, match="layout"):
        Dataset.from_images(pixels, [0, 1], layout="CHWN")
    with pytest.raises(ValueError, match="x has 2 rows and y has 3"):
        Dataset.from_images(pixels, [0, 1, 1])


def test_official_test_images_flatten_too():
    data = Dataset.from_images(np.zeros((4, 4, 5), dtype=np.uint8), [0, 1, 0, 1], test=images())
    assert data.test.input_shape == (1, 4, 5)
    assert data.flatten().test.input_shape == (20,)


def test_to_moves_and_casts_floats_only():
    data = images().to(dtype=torch.float64)
    assert data.x.dtype == torch.float64
    assert data.y.dtype == torch.int64
    assert regression().to("cpu", torch.float64).y.dtype == torch.float64
    assert images().to("cpu")._x.dtype == torch.uint8


def test_num_classes():
    assert classification().num_classes == 3
    assert regression().num_classes is None
    assert classification()[:60].num_classes == 3
    assert Dataset(np.zeros((2, 1)), [0, 1], class_names="abc").num_classes == 3

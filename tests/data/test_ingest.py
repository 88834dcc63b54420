import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from bnnzoo import data
from bnnzoo.data import Dataset, Standardization, as_dataset

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10.0) / 2


class Pairs(TorchDataset):
    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], float(self.y[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Pairs()[index] for index in range(10))


class Triples(Pairs):
    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class Objects(Pairs):
    def __getitem__(self, index):
        return object(), 1.0


class Ragged(Pairs):
    def __getitem__(self, index):
        return torch.zeros(1 + index // 5), 1.0


def test_a_dataset_is_returned_as_it_is():
    dataset = Dataset(X, Y)
    assert as_dataset(dataset) is dataset
    assert as_dataset(dataset, name="n").name == "n"
    assert as_dataset(dataset, task="regression") is dataset
    with pytest.raises(ValueError, match="is for regression, not for 'counts'"):
        as_dataset(dataset, task="counts")


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.tolist(), Y.tolist()),
        (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
        (X, Y.unsqueeze(1)),
        TensorDataset(X, Y),
        Pairs(),
        Stream(),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True),
        DataLoader(Pairs(), batch_size=3, shuffle=True),
        DataLoader(Stream(), batch_size=4),
        DataLoader(list(zip(X.split(5), Y.split(5), strict=True)), batch_size=None),
        DataLoader(Dataset(X, Y), batch_size=4),
    ],
)
def test_every_source_gives_the_same_rows_in_the_same_order(source):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dataset = as_dataset(source)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(dataset.x, X)
    assert torch.equal(dataset.y.float(), Y)
    assert dataset.task == "regression"
    assert dataset.standardization is None


def test_a_loader_with_a_sampler_of_its_own_is_read_as_it_comes():
    loader = DataLoader(Pairs(), batch_size=4, sampler=RandomSampler(Pairs(), replacement=True, num_samples=17))
    assert len(as_dataset(loader)) == 17
    loader = DataLoader(Pairs(), batch_sampler=[[1, 2], [5]])
    assert as_dataset(loader).y.tolist() == [0.5, 1.0, 2.5]


def test_a_collate_function_is_used():
    def collate(rows):
        return torch.stack([x for x, _ in rows]) * 2, torch.tensor([y for _, y in rows])

    assert torch.equal(as_dataset(DataLoader(Pairs(), batch_size=4, shuffle=True, collate_fn=collate)).x, 2 * X)


def test_labels_of_loaders_are_classes():
    dataset = as_dataset(DataLoader(TensorDataset(X, torch.arange(10) % 3), batch_size=4))
    assert dataset.task == "classification"
    assert dataset.num_classes == 3


def test_standardization_is_added_on_request_and_never_replaced():
    dataset = as_dataset((X, Y), standardize=True, task="regression", name="pair")
    assert dataset.name == "pair"
    torch.testing.assert_close(dataset.standardization.y_loc, Y.double().mean())
    own = dataset.with_standardization(Standardization.fit(y=Y * 3))
    assert as_dataset(own, standardize=True).standardization is own.standardization


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Dataset(X, Y).split(), TypeError, "split.train"),
        ("concrete", TypeError, r"data.load\('concrete'\)"),
        (pd.DataFrame({"a": [1.0]}), TypeError, "from_frame"),
        (X, TypeError, r"pass a pair \(x, y\)"),
        (X.numpy(), TypeError, r"pass a pair \(x, y\)"),
        ({"x": X, "y": Y}, TypeError, "of a dict: pass a bnnzoo Dataset, a pair"),
        (None, TypeError, "NoneType"),
        ((X, Y, Y), ValueError, "tuple of 3 items"),
        (TensorDataset(X), ValueError, "holds 1 tensors"),
        (Triples(), ValueError, "list of 3 items"),
        (Objects(), ValueError, "cannot be made a batch"),
        (DataLoader(Ragged(), batch_size=5), ValueError, "cannot be put together"),
        (Pairs(X[:0], Y[:0]), ValueError, "is empty"),
        ((X, Y[:4]), ValueError, "x has 10 rows and y has 4"),
        (DataLoader(TensorDataset(X / 0, Y), batch_size=4), ValueError, "x has 20 NaN"),
        ((X, np.full(10, np.nan)), ValueError, "y has 10 NaN"),
    ],
)
def test_what_cannot_be_read(source, error, message):
    with pytest.raises(error, match=message):
        as_dataset(source)


def test_everything_public_is_there():
    for name in data.__all__:
        assert getattr(data, name).__doc__

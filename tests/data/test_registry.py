import pytest

from bnnzoo.data import info, load, names
from bnnzoo.data.registry import ENTRIES

UCI = ["boston", "concrete", "energy", "kin8nm", "power", "protein", "wine", "yacht"]


def test_every_data_set_of_the_plan_is_known():
    assert set(names()) >= {
        *UCI,
        "diabetes",
        "digits",
        "mnist",
        "fashion-mnist",
        "notmnist",
        "cifar10",
        "cubic",
        "moons",
    }


@pytest.mark.parametrize("name", list(ENTRIES))
def test_entries_are_complete_and_consistent(name):
    entry = info(name)
    assert entry.name == name
    assert entry.description
    assert entry.source
    assert (entry.build is None) == (entry.kind in ("table", "images"))
    if entry.feature_names is not None:
        assert (len(entry.feature_names),) == entry.input_shape
    assert sum(entry.test_counts) == entry.test_rows
    if entry.task == "classification":
        assert len(entry.class_names) in (2, 4, 10)
    if entry.openml is not None:
        assert entry.openml.data_id is not None or entry.openml.name


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.build is not None])
def test_what_is_built_is_what_the_entry_says(name):
    entry, data = info(name), load(name)
    assert data.name == name
    assert data.description == entry.description
    assert data.task == entry.task
    assert len(data) == entry.rows
    assert data.input_shape == entry.input_shape
    assert data.feature_names == entry.feature_names
    assert data.target_name == entry.target_name
    assert data.class_names == entry.class_names
    assert data.standardization is None


def test_names_are_forgiving():
    assert info("Fashion_MNIST") is info("fashion-mnist")
    assert info(" Concrete ") is info("concrete")


@pytest.mark.parametrize(
    ("given", "meant"), [("concret", "concrete"), ("fashionmnist", "fashion-mnist"), ("cifar", "cifar10")]
)
def test_unknown_names_suggest_the_closest(given, meant):
    with pytest.raises(
        ValueError, match=f"unknown data set '{given}'. Did you mean '{meant}'.*Known: boston, .*from_csv"
    ):
        load(given)


def test_embedded_data_are_in_own_units():
    diabetes = load("diabetes")
    assert diabetes.x[0].tolist() == pytest.approx([59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87])
    assert diabetes.y[:3].tolist() == [151, 75, 141]
    digits = load("digits")
    assert digits.x.shape == (1797, 1, 8, 8)
    assert (digits.x.min(), digits.x.max()) == (0, 1)

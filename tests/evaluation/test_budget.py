"""The budget's arithmetic and the order in which things are left out."""

import pytest

from bnnzoo.evaluation.budget import Cost, plan, size

COST = Cost(chains=2, sites={"small": 10, "large": 1000, "middle": 100}, per_draw=20, per_prior_draw=5, inputs=4000)


def total(draws, prior, weights, inputs=4000):
    return 2 * (draws * (weights + 20) + prior * (weights + 5)) + inputs


def test_everything_if_it_fits():
    exact = total(500, 50, 1110)
    assert COST.total(500, 50, list(COST.sites), True) == exact
    fitted = plan(COST, 500, 50, exact)
    assert (fitted.draws, fitted.prior_draws, fitted.sites, fitted.inputs, fitted.note) == (
        500,
        50,
        ["small", "large", "middle"],
        True,
        None,
    )
    assert plan(COST, 500, 50, exact - 1).draws == 499


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (total(300, 50, 1110), (300, 50, ["small", "large", "middle"], True)),
        (total(100, 50, 1110), (100, 50, ["small", "large", "middle"], True)),
        (total(100, 50, 1110) - 1, (151, 0, ["small", "large", "middle"], True)),
        (total(100, 0, 110), (100, 0, ["small", "middle"], True)),
        (total(100, 0, 10, 0), (100, 0, ["small"], False)),
        (total(7, 0, 0, 0), (7, 0, [], False)),
    ],
)
def test_the_order_of_sacrifices(max_bytes, expected):
    fitted = plan(COST, 500, 50, max_bytes)
    draws, prior, sites, inputs = expected
    if draws == 151:  # without the prior there is room for more draws again
        draws = (max_bytes - 4000) // (2 * 1130)
    assert (fitted.draws, fitted.prior_draws, fitted.sites, fitted.inputs) == (draws, prior, sites, inputs)
    assert COST.total(fitted.draws, fitted.prior_draws, fitted.sites, fitted.inputs) <= max_bytes


def test_the_note_says_what_happened():
    note = plan(COST, 500, 50, total(100, 0, 10, 0)).note
    assert note == (
        "2 x 500 draws would take 1.188 MiB, above max_bytes=5.859 KiB: exported 100 draws a chain, "
        "left out the prior groups and the inputs and the sites large, middle"
    )


def test_too_small_for_anything():
    with pytest.raises(ValueError, match="max_bytes=39 is too small: a single draw takes 40 B"):
        plan(COST, 500, 0, 39)


def test_sizes_for_people():
    assert [size(n) for n in (5, 2048, 3 * 2**20, 5 * 2**29)] == ["5 B", "2 KiB", "3 MiB", "2.5 GiB"]

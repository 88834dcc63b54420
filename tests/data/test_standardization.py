import io

import numpy as np
import pytest
import torch

from bnnzoo.data import Standardization


def test_fit_gives_zero_mean_and_unit_variance_in_float64():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -2e5])
    y = torch.randn(500, generator=generator) * 7 + 3
    s = Standardization.fit(x, y)
    expected = x.double().numpy()
    np.testing.assert_allclose(s.x_loc, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(s.x_scale, expected.std(0), rtol=1e-12)
    assert s.x_loc.dtype == s.y_scale.dtype == torch.float64
    z = s.x(x)
    assert z.dtype == torch.float32
    np.testing.assert_allclose(z.double().mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.double().std(0, correction=0), 1, atol=1e-5)
    torch.testing.assert_close(s.inverse_x(z), x, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(s.inverse_y(s.y(y)), y)


def test_a_large_offset_does_not_cost_digits():
    x = (1e6 + torch.arange(8.0)).unsqueeze(1)
    z = Standardization.fit(x).x(x)
    torch.testing.assert_close(z.diff(dim=0), torch.full((7, 1), 1 / np.sqrt(5.25)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e7])
def test_constant_columns_have_scale_one_and_become_zero(constant):
    x = torch.full((7, 2), constant)
    x[:, 1] = torch.arange(7.0)
    s = Standardization.fit(x)
    assert s.x_scale[0] == 1
    assert bool((s.x(x)[:, 0] == 0).all())
    assert s.x(x + 1)[0, 0] == pytest.approx(1.0, abs=4.0 if constant else 1e-6)  # float32 spacing at 3e7 is 2


def test_several_outputs_each_have_their_own_statistics():
    y = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    s = Standardization.fit(y=y)
    assert s.x_loc is None
    assert s.y_loc.tolist() == [1, 20]
    assert s.y_scale.tolist() == [1, 10]
    assert s.y(y).tolist() == [[-1, -1], [1, 1]]
    draws = torch.zeros(4, 5, 2)
    assert s.inverse_y(draws)[0, 0].tolist() == [1, 20]


def test_absent_sides_pass_through_and_have_scale_one():
    x = torch.arange(3)
    s = Standardization.fit(y=torch.tensor([1.0, 3.0]))
    assert s.x(x) is x
    loc, scale = Standardization.fit(x=torch.eye(2)).target_scale()
    assert (loc.item(), scale.item()) == (0, 1)
    assert [value.item() for value in s.target_scale()] == [2, 1]


def test_integers_become_floating_point():
    s = Standardization.fit(torch.tensor([[0.0], [2.0]]))
    assert s.x(torch.tensor([[3]])).tolist() == [[2.0]]


def test_state_survives_a_safe_file():
    s = Standardization.fit(torch.randn(5, 2), torch.randn(5))
    file = io.BytesIO()
    torch.save(s.state_dict(), file)
    file.seek(0)
    other = Standardization.from_state(torch.load(file, weights_only=True))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in s.state_dict().items())
    only_y = Standardization.fit(y=torch.randn(3))
    assert set(only_y.state_dict()) == {"y_loc", "y_scale"}
    assert Standardization.from_state(only_y.state_dict()).x_loc is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_loc": torch.zeros(2)}, "give both or neither"),
        ({"x_loc": torch.zeros(2), "x_scale": torch.ones(3)}, "must be equal"),
        ({"y_loc": torch.zeros(()), "y_scale": torch.zeros(())}, "positive"),
        ({"y_loc": torch.tensor(float("nan")), "y_scale": torch.ones(())}, "finite"),
    ],
)
def test_bad_statistics(arguments, message):
    with pytest.raises(ValueError, match=message):
        Standardization(**arguments)


def test_wrong_shape_and_unknown_state():
    s = Standardization.fit(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\).*rows of shape \(2,\)"):
        s.x(torch.randn(4, 3))
    with pytest.raises(ValueError, match="unknown entries \\['z'\\]"):
        Standardization.from_state({"z": torch.ones(1)})
    with pytest.raises(ValueError, match="no rows"):
        Standardization.fit(torch.empty(0, 2))

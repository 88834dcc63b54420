"""Rotated images, and the figure of what is said of them."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bnnzoo.evaluation import plot_rotated, rotated
from bnnzoo.prediction import Prediction

SQUARE = torch.from_numpy(np.random.default_rng(0).uniform(size=(3, 8, 8)))


def blob(height=28, width=28):
    """A smooth image, 0 at its edges, off center and of no symmetry."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    x, y = x - 0.2, y + 0.1
    return torch.exp(-(x**2 + 3 * y**2 + x * y) / 0.12)[None].double()


def said(probs, chains=1):
    """The prediction of probabilities [angle, K]."""
    values = torch.as_tensor(np.asarray(probs))
    return Prediction({"probs": values.expand(chains, 1, *values.shape)}, dist.Categorical, "classification")


@pytest.mark.parametrize("size", [7, 8])  # the center is a pixel's, or between four
def test_right_angles_move_pixels(size):
    image = SQUARE[:, :size, :size]
    turned = rotated(image, [0, 90, 180, 270, -90, 450])
    for index, quarters in enumerate((0, 1, 2, 3, -1, 5)):
        expected = np.rot90(image.numpy(), quarters, (-2, -1))  # NumPy's turns counterclockwise
        np.testing.assert_allclose(turned[index].numpy(), expected, atol=1e-13)


def test_counterclockwise_is_what_is_seen():
    image = torch.zeros(9, 9)
    image[4, 8] = 1.0  # to the right of the center
    (turned,) = rotated(image, [90])
    assert turned.argmax() == 0 * 9 + 4  # above it


def test_two_turns_are_one():
    image = blob()
    (sixty,) = rotated(rotated(image, [30])[0], [60])
    expected = np.rot90(image.numpy(), 1, (-2, -1))
    # Linear interpolation is off by at most h²/8 (|f_xx| + |f_yy|), h = 2/27 between pixels, and that twice.
    np.testing.assert_allclose(sixty.numpy(), expected, atol=2 * (2 / 27) ** 2 / 8 * (2 + 6) / 0.12)
    assert abs(sixty - image).max() > 0.3  # which is far less than the image has moved


def test_it_is_the_linear_interpolation_of_scipy():
    from scipy.ndimage import rotate

    image = blob(15, 22)
    for angle in (17.0, -100.0):
        (turned,) = rotated(image, [angle])
        expected = rotate(image[0].numpy(), angle, reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(turned[0].numpy(), expected, atol=1e-12)


def test_shape_and_type_stay_and_gradients_are_cut():
    image = torch.rand(2, 5, 6, dtype=torch.float32, requires_grad=True)
    turned = rotated(image, torch.tensor([10.0, 20.0]))
    assert turned.shape == (2, 2, 5, 6)
    assert turned.dtype == torch.float32
    assert not turned.requires_grad
    assert rotated(torch.rand(4, 4), [5]).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("image", "angles", "message"),
    [
        (
            torch.zeros(3),
            [0],
            r"image must be floating point of shape \[..., H, W\], given torch.float32 of shape \[3\]",
        ),
        (torch.zeros(4, 4, dtype=torch.uint8), [0], "given torch.uint8"),
        (torch.zeros(4, 4), [], "angles must be one or more finite numbers"),
        (torch.zeros(4, 4), [math.nan], "angles must be one or more finite numbers"),
    ],
)
def test_what_cannot_be_turned_is_refused(image, angles, message):
    with pytest.raises(ValueError, match=message):
        rotated(image, angles)


def test_the_figure_shows_probabilities_and_entropies():
    angles = [0, 45, 90]
    images = rotated(blob(), angles).float()
    probs = {"sure": [[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], "unsure": [[0.2, 0.3, 0.5], [1 / 3] * 3, [0.5, 0.5, 0]]}
    figure = plot_rotated({name: said(p) for name, p in probs.items()}, images, angles, class_names=["a", "b", "c"])
    top, sure, unsure, bottom = figure.axes
    assert len(top.get_images()) == 3
    np.testing.assert_allclose(top.get_images()[1].get_array(), 1 - images[1, 0].numpy())  # dark on white
    for ax, (name, rows) in zip((sure, unsure), probs.items(), strict=True):
        assert ax.get_title(loc="left") == name
        bars = np.array([patch.get_height() for patch in ax.patches]).reshape(3, 3)  # by class
        np.testing.assert_allclose(bars.T, rows)
        tops = np.array([patch.get_y() + patch.get_height() for patch in ax.patches]).reshape(3, 3)
        np.testing.assert_allclose(tops.T, np.cumsum(rows, 1))
    assert [text.get_text() for text in sure.texts] == ["a", "a", "c"]  # 0.1 has no room for its name
    most, first, second = bottom.get_lines()
    np.testing.assert_allclose(most.get_ydata(), math.log(3))
    np.testing.assert_allclose(first.get_ydata(), [0, -0.9 * math.log(0.9) - 0.1 * math.log(0.1), 0], atol=1e-12)
    np.testing.assert_allclose(second.get_ydata()[1:], [math.log(3), math.log(2)])
    assert first.get_linestyle() != second.get_linestyle()  # told apart without color
    assert first.get_marker() != second.get_marker()
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["0°", "45°", "90°"]


def test_one_prediction_pools_its_chains_and_color_images_are_shown_in_color():
    images = torch.rand(2, 3, 8, 8)
    parts = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[0.0, 1.0], [0.5, 0.5]]]])
    figure = plot_rotated(Prediction({"probs": parts}, dist.Categorical, "classification"), images, [0, 10])
    top, bars, _ = figure.axes
    assert {patch.get_height() for patch in bars.patches} == {0.5}
    assert top.get_images()[0].get_array().shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("predictions", "images", "names", "message"),
    [
        ({}, torch.zeros(2, 1, 4, 4), None, "no prediction to plot"),
        (said([[0.5, 0.5]] * 2), torch.zeros(3, 1, 4, 4), None, r"images must be \[2, C, H, W\]"),
        ({"a": said([[0.5, 0.5]] * 3)}, torch.zeros(2, 4, 4), None, "prediction 'a' is of 3 images"),
        (said([[0.5, 0.5]] * 2), torch.zeros(2, 4, 4), ["x"], "1 class names for 2 classes"),
        ({"a": said([[0.5, 0.5]] * 2), "b": said([[0.2] * 5] * 2)}, torch.zeros(2, 4, 4), None, r"\[2, 5\]"),
        (
            Prediction({"loc": torch.zeros(1, 1, 2), "scale": torch.ones(1, 1, 2)}, dist.Normal, "regression"),
            torch.zeros(2, 4, 4),
            None,
            "must be of one class label an image",
        ),
        (
            Prediction({"logits": torch.zeros(1, 1, 2, 4, 4, 3)}, dist.Categorical, "classification"),
            torch.zeros(2, 4, 4),
            None,
            "must be of one class label an image",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(predictions, images, names, message):
    with pytest.raises(ValueError, match=message):
        plot_rotated(predictions, images, [0, 90], class_names=names)

"""`shapes`: labels and pixels against matplotlib's polygons, which know nothing of signed distances."""

import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from scipy.stats import chisquare

from bnnzoo.data import scenes, toys

AROUND = [(math.cos(a), math.sin(a)) for a in np.linspace(0.0, 2.0 * math.pi, 64, endpoint=False)]


@pytest.fixture
def drawn(monkeypatch):
    """The scenes that `shapes` draws, in order."""
    found, draw = [], scenes.scene
    monkeypatch.setattr(scenes, "scene", lambda *args: found.append(draw(*args)) or found[-1])
    return found


def outline(shape, corners=1000):
    """The edge, as a path of (row, column)."""
    if shape.label == 1:
        around = np.linspace(0.0, 2.0 * math.pi, corners)  # Path.circle's curves are 1% of a pixel off
        return Path(shape.center + shape.radius * np.stack([np.cos(around), np.sin(around)], 1))
    if shape.label == 2:
        corners = shape.radius * np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (1.0, shape.aspect)
        turn = np.array(
            [[math.cos(shape.angle), math.sin(shape.angle)], [-math.sin(shape.angle), math.cos(shape.angle)]]
        )
        return Path(shape.center + corners @ turn)
    angles = shape.angle + 2.0 * math.pi * np.arange(3) / 3.0
    return Path(shape.center + shape.radius * np.stack([np.cos(angles), np.sin(angles)], 1))


def pixels(size):
    return np.indices((size, size)).reshape(2, -1).T.astype(float)


def near(shape, points):
    """Which pixels lie so deep inside, and which so near, that the edge's blur does not, and may, reach them.

    At the corner of a triangle, lines half a blur from the sides meet a whole blur away.
    """
    path = outline(shape, corners=100)
    rings = [
        np.stack([path.contains_points(points + width * shape.blur * np.array(step)) for step in AROUND])
        for width in (0.0, 0.51, 1.15)
    ]
    return rings[1].all(0), np.concatenate(rings).any(0)


@pytest.mark.parametrize("size", [17, 32])
def test_labels_are_those_of_the_shape_in_front(drawn, size):
    data = toys.shapes(40, size=size, seed=1)
    assert len(drawn) == 40
    assert data.x.shape == (40, 3, size, size)
    for labels, scene in zip(data.y, drawn, strict=True):
        expected = np.zeros(size * size, int)
        for shape in scene:
            expected[outline(shape).contains_points(pixels(size))] = shape.label
        np.testing.assert_array_equal(labels.flatten(), expected)


def test_pixels_have_the_color_of_their_shape_or_a_plane_of_the_ground(drawn):
    data = toys.shapes(15, noise=0.0, seed=2)
    points, plane = pixels(32), np.column_stack([pixels(32), np.ones(32 * 32)])
    inner = outer = 0
    for image, scene in zip(data.x.flatten(2).double().numpy(), drawn, strict=True):
        behind = np.ones(len(points), bool)
        for shape in reversed(scene):
            whole, any_part = near(shape, points)
            np.testing.assert_allclose(
                image[:, whole & behind], shape.color[:, None].repeat((whole & behind).sum(), 1), atol=1e-6
            )
            inner += (whole & behind).sum()
            behind &= ~any_part
        fitted, *_ = np.linalg.lstsq(plane[behind], image[:, behind].T, rcond=None)
        np.testing.assert_allclose(plane[behind] @ fitted, image[:, behind].T, atol=1e-6)
        outer += behind.sum()
    assert inner > 500
    assert outer > 5000


def test_edges_are_blurred_and_their_middle_is_the_outline():
    rows = np.linspace(0.0, 10.0, 11)
    disk = scenes.Shape(1, np.array([0.0, 0.0]), 5.0, 1.0, 0.0, np.ones(3), blur=4.0)
    image, labels = scenes.render([disk], np.zeros((3, 11, 1)))
    np.testing.assert_allclose(image[0, :, 0], np.clip(0.5 - (rows - 5.0) / 4.0, 0.0, 1.0))
    assert labels[:, 0].tolist() == [1] * 6 + [0] * 5


def test_noise_has_the_scale_it_says():
    clean, noisy = toys.shapes(20, noise=0.0), toys.shapes(20, noise=0.05)
    assert torch.equal(clean.y[0], noisy.y[0])  # the noise comes last in an image
    inside = (clean.x[0] > 0.3) & (clean.x[0] < 0.7)
    residual = (noisy.x[0] - clean.x[0])[inside].double()
    count = len(residual)
    assert count > 500
    assert abs(residual.std() / 0.05 - 1.0) < 5.0 / math.sqrt(2.0 * count)
    assert noisy.x.min() >= 0.0
    assert noisy.x.max() <= 1.0


def test_classes_and_numbers_of_shapes_are_balanced(drawn):
    data = toys.shapes(500, size=16)
    kinds = np.bincount([shape.label for scene in drawn for shape in scene], minlength=4)
    assert kinds[0] == 0
    assert chisquare(kinds[1:]).pvalue > 1e-6
    assert chisquare(np.bincount([len(scene) for scene in drawn], minlength=5)[1:]).pvalue > 1e-6
    share = torch.bincount(data.y.flatten()) / data.y.numel()
    assert share[1:].min() > 0.4 * share[1:].max()
    assert 0.6 < share[0] < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 7}, "size must be an integer of at least 8"),
        ({"size": 32.0}, "size must be"),
        ({"noise": -0.1}, "noise must be"),
        ({"noise": math.inf}, "noise must be"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        toys.shapes(**change)

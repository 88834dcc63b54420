"""`plot_segmentation`: each panel shows what was given or predicted."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bnnzoo.evaluation import plot_segmentation
from bnnzoo.prediction import Prediction

N, H, W, K = 5, 4, 6, 3


def segmentation(classes=K):
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 3, N, H, W, classes, dtype=torch.float64)
    prediction = Prediction({"logits": logits}, dist.Categorical, "classification")
    return prediction, torch.rand(N, 3, H, W), torch.randint(classes, (N, H, W))


def panels(figure, images):
    """The arrays shown, [image][column], without the color bars."""
    shown = [ax.images[0] for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]
    return np.array(shown, dtype=object).reshape(images, 5)


def test_the_panels_are_what_they_say():
    prediction, x, y = segmentation()
    rows = [3, 0]
    figure = plot_segmentation(prediction, x, y, rows=rows, class_names=["sky", "road", "car"])
    shown = panels(figure, 2)
    mixed = prediction.parameters["logits"].softmax(-1)
    mean = mixed.mean((0, 1))
    entropy = -(mean * mean.log()).sum(-1)
    expected = -(mixed * mixed.log()).sum(-1).mean((0, 1))
    for line, row in enumerate(rows):
        image, truth, classes, total, information = (each.get_array() for each in shown[line])
        np.testing.assert_allclose(image, x[row].permute(1, 2, 0))
        np.testing.assert_array_equal(truth, y[row])
        np.testing.assert_array_equal(classes, mean[row].argmax(-1))
        np.testing.assert_allclose(total, entropy[row])
        np.testing.assert_allclose(information, (entropy - expected)[row], atol=1e-12)
        assert shown[line][3].get_clim() == pytest.approx((0.0, np.log(K)))
        assert shown[line][4].get_clim() == pytest.approx((0.0, float((entropy - expected)[rows].max())))
        assert shown[line][1].get_cmap() is shown[line][2].get_cmap()  # one color a class in both
        assert shown[line][1].get_clim() == shown[line][2].get_clim() == (-0.5, K - 0.5)
    titles = [ax.get_title() for ax in figure.axes[:5]]
    assert titles == ["image", "truth", "predicted class", "entropy", "mutual information"]
    assert [figure.axes[0].get_ylabel(), figure.axes[5].get_ylabel()] == ["image 3", "image 0"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "road", "car"]
    faces = [patch.get_facecolor() for patch in legend.get_patches()]
    assert faces == [tuple(shown[0][1].cmap(shown[0][1].norm(label))) for label in range(K)]
    bars = [ax.get_xlabel() for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert bars == ["entropy (nats)", "mutual information (nats)"]


def test_gray_images_many_classes_and_a_figure_that_saves(tmp_path):
    prediction, x, y = segmentation(classes=11)
    figure = plot_segmentation(prediction, x[:, :1].numpy(), y.numpy(), rows=range(2))
    image = panels(figure, 2)[0, 0].get_array()
    assert image.shape == (H, W, 3)
    assert (image[..., 0] == image[..., 2]).all()
    assert len(figure.legends[0].get_texts()) == 11
    figure.savefig(tmp_path / "segmentation.png", dpi=40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.rand(N, 2, H, W)}, r"x must be \[5, 1 or 3, 4, 6\], given \[5, 2, 4, 6\]"),
        ({"x": torch.rand(4, 3, H, W)}, "x must be"),
        ({"y": torch.zeros(N, H)}, r"y must be \[5, 4, 6\]"),
        ({"rows": [5]}, "rows must be 0 to 4, given 5"),
        ({"rows": []}, "at least one image"),
        ({"class_names": ["sky"]}, "must have 3 names, given 1"),
    ],
)
def test_mistakes(change, message):
    prediction, x, y = segmentation()
    arguments = {"x": x, "y": y, **change}
    with pytest.raises(ValueError, match=message):
        plot_segmentation(prediction, **arguments)


def test_labels_of_whole_images_have_no_map():
    prediction = Prediction({"logits": torch.zeros(1, 2, N, K)}, dist.Categorical, "classification")
    with pytest.raises(ValueError, match="classes of pixels"):
        plot_segmentation(prediction, torch.rand(N, 3, H, W), torch.zeros(N))

"""Arrays to PNG: the pixels are the data's."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from quintet.report import pictures


def decode(address: str) -> Image.Image:
    head, data = address.split(",", 1)
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_grid_shows_every_pixel_enlarged_by_a_whole_factor() -> None:
    rng = np.random.default_rng()
    x = rng.integers(0, 17, (6, 1, 8, 8))
    shown = np.asarray(decode(pictures.grid(pictures.Range(0, 16).pixels(x), 3, width=200, gap=2)))
    factor = 200 // 3 // 8
    cell = 8 * factor + 2
    assert shown.shape == (2 * cell - 2, 3 * cell - 2, 2)
    for i in range(6):
        tile = shown[(i // 3) * cell :, (i % 3) * cell :][: 8 * factor, : 8 * factor]
        assert (tile[factor // 2 :: factor, factor // 2 :: factor, 0] == np.round(255 * x[i, 0] / 16)).all()
        assert (tile[..., 1] == 255).all()


def test_range_of_levels_and_of_data() -> None:
    assert pictures.Range.of(17) == pictures.Range(0, 16)
    assert pictures.Range.of(None, np.array([-1.0, np.nan, 3.0])) == pictures.Range(-1, 3)
    assert pictures.Range.of(None, np.zeros(3)) == pictures.Range(0, 1)


def test_colour_and_not_finite() -> None:
    x = np.zeros((1, 3, 2, 2))
    x[0, 0] = 1
    x[0, :, 1, 1] = np.nan
    pixels = pictures.Range(0, 1).pixels(x)
    assert pixels.shape == (1, 2, 2, 4)
    assert pixels[0, 0, 0].tolist() == [255, 0, 0, 255]
    assert pixels[0, 1, 1, 3] == 0


def test_large_images_are_made_smaller() -> None:
    pixels = np.full((4, 300, 300, 2), 255, np.uint8)
    assert max(decode(pictures.grid(pixels, 2, width=200)).size) <= 202


def test_columns_are_classes_in_the_order_drawn() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1])
    order = pictures.by_class(labels, 2, 2)
    assert order is not None
    assert labels[order].tolist() == [0, 1, 0, 1]
    assert order.tolist() == [1, 0, 3, 2]
    assert pictures.by_class(labels, 2, 4) is None
    assert pictures.by_class(labels, 3, 1) is None


def test_a_point_falls_where_it_should() -> None:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    window = pictures.Window.of(np.repeat(corners, 50, 0))
    place = window.place(corners, 100)
    assert place[0, 0] < place[1, 0]
    assert place[0, 1] > place[2, 1]  # the second axis points up
    alpha = np.asarray(decode(pictures.scatter(corners[:1], window, "#ff0000", size=100)))[..., 3]
    row, column = (float((axis * alpha).sum() / alpha.sum()) for axis in np.indices(alpha.shape))
    assert abs(column - place[0, 0]) <= 1
    assert abs(row - place[0, 1]) <= 1
    outside = pictures.scatter(np.array([[9.0, 9.0], [np.nan, 0.0]]), window, "#ff0000", size=100)
    assert np.asarray(decode(outside))[..., 3].max() == 0


def test_more_dimensions_are_projected_on_what_varies_most() -> None:
    rng = np.random.default_rng()
    x = rng.normal(size=(500, 5)) * np.array([0.01, 5.0, 0.01, 2.0, 0.01])
    axes = pictures.Window.of(x).axes
    assert np.abs(axes[:, 0]).argmax() == 1
    assert np.abs(axes[:, 1]).argmax() == 3
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-9)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_scatter_of_any_dimension(dims: int) -> None:
    x = np.random.default_rng().normal(size=(100, dims))
    assert np.asarray(decode(pictures.scatter(x, pictures.Window.of(x), "#123456")))[..., 3].max() > 0


def test_lattice_is_recognised_at_either_end() -> None:
    side = np.linspace(-1, 1, 6)
    flat = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    bent = flat + 0.3 * np.sin(3 * flat[:, ::-1])
    assert pictures.lattice_side(np.stack([flat, bent])) == 6
    assert pictures.lattice_side(np.stack([bent, flat])) == 6
    assert pictures.lattice_side(np.random.default_rng().normal(size=(3, 36, 2))) is None
    assert pictures.lattice_side(np.stack([flat[:-1], bent[:-1]])) is None
    drawn = np.asarray(decode(pictures.mesh(bent, 6, pictures.Window.of(bent), "#123456", size=120)))
    assert drawn[..., 3].max() > 150

"""Sizes that several metrics share."""

import numpy as np
import pytest

from quintet.metrics.sizes import small


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 64, 64), (1, 32, 32)), ((3, 40, 80), (3, 16, 32)), ((3, 28, 28), (3, 28, 28))]
)
def test_large_images_are_averaged_to_32_pixels(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.random.default_rng(5).integers(0, 256, (300, *shape), dtype=np.uint8)
    found = small(x)
    assert found.shape == (300, *expected)
    assert found.mean(axis=(1, 2, 3)) == pytest.approx(x.mean(axis=(1, 2, 3)), rel=0.02)
    if shape == (1, 64, 64):
        blocks = x.astype(float).reshape(300, 1, 32, 2, 32, 2).mean(axis=(3, 5))
        assert np.abs(found - blocks).max() < 1e-3


def test_vectors_are_left_alone() -> None:
    x = np.ones((5, 100))
    assert small(x) is x

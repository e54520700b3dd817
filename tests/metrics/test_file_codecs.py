"""The codecs' sizes: lossless, on the scale of bits per value, headers once or for each image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from quintet.core.spec import DataSpec
from quintet.metrics.codecs import FORMATS, MOST, _images, _sheet, codecs


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", list(FORMATS))
def test_what_is_measured_is_lossless(channels: int, name: str) -> None:
    x = np.random.default_rng(channels).integers(0, 200, (5, channels, 6, 7), dtype=np.uint8)
    for image, one in zip(_images(x), x, strict=True):
        file = io.BytesIO()
        image.save(file, **FORMATS[name])
        back = np.asarray(Image.open(file).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
        assert np.array_equal(back.reshape(6, 7, channels), np.moveaxis(one, 0, -1))
    sheet = np.asarray(_sheet(x)).reshape(12, 21, channels)  # two rows of three
    assert np.array_equal(sheet[6:12, 7:14], np.moveaxis(x[4], 0, -1))
    assert not sheet[6:, 14:].any()


def test_noise_costs_what_it_holds_and_constants_next_to_nothing() -> None:
    spec = DataSpec("image", (1, 32, 32), 256)
    noise = np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8)
    found = codecs(noise, spec)
    assert set(found) == {"png", "png_sheet", "webp", "webp_sheet", "lzma"}
    for name, e in found.items():
        assert e.value is not None
        assert 7.98 < e.value < (9.5 if name in ("png", "webp") else 9.0), name
        assert e.n == 20
    flat = codecs(np.full((20, 1, 32, 32), 7, np.uint8), spec)
    for name, e in flat.items():
        assert e.value is not None
        assert e.value < (0.7 if name in ("png", "webp") else 0.1), name
    assert flat["png"].value > flat["png_sheet"].value  # type: ignore[operator]


def test_few_levels_many_examples_and_other_data() -> None:
    x = np.random.default_rng(1).integers(0, 2, (MOST + 9, 1, 16, 16), dtype=np.uint8)
    found = codecs(x, DataSpec("image", (1, 16, 16), 2))
    assert found["lzma"].n == MOST
    assert 0.99 < found["lzma"].value < 1.4  # type: ignore[operator]
    numbers = np.random.default_rng(2).integers(0, 1000, (40, 5), dtype=np.uint16)
    assert set(codecs(numbers, DataSpec("vector", (5,), 1000))) == {"lzma"}
    assert codecs(numbers.astype(np.float32), DataSpec("vector", (5,))) == {}
    assert set(codecs(x[:, [0, 0]], DataSpec("image", (2, 16, 16), 2))) == {"lzma"}

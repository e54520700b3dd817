"""One image file to one array: every mode against a reference, orientation, frames, limits, hostile bytes."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from quintet.data.images import FORMATS, MOST_STRIPS, ORIENTATION, Depth, Unusable, decode, fit, look, settle
from quintet.data.options import DataOptions

PLAIN = DataOptions()
generator = np.random.default_rng()


def saved(image: Image.Image, kind: str = "PNG", **more) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def one(content, options=PLAIN, frame=None):
    (pixels,) = decode(content, options, frame)
    return pixels


def reason(content, options=PLAIN):
    with pytest.raises(Unusable) as caught:
        decode(content, options)
    return caught.value.reason


def rgb(height=7, width=9):
    return generator.integers(0, 256, (height, width, 3)).astype(np.uint8)


def grey(height=7, width=9):
    return generator.integers(0, 256, (height, width)).astype(np.uint8)


def over(colour, alpha, background):
    """Alpha compositing in floats."""
    a = alpha[..., None] / 255
    return colour * a + np.asarray(background, float) * (1 - a)


# Modes


def test_rgb_grey_and_one_bit_are_exact():
    x, g = rgb(), grey()
    assert np.array_equal(one(saved(Image.fromarray(x))), x)
    assert np.array_equal(one(saved(Image.fromarray(g)))[:, :, 0], g)
    bits = Image.fromarray(np.where(g > 127, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(one(saved(bits, kind))[:, :, 0], np.where(g > 127, 255, 0))


@pytest.mark.parametrize("background", ["white", "black", "#12ab9f"])
def test_alpha_is_composited(background):
    options = DataOptions(background=background)
    x, alpha = rgb(), grey()
    expected = over(x, alpha, options.colour)
    content = saved(Image.fromarray(np.dstack([x, alpha])))
    assert np.abs(one(content, options) - expected).max() <= 0.51
    g = grey()
    found = one(saved(Image.fromarray(np.dstack([g, alpha]), "LA")), options)
    expected = over(np.repeat(g[..., None], 3, 2), alpha, options.colour)
    assert np.abs(found - (expected if found.shape[2] == 3 else expected[..., :1])).max() <= 0.51
    assert found.shape[2] == (3 if background == "#12ab9f" else 1)


def test_four_channels_keep_transparency():
    x = np.dstack([rgb(), grey()])
    assert np.array_equal(one(saved(Image.fromarray(x)), DataOptions(channels=4)), x)


def test_palettes_with_and_without_transparency():
    palette = generator.integers(0, 256, (256, 3)).astype(np.uint8)
    index = grey()
    image = Image.fromarray(index)
    image = Image.frombytes("P", image.size, index.tobytes())
    image.putpalette(palette.tobytes())
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        assert np.array_equal(one(saved(image, kind)), palette[index]), kind
    alphas = generator.integers(0, 256, 256).astype(np.uint8)
    found = one(saved(image, transparency=alphas.tobytes()), DataOptions(background="#204060"))
    assert np.abs(found - over(palette[index], alphas[index], (0x20, 0x40, 0x60))).max() <= 0.51
    clear = int(index[0, 0])
    found = one(saved(image, transparency=clear))
    assert np.array_equal(found, np.where((index == clear)[..., None], 255, palette[index]))


def test_colour_key_of_grey_and_rgb():
    g, x = grey(), rgb()
    key = int(g[2, 2])
    found = one(saved(Image.fromarray(g), transparency=key))
    assert np.array_equal(found[:, :, 0], np.where(g == key, 255, g))
    key = tuple(int(v) for v in x[1, 1])
    found = one(saved(Image.fromarray(x), transparency=key))
    assert np.array_equal(found, np.where((x == key).all(2, keepdims=True), 255, x))


def test_cmyk_and_ycbcr_and_lab():
    cmyk = generator.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    image = Image.fromarray(cmyk, "CMYK")
    expected = (255 - cmyk[..., :3].astype(float)) * (255 - cmyk[..., 3:].astype(float)) / 255
    assert np.abs(one(saved(image, "TIFF")) - expected).max() <= 1
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 4)), "CMYK")
    again = one(saved(smooth, "JPEG", quality=100))
    assert np.abs(again - one(saved(smooth, "TIFF"))).max() <= 4  # not inverted

    x = rgb(8, 8)
    ycc = Image.fromarray(x).convert("YCbCr")
    y, cb, cr = np.moveaxis(np.asarray(ycc).astype(float), 2, 0)
    expected = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], 2
    )
    found = one(saved(ycc, "TIFF"))
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 1.5

    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    smooth = Image.fromarray(np.indices((32, 32)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) * 3 + 20)
    there = ImageCms.profileToProfile(smooth, srgb, lab, outputMode="LAB")
    assert np.abs(one(saved(there, "TIFF")).astype(int) - np.asarray(smooth)).max() <= 2
    flat = Image.new("LAB", (2, 2), (138, 209, 198))  # L* 54.3, a* 80.8, b* 69.9 under D50: sRGB red
    assert np.abs(one(saved(flat, "TIFF"))[0, 0].astype(int) - (255, 0, 0)).max() <= 6


def test_sixteen_bits_are_kept_not_clipped():
    ramp = np.linspace(0, 65_535, 4096).astype(np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        found = one(saved(Image.fromarray(ramp), kind))
        assert found.dtype == np.uint16
        assert np.array_equal(found[:, :, 0], ramp)
    big = ramp.astype(">u2")
    found = one(saved(Image.frombytes("I;16B", (64, 64), big.tobytes()), "TIFF"))
    assert np.array_equal(found[:, :, 0], ramp)
    whole = Image.fromarray(ramp.astype(np.int32))
    assert whole.mode == "I"
    assert np.array_equal(one(saved(whole, "TIFF"))[:, :, 0], ramp)


def test_floats_in_the_unit_interval_are_scaled_and_others_kept():
    values = generator.random((5, 6)).astype(np.float32)
    found = one(saved(Image.fromarray(values), "TIFF"))[:, :, 0]
    assert np.abs(found - values * 65_535).max() <= 0.51
    levels = generator.integers(0, 4096, (5, 6)).astype(np.float32)
    (found,) = decode(saved(Image.fromarray(levels), "TIFF"), PLAIN, None, Depth(4095, unit=False))
    assert np.array_equal(found[:, :, 0], levels)
    assert reason(saved(Image.fromarray(levels), "TIFF")) == "range"  # a file that changed since it was looked at
    for bad, why in ((np.nan, "nonfinite"), (np.inf, "nonfinite"), (-3.0, "range"), (1e6, "range")):
        values[1, 1] = bad
        assert reason(saved(Image.fromarray(values), "TIFF")) == why


def test_sixteen_bit_colour_is_within_a_level():
    x = generator.integers(0, 65_536, (5, 7, 3)).astype(">u2")

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + row.tobytes() for row in x)
    head = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert np.abs(one(png) - x.astype(float) / 257).max() <= 1


# Orientation, frames


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_picture(kind, orientation):
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:12, :16], upright[12:, 16:] = (250, 10, 10), (10, 10, 250)
    undo = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
            5: lambda x: x.transpose(1, 0, 2), 6: lambda x: x.transpose(1, 0, 2)[::-1],
            7: lambda x: x[::-1, ::-1].transpose(1, 0, 2), 8: lambda x: x.transpose(1, 0, 2)[:, ::-1]}  # fmt: skip
    stored = np.ascontiguousarray(undo[orientation](upright))
    # EXIF: 6 means that the stored picture is to be turned clockwise, so it was stored turned against the clock
    turned = {6: np.rot90(upright, 1), 8: np.rot90(upright, -1)}.get(orientation)
    assert turned is None or np.array_equal(stored, turned)
    more = {"quality": 95} if kind != "TIFF" else {}
    if kind == "WEBP":
        more = {"lossless": True}
    if kind == "TIFF":
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[ORIENTATION] = orientation
        content = saved(Image.fromarray(stored), kind, tiffinfo=info)
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        content = saved(Image.fromarray(stored), kind, exif=exif, **({} if kind == "PNG" else more))
    seen = look(content, PLAIN, 10**6)
    assert (seen.header.height, seen.header.width) == (24, 32)
    assert np.abs(one(content).astype(int) - upright).mean() < 8
    assert np.array_equal(seen.pixels, one(content))


def frames(count, kind="GIF", size=(6, 5)):
    images = [Image.new("RGB", size, (40 * i, 255 - 40 * i, 7)) for i in range(count)]
    return saved(
        images[0], kind, save_all=True, append_images=images[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_or_all(kind):
    content = frames(3, kind)
    assert one(content).shape == (5, 6, 3)
    assert look(content, PLAIN, 100).header.frames == 1
    every = DataOptions(frames="all")
    assert look(content, every, 100).header.frames == 3
    found = decode(content, every)
    assert len(found) == 3
    for i, picture in enumerate(found):
        assert np.abs(picture[0, 0].astype(int) - (40 * i, 255 - 40 * i, 7)).max() <= 2


def test_a_later_frame_that_is_larger_or_damaged_does_not_matter():
    small, large = Image.new("L", (4, 4), 9), Image.new("L", (400, 300), 200)
    content = saved(small, "TIFF", save_all=True, append_images=[large])
    assert one(content).shape == (4, 4, 1)
    assert [p.shape for p in decode(content, DataOptions(frames="all"))] == [(4, 4, 1), (300, 400, 1)]
    assert reason(content, DataOptions(frames="all", max_pixels=1000)) == "bomb"
    assert one(content, DataOptions(max_pixels=1000)).shape == (4, 4, 1)


def test_a_phone_jpeg_with_a_second_picture_is_a_jpeg_of_one_frame():
    x = np.asarray(Image.fromarray(rgb(4, 4)).resize((640, 480), Image.Resampling.BICUBIC))
    content = saved(Image.fromarray(x), "MPO", save_all=True, append_images=[Image.new("RGB", (640, 480))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    for number in ("first", "all"):
        header = look(content, DataOptions(frames=number), 0).header
        assert (header.format, header.frames) == ("JPEG", 1)
        assert np.abs(one(content, DataOptions(frames=number)).astype(int) - x).mean() < 8
    plain = saved(Image.fromarray(x), "JPEG")
    assert np.array_equal(one(content, PLAIN, (32, 32)), one(plain, PLAIN, (32, 32)))  # both are reduced in decoding


def test_depth_and_colour_are_those_of_all_frames():
    pages = [Image.fromarray(grey()), Image.fromarray(np.full((7, 9), 1000, np.uint16)), Image.fromarray(rgb())]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    first, every = look(content, PLAIN, 0).header, look(content, DataOptions(frames="all"), 0).header
    assert (first.deep, first.grey) == (False, True)
    assert (every.deep, every.grey, every.whole) == (True, False, 1000)
    assert [p.dtype for p in decode(content, DataOptions(frames="all"))] == [np.uint8, np.uint16, np.uint8]


# Size policy


@pytest.mark.parametrize("policy", ["cover", "fit", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (17, 33), (8, 8), (3, 4)])
@pytest.mark.parametrize("deep", [False, True])
def test_any_size_fits_any_frame(policy, size, deep):
    options = DataOptions(policy=policy, background="black")
    pixels = np.full((*size, 1), 60_000 if deep else 200, np.uint16 if deep else np.uint8)
    found = fit(pixels, (8, 12), options)
    assert found.shape == (8, 12, 1)
    assert found.dtype == pixels.dtype
    assert found.max() == pixels.max()
    if policy != "fit":
        assert (found == pixels.max()).all()
    assert fit(np.repeat(pixels, 3, 2) if not deep else pixels, (3, 2), options).shape[:2] == (3, 2)


def test_cover_cuts_the_centre_and_fit_keeps_all():
    x = np.zeros((10, 30, 1), np.uint8)
    x[:, 10:20] = 200
    assert (fit(x, (10, 10), DataOptions()) == 200).all()
    whole = fit(x, (10, 30), DataOptions())
    assert np.array_equal(whole, x)
    padded = fit(x, (15, 15), DataOptions(policy="fit", background="grey"))
    assert (padded[:4] == 128).all()
    assert (padded[7, 6:9] > 180).all()


@pytest.mark.parametrize("white", [1023, 4095, 65_535])
def test_padding_of_deep_images_is_in_their_own_units_and_edges_do_not_overshoot(white):
    x = np.zeros((16, 32, 1), np.uint16)
    x[:, 16:] = white
    for background, value in (("white", white), ("black", 0), ("grey", white * 128 / 255)):
        found = fit(x, (9, 9), DataOptions(policy="fit", background=background), white)
        assert found.dtype == np.uint16
        assert np.abs(found[[0, 1, -1]] - value).max() <= 0.5
        assert found.max() == max(white, round(value))
        assert found[4, 0, 0] < 0.1 * white < 0.9 * white < found[4, -1, 0]


def test_what_white_is_comes_from_values_not_from_what_is_clear():
    x = generator.integers(0, 900, (6, 6)).astype(np.uint16)
    x[2, 3] = 3000
    header = look(saved(Image.fromarray(x), "PNG", transparency=3000), PLAIN, 0).header
    assert header.whole == np.delete(x.ravel(), 15).max()
    depth = settle([header])
    assert depth == Depth(1023, unit=False)
    (found,) = decode(saved(Image.fromarray(x), "PNG", transparency=3000), PLAIN, None, depth)
    assert found[2, 3, 0] == 1023
    assert settle([look(saved(Image.fromarray(grey())), PLAIN, 0).header]) is None


def test_a_large_jpeg_is_reduced_as_it_is_decoded():
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)[None].repeat(1200, 0)
    found = one(saved(Image.fromarray(ramp), "JPEG", quality=95), PLAIN, (32, 32))[:, :, 0].astype(float)
    expected = np.linspace(255 / 8, 255 * 7 / 8, 33)  # the middle three quarters
    assert np.abs(found - (expected[:-1] + expected[1:]) / 2).max() < 3


# What is refused


def test_reasons(tmp_path):
    jpeg, png = saved(Image.fromarray(rgb(40, 40)), "JPEG"), saved(Image.fromarray(rgb(40, 40)))
    assert reason(b"") == "zero"
    assert reason(b"hello, this is text and no picture at all") == "no_image"
    assert reason(b"%PDF-1.7\n") == "format"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "format"
    assert reason(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "format"
    assert reason(saved(Image.new("L", (3, 3)), "PPM")) == "no_image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(png[: len(png) // 2]) in ("truncated", "broken")
    damaged = bytearray(png)
    damaged[20:24] = b"\xff\xff\xff\xff"
    assert reason(bytes(damaged)) == "header"
    assert reason(tmp_path / "absent.png") == "broken"
    assert reason(tmp_path) == "broken"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_file_that_is_cut_anywhere_is_refused_or_read(kind):
    content = saved(Image.fromarray(rgb(16, 16)), kind)
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            with quiet():
                pixels = one(content[:length])
        except Unusable:
            continue
        assert pixels.shape == (16, 16, 3)


def growth(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def png_of(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packed = zlib.compressobj(9)
    line = b"\0" * (1 + width // 8 + 1)
    data = b"".join(packed.compress(line) for _ in range(min(height, 2000))) + packed.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff_of_strips(count):
    """A TIFF of one row a strip, as many strips as asked for."""
    entries = [(256, 3, 1, 8), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, count, 200), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, 200)]  # fmt: skip
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    return (b"II*\0" + struct.pack("<I", 8) + body).ljust(200, b"\0") + struct.pack("<I", 200) * count


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("large png", lambda: png_of(50_000, 50_000), "bomb"),
        ("wide png", lambda: png_of(2_000_000_000, 1), "bomb"),
        ("strips", lambda: tiff_of_strips(1_000_000), "strips"),
        ("just too many strips", lambda: tiff_of_strips(MOST_STRIPS + 1), "strips"),
    ],
)
def test_bombs_are_refused_before_they_grow(name, make, why):
    content = make()
    with quiet():
        assert growth(lambda: reason(content)) < 100
        assert reason(content) == why


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_compressed_text_in_a_png_is_bounded():
    info = PngImagePlugin.PngInfo()
    for i in range(20):
        info.add_text(f"k{i}", "x" * 8_000_000, zip=True)
    content = saved(Image.new("L", (4, 4)), pnginfo=info)
    assert len(content) < 2_000_000
    assert growth(lambda: reason(content)) < 150


def test_a_gif_whose_second_frame_is_huge():
    content = bytearray(frames(2))
    at = content.index(b"\x2c", content.index(b"\x2c") + 1)
    content[at + 5 : at + 9] = struct.pack("<HH", 65_535, 65_535)
    assert one(bytes(content)).shape == (5, 6, 3)
    with quiet():
        assert reason(bytes(content), DataOptions(frames="all")) in ("bomb", "broken", "truncated")


# Hostile bytes

MAGIC = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff\xe0", "WEBP": b"RIFF\x40\0\0\0WEBPVP8 ", "BMP": b"BM",
         "TIFF": b"II*\0\x08\0\0\0", "GIF": b"GIF89a"}  # fmt: skip


@settings(max_examples=300)
@given(kind=st.sampled_from(FORMATS), tail=st.binary(max_size=300), frames=st.sampled_from(["first", "all"]))
def test_random_bytes_are_refused_or_read(kind, tail, frames):
    _survives(MAGIC[kind] + tail, DataOptions(frames=frames, max_pixels=10**6))


@settings(max_examples=300)
@given(
    kind=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    orientation=st.integers(0, 9),
)
def test_damaged_files_are_refused_or_read(kind, changes, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3))
    content = bytearray(saved(image, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {})))
    for at, value in changes:
        content[at % len(content)] = value
    _survives(bytes(content), DataOptions(max_pixels=10**6))


def _survives(content, options):
    with quiet():
        try:
            pictures = decode(content, options, (8, 8))
        except Unusable:
            return
    for pixels in pictures:
        assert pixels.shape[:2] == (8, 8)
        assert pixels.dtype in (np.uint8, np.uint16)

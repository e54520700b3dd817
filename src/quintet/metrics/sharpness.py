"""Sharpness: power in high spatial frequencies, samples over real images; 1 is ideal, below is blurred, above noisy.

What it is not: a judgement of content; white noise is sharp. Read it beside a distance.

Source: the radial power spectrum as in Durall et al. 2020, arXiv:2003.01826; the ratio of one band is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.metrics.sizes import Array, too_few, unavailable

RADIUS = 0.25
"""Cycles per pixel from which a frequency is high: half the highest that a row of pixels holds."""

RESAMPLES = 400


def high_power(images: NDArray[np.generic]) -> Array:
    """Mean squared amplitude of each image's frequencies at or above RADIUS, (N,), summed over channels.

    Args:
        images: (N, C, H, W).
    """
    height, width = images.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    high = frequency >= RADIUS
    parts = [
        (np.abs(np.fft.fft2(images[i : i + 256].astype(np.float64), norm="ortho"))[..., high] ** 2).sum(axis=(1, 2))
        for i in range(0, len(images), 256)
    ]
    power: Array = np.concatenate(parts) if parts else np.empty(0)
    return power


def sharpness(fake: NDArray[np.generic], real: NDArray[np.generic], *, rng: Rng) -> Estimate:
    """Ratio of mean high-frequency power, samples over real, with a bootstrap interval over both sets.

    Args:
        fake, real: raw images (N, C, H, W) on one scale; other shapes give a null result.
        rng: draws the resamples.
    """
    if fake.ndim != 4 or min(fake.shape[-2:]) < 4:
        return unavailable("undefined: only images of at least 4 x 4 pixels have spatial frequencies")
    missing = too_few("sharpness", len(fake), len(real))
    if missing:
        return missing
    a, b = high_power(fake), high_power(real)
    if b.mean() == 0:
        return unavailable("undefined: real images have no high-frequency power", len(fake))
    value = float(a.mean() / b.mean())
    generator = rng.numpy()
    counts_a = generator.multinomial(len(a), np.full(len(a), 1 / len(a)), RESAMPLES)
    counts_b = generator.multinomial(len(b), np.full(len(b), 1 / len(b)), RESAMPLES)
    bottom = counts_b @ b / len(b)
    ratios = (counts_a @ a / len(a))[bottom > 0] / bottom[bottom > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(
        value=value,
        low=float(min(low, value)),
        high=float(max(high, value)),
        n=len(a),
        protocol=f"power at or above {RADIUS:g} cycles per pixel, {len(a)} samples over {len(b)} real images; "
        f"interval: bootstrap, {RESAMPLES} resamples",
    )

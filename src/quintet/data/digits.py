"""`digits`: 1,797 real handwritten digits, 8x8 pixels, 17 grey levels, 10 classes; scikit-learn carries them.

Split 927 train / 100 validation / 270 judge / 500 test by content.

Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository (CC BY 4.0).
"""

from __future__ import annotations

import numpy as np

from quintet.core.spec import DataSpec
from quintet.data.dataset import Dataset, Split, fingerprint, note
from quintet.data.splits import Sizes, split

SIZES = Sizes(validation=100, judge=270, test=500)


def open_digits() -> Dataset:
    """The data set, split; no network, no option."""
    from sklearn.datasets import load_digits

    source = load_digits()
    x = source.images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8), 0..16
    y = source.target.astype(np.int64)
    parts = split(x, {"label": y}, SIZES)
    train, validation, judge, test = (
        Split(x[rows], {"label": y[rows]}) for rows in (parts.train, parts.validation, parts.judge, parts.test)
    )
    return Dataset(
        name="digits",
        spec=DataSpec("image", (1, 8, 8), levels=17, conditions={"label": 10}),
        train=train,
        validation=validation,
        judge=judge,
        test=test,
        names={"label": tuple("0123456789")},
        notes=(note("data.note_digits"),),
        fingerprint=fingerprint((train, validation, judge, test)),
    )

"""Classification accuracy score: train a fixed classifier on samples with their labels, test it on real data.

The classifier is a support vector machine with a Gaussian kernel on standardised raw values: deterministic, no
randomness, half a second for two thousand images. It does not see realism once classes separate; read it beside a
distance.

Source: Ravuri & Vinyals 2019, arXiv:1905.10887 (CAS), there with a ResNet-50; Cortes & Vapnik 1995.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.metrics.distances import BLOCK, squared_distances
from quintet.metrics.sizes import matrix, proportion, small, too_few, unavailable

MOST = 2000
"""Training pairs at most: the machine's time grows with their square."""


def classifier_accuracy(
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    test_x: NDArray[np.generic],
    test_y: NDArray[np.int64],
) -> float:
    """Accuracy on the test pairs of the classifier trained on (x, y); a single class in y is a constant guess.

    Values are centred and divided by their overall standard deviation (not each column's: pixels that are nearly
    always dark would be blown up), both from the training pairs.
    """
    from sklearn.svm import SVC

    a, b = matrix(small(x)), matrix(small(test_x))
    if len(np.unique(y)) == 1:
        return float((test_y == y[0]).mean())
    mean, scale = a.mean(axis=0), max(float(a.std(axis=0).max()), 1e-12)
    a, b = (a - mean) / scale, (b - mean) / scale
    width = a.shape[1] * max(float(a.var()), 1e-12)  # scikit-learn's gamma="scale" is its inverse
    # one matrix product is much faster than the machine's own kernel where items are large
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # few samples of many classes
        machine = SVC(C=10.0, kernel="precomputed", cache_size=200).fit(np.exp(squared_distances(a, a) / -width), y)
    guess = np.concatenate(
        [machine.predict(np.exp(squared_distances(b[i : i + BLOCK], a) / -width)) for i in range(0, len(b), BLOCK)]
    )
    return float((guess == test_y).mean())


def cas(
    x: NDArray[np.generic],
    y: NDArray[np.int64] | None,
    test_x: NDArray[np.generic],
    test_y: NDArray[np.int64] | None,
    *,
    n: int | None = None,
) -> Estimate:
    """Accuracy on real test data after training on the first n generated pairs, with Wilson's interval over the test.

    Args:
        x, y: samples and the labels they were asked for; y None: null.
        test_x, test_y: real test pairs; test_y None: null.
        n: training pairs, the same for every model and for the real-data reference; at most MOST.
    """
    if y is None or test_y is None:
        return unavailable("not available: samples or data have no labels")
    n = min(len(x), MOST, len(x) if n is None else n)
    missing = too_few("cas", n, len(test_x))
    if missing:
        return missing
    accuracy = classifier_accuracy(x[:n], y[:n], test_x, test_y)
    protocol = (
        f"support vector machine (Gaussian kernel, C 10) on raw values, trained on {n} labelled samples, tested on "
        f"{len(test_x)} real items; interval over the test"
    )
    return proportion(accuracy, len(test_x), protocol)

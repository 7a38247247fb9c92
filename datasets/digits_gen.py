"""One-time preparation of the digits: 1797 handwritten digits that come with scikit-learn.

They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
UCI), 8 x 8 pixels with 17 grey levels. They need no network.
"""

import numpy as np

from datasets import in_memory
from runtime.errors import InputError
from runtime.terminal import say

EVERY = 6  # every sixth image of a class goes to val


def signature(opt):
    """A constant, because the data and their split never change."""
    return f"scikit-learn load_digits, 8 x 8, every {EVERY}th of a class in val"


def exec(opt, cache_file):
    """Save images and labels of train (1501) and val (296) to `cache_file`; returns the cache.

    The images are sorted by writer. Every sixth image of each class goes to val, so both splits
    have all classes and all writers, and the error is for known writers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8); was 0..16
    images = np.repeat(grey[:, None], 3, axis=1)  # (N, 3, 8, 8): the nets take RGB
    labels = digits.target.astype(np.int64)
    val = np.zeros(len(labels), bool)
    for label in range(10):
        val[np.flatnonzero(labels == label)[EVERY - 1 :: EVERY]] = True
    say(f" | saving digits dataset to {cache_file}")
    train, test = ((images[which], labels[which]) for which in (~val, val))
    return in_memory.save(cache_file, signature(opt), train, test)

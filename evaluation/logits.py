"""Every class's logit of each image, in a file (-scores), and the temperature fitted to them.

The logits are the mean of an image's outputs. All processes write their rows into one .npy file as
they come, so memory does not grow with images times classes.
"""

import contextlib
import math
import os
import tempfile

import numpy as np
import torch

from parallel import group
from runtime.errors import InputError, cause
from runtime.terminal import say
from storage import atomic

BINS = 15  # of confidence, for the expected calibration error
_AT_ONCE = 1 << 22  # logits in memory


class Logits:
    """float32 (N, K) in a .npy file. Not written by a memory map, where a full disk kills."""

    def __init__(self, path, name):
        self.path, self.name = path, name  # the name is temporary

    def array(self):
        """The logits, memory-mapped to read."""
        return np.load(self.name, mmap_mode="r")

    def write(self, indices, rows):
        """Write the logits of these images."""
        start = self.array().offset
        try:
            with open(self.name, "r+b") as file:
                for index, row in zip(indices, rows):
                    file.seek(start + int(index) * row.nbytes)
                    file.write(row)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {cause(error)}") from None


@contextlib.contextmanager
def opened(path, shape):
    """The Logits that all processes fill, an atomic write of `path`; None without a path.

    For a .csv the array is temporary; `finish` makes the table from it.
    """
    if not path:
        yield None
        return
    name = None
    with contextlib.ExitStack() as stack:
        if group.rank() == 0:
            if _is_csv(path):
                place = tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".")
                name = os.path.join(stack.enter_context(place), "scores.npy")
            else:
                name = stack.enter_context(atomic.replacing(path)).name
            np.lib.format.open_memmap(name, "w+", np.float32, shape)
        yield Logits(path, group.all_gather(name)[0])


def _is_csv(path):
    return path.lower().endswith(".csv")


def finish(path, logits, read, images, names):
    """Complete the file once all processes have written: NaN for images that were not read.

    read: indices of the images that were. With a .npy, the names of its rows and columns go into
    files beside it.
    """
    array = logits.array()
    unread = np.setdiff1d(np.arange(len(array)), read)
    logits.write(unread, (np.full(len(names), np.nan, np.float32) for _ in unread))
    to_csv, stem = _is_csv(path), os.path.splitext(path)[0]
    head = ["path", "class", *(names if to_csv else ())]
    with atomic.csv_rows(path if to_csv else f"{stem}.images.csv", head) as rows:
        for i, target in enumerate(images.targets):
            cells = array[i].astype(str) if to_csv else ()
            rows.writerow([images.name(i), names[target], *cells])
    if not to_csv:
        lines = b"".join(os.fsencode(name) + b"\n" for name in names)
        atomic.write(f"{stem}.classes.txt", lines)


def calibrate(array, indices, targets):
    """Fit the temperature and print the calibration with and without."""
    if not len(indices):
        raise InputError("-temperature: the outputs of every image have a NaN")
    temperature = fit(array, indices, targets)
    before, after = (measure(array, indices, targets, t) for t in (1, temperature))
    say(
        f" * Temperature {temperature:.4f}: calibration error {100 * before[0]:.2f} % -> "
        f"{100 * after[0]:.2f} %, log-loss {before[1]:.4f} -> {after[1]:.4f} "
        f"({BINS} bins, {len(indices)} images)"
    )


def fit(array, indices, targets):
    """The T from 0.01 to 100 for which softmax(logits / T) has the lowest mean log-loss.

    The loss is convex in 1/T: bisection finds the one place where it does not rise or fall.
    """
    low, high = 0.01, 100.0
    while high / low > 1.00001:
        middle = math.sqrt(low * high)
        rise = 0.0  # derivative of the loss by 1/T: the expected logit less that of the true class
        for logits, target in _pieces(array, indices, targets):
            expected = ((logits / middle).softmax(1) * logits).sum(1, keepdim=True)
            rise += (expected - logits.gather(1, target)).sum().item()
        low, high = (middle, high) if rise > 0 else (low, middle)
    return math.sqrt(low * high)


def measure(array, indices, targets, temperature):
    """(expected calibration error, mean log-loss) of softmax(logits / temperature).

    The error is the mean over images of |share right - mean confidence| of their bin (Guo et al.,
    On Calibration of Modern Neural Networks, 2017).
    """
    excess, loss = torch.zeros(BINS, dtype=torch.float64), 0.0
    for logits, target in _pieces(array, indices, targets):
        logs = (logits / temperature).log_softmax(1)
        loss -= logs.gather(1, target).sum().item()
        confidence, best = logs.max(1)
        confidence = confidence.exp()
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        excess += torch.bincount(bins, (best == target[:, 0]).double() - confidence, BINS)
    return excess.abs().sum().item() / len(indices), loss / len(indices)


def _pieces(array, indices, targets):
    """Logits float64 (n, K) and targets (n, 1) of these images, piece by piece."""
    step = max(1, _AT_ONCE // array.shape[1])
    for start in range(0, len(indices), step):
        rows = slice(start, start + step)
        logits = torch.from_numpy(array[indices[rows]]).double()
        yield logits, torch.from_numpy(targets[rows, None])

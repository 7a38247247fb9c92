"""CSV files as atomic writes. File names and class names survive, whatever bytes they have."""

import contextlib
import csv
import io

from runtime.errors import InputError
from storage import atomic


@contextlib.contextmanager
def writing(path):
    """A csv.writer; its rows become the file `path` at the end of the block, UTF-8."""
    try:
        with atomic.replacing(path) as file:
            # os.fsdecode made surrogates of bytes that are not UTF-8; here they become bytes again
            text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
            yield csv.writer(text, lineterminator="\n")
            text.flush()
            text.detach()  # `replacing` flushes the file to disk and closes it
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def best_columns(count):
    """The names of the columns of the `count` best classes and their probabilities."""
    return [f"{what}{n}" for n in range(1, count + 1) for what in ("class", "probability")]


def best_cells(names, indices, probabilities):
    """The cells of one image's best classes, best first; empty where a probability is NaN."""
    pairs = zip(indices, probabilities)
    known = [(names[i], f"{p:.6g}") if p == p else ("", "") for i, p in pairs]
    return [cell for pair in known for cell in pair]

"""Errors by class, and the confusion matrix as CSV or as a picture (matplotlib, optional)."""

import os

import numpy as np

from runtime.errors import cut
from storage import atomic, pictures

NAMED = 100  # classes up to which the picture names them
COUNTED = 20  # and up to which it prints the counts
DRAWN = 2000  # rows and columns of the picture at most
LONGEST = 40  # characters of a name in the picture


def rows(targets, predicted, count):
    """The confusion matrix row by row, int64 (count,): images of class i taken for class j.

    The whole matrix of 21,841 classes would take 4 GB. Images without a ranking (-1), whose outputs
    have a NaN, are left out.
    """
    ranked = predicted >= 0
    targets, predicted = targets[ranked], predicted[ranked]
    ends = np.cumsum(np.bincount(targets, minlength=count))
    for own in np.split(predicted[np.argsort(targets, kind="stable")], ends[:-1]):
        yield np.bincount(own, minlength=count)


def write_errors(path, targets, best, names):
    """Write each class's images and errors; best (N, k): the images' best classes."""
    right = best == targets[:, None]
    counts = [
        np.bincount(targets, weights, len(names)).astype(int)
        for weights in (None, ~right[:, 0], ~right.any(1))
    ]
    with atomic.csv_rows(path) as rows:
        rows.writerow(["class", "images", "wrong1", "wrong5", "top1", "top5"])
        for name, images, wrong1, wrong5 in zip(names, *counts):
            errors = [f"{100 * n / images:.3f}" if images else "" for n in (wrong1, wrong5)]
            rows.writerow([name, images, wrong1, wrong5, *errors])


def write(path, targets, predicted, names):
    """Write the matrix, true classes by row, as CSV or by the ending of `path` as a picture."""
    if os.path.splitext(path)[1].lower() in pictures.FORMATS:
        _draw(path, targets, predicted, names)
        return
    with atomic.csv_rows(path) as lines:
        lines.writerow(["true \\ predicted", *names])
        for name, counts in zip(names, rows(targets, predicted, len(names))):
            lines.writerow([name, *counts.tolist()])


def _draw(path, targets, predicted, names):
    """Draw the matrix: the colour is the share of the true class's images.

    With more classes than pixels, a cell stands for several that follow one another.
    """
    count, each = len(names), -(-len(names) // DRAWN)
    matrix = np.stack([*rows(targets // each, predicted // each, -(-count // each))])
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 4 + 0.3 * min(count, 50)
    with pictures.drawing(path, (side + 1, side)) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        figure.colorbar(image, label="% of the true class's images", shrink=0.8)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if count <= NAMED:
            shown = [cut(name, LONGEST) for name in names]
            axes.set_xticks(range(count), shown, rotation=90, fontsize=8)
            axes.set_yticks(range(count), shown, fontsize=8)
        if count <= COUNTED:
            for i, j in np.argwhere(matrix):
                colour = "white" if shares[i, j] > 50 else "black"
                axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=colour)

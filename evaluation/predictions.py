"""The predictions of a test, gathered from all processes, and what is written of them.

The score by which errors are counted also ranks the best classes; with several outputs per image,
the mean of their softmax does, which is a probability.
"""

import os

import numpy as np
import torch

from evaluation import logits
from parallel import group
from runtime.errors import cut
from runtime.progress import slow
from runtime.terminal import say
from storage import atomic, pictures

TOP = 5
# Limits of the picture of a confusion matrix
NAMED = 100  # with more classes it has no names
COUNTED = 20  # with more classes it has no counts
DRAWN = 2000  # rows and columns
LONGEST = 40  # characters of a name


class Predictions:
    """Collects this process's predictions, batch by batch, in arrays of all images.

    Small tensors made beside a batch's large ones would keep malloc from reusing the large ones'
    memory: with 21,841 classes, a test of 50,000 images then takes 9 GB.
    """

    def __init__(self, images, classes, device, logits=None):
        """images, classes: how many are tested. logits: a Logits to write, or None."""
        shape = images, min(TOP, classes)
        self.logits = logits
        self.read = torch.zeros(images, dtype=torch.uint8, device=device)
        self.best = torch.zeros(shape, dtype=torch.int64, device=device)
        self.probabilities = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, indices, average, several):
        """Add a batch. indices: (n,) of the images. average: (2, n, K), see scores.averages."""
        score = average[1] if several else average[0]
        best = score.float().topk(self.best.shape[1], dim=1).indices  # as count_errors
        probabilities = score if several else score.double().softmax(1)
        if self.logits:
            self.logits.write(indices, average[0].float().cpu().numpy())
        self.read.index_fill_(0, indices, 1)  # a GPU would wait for the 1 of `read[indices] = 1`
        self.best[indices] = best
        self.probabilities[indices] = probabilities.gather(1, best).double()

    def gathered(self):
        """(indices (N,), best classes (N, k), their probabilities (N, k)) of all processes' images.

        On every process, in the dataset's order, without unreadable images; k = min(5, classes).
        Where the outputs have a NaN, the probabilities are NaN and the classes -1.
        """
        # an image is zeros in all processes but the one that tested it
        parts = self.read, self.best, self.probabilities
        read, best, probabilities = (group.all_reduce(part).cpu().numpy() for part in parts)
        best = np.where(np.isnan(probabilities), -1, best)
        indices = np.flatnonzero(read)
        return indices, best[indices], probabilities[indices]


def write(found, images, names, opt):
    """Write what -predictions, -classErrors, -confusion and -scores ask for, on rank 0.

    found: Predictions. images: the tested Views. names: of the tested classes.
    """
    indices, best, probabilities = found.gathered()
    if group.rank() > 0:
        return
    names = [f"class {i}" if name is None else name for i, name in enumerate(names)]
    targets = images.targets[indices]
    files = [
        (opt.predictions, _write_rows, images, names, indices, targets, best, probabilities),
        (opt.classErrors, _write_errors, targets, best, names),
        *((path, write_confusion, targets, best[:, 0], names) for path in opt.confusion),
        (opt.scores, logits.finish, found.logits, indices, images, names),
    ]
    for path, write_file, *content in files:
        if path:
            with slow(f"writing {path}"):
                write_file(path, *content)
            say(f"=> {path}")
    if opt.temperature:
        known = best[:, 0] >= 0
        with slow("fitting the temperature"):
            logits.calibrate(found.logits.array(), indices[known], targets[known])


def _write_rows(path, images, names, indices, targets, best, probabilities):
    with atomic.csv_rows(path, ["path", "class", *best_columns(best.shape[1])]) as rows:
        for index, target, *image in zip(indices, targets, best, probabilities):
            rows.writerow([images.name(index), names[target], *best_cells(names, *image)])


def best_columns(count):
    """The names of the columns of the `count` best classes and their probabilities."""
    return [f"{what}{n}" for n in range(1, count + 1) for what in ("class", "probability")]


def best_cells(names, indices, probabilities):
    """The cells of one image's best classes, best first; empty where a probability is NaN."""
    pairs = zip(indices, probabilities)
    known = [(names[i], f"{p:.6g}") if p == p else ("", "") for i, p in pairs]
    return [cell for pair in known for cell in pair]


def _matrix(targets, predicted, count):
    """The confusion matrix row by row, int64 (count,): images of class i taken for class j.

    The whole matrix of 21,841 classes would take 4 GB. Images without a ranking (-1), whose outputs
    have a NaN, are left out.
    """
    ranked = predicted >= 0
    targets, predicted = targets[ranked], predicted[ranked]
    ends = np.cumsum(np.bincount(targets, minlength=count))
    for own in np.split(predicted[np.argsort(targets, kind="stable")], ends[:-1]):
        yield np.bincount(own, minlength=count)


def _write_errors(path, targets, best, names):
    """Write each class's images and errors; best (N, k): the images' best classes."""
    right = best == targets[:, None]
    counts = [
        np.bincount(targets, weights, len(names)).astype(int)
        for weights in (None, ~right[:, 0], ~right.any(1))
    ]
    head = ["class", "images", "wrong1", "wrong5", "top1", "top5"]
    with atomic.csv_rows(path, head) as rows:
        for name, images, wrong1, wrong5 in zip(names, *counts):
            errors = [f"{100 * n / images:.3f}" if images else "" for n in (wrong1, wrong5)]
            rows.writerow([name, images, wrong1, wrong5, *errors])


def write_confusion(path, targets, predicted, names):
    """Write the matrix, true classes by row, as CSV or by the ending of `path` as a picture."""
    if os.path.splitext(path)[1].lower() in pictures.FORMATS:
        _draw(path, targets, predicted, names)
        return
    with atomic.csv_rows(path, ["true \\ predicted", *names]) as rows:
        for name, counts in zip(names, _matrix(targets, predicted, len(names))):
            rows.writerow([name, *counts.tolist()])


def _draw(path, targets, predicted, names):
    """Draw the matrix: the colour is the share of the true class's images.

    With more classes than pixels, a cell stands for several that follow one another.
    """
    count, each = len(names), -(-len(names) // DRAWN)
    matrix = np.stack([*_matrix(targets // each, predicted // each, -(-count // each))])
    shares = np.divide(100 * matrix, np.maximum(matrix.sum(1, keepdims=True), 1), dtype=np.float32)
    side = 4 + 0.3 * min(count, 50)
    with pictures.drawing(path, (side + 1, side)) as figure:
        axes = figure.subplots()
        end = each * len(matrix) - 0.5
        look = {"cmap": "Blues", "vmin": 0, "vmax": 100}
        look["extent"] = -0.5, end, end, -0.5  # the axes count classes, not cells
        look["interpolation_stage"] = "data"  # scaling RGBA takes four times the memory
        image = axes.imshow(shares, **look)
        figure.colorbar(image, label="% of the true class's images", shrink=0.8)
        cell = f" ({each} to a cell)" if each > 1 else ""
        axes.set_xlabel("predicted class" + cell)
        axes.set_ylabel("true class" + cell)
        if count <= NAMED:
            shown = [cut(name, LONGEST) for name in names]
            axes.set_xticks(range(count), shown, rotation=90, fontsize=8)
            axes.set_yticks(range(count), shown, fontsize=8)
        if count <= COUNTED:
            for i, j in np.argwhere(matrix):
                colour = "white" if shares[i, j] > 50 else "black"
                axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=colour)

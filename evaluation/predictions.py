"""The predictions of a test, image by image, gathered from all processes and written as CSV.

The score by which errors are counted also ranks the best classes; with several outputs per image,
the mean of their softmax does, which is a probability. confusion.py has the errors by class and the
confusion matrix.
"""

from typing import NamedTuple

import numpy as np
import torch

from evaluation import confusion, logits
from parallel import group
from runtime.terminal import say
from storage import atomic

TOP = 5


class Table(NamedTuple):
    """The predictions of N images, in the dataset's order."""

    indices: np.ndarray  # (N,) of the images, without unreadable ones
    best: np.ndarray  # (N, k) classes, best first, k = min(5, classes); -1 without a ranking
    probabilities: np.ndarray  # (N, k) of these classes; NaN where the outputs have a NaN


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
        self.read[indices] = 1
        self.best[indices] = best
        self.probabilities[indices] = probabilities.gather(1, best).double()

    def gathered(self):
        """The Table of the images of all processes, on every process."""
        # an image is zeros in all processes but the one that tested it
        parts = self.read, self.best, self.probabilities
        read, best, probabilities = (group.all_reduce(part).cpu().numpy() for part in parts)
        best = np.where(np.isnan(probabilities), -1, best)
        indices = np.flatnonzero(read)
        return Table(indices, best[indices], probabilities[indices])


def write(found, images, names, opt):
    """Write what -predictions, -classErrors, -confusion and -scores ask for, on rank 0.

    found: Predictions. images: the tested Views. names: of the tested classes.
    """
    table = found.gathered()
    if group.rank() > 0:
        return
    names = [f"class {i}" if name is None else name for i, name in enumerate(names)]
    targets = images.targets[table.indices]
    if opt.predictions:
        _write_rows(opt.predictions, table, images, targets, names)
        say(f"=> {opt.predictions}")
    if opt.classErrors:
        confusion.write_errors(opt.classErrors, targets, table.best, names)
        say(f"=> {opt.classErrors}")
    for path in opt.confusion:
        confusion.write(path, targets, table.best[:, 0], names)
        say(f"=> {path}")
    if opt.scores:
        logits.finish(found.logits, table.indices, images, names)
        say(f"=> {opt.scores}")
    if opt.temperature:
        known = table.best[:, 0] >= 0
        logits.calibrate(found.logits.array(), table.indices[known], targets[known])


def _write_rows(path, table, images, targets, names):
    with atomic.csv_rows(path) as rows:
        rows.writerow(["path", "class", *best_columns(table.best.shape[1])])
        for index, target, best, p in zip(table.indices, targets, table.best, table.probabilities):
            cells = best_cells(names, best, p)
            rows.writerow([images.name(index), names[target], *cells])


def best_columns(count):
    """The names of the columns of the `count` best classes and their probabilities."""
    return [f"{what}{n}" for n in range(1, count + 1) for what in ("class", "probability")]


def best_cells(names, indices, probabilities):
    """The cells of one image's best classes, best first; empty where a probability is NaN."""
    pairs = zip(indices, probabilities)
    known = [(names[i], f"{p:.6g}") if p == p else ("", "") for i, p in pairs]
    return [cell for pair in known for cell in pair]

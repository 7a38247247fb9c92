"""Scenes of handwritten digits among clutter: detection without a download.

A scene is a function of (seed, split, number): up to 7 of scikit-learn's digits, of random size and
brightness, on a dark canvas with lines and pieces of other digits, which are not objects. 3 to 7
digits are drawn; one that finds no free place in ten tries is left out. Test scenes are the same
for every seed and hold digits of the test split only.
"""

import re
import zlib

import numpy as np
from PIL import Image

import datasets
from datasets.draws import Draws
from detection.annotations import Objects
from runtime.errors import InputError

SIDE = 128  # pixels
COUNTS = {"train": 1000, "val": 200}
SIZES = (18, 44)  # sides of the square that a digit fills
INK = 48  # of 255: a digit's box holds what is at least this bright


def create(opt):
    """The Scenes of both splits, (train, val)."""
    names = list(datasets.module("digits").classes(opt))
    splits = zip(("train", "val"), datasets.create(opt))
    return [Scenes(digits, names, split, opt.manualSeed) for split, digits in splits]


class Scenes:
    """One split; `digits` is the dataset datasets/digits.py of that split."""

    def __init__(self, digits, names, split, seed):
        self.images, self.labels = digits.images[:, 0].numpy(), digits.labels.numpy()
        self.names, self.categories = names, list(range(1, 1 + len(names)))
        self.split, self.seed = split, seed if split == "train" else 0
        self.ids = list(range(1, 1 + COUNTS[split]))
        self.made = {}  # 16 KB a scene

    def name(self, i):
        return f"scene {i + 1} of {self.split}"

    def pixels(self, i):
        return np.repeat(self._scene(i)[0][None], 3, axis=0)

    def objects(self, i):
        return self._scene(i)[1]

    def fingerprint(self):
        """A checksum of the digits. The trainer checks the seed."""
        return zlib.crc32(np.ascontiguousarray(self.images))

    def rows(self):
        """The annotations, see images.py."""
        for i in range(len(self.ids)):
            objects = self.objects(i)
            for (x, y, right, bottom), label in zip(objects.boxes.tolist(), objects.labels):
                box = [x, y, right - x, bottom - y]
                yield i, int(label) - 1, 0, box[2] * box[3], box

    def _scene(self, i):
        """(uint8 (SIDE, SIDE), Objects) of a scene."""
        if i not in self.made:
            self.made[i] = self._make(i)
        return self.made[i]

    def _make(self, i):
        draws = Draws(self.seed, 0 if self.split == "train" else 1, i)
        canvas = _clutter(draws)
        for _ in range(4):  # pieces of digits, which are not objects
            piece, size = self._digit(draws)[0], draws.random(12, 24)
            half = np.zeros_like(piece)
            half[:3] = piece[:3]
            x, y = draws.random(0, SIDE - size), draws.random(0, SIDE - size)
            _draw(canvas, half, x, y, size, draws.uniform(0.3, 0.7))
        boxes, labels = [], []
        for _ in range(draws.random(3, 7)):
            digit, label = self._digit(draws)
            size, brightness = draws.random(*SIZES), draws.uniform(0.6, 1)
            for _ in range(10):  # tries to place the digit
                x, y = draws.random(0, SIDE - size), draws.random(0, SIDE - size)
                box = _box(digit, x, y, size)
                if not any(_meet(box, other) for other in boxes):
                    _draw(canvas, digit, x, y, size, brightness)
                    boxes.append(box)
                    labels.append(label + 1)
                    break
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        crowd = np.zeros((0, 4), np.float32)
        return canvas.astype(np.uint8), Objects(boxes, np.array(labels, np.int64), crowd)

    def _digit(self, draws):
        i = draws.random(0, len(self.labels) - 1)
        return self.images[i], int(self.labels[i])


def scene(text):
    """The place of the test scene whose number is `text`; None if `text` is not a number."""
    if not re.fullmatch("[0-9]+", text):
        return None
    if len(text) > 9 or not 1 <= int(text) <= COUNTS["val"]:
        raise InputError(f"-show {text:.60}: the test scenes are 1 to {COUNTS['val']}")
    return int(text) - 1


def _clutter(draws):
    """A dark canvas with a slow gradient and some lines, float32 (SIDE, SIDE) in 0..255."""
    corners = np.array([[draws.uniform(0, 60) for _ in range(4)] for _ in range(4)], np.float32)
    canvas = _resized(corners, SIDE)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(draws.random(2, 5)):
        angle, brightness = draws.uniform(0, np.pi), draws.uniform(40, 160)
        x, y = draws.uniform(0, SIDE), draws.uniform(0, SIDE)
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        line = (abs(across) < draws.uniform(0.6, 1.6)) & (abs(along) < draws.uniform(10, 50))
        canvas[line] = np.maximum(canvas[line], brightness)
    return canvas


def _draw(canvas, digit, x, y, size, brightness):
    place = canvas[y : y + size, x : x + size]
    np.maximum(place, brightness * _resized(digit.astype(np.float32), size), out=place)


def _resized(plane, size):
    image = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image)


def _box(digit, x, y, size):
    """The corners of the ink of a digit drawn at this place."""
    (rows, columns), unit = np.nonzero(digit >= INK), size / len(digit)
    right, bottom = x + unit * (columns.max() + 1), y + unit * (rows.max() + 1)
    return [x + unit * columns.min(), y + unit * rows.min(), right, bottom]


def _meet(one, other):
    """Whether two boxes overlap or nearly do."""
    return all(min(one[k + 2], other[k + 2]) - max(one[k], other[k]) > -1 for k in (0, 1))

"""The test of one net or of an ensemble, each net in several views of an image.

A view is an input made from an image: scaled and cropped, as ten crops or, for dense testing, as
the whole image at one scale. Each net may need its own views, by its own input spec. An image's
score is the mean over the nets of the mean over each net's views. There are two such scores, by the
two averages of scores.py.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from datasets.input_spec import InputTransform, training_side
from datasets.transforms import TenCrop
from datasets.workers import image_name
from engine import loop
from engine.batchnorm import ADVICE
from engine.metrics import MetricQueue, Metrics, Reporter
from evaluation import scores
from runtime.errors import InputError
from runtime.memory import out_of_memory
from runtime.progress import Clock
from runtime.terminal import say


class View(NamedTuple):
    """One way to make an input from an image. Equal views are computed once."""

    spec: tuple  # the net's input spec without scale and crop, as sorted items
    scale: int  # the image's shorter side in pixels
    crop: int  # side of the crop; 0 for the whole image
    ten: bool = False  # ten crops instead of the center crop


class Views:
    """The images `indices` of a dataset, in these views: a dataset for the DataLoader.

    Images in a batch that have the same size share a tensor.
    """

    def __init__(self, dataset, indices, targets, views):
        self.dataset, self.indices, self.targets, self.views = dataset, indices, targets, views
        self.odd = getattr(dataset, "odd", [])  # see image_folder.py

    def get(self, i):
        """Image i as the dataset reads it, and i in place of its class.

        The loader's batches then say which images they hold, even where unreadable ones are left
        out. `targets` has the classes.
        """
        return self.dataset.get(self.indices[i])[0], int(i)

    def name(self, i):
        """The name of image i in messages."""
        return image_name(self.dataset, int(self.indices[i]))

    def size(self):
        """The number of images."""
        return len(self.indices)

    def crops(self):
        """The number of inputs made from an image."""
        return sum(10 if view.ten else 1 for view in self.views)

    def input_spec(self):
        """The dataset's input spec."""
        return self.dataset.input_spec()

    def transform(self):
        """A function (image, draws) -> [array for each view]."""
        largest = self.dataset.input_spec()["largest"]

        def transform(image, draws=None):
            return [_apply(view, image, largest) for view in self.views]

        return transform

    def stack(self, images):
        """For each view a list of (indices in the batch, tensor), one for each image size.

        A tensor is (n, 3, H, W), with ten crops (10 n, 3, H, W).
        """
        return [_by_size([image[v] for image in images]) for v in range(len(self.views))]


def _apply(view, image, largest):
    """A view of an image (3, H, W) in 0..largest: (3, h, w), or (10, 3, h, w) for ten crops."""
    transform = InputTransform(dict(view.spec))
    own_largest = transform.spec["largest"]
    if own_largest != largest:
        image = image * np.float32(own_largest / largest)
    image = transform.scaled(image, view.scale)
    if view.ten:
        return TenCrop(view.crop)(image)
    return transform.cropped(image, view.crop) if view.crop else image


def _by_size(arrays):
    """[(indices, their arrays stacked)], one for each shape."""
    groups = {}
    for i, array in enumerate(arrays):
        groups.setdefault(array.shape, []).append(i)
    stacked = []
    for shape, indices in groups.items():
        images = torch.from_numpy(np.stack([arrays[i] for i in indices]))
        stacked.append([torch.tensor(indices), images.reshape(-1, *shape[-3:])])
    return stacked


class Member(NamedTuple):
    """One net of an ensemble."""

    net: nn.Module
    views: list  # those views of an image that are its own
    columns: torch.Tensor  # the output index of each tested class
    window: int  # side of the last maps in training; 0: one global mean


@dataclasses.dataclass
class EnsembleMetrics(Metrics):
    """wrong1, wrong5: by the mean of the outputs. soft1, soft5: by the mean of their softmax."""

    soft1: int = 0
    soft5: int = 0


def views(net, dataset, opt):
    """A net's views of an image, by the input spec in its file or else by the dataset's.

    Options only change the sizes.
    """
    own = dataset.input_spec()
    if own is None:
        raise InputError(
            "no input spec describes this dataset's test transform, so no other views can be made; "
            "main.py -testOnly true -retrain FILE tests with the transform"
        )
    spec = dict(net.input_spec or own)
    InputTransform(spec).check()
    scale, crop, *_ = (spec.pop(name, None) for name in ("scale", "crop", "trained", "pool"))
    spec = tuple(sorted(spec.items()))
    if opt.dense:
        return [View(spec, scale, 0) for scale in opt.dense]
    scale, crop = opt.testScale or scale, opt.testCrop or crop
    if crop > scale:
        raise InputError(f"a crop of {crop} is larger than the image, which is scaled to {scale}")
    return [View(spec, scale, crop, opt.tenCrop)]


def window(net, dataset, opt):
    """The side of a net's last maps for an image of the training size; 0 for one global mean.

    Windows of this side are for -dense, and for a crop larger than the images of the training.
    """
    spec = net.input_spec or dataset.input_spec()
    own = training_side(spec)
    pool = opt.given.get("testPool", spec.get("pool", opt.testPool))
    larger = (opt.testCrop or spec["crop"]) > own and pool == "windows"
    side = scores.window_side(net, own) if opt.dense or larger else 0
    if opt.dense and not side:
        raise InputError("-dense needs the last feature maps, but this net has no function `maps`")
    return side


def test(members, loader, opt, precision, predictions=None):
    """Test and print the errors; returns [(top-1 error %, top-5 error %)], one for each average.

    loader: of Views. predictions: a Predictions to fill, or None.
    """
    total, queue = EnsembleMetrics(), MetricQueue(precision.device)
    targets = torch.from_numpy(loader.dataset.targets).to(precision.device)
    windows = any(member.window for member in members)
    several = len(members) > 1 or windows or opt.tenCrop or opt.flip

    @torch.inference_mode()
    def count_errors(batch, n):
        if not len(batch.target):  # only the placeholder image
            return _count_errors(targets.new_zeros(2, 0, 1), targets[:0])
        parts = (_score(member, batch, opt, precision) for member in members)
        average = sum(parts) / len(members)
        if predictions is not None:
            predictions.add(batch.target, average, several)
        return _count_errors(average, targets[batch.target])

    reporter = Reporter(Clock(test=loader.size()), opt.printEvery)
    loop.test(0, loader, total, count_errors, queue, reporter)
    counts = [("mean of outputs", total.wrong1, total.wrong5)]
    if several:  # with one output per image both averages rank the classes alike
        counts += [("mean of softmax", total.soft1, total.soft5)]
    results = []
    for name, wrong1, wrong5 in counts:
        top1, top5 = 100 * wrong1 / total.seen, 100 * wrong5 / total.seen
        of = f"{name}, " if several else ""
        counted = f"({of}{wrong1} and {wrong5} of {total.seen} images wrong)"
        say(f" * Results top1: {top1:6.3f}  top5: {top5:6.3f}  {counted}")
        results.append((top1, top5))
    return results


def _count_errors(averages, target):
    """The number of wrong images by each of the averages (2, N, K)."""
    counts, soft = (scores.count_errors(average, target) for average in averages)
    return {**counts, "soft1": soft["wrong1"], "soft5": soft["wrong5"]}


def _score(member, batch, opt, precision):
    """A member's score (2, N, classes), by outputs and by softmax: the mean over its views."""
    shape = (2, len(batch.target), len(member.columns))
    total = torch.zeros(shape, dtype=precision.dtype, device=precision.device)
    for view in member.views:
        for indices, images in batch.input[view]:
            for x in [images, images.flip(3)] if opt.flip else [images]:
                with out_of_memory(x.shape, precision.device, ADVICE), precision.autocast():
                    outputs = scores.outputs(member.net, x, member.window)
                # crops and positions of an image are alike: (images, n, the net's classes)
                outputs = outputs.reshape(len(indices), -1, outputs.shape[2])[..., member.columns]
                total[:, indices] += scores.averages(outputs.to(precision.dtype))
    return total / (len(member.views) * (2 if opt.flip else 1))

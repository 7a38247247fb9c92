"""The test of one net or of an ensemble, each net in several views of an image.

An image's score is the mean over the nets of the mean over each net's views. There are two such
scores, by the two averages of scores.py.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from datasets.input_spec import InputTransform
from engine import batchnorm, loop
from engine.batchnorm import ADVICE
from engine.metrics import MetricQueue, Metrics, Reporter
from evaluation import scores
from evaluation.views import View
from parallel.signals import Interrupts
from runtime.errors import InputError
from runtime.memory import out_of_memory
from runtime.progress import Clock
from runtime.terminal import say


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


def recompute(nets, loader, opt, precision):
    """Re-estimate batch norm in each net (-recomputeBN) over training images."""
    for net in nets:
        batchnorm.check_input(net, loader.dataset, opt.dataset)
        net.train()
        batchnorm.recompute(net, loader, 0, opt.recomputeBN, precision, Interrupts())
        net.eval()


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
    scale, crop, _ = (spec.pop(name, None) for name in ("scale", "crop", "trained"))
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
    own = spec.get("trained", spec["crop"])
    larger = (opt.testCrop or spec["crop"]) > own and opt.testPool == "windows"
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

    loop.test(
        0, loader, total, count_errors, queue, Reporter(Clock(test=loader.size()), opt.printEvery)
    )
    counts = [("mean of outputs", total.wrong1, total.wrong5)]
    if several:  # with one output per image both averages rank the classes alike
        counts += [("mean of softmax", total.soft1, total.soft5)]
    results = []
    for name, wrong1, wrong5 in counts:
        top1, top5 = 100 * wrong1 / total.seen, 100 * wrong5 / total.seen
        what = f"{name}, " if several else ""
        say(
            f" * Results top1: {top1:6.3f}  top5: {top5:6.3f}  "
            f"({what}{wrong1} and {wrong5} of {total.seen} images wrong)"
        )
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
                outputs = _outputs(member, x, len(indices), precision)[..., member.columns]
                total[:, indices] += scores.averages(outputs.to(precision.dtype))
    return total / (len(member.views) * (2 if opt.flip else 1))


def _outputs(member, x, count, precision):
    """The net's outputs (count, n, its classes) for views x of `count` images of one size."""
    net = member.net
    with out_of_memory(x.shape, precision.device, ADVICE), precision.autocast():
        if member.window:
            return scores.dense(net.maps(x), net.fc, member.window).reshape(
                count, -1, net.fc.out_features
            )
        return net(x).unflatten(0, (count, -1))

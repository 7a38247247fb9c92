"""Nets that are tested together, each in all its views of an image; or one alone.

An image's score is the mean over the nets of the mean over each net's views, in the two readings of
scores.py.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

import models
from datasets.input_spec import InputTransform
from evaluation import batchnorm, scores, testing
from evaluation.metrics import MetricQueue, Metrics
from evaluation.reporter import Reporter
from evaluation.views import View
from parallel.signals import Interrupts
from runtime.errors import InputError
from runtime.memory import out_of_memory
from runtime.progress import Clock
from runtime.terminal import say

ADVICE = "a smaller -batchSize or -precision bfloat16"


class Member(NamedTuple):
    """One net of an ensemble."""

    net: nn.Module
    views: list  # which of the views of an image are its own
    columns: torch.Tensor  # which of its outputs stand for the classes that are tested
    window: int  # side of the maps that its classifier was trained on, 0 if not to be dense


@dataclasses.dataclass
class Readings(Metrics):
    """Metrics by the mean of the outputs and, beside, by the mean of their softmax."""

    soft1: int = 0
    soft5: int = 0


def load(source, precision):
    """A model from a file or by name, ready for nothing but tests."""
    net = models.load(source, precision.device)
    # whatever the file holds, as in training
    return net.to(precision.dtype, memory_format=torch.channels_last)


def recompute(nets, loader, opt, precision):
    """Re-estimate all batch norms (-recomputeBN); `loader` is of training images."""
    for net in nets:
        own = net.input_spec or loader.dataset.input_spec()
        for name, value in loader.dataset.input_spec().items():
            if name in ("largest", "mean", "std") and value != own[name]:
                raise InputError(
                    f"-recomputeBN: this net wants its input with {name} {own[name]}, the "
                    f"training images of {opt.dataset} come with {value}"
                )
        net.train()
        batchnorm.recompute(net, loader, 0, opt.recomputeBN, precision, Interrupts())
        net.eval()


def views(net, dataset, opt):
    """The ways in which a net is to look at an image: as its file says or, failing that, the data.

    Options change the sizes, and nothing else.
    """
    spec = dict(net.input_spec or dataset.input_spec())
    InputTransform(spec).check()
    scale, crop = (spec.pop(name) for name in ("scale", "crop"))
    spec = tuple(sorted(spec.items()))
    if opt.dense:
        return [View(spec, scale, 0) for scale in opt.dense]
    scale, crop = opt.scale or scale, opt.crop or crop
    if crop > scale:
        raise InputError(f"a crop of {crop} is larger than the image, which is scaled to {scale}")
    return [View(spec, scale, crop, opt.ten)]


def window(net, dataset, opt):
    """The side of a net's last maps when it is shown an image of the size of its training."""
    if not opt.dense:
        return 0
    if not hasattr(net, "maps"):
        raise InputError("-dense needs a net with last maps; this one has no function `maps`")
    # a net that was trained on smaller images says so; a larger crop only says how it was tested
    side = min(spec["crop"] for spec in (dataset.input_spec(), net.input_spec) if spec)
    image = net.fc.weight.new_zeros(1, 3, side, side)
    with torch.inference_mode():
        return net.maps(image).shape[-1]


def test(members, loader, opt, precision):
    """Test and print the errors; returns (top-1, top-5) in per cent in each reading."""
    total, queue = Readings(), MetricQueue(precision.device)

    def count_errors(batch):
        return _count_errors(members, batch, opt, precision)

    testing.test(0, loader, total, count_errors, queue, Reporter(Clock(test=loader.size())))
    several = len(members) > 1 or opt.dense or opt.ten or opt.flip
    readings = [("mean of outputs", total.wrong1, total.wrong5)]
    if several:  # else both have the same order
        readings += [("mean of softmax", total.soft1, total.soft5)]
    results = []
    for name, wrong1, wrong5 in readings:
        top1, top5 = 100 * wrong1 / total.seen, 100 * wrong5 / total.seen
        what = f"{name}, " if several else ""
        say(
            f" * Results top1: {top1:6.3f}  top5: {top5:6.3f}  "
            f"({what}{wrong1} and {wrong5} of {total.seen} images wrong)"
        )
        results.append((top1, top5))
    return results


@torch.inference_mode()
def _count_errors(members, batch, opt, precision):
    """How many of this process's images are wrong, by each reading."""
    names = ("wrong1", "wrong5", "soft1", "soft5")
    if not len(batch.target):
        return dict.fromkeys(names, torch.zeros((), device=precision.device))
    score = sum(_score(member, batch, opt, precision) for member in members) / len(members)
    counts = [scores.count_errors(reading, batch.target).values() for reading in score]
    return dict(zip(names, (count for reading in counts for count in reading)))


def _score(member, batch, opt, precision):
    """The mean over a member's views: (2, N, classes), by outputs and by softmax."""
    shape = (2, len(batch.target), len(member.columns))
    total = torch.zeros(shape, dtype=precision.dtype, device=precision.device)
    for view in member.views:
        for places, images in batch.input[view]:
            for x in [images, images.flip(3)] if opt.flip else [images]:
                outputs = _outputs(member, x, len(places), precision)[..., member.columns]
                total[:, places] += scores.readings(outputs.to(precision.dtype))
    return total / (len(member.views) * (2 if opt.flip else 1))


def _outputs(member, x, count, precision):
    """What the net gives for views x of `count` images of one size: (count, n, its classes)."""
    net = member.net
    with out_of_memory(x.shape, precision.device, ADVICE), precision.autocast():
        if member.window:
            return scores.dense(net.maps(x), net.fc, member.window)
        return net(x).unflatten(0, (count, -1))

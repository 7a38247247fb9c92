"""Nets that are tested together, each in all its views of an image, and one alone likewise.

No Lua file. An image's score is the mean over the nets of the mean over each net's views, in the
two readings of score.py.
"""

import contextlib
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import distributed
import models
import norms
import score
from datasets.preprocessing import Preprocessing
from datasets.views import View
from distributed import say
from errors import InputError
from interrupts import Interrupts
from progress import Clock
from train import MIXED, test_line


class Member(NamedTuple):
    """One net of an ensemble."""

    net: nn.Module
    views: list  # which of the views of an image are its own
    columns: torch.Tensor  # which of its outputs stand for the classes that are tested
    window: int  # side of the maps that its classifier was trained on, 0 if not to be dense


def load(source, opt, device):
    """A model from a file or by name, ready for nothing but tests."""
    net = models.load(source, device)
    # whatever the file holds, as in training
    dtype = torch.float64 if opt.precision == "double" else torch.float32
    return net.to(dtype, memory_format=torch.channels_last)


def recompute(nets, loader, opt):
    """Estimate the statistics of all batch norms anew (-recomputeBN); `loader` is of training."""
    for net in nets:
        own = net.preprocessing or loader.dataset.preprocessing()
        for name, value in loader.dataset.preprocessing().items():
            if name in ("largest", "mean", "std") and value != own[name]:
                raise InputError(
                    f"-recomputeBN: this net wants its input with {name} {own[name]}, the "
                    f"training images of {opt.dataset} come with {value}"
                )
        net.train()
        norms.recompute(
            net, loader, 0, opt.recomputeBN, lambda batch: _running(opt, batch.input), Interrupts()
        )
        net.eval()


def views(net, dataset, opt):
    """The ways in which a net is to look at an image: as its file says or, failing that, the data.

    Options change the sizes, and nothing else.
    """
    values = dict(net.preprocessing or dataset.preprocessing())
    Preprocessing(values).check()
    scale, crop = (values.pop(name) for name in ("scale", "crop"))
    values = tuple(sorted(values.items()))
    if opt.dense:
        return [View(values, scale, 0) for scale in opt.dense]
    scale, crop = opt.scale or scale, opt.crop or crop
    if crop > scale:
        raise InputError(f"a crop of {crop} is larger than the image, which is scaled to {scale}")
    return [View(values, scale, crop, opt.ten)]


def window(net, dataset, opt):
    """The side of a net's last maps when it is shown an image of the size of its training."""
    if not opt.dense:
        return 0
    if not hasattr(net, "maps"):
        raise InputError("-dense needs a net with last maps; this one has no function `maps`")
    # a net that was trained on smaller images says so; a larger crop only says how it was tested
    side = min(p["crop"] for p in (dataset.preprocessing(), net.preprocessing) if p)
    image = net.fc.weight.new_zeros(1, 3, side, side)
    with torch.inference_mode():
        return net.maps(image).shape[-1]


def test(members, loader, opt):
    """Test and print the errors; returns (top-1, top-5) in per cent in each reading."""
    size, sums = loader.size(), np.zeros(5)
    clock = Clock(test=size)
    timer = time.perf_counter()
    for n, batch in enumerate(loader.run(0), 1):
        data_time = time.perf_counter() - timer
        got = np.array(_wrong(members, batch, opt).tolist())
        sums += got
        if got[0]:
            elapsed = time.perf_counter() - timer
            say(test_line(f"[0][{n}/{size}]", elapsed, data_time, got, sums))
            clock.tick("test", 0, n, elapsed)
        timer = time.perf_counter()
    seen, *wrong = (int(number) for number in sums)
    if not seen:
        raise InputError("no validation image could be read")
    one = len(members) == 1 and not opt.dense and not opt.ten and not opt.flip
    results = []
    for what, top1, top5 in ("mean of outputs", *wrong[:2]), ("mean of softmax", *wrong[2:]):
        results.append((100 * top1 / seen, 100 * top5 / seen))
        percent = "top1: {:6.3f}  top5: {:6.3f}".format(*results[-1])
        what = "" if one else f"{what}, "
        say(f" * Results {percent}  ({what}{top1} and {top5} of {seen} images wrong)")
        if one:
            break  # the same order
    return results


def _wrong(members, batch, opt):
    """All processes' sum of: images, wrong in top-1, top-5 by outputs, by softmax; float64 (5,)."""
    count = len(batch.target)
    wrong = []
    if count:
        scores = sum(_score(member, batch.input, count, opt) for member in members) / len(members)
        wrong = [n for reading in scores for n in score.errors(reading, batch.target)]
    # one exchange, and one wait for the device
    here = [torch.as_tensor(n, device=batch.target.device) for n in (count, *(wrong or [0] * 4))]
    return distributed.total(torch.stack([n.double() for n in here]))


@torch.inference_mode()
def _score(member, input, count, opt):
    """The mean over a member's views: (2, count, classes), by outputs and by softmax."""
    dtype = torch.float64 if opt.precision == "double" else torch.float32
    device = member.net.fc.weight.device
    total = torch.zeros(2, count, len(member.columns), dtype=dtype, device=device)
    for view in member.views:
        for places, images in input[view]:
            seen = [images, images.flip(3)] if opt.flip else [images]
            for x in seen:
                outputs = _outputs(member, x, len(places), opt)[..., member.columns]
                total[:, places] += score.readings(outputs.to(dtype))
    return total / (len(member.views) * (2 if opt.flip else 1))


def _outputs(member, x, count, opt):
    """What the net gives for views x of `count` images of one size: (count, n, its classes)."""
    net = member.net
    with _running(opt, x):
        if member.window:
            return score.dense(net.maps(x), net.fc, member.window)
        return net(x).unflatten(0, (count, -1))


@contextlib.contextmanager
def _running(opt, x):
    """What a forward pass runs in; a want of memory becomes one sentence."""
    mixed = MIXED.get(opt.precision)
    try:
        with torch.autocast(x.device.type, mixed, enabled=mixed is not None):
            yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU has none of its own
        if "tried to allocate" not in str(error).lower():
            raise
        shape = " x ".join(map(str, x.shape))
        raise InputError(
            f"out of memory for an input of {shape} ({str(error).splitlines()[0]}); give a smaller "
            "-batchSize or -precision bfloat16"
        ) from None

"""Test support: two nets on disk that tell pictures apart, and runs of evaluate.py."""

import os
from unittest import mock

import numpy as np
import torch
from PIL import Image

import evaluate
import models
from datasets.input_spec import InputTransform
from evaluation import scores
from formats import model_files
from models.resnet import resnet
from models.resnext import resnext
from support import nets

TORCH7 = {"scale": 40, "crop": 32, "largest": 255, "mean": (120, 125, 130), "std": (30, 31, 32)}
VISION = {"scale": 36, "crop": 33, "largest": 1, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
VISION["resize"] = "bilinear"


def pair(folder, photos):
    """{name: (path, net in float64)} of two nets with different classes and input specs."""
    one = nets.ours(resnet(8, 2, "cifar", "A"), ["plain", "striped"], TORCH7)
    classes = ["striped", "fox", "plain", "cat"]
    other = nets.ours(resnext(11, 2, 4, 4, "cifar"), classes, VISION)
    found = {}
    for net, name in ((one, "one.pth"), (other, "other.safetensors")):
        inputs = [InputTransform(net.input_spec)(pixels) for pixels, _ in pictures(photos)]
        with torch.no_grad():
            net.fc.weight.mul_(20)  # the pictures differ little
            net.fc.bias.sub_(
                net(torch.stack(inputs)).median(0).values
            )  # so that no class is always the best
        model_files.write(str(folder / name), models.pack(net))
        found[name.split(".")[0]] = str(folder / name), net.double()
    return found


def pictures(photos):
    """(uint8 array (H, W, 3), class index) of the validation images, in order."""
    for target, name in enumerate(("plain", "striped")):
        folder = os.path.join(photos, "val", name)
        for file in sorted(os.listdir(folder)):
            yield np.asarray(Image.open(os.path.join(folder, file))), target


def scored(function, words):
    """The result of a command's main function, and the scores that it passes to count_errors."""
    found, count_errors = [], scores.count_errors

    def recording(output, target):
        found.append(output)
        return count_errors(output, target)

    with mock.patch.object(scores, "count_errors", recording):
        result = function([str(word) for word in words])
    return result, found


def evaluated(*words, data, dataset="imagenet"):
    """The results of evaluate.py, and all images' scores by both averages."""
    more = ["-data", data, "-dataset", dataset, "-nThreads", "0", "-batchSize", "3"]
    results, found = scored(evaluate.main, [*more, *words])
    return results, torch.cat(found[::2]), torch.cat(found[1::2])

"""From outputs and targets to error counts, and from several outputs to one score of an image.

Port of Trainer:computeScore in train.lua. Differs from the Lua: errors are counts instead of
percentages, so sums over batches and processes are exact; top-5 means top-min(5, classes), where
the Lua fails below five classes. The dense classifier and the averages are new.
"""

import torch
import torch.nn.functional as F
from torch import nn


def sum_crops(output, crops):
    """(N * crops, K) -> (N, K): the sum of the outputs over the crops of an image."""
    return output.view(-1, crops, output.shape[1]).sum(1) if crops > 1 else output


def dense(maps, fc, window):
    """The classifier at every position of the last maps (N, C, H, W): outputs (N, positions, K).

    The Lua's nets end in Avg(window, window, 1, 1) and a linear layer. On larger images the pooling
    has many output positions, and the linear layer acts as a 1x1 convolution (VGG's dense
    evaluation). The window is never longer than the side of the maps.
    """
    size = [min(window, side) for side in maps.shape[2:]]
    pooled = F.avg_pool2d(maps, size, stride=1)  # (N, C, H - window + 1, W - window + 1)
    return fc(pooled.flatten(2).transpose(1, 2))


def outputs(net, images, window=0):
    """A net's outputs for images (N, 3, H, W): (N, 1, K), or `dense` ones (N, positions, K)."""
    return dense(net.maps(images), net.fc, window) if window else net(images).unsqueeze(1)


def window_side(net, side):
    """The side of a net's last maps for images of this side; 0 for a net without `maps`."""
    if not hasattr(net, "maps"):
        return 0
    image, training = net.fc.weight.new_zeros(1, 3, side, side), net.training
    with torch.inference_mode():
        found = net.eval().maps(image).shape[-1]
    net.train(training)
    return found


def window_of_tests(net):
    """The side of the windows of a net's tests, by its input spec; 0: one global mean."""
    spec = getattr(net, "input_spec", None) or {}
    larger = "trained" in spec and spec["crop"] > spec["trained"] and spec.get("pool") != "global"
    return window_side(net, spec["trained"]) if larger else 0


def pooled_as_tested(net):
    """The net. If it was tested in windows, its pooling becomes that of the test: its output is
    then the mean of the outputs of `dense`, as fc is linear.
    """
    side = window_of_tests(net)
    if side and hasattr(net, "avgpool"):
        net.avgpool = nn.Sequential(nn.AvgPool2d(side, 1), net.avgpool)
    return net


def averages(outputs):
    """Two averages of the n outputs of each image: (N, n, K) -> (2, N, K).

    The first is the mean of the outputs, which ranks classes like their sum, the Lua's score for
    ten crops. The second is the mean of their softmax.
    """
    return torch.stack([outputs.mean(1), outputs.softmax(2).mean(1)])


def count_errors(output, target):
    """The wrong images of a batch: {"wrong1", "wrong5": count as a tensor}.

    output (N, K), target (N,). A row with a NaN counts as wrong, because it has no ranking.
    """
    best = output.float().topk(min(5, output.shape[1]), dim=1).indices  # (N, 5), descending
    right = best.eq(target.view(-1, 1)) & ~output.isnan().any(dim=1, keepdim=True)
    return {"wrong1": (~right[:, 0]).sum(), "wrong5": (~right.any(dim=1)).sum()}

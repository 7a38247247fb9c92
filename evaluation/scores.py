"""Outputs and targets to error counts, and several outputs to one score of an image.

Port of Trainer:computeScore in train.lua. Differs from the Lua: counts instead of percentages, so
that batches and processes add up exactly, and top-5 means top-min(5, classes) where the Lua failed
below five classes. The dense head and the two readings of several outputs are new.
"""

import torch
import torch.nn.functional as F


def sum_crops(output, crops):
    """(N * crops, K) -> (N, K): the sum of the raw outputs over the crops of an image."""
    return output.view(-1, crops, output.shape[1]).sum(1) if crops > 1 else output


def dense(maps, fc, window):
    """The classifier at every place of the last maps (N, C, H, W): outputs (N, places, K).

    The Lua's nets end in Avg(window, window, 1, 1) and a linear layer, which on larger images have
    many places; the linear layer becomes a 1x1 convolution there (VGG's dense evaluation). On
    smaller maps, and in a shorter direction, the window is as long as the map.
    """
    size = [min(window, side) for side in maps.shape[2:]]
    pooled = F.avg_pool2d(maps, size, stride=1)  # (N, C, H - window + 1, W - window + 1)
    return fc(pooled.flatten(2).transpose(1, 2))


def readings(outputs):
    """Several outputs of an image, (N, n, K), as one score in two ways: (2, N, K).

    First the mean of the raw outputs, whose ranking is that of their sum, as the Lua has it for ten
    crops; then the mean of their softmax.
    """
    return torch.stack([outputs.mean(1), outputs.softmax(2).mean(1)])


def count_errors(output, target):
    """How many of the batch are wrong: {"wrong1", "wrong5": tensor}; output (N, K), target (N,).

    A row with a value that is not a number counts as wrong: no ranking can be read from it.
    """
    best = output.float().topk(min(5, output.shape[1]), dim=1).indices  # (N, 5), descending
    right = best.eq(target.view(-1, 1)) & ~output.isnan().any(dim=1, keepdim=True)
    return {"wrong1": (~right[:, 0]).sum(), "wrong5": (~right.any(dim=1)).sum()}

"""Batch norm by replica slice, as in the original under nn.DataParallelTable.

Nets have plain batch norms. A training run asks for slices with `set_slices`.
"""

import math
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

# The fewest slices that are normalised together, by device. A GPU then starts few kernels for any
# number of slices. A CPU would take 1.3 to 1.8 times as long as slice by slice.
TOGETHER = {"cuda": 4}


def set_slices(model, sizes):
    """Let each batch norm of a model normalise slices of these sizes separately in training.

    None is plain batch norm. Only the class of the batch norms changes; their parameters, buffers
    and hooks stay. Returns each num_batches_tracked to which the caller adds 1 after a batch: one
    operation for all of them, where plain batch norms take one each.
    """
    norms = [m for m in model.modules() if type(m) in (nn.BatchNorm2d, SlicedBatchNorm2d)]
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d if sizes is None else SlicedBatchNorm2d
        norm.slices = sizes
    if sizes is None or sizes[0] == 1:
        return []
    counting = (n for n in norms if n.training and n.track_running_stats and n.momentum is not None)
    return [norm.num_batches_tracked for norm in counting]


class SlicedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm as nn.SpatialBatchNormalization does it under nn.DataParallelTable.

    In training each replica slice of the batch (`slices`, see `set_slices`) is normalised by its
    own statistics. Only the first slice, the first replica's, updates the running statistics.

    As in Torch7, a slice of one sample is normalised by the running statistics and updates nothing,
    even if its feature map has many pixels. It uses the running statistics from before the batch,
    as it would on a replica of its own.
    """

    def forward(self, x):  # (N, C, H, W)
        if not self.training:
            return super().forward(x)
        runs = [(size, 1) for size in self.slices]
        has_all = self.bias is not None and self.track_running_stats and self.momentum is not None
        if has_all and len(self.slices) >= TOGETHER.get(x.device.type, math.inf):
            runs = [(size, len(list(run))) for size, run in groupby(self.slices)]
        if len(runs) == 1 and sum(self.slices) == len(x):  # a split's backward pass would copy
            return self._normalise(x, *runs, update=True)
        first, *others = zip(x.split([size * count for size, count in runs]), runs)
        # before the first slice updates the running statistics
        others = [self._normalise(*other) for other in others]
        first = self._normalise(*first, update=True)
        return torch.cat([first, *others])

    def _normalise(self, x, run, update=False):
        """Normalise a run of equal slices; with `update` its first one updates the statistics."""
        size, count = run
        if size == 1 and self.running_mean is not None:
            # copies: backward reads them after the first slice has updated the originals
            mean, var = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        if count > 1:
            return self._together(x, count, update)
        if update and self.momentum is None:
            return super().forward(x)  # a running mean over all batches, which needs their number
        tracked = update and self.track_running_stats
        own = (self.running_mean, self.running_var) if tracked else (None, None)
        return F.batch_norm(x, *own, self.weight, self.bias, True, self.momentum or 0, self.eps)

    def _together(self, x, count, update):
        """One batch norm of several equal slices, whose channels are put side by side."""
        channels = x.shape[1]
        statistics = torch.stack([self.running_mean, self.running_var])
        mean, var = statistics.repeat(1, count)
        weight, bias = self.weight.repeat(count), self.bias.repeat(count)
        wide = _side_by_side(x, count)
        wide = F.batch_norm(wide, mean, var, weight, bias, True, self.momentum, self.eps)
        if update:
            own = [self.running_mean, self.running_var]
            torch._foreach_copy_(own, [mean[:channels], var[:channels]])
        return _Apart.apply(wide, x.shape)


def _side_by_side(x, count):
    """Maps (N, C, H, W) in channels_last as (1, count * C, N / count * H * W, 1), likewise."""
    channels = x.shape[1]
    rows = x.permute(0, 2, 3, 1).reshape(count, -1, channels).transpose(0, 1)
    return rows.reshape(1, -1, 1, count * channels).permute(0, 3, 1, 2)


class _Apart(torch.autograd.Function):
    """The inverse of `_side_by_side`: maps of a shape (N, C, H, W).

    A function of its own because the result of PyTorch's operations would be a view, which costs
    autograd copies when the ReLU behind it works in place.
    """

    @staticmethod
    def forward(ctx, wide, shape):
        channels = shape[1]
        ctx.count = wide.shape[1] // channels
        x = torch.empty(
            shape, dtype=wide.dtype, device=wide.device, memory_format=torch.channels_last
        )
        rows = x.permute(0, 2, 3, 1).view(ctx.count, -1, channels)
        rows.copy_(wide.view(ctx.count, channels, -1).transpose(1, 2))
        return x

    @staticmethod
    def backward(ctx, grad):
        return _side_by_side(grad, ctx.count), None

"""Batch norm, the sum with the shortcut and ReLU as one operation, in Triton: a candidate.

The program does not use it, because no GPU has shown that it pays; `gpu.py` times it. On paper it
passes over a map 8 times (3 forward, 5 backward) in place of 13, with a shortcut 11 times in place
of 16: forward reads the map for its statistics, reads it again and writes the result; backward
computes the normalised map again, so nothing but the input is kept (with a shortcut also the
output). Any number of equal replica slices takes the same few kernels.

Maps are in channels_last. Statistics and arithmetic are float32, whatever the maps are.
"""

import torch
import triton
import triton.language as tl

from models.blocks import Bottleneck

ROWS, CHANNELS = 64, 64  # a tile; a row is a pixel
TILES = 16  # that one program adds up


@triton.jit
def _tile(pointer, first, stop, channel, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where a tile of rows below `stop` lies, and which of its numbers exist."""
    row = first + tl.arange(0, ROWS)[:, None]
    column = channel + tl.arange(0, CHANNELS)[None, :]
    return pointer + row.to(tl.int64) * C + column, (row < stop) & (column < C)


@triton.jit
def _statistics(x, mean, m2, R, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr):
    """For each part of a slice's R rows: its mean and its sum of squared differences from it."""
    part, channel, slice = tl.program_id(0), tl.program_id(1) * CHANNELS, tl.program_id(2)
    first, stop = slice * R + part * ROWS * TILES, (slice + 1) * R
    seen, average, squares = 0.0, tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    for i in range(TILES):
        at, inside = _tile(x, first + i * ROWS, stop, channel, C, ROWS, CHANNELS)
        values = tl.load(at, inside, 0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(stop - first - i * ROWS, 0), ROWS).to(tl.float32)
        own = tl.sum(values, 0) / tl.maximum(count, 1.0)
        off = tl.where(inside, values - own[None, :], 0.0)
        # Chan's formula joins two groups without the cancellation of a sum of squares
        both = tl.maximum(seen + count, 1.0)
        step = own - average
        squares += tl.sum(off * off, 0) + step * step * (seen * count / both)
        average += step * (count / both)
        seen += count
    column = channel + tl.arange(0, CHANNELS)
    place = (slice * tl.num_programs(0) + part) * C + column
    tl.store(mean + place, average, column < C)
    tl.store(m2 + place, squares, column < C)


@triton.jit
def _channels(pointer, group, channel, C, CHANNELS: tl.constexpr):
    """The numbers of a tile's channels in row `group` of a table of C columns."""
    column = channel + tl.arange(0, CHANNELS)
    return tl.load(pointer + group * C + column, column < C, 0.0)[None, :]


@triton.jit
def _affine(mean, rstd, weight, bias, slice, channel, C, CHANNELS: tl.constexpr):
    """What normalises a tile: mean and 1 / std of its slice, weight and bias of the layer."""
    m = _channels(mean, slice, channel, C, CHANNELS)
    r = _channels(rstd, slice, channel, C, CHANNELS)
    w, b = _channels(weight, 0, channel, C, CHANNELS), _channels(bias, 0, channel, C, CHANNELS)
    return m, r, w, b


@triton.jit
def _apply(
    x, shortcut, y, mean, rstd, weight, bias,
    R, C, SUM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = relu((x - mean) * rstd * weight + bias, + shortcut)."""
    part, channel, slice = tl.program_id(0), tl.program_id(1) * CHANNELS, tl.program_id(2)
    first, stop = slice * R + part * ROWS, (slice + 1) * R
    m, r, w, b = _affine(mean, rstd, weight, bias, slice, channel, C, CHANNELS)
    at, inside = _tile(x, first, stop, channel, C, ROWS, CHANNELS)
    result = (tl.load(at, inside, 0.0).to(tl.float32) - m) * r * w + b
    if SUM:
        at, _ = _tile(shortcut, first, stop, channel, C, ROWS, CHANNELS)
        result += tl.load(at, inside, 0.0).to(tl.float32)
    at, _ = _tile(y, first, stop, channel, C, ROWS, CHANNELS)
    tl.store(at, tl.maximum(result, 0.0).to(y.dtype.element_ty), inside)


@triton.jit
def _reduce(
    dy, x, y, masked, mean, rstd, weight, bias, sums, products,
    R, C, SUM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """For each part of a slice: the sums of g and of g * xhat, where g is dy behind the ReLU.

    With a shortcut g is also stored, because it is the shortcut's gradient.
    """
    part, channel, slice = tl.program_id(0), tl.program_id(1) * CHANNELS, tl.program_id(2)
    first, stop = slice * R + part * ROWS * TILES, (slice + 1) * R
    m, r, w, b = _affine(mean, rstd, weight, bias, slice, channel, C, CHANNELS)
    total, product = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    for i in range(TILES):
        at, inside = _tile(x, first + i * ROWS, stop, channel, C, ROWS, CHANNELS)
        xhat = (tl.load(at, inside, 0.0).to(tl.float32) - m) * r
        at, _ = _tile(dy, first + i * ROWS, stop, channel, C, ROWS, CHANNELS)
        g = tl.load(at, inside, 0.0)
        if SUM:
            at, _ = _tile(y, first + i * ROWS, stop, channel, C, ROWS, CHANNELS)
            g = tl.where(tl.load(at, inside, 0.0) > 0, g, 0.0)
            at, _ = _tile(masked, first + i * ROWS, stop, channel, C, ROWS, CHANNELS)
            tl.store(at, g.to(masked.dtype.element_ty), inside)
        else:
            g = tl.where(xhat * w + b > 0, g, 0.0)
        g = g.to(tl.float32)
        total += tl.sum(g, 0)
        product += tl.sum(g * xhat, 0)
    column = channel + tl.arange(0, CHANNELS)
    place = (slice * tl.num_programs(0) + part) * C + column
    tl.store(sums + place, total, column < C)
    tl.store(products + place, product, column < C)


@triton.jit
def _gradient(
    g, x, dx, mean, rstd, weight, bias, sums, products,
    R, C, SUM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx = rstd * weight * (g - mean of g - xhat * mean of g * xhat)."""
    part, channel, slice = tl.program_id(0), tl.program_id(1) * CHANNELS, tl.program_id(2)
    first, stop = slice * R + part * ROWS, (slice + 1) * R
    m, r, w, b = _affine(mean, rstd, weight, bias, slice, channel, C, CHANNELS)
    total = _channels(sums, slice, channel, C, CHANNELS)
    product = _channels(products, slice, channel, C, CHANNELS)
    at, inside = _tile(x, first, stop, channel, C, ROWS, CHANNELS)
    xhat = (tl.load(at, inside, 0.0).to(tl.float32) - m) * r
    at, _ = _tile(g, first, stop, channel, C, ROWS, CHANNELS)
    gradient = tl.load(at, inside, 0.0).to(tl.float32)
    if not SUM:
        gradient = tl.where(xhat * w + b > 0, gradient, 0.0)
    at, _ = _tile(dx, first, stop, channel, C, ROWS, CHANNELS)
    result = r * w * (gradient - total / R - xhat * (product / R))
    tl.store(at, result.to(dx.dtype.element_ty), inside)


class _NormReLU(torch.autograd.Function):
    """relu(batch norm of x, + shortcut); also the mean and the biased variance of each slice."""

    @staticmethod
    def forward(ctx, x, weight, bias, shortcut, slices, eps):
        C, R, summed = x.shape[1], x.numel() // x.shape[1] // slices, shortcut is not None
        each, across = ROWS * TILES, triton.cdiv(C, CHANNELS)
        parts = triton.cdiv(R, each)
        means, m2 = torch.empty(2, slices, parts, C, device=x.device)
        _statistics[parts, across, slices](x, means, m2, R, C, ROWS, CHANNELS, TILES)
        counts = torch.full((parts, 1), float(each), device=x.device)
        counts[-1] = R - each * (parts - 1)
        mean = (means * counts).sum(1) / R
        var = (m2 + counts * (means - mean[:, None]) ** 2).sum(1) / R
        moments = mean, torch.rsqrt(var + eps)
        y = torch.empty_like(x)
        added = shortcut if summed else x  # x is not read
        grid = triton.cdiv(R, ROWS), across, slices
        _apply[grid](x, added, y, *moments, weight, bias, R, C, summed, ROWS, CHANNELS)
        ctx.save_for_backward(x, y if summed else None, *moments, weight, bias)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx, dy, *_):
        x, y, *affine = ctx.saved_tensors
        slices, C = affine[0].shape
        R, summed = x.numel() // C // slices, y is not None
        dy = dy.contiguous(memory_format=torch.channels_last)
        masked = torch.empty_like(dy) if summed else dy
        parts, across = triton.cdiv(R, ROWS * TILES), triton.cdiv(C, CHANNELS)
        sums, products = torch.empty(2, slices, parts, C, device=x.device)
        maps = dy, x, y if summed else x, masked
        size = R, C, summed, ROWS, CHANNELS
        _reduce[parts, across, slices](*maps, *affine, sums, products, *size, TILES)
        sums, products = sums.sum(1), products.sum(1)
        dx = torch.empty_like(x)
        grid = triton.cdiv(R, ROWS), across, slices
        _gradient[grid](masked, x, dx, *affine, sums, products, *size)
        return dx, products.sum(0), sums.sum(0), masked if summed else None, None, None


def norm_relu(norm, x, shortcut=None, slices=1):
    """relu(norm(x), + shortcut) in training, for maps (N, C, H, W) of `slices` equal slices.

    As SlicedBatchNorm2d: each slice has its own statistics, and the first updates the running ones.
    The trainer counts the batches.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if shortcut is not None:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    y, mean, var = _NormReLU.apply(x, norm.weight, norm.bias, shortcut, slices, norm.eps)
    with torch.no_grad():
        rows = x.numel() // x.shape[1] // slices
        norm.running_mean.lerp_(mean[0], norm.momentum)
        norm.running_var.lerp_(var[0] * (rows / (rows - 1)), norm.momentum)
    return y


def use(net, slices=1):
    """Let the bottlenecks of a ResNet or ResNeXt train with `norm_relu`."""

    def forward(block, x):
        branch = norm_relu(block.bn1, block.conv1(x), slices=slices)
        branch = norm_relu(block.bn2, block.conv2(branch), slices=slices)
        return norm_relu(block.bn3, block.conv3(branch), block.downsample(x), slices)

    for block in net.modules():
        if isinstance(block, Bottleneck):
            block._forward = forward.__get__(block)

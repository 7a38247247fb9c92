"""The transforms of small images over a whole batch, on whatever device it lies.

Ports ColorNormalize, HorizontalFlip(0.5) and RandomCrop(size, padding) of datasets/transforms.lua.
Given the uniforms of `draws.table`, a batch equals datasets/transforms.py with `draws.Draws` image
by image, to the last bit; for CIFAR's chain the columns of the table are flip, x, y. Nothing here
waits for the device.
"""

import torch
import torch.nn.functional as F


def normalize(batch, mean, std, dtype=torch.float32):
    """(batch - mean) / std for each channel: uint8 (N, C, H, W) -> `dtype`, same shape.

    Computed in float32 whatever the `dtype`, as the Lua's workers did.
    """
    mean, std = _per_channel(mean, batch), _per_channel(std, batch)
    return ((batch.float() - mean) / std).to(dtype)


def flip(batch, uniforms):
    """Mirrors the images whose uniform is below 0.5: (N, C, H, W) and (N,)."""
    return torch.where((uniforms < 0.5)[:, None, None, None], batch.flip(3), batch)


def crop(batch, uniforms_x, uniforms_y, padding):
    """Shifts every image by 0..2 padding inside `padding` zeros on each side; the size stays.

    Uniforms are float64 (N,). After `normalize` the zeros are the mean colour, as in the Lua.
    """
    n, _, h, w = batch.shape
    x, y = ((u * (2 * padding + 1)).long() for u in (uniforms_x, uniforms_y))
    padded = F.pad(batch, (padding,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view: (N, C, places y, places x, H, W)
    return windows[torch.arange(n, device=batch.device), :, y, x]


def _per_channel(values, batch):
    """float32 (C, 1, 1) on the batch's device; filled there, as a copy would wait for it."""
    return torch.stack(
        [torch.full((1, 1), v, dtype=torch.float32, device=batch.device) for v in values]
    )

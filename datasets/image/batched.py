"""The transforms of CIFAR for a whole batch, on any device.

ColorNormalize, HorizontalFlip(0.5) and RandomCrop(size, padding) of datasets/transforms.lua. With
the uniforms of `draws.table` a batch equals, to the last bit, what datasets/transforms.py gives
image by image with `draws.Draws`. The columns of the table are flip, x, y. No function waits for
the device.
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
    """Flip the images whose uniform is below 0.5: (N, C, H, W) and (N,)."""
    return torch.where((uniforms < 0.5)[:, None, None, None], batch.flip(3), batch)


def crop(batch, uniforms_x, uniforms_y, padding):
    """Crop each image at a random place after padding with zeros; the size stays.

    Uniforms are float64 (N,). After `normalize`, zero is the mean colour, as in the Lua.
    """
    n, _, h, w = batch.shape
    x, y = ((u * (2 * padding + 1)).long() for u in (uniforms_x, uniforms_y))
    padded = F.pad(batch, (padding,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view: (N, C, offsets y, offsets x, H, W)
    return windows[torch.arange(n, device=batch.device), :, y, x]


def _per_channel(values, batch):
    """float32 (C, 1, 1), filled on the batch's device: a copy to it would wait."""
    return torch.stack(
        [torch.full((1, 1), v, dtype=torch.float32, device=batch.device) for v in values]
    )

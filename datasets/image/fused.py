"""The transforms of ImageNet, fused: from the decoder's bytes to the net's input, image by image.

They draw the same random numbers as those of transforms.py, in the same order, and give the same
result up to float32 rounding. Pixels that the crop leaves out are not computed.
"""

import numpy as np

from datasets import transforms as t
from datasets.image import kernels
from datasets.image.resize import check_crop

_BYTE = np.float32(1 / 255)  # the value of a byte of 1 before normalisation
_KINDS = {
    t.Contrast: kernels.CONTRAST,
    t.Saturation: kernels.SATURATION,
    t.Brightness: kernels.BRIGHTNESS,
}


def training(chain):
    """RandomSizedCrop, ColorJitter, Lighting, ColorNormalize and HorizontalFlip, in this order.

    As a function (photo, draws, out): a decoding.Photo of 8 bits -> float32 (3, size, size).
    """
    crop, jitter, lighting, normalize, flip = chain.transforms
    mean, std = map(np.array, normalize.spec().values())

    def fast(photo, draws, out=None):
        rows, columns = photo.shape
        region, window = crop.region(columns, rows, draws), (crop.size, crop.size, 0, 0)
        blends = [(_KINDS[type(b)], b.alpha(draws)) for b in jitter.order(draws)]
        shift = lighting.shift(draws)
        mirror = flip.drawn(draws)
        if region is None:
            scale, center = t.Scale(crop.size), t.CenterCrop(crop.size)
            region, window = _center_window(columns, rows, scale, center)
        out = _resize(photo, region, (*window, mirror), crop.size, out)
        kernels.color(out, np.array(blends).reshape(-1, 2), shift, mean, std)
        return out

    return fast


def testing(chain):
    """Scale, ColorNormalize and CenterCrop, in this order; otherwise as `training`."""
    scale, normalize, crop = chain.transforms
    mean, std = (np.float32(v)[:, None, None] for v in normalize.spec().values())

    def fast(photo, draws=None, out=None):
        rows, columns = photo.shape
        region, window = _center_window(columns, rows, scale, crop)
        out = _resize(photo, region, (*window, False), crop.size, out)
        out -= mean
        out /= std
        return out

    return fast


def _center_window(columns, rows, scale, crop):
    """The region, which is the whole image, and the window that `crop` takes after `scale`."""
    width, height = scale.lengths(columns, rows)
    x, y = crop.place(width, height)
    check_crop(width, height, x, y, crop.size, crop.size)
    return (0, 0, columns, rows), (height, width, y, x)


def _resize(photo, region, window, size, out):
    pixels, (x, y, w, h) = photo.decode_region(region)
    out = np.empty((3, size, size), np.float32) if out is None else out
    words = pixels.view("<u4")[:, :, 0]  # (H, W): red in the lowest byte
    kernels.bicubic(words, (y, x, h, w), window, _BYTE, out)
    return out

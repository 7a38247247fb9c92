"""The transforms of ImageNet, fused: from the decoder's bytes to the net's input, image by image.

They draw the same random numbers as those of transforms.py, in the same order, and give the same
result up to float32 rounding. Pixels that the crop leaves out are not computed.
"""

import numpy as np

from datasets import transforms as t
from datasets.image import kernels
from datasets.image.resize import check_crop

_KINDS = {
    t.Contrast: kernels.CONTRAST,
    t.Saturation: kernels.SATURATION,
    t.Brightness: kernels.BRIGHTNESS,
}


class Training:
    """RandomSizedCrop, ColorJitter, Lighting, ColorNormalize and HorizontalFlip, in this order."""

    def __init__(self, chain):
        self.crop, self.jitter, self.lighting, normalize, self.flip = chain.transforms
        self.mean, self.std = map(np.array, normalize.spec().values())

    def __call__(self, photo, unit, draws, out=None):
        """A decoding.Photo of 8 bits -> float32 (3, size, size).

        unit: the value of a byte of 1 before normalisation, 1/255 for values in 0..1.
        """
        rows, columns = photo.shape
        size = self.crop.size
        region = self.crop.region(columns, rows, draws)
        blends = [(_KINDS[type(b)], b.alpha(draws)) for b in self.jitter.order(draws)]
        shift = self.lighting.shift(draws)
        mirror = self.flip.drawn(draws)
        if region is None:
            region, window = _center_window(columns, rows, t.Scale(size), t.CenterCrop(size))
        else:
            window = (size, size, 0, 0)
        out = _resize(photo, region, (*window, mirror), unit, size, out)
        kernels.color(out, np.array(blends).reshape(-1, 2), shift, self.mean, self.std)
        return out


class Testing:
    """Scale, ColorNormalize and CenterCrop, in this order."""

    def __init__(self, chain):
        self.scale, normalize, self.crop = chain.transforms
        self.mean, self.std = map(np.float32, normalize.spec().values())

    def __call__(self, photo, unit, draws=None, out=None):
        """A decoding.Photo of 8 bits -> float32 (3, size, size).

        unit: the value of a byte of 1 before normalisation, 1/255 for values in 0..1.
        """
        rows, columns = photo.shape
        region, window = _center_window(columns, rows, self.scale, self.crop)
        out = _resize(photo, region, (*window, False), unit, self.crop.size, out)
        kernels.normalize(out, self.mean, self.std)
        return out


def _center_window(columns, rows, scale, crop):
    """The region, which is the whole image, and the window that `crop` takes after `scale`."""
    width, height = scale.lengths(columns, rows)
    x, y = crop.place(width, height)
    check_crop(width, height, x, y, crop.size, crop.size)
    return (0, 0, columns, rows), (height, width, y, x)


def _resize(photo, region, window, unit, size, out):
    pixels, (x, y, w, h) = photo.decode_region(region)
    out = np.empty((3, size, size), np.float32) if out is None else out
    words = pixels.view("<u4")[:, :, 0]  # (H, W): red in the lowest byte
    kernels.bicubic(words, (y, x, h, w), window, unit, out)
    return out

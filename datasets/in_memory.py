"""A dataset with all images in memory as bytes, such as CIFAR and the digits.

Port of the class in datasets/cifar10.lua and cifar100.lua. Differs from the Lua: targets count
from 0, and a whole batch of images can be augmented at once, on any device.
"""

import copy
import functools
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from datasets import cache
from datasets.image import compiled_kernels
from datasets.transforms import ColorNormalize, Compose, HorizontalFlip, RandomCrop, parts


def save(cache_file, signature, train, val):
    """Write the cache that `Images` reads, and return it. train and val are (images, labels).

    Images are uint8 (N, 3, H, W), labels int64 (N,) from 0. `signature` identifies their source.
    """
    info = {"signature": np.array(signature)}
    for split, (images, labels) in (("train", train), ("val", val)):
        info |= {f"{split}_images": images, f"{split}_labels": labels}
    return cache.save(cache_file, info)


class Images:
    """One split, "train" or "val".

    mean, std: of each colour over the training images, in 0..255.
    padding: pixels added on each side before a training crop of the image's size.
    mirror: whether training images are flipped with probability 0.5.
    """

    def __init__(self, info, split, mean, std, padding, mirror):
        self.split = split
        self.images = torch.from_numpy(info[f"{split}_images"])  # uint8 (N, 3, H, W)
        self.labels = torch.from_numpy(info[f"{split}_labels"])  # int64 (N,)
        self.mean, self.std, self.padding, self.mirror = mean, std, padding, mirror
        self.chosen = 0  # of a subset, a checksum of the indices

    def subset(self, indices, split):
        """These images alone, with the transform of `split`."""
        part = copy.copy(self)
        part.split, part.images, part.labels = split, self.images[indices], self.labels[indices]
        part.chosen = zlib.crc32(indices)
        return part

    def fingerprint(self):
        """The number of images; of a subset, a checksum of which they are."""
        return self.chosen or self.size()

    def get(self, i):
        """Image i, float32 (3, H, W) in 0..255, and its target."""
        return self.images[i].numpy().astype(np.float32), int(self.labels[i])

    def input_spec(self):
        """How a test image becomes the net's input (see input_spec.py); None if no spec says it."""
        test, side = copy.copy(self), self.images.shape[-1]
        test.split = "val"
        found = parts(test.transform(), ColorNormalize)
        return found and {"scale": side, "crop": side, "largest": 255, **found[0].spec()}

    def size(self):
        """The number of images."""
        return len(self.labels)

    @property
    def draws(self):
        """The number of uniforms for one training image: for the flip if any, x and y."""
        return 3 if self.mirror else 2

    def transform(self):
        """The transform of this split, called as t(image, draws)."""
        normalize = ColorNormalize(self.mean, self.std)
        if self.split == "val":
            return normalize
        flip = [HorizontalFlip(0.5)] if self.mirror else []
        # padding follows normalisation, as in the Lua, so the border has the mean colour
        return Compose([normalize, *flip, RandomCrop(self.images.shape[-1], self.padding)])

    def augment(self, batch, uniforms=None, dtype=torch.float32):
        """The transform for a whole uint8 batch (N, 3, H, W); uniforms are float64 (N, draws).

        In float32 it equals the transform with the same draws to the last bit.
        """
        known = self._parts()
        normalize, crop = known[0], known[-1]
        if self.split == "train" and batch.device.type == "cpu" and compiled_kernels():
            n, c, h, w = batch.shape
            out = np.empty((n, h, w, c), np.float32)  # channels_last
            images, uniforms = batch.numpy(), uniforms.numpy()
            compiled_kernels().augment(images, uniforms, self._lookup, crop.padding, out)
            return torch.from_numpy(out).permute(0, 3, 1, 2).to(dtype)
        batch = normalize_batch(batch, normalize.mean, normalize.std, dtype)
        if self.split == "val":
            return batch
        if self.mirror:
            batch = flip_batch(batch, uniforms[:, 0])
        return crop_batch(batch, uniforms[:, -2], uniforms[:, -1], crop.padding)

    def _parts(self):
        """The parts of the transform if `augment` knows their types and values; else None."""
        chain = self.transform()
        if self.split == "val":
            return parts(chain, ColorNormalize)
        flip = [HorizontalFlip] if self.mirror else []
        found = parts(chain, ColorNormalize, *flip, RandomCrop)
        if not found or (self.mirror and found[1].prob != 0.5):
            return None
        crop = found[-1]
        return found if crop.size == self.images.shape[-1] and crop.padding >= 0 else None

    @property
    def knows_transform(self):
        """Whether `augment` gives what `get` and the transform give."""
        return type(self).get is Images.get and self._parts() is not None

    @functools.cached_property
    def _lookup(self):
        """The normalised value of each byte in each colour: float32 (3, 256)."""
        levels = np.broadcast_to(np.arange(256, dtype=np.float32), (3, 1, 256))
        return self._parts()[0](levels)[:, 0]


# ColorNormalize, HorizontalFlip(0.5) and RandomCrop of transforms.py for a whole batch on any
# device: equal to the last bit with the same uniforms. No function waits for the device.


def normalize_batch(batch, mean, std, dtype=torch.float32):
    """(batch - mean) / std for each channel: uint8 (N, C, H, W) -> `dtype`, same shape.

    Computed in float32 whatever the `dtype`, as the Lua's workers did.
    """
    mean, std = (_per_channel(tuple(values), batch.device) for values in (mean, std))
    return ((batch.float() - mean) / std).to(dtype)


def flip_batch(batch, uniforms):
    """Flip the images whose uniform is below 0.5: (N, C, H, W) and (N,)."""
    return torch.where((uniforms < 0.5)[:, None, None, None], batch.flip(3), batch)


def crop_batch(batch, uniforms_x, uniforms_y, padding):
    """Crop each image at a random place after padding with zeros; the size stays.

    Uniforms are float64 (N,). After `normalize_batch`, zero is the mean colour, as in the Lua.
    """
    n, _, h, w = batch.shape
    x, y = ((u * (2 * padding + 1)).long() for u in (uniforms_x, uniforms_y))
    padded = F.pad(batch, (padding,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view: (N, C, offsets y, offsets x, H, W)
    return windows[torch.arange(n, device=batch.device), :, y, x]


@functools.cache  # once, because a GPU would wait for each copy
def _per_channel(values, device):
    """Values of the channels as float32 (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]

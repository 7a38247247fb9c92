"""A dataset whose images are all held in memory as bytes: what CIFAR and the digits share.

Takes the place of the class that datasets/cifar10.lua and cifar100.lua each had. Differs from the
Lua: targets count from 0, and the images can also be augmented by the batch, on any device.
"""

import functools

import numpy as np
import torch

from datasets.image import batched
from datasets.transforms import ColorNormalize, Compose, HorizontalFlip, RandomCrop
from storage import atomic


def save(cache_file, signature, train, val):
    """Write the cache that `Images` reads; train and val are (images, labels).

    Images are uint8 (N, 3, H, W), labels int64 (N,) from 0; `signature` says what they come from.
    """
    with atomic.replacing(cache_file) as file:
        np.savez(
            file,
            signature=np.array(signature),
            train_images=train[0],
            train_labels=train[1],
            val_images=val[0],
            val_labels=val[1],
        )


class Images:
    """One split, "train" or "val".

    mean, std: of the training images, for each colour, in bytes (0..255).
    padding: pixels on each side, of which training crops take the size of the image again.
    mirror: whether training images are mirrored half of the time.
    """

    def __init__(self, info, split, mean, std, padding, mirror):
        self.split = split
        self.images = torch.from_numpy(info[f"{split}_images"])  # uint8 (N, 3, H, W)
        self.labels = torch.from_numpy(info[f"{split}_labels"])  # int64 (N,)
        self.mean, self.std, self.padding, self.mirror = mean, std, padding, mirror

    def get(self, i):
        """Image i, float32 (3, H, W) in 0..255, and its target."""
        return self.images[i].numpy().astype(np.float32), int(self.labels[i])

    def input_spec(self):
        """How any image becomes a test image (see input_spec.py)."""
        side = self.images.shape[-1]
        return {"scale": side, "crop": side, "largest": 255, "mean": self.mean, "std": self.std}

    def size(self):
        """The number of images."""
        return len(self.labels)

    @property
    def draws(self):
        """How many uniforms a training image takes: the flip if any, x, y."""
        return 3 if self.mirror else 2

    def transform(self):
        """The transform of one image, called as t(image, draws)."""
        normalize = ColorNormalize(self.mean, self.std)
        if self.split == "val":
            return normalize
        flip = [HorizontalFlip(0.5)] if self.mirror else []
        # pads after normalising: the border has the mean colour
        return Compose([normalize, *flip, RandomCrop(self.images.shape[-1], self.padding)])

    def augment(self, batch, uniforms=None, dtype=torch.float32):
        """get and transform for a uint8 batch (N, 3, H, W); uniforms are float64 (N, draws).

        Gives the same bits as the transform does with the same draws, for dtype float32.
        """
        if self.split == "train" and batch.device.type == "cpu":
            return self._augment_here(batch, uniforms).to(dtype)
        batch = batched.normalize(batch, self.mean, self.std, dtype)
        if self.split == "val":
            return batch
        if self.mirror:
            batch = batched.flip(batch, uniforms[:, 0])
        return batched.crop(batch, uniforms[:, -2], uniforms[:, -1], self.padding)

    def _augment_here(self, batch, uniforms):
        """The same in one compiled pass over the batch, in channels_last memory."""
        from datasets.image import kernels

        n, c, h, w = batch.shape
        out = np.empty((n, h, w, c), np.float32)
        kernels.augment(batch.numpy(), uniforms.numpy(), self._values, self.padding, out)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    @functools.cached_property
    def _values(self):
        """What each byte becomes in each colour, float32 (3, 256)."""
        levels = np.broadcast_to(np.arange(256, dtype=np.float32), (3, 1, 256))
        return ColorNormalize(self.mean, self.std)(levels)[:, 0]

"""A split of ImageNet, or of any folder laid out like it. Images are read one by one.

Port of the class in datasets/imagenet.lua. Differs from it: -trainCrop, -testScale, -testCrop, and
the image formats (see decoding.py).
"""

import copy
import mmap
import os
import zlib

import numpy as np

from datasets import imagenet_gen
from datasets import transforms as t
from datasets.image import compiled_kernels, decoding, turbojpeg
from datasets.image.damage import simplejpeg
from runtime.terminal import note

# of the colours of the ImageNet training images: eigenvalues, and eigenvectors as columns
EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class ImageFolder:
    """The images of one split. `info` is the cache that imagenet_gen.exec wrote.

    mean, std: of each colour over the training images, in 0..1.
    """

    def __init__(self, info, opt, split, mean, std):
        self.opt, self.split, self.mean, self.std = opt, split, mean, std
        self.folder = imagenet_gen.folder_of(opt, split)
        # arrays: forked workers share them, but copy a list when its reference counts change
        self.paths, self.targets = info[f"{split}_paths"], info[f"{split}_targets"]
        self._begin()
        if split == "train" and simplejpeg is None:  # once, because both splits are always made
            note(
                "=> simplejpeg cannot be imported, so Pillow decodes and takes 1.5 times as long"
                " (pip install simplejpeg)"
            )

    def _begin(self):
        # which images were checked and found whole, in memory that forked workers share
        self.checked = np.frombuffer(mmap.mmap(-1, max(1, len(self.targets))), np.uint8)
        self.odd = []  # sentences about damaged files with intact pixels; BatchReader empties it

    def subset(self, indices, split):
        """These images alone, with the transform of `split`."""
        part = copy.copy(self)
        part.split, part.paths, part.targets = split, self.paths[indices], self.targets[indices]
        part._begin()
        return part

    def get(self, i):
        """Image i as float32 (3, H, W) in 0..1, and its class from 0; InputError if unreadable."""
        pixels = decoding.decode(self._path(i), lambda phrase: self._add_odd(i, phrase))
        return decoding.floats(pixels), int(self.targets[i])

    def name(self, i):
        """What messages call image i: its path."""
        return os.fsdecode(self._path(i))

    def _add_odd(self, i, phrase):
        self.odd.append(f"{self.name(i)!r}: {phrase}")

    def _path(self, i):
        return os.path.join(self.folder, bytes(self.paths[i]))

    def input_spec(self):
        """How a test image becomes the net's input (see input_spec.py); None if no spec says it."""
        test = copy.copy(self)
        test.split = "val"
        chain, kinds = test.transform(), (t.Scale, t.ColorNormalize)
        parts = t.parts(chain, *kinds, t.CenterCrop) or t.parts(chain, *kinds, t.TenCrop)
        if not parts or parts[0].interpolation != "bicubic":
            return None
        scale, normalize, crop = parts
        return {"scale": scale.size, "crop": crop.size, "largest": 1, **normalize.spec()}

    @property
    def knows_transform(self):
        """Whether `fast_path` gives what `get` and the transform give, by types and values."""
        if type(self).get is not ImageFolder.get:
            return False
        if self.split == "val":
            return self.input_spec() is not None
        kinds = t.RandomSizedCrop, t.ColorJitter, t.Lighting, t.ColorNormalize, t.HorizontalFlip
        parts = t.parts(self.transform(), *kinds)
        blends = {t.Brightness, t.Contrast, t.Saturation}
        return parts is not None and {type(blend) for blend in parts[1].transforms} <= blends

    def fast_path(self):
        """A function (i, draws, out) -> image, class: `get` and `transform`, but faster.

        The result differs by float32 rounding only: scaling is one sum of four products in each
        direction, and all colour transforms are one affine map. The image is written into `out`
        if that is given. Without numba, for ten crops and for an unknown transform, the function
        calls `get` and `transform`.
        """
        chain = self.transform()
        is_fast = self.knows_transform and type(chain.transforms[-1]) is not t.TenCrop
        if not is_fast or compiled_kernels() is None:
            return lambda i, draws, out=None: (chain(self.get(i)[0], draws), int(self.targets[i]))
        from datasets.image import fused

        fast = (fused.training if self.split == "train" else fused.testing)(chain)
        buffer = np.empty(1 << 22, np.uint8)  # a million pixels of 4 bytes
        decoder = turbojpeg.decoder() if self.split == "train" else None

        def load(i, draws, out=None):
            photo = decoding.Photo(self._path(i), buffer, decoder, self.checked[i])
            if photo.pixels is not None and photo.pixels.dtype == np.uint16:  # not for the kernels
                image = chain(decoding.floats(photo.pixels), draws)
            else:
                image = fast(photo, draws, out)
            if photo.odd:
                self._add_odd(i, photo.odd)
            else:
                self.checked[i] = True
            return image, int(self.targets[i])

        return load

    def fingerprint(self):
        """A checksum of the images' paths and classes, in order."""
        return zlib.crc32(self.targets, zlib.crc32(self.paths))

    def size(self):
        """The number of images."""
        return len(self.targets)

    def transform(self):
        """The transform of this split: (3, H, W) -> (3, N, N), or (10, 3, N, N) for -tenCrop.

        N is -trainCrop or -testCrop, 224 in the original.
        """
        normalize = t.ColorNormalize(self.mean, self.std)
        if self.split == "train":
            chain = [
                t.RandomSizedCrop(self.opt.trainCrop),
                t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
                t.Lighting(0.1, EIGVAL, EIGVEC),
                normalize,
                t.HorizontalFlip(0.5),
            ]
        else:
            crop = t.TenCrop if self.opt.tenCrop else t.CenterCrop
            chain = [t.Scale(self.opt.testScale), normalize, crop(self.opt.testCrop)]
        return t.Compose(chain)

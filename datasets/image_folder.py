"""A split of ImageNet, or of any folder laid out like it: images that are read one by one.

Port of the class in datasets/imagenet.lua. Differs from it: what decoding.py says of images;
-testScale and -testCrop.
"""

import mmap
import os

import numpy as np

from datasets import transforms as t
from datasets.image import decoding, turbojpeg

EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class ImageFolder:
    """The images of one split. `info` is what imagenet_gen.exec stored.

    mean, std: of the training images, for each colour, in 0..1.
    """

    def __init__(self, info, opt, split, mean, std):
        if split not in ("train", "val"):
            raise ValueError(f"invalid split: {split}")
        self.opt, self.split, self.mean, self.std = opt, split, mean, std
        self.folder = os.fsencode(os.path.join(opt.data, split))
        # Arrays, no lists: workers share them instead of copying them page by page
        self.paths, self.targets = info[f"{split}_paths"], info[f"{split}_targets"]
        # Which were read through once and found whole: in memory that the workers share
        self.checked = np.frombuffer(mmap.mmap(-1, max(1, len(self.targets))), np.uint8)
        self.odd = []  # sentences on images with whole pixels and odd files; the reader empties it

    def get(self, i):
        """Image i as float32 (3, H, W) in 0..1, and its class from 0; InputError if unreadable."""
        pixels = decoding.decode(self._path(i), lambda phrase: self._note(i, phrase))
        return decoding.floats(pixels), int(self.targets[i])

    def name(self, i):
        """What to call image i in a message: its file."""
        return os.fsdecode(self._path(i))

    def _note(self, i, phrase):
        self.odd.append(f"{self.name(i)!r}: {phrase}")

    def _path(self, i):
        return os.path.join(self.folder, bytes(self.paths[i]))

    def input_spec(self):
        """How a test image becomes input (see input_spec.py)."""
        return {
            "scale": self.opt.testScale,
            "crop": self.opt.testCrop,
            "largest": 1,
            "mean": self.mean,
            "std": self.std,
        }

    def fast_path(self):
        """A function (i, draws, out) that for the image that transform() gives, and its class.

        Faster; equal but for rounding: scaling is a sum of four products a direction, colour
        one affine map. The image is written into `out`, if that is given.
        """
        from datasets.image import entropy, fused  # noqa: F401  compiled before workers are forked

        chain = self.transform()
        if self.split == "train":
            fast = fused.Training(chain)
        elif self.opt.tenCrop:
            return lambda i, draws, out=None: (chain(self.get(i)[0], draws), int(self.targets[i]))
        else:
            fast = fused.Testing(chain)

        room = np.empty(1 << 22, np.uint8)  # a million pixels
        decoder = turbojpeg.decoder() if self.split == "train" else None

        def load(i, draws, out=None):
            photo = decoding.Photo(self._path(i), room, decoder, self.checked[i])
            if photo.deep:
                image = chain(decoding.floats(photo.pixels), draws)
            else:
                image = fast(photo, np.float32(1 / 255), draws, out)
            if photo.odd:
                self._note(i, photo.odd)
            else:
                self.checked[i] = True
            return image, int(self.targets[i])

        return load

    def size(self):
        """How many images there are."""
        return len(self.targets)

    def transform(self):
        """The transform of this split: (3, H, W) -> (3, 224, 224), for -tenCrop (10, 3, ...)."""
        if self.split == "train":
            return t.Compose(
                [
                    t.RandomSizedCrop(224),
                    t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
                    t.Lighting(0.1, EIGVAL, EIGVEC),
                    t.ColorNormalize(self.mean, self.std),
                    t.HorizontalFlip(0.5),
                ]
            )
        crop = t.TenCrop if self.opt.tenCrop else t.CenterCrop
        return t.Compose(
            [
                t.Scale(self.opt.testScale),
                t.ColorNormalize(self.mean, self.std),
                crop(self.opt.testCrop),
            ]
        )

"""ImageNet, or any folder laid out like it: reading one image, and what is done to it.

Port of datasets/imagenet.lua. Differs from the Lua: what decoding.py says of images; -testScale and
-testCrop.
"""

import os

import numpy as np

from datasets import decoding, imagenet_gen, turbojpeg
from datasets import transforms as t

stem = "imagenet"

# Computed from a random subset of the ImageNet training images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def classes(opt):
    """Names of the classes in the order of the targets: the folders of the images."""
    return imagenet_gen.classes(opt)


class Dataset:
    """The images of one split. `info` is what imagenet_gen.exec stored."""

    def __init__(self, info, opt, split):
        if split not in ("train", "val"):
            raise ValueError(f"invalid split: {split}")
        self.opt, self.split = opt, split
        self.folder = os.fsencode(os.path.join(opt.data, split))
        # Arrays, no lists: workers share them instead of copying them page by page
        self.paths, self.targets = info[f"{split}_paths"], info[f"{split}_targets"]

    def get(self, i):
        """Image i as float32 (3, H, W) in 0..1, and its class from 0; InputError if unreadable."""
        return read(self._path(i)), int(self.targets[i])

    def name(self, i):
        """What to call image i in a message: its file."""
        return os.fsdecode(self._path(i))

    def _path(self, i):
        return os.path.join(self.folder, bytes(self.paths[i]))

    def preprocessing(self):
        """How a test image becomes input, as plain values: what a model file tells its users."""
        return {
            "scale": self.opt.testScale,  # its shorter side, by Torch's bicubic
            "crop": self.opt.testCrop,  # the middle
            "largest": 1,  # what a white pixel is before mean and std are taken out
            "mean": MEAN,
            "std": STD,
        }

    def prepare(self):
        """A function (i, draws) that gives preprocess()(get(i)[0], draws), sooner, and the class.

        But for rounding: scaling is a sum of four products a direction, colour one affine map.
        It writes the image into its third argument, if it is given one.
        """
        from datasets import fused  # numba takes half a second: only for those who need it

        chain = self.preprocess()
        if self.split == "train":
            fast = fused.Training(chain)
        elif self.opt.tenCrop:
            return lambda i, draws, out=None: (chain(self.get(i)[0], draws), int(self.targets[i]))
        else:
            fast = fused.Testing(chain)

        room = np.empty(1 << 22, np.uint8)  # a million pixels
        decoder = turbojpeg.decoder() if self.split == "train" else None

        def prepared(i, draws, out=None):
            photo = decoding.Photo(self._path(i), room, decoder)
            if photo.deep:
                image = chain(_floats(photo.pixels, 1), draws)
            else:
                image = fast(photo, np.float32(1 / 255), draws, out)
            return image, int(self.targets[i])

        return prepared

    def size(self):
        """How many images there are."""
        return len(self.targets)

    def preprocess(self):
        """The transform of this split: (3, H, W) -> (3, 224, 224), for -tenCrop (10, 3, ...)."""
        if self.split == "train":
            return t.Compose(
                [
                    t.RandomSizedCrop(224),
                    t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
                    t.Lighting(0.1, EIGVAL, EIGVEC),
                    t.ColorNormalize(MEAN, STD),
                    t.HorizontalFlip(0.5),
                ]
            )
        crop = t.TenCrop if self.opt.tenCrop else t.CenterCrop
        return t.Compose(
            [t.Scale(self.opt.testScale), t.ColorNormalize(MEAN, STD), crop(self.opt.testCrop)]
        )


def read(source, largest=1):
    """An image as float32 RGB (3, H, W) in 0..largest; `source` is as in decoding.decode."""
    return _floats(decoding.decode(source), largest)


def load_image(source):
    """An image as uint8 RGB (3, H, W); `source` is as in decoding.decode."""
    planes = _planes(decoding.decode(source))
    if planes.dtype == np.uint16:
        planes = np.rint(planes / 257)  # 65535 is 255 times 257
    return np.ascontiguousarray(planes, dtype=np.uint8)


def _floats(pixels, largest):
    planes = _planes(pixels)
    white = 65535 if pixels.dtype == np.uint16 else 255
    # as in torch/image times the rounded reciprocal, which is not quite a division
    image = np.empty(planes.shape, np.float32)
    return np.multiply(planes, np.float32(largest / white), out=image, dtype=np.float32)


def _planes(pixels):
    """(3, H, W) of what decoding gives, in whatever memory order."""
    return pixels[:, :, :3].transpose(2, 0, 1)

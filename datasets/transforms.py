"""The image transforms, for one image: the reference for the batched and the fused ones.

Port of datasets/transforms.lua. An image is a float32 array (3, height, width). A transform is
called as `t(image, draws)`. `draws` is a `datasets.draws.Draws` or has its methods; the random
numbers are drawn in the Lua's order. Nothing is clamped.

Differs from the Lua: Brightness, Contrast and Saturation return a new image and do not change their
input; RandomSizedCrop takes at least one pixel, so that it does not fail on a tiny image.
"""

import math
from dataclasses import dataclass

import numpy as np

from datasets.image.resize import crop, hflip, rotate, scale


def _round(value):
    """Round half up, like torch.round in Lua (Python rounds half to even); value >= 0."""
    return math.floor(value + 0.5)


@dataclass(frozen=True)
class Compose:
    """Apply transforms in order."""

    transforms: list

    def __call__(self, image, draws=None):
        for transform in self.transforms:
            image = transform(image, draws)
        return image


def parts(transform, *kinds):
    """The transforms of a chain if these are their types, in this order; else None.

    A subclass is another type. Fast paths and input specs read their values from these parts, so
    that they cannot differ from the chain.
    """
    chain = transform.transforms if type(transform) is Compose else [transform]
    return chain if [type(part) for part in chain] == list(kinds) else None


@dataclass(frozen=True)
class ColorNormalize:
    """(image - mean) / std for each colour."""

    mean: tuple
    std: tuple

    def __call__(self, image, draws=None):
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (image - mean[:, None, None]) / std[:, None, None]

    def spec(self):
        """mean and std as an input spec has them: tuples of three floats."""
        return {name: tuple((np.zeros(3) + value).tolist()) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Scale:
    """Resize the shorter side to `size`; the longer side is rounded down."""

    size: int
    interpolation: str = "bicubic"

    def __call__(self, image, draws=None):
        h, w = image.shape[1:]
        return scale(image, *self.lengths(w, h), self.interpolation)

    def lengths(self, w, h):
        """The new width and height."""
        if min(w, h) == self.size:
            return w, h
        # h / w * size in the Lua's order, which can round below a whole number: a 10 x 408 image
        # at 100 gives 4079
        if w < h:
            return self.size, int(h / w * self.size)
        return int(w / h * self.size), self.size


@dataclass(frozen=True)
class CenterCrop:
    """The centre crop. If the margins are uneven, the larger ones are left and top."""

    size: int

    def __call__(self, image, draws=None):
        h, w = image.shape[1:]
        return crop(image, *self.place(w, h), self.size, self.size)

    def place(self, w, h):
        """x and y of the crop."""
        return math.ceil((w - self.size) / 2), math.ceil((h - self.size) / 2)


@dataclass(frozen=True)
class RandomCrop:
    """A random crop after padding with zeros. Draws x, y; nothing if the image has this size."""

    size: int
    padding: int = 0

    def __call__(self, image, draws):
        p = self.padding
        if p > 0:
            image = np.pad(image, ((0, 0), (p, p), (p, p)))
        h, w = image.shape[1:]
        if w == self.size and h == self.size:
            return image
        x, y = draws.random(0, w - self.size), draws.random(0, h - self.size)
        return crop(image, x, y, self.size, self.size)


@dataclass(frozen=True)
class TenCrop:
    """Five crops, then the same of the flipped image: (3, h, w) -> (10, 3, size, size).

    The five are centre, top left, top right, bottom left, bottom right.
    """

    size: int

    def __call__(self, image, draws=None):
        n = self.size
        center = CenterCrop(n)
        right, bottom = image.shape[2] - n, image.shape[1] - n
        crops = []
        for view in (image, hflip(image)):
            crops.append(center(view))
            crops += [crop(view, x, y, n, n) for y in (0, bottom) for x in (0, right)]
        return np.stack(crops)


@dataclass(frozen=True)
class RandomScale:
    """Resize the shorter side to a random min_size..max_size (ResNet-style); round the longer."""

    min_size: int
    max_size: int

    def __call__(self, image, draws):
        h, w = image.shape[1:]
        size = draws.random(self.min_size, self.max_size)
        if w < h:
            return scale(image, size, _round(h / w * size))
        return scale(image, _round(w / h * size), size)


@dataclass(frozen=True)
class RandomSizedCrop:
    """A random crop of 8 to 100 % of the area, resized to `size` (Inception-style).

    The aspect ratio is 3/4 to 4/3 or its inverse. Each of up to ten attempts draws area, aspect and
    swap; the first crop that fits draws y, then x. If none fits: Scale and CenterCrop.
    """

    size: int

    def __call__(self, image, draws):
        rows, columns = image.shape[1:]
        region = self.region(columns, rows, draws)
        if region is None:
            return CenterCrop(self.size)(Scale(self.size)(image))
        x, y, w, h = region
        return scale(image[:, y : y + h, x : x + w], self.size, self.size)

    def region(self, columns, rows, draws):
        """x, y, width and height of the crop; None if no attempt fits."""
        for _ in range(10):
            area = draws.uniform(0.08, 1.0) * (rows * columns)
            aspect = draws.uniform(3 / 4, 4 / 3)  # uniform, not log-uniform
            w, h = _round(math.sqrt(area * aspect)), _round(math.sqrt(area / aspect))
            w, h = max(w, 1), max(h, 1)
            if draws.uniform() < 0.5:
                w, h = h, w
            if h <= rows and w <= columns:
                y, x = draws.random(0, rows - h), draws.random(0, columns - w)
                return x, y, w, h
        return None


@dataclass(frozen=True)
class HorizontalFlip:
    """Flip with probability `prob`. Draws one number."""

    prob: float

    def __call__(self, image, draws):
        return hflip(image) if self.drawn(draws) else image

    def drawn(self, draws):
        """Draw whether to flip this image."""
        return draws.uniform() < self.prob


@dataclass(frozen=True)
class Rotation:
    """Rotate by up to `deg` / 2 degrees either way. Draws one number, none if `deg` is 0."""

    deg: float

    def __call__(self, image, draws):
        if self.deg == 0:
            return image
        return rotate(image, (draws.uniform() - 0.5) * self.deg * math.pi / 180)


@dataclass(frozen=True)
class Lighting:
    """AlexNet-style PCA noise. Draws three normals, none if `alphastd` is 0.

    `eigval`: (3,). `eigvec`: (3, 3), an eigenvector in each column. Computed in double, as in the
    Lua's workers.
    """

    alphastd: float
    eigval: tuple
    eigvec: tuple

    def __call__(self, image, draws):
        return image + self.shift(draws).astype(np.float32)[:, None, None]

    def shift(self, draws):
        """Draw the value to add to each colour: float64 (3,)."""
        if self.alphastd == 0:
            return np.zeros(3)
        alpha = np.array([draws.normal(0, self.alphastd) for _ in range(3)])
        return np.sum(np.array(self.eigvec) * alpha * np.array(self.eigval), axis=1)


def _blend(image, other, alpha):
    """alpha * image + (1 - alpha) * other."""
    return image * np.float32(alpha) + np.float32(1 - alpha) * other


@dataclass(frozen=True)
class _Blend:
    """A blend of the image and something else; the image's weight is 1 - var to 1 + var."""

    var: float

    def alpha(self, draws):
        """Draw the weight of the image: one number."""
        return 1 + draws.uniform(-self.var, self.var)


def _grayscale(image):
    """Luminance: (3, h, w) -> (h, w)."""
    red, green, blue = image
    gray = np.float32(0.299) * red
    gray += np.float32(0.587) * green
    gray += np.float32(0.114) * blue
    return gray


class Saturation(_Blend):
    """A blend with the gray image."""

    def __call__(self, image, draws):
        return _blend(image, _grayscale(image), self.alpha(draws))


class Brightness(_Blend):
    """A blend with black."""

    def __call__(self, image, draws):
        return image * np.float32(self.alpha(draws))


class Contrast(_Blend):
    """A blend with the mean of the gray image, computed from the input of this transform."""

    def __call__(self, image, draws):
        alpha = self.alpha(draws)
        mean = np.float32(_grayscale(image).mean(dtype=np.float64))
        return _blend(image, mean, alpha)


class RandomOrder(Compose):
    """Apply all transforms in a random order, which is drawn first."""

    def __call__(self, image, draws):
        return Compose(self.order(draws))(image, draws)

    def order(self, draws):
        """Draw the order: a list of the transforms."""
        if not self.transforms:
            return []
        return [self.transforms[k] for k in draws.randperm(len(self.transforms))]


class ColorJitter(RandomOrder):
    """Brightness, Contrast and Saturation in random order; a strength of 0 leaves one out."""

    def __init__(self, brightness=0, contrast=0, saturation=0):
        strengths = ((Brightness, brightness), (Contrast, contrast), (Saturation, saturation))
        super().__init__([kind(var) for kind, var in strengths if var != 0])

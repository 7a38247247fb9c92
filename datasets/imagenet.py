"""ImageNet, or any folder laid out like it: reading one image, and what is done to it.

Port of datasets/imagenet.lua. Differs from the Lua: images that torch/image could not read are read
(BMP, grey with alpha, WebP, TIFF); a damaged or truncated one is named, not patched up; -testScale
and -testCrop. Of 16-bit colour Pillow reads the upper byte only: up to 1/257 off the original.
"""

import contextlib
import io
import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets import imagenet_gen
from datasets import transforms as t
from errors import InputError

try:
    import simplejpeg
except ImportError:  # it has no wheel for every system, and Pillow gives the same bytes
    simplejpeg = None

stem = "imagenet"

# Computed from a random subset of the ImageNet training images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
# Pillow warns above this many pixels and refuses twice as many. Its own limit is below what a
# telephone takes; this one still stops a broken header from asking for all the memory.
Image.MAX_IMAGE_PIXELS = 1 << 28


def classes(opt):
    """Names of the classes in the order of the targets: the folders in opt.data/train."""
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

        Scaling is equal to the last bit; colour jitter is one affine map and so rounded otherwise.
        """
        from datasets import fused  # numba takes half a second: only for those who need it

        chain = self.preprocess()
        if self.split == "train":
            fast = fused.Training(chain)
        elif self.opt.tenCrop:
            return lambda i, draws: (chain(self.get(i)[0], draws), int(self.targets[i]))
        else:
            fast = fused.Testing(chain)

        room = np.empty(1 << 22, np.uint8)  # a million pixels: fresh memory would cost time

        def prepared(i, draws):
            pixels = _decode(self._path(i), room)
            if pixels.dtype == np.uint16:
                image = chain(_floats(pixels, 1), draws)
            else:
                image = fast(pixels, np.float32(1 / 255), draws)
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
    """An image as float32 RGB (3, H, W) in 0..largest; `source` is as in load_image."""
    return _floats(_decode(source), largest)


def load_image(source):
    """An image as uint8 RGB (3, H, W), from a path (str, bytes, Path), an open file or Pillow.

    The format is told by content, not by name. Grey becomes three equal planes, a palette its
    colours; transparency is dropped and the orientation in EXIF ignored, as in the original.
    """
    planes = _planes(_decode(source))
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
    """(3, H, W) of what _decode gives, in whatever memory order."""
    return pixels[:, :, :3].transpose(2, 0, 1)


def _decode(source, room=None):
    """uint8 (H, W, 4), red, green, blue and nothing; of 16-bit grey uint16 (H, W, 3).

    It may lie in `room`, bytes that the caller does not need any more.
    """
    try:
        if isinstance(source, Image.Image):
            return _pixels(source)
        file = source
        if isinstance(source, (str, bytes, os.PathLike)):
            with open(source, "rb", buffering=0) as opened:
                data = opened.read()
            pixels = _jpeg(data, room)
            if pixels is not None:
                return pixels
            file = io.BytesIO(data)
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            return _pixels(image)
    except Exception as error:  # broken files make Pillow raise a dozen kinds
        raise InputError(f"cannot read the image {_name(source)!r}: {_reason(error)}") from None


def _name(source):
    if not isinstance(source, (str, bytes, os.PathLike)):  # a file knows its name, or Pillow does
        source = getattr(source, "name", None) or getattr(source, "filename", None)
    return os.fsdecode(source) if isinstance(source, (str, bytes, os.PathLike)) else "the data"


def _jpeg(data, room=None):
    """A colour or grey JPEG through libjpeg-turbo, or None for Pillow to see to.

    Pillow decodes by the same library, to the same bytes, but copies them twice. What is damaged in
    any way is left to it as well.
    """
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return None
    with contextlib.suppress(ValueError, RuntimeError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in ("YCbCr", "Gray") and height * width <= Image.MAX_IMAGE_PIXELS:
            if room is not None and 4 * height * width > len(room):
                room = None
            return simplejpeg.decode_jpeg(data, "RGBX", buffer=room, strict=True)
    return None


def _pixels(image):
    if image.mode == "F":
        raise InputError("its pixels are floating point numbers; 8 or 16 bit would be right")
    if image.mode.startswith("I"):  # "I;16" and its kin, or "I" for the same in 32 bits
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError("its pixels have 32 bits; 8 or 16 would be right")
        return np.repeat(grey.astype(np.uint16)[:, :, None], 3, axis=2)
    if "transparency" in image.info:  # Pillow may warn that it will be dropped
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image.convert("RGB").convert("RGBX"))


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its header is broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

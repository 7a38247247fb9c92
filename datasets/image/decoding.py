"""From an image file to its pixels: JPEG by libjpeg-turbo itself, all else through Pillow.

No Lua file of its own: the original called torch/image. Differs from it: images that it could not
read are read (BMP, grey with alpha, WebP, TIFF); a damaged or truncated one is named, not patched
up (damage.py). Of 16-bit colour Pillow reads the upper byte only: up to 1/257 off the original.
"""

import contextlib
import io
import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.image import damage
from runtime.errors import InputError

try:
    import simplejpeg
except ImportError:  # it has no wheel for every system, and Pillow gives the same bytes
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
# Pillow warns above this many pixels and refuses twice as many. Its own limit is below what a
# telephone takes; this one still stops a broken header from asking for all the memory.
Image.MAX_IMAGE_PIXELS = 1 << 28


class Photo:
    """An image file of which the part that is needed may be decoded alone.

    `shape` is (rows, columns). `room`: bytes for the pixels, used again for every image, since
    fresh memory would cost time. `decoder`: what turbojpeg.decoder() gave. `checked`: whether
    damage.check has found nothing in it before. `odd`: a phrase on what is wrong with it, though
    its pixels are whole, else "".
    """

    def __init__(self, path, room, decoder=None, checked=False):
        self.path, self.room, self.decoder, self.pixels = path, room, decoder, None
        with _named(path):
            self.data = _read(path)
            self.odd = "" if checked else damage.check(self.data)
        self.shape = decoder and not self.odd and decoder.shape(self.data)
        if not self.shape or self.shape[0] * self.shape[1] > Image.MAX_IMAGE_PIXELS:
            self._decode()

    @property
    def deep(self):
        """Whether it has 16 bits, as uint16 (H, W, 3) in `pixels`."""
        return self.pixels is not None and self.pixels.dtype == np.uint16

    def part(self, region):
        """(pixels, region within them) for a region (x, y, width, height) of the image.

        pixels: uint8 (H, W, 4) as of `decode`. InputError if it is damaged there.
        """
        if self.pixels is None:
            found = self.decoder.part(self.data, region, self.room)
            if found is not None:
                return found
            self._decode()
        return self.pixels, region

    def _decode(self):
        with _named(self.path):
            self.pixels, self.odd = _pixels_of(self.data, self.odd, self.room)
        self.shape = self.pixels.shape[:2]


def decode(source, report=None):
    """uint8 (H, W, 4), red, green, blue and nothing; of 16-bit grey uint16 (H, W, 3).

    `source` is a path (str, bytes, Path), an open file or Pillow's image. The format is told by
    content, not by name. Grey becomes three equal colours, a palette its colours; transparency is
    dropped and the orientation in EXIF ignored, as in the original. InputError if unreadable or
    damaged; report(phrase) is called for one that is odd but has all its pixels.
    """
    with _named(source):
        if isinstance(source, Image.Image):
            return _pixels(source)
        if isinstance(source, (str, bytes, os.PathLike)):
            data = _read(source)
        else:
            source.seek(0)
            data = source.read()
        pixels, odd = _pixels_of(data, damage.check(data))
        if odd and report:
            report(odd)
        return pixels


def load_image(source):
    """An image as uint8 RGB (3, H, W); `source` is as in `decode`."""
    planes = _planes(decode(source))
    if planes.dtype == np.uint16:
        planes = np.rint(planes / 257)  # 65535 is 255 times 257
    return np.ascontiguousarray(planes, dtype=np.uint8)


def floats(pixels, largest=1):
    """What `decode` gives as float32 RGB (3, H, W) in 0..largest."""
    planes = _planes(pixels)
    white = 65535 if pixels.dtype == np.uint16 else 255
    # as in torch/image times the rounded reciprocal, which is not quite a division
    image = np.empty(planes.shape, np.float32)
    return np.multiply(planes, np.float32(largest / white), out=image, dtype=np.float32)


def _planes(pixels):
    """(3, H, W) of what `decode` gives, in whatever memory order."""
    return pixels[:, :, :3].transpose(2, 0, 1)


def jpeg(data, room=None):
    """A colour or grey JPEG through simplejpeg, or None for Pillow to see to.

    Pillow decodes by the same library, to the same bytes, but copies them twice. What the library
    warns of is left to it as well.
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


def _read(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _pixels_of(data, odd, room=None):
    """The pixels, and what is odd about the file; `odd` is what damage.check said of it."""
    pixels = jpeg(data, room)
    if pixels is not None:
        return pixels, odd or ""
    odd = damage.check(data)  # again, since a file that was whole may be so no more
    pixels = _opened(io.BytesIO(data))
    warning = _warning(data)
    if odd is None and warning.startswith(("Corrupt", "Premature")):
        raise InputError(warning)  # a rare kind, of which nothing else tells
    return pixels, odd or warning


def _warning(data):
    """What libjpeg says of a JPEG file that it decodes; Pillow does not pass it on."""
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return ""
    try:
        colors = simplejpeg.decode_jpeg_header(data)[2]
        simplejpeg.decode_jpeg(data, "CMYK" if colors in ("CMYK", "YCCK") else "RGBX", strict=True)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def _opened(file):
    with Image.open(file, formats=FORMATS) as image:
        image.load()
        return _pixels(image)


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


@contextlib.contextmanager
def _named(source):
    """Turn whatever is raised into an InputError that says which image it was."""
    try:
        yield
    except Exception as error:  # broken files make Pillow raise a dozen kinds
        raise InputError(f"cannot read the image {_name(source)!r}: {_reason(error)}") from None


def _name(source):
    if not isinstance(source, (str, bytes, os.PathLike)):  # a file knows its name, or Pillow does
        source = getattr(source, "name", None) or getattr(source, "filename", None)
    return os.fsdecode(source) if isinstance(source, (str, bytes, os.PathLike)) else "the data"


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its header is broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

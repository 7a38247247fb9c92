"""From an image file to its pixels: JPEG with libjpeg-turbo, all other formats with Pillow.

Takes the place of the package torch/image. Differs from it: BMP, WebP, TIFF and grey with alpha can
be read; a damaged or truncated image is an error that names it (damage.py), and is not patched up.
Pillow reads only the upper byte of 16-bit colours: up to 1/257 off the original.
"""

import contextlib
import errno
import io
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.image import damage
from datasets.image.optional import simplejpeg
from runtime import regular_files
from runtime.errors import InputError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
# Pillow's default is too low for phone photos. This limit still stops a broken header from
# allocating all memory. Pillow itself refuses twice as many and warns of what is checked below.
LARGEST = Image.MAX_IMAGE_PIXELS = 1 << 28  # pixels
LONGEST = 8 * LARGEST  # bytes of a file
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Photo:
    """An image file that can be decoded in part: one region of it.

    `shape` is (rows, columns). `buffer`: a uint8 array for the pixels, reused for every image,
    because fresh memory costs time. `decoder`: the result of turbojpeg.decoder().
    `checked`: whether this file was read before and found whole. `odd`: a phrase that says what is
    wrong with a file whose pixels are whole, else "".
    """

    def __init__(self, path, buffer, decoder=None, checked=False):
        self.path, self.buffer, self.decoder, self.checked = path, buffer, decoder, checked
        self.pixels, self.odd = None, ""
        with _naming(path):
            self.data = _read(path)
        self.shape = decoder and decoder.shape(self.data)
        if not self.shape or self.shape[0] * self.shape[1] > LARGEST:
            self._decode()

    @property
    def is_16_bit(self):
        """Whether the image has 16 bits; `pixels` is uint16 (H, W, 3) then."""
        return self.pixels is not None and self.pixels.dtype == np.uint16

    def decode_region(self, region):
        """Decode at least a region (x, y, width, height): (pixels, the region within them).

        pixels: uint8 (H, W, 4) as from `decode`. InputError if the image is damaged there.
        """
        if self.pixels is None:
            x, y, width, height = region
            # a first reading goes on to the last row, because libjpeg reads no code below a region
            rows = height if self.checked else self.shape[0] - y
            try:
                pixels, (x, y, width, _) = self.decoder.decode_region(
                    self.data, (x, y, width, rows), self.buffer
                )
                return pixels, (x, y, width, height)
            except ValueError as error:
                with _naming(self.path):
                    damage.refuse(str(error))
            self._decode()
        return self.pixels, region

    def _decode(self):
        with _naming(self.path):
            self.pixels, self.odd = _decode_bytes(self.data, self.buffer)
        self.shape = self.pixels.shape[:2]


def decode(source, report=None):
    """The pixels as uint8 (H, W, 4), RGB and an unused byte; 16-bit grey as uint16 (H, W, 3).

    `source` is a path (str, bytes, Path), an open file or a Pillow image. The format is known from
    the content, not the name. Grey and palette images become RGB. Transparency is dropped and the
    EXIF orientation ignored, as in the original. InputError if unreadable or damaged. If the file
    is damaged but its pixels are whole, report(phrase) is called.
    """
    with _naming(source):
        if isinstance(source, Image.Image):
            return _to_rgbx(source)
        if isinstance(source, (str, bytes, os.PathLike)):
            data = _read(source)
        else:
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a pipe
                source.seek(0)
            data = source.read()
        pixels, odd = _decode_bytes(data)
        if odd and report:
            report(odd)
        return pixels


def load_image(source, report=None):
    """An image as uint8 RGB (3, H, W). `source`, `report`: see `decode`."""
    planes = _planes(decode(source, report))
    if planes.dtype == np.uint16:
        planes = np.rint(planes / 257)  # 65535 is 255 times 257
    return np.array(planes, np.uint8, order="C")  # of one pixel, the view would be contiguous, too


def floats(pixels, largest=1):
    """The pixels of `decode` as float32 RGB (3, H, W) in 0..largest."""
    planes = _planes(pixels)
    white = 65535 if pixels.dtype == np.uint16 else 255
    # torch/image multiplies by the rounded reciprocal, which differs slightly from a division
    image = np.empty(planes.shape, np.float32)
    return np.multiply(planes, np.float32(largest / white), out=image, dtype=np.float32)


def _planes(pixels):
    """The pixels of `decode` as a view (3, H, W)."""
    return pixels[:, :, :3].transpose(2, 0, 1)


def decode_jpeg(data, buffer=None):
    """A colour or grey JPEG decoded with simplejpeg, or None: then Pillow should decode it.

    Pillow uses the same library and gives the same bytes, but copies them twice. Files that the
    library warns of and rare kinds of JPEG are left to Pillow.
    """
    if simplejpeg is None or data[:2] != b"\xff\xd8" or damage.has_many_scans(data):
        return None
    with contextlib.suppress(ValueError, RuntimeError, KeyError):  # KeyError: 4:4:1
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in ("YCbCr", "Gray") and height * width <= LARGEST:
            if buffer is not None and 4 * height * width > len(buffer):
                buffer = None
            return simplejpeg.decode_jpeg(data, "RGBX", buffer=buffer, strict=True)
    return None


def _read(path):
    return regular_files.read_bytes(path, LONGEST)


def _decode_bytes(data, buffer=None):
    """(pixels, what is odd about the file: a phrase or "")."""
    pixels = decode_jpeg(data, buffer)
    if pixels is not None:
        return pixels, ""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > LARGEST:
            raise InputError(f"{image.width} x {image.height} pixels are more than {LARGEST}")
        odd = damage.check(data)
        image.load()
        return _to_rgbx(image), odd


def _to_rgbx(image):
    """The pixels of a Pillow image, in the form of `decode`."""
    if image.mode == "F":
        raise InputError("its pixels are floating point numbers; 8 or 16 bit would be right")
    if image.mode.startswith("I"):  # "I;16", "I;16B" and so on, or "I": the same in 32 bits
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError("its pixels have 32 bits; 8 or 16 would be right")
        return np.repeat(grey.astype(np.uint16)[:, :, None], 3, axis=2)
    if "transparency" in image.info:  # else Pillow may warn that it drops it
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image.convert("RGB").convert("RGBX"))


@contextlib.contextmanager
def _naming(source):
    """Turn any exception into an InputError that names the image."""
    try:
        yield
    except Exception as error:  # on broken files Pillow raises a dozen kinds
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise  # too many open files: -skipCorrupt must not leave out a good image
        raise InputError(
            f"cannot read the image {_source_name(source)!r}: {_reason(error)}"
        ) from None


def _source_name(source):
    if not isinstance(
        source, (str, bytes, os.PathLike)
    ):  # an open file or a Pillow image may know it
        source = getattr(source, "name", None) or getattr(source, "filename", None)
    return os.fsdecode(source) if isinstance(source, (str, bytes, os.PathLike)) else "the data"


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its header is broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

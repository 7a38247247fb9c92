"""From an image file to its pixels: JPEG with libjpeg-turbo, all other formats with Pillow.

Takes the place of the package torch/image. Differs from it: more formats can be read; a damaged or
truncated image is an error that names it (see damage.py). Of 16-bit colours Pillow reads only the
upper byte, which is up to 1/257 off the original; 16-bit grey is read in full.
"""

import contextlib
import errno
import io
import logging
import mmap
import os
import re
import tempfile
import warnings

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from datasets.image import damage
from datasets.image.damage import simplejpeg
from runtime import regular_files
from runtime.errors import InputError, cause
from runtime.terminal import note

Image.init()  # registers all formats; AVIF needs Pillow 11.3
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)
# Pillow's default is too low for phone photos. This limit still stops a broken header from
# allocating all memory. Pillow itself refuses twice as many, and warns above half of that.
LARGEST = Image.MAX_IMAGE_PIXELS = 1 << 28  # pixels
LONGEST = 8 * LARGEST  # bytes of a file
STRIP = 256  # rows that are converted at a time
# Pillow's warnings and errors would go to stderr
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

ALWAYS = (0, 0)  # no photo has this size: see upright_unless
# Tags of EXIF and TIFF
_ORIENTATION, _BITS, _PHOTOMETRIC, _BANDS, _SAMPLE_FORMAT = 274, 258, 262, 277, 339
# An orientation of 2 to 8 in EXIF: tag, type, one value; in big-endian and little-endian order
_TURNED = re.compile(
    rb"\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]|\x12\x01\x03\0\x01\0\0\0[\x02-\x08]\0"
)
# How to turn pixels upright, by orientation. 6 and 8 undo each other; the others undo themselves
_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
_NOT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE)  # too many open files
_LINES = (
    "some photos, such as {!r}, carry an orientation, which is ignored; to turn photos upright:"
    " mogrify -auto-orient FILE... (ImageMagick), or see docs/data.md",
    "some pictures are nearly black: no value in {!r} is above 1/16 of white; values of 12 bits"
    " in a file of 16 should be multiplied by 16, see docs/data.md",
    "photos such as {!r} are turned upright by their orientation",
)
# One byte for each line: whether it was printed. Shared with the workers, which are forks
_printed = mmap.mmap(-1, len(_LINES))


class Photo:
    """An image file that can be decoded in part: one region of it.

    `shape` is (rows, columns). `buffer`: a uint8 array for the pixels, reused for every image,
    because fresh memory costs time. `decoder`: the result of turbojpeg.decoder().
    `checked`: whether this file was read before without a fault. `odd`: what is wrong with a file
    whose pixels are all intact, or "".
    """

    def __init__(self, path, buffer, decoder=None, checked=False):
        self.path, self.buffer, self.decoder, self.checked = path, buffer, decoder, checked
        self.pixels, self.odd = None, ""
        with _naming(path):
            self.data = regular_files.read_bytes(path, LONGEST)
            if _is_turned(self.data):
                _note(0, path)
        self.shape = decoder and decoder.shape(self.data)
        if not self.shape or self.shape[0] * self.shape[1] > LARGEST:
            self._decode()

    def decode_region(self, region):
        """Decode at least a region (x, y, width, height): (pixels, the region within them).

        pixels: uint8 (H, W, 4) as from `decode`. InputError if the image is damaged there.
        """
        if self.pixels is None:
            x, y, width, height = region
            # The first reading goes on to the last row, because libjpeg stops below a region and
            # would not notice damage there
            part = x, y, width, height if self.checked else self.shape[0] - y
            try:
                pixels, (x, y, *_) = self.decoder.decode_region(self.data, part, self.buffer)
                return pixels, (x, y, width, height)
            except ValueError as error:
                with _naming(self.path):
                    damage.refuse(str(error))
            self._decode()
        return self.pixels, region

    def _decode(self):
        with _naming(self.path):
            self.pixels, self.odd, turn = _decode_bytes(self.data, self.path, self.buffer)
            if turn:
                _note(0, self.path)
        self.shape = self.pixels.shape[:2]


def decode(source, report=None, upright_unless=None):
    """The pixels as uint8 (H, W, 4), RGB and an unused byte; 16-bit grey as uint16 (H, W, 3).

    `source` is a path (str, bytes, Path), an open file or a Pillow image. The format is known from
    the content, not the name. Grey and palette images become RGB. Transparency is dropped and the
    EXIF orientation ignored, as in the original. InputError if unreadable or damaged. If the file
    is damaged but all pixels are intact, report(what is wrong) is called. upright_unless: (width,
    height); a photo of another size is turned as its orientation says.
    """
    with _naming(source):
        if isinstance(source, Image.Image):
            return _pixels(source, source)
        if isinstance(source, (str, bytes, os.PathLike)):
            data = regular_files.read_bytes(source, LONGEST)
        else:
            if not hasattr(source, "read"):
                kind = type(source).__name__
                raise InputError(f"{kind} is neither a file nor a Pillow image (Image.fromarray)")
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a pipe
                source.seek(0)
            data = source.read()
        pixels, odd, turn = _decode_bytes(data, source)
        if odd and report:
            report(odd)
        is_turned = turn and upright_unless not in (None, pixels.shape[1::-1])
        if turn:
            _note(2 if is_turned else 0, source)
        return turn(pixels) if is_turned else pixels


def load_image(source, report=None, upright_unless=None):
    """An image as uint8 RGB (3, H, W). The arguments: see `decode`."""
    planes = _planes(decode(source, report, upright_unless))
    if planes.dtype == np.uint16:
        planes = np.rint(planes / 257)  # 65535 is 255 times 257
    return np.array(planes, np.uint8, order="C")  # always a copy: a view of one pixel is contiguous


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

    Pillow uses the same library and gives the same bytes, but copies them twice. Rare kinds of
    JPEG, and files that the library warns about, are left to Pillow.
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


def _decode_bytes(data, source, buffer=None):
    """(pixels, what is wrong although they are intact, or "", function that turns them or None)."""
    pixels = decode_jpeg(data, buffer)
    if pixels is not None and not _is_turned(data):
        return pixels, "", None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(_unidentified(data)) from None
    with image:
        if pixels is not None:
            return pixels, "", _turn(image)
        if image.width * image.height > LARGEST:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{size} are more than the limit of {LARGEST}")
        odd = damage.check_photo(data)
        if image.format != "TIFF":
            image.load()
            return _pixels(image, source), odd, _turn(image)
        orientation = image.getexif().get(_ORIENTATION)
        _load_tiff(image)
        pixels, back = _pixels(image, source), {6: 8, 8: 6}.get(orientation, orientation)
        if orientation in _UPRIGHT:  # Pillow turns a TIFF when it loads the file
            pixels = np.ascontiguousarray(_UPRIGHT[back](pixels))
        return pixels, odd, _UPRIGHT.get(orientation)


def _load_tiff(image):
    """Load a TIFF. libtiff prints on stderr: its first line becomes the reason of an error."""
    with tempfile.TemporaryFile() as lines:
        stderr = os.dup(2)
        os.dup2(lines.fileno(), 2)
        try:
            image.load()
        except OSError as error:
            lines.seek(0)
            text = lines.read(1000).decode(errors="replace").splitlines() or [cause(error)]
            reason = text[0].removeprefix("tempfile.tif: ")
            raise InputError(f"its pixels are damaged or lost: {reason}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _pixels(image, source):
    """The pixels of a Pillow image, in the form of `decode`."""
    if image.mode == "F":
        raise InputError("its pixels are floating point numbers; 8 or 16 bit would be right")
    if image.mode.startswith("I"):  # "I;16", "I;16B" and so on, or "I": the same in 32 bits
        return _grey_16(image, source)
    deep = image.mode == "RGB" and image.format != "JPEG"  # may have had 16 bits
    if deep and not _printed[1] and 0 < np.max(image.getextrema()) < 16:
        _note(1, source)
    width, height = image.size
    pixels = np.empty((height, width, 4), np.uint8)
    for top in range(0, height, STRIP):  # a conversion of the whole would copy it three times
        strip = image.crop((0, top, width, min(top + STRIP, height)))
        strip.info.pop("transparency", None)  # Pillow may warn that it drops it
        pixels[top : top + STRIP] = np.asarray(strip.convert("RGB").convert("RGBX"))
    return pixels


def _grey_16(image, source):
    """The pixels of a grey Pillow image of more than 8 bits: uint16 (H, W, 3).

    White is 65535; the 12 bits of a TIFF are scaled to that.
    """
    grey, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = grey.min(), grey.max()
    if low < 0 or high > 65535:
        raise InputError(f"its pixels go from {low} to {high}; 0 to 65535 would be right")
    if tags.get(_BITS) == (12,):
        grey = np.rint(grey * (65535 / 4095))
    elif 0 < high < 65535 / 16:
        _note(1, source)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
        grey = 65535 - grey
    return np.broadcast_to(grey.astype(np.uint16)[:, :, None], (*grey.shape, 3))


def _is_turned(data):
    """Whether a JPEG file carries an orientation that turns the picture."""
    place = data.find(b"Exif\0\0", 0, 4096) if data[:2] == b"\xff\xd8" else -1
    return place >= 0 and _TURNED.search(data, place, place + 1000)


def _turn(image):
    """The function that turns a Pillow image's pixels upright; None if they are."""
    with contextlib.suppress(Exception):  # broken EXIF
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION))


def _note(which, source):
    """Print one of _LINES once in a run."""
    if not _printed[which]:
        _printed[which] = 1
        note("=> " + _LINES[which].format(_source_name(source)))


def _unidentified(data):
    """Why Pillow cannot open a file, according to its header."""
    brand, frame, kind = data[4:12], damage.frame(data), ""
    if brand in (b"ftypavif", b"ftypavis"):
        kind = "AVIF"
    elif brand in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"):
        kind = "HEIC"
    elif brand[:4] == b"jP  " or data[:4] == b"\xff\x4f\xff\x51":
        kind = "JPEG 2000"
    elif frame and frame[1] != 8:
        lossless = "lossless " if frame[0] in (0xC3, 0xC7, 0xCB, 0xCF) else ""
        kind = f"a {lossless}JPEG of {frame[1]} bits"
    elif data[:2] in (b"II", b"MM"):
        kind = _tiff_kind(data)
    if kind:
        return f"it is {kind}, which Pillow cannot read; export it as JPEG, or as PNG of 8 bits"
    return f"its format is not one of {', '.join(FORMATS)}, or its header is broken"


def _tiff_kind(data):
    """What is unusual about a TIFF; "" if its header is broken."""
    with contextlib.suppress(Exception):
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = np.max(tags.get(_BITS, 1))
        if tags.get(_BANDS, 1) > 4:
            return f"a TIFF of {tags[_BANDS]} bands"
        if np.max(tags.get(_SAMPLE_FORMAT, 1)) == 3:
            return f"a TIFF of {bits}-bit floating point numbers"
        return f"a TIFF of {bits} bits"
    return ""


@contextlib.contextmanager
def _naming(source):
    """Turn any exception into an InputError that names the image."""
    try:
        yield
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        if isinstance(error, MemoryError) or getattr(error, "errno", 0) in _NOT_OF_THE_FILE:
            raise  # the image may be good: -skipCorrupt must not leave it out
        name = _source_name(source)
        raise InputError(f"cannot read the image {name!r}: {cause(error)}") from None


def _source_name(source):
    kinds = (str, bytes, os.PathLike)
    if not isinstance(source, kinds):  # an open file or a Pillow image
        source = getattr(source, "name", None) or getattr(source, "filename", None)
    return os.fsdecode(source) if isinstance(source, kinds) else "the data"

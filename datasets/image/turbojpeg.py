"""Decodes one region of a JPEG image, with libturbojpeg 3 where it is installed.

libjpeg-turbo skips the colour conversion and inverse DCT outside the region, and stops below it.
simplejpeg and Pillow contain the same library and give the same bytes, but always decode whole
images.
"""

import contextlib
import ctypes
import os
import sys
from importlib import metadata

import numpy as np

from datasets.image import damage

# turbojpeg.h, version 3
_DECOMPRESS, _RGBX = 1, 2
_STOP_ON_WARNING, _SAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORS, _SCANS = 0, 4, 5, 6, 7, 8, 13
_YCBCR, _GRAY = 1, 2
# Width and height of a coded block (MCU) in pixels: 4:4:4, 4:2:2, 4:2:0, grey. Others are rare
_BLOCKS = {0: (8, 8), 1: (16, 8), 2: (16, 16), 3: (8, 8)}


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "width", "height")]


def decoder():
    """A Decoder, or None without libturbojpeg 3."""
    for path in _candidates():
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            if hasattr(library, "tj3SetCroppingRegion"):
                return Decoder(library)
    return None


def _candidates():
    """Paths to try: the system's library, the environment's (conda), PyPI's package turbojpeg."""
    name = "libturbojpeg.dylib" if sys.platform == "darwin" else "libturbojpeg.so.0"
    yield name
    for folder in (os.path.join(sys.prefix, "lib"), "/opt/homebrew/lib", "/usr/local/lib"):
        yield os.path.join(folder, name)
    try:
        files = metadata.files("turbojpeg") or ()
    except metadata.PackageNotFoundError:
        return
    yield from (str(f.locate()) for f in files if f.name.startswith("libturbojpeg"))


class Decoder:
    """One handle of the library. Only one thread may use it at a time."""

    def __init__(self, library):
        self.turbo, self.handle = library, None
        library.tj3Init.restype = ctypes.c_void_p
        library.tj3GetErrorStr.restype = ctypes.c_char_p
        self._new_handle()

    def _new_handle(self):
        """Replace the handle: after a broken file, a handle may refuse good files too."""
        self.__del__()
        self.handle = ctypes.c_void_p(self.turbo.tj3Init(_DECOMPRESS))
        if not self.handle:
            raise MemoryError("libturbojpeg")
        self.turbo.tj3Set(self.handle, _STOP_ON_WARNING, 1)
        self.turbo.tj3Set(self.handle, _SCANS, damage.MOST_SCANS)

    def __del__(self):
        if self.handle:
            self.turbo.tj3Destroy(self.handle)

    def shape(self, data):
        """(rows, columns) of a JPEG file that `decode_region` can decode, else None.

        A file without the end marker may be truncated. Decoding a region would not notice that.
        """
        if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9"):
            return None
        if self.turbo.tj3DecompressHeader(self.handle, data, ctypes.c_size_t(len(data))):
            self._new_handle()
            return None
        known = self._get(_SAMPLING) in _BLOCKS and self._get(_COLORS) in (_YCBCR, _GRAY)
        if not known or self._get(_PRECISION) != 8:
            return None
        return self._get(_HEIGHT), self._get(_WIDTH)

    def decode_region(self, data, region, buffer):
        """(pixels, the region within them) for a region (x, y, width, height).

        `data` must be that of the last call of `shape`. pixels: uint8 (H, W, 4), RGB and an
        unused byte; in `buffer` (a uint8 array) if they fit. ValueError with libjpeg's first
        warning, which may also be about lost pixels above or beside the region.
        """
        left, top, right, bottom = self._aligned(*region)
        rows, columns = bottom - top, right - left
        if 4 * rows * columns > len(buffer):
            buffer = np.empty(4 * rows * columns, np.uint8)
        pixels = buffer[: 4 * rows * columns].reshape(rows, columns, 4)
        area, size = _Region(left, top, columns, rows), ctypes.c_size_t(len(data))
        to = ctypes.c_void_p(pixels.ctypes.data)
        if self.turbo.tj3SetCroppingRegion(self.handle, area) or self.turbo.tj3Decompress8(
            self.handle, data, size, to, 4 * columns, _RGBX
        ):
            warning = self.turbo.tj3GetErrorStr(self.handle).decode(errors="replace")
            self._new_handle()
            raise ValueError(warning)
        x, y, width, height = region
        return pixels, (x - left, y - top, width, height)

    def _aligned(self, x, y, width, height):
        """left, top, right, bottom: the region grown to whole blocks, and one more on each side.

        The decoder smooths colours across block borders, so it needs the neighbours.
        """
        wide, high = _BLOCKS[self._get(_SAMPLING)]
        rows, columns = self._get(_HEIGHT), self._get(_WIDTH)
        left, top = max(x // wide - 1, 0) * wide, max(y // high - 1, 0) * high
        right, bottom = ((x + width - 1) // wide + 2) * wide, ((y + height - 1) // high + 2) * high
        return left, top, min(right, columns), min(bottom, rows)

    def _get(self, what):
        return self.turbo.tj3Get(self.handle, what)

"""Whether all pixels of a JPEG or PNG file are there: it is read through once.

libjpeg goes on after damage with a warning, and Pillow does not pass warnings on. So markers (ITU
T.81, annex B) and scans (entropy.py) are read here. Pillow does not check all checksums of a PNG.
Other formats have few or none: Pillow names a truncated file, but not every other damage.

Some changes leave valid codes for just as many blocks, and are not found: most single changed bits,
and now and then a piece of another photo. Without numba the scans are not read, because plain
Python takes too long: the markers are checked, and decoding.py asks libjpeg.
"""

import re
import zlib

import numpy as np
from PIL import Image

from datasets.image import optional
from datasets.image import scan_layout as e
from runtime.errors import InputError

_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
# arithmetic codes, lossless, hierarchical: rare, and not read here
_OTHERS = (0xC3, *range(0xC5, 0xC8), 0xC9, 0xCA, 0xCB, *range(0xCD, 0xD0))
_PNG = b"\x89PNG\r\n\x1a\n"
_SCANS = 100  # a progressive photo has about ten; each of a few bytes takes a pass over all pixels
_ZEROS = 64  # bytes: at least two blocks of the most common tables
# a marker that ends a scan: all but a stuffed zero, a fill byte and the restart markers
_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_LOST = "its pixels are damaged or lost: "


def check(data):
    """Names what is odd about a file with whole pixels: a phrase, "" mostly, or None.

    None: this cannot be known, for other formats, rare kinds of JPEG, and JPEG without numba.
    InputError if pixels are damaged or lost. Bytes after the image's end are ignored: phones put
    other things there.
    """
    if data.startswith(_PNG):
        return _png(data)
    if not data.startswith(b"\xff\xd8"):
        return None
    file = _File(data)
    try:
        return file.read()
    except InputError:
        if file.parts is None:
            return None  # the decoder will say that it is no picture
        raise
    except (IndexError, ValueError):
        if file.parts is None:
            return None
        raise InputError(f"{_LOST}a segment of its header is broken") from None


def _png(data):
    """As `check`: whether the chunks that hold the pixels are as their checksums say."""
    place, odd = len(_PNG), []
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        if end + 4 > len(data):
            break
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            if not name[0] & 32:  # a capital: it must be read
                raise InputError(f"{_LOST}a checksum does not agree")
            odd.append("a checksum of what is not its pixels does not agree")
        if name == b"IEND":
            return "; ".join(odd)
        place = end + 4
    return None  # cut short; the decoder will say


def _up(size, unit):
    """How many units cover a size."""
    return -(-size // unit)


class _File:
    """The state of reading one file."""

    def __init__(self, data):
        self.data, self.bytes = data, np.frombuffer(data, np.uint8)
        self.odd, self.restarts, self.scans = [], 0, 0
        self.quantizers, self.parts, self.precision = {}, None, {}

    def read(self):
        """See `check`."""
        self.entropy = optional.entropy()
        self.tables = np.zeros((8, e.TABLE), np.int32)
        self.tables[:, 512:530] = -1  # no codes
        place = 2
        while True:
            marker, place = self._marker(place)
            if marker == 0xD9:
                return self._done()
            if marker in _OTHERS or marker == 0xD8:
                return None  # the decoder will say
            if 0xD0 <= marker <= 0xD7 or marker == 0x01:
                continue
            length = int.from_bytes(self.data[place : place + 2], "big")
            segment = self.data[place + 2 : place + length]
            if length < 2 or len(segment) != length - 2:
                raise InputError(f"{_LOST}the file ends within its header")
            place += length
            if marker in (*_SEQUENTIAL, _PROGRESSIVE):
                height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
                if self.parts is not None or segment[0] != 8:
                    return None
                if height * width > Image.MAX_IMAGE_PIXELS:
                    return None
                self._frame(segment, marker == _PROGRESSIVE)
            elif marker == 0xC4:
                self._huffman(segment)
            elif marker == 0xDB:
                self._quantizer(segment)
            elif marker == 0xDD:
                self.restarts = int.from_bytes(segment[:2], "big")
            elif marker == 0xDA:
                place = self._scan(segment, place)

    def _marker(self, place):
        """The next marker, and the place behind it."""
        found = self.data.find(b"\xff", place)
        while found >= 0 and self.data[found + 1 : found + 2] == b"\0":
            found = self.data.find(b"\xff", found + 1)
        if found > place:
            self.odd.append(f"{found - place} bytes too many between two segments")
        while 0 <= found < len(self.data) and self.data[found] == 255:
            found += 1
        if found < 0 or found >= len(self.data):
            raise InputError(f"{_LOST}the file ends before the image does")
        return self.data[found], found + 1

    def _frame(self, segment, progressive):
        """SOF: the size, and the components by their number."""
        count = segment[5]
        height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
        rows = [segment[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        shares = [(row[1] >> 4, row[1] & 15) for row in rows]
        if not height or not width or not count or any(not 1 <= n <= 4 for s in shares for n in s):
            raise ValueError("sizes")
        wide, high = (max(share[i] for share in shares) for i in (0, 1))
        across, down = _up(width, 8 * wide), _up(height, 8 * high)
        self.progressive, self.mcus, offset, self.parts = progressive, across * down, 0, {}
        for row, (h, v) in zip(rows, shares):
            part = np.zeros(9, np.int64)
            part[[e.H, e.V, e.STRIDE, e.OFFSET]] = h, v, across * h, offset
            part[e.WIDTH] = _up(_up(width * h, wide), 8)
            part[e.HEIGHT] = _up(_up(height * v, high), 8)
            offset += across * h * down * v
            self.parts[row[0]] = part, row[2]
            self.precision[row[0]] = [-1] * 64  # the lowest bit that each coefficient has
        self.blocks, self.masks = offset, np.zeros(offset if progressive else 0, np.int64)

    def _huffman(self, segment):
        place = 0
        while place < len(segment):
            number = segment[place]
            counts = segment[place + 1 : place + 17]
            symbols = segment[place + 17 : place + 17 + sum(counts)]
            table = e.table(counts, symbols)
            if table is None or not len(symbols) == sum(counts) <= 256 or number & 0xEC:
                raise ValueError("table")
            self.tables[number >> 2 | number & 3] = table
            place += 17 + len(symbols)

    def _quantizer(self, segment):
        """DQT: of each table the first number, which is the DC coefficient's."""
        place = 0
        while place < len(segment):
            wide = segment[place] >> 4
            first = int.from_bytes(segment[place + 1 : place + 2 + (wide > 0)], "big")
            self.quantizers[segment[place] & 15] = first
            place += 65 + 64 * (wide > 0)

    def _scan(self, segment, place):
        """SOS and the codes behind it; the place of the marker behind these."""
        self.scans += 1
        if self.scans > _SCANS:
            raise InputError(f"it has more than {_SCANS} scans")
        count = segment[0]
        if self.parts is None or not 1 <= count <= 4 or len(segment) < 4 + 2 * count:
            raise ValueError("scan")
        first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
        if not self.progressive:
            if (first, last, bits) != (0, 63, 0):
                self.odd.append("odd numbers at the start of its scan")
            first, last, bits = 0, 63, 0
        high, low = bits >> 4, bits & 15
        if first > last or last > 63 or low > 13 or (first and count > 1):
            raise ValueError("scan")
        known = (self.progressive, first, last, high, low, self.restarts, self.mcus)
        parts = []
        for number, tables in zip(segment[1 : 1 + 2 * count : 2], segment[2 : 2 + 2 * count : 2]):
            if number not in self.parts:
                raise ValueError("component")
            part, quantizer = self.parts[number]
            part = part.copy()
            part[[e.DC, e.AC]] = tables >> 4 & 3, tables & 3
            # no picture has more than 1024; some room for what was changed without decoding it
            part[e.LIMIT] = 2048 // max(1, self.quantizers.get(quantizer, 1)) + 1
            parts.append(part)
            for k in range(first, last + 1):
                self.precision[number][k] = low
        end = self._codes(place, np.array(known, np.int64), np.array(parts))
        if not self.progressive and self._zeroed(place, end, 4 + parts[0][e.AC]):
            raise InputError(f"{_LOST}its scan has many zeros in a row")
        return end

    def _codes(self, place, known, parts):
        """Read the codes of a scan; the place of the marker behind them."""
        if self.entropy is None:
            found = _END.search(self.data, place)
            if found is None:
                raise InputError(_LOST + self._sentence(e.EARLY, 0))
            return found.start()
        codes = self.tables.ravel()
        status, number, end = self.entropy.scan(self.bytes, place, codes, known, parts, self.masks)
        if status == e.PADDED:
            self.odd.append("its scan is filled up in an odd way")
        elif status != e.WHOLE:
            raise InputError(_LOST + self._sentence(status, number))
        return end

    def _zeroed(self, place, end, table):
        """Whether zeros lie where they would stand for one coefficient after another.

        Where the code of zeros says that the rest of a block is empty, flat pictures have many.
        """
        symbol = self.tables[table, 0] & 255
        return symbol & 15 and self.data.find(bytes(_ZEROS), place, end) >= 0

    def _sentence(self, status, number):
        return {
            e.BAD_CODE: "its scan has a code that stands for nothing",
            e.LONG_BLOCK: "its scan goes past the end of a block",
            e.EARLY: "its scan ends before the image does",
            e.LEFT_OVER: f"its scan has {number} bytes too many",
            e.RESTART: "a restart marker is missing or out of order",
            e.RANGE: "its scan has a brightness out of range",
        }[status]

    def _done(self):
        if self.parts is None:
            raise InputError(f"{_LOST}it has no image")
        kept = [low for lows in self.precision.values() for low in lows]
        if any(low < 0 for low in kept) or any(kept):
            raise InputError(f"{_LOST}scans are missing at its end")
        phrase = "; ".join(dict.fromkeys(self.odd))
        return None if self.entropy is None and not phrase else phrase

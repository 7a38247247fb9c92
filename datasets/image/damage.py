"""Whether all pixels of a JPEG or PNG file are there.

libjpeg only warns about damage and goes on, and Pillow does not pass the warnings on. So a JPEG
file is decoded strictly: the first warning is an error. Damage that leaves valid codes for nearly
the right number of blocks is not found: most single changed bits, and sometimes a piece of another
photo, a missing piece, or a few percent of zeros.

Pillow does not check all checksums of a PNG. Other formats have few or none, so Pillow names a
truncated file, but not every other kind of damage.
"""

import re
import zlib

from runtime.errors import InputError

try:
    import simplejpeg
except ImportError:  # a new Python may lack it; then Pillow decodes, without libjpeg's warnings
    simplejpeg = None

_PNG = b"\x89PNG\r\n\x1a\n"
MOST_SCANS = 100  # a progressive photo has about ten, and each is a pass over all pixels
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_FRAME = re.compile(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf])..(.)", re.DOTALL)
_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xda-\xef\xfe])(..)", re.DOTALL)
# Warnings of strict decoding that leave the pixels intact (jerror.h)
_ODD = ("Invalid SOS parameters", "Unknown Adobe", "Warning: unknown JFIF")
# Refusals of TurboJPEG that say nothing of damage: rare sampling, four colours, MOST_SCANS
_LIMITS = ("tj", "Unsupported color conversion", "Progressive JPEG image has more than")


def check_photo(data):
    """What is wrong with a file whose pixels are intact, or "".

    InputError if pixels are damaged or lost. Bytes after the end of the image are ignored, because
    phones put other things there.
    """
    if data.startswith(_PNG):
        return _check_png(data)
    if not data.startswith(b"\xff\xd8"):
        return ""
    if has_many_scans(data):
        raise InputError(f"it has more than {MOST_SCANS} scans")
    complaint = _complaint(data)
    if complaint:
        refuse(_complaint(_without_metadata(data)))
    return "" if "ICC" in complaint else complaint  # colour profiles are not used


def refuse(complaint):
    """InputError if this warning or error of libjpeg means lost pixels."""
    if complaint and not complaint.startswith(_ODD + _LIMITS):
        raise InputError(f"its pixels are damaged or lost: {complaint}")


def has_many_scans(data):
    """Whether a JPEG file has so many scans that decoding could take hours."""
    return data.count(b"\xff\xda") > MOST_SCANS and len(_SCAN.findall(data)) > MOST_SCANS


def frame(data):
    """The coding (SOF0 to SOF15 as 0xC0 to 0xCF) and the bits of a JPEG file, or None."""
    if not data.startswith(b"\xff\xd8"):
        return None
    found = _FRAME.search(_without_metadata(data))
    return found and (found[1][0], found[2][0])


def _complaint(data):
    """libjpeg's first warning or error about a JPEG file, or ""."""
    for colors in ("RGBX", "CMYK") if simplejpeg else ():
        try:
            simplejpeg.decode_jpeg(data, colors, strict=True)
            break
        except (ValueError, RuntimeError) as error:
            if not str(error).startswith(_LIMITS):
                return str(error)
    return ""


def _without_metadata(data):
    """The JPEG file without APPn segments and without bytes between segments."""
    kept, place = [data[:2]], 2
    while segment := _SEGMENT.search(data, place):
        start, marker = segment.start(), segment[1][0]
        if marker == 0xDA:
            return b"".join(kept) + data[start:]
        place = segment.end() - 2 + int.from_bytes(segment[2], "big")
        if not 0xE0 <= marker <= 0xEF:
            kept.append(data[start:place])
    return data


def _check_png(data):
    """As `check_photo`, by the checksums of the chunks."""
    place, odd = len(_PNG), ""
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            if not name[0] & 32:  # a capital letter: the picture depends on this chunk
                raise InputError("its pixels are damaged or lost: a checksum does not match")
            odd = "a checksum does not match, but none of the pixels"
        if name == b"IEND":
            break
        place = end + 4
    return odd

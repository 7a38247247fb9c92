"""Pictures as JPEG files of every form, and the ways in which such files are damaged."""

import io
import itertools

import numpy as np
from PIL import Image


def picture(seed, height=200, width=264):
    """uint8 (height, width, 3): smooth parts, edges and texture, as a photo has them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    waves = [np.sin(a * x + b * y + c) for a, b, c in random.uniform(-1, 2, (6, 3))]
    image = np.stack([waves[i] + waves[i + 3] for i in range(3)], 2) * 40 + 128
    for _ in range(12):
        top, left = random.integers(0, (height - 20, width - 20))
        image[top : top + 40, left : left + 40] += random.uniform(-60, 60, 3)
    image[height // 3 :] += random.normal(0, 12, (height - height // 3, width, 1))
    return image.clip(0, 255).astype(np.uint8)


FORMS = {
    f"{'progressive' if progressive else 'baseline'} {sampling} {restarts}": {
        "kind": "L" if sampling == "grey" else "RGB",
        "progressive": progressive,
        **({} if sampling == "grey" else {"subsampling": sampling}),
        **({} if restarts == "plain" else {"restart_marker_rows": 1}),
    }
    for progressive, sampling, restarts in itertools.product(
        (False, True), ("4:4:4", "4:2:0", "grey"), ("plain", "restarts")
    )
}


def without_tables(data):
    """A frame of Motion-JPEG: a file of the standard Huffman tables, without them."""
    while (place := data.find(b"\xff\xc4")) >= 0:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        data = data[:place] + data[end:]
    return data


def sampled(luma, colors=3):
    """A baseline file whose first colour has these sampling factors.

    The codes of a grey file, 10 coded blocks (MCUs) of them, under a header of more colours.
    """
    across, down = luma >> 4, luma & 15
    data = jpeg("baseline grey plain", size=(40, 16 * (across * down + colors - 1)))
    place = data.index(b"\xff\xc0")
    size = (40 * down).to_bytes(2, "big") + (16 * across).to_bytes(2, "big")
    frame, scan = bytes([colors, 1, luma, 0]), bytes([colors, 1, 0])
    for color in range(2, colors + 1):
        frame, scan = frame + bytes([color, 0x11, 0]), scan + bytes([color, 0])
    data = data[: place + 3] + bytes([8 + 3 * colors, 8]) + size + frame + data[place + 13 :]
    place = data.index(b"\xff\xda")
    return data[: place + 3] + bytes([6 + 2 * colors]) + scan + data[place + 7 :]


def jpeg(form, seed=1, size=(200, 264), **more):
    """A file of that form, as bytes."""
    how = {"quality": 85, **FORMS[form], **more}
    file = io.BytesIO()
    Image.fromarray(picture(seed, *size)).convert(how.pop("kind")).save(file, "JPEG", **how)
    return file.getvalue()


def scan(data):
    """(first, last) byte of the coded data: after the first SOS header, before EOI."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), len(data) - 2


def _span(data, at, share):
    first, last = scan(data)
    left = first + int((last - first) * at)
    return left, min(left + max(1, int((last - first) * share)), last)


def _filled(value, share):
    def damage(data, at, other):
        left, right = _span(data, at, share)
        return data[:left] + bytes([value]) * (right - left) + data[right:]

    return damage


def _cut(end):
    def damage(data, at, other):
        return data[: _span(data, at, 0.1)[0]] + end

    return damage


def _zero_tail(data, at, other):
    return data[: _span(data, at, 0.1)[0]].ljust(len(data), b"\0")


def _random_tail(data, at, other):
    left = _span(data, at, 0.1)[0]
    noise = np.random.default_rng(left).integers(0, 256, len(data) - 2 - left, dtype=np.uint8)
    return data[:left] + noise.tobytes() + b"\xff\xd9"


def _hole(share):
    def damage(data, at, other):
        left, right = _span(data, at, share)
        return data[:left] + data[right:]

    return damage


def _spliced(data, at, other):
    left, right = _span(data, at, 0.2)
    first, last = _span(other, at, 0.2)
    return data[:left] + other[first:last] + data[right:]


def _other_tail(data, at, other):
    return data[: _span(data, at, 0.1)[0]] + other[_span(other, at, 0.1)[0] :]


KINDS = {
    "zeroed 5 %": _filled(0, 0.05),
    "zeroed 10 %": _filled(0, 0.1),
    "zeroed 30 %": _filled(0, 0.3),
    "set to 255, 10 %": _filled(255, 0.1),
    "cut": _cut(b""),
    "cut, end put back": _cut(b"\xff\xd9"),
    "cut, zeros put there": _zero_tail,
    "tail random": _random_tail,
    "hole 1 %": _hole(0.01),
    "hole 5 %": _hole(0.05),
    "hole 20 %": _hole(0.2),
    "piece of another": _spliced,
    "tail of another": _other_tail,
}
PLACES = (0.05, 0.3, 0.6, 0.85)


def damaged(kind, form, at):
    """A damaged file."""
    return KINDS[kind](jpeg(form), at, jpeg(form, seed=2))

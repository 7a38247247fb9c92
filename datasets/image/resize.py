"""scale, crop, hflip and rotate of torch/image, equal to the last bit.

Port of those functions of the Lua package `image` (init.lua, generic/image.c), for float32 arrays
(3, height, width). Every result is a new array. The C rounds some values to float32 and keeps
others in double; so does this file.
"""

import math

import numpy as np

from runtime.errors import InputError

LARGEST = 1 << 26  # pixels of a scaled image: 3 GB while it is made
_HALF = np.float32(0.5)


def _positions(size, length):
    """The positions of `length` output samples among `size` input samples, with aligned corners.

    Returns the index of the input to the left, int64 (length,), and the fraction of the way to the
    next one, float32 (length,). Torch computes both in float32, and always copies the last sample.
    """
    step = np.float32(size - 1) / np.float32(max(length - 1, 1))
    where = np.arange(length, dtype=np.float32) * step
    left = np.minimum(where.astype(np.int64), size - 1)
    fraction = where - left.astype(np.float32)
    left[-1], fraction[-1] = size - 1, 0
    return left, fraction


def _bicubic(plane, length):
    """Catmull-Rom over the rows: (size, n) -> (length, n). Shrinking is not antialiased.

    Beyond the border the plane continues in a straight line. The last sum is in double, as in the
    C. The arithmetic is in place because fresh arrays cost more than the sums.
    """
    size = len(plane)
    left, x = _positions(size, length)
    x = x[:, None]
    p0, p1, p2, p3 = (plane[np.clip(left + k, 0, size - 1)] for k in (-1, 0, 1, 2))
    head = np.searchsorted(left, 0, side="right")  # for these, p0 lies before the first row
    tail = np.searchsorted(left, size - 2)  # from here on, p3 lies after the last one
    p0[:head] = 2 * p1[:head] - p2[:head]
    p3[tail:] = 2 * p2[tail:] - p1[tail:]
    # p1 + x/2 (p2 - p0 + x (2 p0 - 5 p1 + 4 p2 - p3 + x (3 (p1 - p2) + p3 - p0)))
    cube = p1 - p2
    cube *= 3
    cube += p3
    cube -= p0
    square = 2 * p0
    square -= 5 * p1
    line = p2 - p0
    p2 *= 4
    square += p2
    square -= p3
    cube *= x
    cube += square
    cube *= x
    cube += line
    rise = np.multiply(cube, _HALF * x, dtype=np.float64)
    return np.add(p1, rise, out=p1, casting="same_kind")


def _bilinear_up(plane, length):
    left, x = _positions(len(plane), length)
    x = x[:, None]
    right = np.minimum(left + 1, len(plane) - 1)
    return (1 - x) * plane[left] + x * plane[right]


def _box_down(plane, length):
    """Each output row is the mean of the input rows that it covers, partly at both ends."""
    size = len(plane)
    ends = np.arange(1, length + 1, dtype=np.float32) * (np.float32(size) / np.float32(length))
    last = ends.astype(np.int64)
    part = ends - last.astype(np.float32)  # the covered part of row `last`
    first = np.append(0, last[:-1])
    rest = 1 - np.append(np.float32(0), part[:-1])  # the covered part of row `first`
    total = rest[:, None] * plane[first]
    weight = rest.copy()
    for k in range(1, int((last - first).max()) + 1):
        row = first + k
        share = np.where(row < last, 1, np.where((row == last) & (row < size), part, 0))
        share = share.astype(np.float32)
        total += share[:, None] * plane[np.minimum(row, size - 1)]
        weight += share
    return total / weight[:, None]


def _resize(plane, length, interpolation):
    """(size, n) -> (length, n)."""
    if length == len(plane):
        return plane
    if interpolation == "bicubic":
        return _bicubic(plane, length)
    return _bilinear_up(plane, length) if length > len(plane) else _box_down(plane, length)


def scale(image, width, height, interpolation="bicubic"):
    """image.scale of torch/image: (3, h, w) -> (3, height, width).

    "bicubic": Catmull-Rom with aligned corners, never antialiased. "bilinear": linear on the same
    grid when growing, the mean over the covered area when shrinking. No operator of PyTorch or
    Pillow equals either.
    """
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"interpolation is bicubic or bilinear, not {interpolation}")
    width, height = max(int(width), 1), max(int(height), 1)
    check_size(image, width, height)
    out = np.empty((len(image), height, width), np.float32)
    for plane, new in zip(image, out):
        # Width first, as in the original; transposed, since numpy gathers whole rows fast
        columns = _resize(np.ascontiguousarray(plane.T), width, interpolation)  # (width, h)
        new[:] = _resize(np.ascontiguousarray(columns.T), height, interpolation)
    return out


def check_size(image, width, height):
    """InputError if an image (3, h, w) would become too large: a thin strip, mostly."""
    if width * height > LARGEST:
        rows, columns = image.shape[1:]
        raise InputError(
            f"{columns}x{rows} pixels would become {width}x{height} when scaled, more than"
            f" {LARGEST} in all; cut the image into less extreme shapes"
        )


def crop(image, x, y, width, height):
    """A copy of the pixels x..x+width-1, y..y+height-1."""
    rows, columns = image.shape[1:]
    check_crop(columns, rows, x, y, width, height)
    return image[:, y : y + height, x : x + width].copy()


def check_crop(columns, rows, x, y, width, height):
    """InputError if the crop leaves the image of columns x rows pixels."""
    if x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise InputError(
            f"a crop of {width}x{height} pixels does not fit into an image of {columns}x{rows} "
            "(width x height); scale the image up or crop less"
        )


def hflip(image):
    """The image flipped left to right."""
    return image[:, :, ::-1].copy()  # torch takes no negative strides, even in one column


def _edge(position, size):
    """The neighbours of each position, the weight of the second, and whether they exist."""
    low = np.floor(position).astype(np.int64)
    high = low + 1
    weight = position - low.astype(np.float32)
    # Up to half a pixel outside, both neighbours are the border pixel; further out the result is 0
    high = np.where((high == size) & (weight < 0.5), low, high)
    low_in = np.where((low == -1) & (weight > 0.5), high, low)
    inside = (high < size) & (low_in >= 0)
    return np.clip(low_in, 0, size - 1), np.clip(high, 0, size - 1), weight, inside


def rotate(image, theta):
    """image.rotate(image, theta, 'bilinear'): same size, black corners, theta in radians."""
    rows, columns = image.shape[1:]
    theta = float(np.float32(theta))
    xc, yc = (columns - 1) / 2, (rows - 1) / 2
    x = np.arange(columns)[None, :] - xc
    y = np.arange(rows)[:, None] - yc
    across = (math.cos(theta) * x - math.sin(theta) * y).astype(np.float32) + np.float32(xc)
    down = (math.cos(theta) * y + math.sin(theta) * x).astype(np.float32) + np.float32(yc)
    left, right, u, inside_x = _edge(across, columns)
    top, bottom, v, inside_y = _edge(down, rows)
    not_u, not_v = 1 - u.astype(np.float64), 1 - v.astype(np.float64)  # double, since C's 1.0 is
    value = not_u * not_v * image[:, top, left]
    value += u * not_v * image[:, top, right]
    value += not_u * v * image[:, bottom, left]
    value += u * v * image[:, bottom, right]  # a product of floats, as in the C
    return np.where(inside_x & inside_y, value, 0).astype(np.float32, order="C")

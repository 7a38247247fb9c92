"""The inner loops of the input, compiled by numba: Torch's bicubic, colour, CIFAR's augmentation.

No Lua file. What they compute is said by image.py, transforms.py and batched.py, which the tests
hold them against. They run on the calling thread alone and let others run meanwhile.

Importing this takes half a second, and some 10 s the first time, when all is compiled: into
the cache that numba keeps beside this file or in the user's folder; where it may write to neither,
each process compiles for itself.
"""

import numba
import numpy as np

_F, _U = np.float32, np.uint32
_HALF = np.float32(0.5)

CONTRAST, SATURATION, BRIGHTNESS = 0.0, 1.0, 2.0  # kinds of blends


def _compiled(signature):
    """numba.njit for one signature, at once: so that workers inherit it compiled."""

    def compile(function):
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:  # a cache that is full, damaged or nowhere; real errors come again
            return numba.njit(signature, nogil=True)(function)

    return compile


@numba.njit
def _positions(size, length):
    """image._positions, for all samples at once: int64 and float32, (length,) each."""
    step = _F(size - 1) / _F(max(length - 1, 1))
    left, fraction = np.empty(length, np.int64), np.empty(length, np.float32)
    for i in range(length):
        where = _F(i) * step
        left[i] = min(int(where), size - 1)
        fraction[i] = where - _F(left[i])
    left[length - 1], fraction[length - 1] = size - 1, 0
    return left, fraction


@numba.njit(inline="always")
def _cubic(p0, p1, p2, p3, x):
    """Catmull-Rom between p1 and p2, each operation rounded as in image._bicubic."""
    cube = (p1 - p2) * _F(3) + p3 - p0
    square = _F(2) * p0 - _F(5) * p1 + _F(4) * p2 - p3
    slope = (cube * x + square) * x + (p2 - p0)
    return _F(np.float64(p1) + np.float64(slope) * np.float64(_HALF * x))


@numba.njit(inline="always")
def _value(pixel, shift, unit):
    return _F(np.int32((pixel >> shift) & _U(255))) * unit


@numba.njit
def _edge(row, left, x, unit, shift):
    """A sample whose four pixels do not all exist: beyond the border a straight line goes on."""
    last = len(row) - 1
    p1, p2 = _value(row[left], shift, unit), _value(row[min(left + 1, last)], shift, unit)
    p0 = _value(row[left - 1], shift, unit) if left > 0 else _F(2) * p1 - p2
    p3 = _value(row[left + 2], shift, unit) if left + 2 <= last else _F(2) * p2 - p1
    return _cubic(p0, p1, p2, p3, x)


@numba.njit
def _gather(row, left, t0, t1, t2, t3):
    """The four pixels around each sample."""
    for i in range(len(left)):
        k = left[i]
        t0[i], t1[i], t2[i], t3[i] = row[k - _U(1)], row[k], row[k + _U(1)], row[k + _U(2)]


@numba.njit
def _scale_row(row, left, x, inner, unit, taps, out):
    """One row of pixels (w,) to the new width: out (3, n).

    inner: samples inner[0]..inner[1]-1 have all four pixels. taps: room, uint32 (4, n). Gathering
    whole pixels first leaves to the arithmetic what the processor can do 16 at a time.
    """
    begin, end = inner
    t0, t1 = taps[0, begin:end], taps[1, begin:end]
    t2, t3 = taps[2, begin:end], taps[3, begin:end]
    _gather(row, left[begin:end], t0, t1, t2, t3)
    between = x[begin:end]
    for c in range(3):  # alone in its loop, so that each shift is a constant
        shift, line = _U(8 * c), out[c, begin:end]
        for i in range(len(between)):
            p0, p1 = _value(t0[i], shift, unit), _value(t1[i], shift, unit)
            p2, p3 = _value(t2[i], shift, unit), _value(t3[i], shift, unit)
            line[i] = _cubic(p0, p1, p2, p3, between[i])
    for c in range(3):
        for i in range(begin):
            out[c, i] = _edge(row, np.int64(left[i]), x[i], unit, _U(8 * c))
        for i in range(end, len(left)):
            out[c, i] = _edge(row, np.int64(left[i]), x[i], unit, _U(8 * c))


@numba.njit
def _scale_rows(rows, x, out, j):
    """Four scaled rows, each (3, n), to row j of `out`, between the middle two."""
    p0, p1, p2, p3 = rows
    for c in range(3):
        a, b, d, e, line = p0[c], p1[c], p2[c], p3[c], out[c, j]
        for i in range(len(line)):
            line[i] = _cubic(a[i], b[i], d[i], e[i], x)


@numba.njit
def _extended(near, far, out):
    """The row that lies beyond `near` on the line from `far`."""
    for c in range(3):
        for i in range(out.shape[1]):
            out[c, i] = _F(2) * near[c, i] - far[c, i]
    return out


_pixels = numba.types.Array(numba.uint32, 2, "C", readonly=True)  # takes writable ones as well
_four, _five = (numba.types.UniTuple(numba.int64, n) for n in (4, 5))


@_compiled(numba.void(_pixels, _four, _five, numba.float32, numba.float32[:, :, ::1]))
def bicubic(pixels, region, window, unit, out):
    """image.scale of a part of an image, equal to the last bit: fills `out`, (3, rows, columns).

    pixels: (H, W), each red + 256 green + 65536 blue. region: (y, x, height, width), what to scale.
    window: (height, width, y, x, mirror), the size it is scaled to, where in that `out` begins, and
    whether `out` is mirrored. unit: what 1 of 255 becomes.
    """
    y, x, h, w = region
    height, width, first, start, mirror = window
    rows, columns = out.shape[1:]
    top, down = _positions(h, height)
    left, right = _positions(w, width)
    left, right = left[start : start + columns], right[start : start + columns]
    if mirror:
        left, right = left[::-1].copy(), right[::-1].copy()
    begin = end = 0
    for i in range(columns):
        if left[i] >= 1 and left[i] <= w - 3:
            if begin == end:
                begin = i
            end = i + 1
    cells, taps = left.astype(np.uint32), np.empty((4, columns), np.uint32)
    ring = np.empty((4, 3, columns), np.float32)  # row r of the image lies in ring[r % 4]
    before, after = np.empty((3, columns), np.float32), np.empty((3, columns), np.float32)
    done = -1
    for j in range(rows):
        t, fraction = top[first + j], down[first + j]
        for r in range(max(t - 1, done + 1), min(t + 3, h)):
            row = pixels[y + r, x : x + w]
            _scale_row(row, cells, right, (begin, end), unit, taps, ring[r % 4])
            done = r
        p1, p2 = ring[t % 4], ring[min(t + 1, h - 1) % 4]
        p0 = ring[(t - 1) % 4] if t > 0 else _extended(p1, p2, before)
        p3 = ring[(t + 2) % 4] if t + 2 < h else _extended(p2, p1, after)
        _scale_rows((p0, p1, p2, p3), fraction, out, j)


@numba.njit
def _means(planes):
    """The mean of each plane: red, green, blue, in float64."""
    _, h, w = planes.shape
    sums, means = np.empty(w), np.empty(3)
    for c in range(3):
        sums[:] = 0
        for y in range(h):
            row = planes[c, y]
            for x in range(w):  # a sum for each column: these can go on side by side
                sums[x] += np.float64(row[x])
        means[c] = sums.sum() / (h * w)
    return means


@numba.njit
def _blend(map, kind, alpha, means):
    """Blend the image with black, its gray or its mean gray: changes `map`, (3, 4)."""
    gray, level = np.zeros(4), 0.0
    for k in range(4):
        gray[k] = 0.299 * map[0, k] + 0.587 * map[1, k] + 0.114 * map[2, k]
    if kind == CONTRAST:
        level = gray[0] * means[0] + gray[1] * means[1] + gray[2] * means[2] + gray[3]
    for c in range(3):
        for k in range(4):
            map[c, k] *= alpha
            if kind == SATURATION:
                map[c, k] += (1 - alpha) * gray[k]
        map[c, 3] += (1 - alpha) * level


@_compiled("void(float32[:,:,::1], float64[:,::1], float64[::1], float64[::1], float64[::1])")
def color(planes, blends, shift, mean, std):
    """Jitter, lighting and ColorNormalize in one pass over an image (3, h, w), in place.

    blends: (n, 2), the kind and the alpha of each in turn. shift: what lighting adds. Nothing is
    clamped, so all is one affine map of a pixel once the image's mean colour is known; the map is
    made in float64.
    """
    means, map = _means(planes), np.zeros((3, 4))
    for c in range(3):
        map[c, c] = 1
    for k in range(len(blends)):
        _blend(map, blends[k, 0], blends[k, 1], means)
    for c in range(3):
        map[c, 3] += shift[c] - mean[c]
        for k in range(4):
            map[c, k] /= std[c]
    r0, r1, r2, r3 = _F(map[0, 0]), _F(map[0, 1]), _F(map[0, 2]), _F(map[0, 3])
    g0, g1, g2, g3 = _F(map[1, 0]), _F(map[1, 1]), _F(map[1, 2]), _F(map[1, 3])
    b0, b1, b2, b3 = _F(map[2, 0]), _F(map[2, 1]), _F(map[2, 2]), _F(map[2, 3])
    _, h, w = planes.shape
    for y in range(h):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(w):
            r, g, b = red[x], green[x], blue[x]
            red[x] = r0 * r + r1 * g + r2 * b + r3
            green[x] = g0 * r + g1 * g + g2 * b + g3
            blue[x] = b0 * r + b1 * g + b2 * b + b3


@_compiled("void(float32[:,:,::1], float32[::1], float32[::1])")
def normalize(planes, mean, std):
    """ColorNormalize in place, equal to the last bit: (3, h, w)."""
    for c in range(3):
        m, s = mean[c], std[c]
        for y in range(planes.shape[1]):
            row = planes[c, y]
            for x in range(len(row)):
                row[x] = (row[x] - m) / s


@_compiled("void(uint8[:,:,:,::1], float64[:,::1], float32[:,::1], int64, float32[:,:,:,::1])")
def augment(images, uniforms, values, padding, out):
    """ColorNormalize, HorizontalFlip(0.5) if it is drawn for, RandomCrop: equal to the last bit.

    images: (N, 3, H, W). uniforms: (N, 2 or 3), flip if any, x, y. values: (3, 256), what each byte
    becomes. out: (N, H, W, 3).
    """
    count, _, height, width = images.shape
    places = 2 * padding + 1
    red, green, blue = values[0], values[1], values[2]
    for n in range(count):
        draws = uniforms[n]
        mirror = len(draws) == 3 and draws[0] < 0.5
        x = int(draws[len(draws) - 2] * places) - padding
        y = int(draws[len(draws) - 1] * places) - padding
        begin, end = max(0, -x), min(width, width - x)  # of the crop, what the image covers
        step = -1 if mirror else 1
        first = width - 1 - (begin + x) if mirror else begin + x
        for row in range(height):
            line = out[n, row]
            if row + y < 0 or row + y >= height:
                line[:] = 0
                continue
            line[:begin] = 0
            line[end:] = 0
            r, g, b = images[n, 0, row + y], images[n, 1, row + y], images[n, 2, row + y]
            source = first
            for column in range(begin, end):
                line[column, 0] = red[r[source]]
                line[column, 1] = green[g[source]]
                line[column, 2] = blue[b[source]]
                source += step

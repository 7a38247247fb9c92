"""Kernels compiled by numba: Torch's bicubic resize, the colour transforms, CIFAR's augmentation.

resize.py, transforms.py and in_memory.py are their references, which the tests compare them with.
They run on the calling thread and release the GIL.

Importing this file takes half a second. The first import takes about 10 s, because numba compiles;
it caches the code beside this file or in the user's folder. If it can write to neither, each
process compiles.
"""

import numba
import numpy as np

_F, _U = np.float32, np.uint32

CONTRAST, SATURATION, BRIGHTNESS = 0.0, 1.0, 2.0  # kinds of blend


def compiled(signature):
    """numba.njit for one signature, compiled at once, so that forked workers inherit the code."""

    def compile(function):
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:  # the cache is full, damaged or not writable; other errors come again
            return numba.njit(signature, nogil=True)(function)

    return compile


@numba.njit
def _taps(size, length, first, count):
    """The filter taps that resize `size` pixels to `length`, for the outputs first..first+count-1.

    Returns the indices of four pixels for each output, uint32 (4, count), and their weights,
    float32 (4, count): Catmull-Rom at resize._positions. Beyond a border the pixels continue in a
    straight line; the weights contain that, so all indices lie inside.
    """
    indices, weights = np.empty((4, count), np.uint32), np.empty((4, count), np.float32)
    step = _F(size - 1) / _F(max(length - 1, 1))
    for n in range(count):
        where = _F(first + n) * step
        left = min(int(where), size - 1)
        x = np.float64(where - _F(left))
        if first + n == length - 1:
            left, x = size - 1, 0.0
        w0 = x * (-1 + x * (2 - x)) / 2
        w1 = 1 + x * x * (3 * x - 5) / 2
        w2 = x * (1 + x * (4 - 3 * x)) / 2
        w3 = x * x * (x - 1) / 2
        if left == 0:  # the first pixel would be 2 p1 - p2
            w0, w1, w2 = 0.0, w1 + 2 * w0, w2 - w0
        if left + 2 >= size:  # the last one 2 p2 - p1
            w1, w2, w3 = w1 - w3, w2 + 2 * w3, 0.0
        for k in range(4):
            indices[k, n] = min(max(left - 1 + k, 0), size - 1)
        weights[0, n], weights[1, n], weights[2, n], weights[3, n] = w0, w1, w2, w3
    return indices, weights


@numba.njit(inline="always")
def _channel(pixel, shift):
    """One colour of a packed pixel as float32: shift is 0, 8 or 16."""
    return _F(np.int32((pixel >> _U(shift)) & _U(255)))


@numba.njit(fastmath={"contract"})
def _scale_row(row, indices, weights, taps, out):
    """Resize one row of packed pixels (w,) to n: fills out (3, n). taps: scratch, uint32 (4, n).

    The pixels are gathered first, so that the processor can do the arithmetic for 16 at a time.
    """
    c0, c1, c2, c3 = indices[0], indices[1], indices[2], indices[3]
    t0, t1, t2, t3 = taps[0], taps[1], taps[2], taps[3]
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    red, green, blue = out[0], out[1], out[2]
    for i in range(len(t0)):
        t0[i], t1[i], t2[i], t3[i] = row[c0[i]], row[c1[i]], row[c2[i]], row[c3[i]]
    for i in range(len(t0)):
        p, q, r, s = t0[i], t1[i], t2[i], t3[i]
        a, b, c, d = w0[i], w1[i], w2[i], w3[i]
        red[i] = a * _channel(p, 0) + b * _channel(q, 0) + c * _channel(r, 0) + d * _channel(s, 0)
        green[i] = a * _channel(p, 8) + b * _channel(q, 8) + c * _channel(r, 8) + d * _channel(s, 8)
        blue[i] = (
            a * _channel(p, 16) + b * _channel(q, 16) + c * _channel(r, 16) + d * _channel(s, 16)
        )


@numba.njit(fastmath={"contract"})
def _combine_rows(rows, weights, out, j):
    """The weighted sum of four scaled rows, each (3, n), into row j of `out`."""
    (w0, w1, w2, w3), (r0, r1, r2, r3) = weights, rows
    for k in range(3):
        p, q, r, s, line = r0[k], r1[k], r2[k], r3[k], out[k, j]
        for i in range(len(line)):
            line[i] = w0 * p[i] + w1 * q[i] + w2 * r[i] + w3 * s[i]


_pixels = numba.types.Array(numba.uint32, 2, "C", readonly=True)  # accepts writable arrays too
_four, _five = (numba.types.UniTuple(numba.int64, n) for n in (4, 5))


@compiled(numba.void(_pixels, _four, _five, numba.float32, numba.float32[:, :, ::1]))
def bicubic(pixels, region, window, unit, out):
    """Resize a region of an image and fill `out`, (3, rows, columns), with a window of the result.

    Equals image.scale up to rounding.
    pixels: packed (H, W), red + 256 green + 65536 blue.
    region: (y, x, height, width), the part to resize.
    window: (height, width, y, x, mirror), the size it is resized to, the place of `out` in that,
    and whether `out` is mirrored.
    unit: the output for a byte of 1.
    """
    y, x, h, w = region
    height, width, first, start, mirror = window
    rows, columns = out.shape[1:]
    down, lower = _taps(h, height, first, rows)
    across, weights = _taps(w, width, start, columns)
    if mirror:
        across, weights = across[:, ::-1].copy(), weights[:, ::-1].copy()
    taps = np.empty((4, columns), np.uint32)
    ring = np.empty((4, 3, columns), np.float32)  # row r of the image lies in ring[r % 4]
    done = -1
    for j in range(rows):
        a, b, c, d = down[0, j], down[1, j], down[2, j], down[3, j]
        for r in range(max(np.int64(a), done + 1), np.int64(d) + 1):
            _scale_row(pixels[y + r, x : x + w], across, weights, taps, ring[r % 4])
            done = r
        four = (ring[a % 4], ring[b % 4], ring[c % 4], ring[d % 4])
        scaled = (lower[0, j] * unit, lower[1, j] * unit, lower[2, j] * unit, lower[3, j] * unit)
        _combine_rows(four, scaled, out, j)


@numba.njit
def _means(planes):
    """The mean of each plane: red, green, blue, in float64."""
    _, h, w = planes.shape
    sums, means = np.empty(w), np.empty(3)
    for c in range(3):
        sums[:] = 0
        for y in range(h):
            row = planes[c, y]
            for x in range(w):  # one sum for each column, so that the loop vectorises
                sums[x] += np.float64(row[x])
        means[c] = sums.sum() / (h * w)
    return means


@numba.njit
def _blend(matrix, kind, alpha, means):
    """Compose a blend with black, gray or the mean gray into the colour matrix (3, 4), in place."""
    gray, level = np.zeros(4), 0.0
    for k in range(4):
        gray[k] = 0.299 * matrix[0, k] + 0.587 * matrix[1, k] + 0.114 * matrix[2, k]
    if kind == CONTRAST:
        level = gray[0] * means[0] + gray[1] * means[1] + gray[2] * means[2] + gray[3]
    for c in range(3):
        for k in range(4):
            matrix[c, k] *= alpha
            if kind == SATURATION:
                matrix[c, k] += (1 - alpha) * gray[k]
        matrix[c, 3] += (1 - alpha) * level


@compiled("void(float32[:,:,::1], float64[:,::1], float64[::1], float64[::1], float64[::1])")
def color(planes, blends, shift, mean, std):
    """ColorJitter, Lighting and ColorNormalize in one pass over an image (3, h, w), in place.

    blends: (n, 2), the kind and alpha of each, in order. shift: the colour that Lighting adds.
    Nothing is clamped, so given the image's mean colour the whole is one affine map of each pixel.
    Its matrix (3, 4) is computed in float64.
    """
    means, matrix = _means(planes), np.zeros((3, 4))
    for c in range(3):
        matrix[c, c] = 1
    for k in range(len(blends)):
        _blend(matrix, blends[k, 0], blends[k, 1], means)
    for c in range(3):
        matrix[c, 3] += shift[c] - mean[c]
        for k in range(4):
            matrix[c, k] /= std[c]
    r0, r1, r2, r3 = _F(matrix[0, 0]), _F(matrix[0, 1]), _F(matrix[0, 2]), _F(matrix[0, 3])
    g0, g1, g2, g3 = _F(matrix[1, 0]), _F(matrix[1, 1]), _F(matrix[1, 2]), _F(matrix[1, 3])
    b0, b1, b2, b3 = _F(matrix[2, 0]), _F(matrix[2, 1]), _F(matrix[2, 2]), _F(matrix[2, 3])
    _, h, w = planes.shape
    for y in range(h):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(w):
            r, g, b = red[x], green[x], blue[x]
            red[x] = r0 * r + r1 * g + r2 * b + r3
            green[x] = g0 * r + g1 * g + g2 * b + g3
            blue[x] = b0 * r + b1 * g + b2 * b + b3


@compiled("void(uint8[:,:,:,::1], float64[:,::1], float32[:,::1], int64, float32[:,:,:,::1])")
def augment(images, uniforms, lookup, padding, out):
    """ColorNormalize, HorizontalFlip(0.5) and RandomCrop of a batch, equal to the last bit.

    images: (N, 3, H, W). uniforms: (N, 3) for flip, x, y; (N, 2) for x, y without flips. lookup:
    (3, 256), the normalised value of each byte. out: (N, H, W, 3).
    """
    count, _, height, width = images.shape
    offsets = 2 * padding + 1
    red, green, blue = lookup[0], lookup[1], lookup[2]
    for n in range(count):
        draws = uniforms[n]
        mirror = len(draws) == 3 and draws[0] < 0.5
        x = int(draws[len(draws) - 2] * offsets) - padding
        y = int(draws[len(draws) - 1] * offsets) - padding
        begin, end = max(0, -x), min(width, width - x)  # columns of the crop inside the image
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

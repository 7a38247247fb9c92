"""A scan of a JPEG file read code by code, without making pixels: is all of it there?

ITU T.81, annexes F and G. Stricter than libjpeg, which says nothing of a block with more than 64
coefficients, a run of empty blocks beyond the last one, or up to seven bytes too many. Compiled by
numba as kernels.py is; some 90 MB a second.
"""

import numba
import numpy as np

from datasets.image.jit import compiled
from datasets.image.scan_layout import (
    AC,
    BAD_CODE,
    DC,
    EARLY,
    FIRST,
    HEIGHT,
    HIGH,
    LARGEST,
    LAST,
    LEFT_OVER,
    LIMIT,
    LONG_BLOCK,
    LOW,
    MCUS,
    OFFSET,
    PADDED,
    PROGRESSIVE,
    RANGE,
    RESTART,
    RESTARTS,
    SHIFT,
    STRIDE,
    SYMBOLS,
    TABLE,
    WHOLE,
    WIDTH,
    H,
    V,
)

# the reader's state: place in the file, bits in hand, how many, of these made up after the end; the
# run of blocks without further coefficients
_PLACE, _BITS, _COUNT, _MADE_UP, _RUN = range(5)


@numba.njit(error_model="numpy", inline="always")
def _fill(data, s):
    """Have at least 49 bits in hand: those of the file, from its next marker on zeros."""
    place, count = s[_PLACE], s[_COUNT]
    bits = s[_BITS] & ((1 << count) - 1)
    while count <= 48:
        byte = 0
        if place >= len(data):
            s[_MADE_UP] += 8
        elif data[place] != 255:
            byte = np.int64(data[place])
            place += 1
        elif place + 1 < len(data) and data[place + 1] == 0:
            byte = 255
            place += 2
        else:
            s[_MADE_UP] += 8
        bits = bits << 8 | byte
        count += 8
    s[_PLACE], s[_BITS], s[_COUNT] = place, bits, count


@numba.njit(error_model="numpy")
def _symbol(data, s, codes, table):
    """The next symbol, with 32 bits in hand after it; -1 if there is no such code.

    `table`: where the table begins in `codes`.
    """
    if s[_COUNT] < 32:
        _fill(data, s)
    bits, count = s[_BITS], s[_COUNT]
    entry = np.int64(codes[table + (bits >> (count - 9) & 511)])
    if entry:
        s[_COUNT] = count - (entry >> 8)
        return entry & 255
    for length in range(10, 17):
        code = bits >> (count - length) & ((1 << length) - 1)
        if code <= codes[table + LARGEST + length]:
            s[_COUNT] = count - length
            return np.int64(codes[table + SYMBOLS + code + codes[table + SHIFT + length]])
    return np.int64(-1)


@numba.njit(error_model="numpy")
def _take(data, s, count):
    """The next bits, 0 to 16 of them, as a number."""
    if s[_COUNT] < 16:
        _fill(data, s)
    s[_COUNT] -= count
    return s[_BITS] >> s[_COUNT] & ((1 << count) - 1)


@numba.njit(error_model="numpy")
def _difference(data, s, codes, table):
    """What a DC coefficient differs by from the one before; 1 << 20 if there is no such code."""
    size = _symbol(data, s, codes, table)
    if size < 0 or size > 15:
        return np.int64(1 << 20)
    value = _take(data, s, size)
    return value - (1 << size) + 1 if size and value < 1 << (size - 1) else value


@numba.njit(error_model="numpy")
def _first(data, s, codes, table, known, masks, block):
    """Some AC coefficients of a block for the first time; masks: which are not 0, a bit each."""
    if s[_RUN]:
        s[_RUN] -= 1
        return WHOLE
    k = known[FIRST]
    while k <= known[LAST]:
        symbol = _symbol(data, s, codes, table)
        if symbol < 0:
            return BAD_CODE
        run, size = symbol >> 4, symbol & 15
        if size == 0 and run < 15:
            s[_RUN] = (1 << run) - 1 + _take(data, s, run)
            return WHOLE
        k += run
        if size:
            if k > known[LAST]:
                return LONG_BLOCK
            s[_COUNT] -= size
            masks[block] |= np.int64(1) << k
        k += 1
    return WHOLE if k <= known[LAST] + 1 else LONG_BLOCK


@numba.njit(error_model="numpy")
def _refined(data, s, codes, table, known, masks, block):
    """One more bit of them, and those that were 0 so far."""
    k, last, mask = known[FIRST], known[LAST], masks[block]
    while k <= last and s[_RUN] == 0:
        symbol = _symbol(data, s, codes, table)
        if symbol < 0:
            return BAD_CODE
        run, size = symbol >> 4, symbol & 15
        if size > 1:
            return BAD_CODE
        if size == 0 and run < 15:
            s[_RUN] = (1 << run) + _take(data, s, run)
            break
        _take(data, s, size)
        while k <= last:
            if mask >> k & 1:
                _take(data, s, 1)
            elif run == 0:
                break
            else:
                run -= 1
            k += 1
        if size:
            if k > last:
                return LONG_BLOCK
            masks[block] |= np.int64(1) << k
        elif k > last:
            return LONG_BLOCK
        k += 1
    if s[_RUN]:
        while k <= last:
            if mask >> k & 1:
                _take(data, s, 1)
            k += 1
        s[_RUN] -= 1
    return WHOLE


@numba.njit(error_model="numpy")
def _end(data, s):
    """(WHOLE, PADDED, EARLY or LEFT_OVER, bytes left over) after the last code before a marker.

    The bits that fill the last byte are ones, of some encoders zeros; bytes of either after it do
    no harm.
    """
    left = s[_COUNT] - s[_MADE_UP]
    if left < 0:
        return EARLY, 0
    if s[_RUN]:
        return LONG_BLOCK, 0
    bits = s[_BITS] >> s[_MADE_UP] & ((1 << left) - 1)
    place, count = s[_PLACE], left // 8
    after = left - left % 8  # bits of whole bytes
    filled = bits == 0 or bits == ((1 << left) - 1) >> after << after
    while place < len(data) and not (
        data[place] == 255 and place + 1 < len(data) and data[place + 1] != 0
    ):
        filled &= data[place] == 0
        place += 1
        count += 1
    s[_PLACE] = place
    if count == 0:
        return WHOLE if filled else PADDED, 0
    return PADDED if filled and count <= 16 else LEFT_OVER, count


@numba.njit(error_model="numpy")
def _restarted(data, s, number):
    """Go behind restart marker `number`; what the data before it and this are found to be."""
    status, count = _end(data, s)
    if status > PADDED:
        return status, count
    place = s[_PLACE]
    while place + 1 < len(data) and data[place + 1] == 255:
        place += 1
    if place + 1 >= len(data) or data[place + 1] != 0xD0 + number % 8:
        return RESTART, 0
    s[:] = 0
    s[_PLACE] = place + 2
    return status, count


@numba.njit(error_model="numpy", inline="always")
def _block(data, s, codes, known, parts, c, masks, block, before):
    """What a block of a progressive scan is found to be; `before`: each component's last DC."""
    table = (4 + parts[c, AC]) * TABLE
    if known[FIRST] == 0:
        if known[HIGH]:
            _take(data, s, 1)
            return WHOLE
        difference = _difference(data, s, codes, parts[c, DC] * TABLE)
        if difference == 1 << 20:
            return BAD_CODE
        before[c] += difference
        if abs(before[c] << known[LOW]) > parts[c, LIMIT]:
            return RANGE
        return WHOLE
    if known[HIGH]:
        return _refined(data, s, codes, table, known, masks, block)
    return _first(data, s, codes, table, known, masks, block)


@numba.njit(error_model="numpy")
def _merged(codes):
    """Of each table the 512 entries as _sequential wants them: bits << 8 | coefficients.

    bits: of a code and what belongs to it. coefficients: how many it stands for, 128 at the end of
    a block. 0: a longer code, or none.
    """
    merged = np.zeros(8 * 512, np.int32)
    for table in range(8):
        for n in range(512):
            entry = codes[table * TABLE + n]
            if entry:
                run, size = entry >> 4 & 15, entry & 15
                is_end = size == 0 and run < 15
                merged[table * 512 + n] = ((entry >> 8) + size) << 8 | (128 if is_end else run + 1)
    return merged


@numba.njit(error_model="numpy", inline="always")
def _filled(data, s, bits, count):
    """The bits in hand and their number, which is 32 at least."""
    if count < 32:
        place = s[_PLACE]
        if place + 4 <= len(data):
            at = np.uint64(place)  # numba would ask of a signed index whether it is negative
            word = (
                np.int64(data[at]) << 24
                | np.int64(data[at + np.uint64(1)]) << 16
                | np.int64(data[at + np.uint64(2)]) << 8
                | np.int64(data[at + np.uint64(3)])
            )
            if not (~word - 0x01010101) & word & 0x80808080:  # no byte is 255
                s[_PLACE] = place + 4
                return bits << 32 | word, count + 32
        s[_BITS], s[_COUNT] = bits, count
        _fill(data, s)
        return s[_BITS], s[_COUNT]
    return bits, count


@numba.njit(error_model="numpy", inline="always")
def _local_difference(data, s, codes, table, bits, count):
    """(_difference, bits, count), mostly from the bits in hand."""
    bits, count = _filled(data, s, bits, count)
    entry = np.int64(codes[table + (bits >> (count - 9) & 511)])
    size = entry & 255
    if entry and size < 16:
        count -= (entry >> 8) + size
        difference = bits >> count & ((1 << size) - 1)
        if size and difference < 1 << (size - 1):
            difference -= (1 << size) - 1
        return difference, bits, count
    s[_BITS], s[_COUNT] = bits, count
    difference = _difference(data, s, codes, table)
    return difference, s[_BITS], s[_COUNT]


@numba.njit(error_model="numpy")
def _sequential(data, s, codes, known, parts):
    """As `scan`, for a file that is not progressive.

    What most codes need is in local variables and in one entry of a table: a third of the time.
    """
    merged, found = _merged(codes), WHOLE
    before = np.zeros(4, np.int64)
    alone = len(parts) == 1
    total = parts[0, WIDTH] * parts[0, HEIGHT] if alone else known[MCUS]
    bits, count = np.int64(0), np.int64(0)
    for mcu in range(total):
        if known[RESTARTS] and mcu and mcu % known[RESTARTS] == 0:
            s[_BITS], s[_COUNT] = bits, count
            status, left = _restarted(data, s, mcu // known[RESTARTS] - 1)
            if status > PADDED:
                return status, left, s[_PLACE]
            found = max(found, status)
            before[:] = 0
            bits, count = np.int64(0), np.int64(0)
        for c in range(len(parts)):
            table = 4 + parts[c, AC]
            entries = table * 512
            for _ in range(1 if alone else parts[c, H] * parts[c, V]):
                first = parts[c, DC] * TABLE
                difference, bits, count = _local_difference(data, s, codes, first, bits, count)
                if difference == 1 << 20:
                    return BAD_CODE, 0, s[_PLACE]
                before[c] += difference
                if abs(before[c]) > parts[c, LIMIT]:
                    return RANGE, 0, s[_PLACE]
                k = 1
                while k < 64:
                    bits, count = _filled(data, s, bits, count)
                    entry = np.int64(merged[np.uint64(entries + (bits >> (count - 9) & 511))])
                    if entry:
                        count -= entry >> 8
                        k += entry & 255
                        continue
                    s[_BITS], s[_COUNT] = bits, count
                    symbol = _symbol(data, s, codes, table * TABLE)
                    if symbol < 0:
                        return BAD_CODE, 0, s[_PLACE]
                    run, size = symbol >> 4 & 15, symbol & 15
                    count = s[_COUNT] - size
                    k += 128 if size == 0 and run < 15 else run + 1
                if 64 < k < 128:
                    return LONG_BLOCK, 0, s[_PLACE]
        if count < s[_MADE_UP]:
            return EARLY, total - mcu, s[_PLACE]
    s[_BITS], s[_COUNT] = bits, count
    status, left = _end(data, s)
    return max(found, status), left, s[_PLACE]


@compiled(
    "UniTuple(i8, 3)(Array(u1, 1, 'C', readonly=True), i8, i4[::1], i8[::1], i8[:,::1], i8[::1])",
    error_model="numpy",
)
def scan(data, place, codes, known, parts, masks):
    """(what it is found to be, a number that belongs to it, the place of the marker behind it).

    data: uint8, the file. place: of the scan's first byte. codes: eight tables one after another,
    four for DC and four for AC. known, parts: see above, int64 (7,) and (components, 9). masks:
    int64, for each block of the image; kept from scan to scan.
    """
    s, found = np.zeros(5, np.int64), WHOLE
    s[_PLACE] = place
    if not known[PROGRESSIVE]:
        return _sequential(data, s, codes, known, parts)
    before = np.zeros(4, np.int64)
    alone = len(parts) == 1
    total = parts[0, WIDTH] * parts[0, HEIGHT] if alone else known[MCUS]
    across = parts[0, STRIDE] // parts[0, H]  # MCUs in a row
    for mcu in range(total):
        if known[RESTARTS] and mcu and mcu % known[RESTARTS] == 0:
            status, count = _restarted(data, s, mcu // known[RESTARTS] - 1)
            if status > PADDED:
                return status, count, s[_PLACE]
            found = max(found, status)
            before[:] = 0
        for c in range(len(parts)):
            for n in range(1 if alone else parts[c, H] * parts[c, V]):
                if alone:
                    row, column = mcu // parts[c, WIDTH], mcu % parts[c, WIDTH]
                else:
                    row = mcu // across * parts[c, V] + n // parts[c, H]
                    column = mcu % across * parts[c, H] + n % parts[c, H]
                block = parts[c, OFFSET] + row * parts[c, STRIDE] + column
                status = _block(data, s, codes, known, parts, c, masks, block, before)
                if status:
                    return status, 0, s[_PLACE]
        if s[_COUNT] < s[_MADE_UP]:
            return EARLY, total - mcu, s[_PLACE]
    status, count = _end(data, s)
    return max(found, status), count, s[_PLACE]

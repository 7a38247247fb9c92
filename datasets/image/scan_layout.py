"""What damage.py gives to entropy.py for a scan of a JPEG file, and what it gets back.

Plain numbers, so that damage.py does without numba.
"""

import functools

import numpy as np

# what a scan is found to be
WHOLE, PADDED, BAD_CODE, LONG_BLOCK, EARLY, LEFT_OVER, RESTART, RANGE = range(8)
# columns of what `scan` is given for each component; LIMIT: of the DC coefficient's size
H, V, WIDTH, HEIGHT, STRIDE, OFFSET, DC, AC, LIMIT = range(9)
# what is known of the scan
PROGRESSIVE, FIRST, LAST, HIGH, LOW, RESTARTS, MCUS = range(7)
# a Huffman table: 512 entries for codes of up to 9 bits (length << 8 | symbol), then for each
# length its largest code, and what leads from a code to its symbol's place, then the symbols
LARGEST, SHIFT, SYMBOLS, TABLE = 512, 530, 548, 804


@functools.lru_cache(64)  # most files have the same four
def table(counts, symbols):
    """A Huffman table: int32 (TABLE,) of a DHT segment's 16 counts and its symbols, else None."""
    found, code, place = np.zeros(TABLE, np.int32), 0, 0
    found[LARGEST:SHIFT] = -1
    for length, count in enumerate(counts, 1):
        if count:
            if code + count > 1 << length:
                return None
            found[SHIFT + length] = place - code
            for _ in range(count if length <= 9 else 0):
                first = code << (9 - length)
                found[first : first + (1 << (9 - length))] = length << 8 | symbols[place]
                code, place = code + 1, place + 1
            if length > 9:
                code, place = code + count, place + count
            found[LARGEST + length] = code - 1
        code <<= 1
    found[SYMBOLS : SYMBOLS + len(symbols)] = list(symbols)
    return found

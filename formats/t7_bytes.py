"""Reads the two encodings of Torch7 files, binary and ascii: numbers, characters, tensor elements.

Port of torch7's DiskFile. t7.py knows what the numbers mean. Each count is compared with the bytes
left before anything is allocated; ValueError names the file and the byte.
"""

import re
import struct

import numpy as np
import torch

from runtime.options import EXACT

_KINDS = {
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
}
_CUDA = {f"Cuda{kind}": dtype for kind, dtype in _KINDS.items() if kind != "Float"}
DTYPES = {  # torch.ByteTensor, torch.CudaStorage, ... -> dtype
    f"torch.{kind}{what}": dtype
    for kind, dtype in {**_KINDS, **_CUDA, "Cuda": torch.float32}.items()
    for what in ("Tensor", "Storage")
}
NAMES = {dtype: f"torch.{kind}Tensor" for kind, dtype in _KINDS.items()}
_INT = struct.Struct("<i")
_TOKEN = re.compile(rb"\s{0,64}([-+.0-9A-Za-z]{1,40})(?![-+.\w])")  # as scanf: blanks, a number


def storage_name(name):
    """The storage that goes with a tensor: torch.FloatTensor -> torch.FloatStorage."""
    return name.replace("Tensor", "Storage")


class Source:
    """A cursor over the bytes of a file; it checks that bytes are there before it reads them."""

    def __init__(self, name, buffer):
        self.name, self.buffer = name, buffer
        self.position, self.size = 0, len(buffer)

    def fail(self, problem, at=None):
        """Raise ValueError with the file's name and a byte, by default the current one."""
        at = self.position if at is None else at
        raise ValueError(f"{self.name}: byte {at}: {problem}")

    def expect(self, count, size, what):
        """Refuse a negative count, or one of items of `size` bytes that exceeds the bytes left."""
        left = self.size - self.position
        if not 0 <= count * size <= left:
            self.fail(f"{count} {what}, but {left} bytes are left")

    def int(self):
        return self.numbers("i", 1)[0]

    def long(self):
        return self.numbers("q", 1)[0]

    def double(self):
        """A double; as an int if that is exact (minus zero stays a float)."""
        (number,) = self.numbers("d", 1)
        if abs(number) <= EXACT and number.is_integer() and (number or str(number) == "0.0"):
            return int(number)
        return number

    def text(self):
        return self.chars(self.int()).decode("utf-8", "surrogateescape")


class Binary(Source):
    least, long_format = 4, "q"  # the smallest value, nil, has 4 bytes

    def numbers(self, kind, count):
        kind = self.long_format if kind == "q" else kind
        size = struct.calcsize(kind)
        self.expect(count, size, "numbers")
        self.position += count * size
        return struct.unpack_from(f"<{count}{kind}", self.buffer, self.position - count * size)

    def int(self):  # the same as numbers("i", 1)[0], which would take most of the reading time
        self.expect(1, 4, "numbers")
        self.position += 4
        return _INT.unpack_from(self.buffer, self.position - 4)[0]

    def chars(self, count):
        self.expect(count, 1, "characters")
        self.position += count
        return self.buffer[self.position - count : self.position]

    def data(self, dtype, count):
        if dtype == torch.int64 and self.long_format == "i":
            return self.data(torch.int32, count).long()
        self.expect(count, dtype.itemsize, "elements")
        data = torch.empty(count, dtype=dtype)  # a copy: kernels may rely on alignment
        raw = data.view(torch.uint8).numpy()
        raw[:] = np.frombuffer(self.buffer, np.uint8, len(raw), self.position)
        self.position += len(raw)
        return data


class Ascii(Source):
    least = 2

    def numbers(self, kind, count):
        values = tuple(self._tokens(float if kind == "d" else int, count))
        self._line_end(count)
        return values

    def _tokens(self, convert, count):
        self.expect(count, 1, "numbers")
        for _ in range(count):
            match = _TOKEN.match(self.buffer, self.position)
            try:
                value = convert(match[1] if match else b"")
            except ValueError:
                self.fail("no number found")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                self.fail(f"the integer {value} is too large")
            self.position = match.end()
            yield value

    def _line_end(self, count):
        if count and self.buffer[self.position : self.position + 1] == b"\n":
            self.position += 1

    def chars(self, count):
        chars = Binary.chars(self, count)
        self._line_end(count)
        return chars

    def data(self, dtype, count):
        if dtype.itemsize == 1:  # bytes are raw in ascii files too
            return torch.from_numpy(np.array(bytearray(self.chars(count)))).view(dtype)
        self.expect(count, 1, "elements")
        start, real = self.position, dtype.is_floating_point
        tokens = self._tokens(float if real else int, count)
        values = torch.from_numpy(np.fromiter(tokens, float if real else np.int64, count))
        self._line_end(count)
        if not real and not torch.equal(values.to(dtype).long(), values):
            self.fail(f"a storage with elements too large for {dtype}", start)
        return values.to(dtype)

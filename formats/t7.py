"""Torch7 files: `load(path)` reads one as a tree of plain values, `save(path, value)` writes one.

Port of torch7's File.lua and of what Tensor and Storage write, in binary, which is Torch7's own
choice (its ascii files are not read). The tree has None, bool, int (whole Lua numbers up to 2^53),
float, str (surrogates for bytes that are not UTF-8), `Table`, `Object` (of a torch class),
`Function`, `Storage` and torch tensors. Sharing is kept: a table that occurs twice is one object,
tensors of one storage share memory. A tensor of a CUDA type is a CPU tensor with the type's name in
`.typename`.

Differs from Lua on purpose: no function is run and no class is looked up. A file with false
lengths, counts, indices or strides, or with bytes after the value, is refused before memory is
allocated for it: a ValueError names file and byte.
"""

import enum
import itertools
import math
import mmap
import re
import struct

import numpy as np
import torch

from runtime import regular_files
from runtime.options import EXACT
from storage import atomic

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION, FUNCTION_7, FUNCTION_8 = range(9)

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
_DEEPEST = 150  # levels of nesting; a net of the original has about 15
_HEADER_SINCE = {"nn.DataParallelTable": 2, "nn.GPU": 0}  # class: its first version with a header


def storage_name(name):
    """The storage that goes with a tensor: torch.FloatTensor -> torch.FloatStorage."""
    return name.replace("Tensor", "Storage")


class Table(dict):
    """A Lua table. As in Lua, a table is equal only to itself."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def __ne__(self, other):
        return self is not other

    def __repr__(self):  # short: a tree may be cyclic, deep and large
        return f"<table of {len(self)}>"

    def array(self):
        """The values at 1, 2, 3, ... up to the first that is missing, as a list."""
        return [self[n] for n in itertools.takewhile(self.__contains__, itertools.count(1))]


class Object(Table):
    """An instance of a torch class: the table of its fields, with the class's name and version.

    `header` is a table of GPUs that a few classes write before their fields.
    """

    __slots__ = ("typename", "version", "header")

    def __init__(self, typename, fields=(), version=1, header=None):
        super().__init__(fields)
        self.typename, self.version, self.header = typename, version, header

    def __repr__(self):
        return f"<{self.typename} of {len(self)} fields>"


class Boolean(enum.Enum):
    """A boolean as a key of a Table: in Python, unlike in Lua, True and 1 are the same key."""

    FALSE, TRUE = False, True


class Storage:
    """A torch storage: its type name, and its elements as a 1-d tensor."""

    def __init__(self, typename, data):
        self.typename, self.data = typename, data


class Function:
    """Stands for a Lua function, whose byte code is neither run nor kept."""


def load(path):
    """The value in a Torch7 file; ValueError if it cannot be read."""
    with regular_files.opened(path) as file:
        size = file.seek(0, 2)
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        return loads(data, str(path))


def loads(data, name="<bytes>"):
    """The value in the bytes of a Torch7 file; its tensors do not share memory with the bytes."""
    if not data:
        raise ValueError(f"{name}: byte 0: the file is empty")
    return _Reader(name, data).tree()


def save(path, value):
    """Write a tree as Torch7's torch.save does; it may have dict, list, tuple and bytes.

    A tensor is written with its whole storage; a storage that tensors share is written once.
    """
    with atomic.replacing(path) as file:
        Writer(file.write).tree(value)


class _Reader:
    """Builds the tree from the bytes of a file; it checks that bytes are there before it reads."""

    def __init__(self, name, buffer):
        self.name, self.buffer = name, buffer
        self.position, self.size = 0, len(buffer)
        self.objects = {}  # index -> (type, value)
        self.depth = 0  # of the value that is being read

    def tree(self):
        value = self._value()
        if self.position < self.size:
            self.fail(f"the value ends here, but {self.size - self.position} bytes follow")
        return value

    def fail(self, problem, at=None):
        """Raise ValueError with the file's name and a byte, by default the current one."""
        at = self.position if at is None else at
        raise ValueError(f"{self.name}: byte {at}: {problem}")

    def expect(self, count, size, what):
        """Refuse a negative count, or one of items of `size` bytes that exceeds the bytes left."""
        left = self.size - self.position
        if not 0 <= count * size <= left:
            self.fail(f"{count} {what}, but {left} bytes are left")

    def numbers(self, kind, count):
        size = struct.calcsize(kind)
        self.expect(count, size, "numbers")
        self.position += count * size
        return struct.unpack_from(f"<{count}{kind}", self.buffer, self.position - count * size)

    def int(self):  # the same as numbers("i", 1)[0], which would take most of the reading time
        self.expect(1, 4, "numbers")
        self.position += 4
        return _INT.unpack_from(self.buffer, self.position - 4)[0]

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

    def chars(self, count):
        self.expect(count, 1, "characters")
        self.position += count
        return self.buffer[self.position - count : self.position]

    def data(self, dtype, count):
        self.expect(count, dtype.itemsize, "elements")
        data = torch.empty(count, dtype=dtype)  # a copy: kernels may rely on alignment
        raw = data.view(torch.uint8).numpy()
        raw[:] = np.frombuffer(self.buffer, np.uint8, len(raw), self.position)
        self.position += len(raw)
        return data

    def _value(self):
        at = self.position
        kind = self.int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self.double()
        if kind == STRING:
            return self.text()
        if kind == BOOLEAN:
            return self.int() == 1
        if not 0 <= kind <= FUNCTION_8:
            self.fail(f"{kind} is not a type of Torch7 (0 to 8)", at)
        index = None if kind == FUNCTION else self.int()
        if index in self.objects:
            known, value = self.objects[index]
            if known != kind:
                self.fail(f"object {index} was of type {known} and is now of type {kind}", at)
            return value
        if self.depth == _DEEPEST:
            self.fail(f"values nested more than {_DEEPEST} deep", at)
        self.depth += 1
        read = {TABLE: self._table, TORCH: self._object}.get(kind, self._function)
        value = read(kind, index)
        self.depth -= 1
        return value

    def _table(self, kind, index):
        table = Table()
        self.objects[index] = kind, table
        return self._pairs(table, self.int())

    def _pairs(self, table, count):
        self.expect(count, 8, "pairs in a table")  # the smallest value, nil, has 4 bytes
        for _ in range(count):
            at = self.position
            key, value = self._value(), self._value()
            if key is None or (isinstance(key, float) and math.isnan(key)):
                self.fail(f"a table with the key {key}", at)
            key = Boolean(key) if isinstance(key, bool) else key
            if key in table:
                self.fail(f"a table with the key {key!r:.50} twice", at)
            if value is not None:
                table[key] = value
        return table

    def _function(self, kind, index):
        self.chars(self.int())
        function = Function()
        if index is not None:
            self.objects[index] = kind, function
        self._value()  # the table of its upvalues
        return function

    def _object(self, kind, index):
        at = self.position
        name, version = self.text(), 0  # the oldest files have no version before the name
        if re.fullmatch(r"V \d{1,9}", name):
            name, version = self.text(), int(name[2:])
        if name not in DTYPES:
            value = Object(name, version=version)
            self.objects[index] = kind, value
            self._fields(value, at)
        elif name.endswith("Storage"):
            value = Storage(name, self.data(DTYPES[name], self.long()))
        else:
            value = self._tensor(name)
        self.objects[index] = kind, value
        return value

    def _fields(self, value, at):
        if value.version >= _HEADER_SINCE.get(value.typename, math.inf):
            value.header = self._value()
        kind, index = self.int(), self.int()
        if kind != TABLE or index in self.objects:  # a table, not seen before
            self.fail(f"the fields of {value.typename:.50} are in an unknown form", at)
        self.objects[index] = kind, value
        self._pairs(value, self.int())

    def _tensor(self, name):
        at, ndim = self.position, self.int()
        if not 0 <= ndim <= 64:  # the most that PyTorch's operations support
            self.fail(f"a tensor of {ndim} dimensions", at)
        sizes, strides, offset = self.numbers("q", ndim), self.numbers("q", ndim), self.long()
        storage = self._value()
        if storage is None:
            storage, offset = Storage(storage_name(name), torch.empty(0, dtype=DTYPES[name])), 1
        if not isinstance(storage, Storage) or storage.typename != storage_name(name):
            self.fail(f"a {name} in something else than its storage", at)
        if ndim == 0:
            sizes, strides = (0,), (1,)
        last = -1 if 0 in sizes else sum((n - 1) * stride for n, stride in zip(sizes, strides))
        if (
            min(sizes + strides + (offset - 1,)) < 0
            or math.prod(max(n, 1) for n in sizes) >= 2**63
            or offset + last > len(storage.data)
        ):
            where = f"stride {strides} and offset {offset} in a storage of {len(storage.data)}"
            self.fail(f"a {name} of size {sizes}, {where}", at)
        start = storage.data.storage_offset() + offset - 1
        tensor = torch.empty(0, dtype=DTYPES[name])
        tensor.set_(storage.data.untyped_storage(), start, sizes, strides)
        if name not in NAMES.values():
            tensor.typename = name
        return tensor


class Writer:
    """Writes the tree, depth first."""

    def __init__(self, write):
        self.write = write
        self.seen = {}  # id -> (index, type name, the thing; alive, so that no other gets its id)

    def _numbers(self, kind, values):
        self.write(struct.pack(f"<{len(values)}{kind}", *values))

    def tree(self, value):
        if value is None:
            self._int(NIL)
        elif isinstance(value, (bool, Boolean)):
            self._int(BOOLEAN, int(value in (True, Boolean.TRUE)))
        elif isinstance(value, (int, float)):
            if abs(value) > EXACT and value != float(value):
                raise ValueError(f"{value} is not a Lua number, because those are doubles")
            self._int(NUMBER)
            self._numbers("d", [value])
        elif isinstance(value, (str, bytes)):
            self._int(STRING)
            self._text(value)
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, Storage):
            self._storage(value)
        elif isinstance(value, Object):
            self._object(value)
        elif isinstance(value, (dict, list, tuple)):
            self._table(value)
        else:
            raise ValueError(f"a {type(value).__name__} cannot be written to a Torch7 file")

    def _int(self, *values):
        for value in values:
            self._numbers("i", [value])

    def _text(self, text):
        chars = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        self._int(len(chars))
        self.write(chars)

    def _new(self, kind, key, name, thing):
        """Write type tag and index; True if the thing is new, so that its content must follow."""
        new = key not in self.seen
        index, known, _ = self.seen.setdefault(key, (len(self.seen) + 1, name, thing))
        if known != name:
            raise ValueError(f"a {known} and a {name} over the same memory")
        self._int(kind, index)
        if new and kind == TORCH:
            self._text(f"V {getattr(thing, 'version', 1)}")
            self._text(name)
        return new

    def _table(self, table):
        if not self._new(TABLE, id(table), "table", table):
            return
        pairs = table.items() if isinstance(table, dict) else enumerate(table, 1)
        pairs = [pair for pair in pairs if pair[1] is not None]
        self._int(len(pairs))
        for key, value in pairs:
            self.tree(key)
            self.tree(value)

    def _object(self, value):
        if not self._new(TORCH, id(value), value.typename, value):
            return
        if value.version >= _HEADER_SINCE.get(value.typename, math.inf):
            self.tree(value.header)
        self._table(Table(value))

    def _tensor(self, value):
        name = getattr(value, "typename", NAMES.get(value.dtype))
        if DTYPES.get(name) != value.dtype or value.ndim == 0:
            raise ValueError(f"a Torch7 file cannot hold {value.ndim}-d tensors of {value.dtype}")
        if not self._new(TORCH, id(value), name, value):
            return
        empty = value.shape == (0,)
        self._int(0 if empty else value.ndim)
        for numbers in ((), ()) if empty else (value.shape, value.stride()):
            self._numbers("q", numbers)
        self._numbers("q", [value.storage_offset() + 1])
        flat = torch.empty(0, dtype=value.dtype, device=value.device)
        flat.set_(value.untyped_storage())
        self.tree(Storage(storage_name(name), flat) if len(flat) else None)

    def _storage(self, value):
        key = (value.data.data_ptr(), len(value.data)) if len(value.data) else id(value)
        if self._new(TORCH, key, value.typename, value):
            self._numbers("q", [len(value.data)])
            self.write(value.data.detach().cpu().numpy())

"""Torch7 files: `load(path)` reads one as a tree of plain values, `save(path, value)` writes one.

Port of torch7's File.lua and of what Tensor and Storage write; reads binary and ascii. The tree has
None, bool, int (whole Lua numbers up to 2^53), float, str (surrogates for bytes that are not
UTF-8), `Table`, `Object` (of a torch class), `Function`, `Storage` and torch tensors. Sharing is
kept: a table that occurs twice is one object, tensors of one storage share memory. A tensor of a
CUDA type is a CPU tensor with the type's name in `.typename`.

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

import torch

from formats import t7_bytes
from formats.t7_bytes import DTYPES, NAMES, storage_name
from runtime import regular_files
from runtime.options import EXACT
from storage import atomic

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION, FUNCTION_7, FUNCTION_8 = range(9)

_DEEPEST = 150  # levels of nesting; a net of the original has about 15
_HEADER_SINCE = {"nn.DataParallelTable": 2, "nn.GPU": 0}  # class: its first version with a header


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
    """A Lua function, as data: its byte code, which is never run, and the table of its upvalues."""

    def __init__(self, code, upvalues=None, kind=FUNCTION_8):
        self.code, self.upvalues, self.kind = code, upvalues, kind


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
    if data[0] >= ord("0"):  # a binary file begins with a type tag, 0 to 8
        return _Reader(t7_bytes.Ascii(name, data)).tree()
    # A C long has 8 bytes, or 4 on Windows and 32-bit systems; the file does not say which.
    failures = []
    for long in "qi":
        source = t7_bytes.Binary(name, data)
        source.long_format = long
        try:
            return _Reader(source).tree()
        except ValueError as error:
            failures.append((source.position, error))
    raise max(failures, key=lambda failure: failure[0])[1]


def save(path, value):
    """Write a tree as Torch7's torch.save does, in binary; it may have dict, list, tuple and bytes.

    A tensor is written with its whole storage; a storage that tensors share is written once.
    """
    with atomic.replacing(path) as file:
        Writer(file.write).tree(value)


class _Reader:
    """Builds the tree."""

    def __init__(self, source):
        self.source, self.objects = source, {}  # objects: index -> (type, value)
        self.depth = 0  # of the value that is being read

    def tree(self):
        source, value = self.source, self._value()
        if source.buffer[source.position : source.position + 64].strip():
            source.fail(f"the value ends here, but {source.size - source.position} bytes follow")
        return value

    def _value(self):
        source, at = self.source, self.source.position
        kind = source.int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return source.double()
        if kind == STRING:
            return source.text()
        if kind == BOOLEAN:
            return source.int() == 1
        if not 0 <= kind <= FUNCTION_8:
            source.fail(f"{kind} is not a type of Torch7 (0 to 8)", at)
        index = None if kind == FUNCTION else source.int()
        if index in self.objects:
            known, value = self.objects[index]
            if known != kind:
                source.fail(f"object {index} was of type {known} and is now of type {kind}", at)
            return value
        if self.depth == _DEEPEST:
            source.fail(f"values nested more than {_DEEPEST} deep", at)
        self.depth += 1
        read = {TABLE: self._table, TORCH: self._object}.get(kind, self._function)
        value = read(kind, index)
        self.depth -= 1
        return value

    def _table(self, kind, index):
        table = Table()
        self.objects[index] = kind, table
        return self._pairs(table, self.source.int())

    def _pairs(self, table, count):
        source = self.source
        source.expect(count, 2 * source.least, "pairs in a table")
        for _ in range(count):
            at = source.position
            key, value = self._value(), self._value()
            if key is None or (isinstance(key, float) and math.isnan(key)):
                source.fail(f"a table with the key {key}", at)
            key = Boolean(key) if isinstance(key, bool) else key
            if key in table:
                source.fail(f"a table with the key {key!r:.50} twice", at)
            if value is not None:
                table[key] = value
        return table

    def _function(self, kind, index):
        function = Function(self.source.chars(self.source.int()), kind=kind)
        if index is not None:
            self.objects[index] = kind, function
        function.upvalues = self._value()
        return function

    def _object(self, kind, index):
        source, at = self.source, self.source.position
        name, version = source.text(), 0  # the oldest files have no version before the name
        if re.fullmatch(r"V \d{1,9}", name):
            name, version = source.text(), int(name[2:])
        if name not in DTYPES:
            value = Object(name, version=version)
            self.objects[index] = kind, value
            self._fields(value, at)
        elif name.endswith("Storage"):
            value = Storage(name, source.data(DTYPES[name], source.long()))
        else:
            value = self._tensor(name)
        self.objects[index] = kind, value
        return value

    def _fields(self, value, at):
        source = self.source
        if value.version >= _HEADER_SINCE.get(value.typename, math.inf):
            value.header = self._value()
        kind, index = source.int(), source.int()
        if kind != TABLE or index in self.objects:  # a table, not seen before
            source.fail(f"the fields of {value.typename:.50} are in an unknown form", at)
        self.objects[index] = kind, value
        self._pairs(value, source.int())

    def _tensor(self, name):
        source, at, ndim = self.source, self.source.position, self.source.int()
        if not 0 <= ndim <= 64:  # the most that PyTorch's operations support
            source.fail(f"a tensor of {ndim} dimensions", at)
        sizes, strides, offset = source.numbers("q", ndim), source.numbers("q", ndim), source.long()
        storage = self._value()
        if storage is None:
            storage, offset = Storage(storage_name(name), torch.empty(0, dtype=DTYPES[name])), 1
        if not isinstance(storage, Storage) or storage.typename != storage_name(name):
            source.fail(f"a {name} in something other than its storage", at)
        if ndim == 0:
            sizes, strides = (0,), (1,)
        last = -1 if 0 in sizes else sum((n - 1) * stride for n, stride in zip(sizes, strides))
        if (
            min(sizes + strides + (offset - 1,)) < 0
            or math.prod(max(n, 1) for n in sizes) >= 2**63
            or offset + last > len(storage.data)
        ):
            where = f"stride {strides} and offset {offset} in a storage of {len(storage.data)}"
            source.fail(f"a {name} of size {sizes}, {where}", at)
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

    def numbers(self, kind, values):
        self.write(struct.pack(f"<{len(values)}{kind}", *values))

    def chars(self, chars):
        self.write(chars)

    def data(self, flat):
        self.write(flat.numpy())

    def tree(self, value):
        if value is None:
            self._int(NIL)
        elif isinstance(value, (bool, Boolean)):
            self._int(BOOLEAN, int(value in (True, Boolean.TRUE)))
        elif isinstance(value, (int, float)):
            if abs(value) > EXACT and value != float(value):
                raise ValueError(f"{value} is not a Lua number, because those are doubles")
            self._int(NUMBER)
            self.numbers("d", [value])
        elif isinstance(value, (str, bytes)):
            self._int(STRING)
            self._text(value)
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, Storage):
            self._storage(value)
        elif isinstance(value, Function):
            self._function(value)
        elif isinstance(value, Object):
            self._object(value)
        elif isinstance(value, (dict, list, tuple)):
            self._table(value)
        else:
            raise ValueError(f"a {type(value).__name__} cannot be written to a Torch7 file")

    def _int(self, *values):
        for value in values:
            self.numbers("i", [value])

    def _text(self, text):
        chars = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        self._int(len(chars))
        self.chars(chars)

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

    def _function(self, value):
        if value.kind == FUNCTION:
            self._int(FUNCTION)
        elif not self._new(value.kind, id(value), "function", value):
            return
        self._int(len(value.code))
        self.chars(value.code)
        self.tree(value.upvalues)

    def _tensor(self, value):
        name = getattr(value, "typename", NAMES.get(value.dtype))
        if DTYPES.get(name) != value.dtype or value.ndim == 0:
            raise ValueError(f"a Torch7 file cannot hold {value.ndim}-d tensors of {value.dtype}")
        if not self._new(TORCH, id(value), name, value):
            return
        empty = value.shape == (0,)
        self._int(0 if empty else value.ndim)
        for numbers in ((), ()) if empty else (value.shape, value.stride()):
            self.numbers("q", numbers)
        self.numbers("q", [value.storage_offset() + 1])
        flat = torch.empty(0, dtype=value.dtype, device=value.device)
        flat.set_(value.untyped_storage())
        self.tree(Storage(storage_name(name), flat) if len(flat) else None)

    def _storage(self, value):
        key = (value.data.data_ptr(), len(value.data)) if len(value.data) else id(value)
        if self._new(TORCH, key, value.typename, value):
            self.numbers("q", [len(value.data)])
            self.data(value.data.detach().cpu())

"""Test support: files that are false or costly, by kind, and what one of them costs to refuse."""

import contextlib
import io
import math
import multiprocessing
import os
import pickle
import resource
import socket
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from typing import NamedTuple

import torch


def nested(kind, levels=60):
    """A value of a few hundred bytes whose repr, or hash, has 2^levels parts."""
    value = kind(["x"])
    for _ in range(levels):
        value = kind([value, value])
    return value


def deep(levels=150):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def cycle():
    value = [1]
    value.append(value)
    return value


class Call:
    """What unpickles as a call, and may then get attributes."""

    def __init__(self, function, *arguments, attributes=None):
        self.call = function, arguments, attributes

    def __reduce__(self):
        return self.call


SETTABLE = ("numel", "isfinite", "aminmax", "is_floating_point", "size", "detach", "clone", "min")


def answering(value, answer, names=SETTABLE):
    """What unpickles as nested dicts and parameters whose methods are another answer.

    names: the attributes that parameters get; dicts get all that they have.
    """
    if isinstance(value, torch.Tensor):
        rebuild = torch._utils._rebuild_parameter_with_state
        return Call(rebuild, value, False, OrderedDict(), dict.fromkeys(names, answer))
    if isinstance(value, dict):
        entries = [(name, answering(part, answer, names)) for name, part in value.items()]
        return Call(OrderedDict, entries, attributes=dict.fromkeys(dir(OrderedDict), answer))
    if isinstance(value, (list, tuple)):
        return type(value)(answering(part, answer, names) for part in value)
    return value


def settable():
    """All attributes that a file can give a parameter."""
    found = []
    for name in set(dir(torch.nn.Parameter)) - {"volatile"}:  # which warns
        with contextlib.suppress(Exception):  # most properties can only be read
            setattr(torch.nn.Parameter(torch.zeros(1)), name, 3)
            found.append(name)
    return found


# What a stranger may put in place of any value. Where a program checks nothing each does harm:
# in a comparison, a message, the JSON of the log, in arithmetic, in a tensor's memory.
VALUES = {
    **{"none": None, "true": True, "minus one": -1, "zero": 0, "zero real": 0.0, "real": 2.5},
    **{"negative": -2.5, "nan": math.nan, "infinity": math.inf, "10^400": 10**400, "2^62": 2**62},
    **{"text": "text", "control": "\x1b[31m\r\n\a\u202e", "surrogate": "\ud800", "empty": ""},
    **{"list": [], "tuple": (), "dict": {}, "numbers": [1, 2], "other key": {3: 4}},
    **{"nested lists": nested(list), "nested tuples": nested(tuple), "deep": deep()},
    "cycle": cycle(),
    "meta": torch.zeros(3, 9, device="meta"),
    "whole numbers": torch.zeros(3, 9, dtype=torch.int64),
    "tensor": torch.zeros(3, 9),
    "not finite": torch.full((3, 9), math.nan),
    "expanded": torch.zeros(1).expand(10**12),
    "sparse": torch.zeros(3, 9).to_sparse(),
    "half": torch.zeros(3, 9, dtype=torch.half),
    "complex": torch.zeros(3, 9, dtype=torch.complex64),
    "float8": torch.zeros(3, 9, dtype=torch.float8_e4m3fn),
}


def places(content, depth=3):
    """The path of keys to every value in nested dicts and lists, those themselves included."""
    found = []
    if depth and isinstance(content, (dict, list)):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            found += [(key,), *((key, *rest) for rest in places(content[key], depth - 1))]
    return found


def at(content, place):
    for key in place:
        content = content[key]
    return content


def changed(content, place, value):
    """A copy of nested dicts and lists with another value at one place."""
    key, *rest = place
    copy = content.copy()
    copy[key] = changed(content[key], rest, value) if rest else value
    return copy


def lacking(content, place):
    """A copy without the value at one place of dicts."""
    *above, last = place
    part = {key: value for key, value in at(content, above).items() if key != last}
    return changed(content, above, part) if above else part


# Special files


def special(folder):
    """{kind: path} of a FIFO, devices, a socket and links to them, in a folder."""
    found = {
        kind: str(folder / kind) for kind in ("fifo", "socket", "to zero", "to tty", "to fifo")
    }
    os.mkfifo(found["fifo"])
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may be no longer than 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir(here)
    for kind, target in [("to zero", "/dev/zero"), ("to tty", "/dev/tty"), ("to fifo", "fifo")]:
        os.symlink(target, found[kind])
    return {**found, "zero": "/dev/zero", "random": "/dev/urandom"}


# Small files that cost much


def _saved(value, **more):
    file = io.BytesIO()
    torch.save(value, file, **more)
    return file.getvalue()


def _rezipped(data, method=zipfile.ZIP_STORED, blow=0, again=0, before=b""):
    """A zip archive with its records compressed, larger, there twice, or behind other bytes."""
    file = io.BytesIO(before)
    file.seek(len(before))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", method) as new:
        for record in old.infolist():
            content = old.read(record)
            if "/data/" in record.filename:
                content += bytes(blow)
            for _ in range(1 + again * (record.filename.endswith("data.pkl"))):
                new.writestr(record.filename, content)
    return file.getvalue()


def _overlapping(count=2000, size=4_000_000):
    """A file of `size` bytes whose `count` records all are the same bytes."""
    file = io.BytesIO()
    torch.save({f"w{i}": torch.zeros(8) for i in range(2)}, file)
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as old, zipfile.ZipFile(data, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
        new.writestr("archive/data/9", bytes(size))
        first = new.infolist()[-1]
        for i in range(10, count):
            other = zipfile.ZipInfo(f"archive/data/{i}")
            names = ("header_offset", "CRC", "compress_size", "file_size", "compress_type")
            for name in names:
                setattr(other, name, getattr(first, name))
            new.filelist.append(other)
            new.NameToInfo[other.filename] = other
    return data.getvalue()


def _png(width, height):
    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = bytes(1 + (width + 7) // 8)
    packer, packed = zlib.compressobj(9), b""
    for _ in range(height):
        packed += packer.compress(row)
    packed += packer.flush()
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _many_scans(data, count):
    """A progressive JPEG whose first scan comes again and again."""
    first = data.index(b"\xff\xda")
    end = min(data.index(mark, first + 2) for mark in (b"\xff\xda", b"\xff\xc4"))
    return data[:end] + data[first:end] * count + data[end:]


def costly_models():
    """{kind: bytes} of .pth files."""
    state = {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    plain, old = _saved(state), _saved(state, _use_new_zipfile_serialization=False)
    keys = [[i * (2**61 - 1), None] for i in range(40_000)]
    calls = {
        "bytearray": Call(bytearray, 10**11),
        "tensor": Call(torch.FloatTensor, 10**11),
        "set of nested": Call(set, [nested(tuple)]),
        "punycode": Call(__import__("_codecs").encode, "\u0101\u0201" * 10**5, "punycode"),
    }
    return {
        "deflated": _rezipped(plain, zipfile.ZIP_DEFLATED, blow=2**26),
        "lzma": _rezipped(plain, zipfile.ZIP_LZMA, blow=2**20),
        "overlapping": _overlapping(),
        "twice": _rezipped(plain, again=1),
        "behind other bytes": _rezipped(plain, before=plain),
        "claims more": plain.replace(struct.pack("<H", 64 * 27), struct.pack("<H", 65000)),
        "old, claims more": old.replace(struct.pack("<H", 64 * 27), struct.pack("<H", 65000)),
        "nested key": _saved({**state, "x": Call(OrderedDict, [[nested(tuple), 1]])}),
        "equal hashes": _saved({**state, "x": Call(OrderedDict, keys)}),
        "many values": _saved({**state, "x": [None] * 1_100_000}),
        **{f"calls {name}": _saved({**state, "x": call}) for name, call in calls.items()},
        **{f"holds {name}": _saved({**state, "x": VALUES[name]}) for name in ("cycle", "deep")},
        **{f"old, {name}": pickle.dumps({"x": call}, 2) for name, call in calls.items()},
    }


def costly_images():
    """{kind: bytes} of image files."""
    from PIL import Image

    from support.damage import jpeg

    found = {"png of 2^28.1 pixels": _png(17_000, 17_000)}
    for kind in ("GIF", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.new("L", (32, 32)).save(file, kind)
        found[f"{kind} that claims"] = file.getvalue()
    side = struct.pack("<HH", 20_000, 20_000)
    found["GIF that claims"] = found["GIF that claims"].replace(struct.pack("<HH", 32, 32), side)
    side = struct.pack("<ii", 20_000, 20_000)
    found["BMP that claims"] = found["BMP that claims"].replace(struct.pack("<ii", 32, 32), side)
    found["PPM that claims"] = found["PPM that claims"].replace(b"32 32", b"20000 20000")
    for tag in (256, 257):
        old = struct.pack("<HHII", tag, 4, 1, 32), struct.pack("<HHIHH", tag, 3, 1, 32, 0)
        for form in old:
            new = struct.pack("<HHII", tag, 4, 1, 20_000)
            found["TIFF that claims"] = found["TIFF that claims"].replace(form, new)
    photo = jpeg("progressive 4:2:0 plain", size=(32, 40))
    found["JPEG of 30000 scans"] = _many_scans(photo, 30_000)
    for form in ("baseline 4:2:0 plain", "progressive 4:2:0 plain"):
        data = jpeg(form, size=(32, 40))
        large = data.replace(struct.pack(">HH", 32, 40), struct.pack(">HH", 65_000, 65_000))
        found[f"JPEG, {form}, that claims"] = large
    return found


class Cost(NamedTuple):
    """What became of a call in a process of its own."""

    told: str  # the message of an exception; "" if there was none
    kind: str  # the exception's class, or "accepted", "killed", "no end"
    seconds: float
    memory: int  # bytes above those before


def cost(function, *arguments, limit=20):
    """Call a function in a forked process, which has at most `limit` seconds and 8 GB."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, arguments))
    began = time.monotonic()
    process.start()
    theirs.close()
    result = ("", "no end", 0)
    if ours.poll(limit):
        try:
            result = ours.recv()
        except EOFError:
            result = ("", "killed", 0)
    process.kill()
    process.join()
    return Cost(*result[:2], time.monotonic() - began, result[2])


def _call(pipe, function, arguments):
    before = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # begin to count the peak again
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30),) * 2)
    try:
        function(*arguments)
        told, kind = "", "accepted"
    except BaseException as error:
        told, kind = str(error)[:1000], type(error).__name__
    pipe.send((told, kind, _memory("VmHWM") - before))


def _memory(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

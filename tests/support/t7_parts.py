"""Parts of .t7 files, assembled by hand as torch/File.lua writes them; whole ones, as bytes."""

import io
import struct

from formats import t7


def i(*values):
    return struct.pack(f"<{len(values)}i", *values)


def q(*values):
    return struct.pack(f"<{len(values)}q", *values)


def s(text):
    return i(len(text)) + text.encode()


def number(value):
    return i(1) + struct.pack("<d", value)


def torch_object(index, name, payload, version="V 1"):
    return i(4, index) + s(version) + s(name) + payload


def tensor(kind, sizes, strides, offset, storage, index=1):
    head = i(len(sizes)) + q(*sizes, *strides, offset)
    return torch_object(index, f"torch.{kind}Tensor", head + storage)


def storage(kind, elements, index=2):
    return torch_object(index, f"torch.{kind}Storage", q(len(elements)) + elements.tobytes())


def written(value):
    """The bytes of a file with this value."""
    file = io.BytesIO()
    t7.Writer(file.write).tree(value)
    return file.getvalue()

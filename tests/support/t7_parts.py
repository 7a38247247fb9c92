"""Parts of .t7 files, assembled by hand as torch/File.lua writes them; whole ones, as bytes."""

import io
import struct

import torch

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


class AsciiWriter(t7.Writer):
    """Writes the other encoding, which the program only reads."""

    def chars(self, chars):
        self.write(chars + b"\n" if chars else b"")

    def numbers(self, kind, values):
        form = "%.17g" if kind == "d" else "%d"
        self.chars(" ".join(form % value for value in values).encode())

    def data(self, flat):
        if flat.element_size() == 1:
            self.chars(flat.numpy().tobytes())
            return
        form = "%d" if not flat.is_floating_point() else "%.9g"  # 9 and 17 digits are exact
        form = "%.17g" if flat.dtype == torch.float64 else form
        self.chars(" ".join(form % value for value in flat.tolist()).encode())


def written(value, ascii=False):
    """The bytes of a file with this value."""
    file = io.BytesIO()
    (AsciiWriter if ascii else t7.Writer)(file.write).tree(value)
    return file.getvalue()

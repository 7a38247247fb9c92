"""The files in which CIFAR-10 and CIFAR-100 are published: folders, archives, records, pickles.

Archives are read in place, never unpacked, and of a pickle only plain values and byte arrays are
rebuilt, so a file from a stranger can write nothing and run nothing.
"""

import io
import os
import pickle
import tarfile
import zlib

import numpy as np

from runtime.errors import InputError

PIXELS = 3 * 32 * 32
LARGEST = 1 << 28  # bytes; the largest real file has 154 million


def folder(path, names):
    """The contents of those of the named files that are in a folder: name -> bytes."""
    contents = {}
    for name in names:
        if os.path.isfile(os.path.join(path, name)):
            with open(os.path.join(path, name), "rb") as file:
                contents[name] = file.read()
    return contents


def archive(path, names):
    """The same from a tar archive, compressed or not, whatever folders it has.

    Members that are links, devices or folders are passed over, as are all other names.
    """
    contents = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isreg():
                    continue
                if name in contents or member.size > LARGEST:
                    fault = "twice" if name in contents else f"with {member.size} bytes"
                    raise InputError(f"{path} holds {name} {fault}: not the published archive")
                contents[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0]  # tarfile lists what each decompressor said
        raise InputError(f"{path} is damaged or not a .tar.gz archive: {reason}") from None
    return contents


def binary(data, where, label_bytes):
    """(images, labels) of the binary version: records of `label_bytes` labels and the pixels.

    Images are uint8 (N, 3, 32, 32), red plane first; labels int64 (N,), the last label of each
    record (CIFAR-100 has the coarse one before the fine one). `where` names the file in errors.
    """
    record = label_bytes + PIXELS
    if not data or len(data) % record:
        raise InputError(
            f"{where} has {len(data)} bytes: should be a whole number of records of {record}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def pickled(data, where, label_key):
    """The same of the python version: a dict with `data`, uint8 (N, 3072), and a list of labels."""
    try:
        content = _Unpickler(io.BytesIO(data), where).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{where} is not a pickle of the python version: {error!r}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} holds no dict: not a file of the python version")
    images, labels = (content.get(key, content.get(key.encode())) for key in ("data", label_key))
    if not isinstance(images, _Array) or not isinstance(labels, list):
        raise InputError(f"{where} lacks the array 'data' or the list {label_key!r}")
    images = images.pixels(where)
    if len(labels) != len(images) or not all(type(label) is int for label in labels):
        raise InputError(f"{where} should have one whole number as label for each image")
    return images, np.array(labels, np.int64)


class _Array:
    """Stands in for numpy.ndarray while unpickling: keeps what was stored, runs nothing."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def pixels(self, where):
        """The stored bytes as images."""
        try:
            _, shape, dtype, fortran, data = self.state
            images = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
            whole = dtype.code in ("u1", b"u1", "|u1", b"|u1") and images.shape[1:] == (PIXELS,)
        except (TypeError, ValueError, AttributeError):
            whole = False
        if not whole or not len(images):
            raise InputError(f"{where}: 'data' should be bytes of shape (images, {PIXELS})")
        return np.ascontiguousarray(images).reshape(-1, 3, 32, 32)


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        """Byte order and the like, which bytes have not."""


class _Unpickler(pickle.Unpickler):
    """Admits the globals that an array is pickled with, and these only as stand-ins."""

    ADMITTED = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,  # written anew by NumPy 2
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def __init__(self, file, where):
        super().__init__(file, encoding="bytes")  # the files were written by Python 2
        self.where = where

    def find_class(self, module, name):
        if (module, name) not in self.ADMITTED:
            raise InputError(
                f"{self.where} is a pickle that would run {module}.{name}: refused, as no "
                "published file needs that"
            )
        return self.ADMITTED[module, name]

"""The files in which CIFAR-10 and CIFAR-100 are published: folders, archives, records, pickles.

A file from a stranger can write nothing and run nothing: archives are read in place, never
unpacked, and a pickle is read only if it is the published one.
"""

import hashlib
import lzma
import os
import pickle
import tarfile
import zlib

import numpy as np

from runtime import regular_files
from runtime.errors import InputError

PIXELS = 3 * 32 * 32
LARGEST = 1 << 28  # bytes; the largest real archive has 187 million


def folder(path, names):
    """The contents of the named files, as far as the folder has them: name -> bytes."""
    contents = {}
    for name in names:
        if os.path.isfile(os.path.join(path, name)):
            contents[name] = regular_files.read(os.path.join(path, name), LARGEST)
    return contents


def archive(path, names):
    """The same from a tar archive, compressed or not. Folder names inside it are ignored.

    Links, devices, folders and files of other names are skipped.
    """
    contents = {}
    try:
        with (
            regular_files.opened(path) as file,
            tarfile.open(path, "r:*", fileobj=file) as tar,
        ):
            total = 0
            for member in tar:
                total += member.size  # known before it is unpacked, or skipped
                if total > LARGEST:
                    raise InputError(f"{path} holds {total} bytes: not the published archive")
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isreg():
                    continue
                if name in contents:
                    raise InputError(f"{path} holds {name} twice: not the published archive")
                contents[name] = tar.extractfile(member).read()
            while tar.fileobj.read(1 << 20):  # to the checksum, which lies behind the tar's end
                pass
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = str(error).partition("\n")[0]  # tarfile lists what each decompressor said
        raise InputError(f"{path} is damaged or not a .tar.gz archive: {reason}") from None
    return contents


def binary(data, where, label_bytes, classes):
    """(images, labels) from a file of the binary version, a sequence of records.

    A record is `label_bytes` bytes of labels, then the pixels. Images are uint8 (N, 3, 32, 32), red
    plane first. Labels are int64 (N,) in 0..classes-1: the last label of each record, since
    CIFAR-100 stores the coarse one before the fine one. `where` names the file in errors.
    """
    record = label_bytes + PIXELS
    if not data or len(data) % record:
        raise InputError(
            f"{where} has {len(data)} bytes: should be a whole number of records of {record}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        wrong = labels[labels >= classes][0]
        raise InputError(f"{where} has a label {wrong}: should be 0 to {classes - 1}")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def pickled(data, where, label_key, md5):
    """The same from a file of the python version, whose MD5 must be `md5`, the published one.

    Reading a pickle can run code, so only the published bytes, which run none, are unpickled. MD5
    is enough for that: nobody can make another file to match a checksum that is given.
    """
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{where} is not the published file (its MD5 is {found}, should be {md5}); changed or "
            "own images should be in the binary version"
        )
    content = pickle.loads(data, encoding="latin1")  # the files were written by Python 2
    return content["data"].reshape(-1, 3, 32, 32), np.array(content[label_key], np.int64)

"""Atomic writes, and reads that verify the file and run no code, for checkpoints and caches."""

import argparse
import contextlib
import csv
import io
import os
import re
import shutil
import zipfile
import zlib

from runtime import memory, regular_files
from runtime.errors import InputError, cause
from storage import archives


class Damaged(InputError):
    """A file that is missing, truncated or changed. The caller may fall back to an older one."""


def load(path, foreign=False):
    """What `save` wrote, on the CPU. InputError for any other file.

    foreign: in a file of another program, objects beside tensors and plain values are replaced by
    archives.Skipped instead of being refused.

    Only tensors and plain values are read (weights_only): a pickle that would run code is refused,
    and so is one that would take more memory or time than its size suggests (archives.py).
    Damaged if a byte of the tensors is missing or changed.
    """
    import torch  # not at the top: plot.py does not need torch

    try:
        with regular_files.opened(path) as file:
            skipped = archives.replacements(archives.verify(file, path, foreign))
            file.seek(0)
            # training programs often save their options in a Namespace, which only holds values
            with torch.serialization.safe_globals([argparse.Namespace, *skipped]):
                value = torch.load(file, map_location="cpu", weights_only=True)
        return archives.plain(value, path, foreign)
    except InputError as error:
        if foreign:
            raise InputError(f"{error}; {archives.STATE_DICT}") from None
        raise
    except FileNotFoundError:
        raise Damaged(f"File not found: {path}") from None
    except OSError as error:
        raise Damaged(f"cannot read {path}: {cause(error)}") from None
    except Exception as error:  # a changed byte can make zipfile and the unpickler raise anything
        asked = re.search(r"allocate (\d+) bytes", str(error))
        if memory.lacking(error) and not (asked and int(asked[1]) > os.path.getsize(path)):
            raise InputError(f"cannot read {path}: {memory.lacking(error)}") from None
        if foreign and "persistent_load" in str(error):  # whole nets before PyTorch 1.6
            raise InputError(
                f"{path} holds a whole net, which needs code: {archives.STATE_DICT}"
            ) from None
        ours = isinstance(error, archives.Changed)
        reason = str(error) if ours else "it is cut short or changed"
        raise Damaged(f"{path} is damaged or not a file of this program: {reason}") from None


def digest(path):
    """A fingerprint of a file of torch.save, from the checksums in it: no tensor is read."""
    try:
        with regular_files.opened(path) as file, zipfile.ZipFile(file) as archive:
            found = [(r.filename.partition("/")[2], r.CRC) for r in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged: {cause(error)}") from None
    return zlib.crc32(repr(sorted(found)).encode())


def save(path, value):
    """torch.save as an atomic write: there is the old file or the new one, never a part."""
    import torch

    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # PyTorch wraps the OSError of `file` in it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write(path, data):
    """Write bytes for a user, atomically; InputError if that fails."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {cause(error)}") from None


def copy(source, target):
    """Copy a file with an atomic write."""
    with replacing(target) as file, regular_files.opened(source) as original:
        shutil.copyfileobj(original, file, 1 << 20)


@contextlib.contextmanager
def replacing(path):
    """A temporary binary file, flushed to disk and renamed to `path` at the end of the block."""
    path = os.fspath(path)
    temporary = regular_files.temporary(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none
            os.remove(temporary)
    # A rename survives a power cut only once its folder is flushed too. Windows cannot open a
    # folder, and elsewhere a folder may be for writing only.
    with contextlib.suppress(PermissionError):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def csv_rows(path, head):
    """A csv.writer; `head` and its rows become the file `path` at the end of the block, UTF-8.

    File names and class names survive, whatever bytes they have.
    """
    try:
        with replacing(path) as file:
            # turn surrogates, which os.fsdecode made of bytes that are not UTF-8, back into bytes
            text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(head)
            yield rows
            text.flush()
            text.detach()  # `replacing` flushes the file to disk and closes it
    except OSError as error:
        raise InputError(f"cannot write {path}: {cause(error)}") from None


def left_over(folder, names=".+"):
    """The temporary files in a folder that a killed process left behind.

    names: a regular expression for the files that they would have become.
    """
    return [
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if re.fullmatch(rf"(?:{names})\.\d+\.tmp", name)
    ]

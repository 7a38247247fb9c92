"""Atomic writes, and reads that verify and run no code: for checkpoints and caches."""

import contextlib
import os
import pickle
import re
import shutil
import zipfile
import zlib

import torch

from runtime.errors import InputError


class Damaged(InputError):
    """A file that is missing, truncated or changed. The caller may fall back to an older one."""


def load(path):
    """What `save` wrote, on the CPU. InputError for any other file.

    Only tensors and plain values are read (weights_only): a pickle that would run code is refused.
    Damaged if a byte of the tensors is missing or changed.
    """
    try:
        check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        # PyTorch's message is long and says how to run the code after all: take the name only
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise Damaged(f"{path} is damaged or holds more than tensors and values") from None
        what = f"it asks for {found[1]}, which could run code"
        raise InputError(f"{path} holds more than tensors and plain values: {what}") from None
    except Exception as error:  # a changed byte can make the unpickler raise anything
        reason = (str(error).strip() or "it ends too soon").splitlines()[0]
        raise Damaged(f"{path} is damaged or not a file of this program: {reason}") from None


def check(path):
    """Verify the checksums of a file of torch.save, which torch.load does not; at 2 GB/s.

    Files from before PyTorch 1.6 are no zip archives and have no checksums.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"PK" and not zipfile.is_zipfile(file):
                return
            with zipfile.ZipFile(file) as archive:
                _check_records(archive)
                # all are 0 after torch.serialization.set_crc32_options(False)
                checked = any(record.CRC for record in archive.infolist())
                changed = archive.testzip() if checked else None
    except FileNotFoundError:
        raise Damaged(f"File not found: {path}") from None
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # zipfile can raise anything for a damaged archive
        raise Damaged(f"{path} is damaged: {error}") from None
    if changed:
        raise Damaged(f"{path} is damaged: its record {changed} has changed")


def _check_records(archive):
    """ValueError for a record that PyTorch's zip reader would take for another than Python's.

    PyTorch leaves the memory of a record uninitialised if a bit says that it is a folder (0x10,
    DOS); and it takes the length of a stored record from the other of its two lengths.
    """
    for record in archive.infolist():
        stored = record.compress_type == zipfile.ZIP_STORED
        if record.external_attr & 0x10 or record.is_dir():
            raise ValueError(f"its record {record.filename} claims to be a folder")
        if stored and record.compress_size != record.file_size:
            raise ValueError(f"its record {record.filename} has two lengths")


def digest(path):
    """A fingerprint of a file of torch.save, from the checksums in it: no tensor is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(r.filename.partition("/")[2], r.CRC) for r in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    return zlib.crc32(repr(sorted(records)).encode())


def save(path, value):
    """torch.save as an atomic write: the old file or the new one is there, never a part."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # PyTorch wraps the OSError of `file` in it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def copy(source, target):
    """Copy a file with an atomic write."""
    with replacing(target) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file, 1 << 20)


@contextlib.contextmanager
def replacing(path):
    """A temporary binary file, flushed to disk and renamed to `path` at the end of the block."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none
            os.remove(temporary)
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    # a rename survives a power cut only once its folder is flushed too
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def left_over(folder):
    """The temporary files in a folder that a killed process left behind."""
    return [
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if re.fullmatch(r".+\.\d+\.tmp", name)
    ]

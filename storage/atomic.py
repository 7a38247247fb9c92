"""Files that are whole or absent and hold no code: what checkpoints and caches are made of."""

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
    """A file that is missing, cut short or changed: an older one may do instead."""


def load(path):
    """What `save` wrote, on the CPU; anything else is refused in one sentence.

    Only tensors and plain values are read (weights_only): a pickle that would run code is refused.
    A file that is not whole, to the last byte of its tensors, is Damaged.
    """
    try:
        check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        # PyTorch's text is long and says how to run the code after all; only the name is of use
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise Damaged(f"{path} is damaged or holds more than tensors and values") from None
        what = f"it asks for {found[1]}, which could run code"
        raise InputError(f"{path} holds more than tensors and plain values: {what}") from None
    except Exception as error:  # one changed byte can make the unpickler fail in any way
        reason = (str(error).strip() or "it ends too soon").splitlines()[0]
        raise Damaged(f"{path} is damaged or not a file of this program: {reason}") from None


def check(path):
    """Hold the records of a file of torch.save against their checksums, which torch.load does not.

    2 GB/s. Files from before PyTorch 1.6, which are no archives, have none.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"PK" and not zipfile.is_zipfile(file):
                return
            with zipfile.ZipFile(file) as archive:
                # without any: torch.serialization.set_crc32_options(False)
                checked = any(record.CRC for record in archive.infolist())
                changed = archive.testzip() if checked else None
    except FileNotFoundError:
        raise Damaged(f"File not found: {path}") from None
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # zipfile meets what is no archive in any way
        raise Damaged(f"{path} is damaged: {error}") from None
    if changed:
        raise Damaged(f"{path} is damaged: its record {changed} has changed")


def digest(path):
    """A number that tells the contents of a whole file of torch.save from others: at no cost."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(r.filename.partition("/")[2], r.CRC) for r in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    return zlib.crc32(repr(sorted(records)).encode())


def save(path, value):
    """torch.save that leaves either the old file or the whole new one, never a part."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # in which PyTorch wraps what `file` had to say
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def copy(source, target):
    """A copy that is whole or absent."""
    with replacing(target) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file, 1 << 20)


@contextlib.contextmanager
def replacing(path):
    """A binary file that takes the place of `path` once it is whole and on disk."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # mostly there is none; what went wrong is known
            os.remove(temporary)
    # a rename lasts through a power cut only once its folder is on disk
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def left_over(folder):
    """The temporary files in a folder that `replacing` could not remove, having been killed."""
    return [
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if re.fullmatch(r".+\.\d+\.tmp", name)
    ]

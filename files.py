"""Files that are whole or absent and hold no code: what checkpoints and caches are made of."""

import contextlib
import os
import pickle
import re
import shutil

import torch

from errors import InputError


def load(path):
    """What `save` wrote, on the CPU; anything else is refused in one sentence.

    Only tensors and plain values are read (weights_only): a pickle that would run code is refused.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"File not found: {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        # PyTorch's text is long and says how to run the code after all; only the name is of use
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}, which could run code" if found else "it is no such pickle"
        raise InputError(f"{path} holds more than tensors and plain values: {what}") from None
    except Exception as error:  # one changed byte can make the unpickler fail in any way
        reason = (str(error).strip() or "it ends too soon").splitlines()[0]
        raise InputError(f"{path} is damaged or not a file of this program: {reason}") from None


def save(path, value):
    """torch.save that leaves either the old file or the whole new one, never a part."""
    with replacing(path) as file:
        torch.save(value, file)


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
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    # a rename lasts through a power cut only once its folder is on disk
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

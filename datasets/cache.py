"""The cache of a dataset: a file that its NAME_gen.py writes once.

Differs from the Lua: a cache is made again if it is damaged or stale, that is, if its signature is
not that of the present data; it lies in the -gen folder; one read serves both splits.
"""

import importlib
import os
import zipfile

import numpy as np

from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note
from storage import records


def info(opt):
    """The cache of opt.dataset as a dict of arrays; made first if missing, stale or damaged."""
    gen = importlib.import_module(f"datasets.{opt.dataset}_gen")
    path = os.path.join(opt.gen, opt.dataset + ".npz")
    try:
        signature = gen.signature(opt)
        found = _read(path)
        if found is not None and str(found["signature"]) == signature:
            return found
        if os.path.exists(path):
            fault = "is damaged" if found is None else "describes other data than there are now"
            note(f"=> {path} {fault}: making it again")
        os.makedirs(opt.gen, exist_ok=True)
        gen.exec(opt, path)
    except OSError as error:  # a full disk, or no permission
        raise InputError(f"cannot prepare {opt.dataset} in {opt.gen}: {error}") from None
    found = _read(path)
    if found is None:
        raise RuntimeError(f"{gen.__name__}.exec left no .npz with a signature at {path}")
    return found


def _read(path):
    """All arrays of a cache, or None if the file is missing, truncated, damaged or no cache.

    OSError for what is not a file: it is not replaced.
    """
    try:
        file = regular_files.opened(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        try:
            with zipfile.ZipFile(file) as archive:
                records.check_layout(file, archive)
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                info = {name: found[name] for name in found.files}  # reading checks the CRCs
        except MemoryError:
            raise
        except Exception:  # a changed byte can make zipfile and NumPy raise anything
            return None
    return info if "signature" in info else None

"""The cache of a dataset, made once by its NAME_gen.py.

Differs from the Lua: a cache that is stale (its signature is not that of the data as they are now)
or damaged is made again, for every dataset; the cache goes where -gen says; both splits come from
one reading of the file.
"""

import importlib
import os
import zipfile
import zlib

import numpy as np

from runtime.errors import InputError
from runtime.terminal import say


def info(opt):
    """What the preparation stored about the data as they are now, as a dict of arrays."""
    preparation = importlib.import_module(f"datasets.{opt.dataset}_gen")
    path = os.path.join(opt.gen, opt.dataset + ".npz")
    try:
        signature = preparation.signature(opt)
        found = _read(path)
        if found is not None and str(found["signature"]) == signature:
            return found
        if os.path.exists(path):
            fault = "is damaged" if found is None else "describes other data than there are now"
            say(f"=> {path} {fault}: making it again")
        os.makedirs(opt.gen, exist_ok=True)
        preparation.exec(opt, path)
    except OSError as error:  # a full disk, a folder that may not be read or written
        raise InputError(f"cannot prepare {opt.dataset} in {opt.gen}: {error}") from None
    found = _read(path)
    if found is None:
        raise RuntimeError(f"{preparation.__name__}.exec left no .npz with a signature at {path}")
    return found


def _read(path):
    """All arrays of a cache, or None if the file is missing, cut short, damaged or not a cache."""
    try:
        with np.load(path, allow_pickle=False) as file:
            info = {name: file[name] for name in file.files}  # this tests the checksums as well
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        # ValueError: numpy takes what is no zip for a pickle and refuses it; TypeError: an .npy
        return None
    return info if "signature" in info else None

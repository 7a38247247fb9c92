"""The cache of a dataset: a file that its NAME_gen.py writes once.

Differs from the Lua: a cache is made again if it is damaged or stale, that is, if its signature is
not that of the present data; it lies in the -gen folder; one read serves both splits.
"""

import importlib
import os
import zipfile
import zlib

import numpy as np

from runtime.errors import InputError
from runtime.terminal import note


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
    """All arrays of a cache, or None if the file is missing, truncated, damaged or no cache."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):  # a single array, .npy
            return None
        with file:
            info = {name: file[name] for name in file.files}  # reading checks the CRCs
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        # ValueError: no zip file, which numpy takes for a pickle and refuses
        return None
    return info if "signature" in info else None

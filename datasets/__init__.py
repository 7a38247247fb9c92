"""The datasets by name, each prepared once into a cache. Port of datasets/init.lua.

Differs from the Lua: a cache that is stale (its signature is not that of the data as they are now)
or damaged is made anew, for every dataset; the cache goes where -gen says; both splits come from
one reading of the file.
"""

import importlib
import os
import zipfile
import zlib

import numpy as np

from distributed import say
from errors import InputError


def names():
    """Every dataset there is: the files NAME.py that have a twin NAME_gen.py."""
    files = {file for folder in __path__ for file in os.listdir(folder)}
    return sorted(f[:-7] for f in files if f.endswith("_gen.py") and f[:-7] + ".py" in files)


def module(name):
    """The module datasets/NAME.py: stem, classes(opt) and Dataset."""
    if name not in names():
        raise InputError(f"unknown dataset {name!r}: should be one of {', '.join(names())}")
    return importlib.import_module(f"datasets.{name}")


def create(opt):
    """The train and val datasets of opt.dataset, from its cache in opt.gen, made if need be.

    Processes that share opt.gen may all call this at once, but each would do the work: let one of
    them come first.
    """
    dataset = module(opt.dataset)
    info = _info(opt)
    return dataset.Dataset(info, opt, "train"), dataset.Dataset(info, opt, "val")


def _info(opt):
    """What the preparation stored about the data as they are now, as a dict of arrays."""
    preparation = importlib.import_module(f"datasets.{opt.dataset}_gen")
    path = os.path.join(opt.gen, opt.dataset + ".npz")
    try:
        signature = preparation.signature(opt)
        info = _read(path)
        if info is not None and str(info["signature"]) == signature:
            return info
        if os.path.exists(path):
            fault = "is damaged" if info is None else "describes other data than there are now"
            say(f"=> {path} {fault}: making it anew")
        os.makedirs(opt.gen, exist_ok=True)
        preparation.exec(opt, path)
    except OSError as error:  # a full disk, a folder that may not be read or written
        raise InputError(f"cannot prepare {opt.dataset} in {opt.gen}: {error}") from None
    info = _read(path)
    if info is None:
        raise RuntimeError(f"{preparation.__name__}.exec left no .npz with a signature at {path}")
    return info


def _read(path):
    """All arrays of a cache, or None if the file is missing, cut short, damaged or not a cache."""
    try:
        with np.load(path, allow_pickle=False) as file:
            info = {name: file[name] for name in file.files}  # this tests the checksums as well
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        # ValueError: numpy takes what is no zip for a pickle and refuses it; TypeError: an .npy
        return None
    return info if "signature" in info else None

"""The cache of a dataset: a file that its NAME_gen.py writes once.

Differs from the Lua: a cache is made again if it is damaged, or stale because its signature differs
from that of the present data; every data folder has its own cache in the -gen folder; the file is
read once for both splits.
"""

import hashlib
import importlib
import os
import zipfile

import numpy as np

from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note
from storage import archives


def info(opt):
    """The cache of opt.dataset as a dict of arrays; made first if missing, stale or damaged."""
    gen = importlib.import_module(f"datasets.{opt.dataset}_gen")
    path = _path(opt, gen)
    try:
        found = _read(path)
        stale = found is not None and str(found["signature"]) != gen.signature(opt)
        if found is not None and not stale and _is_valid(gen, found, opt):
            return found
        if os.path.exists(path):
            fault = "describes data that has changed since" if stale else "is damaged"
            note(f"=> {path} {fault}: making it again")
        os.makedirs(opt.gen, exist_ok=True)
        found = gen.exec(opt, path)  # do not read it back: another run may have replaced the file
    except OSError as error:  # a full disk, or no permission
        raise InputError(f"cannot prepare {opt.dataset} in {opt.gen}: {error}") from None
    if found is None:  # a user's own dataset may return nothing
        found = _read(path)
    if found is None:
        raise RuntimeError(f"{gen.__name__}.exec did not write an .npz with a signature to {path}")
    return found


def _path(opt, gen):
    """The cache file. Each data folder has its own, so simultaneous runs on two do not clash.

    So have the `places` that a dataset reads beside it.
    """
    name, places = opt.dataset, gen.places(opt) if hasattr(gen, "places") else []
    if getattr(opt, "data", ""):
        paths = b"\0".join(os.fsencode(os.path.realpath(path)) for path in (opt.data, *places))
        name += "-" + hashlib.sha256(paths).hexdigest()[:12]
    return os.path.join(opt.gen, name + ".npz")


def _is_valid(gen, found, opt):
    """Whether gen.exec can have written these arrays; without `gen.is_valid` they are trusted."""
    facts = importlib.import_module(f"datasets.{opt.dataset}")
    return not hasattr(gen, "is_valid") or gen.is_valid(found, facts, opt)


def _read(path):
    """All arrays of a cache, or None if the file is missing, truncated, damaged or no cache.

    OSError if something other than a file is there, which must not be replaced.
    """
    try:
        file = regular_files.opened(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        try:
            with zipfile.ZipFile(file) as archive:
                archives.verify_layout(file, archive)
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                info = {name: found[name] for name in found.files}  # reading checks the CRCs
        except MemoryError:
            raise
        except Exception:  # a changed byte can make zipfile and NumPy raise anything
            return None
    return info if "signature" in info else None

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
from runtime.errors import InputError, cause
from runtime.progress import slow
from runtime.terminal import note
from storage import archives, atomic


def info(opt):
    """The cache of opt.dataset as a dict of arrays; made first if missing, stale or damaged."""
    gen = importlib.import_module(f"datasets.{opt.dataset}_gen")
    is_valid = getattr(gen, "is_valid", lambda *arguments: True)
    places = [opt.data] if getattr(opt, "data", "") else []
    if places and hasattr(gen, "places"):
        places += gen.places(opt)
    return kept(
        opt.gen,
        opt.dataset,
        places,
        lambda: gen.signature(opt),
        lambda path: gen.exec(opt, path),
        lambda found: is_valid(found, opt),
    )


def kept(folder, name, places, signature, make, is_valid=bool):
    """The arrays in the cache of what is at `places`; made if missing, stale or damaged.

    signature(): the present one. make(path): write the cache; may return its arrays. Each list of
    places has its own file, so simultaneous runs on two do not clash.
    """
    paths = b"\0".join(os.fsencode(os.path.realpath(place)) for place in places)
    mark = "-" + hashlib.sha256(paths).hexdigest()[:12] if places else ""
    path = os.path.join(folder, name + mark + ".npz")
    with slow(f"preparing {name}"):
        try:
            found = _read(path)
            stale = found is not None and str(found["signature"]) != signature()
            if found is not None and not stale and is_valid(found):
                return found
            if os.path.exists(path):
                damaged = "is damaged or of another version"
                fault = "describes data that has changed since" if stale else damaged
                note(f"=> {path} {fault}: making it again")
            os.makedirs(folder, exist_ok=True)
            # read back only if a user's dataset returns nothing, because another run may have
            # replaced the file
            return make(path) or _read(path)
        except OSError as error:  # a full disk, or no permission
            fault = f"{cause(error)}: {error.filename or path}"
            raise InputError(f"cannot prepare {name}: {fault}") from None


def save(path, info):
    """Write a cache, a dict of arrays with a signature, as an atomic write; returns the dict."""
    with atomic.replacing(path) as file:
        np.savez(file, **info)
    return info


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

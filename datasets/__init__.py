"""The datasets by name. Port of datasets/init.lua.

opts.py asks this module for the datasets and their facts, so it imports nothing that is slow.
"""

import importlib
import os

from runtime.errors import InputError


def names():
    """The names of all datasets: each has the files NAME.py and NAME_gen.py."""
    files = {file for folder in __path__ for file in os.listdir(folder)}
    return sorted(f[:-7] for f in files if f.endswith("_gen.py") and f[:-7] + ".py" in files)


def module(name):
    """The module datasets/NAME.py (see the contract in README.md)."""
    if name not in names():
        raise InputError(f"unknown dataset {name!r}: should be one of {', '.join(names())}")
    return importlib.import_module(f"datasets.{name}")


def create(opt):
    """The train and val splits of opt.dataset. Writes its cache in opt.gen if that is needed.

    Processes that share opt.gen may all call this at once, but each would write the cache: let one
    rank go first.
    """
    from datasets import cache

    info, dataset = cache.info(opt), module(opt.dataset)
    return dataset.create(info, opt, "train"), dataset.create(info, opt, "val")

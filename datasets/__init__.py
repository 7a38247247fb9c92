"""The datasets by name. Port of datasets/init.lua.

Imports nothing heavy: opts.py asks here for the datasets that there are, and for their facts.
"""

import importlib
import os

from runtime.errors import InputError


def names():
    """Every dataset there is: the files NAME.py that have a twin NAME_gen.py."""
    files = {file for folder in __path__ for file in os.listdir(folder)}
    return sorted(f[:-7] for f in files if f.endswith("_gen.py") and f[:-7] + ".py" in files)


def module(name):
    """The module datasets/NAME.py: its facts, classes(opt) and create(info, opt, split)."""
    if name not in names():
        raise InputError(f"unknown dataset {name!r}: should be one of {', '.join(names())}")
    return importlib.import_module(f"datasets.{name}")


def create(opt):
    """The train and val datasets of opt.dataset, from its cache in opt.gen, made if need be.

    Processes that share opt.gen may all call this at once, but each would do the work: let one of
    them come first.
    """
    from datasets import cache

    info, dataset = cache.info(opt), module(opt.dataset)
    return dataset.create(info, opt, "train"), dataset.create(info, opt, "val")

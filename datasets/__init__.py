"""The datasets by name. Port of datasets/init.lua.

opts.py asks this module for the datasets and their facts, so it imports nothing that is slow.
"""

import importlib
import os

from runtime.errors import InputError
from runtime.terminal import note


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


def holds_out(opt):
    """Whether the val images are a part of the training images."""
    return bool(opt.valShare or opt.fold)


def create_split(opt):
    """(train, val); with -valShare or -fold (train, val, test), or without test if there is none.

    Then val is a part of the training images, and test what is val otherwise.
    """
    train, val = create(opt)
    if not holds_out(opt):
        return train, val
    import numpy as np

    from datasets.draws import held_out

    labels = getattr(train, "targets", getattr(train, "labels", None))
    if labels is None or not hasattr(train, "subset"):
        needed = "its splits need `subset` and `targets` (datasets/README.md)"
        raise InputError(f"-dataset {opt.dataset} cannot hold images out: {needed}")
    held = held_out(np.asarray(labels), opt.valShare, opt.fold, opt.manualSeed)
    if not held.any() or held.all():
        count = f"{train.size()} in {len(np.unique(labels))} classes"
        raise InputError(f"too few images to hold some out and to train on others: {count}")
    note(f"=> {held.sum()} of {len(held)} training images are held out for validation")
    parts = [train.subset(np.flatnonzero(h), s) for h, s in ((~held, "train"), (held, "val"))]
    return (*parts, val) if val.size() else tuple(parts)

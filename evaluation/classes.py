"""Matches a net's outputs to the classes of the data by the names of the classes.

The Lua matches them by index only. By name, a net with 5,000 classes can be tested on images of
1,000 of them, against all outputs or only these 1,000 (the paper's Table 6), and nets whose classes
are in different orders can form an ensemble.
"""

import io
import os
from collections import Counter

import numpy as np
import torch

from datasets import class_names, imagenet_gen
from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note

LARGEST = 1 << 26  # bytes of a file with class names


def read_names(path):
    """The class names in a file, one per line, or those of the class folders of a train/."""
    if os.path.isdir(path):
        names = sorted(map(class_names.normalized, imagenet_gen.class_folders(path)))
        if not names:
            lacks = "has no class folders: give a train/, or a list of class names"
            raise InputError(f"{path} {lacks}")
        return names
    try:
        with io.TextIOWrapper(regular_files.opened(path, LARGEST), "utf-8-sig") as file:
            names = [class_names.normalized(line.strip()) for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InputError(f"cannot read the class names in {path}: {reason}") from None
    names = [name for name in names if name]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if not names or twice:
        what = f"names {twice} twice" if twice else "is empty"
        raise InputError(f"{path} {what}: it should have one class name per line")
    return names


def of_outputs(path, count):
    """The names of a model's outputs, from a list or a folder."""
    names = read_names(path)
    if len(names) != count:
        raise InputError(
            f"-classes {path} has {len(names)} names, but the model has {count} outputs"
        )
    return names


def outputs(source, model, data):
    """The class name of each output of a model from `source`. data: the data's class names.

    A model without names, or with none that the data knows, gets the data's names in order.
    """
    count = model.fc.out_features
    names = class_names.known(source, model.classes, count, data)
    if not set(names) & set(data):
        if count != len(data):
            raise InputError(
                f"{source} has {count} classes, but the data has {len(data)} others ({data[0]} and "
                "so on), so the outputs cannot be matched to the classes"
            )
        class_names.note_order(source, names, count, data)
        names = list(data)
    # -nClasses may have added outputs for which its data had no class
    return names + [None] * (count - len(names))


def columns(source, names, tested, listed=None):
    """The output index of each tested class in a model whose outputs have these names."""
    columns = {name: column for column, name in enumerate(names) if name is not None}
    if listed is None and names == tested:
        return torch.arange(len(names))
    missing = [name for name in tested if name not in columns]
    if missing:
        where, form = f"are not among those of {source}", ""
        if listed:
            where = f"in {listed} are unknown to {source}"
            known = next(name for name in names if name is not None)
            form = f"; each line should be one of the model's names, such as {known}"
        raise InputError(f"{len(missing)} classes {where}: the first is {missing[0]:.80}{form}")
    return torch.tensor([columns[name] for name in tested])


def targets(dataset, data, tested, listed=None):
    """The indices of the images of tested classes, and their targets as indices into `tested`.

    data: the dataset's class names. listed: the file of the tested classes; with one, images of
    other classes are left out, without one they are an error.
    """
    labels = next((getattr(dataset, n) for n in ("targets", "labels") if hasattr(dataset, n)), None)
    if labels is None:
        labels = [dataset.get(i)[1] for i in range(dataset.size())]
    labels = np.asarray(labels)
    index = {name: i for i, name in enumerate(tested)}
    found = np.array([index.get(name, -1) for name in data])[labels]
    left_out = np.flatnonzero(found < 0)
    if len(left_out):
        name = data[labels[left_out[0]]]
        if listed is None:
            raise InputError(f"the data has images of {name}, a class that the model does not know")
        if len(left_out) == len(found):
            raise InputError(f"no image is of a class in {listed}; the first is of {name}")
        count = f"{len(left_out)} of {len(found)}"
        note(f"=> {count} images are left out, because their classes are not in {listed}")
    kept = np.flatnonzero(found >= 0)
    return kept, found[kept]

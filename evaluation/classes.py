"""Which output of a net stands for which class, by the classes' names.

No Lua file: there, classes were counted. By their names a net of 5,000 classes can be tested on
images of 1,000, among all or among these (the paper's Table 6), and nets that count them in another
order can be tested together.
"""

import numpy as np
import torch

from runtime.errors import InputError
from runtime.terminal import say


def read(path):
    """The names in a file, one a line."""
    try:
        with open(path, encoding="utf-8") as file:
            names = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"cannot read the class names in {path}: {reason}") from None
    names = [name for name in names if name]
    twice = next((name for name in names if names.count(name) > 1), None) if names else None
    if not names or twice:
        what = f"names {twice} twice" if twice else "is empty"
        raise InputError(f"{path} {what}: it should have the name of each class in a line")
    return names


def outputs(source, model, data):
    """The name of each output of a model from `source`; `data` are the data's names, in order.

    A model that names its classes in another way, or not at all, has the data's in their order.
    """
    names, count = list(model.classes or ()), model.fc.out_features
    if not set(names) & set(data):
        if count != len(data):
            raise InputError(
                f"{source} has {count} classes, not those of the data ({len(data)}, {data[0]} and "
                "others), and which is which cannot be told"
            )
        if names:
            say(f"=> {source} calls its classes otherwise than the data: they are taken in order")
        names = list(data)
    # without a name are those that its data did not have (-nClasses)
    return names + [None] * (count - len(names))


def columns(source, names, tested, listed=None):
    """The place of each tested class among a model's outputs, which have these names."""
    places = {name: place for place, name in enumerate(names) if name is not None}
    if listed is None and names == tested:
        return torch.arange(len(names))
    missing = [name for name in tested if name not in places]
    if missing:
        where = f"are not among those of {source}"
        if listed:
            where = f"in {listed} are unknown to {source}"
        raise InputError(f"{len(missing)} classes {where}: the first is {missing[0]}")
    return torch.tensor([places[name] for name in tested])


def targets(dataset, data, tested, listed=None):
    """Which images have a tested class, and its place among those: (indices, targets).

    `data` are the dataset's names. Images of other classes are an error, unless the tested ones
    were `listed` in a file: then they are left out.
    """
    labels = next((getattr(dataset, n) for n in ("targets", "labels") if hasattr(dataset, n)), None)
    if labels is None:
        labels = [dataset.get(i)[1] for i in range(dataset.size())]
    labels = np.asarray(labels)
    places = {name: place for place, name in enumerate(tested)}
    found = np.array([places.get(name, -1) for name in data])[labels]
    left_out = np.flatnonzero(found < 0)
    if len(left_out):
        name = data[labels[left_out[0]]]
        if listed is None:
            raise InputError(f"the data has images of {name}, a class that the model does not know")
        if len(left_out) == len(found):
            raise InputError(f"no image is of a class in {listed}; the first is of {name}")
        say(f"=> {len(left_out)} of {len(found)} images are of classes not in {listed}: left out")
    indices = np.flatnonzero(found >= 0)
    return indices, found[indices]

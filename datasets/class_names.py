"""Which class each output of a net stands for: the names in its file, or else ImageNet's.

imagenet_wnids.txt holds the wnids of ILSVRC 2012's 1,000 classes, sorted, which is the order of an
ImageNet net's outputs. Source: timm 1.0.31, timm/data/_info/imagenet_synsets.txt (Apache License
2.0). The English names are torchvision's.
"""

import os
import unicodedata
from pathlib import Path

from runtime.terminal import note


def normalized(name):
    """A class name, or folder, in Unicode's NFC, because macOS puts an accent after its letter."""
    return unicodedata.normalize("NFC", os.fsdecode(name))


def wnids():
    """The wnids of ImageNet's 1,000 classes in order."""
    return (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()


def english():
    """The names that torchvision gives ImageNet's classes, in the order of `wnids`."""
    from torchvision.models import ResNet50_Weights  # not at the top: it takes a second

    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def known(source, names, count, data):
    """The class names of the outputs of a model from `source`, or [] if they are unknown.

    names: the class names in its file, or None. count: the number of its outputs. data: the class
    names of the data; if they are wnids, an ImageNet net gets wnids as well.
    """
    names = list(names or ())
    if count == 1000 and not set(names) & set(data):
        order = wnids()
        if set(data) <= set(order) and (not names or names == english()):
            if not names and data != order:
                note(f"=> {source} has 1000 outputs without names: assuming ImageNet's classes")
            names = order
    return names


def note_order(source, names, count, data):
    """Note that outputs are matched to the data's classes by order alone, if they are."""
    if names == data:
        return
    if names:
        what = f"the class names of {source} are not those of the data"
        note(f"=> {what}, so the classes are matched by order")
    elif count > len(data):
        note(
            f"=> {source} has no class names, so its first {len(data)} outputs count as the "
            "classes of the data"
        )
    if all(name.isascii() and name.isdecimal() for name in data):
        numbers = sorted(data, key=int)
        if data != numbers:
            ours, theirs = (", ".join(order[:4]) for order in (data, numbers))
            note(
                f"=> the class folders are sorted as text ({ours}, ...); if those of {source} were "
                f"sorted as numbers ({theirs}, ...), give -classOrder number"
            )

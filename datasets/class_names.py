"""Which class each output of a net stands for: the names in its file, or else ImageNet's.

imagenet_wnids.txt holds the wnids of ILSVRC 2012's 1,000 classes, sorted, which is the order of an
ImageNet net's outputs. Source: timm 1.0.31, timm/data/_info/imagenet_synsets.txt (Apache License
2.0). The English names are torchvision's.
"""

from pathlib import Path

from runtime.terminal import note


def wnids():
    """The wnids of ImageNet's 1,000 classes in order."""
    return (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()


def english():
    """The names that torchvision gives ImageNet's classes, in the order of `wnids`."""
    from torchvision.models import ResNet50_Weights  # not at the top: it takes a second

    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def known(source, names, count, data):
    """The class names of the outputs of a model from `source`, or [] if they are unknown.

    names: those in its file, or None. count: of its outputs. data: the class names of the data. If
    these are wnids, an ImageNet net has wnids as well.
    """
    names = list(names or ())
    if count == 1000 and not set(names) & set(data):
        order = wnids()
        if set(data) <= set(order) and (not names or names == english()):
            if not names and data != order:
                note(f"=> {source} has 1000 outputs without names: they are taken for ImageNet's")
            names = order
    return names


def note_order(source, names, count, data):
    """Say so where outputs are taken for the data's classes by their order alone."""
    if names == data:
        return
    if names:
        note(f"=> {source} has other class names than the data: its outputs are taken in order")
    elif count > len(data):
        note(f"=> {source} has no class names: its first {len(data)} outputs are the data's")
    if all(name.isascii() and name.isdecimal() for name in data):
        numbers = sorted(data, key=int)
        if data != numbers:
            ours, theirs = (", ".join(order[:4]) for order in (data, numbers))
            note(
                f"=> the class folders are taken in the order of text ({ours}, ...); if {source} "
                f"has them in the order of numbers ({theirs}, ...), give -classOrder number"
            )

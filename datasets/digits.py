"""The facts of the digits: handwritten digits that need no download, for a first try on a CPU."""

from datasets import in_memory

stem = "cifar"
side = 8  # pixels
NAMES = "zero one two three four five six seven eight nine"


def classes(opt):
    """Class names in the order of the targets."""
    return NAMES.split()


class Dataset(in_memory.Images):
    """One split of the digits, as grey colour images of 8 x 8 pixels."""

    # Computed from the training images, in bytes
    mean = (77.8, 77.8, 77.8)
    std = (95.9, 95.9, 95.9)
    padding = 1  # of 8 pixels as much as 4 of 32
    mirror = False  # a mirrored 2 is no 2

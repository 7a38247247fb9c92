"""The facts of CIFAR-10. Port of datasets/cifar10.lua; its class is in_memory.py's."""

from datasets import in_memory

stem = "cifar"
side = 32  # pixels
NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


def classes(opt):
    """Class names in the order of the targets."""
    return NAMES.split()


class Dataset(in_memory.Images):
    """One split of CIFAR-10."""

    # Computed from the entire CIFAR-10 training set
    mean = (125.3, 123.0, 113.9)
    std = (63.0, 62.1, 66.7)
    padding = 4
    mirror = True

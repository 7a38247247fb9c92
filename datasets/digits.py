"""The facts of the digits: handwritten digits for a first run on a CPU, without a download."""

stem = "cifar"
side = 8  # pixels
# of each colour over the training images, in 0..255
mean = (77.8, 77.8, 77.8)
std = (95.9, 95.9, 95.9)
NAMES = "zero one two three four five six seven eight nine"


def classes(opt):
    """Class names; a target is an index into them."""
    return NAMES.split()


def create(info, opt, split):
    """The split "train" or "val"; `info` is the cache that digits_gen.exec wrote."""
    from datasets.in_memory import Images  # here, so that opts.py gets `stem` without torch

    # padding 1 of 8 pixels is CIFAR's 4 of 32; no mirroring, as a mirrored 2 is not a 2
    return Images(info, split, mean, std, padding=1, mirror=False)

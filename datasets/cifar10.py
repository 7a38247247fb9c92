"""The facts of CIFAR-10. Port of datasets/cifar10.lua; its class is in_memory.Images."""

stem = "cifar"
side = 32  # pixels
# of each colour, in bytes, over the entire CIFAR-10 training set
mean = (125.3, 123.0, 113.9)
std = (63.0, 62.1, 66.7)
NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


def classes(opt):
    """Class names in the order of the targets."""
    return NAMES.split()


def create(info, opt, split):
    """One split; `info` is what cifar10_gen.exec stored."""
    from datasets.in_memory import Images  # not at the top: opts.py only wants `stem`, at once

    return Images(info, split, mean, std, padding=4, mirror=True)

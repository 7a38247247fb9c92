"""The facts of CIFAR-10. Port of datasets/cifar10.lua; its class is in_memory.Images."""

stem = "cifar"
side = 32  # pixels
# of each colour over the training images, in 0..255
mean = (125.3, 123.0, 113.9)
std = (63.0, 62.1, 66.7)
NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


def classes(opt):
    """Class names; a target is an index into them."""
    return NAMES.split()


def create(info, opt, split):
    """The split "train" or "val"; `info` is the cache that cifar10_gen.exec wrote."""
    from datasets.in_memory import Images  # here, so that opts.py gets `stem` without torch

    return Images(info, split, mean, std, padding=4, mirror=True)

"""The facts of the digits: handwritten digits that need no download, for a first try on a CPU."""

stem = "cifar"
side = 8  # pixels
# of each colour, in bytes, over the training images
mean = (77.8, 77.8, 77.8)
std = (95.9, 95.9, 95.9)
NAMES = "zero one two three four five six seven eight nine"


def classes(opt):
    """Class names in the order of the targets."""
    return NAMES.split()


def create(info, opt, split):
    """One split, as grey colour images of 8 x 8 pixels; `info` is what digits_gen.exec stored."""
    from datasets.in_memory import Images  # not at the top: opts.py only wants `stem`, at once

    # padding: of 8 pixels as much as 4 of 32; mirror: a mirrored 2 is no 2
    return Images(info, split, mean, std, padding=1, mirror=False)

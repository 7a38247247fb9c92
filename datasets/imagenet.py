"""The facts of ImageNet, or of any folder laid out like it. Port of datasets/imagenet.lua."""

import os

from runtime.errors import InputError

stem = "imagenet"

# of each colour in 0..1, over a random subset of the ImageNet training images
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classes(opt):
    """Class names, which are the folder names; a target is an index into them."""
    from datasets import imagenet_gen

    return imagenet_gen.classes(opt)


def create(info, opt, split):
    """The split "train" or "val"; `info` is the cache that imagenet_gen.exec wrote."""
    from datasets.image_folder import ImageFolder  # not at the top: opts.py needs only `stem`, fast

    return ImageFolder(info, opt, split, mean, std)


def check_folders(data, splits, holds_out=False, option="-data"):
    """InputError unless the folder of an option has these splits; it says what is there instead.

    holds_out: val images are held out of the training images, so train/ alone will do, or one
    folder of classes.
    """
    held = "must hold train/<class>/<image> and val/<class>/<image>"
    if not os.path.isdir(data):
        raise InputError(f"missing ImageNet data directory {data!r}: give {option} DIR; it {held}")
    found = sorted(name for name in os.listdir(data) if os.path.isdir(os.path.join(data, name)))
    missing = [split for split in splits if split not in found]
    is_alone = found and ("train" in found or "val" not in found)
    if missing and not (holds_out and is_alone):
        path = os.path.join(data, missing[0])
        few = ", ".join(map(repr, found[:3])) + ", ..." * (len(found) > 3) or "no folders"
        share = (
            "; if these are the classes, or only val is missing, -valShare 0.2 holds out a fifth of "
            "the images; otherwise rename the folders"
        )
        raise InputError(
            f"ImageNet missing `{missing[0]}` directory: {path}; {option} {held}, but has "
            f"{few}{share if is_alone else ''}"
        )

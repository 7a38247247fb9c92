"""The facts of ImageNet, or of any folder laid out like it. Port of datasets/imagenet.lua."""

import glob
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
    from datasets.image_folder import ImageFolder  # here, so that opts.py does not wait

    return ImageFolder(info, opt, split, mean, std)


# What people call val, in small letters
_LIKE_VAL = ("val", "valid", "validation", "test", "testing", "dev")


def check_folders(data, splits, holds_out=False, option="-data"):
    """InputError unless the folder of an option has these splits; it says what is there instead.

    holds_out: val images are held out of the training images, so train/ alone will do, or one
    folder of classes.
    """
    held = "must hold train/<class>/<image> and val/<class>/<image>"
    if not os.path.isdir(data):
        raise InputError(f"missing ImageNet data directory {data!r}: give {option} DIR; it {held}")
    found = sorted(name[:-1] for name in glob.glob("*/", root_dir=data))
    missing = [split for split in splits if split not in found]
    alike = [name for name in found if name.lower() in _LIKE_VAL and "val" in missing]
    inner = (os.path.join(data, name) for name in found if missing and "train" not in found)
    inner = [path for path in inner if os.path.isdir(os.path.join(path, missing[0]))]
    is_alone = found and not (alike or inner) and ("train" in found or "val" not in found)
    if missing and not (holds_out and is_alone):
        path = os.path.join(data, missing[0])
        few = ", ".join(map(repr, found[:3])) + ", ..." * (len(found) > 3) or "no folders"
        advice = ""
        if alike:
            advice = f"; rename {os.path.join(data, alike[0])} to val"
        elif inner:
            advice = f", where {missing[0]}/ is in {inner[0]}: give {option} {inner[0]}"
        elif is_alone:
            advice = (
                "; if these are the classes, or only val is missing, -valShare 0.2 holds out a "
                "fifth of the images"
            )
        raise InputError(
            f"ImageNet missing `{missing[0]}` directory: {path}; {option} {held}, but has "
            f"{few}{advice}"
        )

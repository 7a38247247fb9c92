"""The facts of ImageNet, or of any folder laid out like it. Port of datasets/imagenet.lua."""

import contextlib
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


# what people call the folders, in small letters
_ALIKE = {
    "train": ("train", "training", "train_set", "train_images"),
    "val": ("val", "valid", "validation", "test", "testing", "val_set", "val_images", "dev"),
}


def check_folders(data, splits, holds_out=False, option="-data"):
    """InputError unless the folder of an option has these splits; it says what is there instead.

    holds_out: val images are held out of the training images, so train/ alone will do, or one
    folder of classes.
    """
    held = "must hold train/<class>/<image> and val/<class>/<image>"
    if not os.path.isdir(data):
        raise InputError(f"missing ImageNet data directory {data!r}: give {option} DIR; it {held}")
    for split in splits:
        path = os.path.join(data, split)
        if not os.path.isdir(path):
            missing = f"ImageNet missing `{split}` directory: {path}; {option} {held}"
            instead, is_layout = _instead(data, split, option)
            if not (holds_out and is_layout):
                raise InputError(f"{missing}: {instead}")


def _instead(data, split, option):
    """What a data folder has in place of a split and what would be right; whether -valShare is."""
    found = []
    with contextlib.suppress(OSError):
        found = sorted(entry.name for entry in os.scandir(data) if entry.is_dir())
    for name in found:
        if name.lower() in _ALIKE[split]:
            return f"rename {os.path.join(data, name)} to {split}", False
    for folder in (os.path.dirname(os.path.abspath(data)), *(os.path.join(data, f) for f in found)):
        if os.path.isdir(os.path.join(folder, split)):
            return f"{option} {folder} has it", False
    if split == "val" and "train" in found:
        return "or give -valShare 0.2, which holds out a fifth of train/", True
    few = ", ".join(map(repr, found[:3])) + ", ..." * (len(found) > 3)
    if not found or "val" in found:
        return f"it has {few or 'no folders'}", False
    return f"it has {few}; if these are the classes, give -valShare 0.2 to hold out a fifth", True

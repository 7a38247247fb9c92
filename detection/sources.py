"""The images of a run: train and val, by -dataset."""

import datasets
from detection import coco, scenes
from detection.images import Images
from runtime.errors import InputError


def create(opt):
    """The Images of both splits: (train, val); train is None for a test alone."""
    val = source(opt, "val")
    if opt.testOnly:
        return None, Images(val, training=False, mirror=False)
    train = source(opt, "train")
    if train.names != val.names or train.categories != val.categories:
        raise InputError("the training and validation images do not have the same categories")
    # mirror: a mirrored 2 is no 2
    pair = [Images(s, training, opt.dataset != "digits") for s, training in ((train, 1), (val, 0))]
    if not pair[0].size():
        raise InputError(f"{train.path} has no image with a box to train on")
    return pair


def source(opt, split):
    """The source of one split."""
    if opt.dataset == "digits":
        digits = dict(zip(("train", "val"), datasets.create(opt)))
        names = list(datasets.module("digits").classes(opt))
        return scenes.Scenes(digits[split], names, split, opt.manualSeed)
    return coco.open_split(opt.data, getattr(opt, split), getattr(opt, f"{split}Images"))

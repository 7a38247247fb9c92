"""The images of a run, train and val, by -dataset."""

import datasets
from detection import coco, scenes
from detection.images import Images
from runtime.errors import InputError
from runtime.terminal import note


def create(opt):
    """The Images of both splits, (train, val); train is None for a test alone."""
    train = None if opt.testOnly else source(opt, "train")
    val = source(opt, "val")
    tested = Images(val, training=False, mirror=False)
    if opt.testOnly:
        _check_files(opt, tested)
        return None, tested
    if train.names != val.names or train.categories != val.categories:
        ids = [dict(zip(each.names, each.categories)) for each in (train, val)]
        name = next(n for n in {**ids[0], **ids[1]} if ids[0].get(n) != ids[1].get(n))
        ids = [each.get(name, "none") for each in ids]
        raise InputError(
            f"the training and validation images do not have the same categories: {name!r} has the "
            f"id {ids[0]} in {train.path}, {ids[1]} in {val.path}; give both the same list"
        )
    # digits are not mirrored, because a mirrored 2 is not a 2
    trained = Images(train, training=True, mirror=opt.dataset != "digits")
    if not trained.size():
        raise InputError(f"{train.path} has no image with a box to train on")
    _check_files(opt, trained, tested)
    return trained, tested


def _check_files(opt, *splits):
    """InputError for a missing image now, not after hours of training, unless it may be skipped."""
    if opt.dataset == "coco" and not opt.skipCorrupt:
        for images in splits:
            images.source.check_files(images.places)


def source(opt, split):
    """The source of one split."""
    if opt.dataset == "digits":
        digits = dict(zip(("train", "val"), datasets.create(opt)))
        names = list(datasets.module("digits").classes(opt))
        return scenes.Scenes(digits[split], names, split, opt.manualSeed)
    train, val, divided = coco.find(opt.data, opt.train, opt.val, opt.testOnly)
    name, folder = (train, opt.trainImages) if split == "train" else (val, opt.valImages)
    if divided:
        folder = folder or opt.trainImages or opt.valImages
    if divided and not opt.testOnly and split == "train":
        note(f"=> {train}: the only file of boxes; every fifth image is for the test")
    return coco.open_split(opt.data, name, folder, split if divided else "", opt.gen)

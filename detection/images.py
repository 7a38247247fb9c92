"""The images of a run with their boxes, as datasets for dataloader.py.

A source (coco.py, scenes.py) has `ids`, `categories` and `names` (of the classes, in the order of
the labels), name(i), pixels(i): uint8 (3, H, W), objects(i): Objects, fingerprint(): a number that
changes with all this, and rows(), for the evaluation: the image's place, the category's place,
crowd, area and [x, y, width, height] of each annotation.
"""

import numpy as np
import torch

from detection import coco, scenes
from runtime.errors import InputError, cut
from runtime.terminal import note

MOST = 20  # classes that a line names
HELD_OUT = 5  # if one file serves both splits, every fifth image is for the test


def create(opt):
    """The Images of both splits, (train, val); train is None for a test alone."""
    train, val = scenes.create(opt) if opt.dataset == "digits" else _coco(opt)
    trained, tested = None, Images(val, training=False, mirror=False)
    if not opt.testOnly:
        _check_categories(train, val)
        # digits are not mirrored, because a mirrored 2 is not a 2
        trained = Images(train, training=True, mirror=opt.dataset != "digits")
        if not trained.size():
            raise InputError(f"{train.path} has no image with a box to train on")
    if opt.dataset == "coco" and not opt.skipCorrupt:  # now, not after hours of training
        for images in filter(None, (trained, tested)):
            images.source.check_files(images.places)
    return trained, tested


def _check_categories(train, val):
    if train.names != val.names or train.categories != val.categories:
        ids = [dict(zip(each.names, each.categories)) for each in (train, val)]
        name = next(n for n in {**ids[0], **ids[1]} if ids[0].get(n) != ids[1].get(n))
        ids = [each.get(name, "none") for each in ids]
        raise InputError(
            f"the training and validation images do not have the same categories: {name!r} has the "
            f"id {ids[0]} in {train.path}, {ids[1]} in {val.path}; give both the same list"
        )


def _coco(opt):
    """The sources of both splits; None for the training images of a test alone."""
    train, val, divided = coco.find(opt.data, opt.train, opt.val, opt.testOnly)
    if divided:
        whole = coco.open_split(opt.data, train, opt.trainImages or opt.valImages, opt.gen)
        if not opt.testOnly:
            note(f"=> {train} is the only file of boxes: every fifth image is kept for the test")
        held_out = np.arange(len(whole.ids)) % HELD_OUT == 0
        return [whole.subset(np.flatnonzero(chosen)) for chosen in (~held_out, held_out)]
    splits = (None if opt.testOnly else train, opt.trainImages), (val, opt.valImages)
    return [name and coco.open_split(opt.data, name, folder, opt.gen) for name, folder in splits]


class Images:
    """One split of a source. With `mirror`, a training image is mirrored half of the time.

    Training leaves out images without objects, as in py-faster-rcnn.
    """

    def __init__(self, source, training, mirror):
        self.source, self.training, self.mirror = source, training, mirror and training
        self.odd = getattr(source, "odd", [])  # see datasets/image_folder.py
        places = range(len(source.ids))
        self.places = [i for i in places if not training or len(source.objects(i).labels)]

    def size(self):
        """The number of images."""
        return len(self.places)

    def fingerprint(self):
        """A number that changes with the list of images or their objects."""
        return self.source.fingerprint()

    def name(self, i):
        """The name of an image in messages."""
        return self.source.name(self.places[i])

    def fast_path(self):
        """The function (i, draws, out) of datasets/README.md: pixels and a code for `target`."""

        def load(i, draws, out=None):
            pixels = self.source.pixels(self.places[i])
            flipped = self.mirror and draws.uniform() < 0.5
            if flipped:
                pixels = pixels[:, :, ::-1]
            rows = pixels.transpose(1, 2, 0).copy()  # channels_last, like the net
            return torch.from_numpy(rows)[None].permute(0, 3, 1, 2), 2 * int(i) + flipped

        return load

    @staticmethod
    def stack(images):
        """A batch: a list of images (1, 3, H, W) of any sizes."""
        return images

    def input_spec(self):
        """The size of the placeholder for a process without images."""
        return {"crop": 32}

    def summary(self):
        """A line on the source: images, boxes, classes with their counts, and what is left out."""
        source, total = self.source, len(self.source.ids)
        labels = [source.objects(i).labels for i in range(total)]
        counts = np.bincount(np.concatenate(labels), minlength=1 + len(source.names))[1:]
        order = np.argsort(-counts, kind="stable")
        classes = [f"{cut(source.names[k], 40)} {counts[k]}" for k in order[:MOST]]
        classes += [f"{len(order) - MOST} more classes"] * (len(order) > MOST)
        bare = total - sum(len(each) > 0 for each in labels)
        return (
            f"{total} training images, {bare} of them without boxes; {counts.sum()} boxes "
            f"({', '.join(classes)}), {getattr(source, 'left_out', 0)} left out"
        )

    def target(self, code, width, dtype=torch.float32):
        """The "boxes", "labels" and "crowd" for a code, in an image `width` pixels wide."""
        boxes, labels, crowd = self.source.objects(self.place(code))
        boxes, crowd = (torch.tensor(each, dtype=dtype) for each in (boxes, crowd))
        if code % 2:
            for part in (boxes, crowd):
                part[:, [0, 2]] = width - part[:, [2, 0]]
        return {"boxes": boxes, "labels": torch.tensor(labels), "crowd": crowd}

    def place(self, code):
        """The place of an image in its source."""
        return self.places[code // 2]

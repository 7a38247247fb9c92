"""Images with boxes, as a dataset for dataloader.py: only the pixels go through the workers.

A source (coco.py, scenes.py) has `ids`, `categories` and `names` (of the classes, in the order of
the labels), name(i), pixels(i): uint8 (3, H, W), objects(i): Objects, truth(): COCO's dictionary of
images and annotations, and fingerprint(): a number that changes with them.
"""

from typing import NamedTuple

import numpy as np
import torch

from runtime.errors import cut

MOST = 20  # classes that a line names


class Objects(NamedTuple):
    """The objects of an image: corners x1, y1, x2, y2 in pixels, labels from 1."""

    boxes: np.ndarray  # float32 (n, 4)
    labels: np.ndarray  # int64 (n,)
    crowd: np.ndarray  # float32 (m, 4): regions full of objects that nobody counted


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
        objects = self.source.objects(self.places[code // 2])
        boxes, crowd = (torch.as_tensor(part, dtype=dtype) for part in (objects[0], objects[2]))
        if code % 2:
            boxes, crowd = mirrored(boxes, width), mirrored(crowd, width)
        return {"boxes": boxes, "labels": torch.as_tensor(objects.labels), "crowd": crowd}

    def id(self, code):
        """The id of an image in its annotations."""
        return self.source.ids[self.places[code // 2]]


def mirrored(boxes, width):
    """Boxes (n, 4) with left and right exchanged."""
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], 1)

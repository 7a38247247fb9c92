"""The test images of a dataset as nets see them that are tested in other ways than in training.

No Lua file. A view is one way to look at an image: scaled and cropped, ten crops, or, for dense
testing, all of it at one scale. Each net may want its own, for it says itself how it wants its
input. Images of one batch that have the same size come in one tensor.
"""

from typing import NamedTuple

import numpy as np
import torch

from datasets.input_spec import InputTransform
from datasets.transforms import TenCrop


class View(NamedTuple):
    """One way to look at an image; equal ones are computed once."""

    spec: tuple  # the net's input spec without scale and crop, as sorted items
    scale: int  # of the image's shorter side, in pixels
    crop: int  # side of the crop, 0 for the whole image
    ten: bool = False  # ten crops instead of the middle


class Views:
    """The images `indices` of a dataset's split: takes the dataset's place in a DataLoader."""

    def __init__(self, dataset, indices, targets, views):
        self.dataset, self.indices, self.targets, self.views = dataset, indices, targets, views

    def get(self, i):
        """Image i as the dataset reads it, and its target among the classes that are tested."""
        return self.dataset.get(self.indices[i])[0], int(self.targets[i])

    def name(self, i):
        """What to call image i in a message."""
        index = int(self.indices[i])
        return self.dataset.name(index) if hasattr(self.dataset, "name") else f"image {index}"

    def size(self):
        """How many images there are."""
        return len(self.indices)

    def crops(self):
        """How many inputs come of an image."""
        return sum(10 if view.ten else 1 for view in self.views)

    def places(self, views):
        """Where some of the views stand among all."""
        return [self.views.index(view) for view in views]

    def input_spec(self):
        """The dataset's own."""
        return self.dataset.input_spec()

    def transform(self):
        """A function (image, draws) -> a list with an array for each view."""
        largest = self.dataset.input_spec()["largest"]

        def transform(image, draws=None):
            return [_seen(view, image, largest) for view in self.views]

        return transform

    def stack(self, images):
        """For each view a list of (places in the batch, tensor), one for each size of image.

        A tensor is (n, 3, H, W), or for ten crops (10 n, 3, H, W).
        """
        return [_by_size([image[v] for image in images]) for v in range(len(self.views))]


def _seen(view, image, largest):
    """An image (3, H, W) in 0..largest in one view: (3, h, w), or (10, 3, h, w)."""
    transform = InputTransform(dict(view.spec))
    white = transform.spec["largest"]
    if white != largest:
        image = image * np.float32(white / largest)
    image = transform.scaled(image, view.scale)
    if view.ten:
        return TenCrop(view.crop)(image)
    return transform.cropped(image, view.crop) if view.crop else image


def _by_size(arrays):
    groups = {}
    for place, array in enumerate(arrays):
        groups.setdefault(array.shape, []).append(place)
    stacked = []
    for shape, places in groups.items():
        images = torch.from_numpy(np.stack([arrays[place] for place in places]))
        images = images.flatten(0, 1) if len(shape) == 4 else images
        stacked.append([torch.tensor(places), images])
    return stacked

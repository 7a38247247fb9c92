"""The test images of a dataset in the views of evaluate.py.

A view is an input made from an image: scaled and cropped, as ten crops or, for dense testing, as
the whole image at one scale. Each net may need its own views, by its own input spec. Images in a
batch that have the same size share a tensor.
"""

from typing import NamedTuple

import numpy as np
import torch

from datasets.input_spec import InputTransform
from datasets.transforms import TenCrop
from datasets.workers import image_name


class View(NamedTuple):
    """One way to make an input from an image. Equal views are computed once."""

    spec: tuple  # the net's input spec without scale and crop, as sorted items
    scale: int  # the image's shorter side in pixels
    crop: int  # side of the crop; 0 for the whole image
    ten: bool = False  # ten crops instead of the center crop


class Views:
    """The images `indices` of a dataset, in these views: a dataset for the DataLoader."""

    def __init__(self, dataset, indices, targets, views):
        self.dataset, self.indices, self.targets, self.views = dataset, indices, targets, views
        self.odd = getattr(dataset, "odd", [])  # see image_folder.py

    def get(self, i):
        """Image i as the dataset reads it, and i in place of its class.

        The loader's batches then say which images they hold, even where unreadable ones are left
        out. `targets` has the classes.
        """
        return self.dataset.get(self.indices[i])[0], int(i)

    def name(self, i):
        """The name of image i in messages."""
        return image_name(self.dataset, int(self.indices[i]))

    def size(self):
        """The number of images."""
        return len(self.indices)

    def crops(self):
        """The number of inputs made from an image."""
        return sum(10 if view.ten else 1 for view in self.views)

    def input_spec(self):
        """The dataset's input spec."""
        return self.dataset.input_spec()

    def transform(self):
        """A function (image, draws) -> [array for each view]."""
        largest = self.dataset.input_spec()["largest"]

        def transform(image, draws=None):
            return [_apply(view, image, largest) for view in self.views]

        return transform

    def stack(self, images):
        """For each view a list of (indices in the batch, tensor), one for each image size.

        A tensor is (n, 3, H, W), with ten crops (10 n, 3, H, W).
        """
        return [_by_size([image[v] for image in images]) for v in range(len(self.views))]


def _apply(view, image, largest):
    """A view of an image (3, H, W) in 0..largest: (3, h, w), or (10, 3, h, w) for ten crops."""
    transform = InputTransform(dict(view.spec))
    own_largest = transform.spec["largest"]
    if own_largest != largest:
        image = image * np.float32(own_largest / largest)
    image = transform.scaled(image, view.scale)
    if view.ten:
        return TenCrop(view.crop)(image)
    return transform.cropped(image, view.crop) if view.crop else image


def _by_size(arrays):
    """[(indices, their arrays stacked)], one for each shape."""
    groups = {}
    for i, array in enumerate(arrays):
        groups.setdefault(array.shape, []).append(i)
    stacked = []
    for shape, indices in groups.items():
        images = torch.from_numpy(np.stack([arrays[i] for i in indices]))
        images = images.flatten(0, 1) if len(shape) == 4 else images
        stacked.append([torch.tensor(indices), images])
    return stacked

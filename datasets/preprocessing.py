"""How any image becomes a net's input, as the model's file says it.

No Lua file: pretrained/classify.lua and extract-features.lua had the values of ImageNet written in,
which were wrong for every net that was not trained on it. The values are those that a dataset's
`preprocessing()` gives: Torch's own scaling, as in training. With "resize" they are those of a net
from torchvision or timm, and the image is resized as there.
"""

import numpy as np
import torch
from PIL import Image

from datasets import imagenet
from datasets.transforms import CenterCrop, ColorNormalize, Compose, Scale
from errors import InputError

_NEEDED = ("scale", "crop", "largest", "mean", "std")
_RESIZES = ("bilinear", "bicubic")


class Preprocessing:
    """Called with an image, gives the input of a net, a float32 tensor (3, crop, crop).

    values: a dict, or None where it is not known how the net wants its input:
      scale, crop: of the image's shorter side, and of the square in its middle, in pixels.
      largest: what a white pixel is before mean and std, of each colour, are taken out.
      mean, std: of the training images, for each colour.
      resize: "bilinear" or "bicubic" for Pillow's antialiased resize; absent for Torch's bicubic.
    """

    def __init__(self, values):
        self.values = values

    def __call__(self, image):
        """The image is a path, an open binary file, a Pillow image or a uint8 array (H, W, 3)."""
        self.check()
        if isinstance(image, np.ndarray):
            image = _picture(image)
        return self._as_torchvision(image) if self.values.get("resize") else self._as_torch7(image)

    def check(self):
        """InputError if the values are unknown or incomplete."""
        if self.values is None:
            raise InputError(
                "how an image becomes this model's input is not known; say it with"
                ' model.preprocess = Preprocessing({"scale": 256, "crop": 224, "largest": 1,'
                ' "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}), for example'
            )
        missing = [name for name in _NEEDED if name not in self.values]
        if missing:
            raise InputError(f"the preprocessing of this model lacks {', '.join(missing)}")
        if self.values.get("resize") not in (None, *_RESIZES):
            known = " or ".join(_RESIZES)
            raise InputError(
                f"invalid resize in the preprocessing: {self.values['resize']}; it is {known}"
            )

    def _as_torch7(self, image):
        values = self.values
        transform = Compose(  # the crop last, as in the Lua
            [
                Scale(values["scale"]),
                ColorNormalize(values["mean"], values["std"]),
                CenterCrop(values["crop"]),
            ]
        )
        return torch.from_numpy(transform(imagenet.read(image, values["largest"])))

    def _as_torchvision(self, image):
        from torchvision import transforms as tv  # a second that other nets need not wait

        values = self.values
        image = Image.fromarray(imagenet.load_image(image).transpose(1, 2, 0).copy())
        image = tv.Resize(values["scale"], tv.InterpolationMode(values["resize"]))(image)
        image = tv.ToTensor()(tv.CenterCrop(values["crop"])(image))  # 0..1
        return tv.Normalize(values["mean"], values["std"])(image * values["largest"])


def _picture(pixels):
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            "an array that is an image is uint8 of the shape (height, width, 3),"
            f" not {pixels.dtype} of the shape {pixels.shape}"
        )
    return Image.fromarray(pixels)


def batches(paths, preprocess, size):
    """Read image files, `size` at a time and in order: yields (paths, images, errors).

    `images` is float32 (n, 3, crop, crop), of the n `paths` that could be read, or None if n is 0.
    `errors` has an InputError for each of the others.
    """
    preprocess.check()
    for start in range(0, len(paths), size):
        read, images, errors = [], [], []
        for path in paths[start : start + size]:
            try:
                images.append(preprocess(path))
                read.append(path)
            except InputError as error:
                errors.append(error)
        yield read, torch.stack(images) if images else None, errors

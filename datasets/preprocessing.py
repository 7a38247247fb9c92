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
from datasets.transforms import CenterCrop, ColorNormalize, Scale
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
        image = self.scaled(imagenet.read(image, self.values["largest"]), self.values["scale"])
        return torch.from_numpy(self.cropped(image, self.values["crop"]))

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

    def scaled(self, image, scale):
        """An image, float32 (3, H, W) in 0..largest, scaled by its shorter side and normalised."""
        values = self.values
        if values.get("resize"):
            return self._resized(image, scale)
        return ColorNormalize(values["mean"], values["std"])(Scale(scale)(image))

    def cropped(self, image, crop):
        """The middle of a scaled image: (3, crop, crop)."""
        if not self.values.get("resize"):
            return CenterCrop(crop)(image)
        from torchvision import transforms as tv  # a second that other nets need not wait

        return tv.CenterCrop(crop)(torch.from_numpy(image)).numpy()  # rounds in another way

    def _resized(self, image, scale):
        from torchvision import transforms as tv

        values = self.values
        pixels = np.rint(image * np.float32(255 / values["largest"])).astype(np.uint8)
        image = Image.fromarray(pixels.transpose(1, 2, 0).copy())
        image = tv.ToTensor()(tv.Resize(scale, tv.InterpolationMode(values["resize"]))(image))
        return tv.Normalize(values["mean"], values["std"])(image * values["largest"]).numpy()


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

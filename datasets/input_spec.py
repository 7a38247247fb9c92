"""The input spec: how a test image becomes a net's input, as plain values in the model file.

pretrained/classify.lua and extract-features.lua used ImageNet's values for every net, which is
wrong for nets trained on other data. Here each dataset gives its own values in `input_spec()`.
Images are resized in Torch's way, as in training. Only a net from torchvision or timm has a spec
with "resize", and its images are resized as those libraries do.
"""

import numpy as np
import torch
from PIL import Image

from datasets.image import decoding
from datasets.image.resize import check_size
from datasets.transforms import CenterCrop, ColorNormalize, Scale
from runtime.errors import InputError


def training_side(spec):
    """The side of the training images in pixels; spec: a dict as of InputTransform, or None."""
    return spec.get("trained", spec["crop"]) if spec else 224


class InputTransform:
    """The transform that an input spec describes: image -> float32 tensor (3, crop, crop).

    spec: a dict, or None if the net's input is unknown:
      scale: the length of the shorter side after resizing, in pixels.
      crop: the side of the centre crop, in pixels.
      trained: the side of the training images, in pixels; absent if it is `crop`.
      pool: with trained, the -testPool of the test of the larger crop; absent for "windows".
      largest: the value of a white pixel before normalisation: 1 or 255.
      mean, std: of each colour over the training images, on that scale.
      resize: "bilinear" or "bicubic" for Pillow's antialiased resize; absent for Torch's bicubic.
      squash: with resize, whether both sides become `scale`; absent if the shorter one does.
    """

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, image):
        """The image is a path, an open binary file, a Pillow image or a uint8 array (H, W, 3)."""
        self.check()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
                raise InputError(
                    "an image array should be uint8 of shape (height, width, 3), not"
                    f" {image.dtype} of shape {image.shape}"
                )
            image = Image.fromarray(image)
        image = decoding.floats(decoding.decode(image), self.spec["largest"])
        image = self.scaled(image, self.spec["scale"])
        return torch.from_numpy(self.cropped(image, self.spec["crop"]))

    def check(self):
        """InputError if the spec is unknown or has an invalid resize."""
        if self.spec is None:
            raise InputError(
                "this model does not say how an image becomes its input; set it, for example by"
                ' model.transform = InputTransform({"scale": 256, "crop": 224, "largest": 1,'
                ' "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})'
            )
        resize = self.spec.get("resize")
        if resize not in (None, "bilinear", "bicubic"):
            raise InputError(f"invalid resize in the input spec: {resize}; bilinear or bicubic")

    def scaled(self, image, scale):
        """The image resized to a shorter side of `scale`, and normalised.

        image: float32 (3, H, W) in 0..largest.
        """
        spec = self.spec
        if not spec.get("resize"):
            return ColorNormalize(spec["mean"], spec["std"])(Scale(scale)(image))
        from torchvision import transforms as tv  # takes a second, which other nets save

        if spec.get("squash"):
            scale = (scale, scale)
        else:
            check_size(image, *Scale(scale).lengths(*image.shape[:0:-1]))
        pixels = np.rint(image * np.float32(255 / spec["largest"])).astype(np.uint8)
        image = Image.fromarray(pixels.transpose(1, 2, 0).copy())
        image = tv.ToTensor()(tv.Resize(scale, tv.InterpolationMode(spec["resize"]))(image))
        return tv.Normalize(spec["mean"], spec["std"])(image * spec["largest"]).numpy()

    def cropped(self, image, crop):
        """The centre crop of a scaled image: (3, crop, crop)."""
        if not self.spec.get("resize"):
            return CenterCrop(crop)(image)
        from torchvision import transforms as tv

        # torchvision rounds the offset differently
        return tv.CenterCrop(crop)(torch.from_numpy(image)).numpy()

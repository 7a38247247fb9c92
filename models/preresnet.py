"""Pre-activated ResNet: identity mappings (https://arxiv.org/abs/1603.05027).

Port of models/preresnet.lua. What differs from resnet.py is in blocks.py: where batch norm and ReLU
stand, a batch norm behind the last stage, and none behind the 1x1 convolution of a shortcut.
"""

from models import resnet as post


def preresnet(depth=34, classes=1000, stem="imagenet", shortcut="B", norm="branch"):
    """A pre-activated ResNet-`depth` of basic or bottleneck blocks.

    With `norm` "each", the ResNet-200 that was released with fb.resnet.torch: the shortcut's
    convolution has a batch norm, and every block its first batch norm and ReLU in the branch.
    """
    return post.residual({"net": "preresnet", **locals()}, preactivation=True)


def create(opt, classes):
    """The net that the options ask for, announced as in the Lua."""
    return post.create(opt, classes, preresnet)

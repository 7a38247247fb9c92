"""Pre-activated ResNet: identity mappings (https://arxiv.org/abs/1603.05027).

Port of models/preresnet.lua. The differences from resnet.py are in blocks.py: batch norm and ReLU
come before the convolutions, one batch norm follows the last stage, and the 1x1 convolution of a
shortcut has none.
"""

from models import resnet as post


def preresnet(depth=34, classes=1000, stem="imagenet", shortcut="B", norm="branch"):
    """A pre-activated ResNet-`depth` of basic or bottleneck blocks.

    `norm` "each" is the ResNet-200 that was released with fb.resnet.torch: the shortcut's
    convolution has a batch norm, and every block has its first batch norm and ReLU in the branch.
    """
    return post.residual({"net": "preresnet", **locals()}, preactivation=True)


def create(opt, classes):
    """The net that the options ask for, with the Lua's line of output."""
    return post.create(opt, classes, preresnet)

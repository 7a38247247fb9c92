"""ResNeXt with pre-activated blocks: the nets of the paper's first figures on CIFAR.

The blocks of models/resnext.lua, with batch norm and ReLU placed as in models/preresnet.lua.
"""

from models import resnext as post


def preresnext(
    depth=50,
    cardinality=1,
    base_width=64,
    classes=1000,
    stem="imagenet",
    shortcut="B",
    bottleneck="resnext_C",
):
    """A pre-activated ResNeXt; the arguments are those of `resnext`."""
    return post.aggregated({"net": "preresnext", **locals()}, preactivation=True)


def create(opt, classes):
    """The net that the options ask for, with the lines of output of ResNeXt."""
    return post.create(opt, classes, preresnext)

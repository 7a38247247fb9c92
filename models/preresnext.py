"""ResNeXt with pre-activated blocks, the nets of the paper's first figures on CIFAR.

No Lua file: the blocks of models/resnext.lua, activated in the way of models/preresnet.lua.
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
    arguments = locals()
    model = post.resnext(**arguments, preactivation=True)
    model.config = {"net": "preresnext", **arguments}
    return model


def create(opt, classes):
    """The net that the options ask for, announced as ResNeXt is."""
    return post.create(opt, classes, preresnext)

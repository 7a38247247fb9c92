"""ResNet: deep residual learning (https://arxiv.org/abs/1512.03385).

Port of models/resnet.lua; as there, the stride is in the 3x3 convolution. Added: any number of
classes, any image size, and shortcut A with bottlenecks (see blocks.py).
"""

from models import depths
from models.blocks import NORMS, Basic, Bottleneck, Net
from runtime.terminal import say

TITLES = {"imagenet": "ImageNet", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def resnet(depth=34, classes=1000, stem="imagenet", shortcut="B", norm="each"):
    """A ResNet-`depth` of basic or bottleneck blocks.

    `norm` says which batch norms a block has (see blocks.py). Of the nets that were released with
    fb.resnet.torch, ResNet-18 and -34 are "branch" and ResNet-50 is "sum".
    """
    return residual({"net": "resnet", **locals()})


def residual(config, preactivation=False):
    """A ResNet from its configuration, or with `preactivation` a pre-activated one."""
    kind, counts = depths.stages(config["net"], config["stem"], config["depth"])
    shortcut, norm = config["shortcut"], config["norm"]
    known = [name for name in NORMS if name != "sum" or not preactivation]
    depths.check_word("place of batch norm", norm, known)

    def block(inputs, planes, stride, activation):
        if kind == "basic":
            return Basic(inputs, planes, stride, shortcut, activation, norm)
        return Bottleneck(inputs, planes * 4, stride, shortcut, activation, norm, width=planes)

    width = 64 if config["stem"] == "imagenet" else 16
    return Net(config, config["stem"], width, counts, block, preactivation)


def create(opt, classes, net=resnet):
    """The net that the options ask for, with the Lua's line of output."""
    model = net(opt.depth, classes, opt.stem, opt.shortcutType)
    say(f" | ResNet-{opt.depth} {TITLES.get(opt.dataset, opt.dataset)}")
    return model

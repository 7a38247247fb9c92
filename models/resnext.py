"""ResNeXt: aggregated residual transformations (https://arxiv.org/abs/1611.05431).

Port of models/resnext.lua. Added: form A of the paper's figure 3, pre-activated blocks (see
preresnext.py), any number of classes, and any image size.
"""

from collections import OrderedDict

import torch
from torch import nn

from models import depths
from models.blocks import Block, Bottleneck, Net, conv
from runtime.errors import InputError
from runtime.terminal import say


def path(inputs, d, stride, outputs=None):
    """One path of form A or B: from `inputs` to d to d channels, and in form A to `outputs`."""
    layers = {
        "conv1": conv(inputs, d, 1),
        "bn1": nn.BatchNorm2d(d),
        "relu1": nn.ReLU(inplace=True),
        "conv2": conv(d, d, 3, stride),
        "bn2": nn.BatchNorm2d(d),
        "relu2": nn.ReLU(inplace=True),
    }
    if outputs is not None:
        layers["conv3"] = conv(d, outputs, 1)
    return nn.Sequential(OrderedDict(layers))


# The branch of a block in the three forms of figure 3: c paths of d channels each. All three
# are the same function (see forms.py), because in form A batch norm follows the sum (footnote 6).


class FormA(Block):
    """Figure 3(a): c separate paths, summed."""

    def build(self, inputs, outputs, stride, d, c):
        self.paths = nn.ModuleList(path(inputs, d, stride, outputs) for _ in range(c))
        self.bn3 = self.last_norm(outputs)

    def branch(self, x):
        x = sum(path(x) for path in self.paths)
        return self.bn3(x)


class FormB(Block):
    """Figure 3(b): c separate paths, concatenated, then one 1x1 convolution."""

    def build(self, inputs, outputs, stride, d, c):
        self.paths = nn.ModuleList(path(inputs, d, stride) for _ in range(c))
        self.conv3 = conv(c * d, outputs, 1)
        self.bn3 = self.last_norm(outputs)

    def branch(self, x):
        x = torch.cat([path(x) for path in self.paths], 1)  # (N, c d, H, W)
        x = self.conv3(x)
        return self.bn3(x)


class FormC(Bottleneck):
    """Figure 3(c): one path of c d channels, whose 3x3 convolution has c groups."""

    def build(self, inputs, outputs, stride, d, c):
        super().build(inputs, outputs, stride, width=c * d, groups=c)


FORMS = {"resnext_A": FormA, "resnext_B": FormB, "resnext_C": FormC}

DEPLOYING = {
    "resnet": "Deploying ResNet bottleneck block",
    "resnext_A": "Deploying ResNeXt bottleneck block form A",
    "resnext_B": "Deploying ResNeXt bottleneck block form B",
    "resnext_C": "Deploying ResNeXt bottleneck block form C (group convolution)",
}


def resnext(
    depth=50,
    cardinality=1,
    base_width=64,
    classes=1000,
    stem="imagenet",
    shortcut="B",
    bottleneck="resnext_C",
    preactivation=False,
    expansion=4,
):
    """A ResNeXt-`depth` of `cardinality` paths with `base_width` channels each in the first stage.

    `bottleneck` "resnet" is the block of ResNet; it ignores cardinality and base width. A block of
    the first stage has 64 x `expansion` outputs; other programs' nets have other numbers than 4.
    """
    config = {"net": "resnext", **locals()}
    if expansion == 4:  # the paper's, which no file names
        del config["expansion"]
    return aggregated(config, preactivation)


def aggregated(config, preactivation=False):
    """A ResNeXt from its configuration, or with `preactivation` a pre-activated one."""
    net = "preresnext" if preactivation else "resnext"
    stem, shortcut, bottleneck = config["stem"], config["shortcut"], config["bottleneck"]
    cardinality, base_width = config["cardinality"], config["base_width"]
    _, counts = depths.stages(net, stem, config["depth"], bottleneck)
    if base_width < 1 or cardinality < 1:
        raise InputError(
            f"cardinality {cardinality} and base width {base_width} make blocks without channels;"
            " both -cardinality and -baseWidth should be at least 1"
        )

    def block(inputs, planes, stride, activation):
        outputs = planes * config.get("expansion", 4)
        if bottleneck == "resnet":
            return Bottleneck(inputs, outputs, stride, shortcut, activation, width=planes)
        d = planes * base_width // 64
        return FORMS[bottleneck](inputs, outputs, stride, shortcut, activation, d=d, c=cardinality)

    return Net(config, stem, 64, counts, block, preactivation)


def create(opt, classes, net=resnext):
    """The net that the options ask for, with the Lua's lines of output."""
    model = net(
        depth=opt.depth,
        cardinality=opt.cardinality,
        base_width=opt.baseWidth,
        classes=classes,
        stem=opt.stem,
        shortcut=opt.shortcutType,
        bottleneck=opt.bottleneckType,
    )
    say(DEPLOYING[opt.bottleneckType])
    say(f" | ResNet-{opt.depth} {'ImageNet' if opt.dataset == 'imagenet' else opt.dataset}")
    return model

"""What the nets share: convolution, batch norm in replicas, shortcut, block, stacking, init.

Port of the parts that models/resnet.lua, models/preresnet.lua and models/resnext.lua have in
common, and of what nn.DataParallelTable does to batch norm. Different on purpose: the head averages
whole maps, so that images of any size will do (at 224 and 32 pixels it is the Lua's Avg(7) and
Avg(8)); shortcut A pads to any width (the Lua's could only double it, and so failed with
bottlenecks); shortcut "none" and the recomputation of blocks are new.

Modules are registered in the order of the Lua, so `parameters()` runs as `getParameters()` did,
under the names of torchvision: conv1 bn1 layer1.0.conv1 ... layer1.0.downsample.0 fc.
"""

import math
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.errors import InputError


def conv(inputs, outputs, size, stride=1, groups=1):
    """A size x size convolution without bias that keeps the map's size, but for the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def init_linear(layer):
    """Begin a linear layer as the Lua does, weight U(+-1/sqrt(inputs)), bias 0; returns it."""
    bound = 1 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(net):
    """Convolutions N(0, sqrt(2 / (kH kW nOut))) as in the Lua's ConvInit; the classifier too.

    nOut counts the outputs of the layer, not of one of its groups; in forms A and B each path has
    layers of its own. Batch norm begins at 1 and 0 by itself.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            std = math.sqrt(2 / (height * width * module.out_channels))
            nn.init.normal_(module.weight, 0, std)
        elif isinstance(module, nn.Linear):
            init_linear(module)


def set_slices(model, sizes):
    """Let every batch norm of the model see the batch as slices of these sizes (None: as one)."""
    several = list(sizes) if sizes is not None and len(sizes) > 1 else None
    for module in model.modules():
        if isinstance(module, BatchNorm2d | Net):
            module.slices = several


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm as nn.SpatialBatchNormalization does it under nn.DataParallelTable.

    In training each slice of the batch (`slices`, see `set_slices`) is normalised by its own
    statistics, and only the first, the first replica's, moves the running ones. A slice of one
    sample is normalised by the running statistics and moves nothing, in Torch7 even where its map
    has many pixels; it sees them as they were before the batch, as a replica of its own would.
    """

    def __init__(self, channels):
        super().__init__(channels, eps=1e-5, momentum=0.1)
        self.slices = None

    def forward(self, x):  # (N, C, H, W)
        if not self.training or (self.slices is None and x.shape[0] > 1):
            return super().forward(x)
        first, *others = x.split(self.slices or x.shape[0])
        others = [self._apart(part) for part in others]  # before the first moves the statistics
        first = super().forward(first) if first.shape[0] > 1 else self._apart(first)
        return torch.cat([first, *others])

    def _apart(self, x):
        """Normalise a slice that moves no statistics."""
        alone = x.shape[0] == 1
        # copies, for backward reads them again, after the first slice has moved the originals
        mean, var = (self.running_mean.clone(), self.running_var.clone()) if alone else (None, None)
        return F.batch_norm(x, mean, var, self.weight, self.bias, not alone, 0.0, self.eps)


class StridedIdentity(nn.Module):
    """Shortcut A: every stride-th pixel, and channels of zeros up to the width asked for."""

    def __init__(self, channels, stride):
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x):  # (N, C, H, W)
        missing = self.channels - x.shape[1]
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, missing))  # (N, channels, ceil(H / s), ceil(W / s))


def shortcut(kind, inputs, outputs, stride, norm):
    """The shortcut of a block: a module, or None for the kind "none".

    A adds no parameters; B is a 1x1 convolution where the width changes; C always. `norm` puts a
    batch norm behind the convolution (resnet.lua and resnext.lua do, preresnet.lua does not).
    """
    if kind not in ("A", "B", "C", "none"):
        raise InputError(f"invalid shortcut type: {kind}; it is one of A, B, C, none")
    if kind == "none":
        return None
    if kind == "C" or (kind == "B" and inputs != outputs):
        layers = [conv(inputs, outputs, 1, stride)]
        return nn.Sequential(*layers, *([BatchNorm2d(outputs)] if norm else []))
    if inputs != outputs:
        return StridedIdentity(outputs, stride)
    return nn.Identity()


class Block(nn.Module):
    """One residual block. A subclass adds the layers of the branch and says how they run.

    `activation` is where batch norm and ReLU stand. "postact" (resnet.lua, resnext.lua): after each
    convolution, and the last ReLU after the sum. Otherwise (preresnet.lua) `bn0` and a ReLU stand
    before the branch ("preact"), before branch and shortcut ("both_preact"), or are left out
    ("no_preact"), and nothing follows the last convolution. In each, bnK follows convK.

    `norm` is for nets that were released before the Lua files had their last form: "each" has a
    batch norm behind the shortcut's convolution too (so is "postact" now), "branch" has none there
    (all others now), "sum" has the last one not in the branch but behind the sum.
    """

    def __init__(self, inputs, outputs, stride, shortcut_type, activation, norm=None, **layers):
        super().__init__()
        self.outputs = outputs
        self.activation = activation
        self.norm = norm or ("each" if activation == "postact" else "branch")
        before = activation in ("preact", "both_preact")
        self.bn0 = BatchNorm2d(inputs) if before else None
        self.build(inputs, outputs, stride, **layers)
        each = self.norm == "each"
        self.downsample = shortcut(shortcut_type, inputs, outputs, stride, each)
        self.bn_sum = BatchNorm2d(outputs) if self.norm == "sum" else None
        self.relu = nn.ReLU(inplace=True)

    def last_norm(self, channels):
        """What follows the branch's last convolution."""
        own = self.activation == "postact" and self.norm != "sum"
        return BatchNorm2d(channels) if own else nn.Identity()

    def forward(self, x):  # (N, inputs, H, W)
        branch = x
        if self.bn0 is not None:
            branch = self.bn0(branch)
            branch = self.relu(branch)
        if self.activation == "both_preact":
            x = branch
        branch = self.branch(branch)
        if self.downsample is not None:
            branch += self.downsample(x)
        if self.bn_sum is not None:
            branch = self.bn_sum(branch)
        if self.activation == "postact":
            branch = self.relu(branch)
        return branch  # (N, outputs, H / stride, W / stride)


class Basic(Block):
    """Two 3x3 convolutions: the nets of 18 and 34 layers and ResNet on CIFAR."""

    def build(self, inputs, outputs, stride):
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = self.last_norm(outputs)

    def branch(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.conv2(x)
        return self.bn2(x)


class Bottleneck(Block):
    """1x1, 3x3 in `groups` groups and with the stride, 1x1."""

    def build(self, inputs, outputs, stride, width, groups=1):
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = self.last_norm(outputs)

    def branch(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x = self.relu(x)
        x = self.conv3(x)
        return self.bn3(x)


class Net(nn.Module):
    """Stem, stages of blocks, head: (N, 3, H, W) to the scores (N, classes).

    With `recompute` set, training keeps only the inputs of the blocks and runs each block again in
    the backward pass: the same numbers in less memory and more time (the Lua's -optnet).
    """

    def __init__(self, config, stem, width, counts, block, preactivation=False):
        """`block(inputs, planes, stride, activation)` makes a Block; `planes` starts at `width`.

        `config` rebuilds the net: {"net": name of its file and function, **arguments}.
        """
        super().__init__()
        self.config = config
        self.recompute = False
        self.slices = None  # as those of its batch norms
        large = stem == "imagenet"
        self.conv1 = conv(3, width, 7, 2) if large else conv(3, width, 3)
        # preresnet.lua: on CIFAR the first block begins with the stem's batch norm and ReLU
        self.bn1 = BatchNorm2d(width) if large or not preactivation else None
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else None
        self.stages = [f"layer{i + 1}" for i in range(len(counts))]
        channels = width
        for i, count in enumerate(counts):
            first, other = ("both_preact", "preact") if preactivation else ("postact", "postact")
            if preactivation and config.get("norm") == "each":
                first = "preact"  # the first form of preresnet.lua
            elif preactivation and large and i == 0:
                first = "no_preact"  # the stem has just done it
            blocks = [block(channels, width * 2**i, 2 if i else 1, first)]
            channels = blocks[0].outputs
            blocks += [block(channels, width * 2**i, 1, other) for _ in range(count - 1)]
            self.add_module(self.stages[i], nn.Sequential(*blocks))
        self.bn_last = BatchNorm2d(channels) if preactivation else None
        self.fc = nn.Linear(channels, config["classes"])
        initialise(self)

    def maps(self, x):
        """The last maps, (N, channels, H / 32, W / 32) or, with the CIFAR stem, H / 4, W / 4."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.bn1(x)
            x = self.relu(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self.stages:
            for block in getattr(self, stage):
                x = self._run(block, x)
        if self.bn_last is not None:
            x = self.bn_last(x)
            x = self.relu(x)
        return x

    def features(self, x):
        """What the classifier sees: (N, channels)."""
        return self.maps(x).mean((2, 3))

    def forward(self, x):  # (N, 3, H, W)
        x = self.features(x)
        return self.fc(x)  # (N, classes)

    def _run(self, block, x):
        # A compiler takes no contexts. It moves statistics once anyway, but would show a slice of
        # one sample the moved ones; so such a batch, an epoch's last, is not recomputed.
        compiling = torch.compiler.is_compiling()
        if not (self.recompute and self.training) or (compiling and 1 in (self.slices or ())):
            return block(x)
        contexts = {} if compiling else {"context_fn": partial(_contexts, block)}
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, **contexts)


def _contexts(block):
    """For checkpoint: how a block runs, and how it runs again in the backward pass."""
    norms = [module for module in block.modules() if isinstance(module, BatchNorm2d)]
    seen = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    return nullcontext(), _statistics(norms, seen)


@contextmanager
def _statistics(norms, lent):
    """Lend batch norms the running statistics they had; what is added to them is dropped."""
    own = [dict(norm.named_buffers()) for norm in norms]

    def use(buffers):
        for norm, named in zip(norms, buffers):
            for name, buffer in named.items():
                setattr(norm, name, buffer)

    try:
        yield use(lent)
    finally:
        use(own)

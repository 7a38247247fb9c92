"""What the nets share: convolution, initialisation, shortcut, block, whole net, frozen stages.

Port of the parts that models/resnet.lua, models/preresnet.lua and models/resnext.lua have in
common. Differs from the Lua on purpose:

- The head is a global average pooling, so a net takes images of any size. At 224 and 32 pixels this
  equals the Lua's Avg(7) and Avg(8).
- Shortcut A pads to any width. The Lua's could only double it, and so failed with bottlenecks.
- Shortcut "none" and activation recomputation are new.

Modules are registered in the order of the Lua, so that `parameters()` has the order of its
`getParameters()`. Their names are torchvision's: conv1 bn1 layer1.0.conv1 ...
layer1.0.downsample.0 fc.
"""

import math
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.depths import STEMS, check_word
from runtime.errors import InputError
from runtime.terminal import note

ACTIVATIONS = ("postact", "preact", "both_preact", "no_preact")
NORMS = ("each", "branch", "sum")


def conv(inputs, outputs, size, stride=1, groups=1):
    """A size x size convolution without bias; its padding keeps height and width at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def init_linear(layer):
    """Initialise a linear layer as the Lua does: weight U(+-1/sqrt(inputs)), bias 0. Returns it."""
    bound = 1 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(net):
    """Initialise all layers of a net as the Lua does.

    Convolutions (the Lua's ConvInit): N(0, sqrt(2 / (kH kW nOut))). nOut counts the output channels
    of the layer, not of one group; in forms A and B each path has its own layers. Linear layers:
    see `init_linear`. Batch norm: PyTorch's own, weight 1 and bias 0, is the Lua's.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            std = math.sqrt(2 / (height * width * module.out_channels))
            nn.init.normal_(module.weight, 0, std)
        elif isinstance(module, nn.Linear):
            init_linear(module)


class StridedIdentity(nn.Module):
    """Shortcut A: takes every stride-th pixel and adds `missing` channels of zeros."""

    def __init__(self, missing, stride):
        super().__init__()
        self.missing = missing
        self.stride = stride

    def forward(self, x):  # (N, C, H, W)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.missing))  # (N, C + missing, ceil(H / s), ceil(W / s))


def shortcut(kind, inputs, outputs, stride, norm):
    """The shortcut of a block: a module, or None for "none".

    A has no parameters. B has a 1x1 convolution where the width changes, C has one in every block.
    `norm` adds a batch norm after the convolution, as in resnet.lua and resnext.lua; preresnet.lua
    has none.
    """
    check_word("shortcut type", kind, ("A", "B", "C", "none"))
    if kind == "none":
        return None
    if kind == "C" or (kind == "B" and inputs != outputs):
        layers = [conv(inputs, outputs, 1, stride)]
        return nn.Sequential(*layers, *([nn.BatchNorm2d(outputs)] if norm else []))
    if inputs != outputs:
        return StridedIdentity(outputs - inputs, stride)
    return nn.Identity()


def set_recompute(model, recompute=True):
    """Let every block of the model keep only its input in training, for -optnet true.

    The backward pass runs each block again. The numbers are the same; it takes less memory and more
    time.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = recompute


def _recompute_contexts(block):
    """Two contexts for `checkpoint`: of a block's forward pass, and of its recomputation.

    The recomputation gets copies of the running statistics as they are now: a one-sample slice
    reads them, and they must not be updated twice.
    """
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    own = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    copies = [(norm, name, buffer.clone()) for norm, name, buffer in own]

    @contextmanager
    def recomputation():
        try:
            for entry in copies:
                setattr(*entry)
            yield
        finally:
            for entry in own:
                setattr(*entry)

    return nullcontext(), recomputation()


class Block(nn.Module):
    """One residual block. A subclass defines the layers of the branch (`build`, `branch`).

    `activation` says where batch norm and ReLU are:

    - "postact" (resnet.lua, resnext.lua): after each convolution; the last ReLU is after the sum.
    - The others (preresnet.lua) have nothing after the last convolution. `bn0` and a ReLU come
      before the branch ("preact"), before both branch and shortcut ("both_preact"), or nowhere
      ("no_preact").

    In all of them bnK follows convK.

    `norm` says which of the other batch norms there are. It exists because some released nets are
    older than the final Lua files:

    - "each": one after the shortcut's convolution too. The default for "postact".
    - "branch": none there. The default for the others.
    - "sum": as "branch", but the branch's last batch norm is after the sum instead.
    """

    def __init__(self, inputs, outputs, stride, shortcut_type, activation, norm=None, **layers):
        super().__init__()
        check_word("activation", activation, ACTIVATIONS)
        self.outputs = outputs
        self.activation = activation
        self.norm = norm or ("each" if activation == "postact" else "branch")
        check_word("place of batch norm", self.norm, NORMS)
        self.recompute = False  # see set_recompute
        preact = activation in ("preact", "both_preact")
        self.bn0 = nn.BatchNorm2d(inputs) if preact else None
        self.relu0 = nn.ReLU(inplace=True) if preact else None
        self.build(inputs, outputs, stride, **layers)
        self.downsample = shortcut(shortcut_type, inputs, outputs, stride, self.norm == "each")
        self.bn_sum = nn.BatchNorm2d(outputs) if self.norm == "sum" else None
        self.relu = nn.ReLU(inplace=True) if activation == "postact" else None

    def last_norm(self, channels):
        """The batch norm after the branch's last convolution, or an identity if it has none."""
        present = self.activation == "postact" and self.norm != "sum"
        return nn.BatchNorm2d(channels) if present else nn.Identity()

    def forward(self, x):
        if not (self.recompute and self.training):  # a frozen block keeps no activations
            return self._forward(x)
        # torch.compile accepts no context_fn; its code updates running statistics only once anyway
        compiling = torch.compiler.is_compiling()
        contexts = {} if compiling else {"context_fn": partial(_recompute_contexts, self)}
        return checkpoint(
            self._forward, x, use_reentrant=False, preserve_rng_state=False, **contexts
        )

    def _forward(self, x):  # (N, inputs, H, W)
        branch = x
        if self.bn0 is not None:
            branch = self.bn0(branch)
            branch = self.relu0(branch)
        if self.activation == "both_preact":
            x = branch
        branch = self.branch(branch)
        if self.downsample is not None:
            branch += self.downsample(x)
        if self.bn_sum is not None:
            branch = self.bn_sum(branch)
        if self.relu is not None:
            branch = self.relu(branch)
        return branch  # (N, outputs, H / stride, W / stride)


class Basic(Block):
    """Two 3x3 convolutions: the block of ResNet-18 and -34 and of ResNet on CIFAR."""

    def build(self, inputs, outputs, stride):
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = self.last_norm(outputs)

    def branch(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu1(x)
        x = self.conv2(x)
        return self.bn2(x)


class Bottleneck(Block):
    """A 1x1, a 3x3 (with the stride and `groups` groups) and a 1x1 convolution."""

    def build(self, inputs, outputs, stride, width, groups=1):
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = self.last_norm(outputs)

    def branch(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu1(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x = self.relu2(x)
        x = self.conv3(x)
        return self.bn3(x)


class Net(nn.Module):
    """Stem, stages of blocks, head: maps images (N, 3, H, W) to scores (N, classes).

    The children, torchvision's by name, are registered in the order in which they run.
    """

    def __init__(self, config, stem, width, counts, block, preactivation=False):
        """Build the net.

        config: what rebuilds it, {"net": name of its file and function, **arguments}.
        stem: "imagenet" or "cifar".
        width: channels of the stem, and `planes` of the first stage; each stage doubles `planes`.
        counts: the number of blocks in each stage.
        block: a function block(inputs, planes, stride, activation) that makes a Block.
        """
        super().__init__()
        self.config = config
        self.frozen = ()  # names of the parts that -freeze holds, see `freeze`
        check_word("stem", stem, STEMS)
        large = stem == "imagenet"
        self.conv1 = conv(3, width, 7, 2) if large else conv(3, width, 3)
        # preresnet.lua: on CIFAR the stem's batch norm and ReLU are those of the first block
        self.bn1 = nn.BatchNorm2d(width) if large or not preactivation else None
        self.relu = nn.ReLU(inplace=True) if self.bn1 is not None else None
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else None
        self.stages = [f"layer{i + 1}" for i in range(len(counts))]
        channels = width
        for i, count in enumerate(counts):
            first, other = ("both_preact", "preact") if preactivation else ("postact", "postact")
            if preactivation and config.get("norm") == "each":
                first = "preact"  # as in the first version of preresnet.lua
            elif preactivation and large and i == 0:
                first = "no_preact"  # the stem already ends with batch norm and ReLU
            blocks = [block(channels, width * 2**i, 2 if i else 1, first)]
            channels = blocks[0].outputs
            blocks += [block(channels, width * 2**i, 1, other) for _ in range(count - 1)]
            self.add_module(self.stages[i], nn.Sequential(*blocks))
        self.bn_last = nn.BatchNorm2d(channels) if preactivation else None
        self.relu_last = nn.ReLU(inplace=True) if preactivation else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, config["classes"])
        if not self.fc.weight.is_meta:  # there, PyTorch would import torch._dynamo to draw numbers
            initialise(self)

    def train(self, mode=True):
        """Set training or evaluation mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def maps(self, x):
        """The last feature maps: (N, channels, H / 32, W / 32); CIFAR stem: H / 4, W / 4."""
        for name, part in self.named_children():  # those that this net has, in order
            if name == "avgpool":
                break
            x = part(x)
        return x

    def features(self, x):
        """The features, which are the classifier's input: (N, channels)."""
        x = self.maps(x)
        x = self.avgpool(x)
        return x.flatten(1)

    def forward(self, x):  # (N, 3, H, W)
        x = self.features(x)
        return self.fc(x)  # (N, classes)


def freeze(model, count, recomputes=False):
    """Freeze the stem and the first `count` stages (-freeze); 0 freezes nothing.

    Their parameters need no gradient, so autograd keeps none of their activations, and the
    optimizer has no state for them. Their batch norms stay in evaluation mode: they normalise by
    the running statistics of the net that was loaded and do not update them. With all stages, the
    batch norm after the last stage of a pre-activated net is frozen too, so that only the
    classifier is trained. InputError if the net has fewer stages, or if all are frozen although
    batch norms are to be re-estimated (`recomputes`, -recomputeBN).
    """
    if not count:
        return
    stages = getattr(model, "stages", None)
    if stages is None:
        raise InputError(f"-freeze {count}: this net has no stages (a net of models/blocks.py has)")
    if count > len(stages):
        raise InputError(f"-freeze {count}: this net has only {len(stages)} stages")
    if recomputes and count == len(stages):
        raise InputError(f"-recomputeBN: -freeze {count} freezes every batch norm; leave one out")
    model.frozen = held(model, count)
    for name in model.frozen:
        model.get_submodule(name).requires_grad_(False)
    note(f"=> Frozen: {', '.join(model.frozen)}")


def held(model, count):
    """The names of the parts of a net that -freeze `count` freezes."""
    if not count:
        return ()
    stages = model.stages
    names = ["conv1", "bn1", *stages[:count], *(["bn_last"] if count >= len(stages) else [])]
    return tuple(name for name in names if getattr(model, name) is not None)

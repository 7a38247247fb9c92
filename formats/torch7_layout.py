"""The tree of Torch7 modules that the Lua files build for a configuration of our nets.

Port of models/resnet.lua, models/preresnet.lua and models/resnext.lua as a description: each module
with its children, its numbers and shapes, and its name in our state dict. torch7.py reads and
writes by it. tests/test_torch7.py holds it and models/ together. Added: form A, preresnext,
shortcut "none", shortcut A between any widths, and ResNet-18, -34, -50 and -200 as they were
released.
"""

import re
from collections import Counter
from typing import NamedTuple

EPS = 1e-5  # of every batch norm


class Node(NamedTuple):
    """One module of the tree, as it should be."""

    class_name: str  # without the package
    children: tuple = ()
    numbers: dict = {}  # fields that must have these values
    name: str = ""  # of the layer in our state dict
    shapes: dict = {}  # fields that are tensors, with their shapes
    fields: dict = {}  # others, written but not compared; a tuple is a LongStorage, {} a table
    cudnn: bool = False  # whether the Lua files take the class from the package cudnn


RELU = Node("ReLU", fields={"inplace": True}, cudnn=True)
SUM = Node("CAddTable", fields={"inplace": True, "gradInput": {}})
ZEROS = Node("MulConstant", numbers={"constant_scalar": 0}, fields={"inplace": False})


def _sequential(*children):
    return Node("Sequential", children)


def _parallel(*children):
    return Node("ConcatTable", children, fields={"output": {}})


def _window(class_name, size, stride, padding=0, **fields):
    numbers = {"kW": size, "kH": size, "dW": stride, "dH": stride, "padW": padding, "padH": padding}
    return Node(class_name, numbers=numbers | {"ceil_mode": False}, fields=fields)


def _conv(name, inputs, outputs, size, stride=1, groups=1):
    numbers = {"nInputPlane": inputs, "nOutputPlane": outputs, "groups": groups}
    numbers |= _window("", size, stride, size // 2).numbers
    del numbers["ceil_mode"]
    shapes = {"weight": (outputs, inputs // groups, size, size)}
    return Node("SpatialConvolution", (), numbers, name, shapes, cudnn=True)


def _bn(name, channels, key=None):
    """A batch norm; `key` is a field that models/init.lua reads for shareGradInput."""
    fields = {"momentum": 0.1, "affine": True, **({"__shareGradInputKey": key} if key else {})}
    shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    class_name = "SpatialBatchNormalization"
    return Node(class_name, numbers={"eps": EPS}, name=name, shapes=shapes, fields=fields)


def counts(state):
    """The kind of block, "basic" or "bottleneck", and the blocks in each stage, of a state dict."""
    blocks = {match[0] for match in map(re.compile(r"layer\d+\.\d+").match, state) if match}
    stages = sorted(block.partition(".")[0] for block in blocks)
    basic = not any(re.search(r"\.(?:conv3|paths\.0)\.", name) for name in state)
    return "basic" if basic else "bottleneck", tuple(Counter(stages).values())


def unnested(node):
    """The nodes of a Sequential and of those inside it; for any other node, itself."""
    if node.class_name != "Sequential":
        return [node]
    return [layer for child in node.children for layer in unnested(child)]


def layout(config, kind, counts):
    """The tree of modules of a configuration, as the Lua files build it.

    kind, counts: the kind of its blocks and their number in each stage, see `counts`.

    The configuration's entry `norm` (resnet and preresnet only) says which batch norms a block has:

    - "each": after the branch's convolutions and the shortcut's (resnet.lua). A preresnet with
      "each" is the released ResNet-200, where every block has its first batch norm and ReLU in the
      branch.
    - "branch": none after the shortcut's (preresnet.lua, the released ResNet-18 and -34).
    - "sum": as "branch", but the last one is after the sum (the released ResNet-50).
    """
    pre, large = config["net"].startswith("pre"), config["stem"] == "imagenet"
    norm = config.get("norm", "branch" if pre else "each")
    channels = width = 64 if large or config.get("bottleneck") else 16
    modules = [_conv("conv1", 3, width, *((7, 2) if large else (3, 1)))]
    if large or not pre:
        modules += [_bn("bn1", width), RELU]
    if large:
        modules.append(_window("SpatialMaxPooling", 3, 2, 1))
    for i, count in enumerate(counts):
        stage = []
        for j in range(count):
            activation = "postact"
            if pre:
                activation = "preact" if j or norm == "each" else "both_preact"
            if activation == "both_preact" and large and not i:
                activation = "no_preact"
            sizes = (channels, width * 2**i, 2 if i and not j else 1)
            name = f"layer{i + 1}.{j}."
            block, channels = _block(name, *sizes, activation, norm, kind, config)
            stage.append(block)
        modules.append(_sequential(*stage))
    modules += [_bn("bn_last", channels, "last"), RELU] if pre else []
    pool = _window("SpatialAveragePooling", 7 if large else 8, 1, count_include_pad=True)
    modules.append(pool._replace(cudnn=True))
    fields = {"numInputDims": 3, "size": (channels,)}
    modules.append(Node("View", numbers={"numElements": channels}, fields=fields))
    shapes = {"weight": (config["classes"], channels), "bias": (config["classes"],)}
    modules.append(Node("Linear", name="fc", shapes=shapes))
    return _sequential(*modules)


def _block(name, inputs, planes, stride, activation, norm, kind, config):
    """One residual block, and its output channels; `activation` as in models/blocks.py."""
    outputs = planes if kind == "basic" else planes * 4
    last = name + ("bn2" if kind == "basic" else "bn3")
    post = activation == "postact"
    after_sum = [_bn(f"{name}bn_sum", outputs)] if norm == "sum" else []
    branch = _branch(name, inputs, planes, outputs, stride, kind, config)
    branch += [_bn(last, outputs)] if post and not after_sum else []
    both = activation == "both_preact"
    preact = [_bn(f"{name}bn0", inputs, "preact" if both else None), RELU]
    if activation == "preact":
        branch = preact + branch
    shortcut = _shortcut(name, inputs, outputs, stride, norm == "each", config["shortcut"])
    middle = [_parallel(_sequential(*branch), shortcut), SUM] if shortcut else branch
    modules = (preact if both else []) + middle + after_sum + ([RELU] if post else [])
    return _sequential(*modules), outputs


def _branch(name, inputs, planes, outputs, stride, kind, config):
    """The branch up to its last convolution."""
    form, c = config.get("bottleneck", "resnet"), config.get("cardinality", 1)
    d = planes if form == "resnet" else planes * config["base_width"] // 64
    if kind == "basic":
        return [
            *_layer(name, 1, inputs, planes, 3, stride),
            _conv(f"{name}conv2", planes, planes, 3),
        ]
    if form in ("resnet", "resnext_C"):
        groups = c if form == "resnext_C" else 1
        return [
            *_layer(name, 1, inputs, d * groups, 1),
            *_layer(name, 2, d * groups, d * groups, 3, stride, groups),
            _conv(f"{name}conv3", d * groups, outputs, 1),
        ]
    paths = []
    for i in range(c):
        path = f"{name}paths.{i}."
        layers = [*_layer(path, 1, inputs, d, 1), *_layer(path, 2, d, d, 3, stride)]
        if form == "resnext_A":
            layers.append(_conv(f"{path}conv3", d, outputs, 1))
        paths.append(_sequential(*layers))
    if form == "resnext_A":
        return [_parallel(*paths), SUM]
    join = Node("JoinTable", numbers={"dimension": 2}, fields={"gradInput": {}, "size": ()})
    return [_parallel(*paths), join, _conv(f"{name}conv3", c * d, outputs, 1)]


def _layer(name, i, *arguments):
    return [_conv(f"{name}conv{i}", *arguments), _bn(f"{name}bn{i}", arguments[1]), RELU]


def _shortcut(name, inputs, outputs, stride, norm, kind):
    if kind == "none":
        return None
    if kind == "C" or (kind == "B" and inputs != outputs):
        conv = _conv(f"{name}downsample.0", inputs, outputs, 1, stride)
        return _sequential(conv, *([_bn(f"{name}downsample.1", outputs)] if norm else []))
    if inputs == outputs:
        return Node("Identity")
    # without `divide`, nn's class sums instead
    pool = _window("SpatialAveragePooling", 1, stride, count_include_pad=True, divide=True)
    parts = [Node("Identity")] + [ZEROS] * (outputs // inputs - 1)  # in the Lua only one of zeros
    concat = Node("Concat", tuple(parts), {"dimension": 2}, fields={"outputSize": ()})
    return _sequential(pool, concat)

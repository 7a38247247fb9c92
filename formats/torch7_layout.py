"""The modules that the Lua files put together for a configuration of our nets.

Port of models/resnet.lua, models/preresnet.lua and models/resnext.lua as descriptions: what is in
what, the numbers and the shapes, and the name that each layer has in our state dict. torch7.py
reads and writes by them. Added: form A, the nets of preresnext, shortcut "none", shortcut A between
any widths, and the forms that ResNet-18, -34, -50 and -200 had when they were released.
"""

import re
from typing import NamedTuple

EPS = 1e-5  # of every batch norm


class Node(NamedTuple):
    """A module that should be there: its class, without the package, and what is in it."""

    kind: str
    children: tuple = ()
    numbers: dict = {}  # fields that must be equal
    name: str = ""  # of the layer in our state
    shapes: dict = {}  # fields that are tensors
    sink: str = ""  # of a convolution: the entry of our state that can take its bias
    fields: dict = {}  # what is written besides, and not compared; (): a LongStorage
    cudnn: bool = False  # whether the Lua files take the class from there


RELU = Node("ReLU", fields={"inplace": True}, cudnn=True)
SUM = Node("CAddTable", fields={"inplace": True, "gradInput": {}})
ZEROS = Node("MulConstant", numbers={"constant_scalar": 0}, fields={"inplace": False})


def _sequential(*children):
    return Node("Sequential", children)


def _both(*children):
    return Node("ConcatTable", children, fields={"output": {}})


def _window(kind, size, stride, padding=0, **fields):
    numbers = {"kW": size, "kH": size, "dW": stride, "dH": stride, "padW": padding, "padH": padding}
    return Node(kind, numbers=numbers | {"ceil_mode": False}, fields=fields)


def _conv(name, inputs, outputs, size, stride=1, groups=1, sink=""):
    numbers = {"nInputPlane": inputs, "nOutputPlane": outputs, "groups": groups}
    numbers |= _window("", size, stride, size // 2).numbers
    del numbers["ceil_mode"]
    shapes = {"weight": (outputs, inputs // groups, size, size)}
    return Node("SpatialConvolution", (), numbers, name, shapes, sink, cudnn=True)


def _bn(name, channels, key=None):
    """A batch norm; `key` is what models/init.lua's shareGradInput wants to know of some."""
    fields = {"momentum": 0.1, "affine": True, **({"__shareGradInputKey": key} if key else {})}
    shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    kind = "SpatialBatchNormalization"
    return Node(kind, numbers={"eps": EPS}, name=name, shapes=shapes, fields=fields)


def counts(state):
    """The kind of block, "basic" or "bottleneck", and how many each stage has, by a net's state."""
    names = {re.match(r"layer(\d+)\.(\d+)\.", name) for name in state}
    places = {(int(match[1]), int(match[2])) for match in names if match}
    stages = sorted({stage for stage, _ in places})
    basic = not any(re.search(r"\.(?:conv3|paths\.0)\.", name) for name in state)
    blocks = tuple(sum(place[0] == stage for place in places) for stage in stages)
    return "basic" if basic else "bottleneck", blocks


def layout(config, kind, counts):
    """The modules of a configuration, nested as in the Lua files.

    kind, counts: of its blocks, as in `counts`.

    `norm`, an entry for resnet and preresnet, says where a block's batch norms stand. "each":
    behind the branch's convolutions and the shortcut's (resnet.lua). "branch": not behind the
    shortcut's (preresnet.lua, the released ResNet-18 and -34). "sum": as "branch", but the last one
    behind the addition (the released ResNet-50). A preresnet with "each" is the released
    ResNet-200, where every block has its first batch norm and ReLU in the branch.
    """
    pre, large = config["net"].startswith("pre"), config["stem"] == "imagenet"
    norm = config.get("norm", "branch" if pre else "each")
    channels = width = 64 if large or config.get("bottleneck") else 16
    modules = [_conv("conv1", 3, width, *((7, 2) if large else (3, 1)), sink="bn1.running_mean")]
    if large or not pre:
        modules += [_bn("bn1", width), RELU]
    if large:
        modules.append(_window("SpatialMaxPooling", 3, 2, 1))
    for i, count in enumerate(counts):
        stage = []
        for j in range(count):
            act = "postact"
            if pre:
                act = "preact" if j or norm == "each" else "both_preact"
            if act == "both_preact" and large and not i:
                act = "no_preact"
            name, stride = f"layer{i + 1}.{j}.", 2 if i and not j else 1
            block, channels = _block(name, channels, width * 2**i, stride, act, norm, kind, config)
            stage.append(block)
        modules.append(_sequential(*stage))
    modules += [_bn("bn_last", channels, "last"), RELU] if pre else []
    pool = _window("SpatialAveragePooling", 7 if large else 8, 1, count_include_pad=True)
    modules.append(pool._replace(cudnn=True))
    modules.append(Node("View", numbers={"numElements": channels}, fields={"numInputDims": 3}))
    shapes = {"weight": (config["classes"], channels), "bias": (config["classes"],)}
    modules.append(Node("Linear", name="fc", shapes=shapes))
    return _sequential(*modules)


def _block(name, inputs, planes, stride, act, norm, kind, config):
    """One residual block and the number of its channels; `act` as in models/blocks.py."""
    outputs = planes if kind == "basic" else planes * 4
    last = name + ("bn2" if kind == "basic" else "bn3")
    post, ends = act == "postact", []
    sink = f"{last}.running_mean" if post else ""
    if norm == "sum":
        last, sink = "", f"{name}bn_sum.running_mean"
        ends = [_bn(f"{name}bn_sum", outputs)]
    branch = _branch(name, inputs, planes, outputs, stride, kind, config, sink)
    branch += [_bn(last, outputs)] if post and last else []
    begins = [_bn(f"{name}bn0", inputs, "preact" if act == "both_preact" else None), RELU]
    if act == "preact":
        branch = begins + branch
    shortcut = _shortcut(name, inputs, outputs, stride, norm == "each", config["shortcut"], sink)
    middle = [_both(_sequential(*branch), shortcut), SUM] if shortcut else branch
    modules = (begins if act == "both_preact" else []) + middle + ends + ([RELU] if post else [])
    return _sequential(*modules), outputs


def _branch(name, inputs, planes, outputs, stride, kind, config, sink):
    """The branch up to its last convolution, whose bias `sink` can take."""
    form, c = config.get("bottleneck", "resnet"), config.get("cardinality", 1)
    d = planes if form == "resnet" else planes * config["base_width"] // 64
    if kind == "basic":
        return [
            *_layer(name, 1, inputs, planes, 3, stride),
            _conv(f"{name}conv2", planes, planes, 3, sink=sink),
        ]
    if form in ("resnet", "resnext_C"):
        groups = c if form == "resnext_C" else 1
        return [
            *_layer(name, 1, inputs, d * groups, 1),
            *_layer(name, 2, d * groups, d * groups, 3, stride, groups),
            _conv(f"{name}conv3", d * groups, outputs, 1, sink=sink),
        ]
    paths = []
    for i in range(c):
        path = f"{name}paths.{i}."
        layers = [*_layer(path, 1, inputs, d, 1), *_layer(path, 2, d, d, 3, stride)]
        last = [_conv(f"{path}conv3", d, outputs, 1, sink=sink)] if form == "resnext_A" else []
        paths.append(_sequential(*layers, *last))
    if form == "resnext_A":
        return [_both(*paths), SUM]
    join = Node("JoinTable", numbers={"dimension": 2}, fields={"gradInput": {}, "size": ()})
    return [_both(*paths), join, _conv(f"{name}conv3", c * d, outputs, 1, sink=sink)]


def _layer(name, i, *arguments):
    norm = f"{name}bn{i}"
    conv = _conv(f"{name}conv{i}", *arguments, sink=f"{norm}.running_mean")
    return [conv, _bn(norm, arguments[1]), RELU]


def _shortcut(name, inputs, outputs, stride, norm, kind, sink):
    if kind == "none":
        return None
    if kind == "C" or (kind == "B" and inputs != outputs):
        name = f"{name}downsample."
        if norm:
            conv = _conv(f"{name}0", inputs, outputs, 1, stride, sink=f"{name}1.running_mean")
            return _sequential(conv, _bn(f"{name}1", outputs))
        # its bias is added to the branch's last batch norm, or goes into the one behind the sum
        sink = sink if "bn_sum" in sink else sink.replace("running_mean", "bias")
        return _sequential(_conv(f"{name}0", inputs, outputs, 1, stride, sink=sink))
    if inputs == outputs:
        return Node("Identity")
    pool = _window("SpatialAveragePooling", 1, stride, count_include_pad=True)
    parts = [Node("Identity")] + [ZEROS] * (outputs // inputs - 1)  # the Lua: twice the channels
    return _sequential(
        pool, Node("Concat", tuple(parts), {"dimension": 2}, fields={"outputSize": ()})
    )

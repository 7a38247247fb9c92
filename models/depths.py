"""The depths of each net, and the number of blocks in each of their stages.

Port of the `cfg` tables in models/resnet.lua, models/preresnet.lua and models/resnext.lua. They
are not in the nets' files so that opts.py can refuse a depth before PyTorch is imported. Differs
from the Lua on purpose: an error names the depths that exist, and a CIFAR net has at least one
block per stage (the Lua accepted depth 2 and built no block at all).
"""

import importlib
import os

from runtime.errors import InputError

STEMS = ("imagenet", "cifar")
BOTTLENECKS = ("resnet", "resnext_A", "resnext_B", "resnext_C")

# depth: (kind of block, blocks in each of the four stages)
_IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}

# net: (depths with the ImageNet stem, kind of block with the CIFAR stem); a new net may add a line
NETS = {
    "resnext": ((50, 101, 152), "bottleneck"),
    "preresnext": ((50, 101, 152, 200), "bottleneck"),
    "resnet": ((18, 34, 50, 101, 152), "basic"),
    "preresnet": ((18, 34, 50, 101, 152, 200), "basic"),
}

# kind of block: (layers that one more block in each of three stages adds, depths the Lua names)
_CIFAR = {
    "basic": (6, "20, 32, 44, 56, 110, 1202"),
    "bottleneck": (9, "29, 38, 47, 56, 101"),
}


def is_own(net):
    """Whether a net that is not in NETS has its own file in models/; imports that file."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), net + ".py")
    exists = net.isidentifier() and os.path.isfile(path)
    return exists and hasattr(importlib.import_module(f"models.{net}"), "create")


def check_word(what, word, words):
    """InputError for a word that is none of `words`; unchecked, it would act as one of them."""
    if word not in words:
        raise InputError(f"invalid {what}: {word}; it is one of {', '.join(words)}")


def stages(net, stem, depth, bottleneck=None):
    """The kind of block, "basic" or "bottleneck", and a tuple: the number of blocks in each stage.

    `bottleneck` is the -bottleneckType if the net has one; it is only checked, for opts.py.
    InputError if net, stem, depth or bottleneck does not exist.
    """
    if net not in NETS:
        known = ", ".join(NETS)
        raise InputError(f"no depths are known for the net {net}; models/depths.py lists {known}")
    check_word("stem", stem, STEMS)
    if bottleneck is not None:
        check_word("bottleneck type", bottleneck, BOTTLENECKS)
    depths, kind = NETS[net]
    if stem == "imagenet":
        if depth not in depths:
            known = ", ".join(map(str, depths[:-1]))
            raise InputError(
                f"Invalid depth: {depth}; for {net} on images of ImageNet's size"
                f" -depth should be {known} or {depths[-1]}{_others(depth, 'imagenet')}"
            )
        return _IMAGENET[depth]
    layers, named = _CIFAR[kind]
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        raise InputError(
            f"depth should be one of {named} (or another {layers}n+2, from {layers + 2})"
            f" for {net} on images of CIFAR's size, not {depth}{_others(depth, 'cifar')}"
        )
    return kind, (blocks,) * 3


def _others(depth, stem):
    """Which nets do have a depth, for an error."""
    if stem == "imagenet":
        nets = [net for net, (depths, _) in NETS.items() if depth in depths]
    else:
        layers = {net: _CIFAR[kind][0] for net, (_, kind) in NETS.items()}
        nets = [net for net in NETS if depth > 2 and not (depth - 2) % layers[net]]
    return f"; -netType {' or '.join(nets)} has it" if nets else ""

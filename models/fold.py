"""A model prepared for inference: the same function with fewer passes over its feature maps.

In evaluation, batch norm is a scale and a shift per channel. Where it directly follows a
convolution, both are folded into the convolution's weight and bias. Forms A and B of ResNeXt, many
small convolutions, become form C, few large ones (forms.py). Results differ by rounding only.
"""

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import forms
from models.slices import set_slices


def folded(model, dtype=None):
    """A copy of `model` in evaluation mode, for inference only; it keeps attributes and methods.

    A net that torch.fx cannot trace, for example because its control flow depends on values, is
    copied without folding. `dtype`, such as torch.bfloat16, is for the weights of convolutions and
    linear layers; run the net under autocast then, which casts their inputs to it.
    """
    if getattr(model, "config", {}).get("bottleneck") in ("resnext_A", "resnext_B"):
        model = forms.converted(model, "resnext_C")
        model.to(memory_format=torch.channels_last)  # concatenated weights are contiguous
    else:
        model = copy.deepcopy(model)
    model.eval().requires_grad_(False)
    set_slices(model, None)
    for names in pairs(model):
        conv, norm = map(model.get_submodule, names)
        own = conv.weight.dtype  # folded in float64, then rounded
        fused = fuse_conv_bn_eval(conv.double(), norm.double()).to(own)
        for name, module in zip(names, (fused, nn.Identity())):
            model.set_submodule(name, module)
    for module in model.modules():
        if dtype is not None and isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return model


def pairs(model):
    """Names (convolution, batch norm) where only that norm uses the convolution's output."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # a user's net may do what fx cannot trace, and fail in any way
        return []
    modules = dict(model.named_modules())
    targets = [node.target for node in graph.nodes if node.op == "call_module"]

    def runs_once(node, kind):
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return False
        # a user's subclass may do more with its weights
        return type(modules[node.target]) is kind and targets.count(node.target) == 1

    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if (
            runs_once(node, nn.BatchNorm2d)
            and runs_once(source, nn.Conv2d)
            and len(source.users) == 1
            and modules[node.target].track_running_stats
        ):
            pairs.append((source.target, node.target))
    return pairs

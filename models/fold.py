"""A model prepared for inference: the same function with fewer passes over its feature maps.

In evaluation, batch norm is a scale and a shift per channel. Where it directly follows a
convolution, both are folded into the convolution's weight and bias. Forms A and B of ResNeXt, many
small convolutions, become form C, few large ones (forms.py). Results differ by rounding only.
"""

import copy

import torch
from torch import fx, nn

from models import forms
from models.blocks import BatchNorm2d

# Compared by exact type: a user's subclass may do more with its weights.
CONVOLUTIONS = (nn.Conv2d,)
NORMS = (nn.BatchNorm2d, BatchNorm2d)


def folded(model, dtype=None):
    """A copy of `model` in evaluation mode, for inference only; it keeps attributes and methods.

    A net that torch.fx cannot trace, such as one whose control flow depends on values, is copied
    without folding. `dtype`, such as torch.bfloat16, is for the weights of convolutions and linear
    layers; run the net under autocast then, which casts their inputs to it.
    """
    model = _as_form_c(model).eval().requires_grad_(False)
    modules = dict(model.named_modules())
    for conv, norm in pairs(model):
        _fold(modules[conv], modules[norm])
        model.set_submodule(norm, nn.Identity())
    for module in modules.values():
        if dtype is not None and isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return model


def _as_form_c(model):
    """A copy of the model; a ResNeXt in form A or B becomes form C."""
    config = getattr(model, "config", {})
    form = config.get("bottleneck")
    if config.get("net") not in ("resnext", "preresnext") or form not in ("resnext_A", "resnext_B"):
        return copy.deepcopy(model)
    wide = forms.converted(model, "resnext_C")
    return wide.to(memory_format=torch.channels_last)  # concatenated weights are contiguous


class _Tracer(fx.Tracer):
    """Records each convolution and batch norm as one step and does not look into it."""

    def is_leaf_module(self, module, name):
        return type(module) in CONVOLUTIONS + NORMS or super().is_leaf_module(module, name)


def pairs(model):
    """Names (convolution, batch norm) where only that norm uses the convolution's output."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # a user's net may do what fx cannot trace, and fail in any way
        return []
    modules = dict(model.named_modules())
    targets = [node.target for node in graph.nodes if node.op == "call_module"]

    def runs_once(node, types):
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return called and type(modules[node.target]) in types and targets.count(node.target) == 1

    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if (
            runs_once(node, NORMS)
            and runs_once(source, CONVOLUTIONS)
            and len(source.users) == 1
            and modules[node.target].track_running_stats
        ):
            pairs.append((source.target, node.target))
    return pairs


def _fold(conv, norm):
    """Fold a batch norm into the convolution before it; in float64, then rounded."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = conv.bias.double() if conv.bias is not None else torch.zeros_like(scale)
    shift = (shift - norm.running_mean.double()) * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)  # keeps the memory format
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)

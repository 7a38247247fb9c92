"""A model made ready for inference: the same function with fewer passes over its maps.

No Lua file. A batch norm in evaluation is one factor and one summand a channel; where it directly
follows a convolution both go into that convolution's weights. Forms A and B of ResNeXt, which are
form C in many small pieces, become form C (forms.py). What changes is rounding only.
"""

import copy

import torch
from torch import fx, nn

import models
from models import forms
from models.blocks import BatchNorm2d

# By their exact type: a subclass of somebody's own may do more with its weights.
CONVOLUTIONS = (nn.Conv2d,)
NORMS = (nn.BatchNorm2d, BatchNorm2d)


def folded(model, dtype=None):
    """A copy of `model` in evaluation mode, for inference only; attributes and methods stay.

    A net that torch.fx cannot follow, such as one of your own that looks at its numbers, is copied
    as it is. `dtype`, such as torch.bfloat16, is for the weights of convolutions and linear layers;
    the net is then to be run under autocast, which brings their inputs into it.
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
    """A copy, in form C if the model is a ResNeXt in form A or B."""
    config = getattr(model, "config", {})
    form = config.get("bottleneck")
    if config.get("net") not in ("resnext", "preresnext") or form not in ("resnext_A", "resnext_B"):
        return copy.deepcopy(model)
    with torch.device("meta"):
        wide = models.from_config({**config, "bottleneck": "resnext_C"})
    state = forms.convert(model.state_dict(), "resnext_C", config["cardinality"])
    wide.load_state_dict(state, assign=True)
    for name, value in vars(model).items():  # its classes, preprocess and so on
        if name not in vars(wide):
            setattr(wide, name, value)
    return wide.to(memory_format=torch.channels_last)  # joined weights are contiguous


class _Tracer(fx.Tracer):
    """Takes each convolution and batch norm for one step, whichever file it is from."""

    def is_leaf_module(self, module, name):
        return type(module) in CONVOLUTIONS + NORMS or super().is_leaf_module(module, name)


def pairs(model):
    """(convolution, batch norm) by name, where the norm is all that sees the convolution."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # somebody's net may do what fx cannot follow, and fail in any way
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
    """Let the convolution do what the batch norm behind it does; in float64, then rounded."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = conv.bias.double() if conv.bias is not None else torch.zeros_like(scale)
    shift = (shift - norm.running_mean.double()) * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)  # keeps the layout
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)

"""Converts a ResNeXt, or its weights alone, between forms A, B and C of the paper's figure 3.

The three forms are the same function (https://arxiv.org/abs/1611.05431, section 3.2). In form C the
paths of a block are concatenated into wide layers. In form B each path has its own first two
convolutions, in form A its own third as well.
"""

import re

import torch

import models

# The dimension along which form C concatenates the paths: a path is a range of output channels of
# conv1, conv2 and their batch norms, and of input channels of conv3.
_PATH_AXIS = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}
# The layers that each path has of its own
_PER_PATH = {
    "resnext_A": ("conv1", "bn1", "conv2", "bn2", "conv3"),
    "resnext_B": ("conv1", "bn1", "conv2", "bn2"),
    "resnext_C": (),
}

_BLOCK = re.compile(r"(.*layer\d+\.\d+\.)(.*)")
_PATH = re.compile(r"paths\.(\d+)\.(.*)")


def convert(state, form, cardinality):
    """The state dict of the same net in `form`, "resnext_A", "resnext_B" or "resnext_C".

    `state` is the state dict of a resnext or preresnext in any form, or a dict of other tensors
    under its parameters' names, such as gradients or momentum. The result shares no memory with
    `state` and has the entries in the order of the net in `form`. Entries outside the blocks are
    copied unchanged.
    """
    assert form in _PER_PATH, f"form {form} is none of {', '.join(_PER_PATH)}"
    result, blocks = {}, {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        block, rest = match.groups() if match else (name, "")
        blocks.setdefault(block, {})[rest] = tensor.detach()
    for block, entries in blocks.items():
        wide = _to_form_c(block, entries, cardinality)
        for rest, tensor in _from_form_c(wide, _PER_PATH[form], cardinality).items():
            result[block + rest] = tensor.clone()
    return result


def converted(model, form):
    """A copy of a resnext or preresnext in `form`; it keeps attributes such as `classes`."""
    config = {**model.config, "bottleneck": form}
    with torch.device("meta"):
        other = models.from_config(config)
    state = convert(model.state_dict(), form, config["cardinality"])
    other.load_state_dict(state, assign=True)
    for name, value in vars(model).items():  # its classes, input spec and so on
        if name not in vars(other):
            setattr(other, name, value)
    return other


def _layer(name):
    return name.split(".")[0]


def _to_form_c(block, entries, cardinality):
    """One block's entries in form C, from any form."""
    wide = {}
    for name, tensor in entries.items():
        match = _PATH.fullmatch(name)
        if match is None:
            wide[name] = tensor
        elif match[1] == "0":
            paths = [entries.get(f"paths.{i}.{match[2]}") for i in range(cardinality)]
            shapes = {None if path is None else path.shape for path in paths}
            assert shapes == {tensor.shape}, (
                f"{block}{name}: {cardinality} of one shape are expected"
            )
            wide[match[2]] = _concatenate(paths, _PATH_AXIS[_layer(match[2])])
        else:
            assert int(match[1]) < cardinality, f"{block}{name}: the net has more paths"
    if "conv2.weight" in wide:
        outputs, inputs = wide["conv2.weight"].shape[:2]
        assert outputs == inputs * cardinality, f"{block}conv2 has {outputs // inputs} groups"
    return wide


def _concatenate(paths, axis):
    # num_batches_tracked has no dimension and is the same in each path
    return torch.cat(paths, axis) if paths[0].dim() else paths[0]


def _from_form_c(wide, per_path, cardinality):
    """One block's entries, from form C to the form whose paths have the layers `per_path`."""
    split = [name for name in wide if _layer(name) in per_path]
    entries = {}
    for name, tensor in wide.items():
        if name not in split:
            entries[name] = tensor
        elif name == split[0]:
            for i in range(cardinality):
                for own in split:
                    entries[f"paths.{i}.{own}"] = _path(wide[own], own, i, cardinality)
    return entries


def _path(tensor, name, i, cardinality):
    if not tensor.dim():
        return tensor
    axis = _PATH_AXIS[_layer(name)]
    size, rest = divmod(tensor.shape[axis], cardinality)
    assert not rest, f"{name}: {tensor.shape[axis]} channels are not {cardinality} paths"
    return tensor.narrow(axis, i * size, size)

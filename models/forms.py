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
_AXIS = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}
# The layers that each path has of its own
_PER_PATH = {
    "resnext_A": ("conv1", "bn1", "conv2", "bn2", "conv3"),
    "resnext_B": ("conv1", "bn1", "conv2", "bn2"),
    "resnext_C": (),
}
_ENTRY = re.compile(r"(.*layer\d+\.\d+\.)(conv[123]|bn[12])(\..*)")  # of a block in form C


def convert(state, form, cardinality):
    """The state dict of the same net in `form`, "resnext_A", "resnext_B" or "resnext_C".

    `state` is the state dict of a resnext or preresnext in any form, or a dict of other tensors
    under its parameters' names, such as gradients or momentum. The result shares no memory with
    `state`. Entries outside the blocks are copied unchanged.
    """
    wide, result = {}, {}  # wide: name in form C -> the tensors of all paths, or the only one
    for name, tensor in state.items():
        wide.setdefault(re.sub(r"paths\.\d+\.", "", name), []).append(tensor.detach())
    for name, tensors in wide.items():
        block, layer, entry = match.groups() if (match := _ENTRY.fullmatch(name)) else ("", "", "")
        # num_batches_tracked has no dimension and is the same in each path
        axis = _AXIS[layer] if layer and tensors[0].dim() else None
        tensor = tensors[0] if axis is None else torch.cat(tensors, axis)
        if layer in _PER_PATH[form]:
            paths = [tensor] * cardinality if axis is None else tensor.chunk(cardinality, axis)
            for i, path in enumerate(paths):
                result[f"{block}paths.{i}.{layer}{entry}"] = path.clone()
        else:
            result[name] = tensor.clone()
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

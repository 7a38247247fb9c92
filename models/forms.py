"""The weights of a ResNeXt in form A, B or C of the paper's figure 3, each from each.

No Lua file; section 3.2 of the paper (https://arxiv.org/abs/1611.05431) says that the three forms
are one function. In form C the C paths of a block lie side by side in wide layers; in form B each
path has its own first two convolutions, in form A its own third as well.
"""

import re

import torch

# The layers that a path has to itself, and the dimension along which form C joins the paths: a path
# is a range of output channels of conv1, conv2 and their batch norms, of input channels of conv3.
_JOINED = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}
_BY_PATH = {
    "resnext_A": ("conv1", "bn1", "conv2", "bn2", "conv3"),
    "resnext_B": ("conv1", "bn1", "conv2", "bn2"),
    "resnext_C": (),
}

_BLOCK = re.compile(r"(.*layer\d+\.\d+\.)(.*)")
_PATH = re.compile(r"paths\.(\d+)\.(.*)")


def convert(state, form, cardinality):
    """The same net's state in `form`, "resnext_A", "resnext_B" or "resnext_C": a new dict.

    `state` is the state dict of a resnext or preresnext in any of the forms, or another dict of
    tensors under the names of its parameters, such as gradients or momentum. The result shares no
    memory with it, and has the order of the other net. What is in no block passes through.
    """
    assert form in _BY_PATH, f"form {form} is none of {', '.join(_BY_PATH)}"
    result, blocks = {}, {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        block, rest = match.groups() if match else (name, "")
        blocks.setdefault(block, {})[rest] = tensor.detach()
    for block, entries in blocks.items():
        wide = _join(block, entries, cardinality)
        for rest, tensor in _divide(wide, _BY_PATH[form], cardinality).items():
            result[block + rest] = tensor.clone()
    return result


def _layer(name):
    return name.split(".")[0]


def _join(block, entries, cardinality):
    """One block's entries in form C."""
    wide = {}
    for name, tensor in entries.items():
        match = _PATH.fullmatch(name)
        if match is None:
            wide[name] = tensor
        elif match[1] == "0":
            paths = [entries.get(f"paths.{i}.{match[2]}") for i in range(cardinality)]
            shapes = {None if path is None else path.shape for path in paths}
            assert shapes == {tensor.shape}, f"{block}{name}: {cardinality} alike are expected"
            wide[match[2]] = _concatenate(paths, _JOINED[_layer(match[2])])
        else:
            assert int(match[1]) < cardinality, f"{block}{name}: the net has more paths"
    if "conv2.weight" in wide:
        outputs, inputs = wide["conv2.weight"].shape[:2]
        assert outputs == inputs * cardinality, f"{block}conv2 has {outputs // inputs} groups"
    return wide


def _concatenate(paths, axis):
    # the number of batches a batch norm has seen has no dimension, and is the same in each path
    return torch.cat(paths, axis) if paths[0].dim() else paths[0]


def _divide(wide, by_path, cardinality):
    """One block's entries in another form than C, or in C if no layer is by path."""
    divided = [name for name in wide if _layer(name) in by_path]
    entries = {}
    for name, tensor in wide.items():
        if name not in divided:
            entries[name] = tensor
        elif name == divided[0]:
            for i in range(cardinality):
                for own in divided:
                    entries[f"paths.{i}.{own}"] = _part(wide[own], own, i, cardinality)
    return entries


def _part(tensor, name, i, cardinality):
    if not tensor.dim():
        return tensor
    axis = _JOINED[_layer(name)]
    size, rest = divmod(tensor.shape[axis], cardinality)
    assert not rest, f"{name}: {tensor.shape[axis]} channels are not {cardinality} paths"
    return tensor.narrow(axis, i * size, size)

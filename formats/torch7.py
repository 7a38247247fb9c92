"""Nets of Torch7: converts a t7 tree of nn, cudnn and cunn modules to config and state, and back.

Reading infers the configuration from a few modules of the tree. It then compares the whole tree
with what the Lua files build for that configuration (torch7_layout.py): the class, numbers and
shapes of every module. Writing builds those modules with all fields that Torch7's have.

Also read: a net inside nn.DataParallelTable; old batch norm without running_var; convolutions with
a bias, which the batch norm after them absorbs; and the released ResNets that are older than the
final Lua files. In this file a *place* is a pair (path, module), such as ("5.1.2", module).
"""

import math
from itertools import zip_longest

import torch

from formats import state_dicts, t7
from formats.torch7_layout import EPS, counts, layout, unnested
from runtime.errors import InputError

PACKAGES = ("nn", "cudnn", "cunn", "fbnn")
DEFAULTS = {"groups": 1, "ceil_mode": False}  # for fields that old modules lack


def from_t7(tree, source="the file"):
    """The configuration and the state dict of a net that Torch7 wrote.

    A tensor of the state is a view of the tree's where nothing had to be computed. If the net is
    none of ours, InputError names the first module that does not fit.
    """
    try:
        if _class_name(tree) == "DataParallelTable":
            tree = next(iter(_children("", tree)), ("", None))[1]
        _check_unshared(tree)
        config, kind, blocks = _infer(tree)
        state, biases = {}, []
        _match(layout(config, kind, blocks), "", tree, state, biases)
    except InputError as error:
        raise InputError(f"{source} is not a net of this program: {error}") from None
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
    for entry, bias in biases:  # batch norm: weight (x - mean) / sqrt(var + eps) + bias
        state[entry] = state[entry] + (bias if entry.endswith("bias") else -bias)
    state = {name: tensor.detach().to(dtype) for name, tensor in state.items()}
    state_dicts.count_batches(state)
    return config, state


def split(flat, state):
    """Split a flat tensor in the order of getParameters(), such as the momentum: {name: tensor}."""
    names = [name for name in state if name.endswith((".weight", ".bias"))]
    sizes = [state[name].numel() for name in names]
    if flat.numel() != sum(sizes):
        raise InputError(f"{flat.numel()} numbers for a net of {sum(sizes)} parameters")
    parts = flat.flatten().split(sizes)
    return {n: part.view_as(state[n]) for n, part in zip(names, parts)}


def _refuse(path, module, problem):
    name = getattr(module, "typename", "")
    what = f"module {path}" if path else "the whole"
    raise InputError(f"{what}, {name}, {problem}" if name else f"{what} {problem}")


def _class_name(module):
    """A module's class, without the package if it is one of PACKAGES."""
    package, _, name = getattr(module, "typename", "").partition(".")
    return name.removesuffix("MM") if package in PACKAGES else f"{package}.{name}"


def _children(path, module):
    """The places of a container's modules, without nn.Copy, which does nothing in our nets."""
    modules = module.get("modules") if isinstance(module, t7.Object) else None
    if not isinstance(modules, t7.Table):
        _refuse(path, module, "is not a container of modules")
    places = [(f"{path}.{i}".lstrip("."), part) for i, part in enumerate(modules.array(), 1)]
    for place in places:
        if not isinstance(place[1], t7.Object):
            _refuse(*place, "is not a module")
    return [place for place in places if _class_name(place[1]) != "Copy"]


def _check_unshared(net):
    """Refuse a module that is in the net twice.

    None of our nets has one. In a net that contains itself the code below would not end, and in one
    that nests shared parts it would take exponential time.
    """
    seen, todo = {}, [("", net)]
    while todo:
        path, module = todo.pop()
        if id(module) in seen:
            other = seen[id(module)]
            _refuse(path, module, f"is also {f'module {other}' if other else 'the whole net'}")
        seen[id(module)] = path
        todo += _children(path, module) if not path or "modules" in module else []


def _match(node, path, module, state, biases):
    """Compare a module with its node; collect its tensors in `state` and its bias in `biases`.

    A Sequential in a Sequential is the same function as its modules in the outer one.
    """
    if "Sequential" in (node.class_name, _class_name(module)):
        expected, found = unnested(node), _sequence(path, module)
    else:
        _match_fields(node, path, module, state, biases)
        expected, found = node.children, _children(path, module) if node.children else []
    for i, (child, place) in enumerate(zip_longest(expected, found)):
        if child is None:
            _refuse(*place, "comes after the last expected module")
        if place is None:
            _refuse(path, module, f"ends after {i} modules, before a {child.class_name}")
        _match(child, *place, state, biases)


def _match_fields(node, path, module, state, biases):
    if _class_name(module) != node.class_name:
        _refuse(path, module, f"is where a {node.class_name} should be")
    for field, value in node.numbers.items():
        found = _number(module, field)
        if found != value:
            _refuse(path, module, f"has {field} {found}, not {value}")
    for field, shape in node.shapes.items():
        state[f"{node.name}.{field}"] = _tensor(path, module, field, shape)
    if node.class_name == "SpatialConvolution" and module.get("bias") is not None:
        bias = _tensor(path, module, "bias", node.shapes["weight"][:1])
        if bias.count_nonzero() and not node.bias_into:
            _refuse(path, module, "has a bias, and no batch norm after it can absorb it")
        if bias.count_nonzero():
            biases.append((node.bias_into, bias))


def _number(module, field):
    default = module.get("padding", 0) if "pad" in field else DEFAULTS.get(field)
    value = module.get(field, default)
    return value if isinstance(value, (bool, int, float)) else None


def _tensor(path, module, field, shape):
    tensor = module.get(field)
    if field == "running_var" and tensor is None and "running_std" in module:
        # before version 2; in spite of its name it holds 1 / sqrt(var + eps)
        tensor = (_tensor(path, module, "running_std", shape).pow(-2) - EPS).clamp(min=0)
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        _refuse(path, module, f"has no {field}")
    if tensor.untyped_storage().nbytes() < tensor.nbytes:  # before it is converted, and grows
        _refuse(path, module, f"has a {field} that repeats fewer numbers")
    if len(shape) == 4 and tensor.shape == (shape[0], math.prod(shape[1:])):
        tensor = tensor.reshape(shape)  # SpatialConvolutionMM has (outputs, inputs kH kW)
    if tensor.shape != shape:
        _refuse(path, module, f"has a {field} of size {tuple(tensor.shape)}, not {shape}")
    return tensor


def _infer(net):
    """Infer the configuration, the kind of block and the blocks in each stage from a few modules.

    `_match` checks all the others.
    """
    modules = _children("", net)
    stages = [_children(*place) for place in modules if _class_name(place[1]) == "Sequential"]
    blocks = [_children(*place) for stage in stages for place in stage]
    if not blocks or not all(stages) or not all(blocks):
        _refuse("", net, "has no stages of residual blocks")
    branches, shortcuts, after_sums = zip(*map(_split_block, blocks))
    large = _number(modules[0][1], "kW") == 7
    after_stages = "".join(_class_names(modules)).rpartition("Sequential")[2]
    pre = after_stages.startswith("SpatialBatchNormalization")
    layers, form = _form(branches, large)
    classes = modules[-1][1].get("weight")
    if not isinstance(classes, torch.Tensor) or classes.ndim != 2:
        _refuse(*modules[-1], "is not a classifier")
    config = {
        "net": ("pre" if pre else "") + ("resnext" if form else "resnet"),
        "depth": 2 + layers * len(blocks),
        "classes": len(classes),
        "stem": "imagenet" if large else "cifar",
        "shortcut": _shortcut_type(shortcuts),
        **form,
    }
    norm = _norm(shortcuts, after_sums[0])
    if norm and not form and norm != ("branch" if pre else "each"):
        config["norm"] = norm
    return config, "basic" if layers == 2 else "bottleneck", tuple(map(len, stages))


def _split_block(block):
    """The places of a block's branch, of its shortcut (or None), and after the sum."""
    for i, (path, module) in enumerate(block):
        if _class_name(module) == "ConcatTable":
            parts = [_sequence(*place) for place in _children(path, module)]
            # the paths of forms A and B are in a ConcatTable too, with six or more modules each
            if len(parts) == 2 and 0 < len(parts[1]) <= 2:
                return *parts, block[i + 1 :]
    return block, None, []


def _sequence(path, module):
    """The places in a Sequential and in those inside it; for any other module, its own place.

    The published ResNeXts nest the first two convolutions of each branch.
    """
    if _class_name(module) != "Sequential":
        return [(path, module)]
    return [part for place in _children(path, module) for part in _sequence(*place)]


def _class_names(places):
    return [_class_name(module) for _, module in places]


def _shortcut_type(shortcuts):
    first = [places[0][1] for places in shortcuts if places]
    if not first:
        return "none"
    if any(_class_name(module) == "SpatialAveragePooling" for module in first):
        return "A"
    # C has convolutions where the width stays, B has identities there
    convs = [module for module in first if _class_name(module) == "SpatialConvolution"]
    same = any(_number(m, "nInputPlane") == _number(m, "nOutputPlane") for m in convs)
    return "C" if same else "B"


def _norm(shortcuts, after_sum):
    """The configuration's `norm` (see `layout`), or None if no shortcut has a convolution."""
    if "SpatialBatchNormalization" in _class_names(after_sum):
        return "sum"
    convs = [_class_names(places) for places in shortcuts if places]
    convs = [kinds for kinds in convs if kinds[0] == "SpatialConvolution"]
    return ("branch" if len(convs[0]) == 1 else "each") if convs else None


def _form(branches, large):
    """The number of convolutions in a block; and, for a ResNeXt, cardinality, width and form."""
    tables = [[p for p in branch if _class_name(p[1]) == "ConcatTable"] for branch in branches]
    paths = _children(*tables[0][0]) if tables[0] else []
    layers = _sequence(*paths[0]) if paths else branches[0]
    convs = [place for place in layers if _class_name(place[1]) == "SpatialConvolution"]
    others = {len(_children(*place)) for places in tables for place in places}
    if len(convs) not in (2, 3) or (paths and len(others) > 1):
        raise InputError("the branches of its blocks are not basic, bottleneck, form B or form A")
    if len(convs) == 2 and not paths:
        return 2, {}
    width = _positive(*convs[0], "nOutputPlane")
    if paths:
        form, cardinality = "resnext_B" if len(convs) == 2 else "resnext_A", len(paths)
    else:
        form, cardinality = "resnext_C", _positive(*convs[1], "groups")
        width //= cardinality
        if cardinality == 1 and width == 64:  # the same as the bottleneck of ResNet
            if large:
                return 3, {}
            form = "resnet"
    return 3, {"cardinality": cardinality, "base_width": width, "bottleneck": form}


def _positive(path, module, field):
    value = _number(module, field)
    if not isinstance(value, int) or value < 1:
        _refuse(path, module, f"has {field} {value}")
    return value


def to_t7(config, state):
    """The tree that Torch7 would save for a net, for t7.save; double if the state is, else float.

    As in the original's nets, convolutions, ReLU and average pooling are cudnn's.
    """
    tree = _build(layout(config, *counts(state)), state)
    tree["modules"][1].pop("gradInput")  # as models/*.lua do: the image needs no gradient
    return tree


def _build(node, state):
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
    name = t7.NAMES[dtype]
    # each module gets its own tables, tensors and storages: shared ones would be shared in Lua too
    fields = {"_type": name, "train": True, "output": torch.empty(0, dtype=dtype)}
    fields |= {"gradInput": torch.empty(0, dtype=dtype)} | node.numbers
    for field, value in node.fields.items():
        made = {dict: t7.Table, tuple: _sizes}.get(type(value))
        fields[field] = made(value) if made else value
    for field, shape in node.shapes.items():
        fields[field] = state[f"{node.name}.{field}"].detach().to("cpu", dtype).contiguous()
        if not field.startswith("running"):
            fields[f"grad{field.capitalize()}"] = torch.zeros(shape, dtype=dtype)
    if node.children:
        parts = [_build(child, state) for child in node.children]
        fields["modules"] = t7.Table(enumerate(parts, 1))
    if node.class_name == "SpatialMaxPooling":
        fields["indices"] = torch.empty(0, dtype=torch.int64)
    typename = f"{'cudnn' if node.cudnn else 'nn'}.{node.class_name}"
    version = 2 if node.class_name == "SpatialBatchNormalization" else 1
    return t7.Object(typename, fields, version)


def _sizes(sizes):
    return t7.Storage("torch.LongStorage", torch.tensor(sizes, dtype=torch.int64))

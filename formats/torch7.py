"""Nets of Torch7: from a t7 tree of nn, cudnn and cunn modules to our config and state, and back.

Reading guesses the configuration from a few places of the tree, then holds the whole tree against
what the Lua files build for it (torch7_layout.py): the class, the numbers and the shapes of every
module. Writing gives those modules the fields of Torch7's own.

Also read: nn.DataParallelTable around a net, batch norm from before it had a running_var,
convolutions with a bias (the batch norm behind takes it), and the released ResNets that are older
than the Lua files' last form.
"""

import math
from itertools import zip_longest

import torch

from formats import t7
from formats.torch7_layout import EPS, counts, layout
from runtime.errors import InputError

PACKAGES = ("nn", "cudnn", "cunn", "fbnn")
DEFAULTS = {"groups": 1, "ceil_mode": False}  # of fields that old modules do not have


def from_t7(tree, source="the file"):
    """The configuration and the state dict of a net that Torch7 wrote.

    The state's tensors are views into those of the tree where nothing had to be computed. A net
    that is none of ours is an InputError that names the first module that has no place.
    """
    try:
        if _kind(tree) == "DataParallelTable":
            tree = next(iter(_children("", tree)), ("", None))[1]
        _check_apart(tree)
        config, kind, blocks = _guess(tree)
        state, biases = {}, []
        _match(layout(config, kind, blocks), "", tree, state, biases)
    except InputError as error:
        raise InputError(f"{source} is no net of this program: {error}") from None
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
    for sink, bias in biases:  # batch norm: weight (x - mean) / sqrt(var + eps) + bias
        state[sink] = state[sink] + (bias if sink.endswith("bias") else -bias)
    state = {name: tensor.detach().to(dtype) for name, tensor in state.items()}
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return config, state


def split(flat, state):
    """A flat tensor in the order of getParameters(), such as optimState.dfdx, by parameter."""
    names = [name for name in state if name.endswith((".weight", ".bias"))]
    sizes = [state[name].numel() for name in names]
    if flat.numel() != sum(sizes):
        raise InputError(f"{flat.numel()} numbers for a net of {sum(sizes)} parameters")
    return {n: part.view_as(state[n]) for n, part in zip(names, flat.split(sizes))}


def _fail(path, module, problem):
    name = getattr(module, "typename", "")
    what = f"module {path}" if path else "the whole"
    raise InputError(f"{what}, {name}, {problem}" if name else f"{what} {problem}")


def _kind(module):
    """A module's class without its package; the whole name where the package is another."""
    package, _, kind = getattr(module, "typename", "").partition(".")
    return kind.removesuffix("MM") if package in PACKAGES else f"{package}.{kind}"


def _children(path, module):
    """[(path, module), ...] of what is in a container. nn.Copy does nothing here: left out."""
    modules = module.get("modules") if isinstance(module, t7.Object) else None
    if not isinstance(modules, t7.Table):
        _fail(path, module, "is not a container of modules")
    pairs = [(f"{path}.{i}".lstrip("."), part) for i, part in enumerate(modules.array(), 1)]
    for place in pairs:
        if not isinstance(place[1], t7.Object):
            _fail(*place, "is no module")
    return [place for place in pairs if _kind(place[1]) != "Copy"]


def _check_apart(net):
    """Refuse a module that stands at two places: none of our nets has one, and in a net that
    contains itself, or a part of it often, what follows would not end."""
    seen, todo = {}, [("", net)]
    while todo:
        path, module = todo.pop()
        if id(module) in seen:
            _fail(path, module, f"stands at {seen[id(module)] or 'the top'} as well")
        seen[id(module)] = path
        todo += _children(path, module) if not path or "modules" in module else []


def _match(node, path, module, state, biases):
    """Hold a module against what should be there and take its tensors into the state."""
    if node.kind != "Sequential" and _kind(module) == "Sequential":
        children = _children(path, module)
        if len(children) == 1:  # a Sequential of one is that one
            path, module = children[0]
    if node.kind == "Sequential" and _kind(module) != "Sequential" and len(node.children) == 1:
        node = node.children[0]
    if _kind(module) != node.kind:
        _fail(path, module, f"stands where a {node.kind} should be")
    for field, value in node.numbers.items():
        found = _number(module, field)
        if found != value:
            _fail(path, module, f"has {field} {found}, not {value}")
    for field, shape in node.shapes.items():
        state[f"{node.name}.{field}"] = _tensor(path, module, field, shape)
    if node.kind == "SpatialConvolution" and module.get("bias") is not None:
        bias = _tensor(path, module, "bias", node.shapes["weight"][:1])
        if bias.count_nonzero() and not node.sink:
            _fail(path, module, "has a bias that no batch norm behind it can take")
        if bias.count_nonzero():
            biases.append((node.sink, bias))
    if not node.children:
        return
    pairs = zip_longest(node.children, _children(path, module))
    for i, (child, (child_path, part)) in enumerate((c, p or ("", None)) for c, p in pairs):
        if child is None:
            _fail(child_path, part, "stands behind the last module that should be there")
        if part is None:
            _fail(path, module, f"ends after {i} modules, before a {child.kind}")
        _match(child, child_path, part, state, biases)


def _number(module, field):
    default = module.get("padding", 0) if "pad" in field else DEFAULTS.get(field)
    value = module.get(field, default)
    return value if isinstance(value, (bool, int, float)) else None


def _tensor(path, module, field, shape):
    tensor = module.get(field)
    if field == "running_var" and tensor is None and "running_std" in module:
        # until version 2 it was 1 / sqrt(var + eps), in spite of its name
        tensor = _tensor(path, module, "running_std", shape).pow(-2) - EPS
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        _fail(path, module, f"has no {field}")
    if len(shape) == 4 and tensor.shape == (shape[0], math.prod(shape[1:])):
        tensor = tensor.reshape(shape)  # as SpatialConvolutionMM has it
    if tensor.shape != shape:
        _fail(path, module, f"has a {field} of size {tuple(tensor.shape)}, not {shape}")
    return tensor


def _guess(net):
    """Configuration, kind of block and blocks of each stage by a tree's most telling places.

    `_match` checks the rest.
    """
    modules = _children("", net)
    stages = [_children(*place) for place in modules if _kind(place[1]) == "Sequential"]
    blocks = [_children(*place) for stage in stages for place in stage]
    if not blocks or not all(stages) or not all(blocks):
        _fail("", net, "has no stages of residual blocks")
    branches, shortcuts, ends = zip(*map(_parted, blocks))
    large = _number(modules[0][1], "kW") == 7
    behind = "".join(_kinds(modules)).rpartition("Sequential")[2]
    pre = behind.startswith("SpatialBatchNormalization")
    layers, form = _form(branches, large)
    classes = modules[-1][1].get("weight")
    if not isinstance(classes, torch.Tensor) or classes.ndim != 2:
        _fail(*modules[-1], "is no classifier")
    config = {
        "net": ("pre" if pre else "") + ("resnext" if form else "resnet"),
        "depth": 2 + layers * len(blocks),
        "classes": len(classes),
        "stem": "imagenet" if large else "cifar",
        "shortcut": _shortcut_type(shortcuts),
        **form,
    }
    norm = _norm(shortcuts, ends[0])
    if norm and not form and norm != ("branch" if pre else "each"):
        config["norm"] = norm
    return config, "basic" if layers == 2 else "bottleneck", tuple(map(len, stages))


def _parted(block):
    """The modules of a block's branch, those of its shortcut or None, and those behind the sum."""
    for i, (path, module) in enumerate(block):
        if _kind(module) == "ConcatTable":
            parts = [_sequence(*place) for place in _children(path, module)]
            # the paths of forms A and B stand in a ConcatTable too; each has six modules or more
            if len(parts) == 2 and 0 < len(parts[1]) <= 2:
                return *parts, block[i + 1 :]
    return block, None, []


def _sequence(path, module):
    """What is in a Sequential; of anything else, itself."""
    return _children(path, module) if _kind(module) == "Sequential" else [(path, module)]


def _kinds(places):
    return [_kind(module) for _, module in places]


def _shortcut_type(shortcuts):
    first = [places[0][1] for places in shortcuts if places]
    if not first:
        return "none"
    if any(_kind(module) == "SpatialAveragePooling" for module in first):
        return "A"
    # C has convolutions where the width stays, B has identities there
    convs = [module for module in first if _kind(module) == "SpatialConvolution"]
    same = any(_number(m, "nInputPlane") == _number(m, "nOutputPlane") for m in convs)
    return "C" if same else "B"


def _norm(shortcuts, ends):
    """Where the batch norms stand (see `layout`), or None where shortcuts do not tell."""
    if "SpatialBatchNormalization" in _kinds(ends):
        return "sum"
    convs = [_kinds(places) for places in shortcuts if places]
    convs = [kinds for kinds in convs if kinds[0] == "SpatialConvolution"]
    return ("branch" if len(convs[0]) == 1 else "each") if convs else None


def _form(branches, large):
    """Weight layers of a block, and cardinality, width and form where it is a ResNeXt's."""
    tables = [[p for p in branch if _kind(p[1]) == "ConcatTable"] for branch in branches]
    paths = _children(*tables[0][0]) if tables[0] else []
    layers = _sequence(*paths[0]) if paths else branches[0]
    convs = [place for place in layers if _kind(place[1]) == "SpatialConvolution"]
    others = {len(_children(*place)) for places in tables for place in places}
    if len(convs) not in (2, 3) or (paths and len(others) > 1):
        raise InputError("the branches of its blocks are none of basic, bottleneck, form B and A")
    if len(convs) == 2 and not paths:
        return 2, {}
    width = _positive(*convs[0], "nOutputPlane")
    if paths:
        form, cardinality = "resnext_B" if len(convs) == 2 else "resnext_A", len(paths)
    else:
        form, cardinality = "resnext_C", _positive(*convs[1], "groups")
        width //= cardinality
        if cardinality == 1 and width == 64:  # the bottleneck of ResNet, which cannot be told apart
            if large:
                return 3, {}
            form = "resnet"
    return 3, {"cardinality": cardinality, "base_width": width, "bottleneck": form}


def _positive(path, module, field):
    value = _number(module, field)
    if not isinstance(value, int) or value < 1:
        _fail(path, module, f"has {field} {value}")
    return value


def to_t7(config, state, package="cudnn"):
    """The tree that Torch7 would save for a net, for t7.save; float, or double as the state is.

    `package` is whose convolutions, ReLU and pooling are written. The original's nets have those of
    cudnn; those of nn run without a GPU, but have no groups.
    """
    tree = _build(layout(config, *counts(state)), state, package)
    tree["modules"][1].pop("gradInput")  # models/*.lua: nobody asks for the image's
    return tree


def _build(node, state, package):
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
    name = t7.NAMES[dtype]
    # tables, tensors and storages are made anew for each module: in Lua too, sharing is kept
    fields = {"_type": name, "train": True, "output": torch.empty(0, dtype=dtype)}
    fields |= {"gradInput": torch.empty(0, dtype=dtype)} | node.numbers
    for field, value in node.fields.items():
        made = {dict: t7.Table, tuple: _sizes}.get(type(value))
        fields[field] = made(value) if made else value
    for field, shape in node.shapes.items():
        tensor = state[f"{node.name}.{field}"].detach().to("cpu", dtype).contiguous()
        assert tensor.shape == shape, f"{node.name}.{field}: {tuple(tensor.shape)}, not {shape}"
        fields[field] = tensor
        if not field.startswith("running"):
            fields[f"grad{field.capitalize()}"] = torch.zeros(shape, dtype=dtype)
    if node.children:
        parts = [_build(child, state, package) for child in node.children]
        fields["modules"] = t7.Table(enumerate(parts, 1))
    typename = f"{package if node.cudnn else 'nn'}.{node.kind}"
    fields |= _particular(typename, fields)
    version = 2 if node.kind == "SpatialBatchNormalization" else 1
    return t7.Object(typename, fields, version)


def _sizes(sizes):
    return t7.Storage("torch.LongStorage", torch.tensor(sizes, dtype=torch.int64))


def _particular(typename, fields):
    """Fields that a class has beside those of its layout."""
    if typename == "nn.SpatialConvolution" and fields.pop("groups") > 1:
        raise InputError("nn.SpatialConvolution has no groups: write form B, or cudnn's classes")
    if typename == "nn.ReLU":
        return {"threshold": 0, "val": 0}
    if typename == "nn.SpatialAveragePooling":
        return {"divide": True}  # without it, it adds up
    if typename == "nn.SpatialMaxPooling":
        return {"indices": torch.empty(0, dtype=torch.int64)}
    return {"size": _sizes([fields["numElements"]])} if typename == "nn.View" else {}

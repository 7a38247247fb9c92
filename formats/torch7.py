"""Nets of Torch7: converts a t7 tree of nn, cudnn and cunn modules to config and state, and back.

Reading compares the whole tree with what the Lua files build for each configuration that it may
have (torch7_layout.py): the class, numbers and shapes of every module. Writing builds
those modules with all fields that Torch7's have.

Also read: a net inside nn.DataParallelTable; old batch norm without running_var; convolutions with
a bias, which the batch norm after them absorbs; and the released ResNets that are older than the
final Lua files. In this file a *place* is a pair (path, module), such as ("5.1.2", module).
"""

import math
from itertools import product, zip_longest

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
        config, state = _recognised(tree)
        state_dicts.absorb_biases(state)
    except InputError as error:
        raise InputError(f"{source} is not a net of this program: {error}") from None
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
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


def _match(node, path, module):
    """Compare a module with its node; yields the entries of our state dict of each module below.

    A Sequential in a Sequential is the same function as its modules in the outer one.
    """
    if "Sequential" in (node.class_name, _class_name(module)):
        expected, found = unnested(node), _sequence(path, module)
    else:
        yield _tensors(node, path, module)
        expected, found = node.children, _children(path, module) if node.children else []
    for i, (child, place) in enumerate(zip_longest(expected, found)):
        if child is None:
            _refuse(*place, "comes after the last expected module")
        if place is None:
            _refuse(path, module, f"ends after {i} modules, before a {child.class_name}")
        yield from _match(child, *place)


def _tensors(node, path, module):
    """The tensors of a module, if its class and numbers are those of its node."""
    if _class_name(module) != node.class_name:
        _refuse(path, module, f"is where a {node.class_name} should be")
    for field, value in node.numbers.items():
        found = _number(module, field)
        if found != value:
            _refuse(path, module, f"has {field} {found}, not {value}")
    shapes = node.shapes
    if node.class_name == "SpatialConvolution" and module.get("bias") is not None:
        shapes = {**shapes, "bias": shapes["weight"][:1]}
    return {f"{node.name}.{f}": _tensor(path, module, f, shape) for f, shape in shapes.items()}


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
        _refuse(path, module, f"has a {field} with fewer numbers than its size needs")
    if len(shape) == 4 and tensor.shape == (shape[0], math.prod(shape[1:])):
        tensor = tensor.reshape(shape)  # SpatialConvolutionMM has (outputs, inputs kH kW)
    if tensor.shape != shape:
        _refuse(path, module, f"has a {field} of size {tuple(tensor.shape)}, not {shape}")
    return tensor


def _recognised(net):
    """The configuration and the tensors of a net, those of the first candidate that fits.

    If none fits, InputError names the module at which the best candidate fails.
    """
    failures = []
    for config, kind, blocks in _candidates(net):
        matched, state = 0, {}
        try:
            for tensors in _match(layout(config, kind, blocks), "", net):
                matched += 1
                state |= tensors
        except InputError as error:
            failures.append((matched, error))
        else:
            return config, state
    raise max(failures, key=lambda failure: failure[0])[1]


def _candidates(net):
    """What a net may be: configurations, with the kind of block and the blocks in each stage.

    Stem, classes and the numbers of blocks are read from the tree, the sizes of all blocks from the
    first one.
    """
    modules = _children("", net)
    stages = [_children(*place) for place in modules if _class_name(place[1]) == "Sequential"]
    convs = [conv for place in stages[0][:1] for conv in _convolutions(*place)] if stages else []
    threes = [place for place in convs if _number(place[1], "kW") == 3]
    if not threes or not all(stages):
        _refuse("", net, "has no stages of residual blocks")
    classes = modules[-1][1].get("weight")
    if not isinstance(classes, torch.Tensor) or classes.ndim != 2:
        _refuse(*modules[-1], "is not a classifier")
    large, basic = _number(modules[0][1], "kW") == 7, threes[0] is convs[0]
    counts = tuple(map(len, stages))
    common = {
        "depth": 2 + (2 if basic else 3) * sum(counts),
        "classes": len(classes),
        "stem": "imagenet" if large else "cifar",
    }
    pre = "SpatialBatchNormalization" in [_class_name(module) for _, module in modules[-5:]]
    for form in [{}] if basic else _forms(convs[0], threes, large):
        norms = ("branch", "each") if pre else ("each", "branch", "sum")
        for norm, shortcut in product(norms[:1] if form else norms, ("B", "A", "C", "none")):
            name = ("pre" if pre else "") + ("resnext" if form else "resnet")
            config = {"net": name, **common, "shortcut": shortcut, **form}
            if norm != norms[0]:
                config["norm"] = norm
            yield config, "basic" if basic else "bottleneck", counts


def _convolutions(path, module):
    """The places of the convolutions in a module and in those inside it, in order."""
    if _class_name(module) == "SpatialConvolution":
        return [(path, module)]
    parts = _children(path, module) if "modules" in module else []
    return [conv for place in parts for conv in _convolutions(*place)]


def _forms(first, threes, large):
    """What the bottlenecks of a net may be, as entries of a configuration; none is ResNet's.

    first, threes: the places of the first and of the 3x3 convolutions of a block.
    """
    width, groups = _positive(*first, "nOutputPlane"), _positive(*threes[0], "groups")
    forms = [
        {"bottleneck": "resnext_C", "cardinality": groups, "base_width": width // groups},
        {"bottleneck": "resnext_B", "cardinality": len(threes), "base_width": width},
        {"bottleneck": "resnext_A", "cardinality": len(threes), "base_width": width},
    ]
    if (groups, width) == (1, 64):
        forms[0] = {} if large else {**forms[0], "bottleneck": "resnet"}
    return forms


def _sequence(path, module):
    """The places in a Sequential and in those inside it; for any other module, its own place.

    The published ResNeXts nest the first two convolutions of each branch.
    """
    if _class_name(module) != "Sequential":
        return [(path, module)]
    return [part for place in _children(path, module) for part in _sequence(*place)]


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
    tree["modules"][1].pop("gradInput")  # as models/*.lua do, because the image needs no gradient
    return tree


def _build(node, state):
    dtype = torch.float64 if state["fc.weight"].dtype == torch.float64 else torch.float32
    name = t7.NAMES[dtype]
    # each module gets its own tables, tensors and storages, or Lua would share them as well
    fields = {"_type": name, "train": True, "output": torch.empty(0, dtype=dtype)}
    fields |= {"gradInput": torch.empty(0, dtype=dtype)} | node.numbers
    for field, value in node.fields.items():
        if isinstance(value, tuple):
            value = t7.Storage("torch.LongStorage", torch.tensor(value, dtype=torch.int64))
        fields[field] = t7.Table() if isinstance(value, dict) else value
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

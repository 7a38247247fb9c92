"""State dicts of other programs: found in what was saved, renamed, and their net inferred.

Our layers have torchvision's names. A state dict does not contain the configuration of its net,
which is inferred from names and shapes.
"""

import re
from collections import Counter

import torch
from torch.nn import functional as F

from runtime.errors import InputError, shown
from storage import archives

# Names of other programs, and ours. Each rule applies to what those before it have made.
_RENAMED = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        # prlz77/ResNeXt.pytorch and bearpaw/pytorch-classification
        (r"^conv_1_3x3\.", "conv1."),
        (r"^bn_1\.", "bn1."),
        (r"^stage_(\d)\.stage_\d_bottleneck_", r"layer\1."),
        (r"\.(conv|bn)_reduce\.", r".\g<1>1."),
        (r"\.conv_conv\.", ".conv2."),
        (r"\.bn\.", ".bn2."),
        (r"\.(conv|bn)_expand\.", r".\g<1>3."),
        (r"\.shortcut\.shortcut_conv\.", ".downsample.0."),
        (r"\.shortcut\.shortcut_bn\.", ".downsample.1."),
        # transformers
        (r"^embedder\.embedder\.convolution\.", "conv1."),
        (r"^embedder\.embedder\.normalization\.", "bn1."),
        *((rf"^encoder\.stages\.{stage - 1}\.layers\.", f"layer{stage}.") for stage in range(1, 5)),
        *((rf"\.layer\.{i - 1}\.convolution\.", f".conv{i}.") for i in range(1, 4)),
        *((rf"\.layer\.{i - 1}\.normalization\.", f".bn{i}.") for i in range(1, 4)),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
        # kuangliu/pytorch-cifar
        (r"\.shortcut\.", ".downsample."),
        # nn.Sequential(*net.children()) of torchvision's nets, often cut before the classifier
        (r"^0\.", "conv1."),
        (r"^1\.", "bn1."),
        *((rf"^{stage + 3}\.(?=\d+\.[a-z])", rf"layer{stage}.") for stage in range(1, 5)),
    )
]
# The first convolution, with what wrappers put before it: module. model. backbone. and so on
_FIRST = re.compile(r"((?:.+\.)?)(?:conv1|conv_1_3x3|0|embedder\.embedder\.convolution)\.weight")
_TRUNK = re.compile(
    r"(?:(?:layer\d+\.\d+\.)?(?:conv\d|bn\d|bn_\w+)|layer\d+\.\d+\.downsample\.[01])"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
)
_OF_A_TRUNK = re.compile("conv|bn|layer|norm|stem")  # how the names of other trunks begin
_CLASSIFIER = re.compile(
    r"((?:.+\.)?(?:fc|linear|last_linear|classifier|head)(?:\.\d+)?|\d+)\.(weight|bias)"
)
# If a file has both nets of a pair, we take the second, which the other program tests or trains
_PREFERRED = (
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("encoder_k", "encoder_q"),
)


def find(saved, key=None, classifier=True):
    """The state dict of the net in what a program saved, under our names.

    key: which of several nets, by the keys and prefixes before its entries. classifier: whether
    one is needed; if not, one output of zeros replaces a missing one, or one of another kind.
    InputError says which entry has no place in our nets.
    """
    place, entries, prefix = _chosen(saved, key)
    trunk, rest, misfits = {}, {}, []
    for name, tensor in entries.items():
        ours = _renamed(name[len(prefix) :]) if name.startswith(prefix) else ""
        if _TRUNK.fullmatch(ours):
            trunk[ours] = tensor
        elif _OF_A_TRUNK.match(ours):
            misfits.append(name)
        elif name.rpartition(".")[2] != "n_averaged":  # of torch.optim.swa_utils.AveragedModel
            rest[name] = tensor
    if "layer1.0.conv1.weight" not in trunk:
        misfits = [name for name in entries if _renamed(name) not in trunk] or [""]
    if misfits:
        fault = f"{shown(misfits[0])} has no place in" if misfits[0] else "it lacks most entries of"
        raise InputError(f"{fault} a ResNet or ResNeXt")
    matches = list(filter(None, map(_CLASSIFIER.fullmatch, rest)))
    last = matches[0][1] if len({match[1] for match in matches}) == 1 else None  # two are an MLP
    trunk |= {f"fc.{match[2]}": rest.pop(match[0]) for match in matches if last}
    if "fc.weight" in trunk:  # a linear layer may have no bias
        trunk.setdefault("fc.bias", trunk["fc.weight"].new_zeros(trunk["fc.weight"].shape[:1]))
    if last is None and classifier:
        raise InputError(
            "it has no classifier, no fc.weight: extract_features.py needs none, and for training"
            " -resetClassifier true makes one"
        )
    if rest and classifier and key is None:
        hint = f" (FILE:{place} takes that net alone)" if place else ""
        raise InputError(f"{shown(next(iter(rest)))} has no place in a ResNet or ResNeXt{hint}")
    if last and last.endswith("linear") and not any("downsample" in name for name in trunk):
        raise InputError(
            "its shortcuts have no weights and its classifier is called linear, so it is one of"
            " akamaster's nets, which pad channels on both sides, where ours pad behind"
        )
    if last is None or (rest and not classifier):
        trunk |= _no_classifier(trunk)
    return trunk


def _chosen(saved, key):
    """(place, entries, prefix) of the only net that was saved, or of the one that `key` names."""
    found, largest = {}, {}
    for place, entries in _state_dicts(saved):
        largest = max(largest, entries, key=len)
        for prefix in _prefixes(entries):
            found[f"{place}{prefix}".rstrip(".")] = (entries, prefix)
    parts = {place: place.split(".") for place in found}
    for worse, better in _PREFERRED:
        if any(better in words for words in parts.values()):
            parts = {place: words for place, words in parts.items() if worse not in words}
    if key is not None:
        parts = {place: words for place, words in parts.items() if f".{key}." in f".{place}."}
        if not parts:
            known = f", only {', '.join(map(shown, found))}" if found else ""
            raise InputError(f"it has no net {shown(key)}{known}")
    if len(parts) > 1:
        # an average of the weights during training tests better than the weights
        best = min(parts, key=lambda place: (not re.search("ema|teacher", place), place))
        places = ", ".join(parts)
        raise InputError(f"it has {len(parts)} nets, {places:.300}: name one as FILE:{best}")
    if not largest:
        objects = [part.name for part in saved.values() if isinstance(part, archives.Skipped)]
        held = f", but objects that need code, such as a {objects[0]}" if objects else ""
        raise InputError(f"it has no state dict{held}: save net.state_dict() of a net")
    place = next(iter(parts), "")
    return place, *found.get(place, (largest, ""))


def _state_dicts(value, place=""):
    """(keys before it, its tensors) of each dict that has tensors, in nested dicts and lists."""
    if type(value) in (list, tuple):
        value = dict(enumerate(value))
    parts = value.items() if isinstance(value, dict) else ()
    tensors = {str(name): part for name, part in parts if isinstance(part, torch.Tensor)}
    if tensors:
        yield place, _from_tree(tensors)
    for name, part in parts:
        yield from _state_dicts(part, f"{place}{name}.")


def _from_tree(entries):
    """The same tensors; names that are places in the tree of a .t7 (4.0.0.1.weight) become ours.

    clcarwin's program makes such names, and Cadene's weights were made by it.
    """
    firsts = filter(None, map(re.compile(r"((?:.+\.)?)0\.weight").fullmatch, entries))
    prefix = min((match[1] for match in firsts), key=len, default=None)
    if prefix is None:
        return entries
    layers = {}
    for name in entries:
        place, _, field = name[len(prefix) :].rpartition(".")
        if name.startswith(prefix) and place.replace(".", "").isdecimal():
            layers.setdefault(place, {})[field] = name
    if not all("weight" in names for names in layers.values()):
        return entries
    places = sorted(layers, key=lambda place: [(len(part), part) for part in place.split(".")])
    names = _named([(place, entries[layers[place]["weight"]].ndim) for place in places])
    ours = set(names.values())
    if "layer1.0.conv1" not in ours or len(ours) < len(places):  # of another form
        return entries
    renamed = {
        name: f"{prefix}{names[place]}.{field}"
        for place in places
        for field, name in layers[place].items()
    }
    return {renamed.get(name, name): tensor for name, tensor in entries.items()}


def _named(places):
    """{place: our name} of the layers of a tree, as the Lua files build it.

    places: in order, with the number of dimensions of the weights, which is 4 for a convolution, 1
    for a batch norm. A place is the numbers of a stage, a block, and a module inside; a block holds
    a pair of branch and shortcut.
    """
    names, stages, convs = {}, {}, Counter()
    for place, ndim in places:
        outer, *rest = place.split(".")
        if ndim == 2:
            names[place] = "fc"
        elif not rest:
            names[place] = "conv1" if ndim == 4 else "bn_last" if stages else "bn1"
        else:
            stage, (number, *inside) = stages.setdefault(outer, len(stages) + 1), rest
            block = f"layer{stage}.{number}."
            if inside[1:2] == ["1"]:
                layer = "downsample.0" if ndim == 4 else "downsample.1"
            elif ndim == 4:
                convs[block] += 1
                layer = f"conv{convs[block]}"
            else:  # one that is not in the branch stands before it or after the sum
                layer = "bn_sum" if len(inside) == 1 and convs[block] else f"bn{convs[block]}"
            names[place] = block + layer
    return names


def _prefixes(entries):
    """What stands before the names of each net in a state dict."""
    for name, tensor in entries.items():
        match = _FIRST.fullmatch(name)
        if match and tensor.ndim == 4 and tensor.shape[1] == 3:
            prefix = match[1]
            names = (_renamed(n[len(prefix) :]) for n in entries if n.startswith(prefix))
            if "layer1.0.conv1.weight" in names:
                yield prefix


def _renamed(name):
    for pattern, ours in _RENAMED:
        name = pattern.sub(ours, name)
    return name


def count_batches(state):
    """Give each batch norm a count of batches, which our nets do not use.

    There is none before PyTorch 0.4.1; it may be inf where a program made all tensors half.
    """
    for name in [name for name in state if name.endswith("running_var")]:
        counter = name.replace("running_var", "num_batches_tracked")
        count = state.get(counter)
        if count is None or count.dtype != torch.int64 or count.ndim:
            state[counter] = torch.tensor(0)


def convert(state):
    """Give a state dict the shapes and entries of ours, and return the configuration of its net.

    The net stays the same function. InputError as `infer`.
    """
    first = state.get("conv1.weight")
    if first is not None and first.shape[2:] == (1, 1):  # kuangliu's ResNeXt-29
        state["conv1.weight"] = F.pad(first, (1, 1, 1, 1))
    config = infer(state)
    absorb_biases(state)
    return config


def absorb_biases(state):
    """Move the biases of convolutions, which our nets lack, into the batch norms after them.

    The originals' released nets have such biases, some of zeros. InputError where no batch norm
    can absorb one.
    """
    for name in [name for name in state if re.search(r"(?:conv\d|downsample\.0)\.bias$", name)]:
        bias, into = state.pop(name), _absorbing(name.removesuffix(".bias"), state)
        if into is not None and state[into].shape == bias.shape:
            state[into] = state[into] + (bias if into.endswith("bias") else -bias)
        elif bias.any():
            raise InputError(f"{shown(name)} is a bias that no batch norm after it can absorb")


def _absorbing(conv, state):
    """The entry of a state dict that can absorb the bias of a convolution, or None.

    Batch norm is weight (x - running_mean) / sqrt(running_var + eps) + bias.
    """
    block = re.match(r"(?:layer\d+\.\d+\.)?", conv)[0]
    own = conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
    after_paths = f"{block}{own.rpartition('.')[2]}"  # in form A it follows their sum
    for norm in (own, f"{block}bn_sum", after_paths):
        if f"{norm}.running_mean" in state:
            return f"{norm}.running_mean"
    # a shortcut without batch norm: the branch's last one adds the bias to the sum
    last = f"{block}bn3.bias" if f"{block}conv3.weight" in state else f"{block}bn2.bias"
    return last if "downsample" in conv and last in state else None


def _no_classifier(trunk):
    """A classifier of one output that is always 0."""
    convs = [t for n, t in trunk.items() if re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", n)]
    zeros = convs[-1].new_zeros(1, len(convs[-1]) if convs[-1].ndim else 1)
    return {"fc.weight": zeros, "fc.bias": zeros[0, :1].clone()}


def infer(state):
    """The configuration of the net of a state dict with torchvision's names.

    It is inferred from a few entries; models/loading.py checks that all others fit. InputError
    names an entry that no ResNet or ResNeXt has. What weights cannot show is assumed to be as in
    our nets: the stride is in the 3x3 convolution, with no blur before it (see hubs.py).
    """
    kernel = _shape(state, "conv1.weight", 4)[-1]
    if kernel not in (3, 7):
        raise InputError(f"conv1.weight has a kernel of {kernel}, not 7 (ImageNet) or 3 (CIFAR)")
    large = kernel == 7
    blocks = {name.split(".conv")[0] for name in state if re.match(r"layer\d+\.\d+\.conv1", name)}
    stages, own = len({name.split(".")[0] for name in blocks}), 4 if large else 3
    if stages != own:
        stem = f"a {kernel}x{kernel} first convolution"
        raise InputError(f"it has {stages} stages after {stem}, where our nets have {own}")
    bottleneck, pre = "layer1.0.conv3.weight" in state, "bn_last.weight" in state
    config = {
        "net": "preresnet" if pre else "resnet",
        "depth": 2 + (3 if bottleneck else 2) * len(blocks),
        "classes": _shape(state, "fc.weight", 2)[0],
        "stem": "imagenet" if large else "cifar",
        "shortcut": _shortcut_type(state),
    }
    width, inputs = _shape(state, "layer1.0.conv2.weight", 4)[:2]
    if bottleneck and (not large or (width, inputs) != (64, 64)):
        form = "resnext_C" if (width, inputs) != (64, 64) else "resnet"
        cardinality = width // max(inputs, 1)
        config |= {"net": "preresnext" if pre else "resnext", "cardinality": cardinality}
        config |= {"base_width": width // max(cardinality, 1), "bottleneck": form}
        expansion = _shape(state, "layer1.0.conv3.weight", 4)[0] // 64
        config |= {"expansion": expansion} if expansion != 4 and not pre else {}
    elif (norm := _norm(state)) not in (None, "branch" if pre else "each"):
        config["norm"] = norm
    return config


def _shape(state, name, dimensions):
    tensor = state.get(name)
    if tensor is None or tensor.ndim != dimensions:
        raise InputError(f"it has no {name} of {dimensions} dimensions")
    return tensor.shape


def _shortcut_type(state):
    """B has convolutions where the width changes, C in every block, A (or none) in no block."""
    convs = [t for name, t in state.items() if name.endswith("downsample.0.weight")]
    if not convs:
        return "A"
    return "C" if any(conv.shape[:1] == conv.shape[1:2] for conv in convs) else "B"


def _norm(state):
    """Which batch norms the blocks have (see models/blocks.py), if the weights show it."""
    if any(".downsample.1." in name for name in state):
        return "each"
    if "layer1.0.bn_sum.weight" in state:
        return "sum"
    return "branch" if any(".downsample." in name for name in state) else None

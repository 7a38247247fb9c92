"""Nets of torchvision and timm: infers a bare state dict's configuration; downloads weights.

Our layers have torchvision's names, so a state dict needs no renaming. It does not contain the
configuration of its net, which is inferred from names and shapes.
"""

import contextlib
import json
import os
import re
import sys

import torch

from runtime import regular_files
from runtime.errors import InputError

# The nets that torchvision has too; a wide ResNet is a ResNeXt of cardinality 1 and base width 128
NETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)

# The input spec of torchvision's V1 weights ("resize": Pillow's kernel instead of Torch's)
V1 = {
    **{"scale": 256, "crop": 224, "largest": 1},
    **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resize": "bilinear"},
}

# Entries in which training programs save the weights; averaged ones first, since those are tested
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# of DataParallel, of torch.compile, and of a net in a module of Lightning
_PREFIXES = re.compile(r"(?:module\.|_orig_mod\.|model\.|net\.)*")
# timm's nets that blur before they subsample: their weights have a plain ResNet's names and shapes
_BLURRED = re.compile(r"(?:resnetaa50|resnetblur18|resnetblur50)(?![a-z0-9])")
_NAME = re.compile(
    r"(?:(?:layer\d+\.\d+\.)?(?:conv\d|bn\d)|layer\d+\.\d+\.downsample\.[01]|fc)"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
)


def plain(saved):
    """The state dict in a training program's checkpoint, its names without wrappers' prefixes."""
    for name in _WRAPPERS:
        if isinstance(saved.get(name), dict):
            saved = saved[name]
            break
    state = {_PREFIXES.sub("", str(name), 1): tensor for name, tensor in saved.items()}
    state.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    return state


def refuse_blurred(path, saved, metadata=None):
    """InputError if something says that a file has a net of timm that blurs (_BLURRED).

    saved, metadata: the checkpoint, and a safetensors file's metadata. Other sources are the file's
    name and timm's config.json on the Hugging Face hub.
    """
    folder, file = os.path.split(path)
    args = saved.get("args")  # of timm's train.py
    names = [file, saved.get("arch"), args.get("model") if isinstance(args, dict) else None]
    names.append((metadata or {}).get("architecture"))
    if file in ("model.safetensors", "pytorch_model.bin"):
        with (
            contextlib.suppress(OSError, ValueError, AttributeError, RecursionError),
            regular_files.opened(os.path.join(folder, "config.json")) as config,
        ):
            names.append(json.loads(config.read(1 << 20)).get("architecture"))
    for name in names:
        found = _BLURRED.match(name) if isinstance(name, str) else None
        if found:
            raise InputError(
                f"{path} is timm's {found[0]}, which blurs before it subsamples: no net of this"
                " program does"
            )


def infer(state):
    """The configuration of the net of a state dict with torchvision's names.

    It is inferred from a few entries; models/loading.py checks that all others fit. InputError
    names an entry that no ResNet or ResNeXt has. What weights cannot show is assumed to be as in
    our nets: the stride is in the 3x3 convolution, with no blur before it (see `refuse_blurred`).
    """
    for name in state:
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r:.80} has no place in a ResNet or ResNeXt")
    kernel = _shape(state, "conv1.weight", 4)[-1]
    if kernel not in (3, 7):
        raise InputError(f"conv1.weight has a kernel of {kernel}, not 7 (ImageNet) or 3 (CIFAR)")
    large = kernel == 7
    blocks = {name.split(".conv")[0] for name in state if re.match(r"layer\d+\.\d+\.conv1", name)}
    bottleneck = "layer1.0.conv3.weight" in state
    config = {
        "net": "resnet",
        "depth": 2 + (3 if bottleneck else 2) * len(blocks),
        "classes": _shape(state, "fc.weight", 2)[0],
        "stem": "imagenet" if large else "cifar",
        "shortcut": _shortcut_type(state),
    }
    width, inputs = _shape(state, "layer1.0.conv2.weight", 4)[:2]
    if bottleneck and (not large or (width, inputs) != (64, 64)):
        form = "resnext_C" if (width, inputs) != (64, 64) else "resnet"
        cardinality = width // max(inputs, 1)
        config |= {"net": "resnext", "cardinality": cardinality}
        config |= {"base_width": width // max(cardinality, 1), "bottleneck": form}
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


def download(name):
    """The content (see model_files.py) of "torchvision:NET", or "torchvision:NET:WEIGHTS".

    WEIGHTS is a name such as IMAGENET1K_V1; the default is torchvision's. They are downloaded
    once, into torch.hub's folder.
    """
    from torchvision.models import get_model_weights  # takes a second, which other files save

    net, _, member = name.removeprefix("torchvision:").partition(":")
    if net not in NETS:
        raise InputError(f"{name} is unknown: after torchvision: comes one of {', '.join(NETS)}")
    known = get_model_weights(net)
    if member and member not in known.__members__:
        names = ", ".join(weights.name for weights in known)
        raise InputError(f"{name} is unknown: the weights of {net} are {names}")
    weights = known[member] if member else known.DEFAULT
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    try:
        state = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except Exception as error:  # network, disk, hash or damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot get {name}: neither a good copy in {folder} nor {weights.url} ({reason})"
        ) from None
    transform = weights.transforms()
    spec = {
        **{"scale": transform.resize_size[0], "crop": transform.crop_size[0], "largest": 1},
        **{"mean": tuple(transform.mean), "std": tuple(transform.std)},
        "resize": transform.interpolation.value,
    }
    classes = list(weights.meta["categories"])
    config = infer(state)
    return {"model": state, "config": config, "classes": classes, "preprocessing": spec}

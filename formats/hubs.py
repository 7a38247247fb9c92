"""What torchvision, timm and transformers say of a net; torchvision's weights by name."""

import contextlib
import json
import os
import re
import sys

import torch

from formats.state_dicts import infer
from runtime import regular_files
from runtime.errors import InputError, cause, shown
from runtime.terminal import note

# The input spec of torchvision's V1 weights ("resize": Pillow's kernel instead of Torch's)
V1 = {"scale": 256, "crop": 224, "largest": 1, "resize": "bilinear"}
V1 |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# What changes the pixels in a pretrained_cfg of timm: the values that we follow, and the default
_PIXELS = {
    "input_size": (
        lambda v: isinstance(v, list) and len(v) == 3 and v[1] == v[2] and type(v[2]) is int,
        [3, 224, 224],
    ),
    "crop_pct": (lambda v: type(v) in (int, float) and 0.01 <= v <= 1, 0.875),
    "crop_mode": (("center", "squash").__contains__, "center"),
    "interpolation": (("bilinear", "bicubic").__contains__, "bicubic"),
    "mean": (bool, V1["mean"]),  # model_files.checked_spec says which it may be
    "std": (bool, V1["std"]),
}

# timm's nets that blur before they subsample: their weights have a plain ResNet's names and shapes
_BLURRED = re.compile(r"(?:resnetaa50|resnetblur18|resnetblur50)(?![a-z0-9])")


def config(path):
    """The config.json beside a file of the Hugging Face hub, in timm's form; {} without one."""
    folder, file = os.path.split(path)
    if file not in regular_files.MODEL_FILES[1:]:
        return {}
    found = _json(folder, "config.json")
    if found.get("model_type") == "resnet":
        return found | _of_transformers(folder, found)
    return found


def _json(folder, name):
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(regular_files.read_bytes(os.path.join(folder, name), 1 << 20))
        return found if isinstance(found, dict) else {}
    return {}


def _of_transformers(folder, found):
    """What transformers says of a ResNet, in timm's words."""
    processor, names = _json(folder, "preprocessor_config.json"), found.get("id2label")
    labels = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else None
    for key in ("image_processor_type", "feature_extractor_type"):
        _followed(folder, processor, key, lambda v: str(v).startswith("ConvNext"), "ConvNext")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        _followed(folder, processor, key, (True,).__contains__, True)
    _followed(folder, processor, "rescale_factor", (1 / 255,).__contains__, 1 / 255)
    size = _followed(folder, processor, "size", lambda v: type(_edge(v)) is int, 224)
    resample = _followed(folder, processor, "resample", (2, 3).__contains__, 2)
    small = _edge(size) < 384  # a ConvNextImageProcessor crops no others
    cfg = {
        "input_size": [3, _edge(size), _edge(size)],
        "crop_pct": processor.get("crop_pct") if small else 1,
        "crop_mode": "center" if small else "squash",
        "mean": processor.get("image_mean"),
        "std": processor.get("image_std"),
        "interpolation": {2: "bilinear", 3: "bicubic"}[resample],
    }
    return {"pretrained_cfg": cfg if processor else {}, "label_names": labels}


def _edge(size):
    return size.get("shortest_edge") if isinstance(size, dict) else size


def _followed(folder, found, key, follows, default):
    """A value of a configuration, or its default; a line names one that we do not follow."""
    value = found.get(key)
    if value is None or follows(value):
        return default if value is None else value
    note(f"=> {folder}: {key} {shown(value)} is not followed; {shown(default)} is used")
    return default


def described(content, layers):
    """The config.json of a net for timm and transformers. InputError if timm lacks such a net.

    content: see model_files.py. layers: the number of blocks in each stage.
    """
    net, spec = content["config"], content["preprocessing"]
    form = net.get("bottleneck", "resnet")
    known = net["net"] in ("resnet", "resnext") and form in ("resnet", "resnext_C")
    parts = {"stem": "imagenet", "shortcut": "B", "norm": "each", "expansion": 4}
    parts["preactivation"] = False
    if not known or any(net.get(name, value) != value for name, value in parts.items()):
        raise InputError(
            "timm has the nets resnet and resnext, with the ImageNet stem, shortcut B, a batch norm"
            " after each convolution and the form resnext_C (-form): this net is another one"
        )
    if form == "resnet":
        found = {"architecture": f"resnet{net['depth']}"}
    else:
        size = {"cardinality": net["cardinality"], "base_width": net["base_width"]}
        found = {"architecture": "resnext50_32x4d", "model_args": {"layers": layers, **size}}
    cfg = {"num_classes": net["classes"], "first_conv": "conv1", "classifier": "fc"}
    if spec:
        cfg |= {"input_size": [3, spec["crop"], spec["crop"]], "crop_mode": "center"}
        cfg |= {"crop_mode": "squash"} if spec.get("squash") else {}
        cfg |= {name: [n / spec["largest"] for n in spec[name]] for name in ("mean", "std")}
        cfg |= {"crop_pct": spec["crop"] / spec["scale"]}
        cfg |= {"interpolation": spec.get("resize", "bilinear")}
    found |= {"num_classes": net["classes"], "pretrained_cfg": cfg}
    return found | ({"label_names": content["classes"]} if content["classes"] else {})


def refuse_others(path, saved, metadata, hub):
    """InputError if something says that a net blurs (_BLURRED), or where else it subsamples.

    saved, metadata: the checkpoint, and a safetensors file's metadata. hub: its `config`.
    """
    args = saved.get("args")  # of timm's train.py
    names = [os.path.basename(path), saved.get("arch"), metadata.get("architecture")]
    names += [args.get("model") if isinstance(args, dict) else None, hub.get("architecture")]
    for name in names:
        found = _BLURRED.match(name) if isinstance(name, str) else None
        if found:
            raise InputError(
                f"{path} is timm's {found[0]}, which blurs before it subsamples, as no net of this"
                " program does"
            )
    for place in ("downsample_in_bottleneck", "downsample_in_first_stage"):  # of transformers
        if hub.get(place):
            raise InputError(
                f"{path} subsamples where no net of this program does: its config.json has {place}"
            )


def input_spec(path, hub):
    """The input spec that a `config` of the hub beside the file `path` describes, or None."""
    found = hub.get("pretrained_cfg", hub)  # timm once wrote all in one dict
    if not isinstance(found, dict) or not found.keys() & _PIXELS.keys():
        return None
    folder = os.path.dirname(path)
    values = {key: _followed(folder, found, key, *rest) for key, rest in _PIXELS.items()}
    size = values["input_size"][-1]
    spec = {
        "scale": int(size / values["crop_pct"]),  # rounded down, as in timm
        "crop": size,
        "largest": 1,
        "mean": values["mean"],
        "std": values["std"],
        "resize": values["interpolation"],
    }
    return spec | ({"squash": True} if values["crop_mode"] == "squash" else {})


def class_names(hub, outputs):
    """The class names of a `config` of the hub, or None if it has none for so many outputs."""
    parts = [part for part in (hub, hub.get("pretrained_cfg")) if isinstance(part, dict)]
    for names in [part.get(key) for part in parts for key in ("label_names", "labels")]:
        is_list = isinstance(names, list) and len(names) == outputs
        if is_list and all(isinstance(name, str) for name in names):
            return names
    return None


def download(name):
    """The content (see model_files.py) of "torchvision:NET", or "torchvision:NET:WEIGHTS".

    WEIGHTS is a name such as IMAGENET1K_V1; the default is torchvision's. They are downloaded
    once, into torch.hub's folder.
    """
    from torchvision.models import get_model_weights  # takes a second, which other files save

    net, _, member = name.removeprefix("torchvision:").partition(":")
    if net not in regular_files.TORCHVISION:
        nets = ", ".join(regular_files.TORCHVISION)
        raise InputError(f"{name} is unknown: torchvision: should be followed by one of {nets}")
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
        damaged = os.path.exists(os.path.join(folder, os.path.basename(weights.url)))
        place = f"in place of the damaged one in {folder}" if damaged else f"into {folder}"
        raise InputError(
            f"cannot get {name} ({cause(error)}): download {weights.url} where there is a network,"
            f" and put the file {place}"
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

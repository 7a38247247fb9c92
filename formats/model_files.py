"""Model files, each kind told by its bytes: `read(source)` and `write(path, content)`.

The content is what models.pack makes: {"model": state dict, "config": {"net": ..., **arguments of
its function}, "classes": list of names or None, "preprocessing": the input spec, a dict, or None}.

Read are our own .pth, state dicts as torchvision and timm save them (.pth of any age,
.safetensors), Torch7's .t7, torchvision's weights by name; written are .pth, .safetensors and .t7.
No code that is in a file is run.
"""

import argparse
import json
import math
import os
import re

import torch

from formats import t7, torch7, torchvision
from runtime.errors import InputError
from storage import atomic

EXTENSIONS = (".pth", ".safetensors", ".t7")  # of what `write` writes
TORCH7_NETS = ("resnet", "preresnet", "resnext", "preresnext")

_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_ABOUT = ("config", "classes", "preprocessing")


def read(source):
    """The content of a model file, or of a name such as "torchvision:resnext50_32x4d".

    A bare state dict does not say what its net was shown. With an ImageNet stem the input spec is
    torchvision's for its first weights (shorter side 256, crop 224, bilinear); timm's nets often
    want bicubic and another size, which their `pretrained_cfg` knows. With a CIFAR stem it is None.

    A .t7 file that `write` made has its input spec and classes; Torch7's own has neither, and its
    content an entry "torch7": True.

    Weights keep their type. InputError names the file and what is wrong with it.
    """
    source = os.fspath(source)
    if source.startswith("torchvision:"):
        return torchvision.download(source)
    found = kind(source)
    if found == "t7":
        return _read_t7(source)
    saved = _read_safetensors(source) if found == "safetensors" else _load(source)
    if not isinstance(saved, dict):
        raise InputError(f"{source} holds no state dict: save that of a net, net.state_dict()")
    config = saved.get("config")
    if isinstance(config, dict) and "net" in config:
        return _own(source, saved)
    return _bare(source, saved)


def write(path, content):
    """Write a model file of the kind that the extension says; it appears whole or not at all.

    Torch7 has no half precision and counts no batches: .t7 holds float32 in place of float16 and
    bfloat16, and num_batches_tracked, which no net of ours uses, is 0 when it is read again.
    """
    extension = os.path.splitext(path)[1]
    if extension not in EXTENSIONS:
        raise InputError(f"{path} should end in one of {', '.join(EXTENSIONS)}")
    try:
        if extension == ".pth":
            atomic.save(path, {name: content[name] for name in ("model", *_ABOUT)})
        elif extension == ".safetensors":
            _write_safetensors(path, content)
        else:
            _write_t7(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def kind(path):
    """The kind of a file by its first bytes: "torch", "safetensors" or "t7"."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise InputError(f"File not found: {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path!r}: {reason}") from None
    # before the others, for the length of a header may begin with any byte
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    if head.startswith((b"PK\3\4", b"\x80")):  # a zip, or a pickle as before PyTorch 1.6
        return "torch"
    # Torch7 begins with the type of a value, 0 to 8, in four bytes or a line of text
    if head[:4] in [bytes([i, 0, 0, 0]) for i in range(9)] or re.match(rb"[0-8]\s", head):
        return "t7"
    what = "is none of PyTorch's, safetensors or Torch7's" if head else "is empty"
    raise InputError(f"{path} is no model file: it {what}")


def is_t7(path):
    """Whether a file is Torch7's."""
    return kind(path) == "t7"


def load_t7(path):
    """The tree of a Torch7 file (see t7.load); a bad file is an InputError."""
    try:
        return t7.load(path, mapped=False)  # the file may change while the model lives
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def describe(content):
    """All but the weights as {name: JSON}, for formats that have room for texts."""
    return {name: json.dumps(content[name]) for name in _ABOUT}


def _load(path):
    # training programs save their options along: a Namespace, which only holds values
    with torch.serialization.safe_globals([argparse.Namespace]):
        return atomic.load(path)


def _own(path, saved):
    """The content of a file of ours, looked at before a net is built by what it says."""
    state, config = saved.get("model"), saved["config"]
    check_state(path, state)
    if not isinstance(config["net"], str) or "fc.weight" not in state:
        raise InputError(f"{path} is damaged: it lacks the name of the net or fc.weight")
    numbers = sum(tensor.numel() for tensor in state.values())
    limits = dict.fromkeys(("cardinality", "base_width", "classes"), numbers)
    for name, limit in {"depth": len(state), **limits}.items():
        value = config.get(name)
        if isinstance(value, int) and value > limit:
            raise InputError(f"{path} is damaged: it has too few weights for {name} {value}")
    classes, spec = saved.get("classes"), saved.get("preprocessing")
    if classes is not None and not _are(classes, str):
        raise InputError(f"{path} is damaged: its classes are no list of names")
    spec = checked_spec(path, spec)
    return {"model": state, "config": config, "classes": classes, "preprocessing": spec}


def _bare(path, saved):
    """The content of a state dict that does not say what net it is of."""
    state = torchvision.plain(saved)
    check_state(path, state)
    try:
        config = torchvision.infer(state)
    except InputError as error:
        raise InputError(f"{path} is no net of this program: {error}") from None
    for name in [name for name in state if name.endswith("running_var")]:
        # PyTorch has counted batches since 0.4.1
        counter = name.replace("running_var", "num_batches_tracked")
        state.setdefault(counter, torch.tensor(0))
    spec = torchvision.V1 if config["stem"] == "imagenet" else None
    return {"model": state, "config": config, "classes": None, "preprocessing": spec}


def check_state(path, state):
    """Refuse what is no state dict, or has other things in it than weights and their memory."""
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} holds no state dict: save that of a net, net.state_dict()")
    for name, tensor in state.items():
        counter = str(name).endswith("num_batches_tracked")
        if (
            not isinstance(name, str)
            or not isinstance(tensor, torch.Tensor)
            or not (tensor.dtype in _WEIGHTS or (counter and tensor.dtype == torch.int64))
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.untyped_storage().nbytes() < tensor.nbytes  # a row that stands for many
        ):
            raise InputError(f"{path} holds no state dict: {name!r:.80} is no tensor of weights")


def _are(values, types, length=None):
    """Whether something is a list, of that length, of instances of these types."""
    listed = isinstance(values, (list, tuple)) and length in (None, len(values))
    return listed and all(isinstance(value, types) for value in values)


def checked_spec(path, found):
    """An input spec as datasets make it: JSON and Lua have lists, and Lua has no floats."""
    if found is None:
        return None
    number = (int, float)
    if (
        not isinstance(found, dict)
        or not _are([found.get("scale"), found.get("crop")], int)
        or not _are([found.get("largest")], number)
        or not _are(found.get("mean"), number, 3)
        or not _are(found.get("std"), number, 3)
        or not isinstance(found.get("resize", ""), str)
        or not min(found["scale"], found["crop"]) >= 1
        or not min(found["largest"], *found["std"]) > 0
        or not all(map(math.isfinite, (found["largest"], *found["mean"], *found["std"])))
    ):
        raise InputError(f"{path} is damaged: its preprocessing is {found!r:.200}")
    return found | {name: tuple(map(float, found[name])) for name in ("mean", "std")}


def _read_safetensors(path):
    """What a .pth would hold: our content, or a bare state dict."""
    safetensors = _safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if "config" not in about:
        return state
    try:
        return {"model": state} | {name: json.loads(about.get(name, "null")) for name in _ABOUT}
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: what it says of the net is not JSON") from None


def _write_safetensors(path, content):
    state = {}
    for name, tensor in content["model"].items():  # which safetensors wants apart and in order
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    encoded = _safetensors(path).torch.save(state, {"format": "pt", **describe(content)})
    with atomic.replacing(path) as file:
        file.write(encoded)


def _safetensors(path):
    try:
        import safetensors.torch
    except ImportError:
        raise InputError(f"{path}: this format needs a package: pip install safetensors") from None
    return safetensors


def _read_t7(path):
    tree = load_t7(path)
    config, state = torch7.from_t7(tree, path)
    content = {"model": state, "config": config, "classes": None, "preprocessing": None}
    classes, spec = tree.get("classes"), tree.get("preprocessing")
    if isinstance(classes, t7.Table) and _are(classes.array(), str, config["classes"]):
        content["classes"] = classes.array()
    if isinstance(spec, t7.Table):
        arrays = {k: v.array() if isinstance(v, t7.Table) else v for k, v in spec.items()}
        return content | {"preprocessing": checked_spec(path, arrays)}
    return content | {"torch7": True}


def _write_t7(path, content):
    config = content["config"]
    if config["net"] not in TORCH7_NETS:
        raise InputError(
            f"{path}: Torch7 has no net {config['net']}, only {', '.join(TORCH7_NETS)}"
        )
    if config.get("preactivation"):
        config = {**config, "net": "preresnext"}
    tree = torch7.to_t7(config, content["model"])
    # two fields more than the original's nets have; Lua carries them along
    tree |= {name: content[name] for name in ("classes", "preprocessing") if content[name]}
    with atomic.replacing(path) as file:
        t7.dump(file, tree)

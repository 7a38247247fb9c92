"""Model files: `read(source)`, which recognises the kind by its bytes, and `write(path, content)`.

The content is what models.pack makes, a dict of

- "model": the state dict,
- "config": {"net": name, **arguments of its function},
- "classes": a list of names, or None,
- "preprocessing": the input spec, a dict, or None.

`read` takes our own .pth; state dicts as torchvision and timm save them (.pth of any PyTorch
version, .safetensors); Torch7's .t7, also as .t7.gz; and torchvision's weights by name. `write`
makes .pth, .safetensors and .t7. Code inside a file is never run.
"""

import argparse
import gzip
import json
import math
import os
import re
import zlib

import torch

from formats import t7, torch7, torchvision
from runtime.errors import InputError
from storage import atomic

EXTENSIONS = (".pth", ".safetensors", ".t7")  # that `write` knows
DETECTOR = "faster_rcnn"  # the net of a detector's config (detection/files.py)
TORCH7_NETS = ("resnet", "preresnet", "resnext", "preresnext")

_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_LARGEST_T7 = 1 << 32  # bytes, of an unpacked .t7.gz: the largest released net has 0.7 GB
_METADATA = ("config", "classes", "preprocessing")


def read(source):
    """The content of a model file, or of a name such as "torchvision:resnext50_32x4d".

    A bare state dict has no input spec. With an ImageNet stem we take that of torchvision's V1
    weights (shorter side 256, crop 224, bilinear). timm's nets often need bicubic and another size;
    their `pretrained_cfg` says so. With a CIFAR stem the spec is None.

    A .t7 file from `write` has input spec and classes. One from Torch7 has neither; its content has
    an entry "torch7": True.

    Weights keep their dtype. InputError names the file and what is wrong with it.
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
        return _own_content(source, saved)
    return _bare_content(source, saved)


def write(path, content):
    """Write a model file atomically; the extension decides its kind.

    Torch7 has no half precision: a .t7 holds float32 instead of float16 and bfloat16. It does not
    count batches either: num_batches_tracked, which our nets do not use, is 0 when read back.
    """
    extension = os.path.splitext(path)[1]
    if extension not in EXTENSIONS:
        raise InputError(f"{path} should end in one of {', '.join(EXTENSIONS)}")
    try:
        if extension == ".pth":
            atomic.save(path, {name: content[name] for name in ("model", *_METADATA)})
        elif extension == ".safetensors":
            _write_safetensors(path, content)
        else:
            _write_t7(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def kind(path):
    """The kind of a file, from its first bytes: "torch", "safetensors" or "t7" (.t7.gz too)."""
    packed = _is_gzip(path)
    head = _head(path, gzip.open if packed else open)
    if not packed:
        # First, because the length of a safetensors header may begin with any byte
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
            return "safetensors"
        if head.startswith((b"PK\3\4", b"\x80")):  # a zip; or a pickle, before PyTorch 1.6
            return "torch"
    # A Torch7 file begins with a type tag, 0 to 8: four bytes, or a line of text
    if head[:4] in [bytes([i, 0, 0, 0]) for i in range(9)] or re.match(rb"[0-8]\s", head):
        return "t7"
    if packed:
        raise InputError(f"{path} is packed by gzip and no .t7.gz: unpack it")
    what = "is none of PyTorch's, safetensors or Torch7's" if head else "is empty"
    raise InputError(f"{path} is no model file: it {what}")


def _is_gzip(path):
    return _head(path, open).startswith(b"\x1f\x8b\x08")


def _head(path, opener):
    """The first bytes of a file, opened by `open` or gzip.open."""
    try:
        with opener(path, "rb") as file:
            return file.read(9)
    except FileNotFoundError:
        raise InputError(f"File not found: {path}") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path!r}: {reason}") from None


def _unpacked(path):
    """The bytes in a .t7.gz; InputError if they are more than _LARGEST_T7, or damaged."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(_LARGEST_T7 + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if len(data) > _LARGEST_T7:
        raise InputError(f"{path} unpacks to more than {_LARGEST_T7} bytes: unpack it by hand")
    return data


def is_t7(path):
    """Whether a file is Torch7's."""
    return kind(path) == "t7"


def load_t7(path):
    """The tree of a Torch7 file (see t7.load), also of a .t7.gz; a bad file is an InputError."""
    try:
        if _is_gzip(path):
            return t7.loads(_unpacked(path), str(path))
        return t7.load(path, mapped=False)  # the file may change while the model lives
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def describe(content):
    """All but the weights, as {name: JSON text}: metadata for other file formats."""
    return {name: json.dumps(content[name]) for name in _METADATA}


def _load(path):
    # training programs often save their options too: a Namespace, which only holds values
    with torch.serialization.safe_globals([argparse.Namespace]):
        return atomic.load(path)


def _own_content(path, saved):
    """The content of a file of ours, checked before a net is built from its configuration."""
    state, config = saved.get("model"), saved["config"]
    check_state(path, state)
    if config["net"] == DETECTOR:
        raise InputError(f"{path} holds a detector: detect.py trains, tests and shows it")
    if not isinstance(config["net"], str) or "fc.weight" not in state:
        raise InputError(f"{path} is damaged: it lacks the name of the net or fc.weight")
    numbers = sum(tensor.numel() for tensor in state.values())
    limits = dict.fromkeys(("cardinality", "base_width", "classes"), numbers)
    for name, limit in {"depth": len(state), **limits}.items():
        value = config.get(name)
        if isinstance(value, int) and value > limit:
            raise InputError(f"{path} is damaged: it has too few weights for {name} {value}")
    classes, spec = saved.get("classes"), saved.get("preprocessing")
    if classes is not None and not _is_list_of(classes, str):
        raise InputError(f"{path} is damaged: its classes are no list of names")
    spec = checked_spec(path, spec)
    return {"model": state, "config": config, "classes": classes, "preprocessing": spec}


def _bare_content(path, saved):
    """The content of a bare state dict: its configuration is inferred."""
    torchvision.refuse_blurred(path, saved)
    state = torchvision.plain(saved)
    check_state(path, state)
    try:
        config = torchvision.infer(state)
    except InputError as error:
        raise InputError(f"{path} is no net of this program: {error}") from None
    for name in [name for name in state if name.endswith("running_var")]:
        # state dicts from before PyTorch 0.4.1 do not have it
        counter = name.replace("running_var", "num_batches_tracked")
        state.setdefault(counter, torch.tensor(0))
    spec = torchvision.V1 if config["stem"] == "imagenet" else None
    return {"model": state, "config": config, "classes": None, "preprocessing": spec}


def check_state(path, state):
    """Refuse anything but a dict of names and dense CPU tensors of weights."""
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} holds no state dict: save that of a net, net.state_dict()")
    for name, tensor in state.items():
        counter = str(name).endswith("num_batches_tracked")
        if (
            not isinstance(name, str)
            or not isinstance(tensor, torch.Tensor)
            or not (tensor.dtype in _WEIGHT_DTYPES or (counter and tensor.dtype == torch.int64))
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.untyped_storage().nbytes() < tensor.nbytes  # expanded
        ):
            raise InputError(f"{path} holds no state dict: {name!r:.80} is no tensor of weights")


def _is_list_of(values, types, length=None):
    """Whether `values` is a list or tuple of instances of these types, of this length if given."""
    is_list = isinstance(values, (list, tuple)) and length in (None, len(values))
    return is_list and all(isinstance(value, types) for value in values)


def checked_spec(path, found):
    """The checked input spec; mean and std become tuples of floats, which JSON and Lua lack."""
    if found is None:
        return None
    number = (int, float)
    if (
        not isinstance(found, dict)
        or not _is_list_of([found.get("scale"), found.get("crop")], int)
        or not _is_list_of([found.get("largest")], number)
        or not _is_list_of(found.get("mean"), number, 3)
        or not _is_list_of(found.get("std"), number, 3)
        or not isinstance(found.get("resize", ""), str)
        or not min(found["scale"], found["crop"]) >= 1
        or not min(found["largest"], *found["std"]) > 0
        or not all(map(math.isfinite, (found["largest"], *found["mean"], *found["std"])))
    ):
        raise InputError(f"{path} is damaged: its preprocessing is {found!r:.200}")
    return found | {name: tuple(map(float, found[name])) for name in ("mean", "std")}


def _read_safetensors(path):
    """What a .pth would hold: content of ours, or a bare state dict."""
    safetensors = _safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if "config" not in metadata:
        torchvision.refuse_blurred(path, {}, metadata)
        return state
    try:
        return {"model": state} | {
            name: json.loads(metadata.get(name, "null")) for name in _METADATA
        }
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: its metadata is not JSON") from None


def _write_safetensors(path, content):
    state = {}
    for name, tensor in content["model"].items():  # safetensors needs unshared contiguous tensors
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
    if isinstance(classes, t7.Table) and _is_list_of(classes.array(), str, config["classes"]):
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
    # two fields more than the original's nets have; Lua ignores and keeps them
    tree |= {name: content[name] for name in ("classes", "preprocessing") if content[name]}
    with atomic.replacing(path) as file:
        t7.dump(file, tree)

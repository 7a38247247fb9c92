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

import gzip
import json
import os
import re
import zlib

import torch

from formats import hubs, other_files, state_dicts, t7, torch7
from runtime import regular_files
from runtime.errors import InputError, cause, shown
from runtime.options import LONGEST
from storage import archives, atomic, schema

EXTENSIONS = (".pth", ".safetensors", ".t7")  # that `write` knows
DETECTOR = "faster_rcnn"  # the net of a detector's config (detection/files.py)
TORCH7_NETS = ("resnet", "preresnet", "resnext", "preresnext")

_LARGEST_HEADER = 1 << 24  # bytes, of a safetensors file; a net's is below a million
_MOST_PACKED = 32  # times its size to which a .t7.gz may unpack; only the gradients are zeros
_GZIP = b"\x1f\x8b\x08"
# Numbers of a configuration
_WHOLE = ("depth", "cardinality", "base_width", "classes", "expansion")
_METADATA = ("config", "classes", "preprocessing")


def read(source, classifier=True):
    """The content of a model file, or of a name such as "torchvision:resnext50_32x4d".

    FILE:KEY names one of several nets in a file. classifier: whether a state dict of another
    program needs one, see state_dicts.find.

    A bare state dict has no input spec. With an ImageNet stem we take that of torchvision's V1
    weights (shorter side 256, crop 224, bilinear). timm's nets often need bicubic and another size;
    a file of the Hugging Face hub has a config.json beside it that says so. With a CIFAR stem the
    spec is None.

    A .t7 file from `write` has input spec and classes. One from Torch7 has neither; its content has
    an entry "torch7": True.

    Weights keep their dtype. InputError names the file and what is wrong with it.
    """
    source = os.fspath(source)
    if source.startswith("torchvision:"):
        return hubs.download(source)
    path, key = regular_files.split_key(source)
    path = regular_files.model_file(path)
    found = kind(path)
    if found == "t7":
        return _read_t7(path)
    metadata = {}
    if found == "safetensors":
        saved, metadata = _read_safetensors(path)
    else:
        saved = atomic.load(path, foreign=True)
    if isinstance(saved, archives.Skipped):
        raise InputError(
            f"{path} holds an object, a {saved.name}, which needs code: where that code runs,"
            f" {archives.STATE_DICT}"
        )
    if isinstance(saved, (list, tuple)):
        saved = dict(enumerate(saved))
    if not isinstance(saved, dict):
        raise InputError(f"{path} has no state dict: save net.state_dict() of a net")
    if saved.keys() >= {"model", *_METADATA}:
        return _own_content(path, saved)
    return _bare_content(source, path, saved, metadata, key, classifier)


def write(path, content):
    """Write a model file atomically; the extension decides its kind.

    Torch7 has no half precision: a .t7 holds float32 instead of float16 and bfloat16. It does not
    count batches either: num_batches_tracked, which our nets do not use, is 0 when read back.
    """
    extension = os.path.splitext(path)[1].lower()
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
        raise InputError(f"cannot write {path}: {cause(error)}") from None


def kind(path):
    """The kind of a file, from its first bytes: "torch", "safetensors" or "t7" (.t7.gz too)."""
    head = _head(path)
    # First, because the length of a safetensors header may begin with any byte
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    other_files.refuse(path, head)
    if head.startswith((b"PK\3\4", b"\x80")):  # a zip; or a pickle, before PyTorch 1.6
        return "torch"
    # A net of Torch7 begins with the tag of a table or an object: four bytes, or a line of text
    if re.match(rb"[\3\4]\0\0\0|[34]\s|" + _GZIP, head):
        return "t7"
    what = (
        "does not begin like one of PyTorch, safetensors or Torch7; for weights of another program,"
        f" {other_files.ARRAYS}"
    )
    raise InputError(f"{path} is not a model file: it {what if head else 'is empty'}")


def _head(path):
    """The first bytes of a file."""
    regular_files.check_input(path)
    with regular_files.opened(path) as file:
        return file.read(512)


def _unpacked(path):
    """The bytes in a .t7.gz; ValueError if they are damaged, or many for a file of its size."""
    try:
        with regular_files.opened(path) as file:
            largest = _MOST_PACKED * os.fstat(file.fileno()).st_size
            data = gzip.GzipFile(fileobj=file).read(largest + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {cause(error)}") from None
    if len(data) > largest:
        raise ValueError(f"{path} unpacks to over {_MOST_PACKED} times its size: unpack it by hand")
    return data


def is_onnx(source):
    """Whether a model is an exported one, without a state dict, which models/exported.py runs."""
    return os.fspath(source).lower().endswith(".onnx")


def load_t7(path):
    """The tree of a Torch7 file (see t7.load), also of a .t7.gz; a bad file is an InputError."""
    is_packed = _head(path).startswith(_GZIP)
    try:
        return t7.loads(_unpacked(path), str(path)) if is_packed else t7.load(path)
    except ValueError as error:
        hint = "; only a .t7 can be read while gzip packs it: unpack the file" if is_packed else ""
        raise InputError(f"{error}{hint}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {cause(error)}") from None


def describe(content):
    """All but the weights, as {name: JSON text}: metadata for other file formats."""
    return {name: json.dumps(content[name]) for name in _METADATA}


def described(path, metadata):
    """The inverse of `describe`; InputError if an entry is missing."""
    missing = [name for name in _METADATA if name not in metadata]
    if missing:
        found = ", ".join(missing)
        raise InputError(f"{path} lacks {found} in its metadata, which convert.py writes")
    try:
        found = {name: json.loads(metadata[name]) for name in _METADATA}
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: its metadata is not JSON") from None
    return archives.plain(found, path)


def _own_content(path, saved):
    """The content of a file of ours, checked before a net is built from its configuration."""
    state, config = saved["model"], saved["config"]
    check_state(path, state)
    net = config.get("net") if isinstance(config, dict) else None
    if net == DETECTOR:
        raise InputError(
            f"{path} holds a detector: detect.py trains, tests and shows it, hubconf.load loads it"
        )
    if not isinstance(net, str) or "fc.weight" not in state:
        raise InputError(f"{path} is damaged: it lacks the name of the net or fc.weight")
    check_config(path, config, state)
    about = classes_and_spec(path, saved, len(state["fc.weight"]))
    return {"model": state, "config": config, **about}


def classes_and_spec(path, saved, outputs):
    """The checked entries "classes" and "preprocessing" of a file; outputs: of its net."""
    classes = saved.get("classes")
    if classes is not None and not _are_names(classes, outputs):
        raise InputError(f"{path} is damaged: its classes are not a list of {outputs} names")
    return {"classes": classes, "preprocessing": checked_spec(path, saved.get("preprocessing"))}


def check_config(path, config, state):
    """InputError for a net's values that no net has, or for which the file has too few weights."""
    numbers = sum(tensor.numel() for tensor in state.values())
    for name, value in config.items():
        if not (value is None or type(value) in (str, bool, int, float) and value == value):
            raise InputError(f"{path} is damaged: the {shown(name)} of its net is {shown(value)}")
        if name in _WHOLE and (type(value) is not int or value < 1):
            raise InputError(f"{path} is damaged: its net has {name} {shown(value)}")
        if name in _WHOLE and value > (len(state) if name == "depth" else numbers):
            raise InputError(f"{path} is damaged: it has too few weights for {name} {value}")


def _bare_content(source, path, saved, metadata, key, classifier):
    """The content of what another program saved: a state dict, whose configuration is inferred."""
    hub = hubs.config(path)
    hubs.refuse_others(path, saved, metadata, hub)
    try:
        state = state_dicts.find(saved, key, classifier)
    except InputError as error:
        raise InputError(f"{source} is not a net of this program: {error}") from None
    state_dicts.count_batches(state)
    check_state(path, state)
    try:
        config = state_dicts.convert(state)
    except InputError as error:
        raise InputError(f"{path} is not a net of this program: {error}") from None
    spec = hubs.V1 if config["stem"] == "imagenet" else None
    spec = checked_spec(path, hubs.input_spec(path, hub)) or spec
    classes = hubs.class_names(hub, config["classes"])
    return {"model": state, "config": config, "classes": classes, "preprocessing": spec}


def check_state(path, state):
    """Refuse anything but a dict of names and finite weights; of one dtype but for batch norms."""
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} has no state dict: save net.state_dict() of a net")
    dtypes = {}
    for name, tensor in state.items():
        fault = "is not a name" if not isinstance(name, str) else _fault(name, tensor)
        if fault:
            raise InputError(f"{path} has no state dict of a net: {shown(name)} {fault}")
        layer = name.rpartition(".")[0]
        kind = f"{layer}.running_mean" in state  # some train these in float32, the rest in half
        if tensor.is_floating_point() and dtypes.setdefault(kind, tensor.dtype) != tensor.dtype:
            others = f"{tensor.dtype}, others are {dtypes[kind]}"
            raise InputError(f"{path} has no state dict of a net: {shown(name)} is {others}")


def separate(state):
    """The tensors of a state dict; those that share memory are copied.

    Training writes to parameters in place; with shared memory this would change others as well.
    """
    seen, found = set(), {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage()
        alone = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        found[name] = tensor if alone else tensor.clone()
    return found


def _fault(name, tensor):
    if name.endswith("num_batches_tracked") and isinstance(tensor, torch.Tensor):
        whole = tensor.dtype == torch.int64 and tensor.device.type == "cpu" and not tensor.ndim
        if whole or not tensor.is_floating_point():
            return None if whole else "is not a number of batches"
    fault = schema.tensor_fault(tensor)
    if fault is None and name.endswith("running_var") and tensor.numel() and tensor.min() < 0:
        return "has a negative variance"
    return fault


def _are_names(classes, outputs):
    """Whether these may be the class names of so many outputs; with -nClasses there are fewer."""
    count = len(classes) if _is_list_of(classes, (str,)) else 0
    return 0 < count <= outputs


def _is_list_of(values, types, length=None):
    """Whether `values` is a list or tuple of these types, of this length if given."""
    is_list = isinstance(values, (list, tuple)) and length in (None, len(values))
    return is_list and all(type(value) in types for value in values)


def checked_spec(path, found):
    """The checked input spec; mean and std become tuples of floats, which JSON and Lua lack."""
    if found is None:
        return None
    number = (int, float)
    if (
        not isinstance(found, dict)
        or not _is_list_of([found.get("scale"), found.get("crop"), found.get("trained", 1)], (int,))
        or not _is_list_of([found.get("largest")], number)
        or not _is_list_of(found.get("mean"), number, 3)
        or not _is_list_of(found.get("std"), number, 3)
        or not isinstance(found.get("resize", ""), str)
        or not isinstance(found.get("squash", True), bool)
        or found.get("pool", "windows") not in ("windows", "global")
        or not all(1 <= found.get(name, 1) <= LONGEST for name in ("scale", "crop", "trained"))
        or not all(1e-6 <= value <= 1e6 for value in (found["largest"], *found["std"]))
        or not all(abs(value) <= 1e6 for value in found["mean"])
    ):
        raise InputError(f"{path} is damaged: its preprocessing is {shown(found)}")
    return found | {name: tuple(map(float, found[name])) for name in ("mean", "std")}


def _read_safetensors(path):
    """What a .pth would hold, content of ours or a bare state dict; and the file's metadata."""
    safetensors = _safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            # cloned, because safetensors maps the file, which may change while the model lives
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, RuntimeError, TypeError, ValueError):
        raise InputError(
            f"{path} is damaged: its header does not fit the file, which may be cut short"
        ) from None
    except MemoryError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not metadata.keys() >= set(_METADATA):
        return state, metadata
    return {"model": state} | described(path, metadata), metadata


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
    check_state(path, state)
    content = {"model": state, "config": config, "classes": None, "preprocessing": None}
    classes, spec = tree.get("classes"), tree.get("preprocessing")
    if isinstance(classes, t7.Table) and _are_names(classes.array(), config["classes"]):
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
    if config.get("expansion", 4) != 4:
        raise InputError(f"{path}: the original ResNeXt only has blocks of expansion 4")
    if config.get("preactivation"):
        config = {**config, "net": "preresnext"}
    tree = torch7.to_t7(config, content["model"])
    # two fields more than the original's nets have; Lua ignores and keeps them
    tree |= {name: content[name] for name in ("classes", "preprocessing") if content[name]}
    t7.save(path, tree)

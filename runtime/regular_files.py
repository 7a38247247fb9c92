"""Opens regular files for reading, and checks the files that a command will write.

A pipe or a device could block a run or fill memory. A file is opened without blocking and checked
afterwards, so that it cannot be replaced in between. storage/atomic.py writes files: under a
temporary name, then renamed.
"""

import errno
import os
import re
import stat

from runtime.errors import InputError, cause

_MODELS = tuple(".pth .pt .t7 .t7.gz .safetensors .onnx .bin .ckpt .tar .pkl".split())
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
# the first of these that a folder has is its model
MODEL_FILES = ("model_best.pth", "model.safetensors", "pytorch_model.bin")
# Nets that torchvision has too. A wide ResNet is a ResNeXt of cardinality 1 and base width 128.
TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
_IMAGES = (".png", ".jpg", ".jpeg")
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # Windows has neither


def opened(path, most=None, buffering=-1):
    """A regular file, open for reading bytes; OSError for other files, or over `most` bytes."""
    file = open(path, "rb", buffering, opener=_open)  # noqa: SIM115  the caller closes it
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than the limit of {most}", path)
    return file


def _open(path, flags):
    try:
        descriptor = os.open(path, flags | _FLAGS)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        what = "a socket or a device"
    else:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` itself refuses a folder
            return descriptor
        os.close(descriptor)
        what = _kind(mode)
    raise OSError(errno.EINVAL, f"it is {what}, not a regular file", path)


def _kind(mode):
    """What an st_mode describes that is not a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def read_bytes(path, most):
    """The bytes of a file; OSError as `opened`."""
    with opened(path, most, buffering=0) as file:
        return file.read()


def model_file(path):
    """The file of a model. The path may also be a run folder, or a folder from the hub."""
    if not os.path.isdir(path):
        return path
    paths = [os.path.join(path, name) for name in MODEL_FILES]
    return next(filter(os.path.isfile, paths), paths[0])


def is_model(word):
    """Whether a word on a command line names a model, by its form, and not an image."""
    return (
        word.startswith("torchvision:")
        or split_key(word)[0].lower().endswith(_MODELS)
        or (os.path.isdir(word) and os.path.isfile(model_file(word)))
    )


def split_key(path):
    """(FILE, KEY) of a path FILE:KEY, where KEY names a net in the file; else (path, None)."""
    cuts = [] if os.path.exists(path) else [match.start() for match in re.finditer(":", path)]
    files = [cut for cut in cuts if path[cut + 1 :] and os.path.isfile(path[:cut])]
    return (path[: files[0]], path[files[0] + 1 :]) if files else (path, None)


def check_input(path, option=""):
    """InputError unless the file can be opened; `option` names what gave the path."""
    try:
        opened(split_key(path)[0]).close()
    except FileNotFoundError:
        raise InputError(f"File not found: {path}{option}{name_hint(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise InputError(f"cannot read {path}{option}: {cause(error)}") from None


def name_hint(path):
    """What to add to "File not found": another name, or other files that a folder may have."""
    folder, file = os.path.split(path)
    if file == MODEL_FILES[0] and os.path.isdir(folder):
        return f", nor {' or '.join(MODEL_FILES[1:])}"
    is_name = re.match("(wide_)?resne", path)
    names = [f"torchvision:{name}" for name in TORCHVISION if is_name and name.startswith(path)]
    return f"; torchvision's weights have the name {' or '.join(names)}" if names else ""


def check_outputs(outputs, inputs=()):
    """InputError unless each output can be written, and is not one of the inputs.

    outputs: (option, path, endings) of each file; the option as a user sees it, "" if none names
    the file. inputs: paths of files that the command reads, or of folders whose images it reads.
    """
    seen = set()
    for option, path, endings in outputs:
        named = f"{option} {path}" if option else path
        if os.path.splitext(path)[1].lower() not in endings:
            raise InputError(f"{named} should end in {' or '.join(endings)}")
        try:
            _check(named, path, inputs)
        except OSError as error:
            raise InputError(f"{named} cannot be written: {cause(error)}") from None
        place = os.path.realpath(path).casefold()  # as some file systems compare names
        if place in seen:
            raise InputError(f"{path} would be written twice: give each option a file of its own")
        seen.add(place)


def temporary(path):
    """The temporary file that is renamed to `path`; its name is short even if that is long."""
    folder, name = os.path.split(path)
    start = os.fsencode(name)[:100].decode(errors="ignore")
    return os.path.join(folder, f"{start}.{os.getpid()}.tmp")


def _check(named, path, inputs):
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise InputError(
            f"{named}: the folder {folder!r} does not exist: make this folder, or give another one"
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(mode):
            raise InputError(f"{named} is {_kind(mode)}; it should be a file to write")
        for read in inputs:
            if _reads(read, path):
                raise InputError(f"{named} would overwrite the input {read}: give another name")
        if not os.access(path, os.W_OK):
            raise InputError(f"{named} exists already and is write-protected: give another name")
    with open(temporary(path), "ab"):
        pass
    os.remove(temporary(path))


def _reads(source, path):
    """Whether `source` is the file at `path`, or a folder that has this file as an image."""
    if os.path.isdir(source):
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(source), ""))
        return inside and path.lower().endswith(_IMAGES)
    return os.path.isfile(source) and os.path.samefile(source, path)

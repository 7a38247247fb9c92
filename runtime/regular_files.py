"""Opens regular files for reading: a pipe or a device could block a run or fill memory.

A file is opened without blocking and checked afterwards, so that it cannot be replaced in between.
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
        what = kind(mode)
    raise OSError(errno.EINVAL, f"it is {what}, not a regular file", path)


def kind(mode):
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
    is_name = re.fullmatch(r"(wide_)?resne(t|xt)\d+\w*", path)
    return f"; torchvision's weights have the name torchvision:{path}" if is_name else ""

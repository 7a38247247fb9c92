"""Checks the files that a command will write, before its work begins.

storage/atomic.py writes such files: under a temporary name, then renamed.
"""

import os
import stat

from runtime.errors import InputError, cause
from runtime.regular_files import kind

_IMAGES = (".png", ".jpg", ".jpeg")


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
            raise InputError(f"{named} is {kind(mode)}; it should be a file to write")
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

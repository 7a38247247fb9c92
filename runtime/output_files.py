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
            _check_folder(named, path)
            _check_present(named, path, inputs)
            with open(temporary(path), "ab"):
                pass
            os.remove(temporary(path))
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


def _check_folder(named, path):
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise InputError(
            f"{named}: the folder {folder!r} does not exist: make this folder, or give another one"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{named}: cannot write files to the folder {folder!r}")


def _check_present(named, path, inputs):
    """Check the file that is at `path` already, if any."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode):
        raise InputError(f"{named} is a folder; it should be a file to write")
    if not stat.S_ISREG(there.st_mode):
        raise InputError(f"{named} is {kind(there.st_mode)}; it should be a file to write")
    for read in inputs:
        if _reads(read, path, there):
            raise InputError(f"{named} would overwrite the input {read}: give another name")
    if not os.access(path, os.W_OK):
        raise InputError(f"{named} exists already and is write-protected: give another name")
    folder, own = os.stat(os.path.dirname(path) or "."), os.lstat(path)
    if folder.st_mode & stat.S_ISVTX and _user() not in (0, folder.st_uid, own.st_uid):
        raise InputError(f"{named} belongs to another user, in a folder that protects it (sticky)")


def _reads(source, path, there):
    """Whether `source` is the file at `path`, or a folder that has this file as an image."""
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return False
    if not stat.S_ISDIR(found.st_mode):
        return os.path.samestat(found, there)
    inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(source), ""))
    return inside and path.lower().endswith(_IMAGES)


def _user():
    return os.geteuid() if hasattr(os, "geteuid") else 0  # Windows has no sticky folders

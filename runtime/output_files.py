"""The checks of a file that a command is to write, before the work that fills it."""

import os

from runtime.errors import InputError


def check(path, endings, option):
    """InputError if `path` has none of these endings, or if its folder cannot take a file."""
    folder = os.path.dirname(path) or "."
    if os.path.splitext(path)[1].lower() not in endings:
        raise InputError(f"-{option} {path} should end in {' or '.join(endings)}")
    if not os.path.isdir(folder):
        raise InputError(f"the folder {folder!r} does not exist: make it, or correct -{option}")
    if os.path.isdir(path):
        raise InputError(f"-{option} {path} is a folder; it should be a file to write")
    if not os.access(folder, os.W_OK):
        raise InputError(f"-{option} {path}: no files can be written in the folder {folder!r}")

"""Files that people take for model files: what they are, and the way out."""

import os
import re
import zipfile

from runtime import regular_files
from runtime.errors import InputError

# How they begin
_BEGINNINGS = (
    (rb"version https://git-lfs", "a Git LFS pointer: git lfs pull fetches the file itself"),
    (rb"\s*<(?:!doctype|html|\?xml)", "a web page: download the file that the page leads to"),
    (
        rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]",
        "an ONNX file, which has no state dict: give the file that it was made from (only"
        " classify.py and evaluate.py take an .onnx, of convert.py)",
    ),
    (rb"\x89HDF", "an HDF5 file, as Keras writes: save the weights with torch.save"),
    (rb"\{\s*\"", "a JSON file: give the file with the weights"),
    (rb"7z\xbc\xaf|Rar!|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd", "an archive: unpack it"),
)
_SAVE = "if you trust it, torch.save({}.state_dict(), 'net.pth') makes a file that can be read"
# What the records of zip archives are called, the first that fits
_RECORDS = (
    (r"(?:.*/)?(?:constants\.pkl|code/.*)", "TorchScript: " + _SAVE.format("torch.jit.load(FILE)")),
    (
        r"(?:.*/)?(?:archive_format|serialized_exported_program\.json)",
        "a program of torch.export: " + _SAVE.format("torch.export.load(FILE).module()"),
    ),
    (r"(?:.*/)?data\.pkl", None),  # a file of torch.save
    (r".*\.(?:pth|pt|bin|safetensors|t7)", "a zip archive with a model in it: unpack it"),
    (r".*\.npy", "an archive of NumPy: save a state dict of its arrays with torch.save"),
    (r".*", "a zip archive without a model: give the model's own file"),
)
_OLD = b"\x80\2\x8a\n"  # with which torch.save began before PyTorch 1.6


def refuse(path, head):
    """InputError for a file that is known to be something else; head: its first 64 bytes."""
    what = next((what for pattern, what in _BEGINNINGS if re.match(pattern, head, re.I)), None)
    if head.startswith(b"PK\3\4"):
        what = _archive(path)
    elif head.startswith(b"\x80") and len(head) > 4 and not head.startswith(_OLD):
        what = _pickled(path)
    if what:
        raise InputError(f"{path} is {what}")


def _archive(path):
    try:
        with regular_files.opened(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None  # damaged, as atomic.load says
    found = (what for pattern, what in _RECORDS if any(re.fullmatch(pattern, n) for n in names))
    return next(found, None)


def _pickled(path):
    with regular_files.opened(path) as file:
        data = file.read(1 << 16)
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
        data += file.read()
    marks = ((b"joblib", "of joblib"), (b"__author__", "of Detectron2"))
    by = next((name for mark, name in marks if mark in data), "and no file of torch.save")
    return (
        f"a pickle {by}, which could run code: if you trust it, load it where it was made, and"
        " torch.save a dict of its arrays as tensors"
    )

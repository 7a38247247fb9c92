"""Files that people take for model files: what they are, and the way out."""

import os
import re
import zipfile

from runtime import regular_files
from runtime.errors import InputError

_SAVE = "if you trust it, torch.save({}, 'net.pth') makes a file that can be read"
ARRAYS = "save a dict of its arrays as tensors with torch.save"
_SOURCE = "which has no state dict: give the file that it was made from"
# How they begin; the first that fits counts
_BEGINNINGS = (
    (rb"version https://(?:git-lfs|hawser)", "a Git LFS pointer: git lfs pull fetches the file"),
    (rb"(?:<\?xml[^>]*>\s*)?<net\s", "a file of OpenVINO, " + _SOURCE),
    (rb"(?:\xef\xbb\xbf)?\s*<[!?a-z]", "a web page: download the file that the page leads to"),
    # the description of a first input, which has its name first
    (rb"\x08[\x01-\x1f]\x12(?:[\x80-\xff]*[\0-\x7f]\n){2}", "a file of Core ML, " + _SOURCE),
    (rb"\x08\x01\x12", "a SavedModel of TensorFlow: " + ARRAYS),
    (
        rb"\x08[\x03-\x1f][\x12\x1a\x22\x3a\x42]",
        f"an ONNX file, {_SOURCE} (only classify.py and evaluate.py take one, from convert.py)",
    ),
    (rb"\x89HDF", "an HDF5 file, as Keras writes: " + ARRAYS),
    (rb"\x93NUMPY", "an array of NumPy: " + ARRAYS),
    (rb"(?:[\x81-\x8f]|\xde..)[\xa1-\xbf]\w", "a msgpack file, as Flax writes: " + ARRAYS),
    (rb"x[\x01\x5e\x9c\xda]", "compressed by zlib, perhaps by joblib: " + ARRAYS),
    (
        rb"sys_info\0.{248}ustar",
        "older than PyTorch 0.2: " + _SAVE.format("torch.load(FILE, weights_only=False)"),
    ),
    (rb"7z\xbc\xaf|Rar!|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", "an archive: unpack it"),
    (rb".{257}ustar", "an archive: unpack it"),
    (rb"PK\x05\x06", "an empty zip archive: give the model's own file"),
    (rb"\{\s*\"", "a JSON file: give the file with the weights"),
    # a .t7 may be text, which begins with a number of one digit
    (rb"(?![0-8]\s)[\t\n\r -~]+\Z", "a text file: download or give the file with the weights"),
)
# What the records of zip archives are called; the first that fits counts
_RECORDS = (
    (
        r"(?:.*/)?(?:constants\.pkl|code/.*)",
        "TorchScript: " + _SAVE.format("torch.jit.load(FILE).state_dict()"),
    ),
    (
        r"(?:.*/)?(?:archive_format|serialized_exported_program\.json)",
        "a program of torch.export: "
        + _SAVE.format("torch.export.load(FILE).module().state_dict()"),
    ),
    (r"(?:.*/)?data\.pkl", None),  # a file of torch.save
    (r"model\.weights\.h5", "a file of Keras: " + ARRAYS),
    (
        r".*\.(?:pth|pt|tar|ckpt|bin|safetensors|t7|pkl|h5|onnx)(?:\.gz)?",
        "a zip archive with a model in it: unpack it",
    ),
    (r".*\.npy", "an archive of NumPy: " + ARRAYS),
    (r".*", "a zip archive without a model: give the model's own file"),
)
_OLD = b"\x80\2\x8a\n"  # with which torch.save began before PyTorch 1.6
_MARKS = ((b"joblib", " of joblib"), (b"__author__", " of Detectron2"))  # in a pickle


def refuse(path, head):
    """InputError for a file that is known to be something else; head: its first 512 bytes."""
    what = next((text for start, text in _BEGINNINGS if re.match(start, head, re.I | re.S)), None)
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
    by = next((name for mark, name in _MARKS if mark in data), "")
    return f"a pickle{by}, which could run code: if you trust it, {ARRAYS}"

"""Saves the features of images, the classifier's input. Port of pretrained/extract-features.lua.

features.npz in the current folder gets `features`, float32 (N, D), and `image_list`, the N files.
With -t7, features.t7 gets them too, as in the Lua. Other differences from the Lua: the input spec
comes from the model; a folder's files are sorted, without hidden files and subfolders; a file that
cannot be read is named on stderr and left out, and the exit status is then 1.
"""

import os
import re
import sys

# The modules it imports are one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from runtime import command, options, regular_files
from runtime.errors import InputError, cause

HEAD = """Usage (single file mode): extract_features.py MODEL FILE... [options]
Usage (batch mode)      : extract_features.py MODEL BATCH_SIZE DIRECTORY [options]

Saves the features of images, the classifier's input, in features.npz. MODEL is a file (.pth, .t7,
.safetensors), torchvision:NAME, or the folder of a run.

Options:"""
OPTIONS = (("t7", False, options.flag, None, "Save features.t7 as well"),)
AT_ONCE = 16


def main(arguments):
    """Extract the features that the command line asks for; returns the exit status."""
    words = []
    with options.parsed(arguments, "extract_features.py", HEAD, OPTIONS, words) as given:
        in_batches = len(words) > 1 and re.fullmatch("[0-9]+", words[1])
        if len(words) < 2 or (in_batches and len(words) != 3):
            raise InputError("give MODEL FILE..., or MODEL BATCH_SIZE DIRECTORY (see -help)")
    paths, size = listed(words[2], words[1]) if in_batches else (words[1:], AT_ONCE)
    names = ["features.npz", *(["features.t7"] if "t7" in given else [])]
    inputs = [regular_files.model_file(words[0]), *([] if in_batches else paths)]
    regular_files.check_outputs([("", name, (".npz", ".t7")) for name in names], inputs)
    # after the checks, whose errors need not wait for torch
    import numpy as np

    from pretrained import inference

    model = inference.load_folded(words[0], classifier=False)
    if not hasattr(model, "features"):
        net = model.config["net"]
        raise InputError(f"{words[0]}: the net {net} has no function features(images)")
    read, features = [], np.empty((len(paths), model.fc.in_features), np.float32)
    batches = inference.run([model.features], [model], paths, size, "extract_features.py")
    for names, [rows] in batches:
        features[len(read) : len(read) + len(names)] = rows.numpy()
        read += names
    if not read:
        raise InputError("none of the files could be read as an image, so nothing is saved")
    save(read, features[: len(read)], as_t7="t7" in given)
    return 1 if len(read) < len(paths) else 0


def listed(folder, size):
    """The sorted paths of a folder's files, and the batch size, which is given as digits."""
    if not 1 <= len(size.lstrip("0")) < 16:  # Python reads up to 4300 digits
        raise InputError(f"BATCH_SIZE {size:.16}: should be at least 1, and below 10^15")
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and not e.is_dir()]
    except OSError as error:
        raise InputError(f"cannot list the directory {folder}: {error.strerror}") from None
    if not names:
        raise InputError(f"no files in the directory {folder}")
    return [os.path.join(folder, name) for name in sorted(names)], int(size)


def save(names, features, as_t7=False):
    """Write features.npz and, if asked for, features.t7."""
    import numpy as np

    from storage import atomic

    try:
        with atomic.replacing("features.npz") as file:
            np.savez(file, features=features, image_list=np.array(names, dtype=np.str_))
        print("saved features to features.npz")
        if as_t7:
            import torch

            from formats import t7

            t7.save("features.t7", {"features": torch.from_numpy(features), "image_list": names})
            print("saved features to features.t7")
    except OSError as error:
        raise InputError(f"cannot save features: {cause(error)}") from None


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))

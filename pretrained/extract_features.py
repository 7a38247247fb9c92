"""What a trained model's classifier sees of images. Port of pretrained/extract-features.lua.

Saves `features`, float32 (N, D), and `image_list`, the N files, to features.npz in the current
folder; with -t7 to features.t7 as well, as the Lua did. Other differences: the model says itself
how it wants its input; a folder's files are sorted, its hidden files and subfolders left out; a
file that cannot be read is named and left out, and the exit status is then 1.
"""

import os
import re
import sys

# The program's modules lie one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from runtime.errors import InputError

USAGE = """\
Usage (Single file mode): python extract_features.py MODEL FILE... [-t7]
Usage (Batch mode)      : python extract_features.py MODEL BATCH_SIZE DIRECTORY [-t7]"""
AT_ONCE = 16


def main(arguments):
    """Extract as the command line says; returns the exit status."""
    words = [word for word in arguments if word not in ("-t7", "--t7")]
    in_batches = len(words) > 1 and re.fullmatch("[0-9]+", words[1])
    if len(words) < 2 or (in_batches and len(words) != 3):
        print(USAGE, file=sys.stderr)
        return 1
    paths, size = listed(words[2], int(words[1])) if in_batches else (words[1:], AT_ONCE)
    # after the checks: their errors need not wait for torch
    import torch

    import models
    from models.fold import folded

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # as in training, float32 means IEEE's
    # in float32 whatever the file holds, as the Lua's :cuda() had it
    model = models.load(words[0], device).to(torch.float32, memory_format=torch.channels_last)
    model = folded(model)
    read, features = extract(model, paths, size)
    if not read:
        raise InputError("none of the files could be read as an image: nothing is saved")
    save(read, features, as_t7=len(words) < len(arguments))
    return 1 if len(read) < len(paths) else 0


def listed(folder, size):
    """The files of a folder in order, and the size of a batch."""
    if size < 1:
        raise InputError(f"BATCH_SIZE {size}: should be at least 1")
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and not e.is_dir()]
    except OSError as error:
        raise InputError(f"cannot list the directory {folder}: {error.strerror}") from None
    if not names:
        raise InputError(f"no files in the directory {folder}")
    return [os.path.join(folder, name) for name in sorted(names)], size


def extract(model, paths, size):
    """The paths that could be read, n of them, and the features, float32 (n, D)."""
    import torch

    from datasets.input_spec import batches

    progress = len(paths) > 20 and sys.stderr.isatty()
    begin = "\r" if progress else ""  # an error takes the place of the progress
    features = np.empty((len(paths), model.fc.in_features), np.float32)
    names, done = [], 0
    for read, images, errors in batches(paths, model.transform, size):
        for error in errors:
            print(f"{begin}extract_features.py: {error}", file=sys.stderr)
        if read:
            with torch.inference_mode():
                rows = model.features(images.to(model.fc.weight.device)).cpu().numpy()
            features[len(names) : len(names) + len(read)] = rows
            names += read
        done += len(read) + len(errors)
        if progress:
            end = "\n" if done == len(paths) else ""
            print(f"{begin}{done} of {len(paths)} ", end=end, file=sys.stderr, flush=True)
    return names, features[: len(names)]


def save(names, features, as_t7=False):
    """Write features.npz, and features.t7 where asked for."""
    from storage import atomic

    try:
        with atomic.replacing("features.npz") as file:
            np.savez(file, features=features, image_list=np.array(names, dtype=np.str_))
        print("saved features to features.npz")
        if as_t7:
            import torch

            from formats import t7

            with atomic.replacing("features.t7") as file:
                t7.dump(file, {"features": torch.from_numpy(features), "image_list": names})
            print("saved features to features.t7")
    except OSError as error:
        raise InputError(f"cannot save features: {error}") from None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"extract_features.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

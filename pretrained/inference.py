"""What both scripts do: load a model for inference, and run it on image files in batches."""

import sys

import torch

import models
from datasets.input_spec import batches
from models.fold import folded


def load(source):
    """A model ready for inference, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # as in training, float32 means IEEE float32
    # float32 whatever the file holds, as the Lua's :cuda() makes it
    model = models.load(source, device).to(torch.float32, memory_format=torch.channels_last)
    return folded(model)


def run(function, model, paths, size, script, progress=True):
    """Yield (paths, function(images) on the CPU) for each batch of `size` files.

    function: the model or a part of it, of images (n, 3, crop, crop).
    The n `paths` are those that could be read. For each other file, an error that begins with the
    script's name goes to stderr. More than 20 files show progress if stderr is a terminal.
    """
    progress = progress and len(paths) > 20 and sys.stderr.isatty()
    start = "\r" if progress else ""  # an error overwrites the progress
    done = 0
    for read, images, errors in batches(paths, model.transform, size):
        for error in errors:
            print(f"{start}{script}: {error}", file=sys.stderr)
        if read:
            with torch.inference_mode():
                outputs = function(images.to(model.fc.weight.device)).cpu()
            yield read, outputs
        done += len(read) + len(errors)
        if progress:
            end = "\n" if done == len(paths) else ""
            print(f"{start}{done} of {len(paths)} ", end=end, file=sys.stderr, flush=True)

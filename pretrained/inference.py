"""What both scripts do: load a model for inference, and run it on image files in batches."""

import io
import os

import torch

import models
from datasets.imagenet_gen import EXTENSIONS, is_hidden
from evaluation.scores import pooled_as_tested
from models.fold import folded
from runtime import process
from runtime.errors import InputError, named
from runtime.progress import slow
from runtime.terminal import complain

LARGEST = 1 << 26  # bytes of an image that is downloaded


def load_folded(source, classifier=True):
    """A model ready for inference, on the GPU if there is one; `classifier` as in models.load."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    process.limit_threads()
    torch.backends.cudnn.allow_tf32 = False  # as in training, float32 means IEEE float32
    model = models.load(source, device, classifier)  # in float32, as by the Lua's :cuda()
    # folded first, because folding replaces a ResNeXt of form A or B by a new net
    return pooled_as_tested(folded(model.to(memory_format=torch.channels_last)))


def image_files(words):
    """(paths, errors): each word is a file, or a folder that stands for all images below it.

    A folder's images are sorted; those without an image's ending and hidden ones are left out. An
    error is a sentence about a folder that cannot be listed or has no image.
    """
    paths, errors = [], []
    for word in words:
        if not os.path.isdir(word):
            paths.append(word)
            continue
        with slow(f"listing the images in {word}"):
            found = sorted(_images_below(word, errors))
        if not found:
            errors.append(f"no image in the folder {word!r}")
        paths += found
    return paths, errors


def _images_below(folder, errors):
    def unlisted(error):
        errors.append(f"cannot list {error.filename!r}: {error.strerror}")

    seen = {os.path.realpath(folder)}  # a link may lead back
    for parent, folders, files in os.walk(folder, onerror=unlisted, followlinks=True):
        inside = {os.path.realpath(os.path.join(parent, f)): f for f in folders if not is_hidden(f)}
        folders[:] = [name for path, name in inside.items() if path not in seen]
        seen |= inside.keys()
        for name in files:
            if not is_hidden(name) and name.lower().endswith(
                (*EXTENSIONS, ".gif", ".heic", ".heif")
            ):
                yield os.path.join(parent, name)


def source(path):
    """What a transform reads: the path of a file, or the bytes at a URL."""
    if not path.lower().startswith(("https://", "http://")):
        return path
    from datasets import download  # not at the top: files need no network

    return io.BytesIO(download.fetch(path, LARGEST))


def run(functions, models, paths, size, script, source=source):
    """Yield (paths, [each function's outputs on the CPU]) for each batch of `size` files.

    functions: of each model's images (n, 3, crop, crop): the model itself, or a part of it.
    source(path): what the transforms read.
    The n `paths` are those that could be read. For each other file, an error that begins with the
    script's name goes to stderr.
    """
    for model in models:
        model.transform.check()
    with slow(f"{len(paths)} images") as show_detail:
        for start in range(0, len(paths), size):
            read, images = [], []
            for path in paths[start : start + size]:
                try:
                    image = source(path)
                    images.append([model.transform(image) for model in models])
                    read.append(path)
                except InputError as error:
                    complain(f"{script}: {named(error, path)}")
            if read:
                with torch.inference_mode():
                    parts = zip(functions, models, map(torch.stack, zip(*images)))
                    # an .onnx has no parameters
                    outputs = [f(x.to(next(m.parameters(), x).device)).cpu() for f, m, x in parts]
                yield read, outputs
            show_detail(f"{min(start + size, len(paths))} done")

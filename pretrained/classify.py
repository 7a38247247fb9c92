"""Prints the five most probable classes of each image. Port of pretrained/classify.lua.

Differs from the Lua: input spec and class names come from the model, which may be any that
`models.load` takes, with any number of classes. A file that cannot be read is named on stderr; the
others are still classified, and the exit status is 1. A folder stands for all images below it,
-csv writes a table instead of the printed lines, -scores one of all logits, and -show a picture.
Several models are averaged, as in evaluate.py.
"""

import contextlib
import os
import sys

# The modules it imports are one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from datasets.class_names import english
from runtime import command, options, regular_files
from runtime.errors import InputError, cut, visible
from runtime.process import print_names
from runtime.regular_files import is_model, model_file
from runtime.terminal import complain
from storage import atomic, pictures

HEAD = """Usage: classify.py MODEL... FILE... [options]

Prints the five most probable classes of each image. MODEL is a file (.pth, .t7, .safetensors,
or .onnx of convert.py), torchvision:NAME, or the folder of a run. FILE may be a folder of images,
or a URL (https://...). The probabilities of several models with the same classes are averaged.

Options:"""
OPTIONS = (
    ("csv", "", str, None, "Write a table instead: FILE.csv"),
    ("scores", "", str, None, "Write every class's logit of each image as well: FILE.csv"),
    ("show", "", str, None, "Draw the photos with their best classes: FILE.png, or .svg"),
    ("classes", "", str, None, "Class names: a file with one a line, or the folder train/"),
)
TOP = 5
AT_ONCE = 16
DRAWN = 20  # photos in a picture at most
SIDE = 512  # pixels of a drawn photo at most
LONGEST = 40  # characters of a drawn name


def main(arguments):
    """Classify the files of the command line; returns the exit status."""
    given, sources, files = parse(arguments)
    picture = given.get("show")
    # after the check, because the help need not wait for torch
    import torch

    from evaluation import scores
    from evaluation.predictions import best_cells, best_columns
    from pretrained import inference

    paths, errors = inference.image_files(files)
    for error in errors:
        complain(f"classify.py: {error}")
    if picture and len(paths) > DRAWN:
        raise InputError(f"-show draws at most {DRAWN} photos, not {len(paths)}: give fewer")
    models, names, columns = load(sources, given.get("classes"))

    done, photos, drawn, count = 0, {}, [], min(TOP, len(names))

    def source(path):
        image = inference.source(path)
        if picture:
            photos[path] = thumbnail(image)
        return image

    with (
        rows(given.get("csv"), best_columns(count)) as table,
        rows(given.get("scores"), names) as keep,
    ):
        batches = inference.run(models, models, paths, AT_ONCE, "classify.py", source)
        for read, outputs in batches:
            outputs = torch.stack([part[:, own] for part, own in zip(outputs, columns)], dim=1)
            for path, logits, probabilities in zip(read, *scores.averages(outputs)):
                best, indices = (part.tolist() for part in probabilities.topk(count))
                found = [(probability, names[i]) for probability, i in zip(best, indices)]
                if table:
                    table.writerow([path, *best_cells(names, indices, best)])
                else:
                    show(path, found)
                if keep:
                    keep.writerow([path, *logits.numpy().astype(str)])
                if picture:
                    drawn.append((path, photos[path], found))
            done += len(read)
    if drawn:
        draw(picture, drawn)
    return 0 if done == len(paths) and not errors else 1


def parse(arguments):
    """(the options that are given, the models, the files).

    -help or one sentence of error exits. The first word is a model, and so is every other word that
    has the form of one.
    """
    words = []
    with options.parsed(arguments, "classify.py", HEAD, OPTIONS, words) as given:
        sources = [w for i, w in enumerate(words) if not i or is_model(w)]
        files = [w for w in words[1:] if not is_model(w)]
        if not files:
            raise InputError(
                "give a model and one or more files: classify.py MODEL FILE... (see -help)"
            )
        outputs = [(f"-{n}", given[n], (".csv",)) for n in ("csv", "scores") if n in given]
        if "show" in given:
            outputs.append(("-show", given["show"], pictures.FORMATS))
            pictures.check_drawing(f"-show {given['show']}")
        regular_files.check_outputs(outputs, [*map(model_file, sources), *files])
        return given, sources, files


def load(sources, listed):
    """(models, the names of the classes of the first, the outputs of each in this order).

    listed: what -classes gives, or None. InputError if the models' classes are not the same.
    """
    from evaluation import classes
    from pretrained import inference

    models, names, columns = [], None, []
    for source in sources:
        model = inference.load_folded(source)
        if listed is not None:
            model.classes = classes.of_outputs(listed, model.fc.out_features)
        own = class_names(model)
        names = names or own
        if len(own) != len(names):
            what = f"{source} has {len(own)} classes, but {sources[0]} has {len(names)}"
            raise InputError(f"{what}: only models of the same classes can be averaged")
        models.append(model)
        columns.append(classes.columns(source, own, names))
    return models, names, columns


def rows(path, columns):
    """A csv.writer for the file `path`, which has a row for each image; None without a file."""
    return atomic.csv_rows(path, ["path", *columns]) if path else contextlib.nullcontext()


def thumbnail(source):
    """A small copy of an image, uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    from datasets.image import decoding

    image = Image.fromarray(np.ascontiguousarray(decoding.load_image(source).transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def draw(path, results):
    """Draw each photo in a row, beside bars of its most probable classes.

    results: of each (path, pixels, its best classes as pairs of probability and name).
    """
    with pictures.drawing(path, (7.5, 2.4 * len(results))) as figure:
        places = figure.subplots(len(results), 2, squeeze=False, width_ratios=(1, 1.6))
        for (photo, bars), (file, pixels, found) in zip(places, results):
            photo.imshow(pixels)
            photo.set_title(cut(os.path.basename(file), LONGEST), fontsize=9)
            photo.axis("off")
            for i, (probability, name) in enumerate(found):
                bars.barh(i, probability, color="#9ecae1")  # pale, because text is written on it
                text = f"{100 * probability:.1f} %  {cut(name, LONGEST)}"
                bars.text(0.01, i, text, va="center", fontsize=9)
            bars.set_xlim(0, 1)
            bars.set_ylim(TOP - 0.5, -0.5)  # the most probable on top
            bars.axis("off")


def class_names(model):
    """The model's class names, or ImageNet's if it has 1000; missing ones are named "class 17"."""
    outputs = model.fc.out_features
    names = list(model.classes or (english() if outputs == 1000 else ()))
    return names + [f"class {i}" for i in range(len(names), outputs)]


def show(path, found):
    """Print one file's result as Lua's print does: tabs, 14 digits; control characters escaped."""
    print("Classes for", visible(path), sep="\t")
    for probability, name in found:
        print(f"{probability:.14g}", visible(name), sep="\t")
    print(flush=True)


if __name__ == "__main__":
    print_names()  # file names may hold any bytes
    command.run(lambda: main(sys.argv[1:]))

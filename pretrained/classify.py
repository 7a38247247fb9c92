"""Prints the five most probable classes of each image. Port of pretrained/classify.lua.

Differs from the Lua: input spec and class names come from the model, which may be any that
`models.load` takes, with any number of classes. A file that cannot be read is named on stderr; the
others are still classified, and the exit status is 1. A folder stands for all images below it,
-csv writes a table instead of the printed lines, and -scores one of all logits.
"""

import contextlib
import os
import sys

# The modules it imports are one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from datasets.class_names import english
from runtime import command, options, output_files
from runtime.errors import InputError, visible
from runtime.process import print_names
from runtime.regular_files import model_file
from runtime.terminal import complain

HEAD = """Usage: classify.py MODEL FILE... [options]

Prints the five most probable classes of each image. MODEL is a file (.pth, .t7, .safetensors),
torchvision:NAME, or the folder of a run. FILE may be a folder of images, or a URL (https://...).

Options:"""
OPTIONS = (
    ("csv", "", str, None, "Write a table instead: FILE.csv"),
    ("scores", "", str, None, "Write every class's logit of each image as well: FILE.csv"),
    ("classes", "", str, None, "Class names: a file with one a line, or the folder train/"),
)
TOP = 5
AT_ONCE = 16


def main(arguments):
    """Classify the files of the command line; returns the exit status."""
    given, source, *words = parse(arguments)
    table, classes = given.get("csv"), given.get("classes")
    # after the check: the help need not wait for torch
    from pretrained import inference

    paths, errors = inference.image_files(words)
    for error in errors:
        complain(f"classify.py: {error}")
    model = inference.load_folded(source)
    if classes is not None:
        from evaluation.classes import of_outputs

        model.classes = of_outputs(classes, model.fc.out_features)
    names = class_names(model)

    # else the results themselves show it
    progress = table is not None or sys.stdout is None or not sys.stdout.isatty()
    done = 0
    with writer(table, names) as write, score_writer(given.get("scores"), names) as keep:
        batches = inference.run(model, model, paths, AT_ONCE, "classify.py", progress)
        for read, rows in batches:
            for path, logits, probabilities in zip(read, rows, rows.softmax(1)):
                write(path, probabilities)
                keep(path, logits)
            done += len(read)
    return 0 if done == len(paths) and not errors else 1


def parse(arguments):
    """(the options that are given, the model, file, ...).

    -help or one sentence of error exits.
    """
    words = []

    def settle(given):
        if len(words) < 2:
            raise InputError(
                "give a model and one or more files: classify.py MODEL FILE... (-help)"
            )
        tables = [(f"-{n}", given[n], (".csv",)) for n in ("csv", "scores") if n in given]
        output_files.check_outputs(tables, [model_file(words[0]), *words[1:]])
        return given, *words

    return options.parse(arguments, "classify.py", HEAD, OPTIONS, settle, words)


@contextlib.contextmanager
def writer(table, names):
    """A function (path, probabilities) that prints a result, or adds a row to the file `table`."""
    if table is None:
        yield lambda path, probabilities: show(path, probabilities, names)
        return
    from evaluation.predictions import best_cells, best_columns
    from storage import atomic

    with atomic.csv_rows(table) as rows:
        rows.writerow(["path", *best_columns(min(TOP, len(names)))])

        def write(path, probabilities):
            best, indices = probabilities.topk(min(TOP, len(names)))
            cells = best_cells(names, indices.tolist(), best.tolist())
            rows.writerow([path, *cells])

        yield write


@contextlib.contextmanager
def score_writer(path, names):
    """A function (path of an image, logits) that adds a row to the file `path`, if there is one."""
    if path is None:
        yield lambda path, logits: None
        return
    from storage import atomic

    with atomic.csv_rows(path) as rows:
        rows.writerow(["path", *names])
        yield lambda path, logits: rows.writerow([path, *logits.numpy().astype(str)])


def class_names(model):
    """The model's class names, or ImageNet's if it has 1000; missing ones are named "class 17"."""
    outputs = model.fc.out_features
    names = model.classes
    if not names and outputs == 1000:
        names = english()
    names = list(names or ())
    return names + [f"class {i}" for i in range(len(names), outputs)]


def show(path, probabilities, names):
    """Print one file's result as Lua's print does: tabs, 14 digits; control characters escaped."""
    print("Classes for", visible(path), sep="\t")
    best, indices = probabilities.topk(min(TOP, len(probabilities)))
    for probability, index in zip(best.tolist(), indices.tolist()):
        print(f"{probability:.14g}", visible(names[index]), sep="\t")
    print(flush=True)


if __name__ == "__main__":
    print_names()  # a file's may be any bytes
    command.run(lambda: main(sys.argv[1:]))

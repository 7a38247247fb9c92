"""Prints the five most probable classes of each image. Port of pretrained/classify.lua.

Differs from the Lua: input spec and class names come from the model, which may be any that
`models.load` takes, with any number of classes. A file that cannot be read is named on stderr; the
others are still classified, and the exit status is 1.
"""

import os
import sys

# The modules it imports are one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime import command

USAGE = "Usage: python classify.py MODEL FILE..."
TOP = 5
AT_ONCE = 16


def main(arguments):
    """Classify the files of the command line; returns the exit status."""
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 1
    # after the check: the usage need not wait for torch
    from pretrained import inference

    source, *paths = arguments
    model = inference.load(source)
    names = class_names(model)

    def probabilities(images):
        return model(images).softmax(1)

    progress = not sys.stdout.isatty()  # else the results themselves show it
    done = 0
    for read, rows in inference.run(probabilities, model, paths, AT_ONCE, "classify.py", progress):
        for path, row in zip(read, rows):
            show(path, row, names)
        done += len(read)
    return 0 if done == len(paths) else 1


def class_names(model):
    """The model's class names, or ImageNet's if it has 1000; missing ones are named "class 17"."""
    outputs = model.fc.out_features
    names = model.classes
    if not names and outputs == 1000:
        from torchvision.models import ResNet50_Weights

        names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    names = list(names or ())
    return names + [f"class {i}" for i in range(len(names), outputs)]


def show(path, probabilities, names):
    """Print one file's result as Lua's print does: tabs, 14 digits."""
    print("Classes for", path, sep="\t")
    best, indices = probabilities.topk(min(TOP, len(probabilities)))
    for probability, index in zip(best.tolist(), indices.tolist()):
        print(f"{probability:.14g}", names[index], sep="\t")
    print(flush=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes
    command.run(lambda: main(sys.argv[1:]))

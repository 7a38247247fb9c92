"""The five likeliest classes of each image, by a trained model. Port of pretrained/classify.lua.

Differs from the Lua: the model says itself how it wants its input and what its classes are called;
it may be any that `models.load` takes, of any number of classes; a file that cannot be read is
named and the others are still classified. The exit status is then 1.
"""

import os
import sys

# The program's modules lie one folder up, wherever the script is called from.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.errors import InputError

USAGE = "Usage: python classify.py MODEL FILE..."
TOP = 5
AT_ONCE = 16


def main(arguments):
    """Classify as the command line says; returns the exit status."""
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 1
    # after the check: the usage need not wait for torch
    import torch

    import models
    from datasets.input_spec import batches
    from models.fold import folded

    source, *paths = arguments
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # as in training, float32 means IEEE's
    # in float32 whatever the file holds, as the Lua's :cuda() had it
    model = models.load(source, device).to(torch.float32, memory_format=torch.channels_last)
    model = folded(model)
    names = class_names(model)
    # on a terminal the results show how far it is
    progress = len(paths) > 20 and sys.stderr.isatty() and not sys.stdout.isatty()
    begin = "\r" if progress else ""  # an error takes the place of the progress
    failed = done = 0
    for read, images, errors in batches(paths, model.transform, AT_ONCE):
        for error in errors:
            print(f"{begin}classify.py: {error}", file=sys.stderr)
        for path, probabilities in zip(read, classify(model, images) if read else ()):
            show(path, probabilities, names)
        failed += len(errors)
        done += len(read) + len(errors)
        if progress:
            end = "\n" if done == len(paths) else ""
            print(f"{begin}{done} of {len(paths)} ", end=end, file=sys.stderr, flush=True)
    return 1 if failed else 0


def classify(model, images):
    """The probabilities of the classes, (N, classes) on the CPU, of images (N, 3, H, W)."""
    import torch

    with torch.inference_mode():
        return model(images.to(model.fc.weight.device)).softmax(1).cpu()


def class_names(model):
    """The model's own; else ImageNet's for 1000 classes; else, for each left, "class 17"."""
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
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"classify.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

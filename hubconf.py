"""Entry points for torch.hub: `load` for a trained model from a file, and nets with new weights.

>>> torch.hub.load("path/to/this/folder", "load", "model_best.pth", source="local")
>>> torch.hub.load("path/to/this/folder", "resnext", depth=101, cardinality=32, source="local")
"""

import os
import sys

# torch.hub takes its own entry off the path again. Workers that are spawned need this one to
# unpickle `model.transform`
_FOLDER = os.path.dirname(os.path.abspath(__file__))
if _FOLDER not in sys.path[1:]:
    sys.path.insert(2, _FOLDER)

try:
    import models
    from detection import files
    from models.preresnet import preresnet
    from models.preresnext import preresnext
    from models.resnet import resnet
    from models.resnext import resnext
    from runtime import regular_files
except ImportError as error:
    # Python keeps one package of a name, so after Hugging Face's datasets ours is not found
    names = {name.removesuffix(".py") for name in os.listdir(_FOLDER)} & sys.modules.keys()
    files = {name: str(getattr(sys.modules[name], "__file__", None)) for name in sorted(names)}
    # not by the beginning of the path, because a virtual environment may lie in our folder
    ours = {os.path.join(_FOLDER, end) for n in files for end in (f"{n}.py", f"{n}/__init__.py")}
    taken = [f"{name} ({file})" for name, file in files.items() if file not in ours]
    if not taken:
        raise
    raise ImportError(
        f"another package has the name of one of ours: {', '.join(taken)}; pretrained/README.md has"
        f" the ways out ({error})"
    ) from error


def load(source, device="cpu"):
    """A trained model from a file: a classifier as of models.load, or a detector.

    A detector's call takes an image file, an image of Pillow's or a tensor, and gives its boxes,
    scores, labels and names.
    """
    path = regular_files.model_file(source)
    detector = files.is_detector(path)
    return files.load(path, detector, device) if detector else models.load(source, device)


__all__ = ["load", "preresnet", "preresnext", "resnet", "resnext"]
dependencies = ["torch", "torchvision", "numpy", "PIL"]

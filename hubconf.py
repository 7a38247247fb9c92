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
    # Python keeps one package per name: after Hugging Face's datasets, ours is not found
    raise ImportError(
        f"{error}; if another package called models or datasets was imported before, load the model"
        " in a separate process"
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

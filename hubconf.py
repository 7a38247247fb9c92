"""Entry points for torch.hub: `load`, a trained model from a file; and the nets with new weights.

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
    from models import load
    from models.preresnet import preresnet
    from models.preresnext import preresnext
    from models.resnet import resnet
    from models.resnext import resnext
except ImportError as error:
    # Python keeps one package per name: after Hugging Face's datasets, ours is not found
    raise ImportError(
        f"{error}; if a package called models or datasets was imported before from elsewhere, load"
        " the model in a process of its own"
    ) from error

__all__ = ["load", "preresnet", "preresnext", "resnet", "resnext"]
dependencies = ["torch", "torchvision", "numpy", "PIL"]

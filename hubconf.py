"""Entry points for torch.hub: `load`, a trained model from a file; and the nets with new weights.

>>> torch.hub.load("path/to/this/folder", "load", "model_best.pth", source="local")
>>> torch.hub.load("path/to/this/folder", "resnext", depth=101, cardinality=32, source="local")
"""

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

"""Makes a model from options, or loads one from a file. Port of models/init.lua.

The order is the Lua's: a resumed checkpoint goes before -retrain, and -retrain before a new net.
Differs from the Lua: -nClasses 0 means the number of classes in the data, and a model that does not
fit the data is refused instead of failing inside the loss.
"""

import importlib
import os

import torch
from torch import nn

from datasets import cifar10, cifar100, class_names, imagenet
from datasets.input_spec import InputTransform
from formats import model_files
from models.blocks import freeze, init_linear, set_recompute
from models.exported import Exported
from runtime.errors import InputError, cause, shown
from runtime.precision import Precision
from runtime.progress import slow
from runtime.terminal import note, say

# raised if no net has the configuration, or if the weights do not fit
ERRORS = (InputError, LookupError, TypeError, AttributeError, RuntimeError, ValueError, ImportError)
_STEMS = {"cifar": "small images, like CIFAR's", "imagenet": "photos of about 224 pixels"}


def from_file(checkpoint, source, classifier=True):
    """The net of a resumed run's checkpoint, else of a model file, or None (source "none").

    classifier: as in `load_file`.
    """
    if checkpoint is not None:
        say(f"=> Resuming model from {checkpoint['modelFile']}")
        return load_file(checkpoint["modelFile"])
    if source == "none":
        return None
    say(f"Loading model from file: {source}")
    return load_file(source, classifier)


def setup(opt, model, checkpoint, classes, device):
    """The model on its device in the run's precision.

    model: what `from_file` gave; None for a new net. classes: the class names of the data.
    """
    count = opt.nClasses or len(classes)
    if count < len(classes):
        raise InputError(
            f"-nClasses {count} is too few: the data has {len(classes)} classes, and each needs an "
            "output, even if it has no images"
        )
    if model is None:
        say(f"=> Creating model from file: models/{opt.netType}.py")
        model = build(opt, count)
        if opt.testOnly:
            note("=> neither -retrain nor -resume is given, so this net is untrained")
    stem = model.config.get("stem", opt.stem)
    if stem != opt.stem and opt.source("trainCrop") == "default":
        first, data = (_STEMS.get(name, name) for name in (stem, opt.stem))
        way = "; -trainCrop 64 makes them smaller" if opt.stem == "imagenet" else ""
        note(f"=> the first layers of this net are for {first}, but {opt.dataset} has {data}{way}")
    if opt.resetClassifier and checkpoint is None:
        reset_classifier(model, count)
    _match_classes(model, opt, checkpoint, list(classes), count)
    model.classes = list(classes)
    freeze(model, opt.freeze, opt.recomputeBN)
    if opt.optnet:
        set_recompute(model)
    if opt.shareGradInput:
        if "resnext" in model.config["net"]:  # as ResNeXt's models/init.lua
            say("shareGradInput function")
        note("shareGradInput: not needed, because autograd frees each gradInput after its use")
    if opt.accumulate and opt.nGPU == 1:
        note("accumulate: without effect, because -nGPU 1 is one replica with the whole batch")
    if opt.backend == "cunn":
        note("-backend cunn: PyTorch chooses among its own kernels and cuDNN's")
    set_backend(opt.cudnn, opt.precision)
    # channels_last is at least as fast for all our nets, and up to 1.7 times as fast on the CPU
    dtype = Precision(opt.precision, device).dtype
    return model.to(device, dtype, memory_format=torch.channels_last)


def build(opt, classes):
    """A new net with this number of classes."""
    return importlib.import_module(f"models.{opt.netType}").create(opt, classes)


def load(source, device="cpu", classifier=True):
    """A model ready to use: `model(model.transform(image)[None])` gives the scores of an image.

    `source` is what model_files.read takes: a file of ours, of Torch7, or of torchvision or timm;
    a name such as "torchvision:resnext50_32x4d"; or an .onnx of convert.py, which gives scores
    alone. The model is in evaluation mode and float32, as are transformed images: half-precision
    weights are converted. It has `classes` (a list of names, or None) and `transform` (from an
    image file or array to a tensor). With classifier False, weights of other programs need none
    (`model.features` takes images then).
    """
    onnx = model_files.is_onnx(source)
    model = Exported(os.fspath(source)) if onnx else load_file(source, classifier)
    model = model.to(device, torch.float32).eval()
    model.transform = InputTransform(model.input_spec)
    return model


def load_file(source, classifier=True):
    """A net from a file, with its weights, class names and input spec.

    classifier: whether the file must have one; if not, a net of another program that has none gets
    one output of zeros.
    """
    with slow(f"loading {source}"):
        content = model_files.read(source, classifier)
        try:
            model = filled(lambda: from_config(content["config"]), content["model"])
        except ERRORS as error:
            raise InputError(f"{source} is not a net of this program: {cause(error)}") from None
    names = content["classes"]
    model.classes = names and [class_names.normalized(name) for name in names]
    model.input_spec = content["preprocessing"]
    if content.get("torch7"):
        model.input_spec = _original_input_spec(content["config"])
    return model


def filled(build, state):
    """The net that build() makes on the meta device, with the tensors of a state dict.

    The net uses the tensors themselves. So only tensors that share memory are copied, and a
    configuration that claims more weights than there are takes no memory. InputError for the first
    tensor that does not fit the net or is missing.
    """
    with torch.device("meta"):
        model = build()
    config, own, net = model.config, model.state_dict(), model.config["net"]
    if "depth" in config:
        net = f"{net} of depth {config['depth']} with shortcut {config.get('shortcut')}"
    for name, tensor in state.items():
        if name not in own:
            raise InputError(f"{shown(name)} has no place in a {net}")
        if tensor.shape != own[name].shape:
            sizes = f"{tuple(tensor.shape)}, but {tuple(own[name].shape)}"
            raise InputError(f"{name} is of size {sizes} in a {net}")
    for name in own:
        if name not in state:
            raise InputError(f"{name} is missing from a {net}")
    model.load_state_dict(model_files.separate(state), assign=True)
    return model


def _match_classes(model, opt, checkpoint, classes, count):
    """InputError if the net's outputs are not those of the data's classes.

    A test finds the classes by name, in any order and among others.
    """
    outputs, names = model.fc.out_features, []
    is_old = opt.retrain != "none" and not opt.resetClassifier
    if checkpoint is not None:
        names = model.classes or []
    elif is_old:
        names = class_names.known(opt.retrain, model.classes, outputs, classes)
    if opt.testOnly and set(classes) <= set(names):
        places = {name: k for k, name in enumerate(names)}
        order = [places[name] for name in classes]
        order += sorted(set(range(outputs)) - set(order))
        for parameter in model.fc.parameters():
            parameter.data = parameter.data[order]
        return
    if checkpoint is not None and names:
        _check_same_classes(names, classes)
    if outputs != count:
        wanted = f"-nClasses says {count}" if opt.nClasses else f"the data has {count}"
        found = f"the model has {outputs} classes, but {wanted}"
        reset = "-retrain with a model and " * (checkpoint is not None) + "-resetClassifier true"
        # More outputs than classes may stay, except in a test or if names show another order
        may_keep = not opt.testOnly and not set(names) & set(classes) or checkpoint is not None
        keep = (
            f"; to keep its outputs, give -nClasses {outputs}"
            if may_keep and outputs >= len(classes)
            else ""
        )
        raise InputError(f"{found}: to fine-tune, give {reset}{keep}")
    if checkpoint is None and is_old:
        _check_order(names, classes, opt.retrain)
        class_names.note_order(opt.retrain, names, outputs, classes)


def _check_same_classes(saved, found):
    """InputError if a resumed run would take its outputs for other classes."""
    if saved == found:
        return
    gone = [f"{name!r:.80} is missing" for name in saved if name not in found]
    new = [f"{name!r:.80} is new" for name in found if name not in saved]
    changes = " and ".join(gone[:1] + new[:1]) or "their order has changed"
    raise InputError(
        f"the data has other classes than the checkpoint: {changes}; a resumed run needs the "
        "class folders that it began with (one may be empty); to train on other classes, give "
        "-retrain with a model and -resetClassifier true"
    )


def _check_order(names, classes, source):
    """InputError if an output stands for one class of the data but has the name of another."""
    places = {name: k for k, name in enumerate(names)}
    for k, name in enumerate(classes):
        if places.get(name, k) != k:
            raise InputError(
                f"{source} has {name!r:.80} as its class {places[name] + 1}, the data as "
                f"class {k + 1}: a test finds classes by name; to fine-tune, give -resetClassifier "
                "true"
            )


def _original_input_spec(config):
    """The original program's input spec, found by stem and number of classes; or None."""
    if config["stem"] == "imagenet":
        spec = {"scale": 256, "crop": 224, "largest": 1}
        return {**spec, "mean": imagenet.mean, "std": imagenet.std}
    data = {10: cifar10, 100: cifar100}.get(config["classes"])
    if data is None:
        return None
    return {"scale": 32, "crop": 32, "largest": 255, "mean": data.mean, "std": data.std}


def from_config(config):
    """A net with new weights from a configuration, such as `model.config`."""
    arguments = dict(config)
    name = arguments.pop("net")
    return getattr(importlib.import_module(f"models.{name}"), name)(**arguments)


def pack(model):
    """The content of a model file (see formats/model_files.py)."""
    return {
        "model": model.state_dict(),
        "config": model.config,
        "classes": model.classes,
        "preprocessing": model.input_spec,  # its name in existing files
    }


def reset_classifier(model, count):
    """Replace the last layer by a newly initialised one with `count` outputs."""
    say(f" => Replacing classifier with {count}-way classifier")
    model.fc = init_linear(nn.Linear(model.fc.in_features, count))
    model.config["classes"] = count


def set_backend(cudnn, precision):
    """Set, for the whole process, how cuDNN selects its algorithms and whether it uses TF32.

    cudnn: "fastest" times cuDNN's algorithms for each size of input, "deterministic" takes those
    that give the same bits every time, "default" takes cuDNN's own choice.
    """
    torch.backends.cudnn.benchmark = cudnn == "fastest"
    torch.backends.cudnn.deterministic = cudnn == "deterministic"
    # PyTorch's default lets cuDNN round to TF32; -precision single means IEEE float32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

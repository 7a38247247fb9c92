"""From options or a file to a model that is ready to train. Port of models/init.lua.

The order is the Lua's: a checkpoint that is resumed comes before -retrain, that before a new net.
Differs from the Lua: the number of classes follows the data where -nClasses is 0, and a model that
does not fit the data is refused instead of failing inside the loss.
"""

import importlib

import torch
from torch import nn

from datasets.preprocessing import Preprocessing
from distributed import say
from errors import InputError
from models import formats
from models.blocks import init_linear


def setup(opt, checkpoint, classes, device):
    """The model on its device in the run's precision; `classes` are the names in the data."""
    count = opt.nClasses or len(classes)
    if count < len(classes):
        raise InputError(f"-nClasses {count}, but the data has {len(classes)} classes")
    if checkpoint is not None:
        say(f"=> Resuming model from {checkpoint['modelFile']}")
        model = load_file(checkpoint["modelFile"])
    elif opt.retrain != "none":
        say(f"Loading model from file: {opt.retrain}")
        model = load_file(opt.retrain)
        if opt.resetClassifier:
            reset_classifier(model, count)
    else:
        say(f"=> Creating model from file: models/{opt.netType}.py")
        model = build(opt, count)
    outputs = model.fc.out_features
    if outputs != count:
        raise InputError(
            f"the model has {outputs} classes, the data {len(classes)}: to fine-tune, give "
            f"-resetClassifier true; to leave it so, -nClasses {outputs}"
        )
    model.classes = list(classes)
    _set_memory(opt, model)
    set_backend(opt)
    dtype = torch.float64 if opt.precision == "double" else torch.float32
    # channels last is at least as fast for every net here, on the CPU by up to 1.7 times
    return model.to(device, dtype, memory_format=torch.channels_last)


def build(opt, classes):
    """A new net with this number of classes."""
    return importlib.import_module(f"models.{opt.netType}").create(opt, classes)


def load(source, device="cpu"):
    """A model ready to use: `model(model.preprocess(image)[None])` gives the scores of an image.

    `source` is anything that formats.read takes: a file of ours, of Torch7 or of torchvision and
    timm, or a name such as "torchvision:resnext50_32x4d". The model is in evaluation mode;
    `classes` (names, or None) and `preprocess` (an image file or array to a tensor) go with it.
    """
    model = load_file(source).to(device).eval()
    model.preprocess = Preprocessing(model.preprocessing)
    return model


def load_file(source):
    """A net from a file, with its weights, class names and preprocessing.

    The net takes the file's tensors over as they are: nothing is copied, and a configuration that
    asks for more weights than the file has claims no memory.
    """
    content = formats.read(source)
    try:
        with torch.device("meta"):
            model = from_config(content["config"])
        model.load_state_dict(content["model"], assign=True)
    except (InputError, LookupError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source} holds no net of this program: {reason}") from None
    model.classes, model.preprocessing = content["classes"], content["preprocessing"]
    return model


def from_config(config):
    """The net that `model.config` is of, with new weights."""
    arguments = dict(config)
    name = arguments.pop("net")
    return getattr(importlib.import_module(f"models.{name}"), name)(**arguments)


def reset_classifier(model, count):
    """Put a new, freshly initialised last layer in place of the old one."""
    say(f" => Replacing classifier with {count}-way classifier")
    model.fc = init_linear(nn.Linear(model.fc.in_features, count))
    model.config["classes"] = count


def _set_memory(opt, model):
    if opt.optnet:
        model.recompute = True
    if opt.shareGradInput:
        say("shareGradInput: not needed, autograd frees each gradInput as soon as it is used")


def set_backend(opt):
    """How cuDNN chooses its kernels and rounds, for this whole process."""
    if opt.backend == "cunn":
        say("-backend cunn: PyTorch chooses among its own kernels and cuDNN's")
    torch.backends.cudnn.benchmark = opt.cudnn == "fastest"
    torch.backends.cudnn.deterministic = opt.cudnn == "deterministic"
    # PyTorch lets cuDNN round to TF32 unless told otherwise; single means IEEE float32
    torch.backends.cudnn.allow_tf32 = opt.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = opt.precision == "tf32"

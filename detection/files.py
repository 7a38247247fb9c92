"""A detector from a classifier or from a file of its own."""

import torch

from detection.net import CAPS, Detector
from formats import model_files
from models import loading
from runtime import regular_files
from runtime.errors import InputError, cause, shown
from runtime.options import EXACT, LONGEST
from storage import atomic


def is_detector(source):
    """The content of a file if it holds a detector, else None."""
    path, _ = regular_files.split_key(source)
    foreign = source.startswith("torchvision:") or model_files.is_onnx(path)
    if foreign or model_files.kind(path) != "torch":
        return None
    saved = atomic.load(path, foreign=True)
    config = saved.get("config") if isinstance(saved, dict) else None
    return saved if isinstance(config, dict) and config.get("net") == model_files.DETECTOR else None


def load(source, saved=None, device="cpu"):
    """A detector ready to use: `model(image)` gives boxes, scores, labels and names."""
    return load_detector(source, saved).to(device, torch.float32).eval()


def load_detector(source, saved=None, **settings):
    """The detector in a file; `settings` replace those in its config."""
    saved = saved or is_detector(source)
    if saved is None:
        raise InputError(f"{source} is not a detector of this program: detect.py trains one")
    config, state = {**saved["config"], **settings}, saved.get("model")
    model_files.check_state(source, state)
    if not isinstance(config.get("backbone"), dict):
        raise InputError(f"{source} is damaged: its config has no backbone")
    model_files.check_config(source, config["backbone"], state)
    try:
        _check(config, state)
        model = loading.filled(lambda: Detector(config), state)
        model.classes = list(map(str, saved["classes"]))
        spec = model_files.checked_spec(source, saved["preprocessing"])
        if spec is None:
            raise InputError("it has no input spec")
        model.show_images(spec)
        if len(model.classes) != config["classes"]:
            raise InputError("it does not name all its classes")
    except loading.ERRORS as error:
        reason = "its config lacks " * isinstance(error, KeyError) + cause(error)
        raise InputError(f"{source} is not a detector of this program: {reason}") from None
    return model


def _check(config, state):
    """InputError for settings that no detector has, before anything of that size is built."""
    numbers = sum(tensor.numel() for tensor in state.values())
    most = {"classes": numbers, "regions": EXACT, "pool": 128, "scale": LONGEST, "largest": LONGEST}
    fits = {name: _is_whole(config[name], most[name]) for name in most}
    fits["shared"] = type(config["shared"]) is bool
    for name, least, longest in (("anchors", 1, numbers), ("proposals", 4, 4)):
        values = config[name]
        is_list = isinstance(values, (list, tuple)) and least <= len(values) <= longest
        fits[name] = is_list and all(_is_whole(value, EXACT) for value in values)
    for name, value in ((name, config[name]) for name in CAPS if name in config):
        is_share = type(value) is float and 0 <= value <= 1
        fits[name] = _is_whole(value, EXACT) if name == "maxBoxes" else is_share
    for name in fits:
        if not fits[name]:
            raise InputError(f"its {name} is {shown(config[name])}")


def _is_whole(value, most):
    return type(value) is int and 1 <= value <= most


def caps(opt):
    """The CAPS that are given, which take the place of those of a detector."""
    given = {name: getattr(opt, name) for name in CAPS if name in opt.given}
    return {name: value for name, value in given.items() if (name, value) != ("nms", 0)}


def from_classifier(net, config, classes):
    """A detector whose trunks and last stage are those of a classifier, name by name."""
    if net.input_spec is None:
        raise InputError("the classifier's file has no input spec (mean and std of its images)")
    own = {"net": model_files.DETECTOR, "backbone": dict(net.config), "classes": len(classes)}
    model = Detector(own | config)
    given = net.state_dict()
    for part in (model.backbone, model.rpn_trunk, model.roi_heads.box_head):
        part.load_state_dict({name: given[name] for name in part.state_dict()})
    model.classes = list(classes)
    model.show_images(net.input_spec)
    return model

"""A detector from a classifier or from a file of its own."""

import torch

from detection.net import Detector
from formats import model_files
from runtime.errors import InputError
from storage import atomic


def is_detector(source):
    """The content of a file that holds a detector; None if it holds something else."""
    if source.startswith("torchvision:") or model_files.kind(source) != "torch":
        return None
    saved = atomic.load(source)
    config = saved.get("config") if isinstance(saved, dict) else None
    return saved if isinstance(config, dict) and config.get("net") == model_files.DETECTOR else None


def load(source, saved=None, **settings):
    """The detector of a file; `settings` take the place of those in its config."""
    saved = saved or is_detector(source)
    if saved is None:
        raise InputError(f"{source} holds no detector of this program: detect.py trains one")
    try:
        config = {**saved["config"], **settings}
        with torch.device("meta"):
            model = Detector(config)
        own, state = model.state_dict(), saved["model"]
        model_files.check_state(source, state)
        wrong = [n for n in own if n not in state or state[n].shape != own[n].shape]
        if wrong or len(own) != len(state):
            raise InputError(f"its weights do not fit its config: {(wrong or ['too many'])[0]}")
        model.load_state_dict(state, assign=True)
        model.classes = list(map(str, saved["classes"]))
        model.show_images(model_files.checked_spec(source, saved["preprocessing"]))
        if len(model.classes) != config["classes"]:
            raise InputError("it does not name all its classes")
    except (InputError, LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"its config lacks {reason}" if isinstance(error, KeyError) else reason
        raise InputError(f"{source} holds no detector of this program: {reason}") from None
    return model


def from_classifier(net, config, classes):
    """A detector whose trunks and last stage are those of a classifier, name by name."""
    if net.input_spec is None:
        raise InputError("the classifier does not say how it wants its images (its mean and std)")
    model = Detector(
        {
            "net": model_files.DETECTOR,
            "backbone": dict(net.config),
            "classes": len(classes),
            **config,
        }
    )
    given = {n: t for n, t in net.state_dict().items() if not n.startswith("fc.")}
    parts = [model.backbone, model.roi_heads.box_head, getattr(model, "rpn_backbone", None)]
    with torch.no_grad():
        for part in filter(None, parts):
            for name, tensor in part.state_dict().items():
                tensor.copy_(given[name])
    model.classes = list(classes)
    model.show_images(net.input_spec)
    return model

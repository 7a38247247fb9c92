"""What a run leaves on disk, and how it goes on from there. Port of checkpoints.lua.

The folder holds model_N.pth, optimState_N.pth, model_best.pth, log.jsonl and latest.pth. Each file
appears whole (files.py), latest.pth last, so that the folder resumes whenever the run is killed.
What is saved inside an epoch is one file, both model and optimState, which the next one replaces.
Of several processes the first writes, all read.
Differs from the Lua: the best error and the options travel along, so a resumed run goes on as if
it had not stopped (order and augmentation are functions of seed and epoch and need no state).
"""

import contextlib
import glob
import json
import math
import os
import re
import subprocess
import sys

import torch

import distributed
import files
from distributed import say
from errors import InputError
from models import formats, torch7

# Options that decide the result: on a resume the checkpoint's hold, unless given again.
CARRIED = (
    *("LR", "LRSteps", "momentum", "weightDecay", "nEpochs"),
    *("batchSize", "nGPU", "precision", "manualSeed", "nClasses"),
)
INSIDE = "inside_epoch.pth"


def latest(opt):
    """The checkpoint that -resume names, or None: epoch, best, modelFile and the optimizer's state.

    Takes over into `opt` those of the checkpoint's options that the command line does not give.
    A folder of Torch7's resumes too; one that has both goes on from ours, which is the later.
    """
    opt.agents = distributed.agents()
    if _written_by_us(opt):
        opt.resume = opt.save
    if opt.resume == "none":
        return None
    for name in ("latest.pth", "latest.t7"):
        path = os.path.join(opt.resume, name)
        if os.path.isfile(path):
            say(f"=> Loading checkpoint {path}")
            read = _ours if name.endswith(".pth") else _torch7
            checkpoint = read(path)
            _adopt(opt, checkpoint["options"])
            return checkpoint
    say(f"=> No checkpoint in {opt.resume}: starting afresh")
    return None


def _ours(path):
    newest, folder = files.load(path), os.path.dirname(path)
    checkpoint = files.load(os.path.join(folder, newest["optimFile"]))
    return {**checkpoint, "modelFile": os.path.join(folder, newest["modelFile"])}


def _torch7(path):
    """What checkpoints.lua wrote: it knows no best error, and the rate is the command line's."""
    newest, folder = formats.load_t7(path), os.path.dirname(path)
    try:
        model = os.path.join(folder, newest["modelFile"])
        checkpoint = _torch7_state(os.path.join(folder, newest["optimFile"]), model)
        return {**checkpoint, "epoch": newest["epoch"], "modelFile": model}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint of the original program: {error!r}") from None


def _torch7_state(path, model):
    """An optimState of optim.sgd; dfdx is the momentum, flat in the order of the parameters."""
    state = formats.load_t7(path)
    return {
        "best": (math.inf, math.inf),
        "momentum": torch7.split(state["dfdx"], formats.read(model)["model"]),
        "options": {name: state[name] for name in ("momentum", "weightDecay")},
    }


def replicas(opt):
    """-nGPU as it will be once the checkpoint that -resume names has had its say."""
    path = os.path.join(opt.resume, "latest.pth")
    if "nGPU" in opt.given or not os.path.isfile(path):
        return opt.nGPU
    return files.load(path).get("nGPU", opt.nGPU)


def _written_by_us(opt):
    """Whether torchrun's agents have started this run anew: what is in -save is then its own."""
    path = os.path.join(opt.save, "latest.pth")
    if not opt.agents or not os.path.isfile(path):
        return False
    return not set(opt.agents).isdisjoint(files.load(path).get("agents", []))


def _adopt(opt, saved):
    for name in CARRIED:
        ours, theirs = getattr(opt, name), saved.get(name, getattr(opt, name))
        if ours == theirs:
            continue
        if name in opt.given:
            say(
                f"=> -{name} {_shown(ours)} as given, in place of the checkpoint's {_shown(theirs)}"
            )
        else:
            say(f"=> -{name} {_shown(theirs)} from the checkpoint")
            setattr(opt, name, theirs)
    if opt.LRSteps:
        opt.drops = ("at", opt.LRSteps)


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def optim_state(opt):
    """The state that -optimState names, or None; without a classifier that is being replaced."""
    if opt.optimState == "none":
        return None
    if formats.is_t7(opt.optimState):
        return _torch7_state(opt.optimState, opt.retrain)
    state = files.load(opt.optimState)
    if not isinstance(state, dict) or "momentum" not in state:
        raise InputError(f"{opt.optimState} is not an optimState file of this program")
    state.pop("position", None)  # that was on the way of another run
    if opt.resetClassifier:
        state["momentum"] = {k: v for k, v in state["momentum"].items() if not k.startswith("fc.")}
    return state


def begin(opt, checkpoint, device):
    """Make the folder of -save ready: a new log.jsonl, or the resumed run's up to its epoch."""
    if distributed.rank():
        return
    try:
        os.makedirs(opt.save, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"unable to create checkpoint directory {opt.save}: {error.strerror}"
        ) from None
    lines = []
    if checkpoint is not None:
        lines = [
            line for line in _read_log(opt.resume) if line.get("epoch", 0) <= checkpoint["epoch"]
        ]
        best = os.path.join(opt.resume, "model_best.pth")
        if os.path.isfile(best) and not os.path.exists(os.path.join(opt.save, "model_best.pth")):
            files.copy(best, os.path.join(opt.save, "model_best.pth"))
    with files.replacing(os.path.join(opt.save, "log.jsonl")) as file:
        for line in lines or [_about(opt, device)]:
            file.write(_encoded(line))


def save(epoch, model, trainer, best, is_best, opt, entry):
    """Write the state after an epoch; `best` is (top-1, top-5) so far, `entry` the line to log."""
    if distributed.rank():
        return
    model_file, optim_file = f"model_{epoch}.pth", f"optimState_{epoch}.pth"
    files.save(os.path.join(opt.save, model_file), pack(model))
    state = {"epoch": epoch, "best": best, "options": options(opt), **trainer.state()}
    files.save(os.path.join(opt.save, optim_file), state)
    if is_best:
        files.copy(os.path.join(opt.save, model_file), os.path.join(opt.save, "model_best.pth"))
    # a line too many is dropped when resuming, a line too few would be missing for ever
    with open(os.path.join(opt.save, "log.jsonl"), "ab") as file:
        file.write(_encoded({"epoch": epoch, **entry}))
    _point(opt, epoch, model_file, optim_file)
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(opt.save, INSIDE))
    if opt.keep:
        _forget(opt.save, epoch - opt.keep)


def save_inside(epoch, model, trainer, best, opt):
    """Write the state inside an epoch (-saveEvery, signals); trainer.position says where."""
    if distributed.rank():
        return
    # `epoch` counts the finished ones; one file, for it is replaced while latest.pth names it
    state = {"epoch": epoch - 1, "best": best, "options": options(opt), **trainer.state()}
    files.save(os.path.join(opt.save, INSIDE), {**pack(model), **state})
    _point(opt, epoch - 1, INSIDE, INSIDE)


def _point(opt, epoch, model_file, optim_file):
    """Let latest.pth name these files."""
    newest = {"epoch": epoch, "modelFile": model_file, "optimFile": optim_file}
    newest.update(nGPU=opt.nGPU, agents=opt.agents)
    files.save(os.path.join(opt.save, "latest.pth"), newest)


def pack(model):
    """What a model file holds: weights, how to build the net, its classes and its input."""
    return {
        "model": model.state_dict(),
        "config": model.config,
        "classes": model.classes,
        "preprocessing": model.preprocessing,
    }


def options(opt):
    """The options as plain values."""
    return {name: value for name, value in vars(opt).items() if name not in ("given", "agents")}


def _forget(save, last):
    """Remove the files of epochs up to `last` (-keep)."""
    for path in glob.glob(os.path.join(glob.escape(save), "*_*.pth")):
        match = re.fullmatch(r"(?:model|optimState)_(\d+)\.pth", os.path.basename(path))
        if match and int(match[1]) <= last:
            os.remove(path)


def _encoded(line):
    return json.dumps(line).encode() + b"\n"


def _read_log(folder):
    """The lines of log.jsonl; a last one that was cut off by a kill is left out."""
    lines = []
    with (
        contextlib.suppress(FileNotFoundError, json.JSONDecodeError),
        open(os.path.join(folder, "log.jsonl"), "rb") as file,
    ):
        for line in file:
            lines.append(json.loads(line))
    return lines


def _about(opt, device):
    return {
        "options": options(opt),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "commit": _commit(),
    }


def _commit():
    """The commit of this program, or None outside a clone."""
    here = os.path.dirname(os.path.abspath(__file__))
    with contextlib.suppress(OSError):
        command = ["git", "-C", here, "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() or None
    return None

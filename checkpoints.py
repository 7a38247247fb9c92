"""How a run resumes from what it left on disk. Port of the reading part of checkpoints.lua.

latest.pth names the newest checkpoint. Where it, or what it names, is missing, cut short or
changed, the newest whole checkpoint in the folder is taken and the loss named. Of several processes
the first looks, all read. What is written, and in what order: storage/run_folder.py.
Differs from the Lua: the best error, the options and the log travel along, so a resumed run goes on
as if it had not stopped (order and augmentation are functions of seed and epoch, without state).
"""

import math
import os
import re

import opts
from formats import model_files, torch7
from parallel import group
from runtime.errors import InputError
from runtime.terminal import say
from storage import atomic, schema
from storage.run_folder import INSIDE

# Options that decide the result: on a resume the checkpoint's hold, unless given again.
CARRIED = (
    *("LR", "LRSteps", "momentum", "weightDecay", "nEpochs"),
    *("batchSize", "nGPU", "precision", "manualSeed", "nClasses", "recomputeBN"),
)


def latest(opt):
    """The checkpoint that -resume names, or None: epoch, best, modelFile and the optimizer's state.

    Takes over into `opt` those of the checkpoint's options that the command line does not give.
    A folder of Torch7's resumes too; one that has both goes on from ours, which is the later.
    """
    opt.agents = group.agents()
    if _written_by_us(opt):
        opt.resume = opt.save
    if opt.resume == "none":
        return None
    checkpoint = _chosen(opt.resume)
    path = os.path.join(opt.resume, "latest.t7")
    if checkpoint is None and os.path.isfile(path):
        say(f"=> Loading checkpoint {path}")
        checkpoint = _torch7(path)
    if checkpoint is None:
        say(f"=> No checkpoint in {opt.resume}: starting afresh")
        return None
    adopt(opt, checkpoint["options"])
    return checkpoint


def _chosen(folder):
    """The newest whole checkpoint as the first process sees it, in every process."""
    checkpoint, names = None, None
    if group.rank() == 0:
        checkpoint, names = newest(folder, say)
    names = group.all_gather(names)[0]
    return _read(folder, *names) if names and checkpoint is None else checkpoint


def newest(folder, say=lambda line: None):
    """The newest whole checkpoint in a folder and (modelFile, optimFile), or (None, None).

    None if no checkpoint was finished there. InputError if there were some and none is whole.
    """
    path = os.path.join(folder, "latest.pth")
    losses, named, last = [], None, math.inf
    try:
        pointer = _pointer(path)
        say(f"=> Loading checkpoint {path}")
        named, last = (pointer["modelFile"], pointer["optimFile"]), pointer["epoch"]
        return _read(folder, *named), named
    except atomic.Damaged as error:
        losses.append(str(error))
    found = _finished(folder)
    if not found and not os.path.exists(path):
        return None, None
    for epoch, names in found:
        # files of a later epoch than latest.pth tells of are an older run's, written over by this
        if names == named or epoch > last:
            continue
        try:
            checkpoint = _read(folder, *names)
        except atomic.Damaged as error:
            losses.append(str(error))
            continue
        kept = os.path.join(folder, names[1])
        say(f"=> {'; '.join(losses)}: going on from {kept}, {checkpoint['epoch']} epochs done")
        return checkpoint, names
    raise InputError(
        f"no checkpoint in {folder} is whole: {'; '.join(losses)}; to start afresh, remove them or "
        "give another -save"
    )


def _state(path):
    """The state in a file, its options looked at too."""
    found = schema.read(path)
    for name in CARRIED:
        if name in found["options"] and not opts.fits(name, found["options"][name]):
            value = f"{found['options'][name]!r:.80}"
            raise InputError(f"{path} is no checkpoint of this program: its -{name} is {value}")
    return found


def _pointer(path):
    """What latest.pth says. Names that lead out of its folder are refused."""
    pointer = atomic.load(path)
    names = (
        [pointer.get(name) for name in ("modelFile", "optimFile")]
        if isinstance(pointer, dict)
        else []
    )
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
            raise InputError(f"{path} names {name!r:.80}: should be a file of the same folder")
    if not names or not schema.is_count(pointer.get("epoch")):
        raise InputError(f"{path} names no checkpoint of this program")
    return pointer


def _finished(folder):
    """(epochs done, (modelFile, optimFile)) of the checkpoints in a folder, newest first.

    An optimState is written last: a model without one belongs to a save that was cut off. Several
    are models whose optimStates got lost.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [re.fullmatch(r"(model|optimState)_(\d+)\.pth", name) for name in names]
    models = {int(match[2]) for match in found if match and match[1] == "model"}
    states = {int(match[2]) for match in found if match and match[1] == "optimState"}
    if len(models) > 1 or states:
        states |= models
    pairs = [(n, (f"model_{n}.pth", f"optimState_{n}.pth")) for n in sorted(states, reverse=True)]
    if INSIDE in names:
        try:
            epoch = _state(os.path.join(folder, INSIDE))["epoch"]
        except atomic.Damaged:
            epoch = -1  # to be named after all others
        pairs.append((epoch, (INSIDE, INSIDE)))
        pairs.sort(key=lambda pair: (pair[0], pair[1][0] == INSIDE), reverse=True)
    return pairs


def _read(folder, model_file, optim_file):
    """A checkpoint whose files are whole and belong together; else Damaged."""
    path, model = os.path.join(folder, optim_file), os.path.join(folder, model_file)
    checkpoint = _state(path)
    if model != path:
        atomic.load(model)
        if checkpoint.get("digest", atomic.digest(model)) != atomic.digest(model):
            raise atomic.Damaged(f"{model} is not the model that {path} belongs to")
    for name in ("model", "config", "classes", "preprocessing"):
        checkpoint.pop(name, None)
    return {**checkpoint, "modelFile": model}


def _note(folder, name):
    """Something that latest.pth says, or if it is damaged the newest whole checkpoint; or None."""
    path = os.path.join(folder, "latest.pth")
    try:
        return _pointer(path).get(name)
    except atomic.Damaged:
        checkpoint, _ = newest(folder)
    if checkpoint is None:
        return None
    return checkpoint.get(name, checkpoint["options"].get(name))


def replicas(opt):
    """-nGPU as it will be once the checkpoint that -resume names has had its say."""
    if "nGPU" in opt.given or opt.resume == "none":
        return opt.nGPU
    found = _note(opt.resume, "nGPU")
    return found if schema.is_count(found) and found else opt.nGPU


def _written_by_us(opt):
    """Whether torchrun's agents have started this run anew: what is in -save is then its own."""
    if not opt.agents:
        return False
    ours = None
    if group.rank() == 0:
        ours = _note(opt.save, "agents")
    return not set(opt.agents).isdisjoint(group.all_gather(ours)[0] or [])


def _torch7(path):
    """What checkpoints.lua wrote: it knows no best error, and the rate is the command line's."""
    newest, folder = model_files.load_t7(path), os.path.dirname(path)
    try:
        model = os.path.join(folder, newest["modelFile"])
        checkpoint = _torch7_state(os.path.join(folder, newest["optimFile"]), model)
        return {**checkpoint, "epoch": newest["epoch"], "modelFile": model}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint of the original program: {error!r}") from None


def _torch7_state(path, model):
    """An optimState of optim.sgd; dfdx is the momentum, flat in the order of the parameters."""
    found = model_files.load_t7(path)
    return {
        "best": (math.inf, math.inf),
        "momentum": torch7.split(found["dfdx"], model_files.read(model)["model"]),
        "options": {name: found[name] for name in ("momentum", "weightDecay")},
    }


def adopt(opt, saved, names=CARRIED):
    """Let those of a checkpoint's options hold that the command line does not give."""
    for name in names:
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
    if model_files.is_t7(opt.optimState):
        return _torch7_state(opt.optimState, opt.retrain)
    found = _state(opt.optimState)
    found.pop("position", None)  # that was on the way of another run
    if opt.resetClassifier:
        found["momentum"] = {k: v for k, v in found["momentum"].items() if not k.startswith("fc.")}
    return found

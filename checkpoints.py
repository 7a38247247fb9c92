"""Resuming a run from its folder. Port of the reading part of checkpoints.lua.

latest.pth names the newest checkpoint. If it or a file that it names is missing, truncated or
changed, the newest intact checkpoint in the folder is taken, and a line names the damage. Rank 0
chooses the checkpoint, every rank reads it. storage/run_folder.py writes the files and says in
which order.
Differs from the Lua: a checkpoint also has the best error, the options and the newest lines of the
log, so a resumed run goes on as if it had never stopped. (Order and augmentation are functions of
seed and epoch and need no saved state.)
"""

import math
import os
import re

import models
import opts
from formats import model_files, torch7
from parallel import group
from runtime.errors import InputError, shown
from runtime.progress import slow
from runtime.terminal import note, say
from storage import atomic, schema
from storage.run_folder import EPOCH, INSIDE


def latest(folder):
    """The newest checkpoint in a folder, or None if there is none, or no folder ("none").

    A dict of epoch, best, modelFile, options, optimizer state and newest log lines. The folder may
    be one of Torch7's. In a folder with both, ours is taken: it was resumed from Torch7's.
    """
    if folder == "none":
        return None
    checkpoint = names = None
    if group.rank() == 0:
        checkpoint, names = newest(folder, say, note)
    names = group.all_gather(names)[0]  # as rank 0 sees the folder
    path = os.path.join(folder, "latest.t7")
    if names:
        return checkpoint or _read(folder, *names)
    if os.path.isfile(path):
        say(f"=> Loading checkpoint {path}")
        return _torch7(path)
    note(f"=> No checkpoint in {folder}: starting afresh")
    return None


def newest(folder, say=lambda line: None, note=lambda line: None):
    """The newest intact checkpoint in a folder and its (modelFile, optimFile).

    (None, None) if none was ever finished there. InputError if there are some and none is intact.
    """
    path = os.path.join(folder, "latest.pth")
    problems, named, last = [], None, math.inf
    try:
        pointer = _pointer(path, atomic.load(path))
        say(f"=> Loading checkpoint {path}")
        named, last = (pointer["modelFile"], pointer["optimFile"]), pointer["epoch"]
        return _read(folder, *named), named
    except atomic.Damaged as error:
        problems.append(str(error))
    found = _finished(folder)
    if not found and not os.path.exists(path):
        return None, None
    # Epochs after that of latest.pth are tried last, because they may be an earlier run's. They are
    # all that is left where a folder was copied during a save and -keep removed the older ones.
    with slow(f"looking for an intact checkpoint in {folder}") as show_detail:
        for _, names in sorted(found, key=lambda pair: pair[0] > last):
            if names == named:
                continue
            try:
                checkpoint = _read(folder, *names)
            except atomic.Damaged as error:
                problems.append(str(error))
                show_detail(f"{len(problems)} of {len(found)} are damaged")
                continue
            path, epoch = os.path.join(folder, names[1]), checkpoint["epoch"]
            note(f"=> {_first(problems)}: going on from {path}, after epoch {epoch}")
            return checkpoint, names
    raise InputError(
        f"no checkpoint in {folder} is intact: {_first(problems)}; to start afresh, remove them "
        "or give another -save"
    )


def _first(problems):
    """The first three, and how many more there are."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _pointer(path, found):
    """The content of a latest.pth or latest.t7; InputError for names that leave its folder."""
    fields = found if isinstance(found, dict) else {}
    for name in ("modelFile", "optimFile"):
        file = fields.get(name)
        if not isinstance(file, str) or file in ("", ".", "..") or re.search(r"[/\\\0]", file):
            raise InputError(f"{path} names {shown(file)}: should be a file in the same folder")
    if not schema.is_count(fields.get("epoch")):
        raise InputError(f"{path} does not name a checkpoint: it lacks the epoch")
    return fields


def _finished(folder):
    """(epochs done, (modelFile, optimFile)) of the checkpoints in a folder, newest first.

    An optimState is written after its model: a single model without one is from a first save that
    was killed. Several models without any are checkpoints whose optimStates were removed; they
    count, so that they are reported as damaged instead of starting afresh.
    """
    try:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from None
    found = [match.groups() for name in names if (match := EPOCH.fullmatch(name))]
    models = {int(number) for kind, number in found if kind == "model"}
    states = {int(number) for kind, number in found if kind == "optimState"}
    if len(models) > 1 or states:
        states |= models
    pairs = [(n, (f"model_{n}.pth", f"optimState_{n}.pth")) for n in states]
    if INSIDE in names:
        try:
            epoch = schema.read_state(os.path.join(folder, INSIDE))["epoch"]
        except atomic.Damaged:
            epoch = -1  # is tried last
        pairs.append((epoch, (INSIDE, INSIDE)))
    return sorted(pairs, key=lambda pair: (pair[0], pair[1][0] == INSIDE), reverse=True)


def _read(folder, model_file, optim_file):
    """A checkpoint. Damaged if one of its files is, or if they do not belong together."""
    path, model = os.path.join(folder, optim_file), os.path.join(folder, model_file)
    checkpoint = schema.read_state(path)
    if model != path:
        atomic.load(model)
        if checkpoint.get("digest", atomic.digest(model)) != atomic.digest(model):
            raise atomic.Damaged(f"{model} is not the model that {path} belongs to")
    for name in ("model", "config", "classes", "preprocessing"):
        checkpoint.pop(name, None)
    return {**checkpoint, "modelFile": model}


def pointer_field(folder, name):
    """A field of latest.pth; if that is damaged, of the newest intact checkpoint; or None."""
    path = os.path.join(folder, "latest.pth")
    try:
        return _pointer(path, atomic.load(path)).get(name)
    except atomic.Damaged:
        checkpoint, _ = newest(folder)
    if checkpoint is None:
        return None
    return checkpoint.get(name, checkpoint["options"].get(name))


def restarted(folder):
    """Whether the torchrun agent that began the run in this folder has restarted it."""
    agents = group.agents()
    if not agents:
        return False
    saved = pointer_field(folder, "agents") if group.rank() == 0 else None
    saved = group.all_gather(saved)[0]
    return isinstance(saved, list) and any(agent in saved for agent in agents)


def _torch7(path):
    """A checkpoint of checkpoints.lua. It has no best error; the rate is the command line's."""
    newest, folder = _pointer(path, model_files.load_t7(path)), os.path.dirname(path)
    model = os.path.join(folder, newest["modelFile"])
    checkpoint = _torch7_state(os.path.join(folder, newest["optimFile"]), model)
    return {**checkpoint, "epoch": newest["epoch"], "modelFile": model}


def _torch7_state(path, model):
    """The state of optim.sgd. dfdx is the momentum, all parameters in one vector."""
    found = model_files.load_t7(path)
    fields = found if isinstance(found, dict) else {}
    fault = schema.tensor_fault(fields.get("dfdx"))
    if fault:
        raise InputError(f"{path} is not a checkpoint of the original program: its dfdx {fault}")
    options = {name: fields.get(name) for name in ("momentum", "weightDecay")}
    options = {n: float(v) if type(v) is int else v for n, v in options.items()}
    # the order of the net's parameters is Torch7's; that of the entries of a file may be any
    momentum = torch7.split(fields["dfdx"], models.load_file(model).state_dict())
    return {"best": (math.inf, math.inf), "momentum": momentum, "options": options, "file": path}


def optim_state(file, model, without=()):
    """The state in -optimState for the net in the file `model`, or None for "none".

    without: the parts of the net whose momentum is left out, because they are replaced.
    """
    if file == "none":
        return None
    is_t7 = model_files.kind(file) == "t7"
    found = _torch7_state(file, model) if is_t7 else schema.read_state(file)
    opts.saved_options(found)  # checks them
    for name in ("position", "data"):  # of another run
        found.pop(name, None)
    momentum = found["momentum"].items()
    found["momentum"] = {n: v for n, v in momentum if n.partition(".")[0] not in without}
    return found

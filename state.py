"""The file with an optimizer's state, optimState_N.pth, and what may stand in it.

`read` refuses what folder.py cannot have written, so that whoever resumes need not look again: a
file from a stranger may hold any plain value at any place.
"""

import math

import torch

import files
from errors import InputError
from opts import OPTIONS

# Options that decide the result: on a resume the checkpoint's hold, unless given again.
CARRIED = (
    *("LR", "LRSteps", "momentum", "weightDecay", "nEpochs"),
    *("batchSize", "nGPU", "precision", "manualSeed", "nClasses", "recomputeBN"),
)
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def read(path):
    """The state; Damaged if the file is not whole, InputError if it is no such state."""
    state = files.load(path)
    if not isinstance(state, dict) or "momentum" not in state:
        raise InputError(f"{path} is not an optimState file of this program")
    for name, is_right in RIGHT.items():
        if name not in state and name in ("epoch", "best", "options"):
            raise InputError(f"{path} is no checkpoint of this program: its {name} is missing")
        if name in state and not is_right(state[name]):
            value = "of other types or sizes" if name == "momentum" else f"{state[name]!r:.80}"
            raise InputError(f"{path} is no checkpoint of this program: its {name} is {value}")
    return state


def is_count(value):
    """Whether something is a whole number from 0."""
    return type(value) is int and value >= 0


def _is_number(value):
    return type(value) in (int, float)


def _is_best(best):
    return isinstance(best, (list, tuple)) and len(best) == 2 and all(map(_is_number, best))


def _are_options(options):
    return isinstance(options, dict) and all(
        _fits(options.get(name, default), default, allowed)
        for name, default, _, allowed, _ in OPTIONS
        if name in CARRIED
    )


def _fits(value, default, allowed):
    """Whether an option can have the value."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(map(is_count, value))
    if type(value) is not type(default):
        return False
    if isinstance(allowed, tuple):
        return value in allowed
    return not isinstance(allowed, int) or allowed <= value < math.inf


def _is_momentum(momentum):
    return isinstance(momentum, dict) and all(
        isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.untyped_storage().nbytes() >= tensor.nbytes  # no row that stands for many
        for tensor in momentum.values()
    )


def _is_position(position):
    """A place as Trainer.position has it; its epoch is None before the first."""
    if not isinstance(position, dict) or "epoch" not in position:
        return False
    if position["epoch"] is None:
        return True
    parts = [position.get("train"), position.get("test")]
    return is_count(position["epoch"]) and "order" in position and all(map(_are_sums, parts))


def _are_sums(sums):
    return (
        isinstance(sums, dict)
        and all(is_count(sums.get(name)) for name in ("done", "seen", "wrong1", "wrong5"))
        and all(_is_number(sums.get(name, 0)) for name in ("loss", "seconds", "data_wait"))
        and "loss" in sums
    )


def _is_scaler(scaler):
    empty = scaler == {}
    return empty or (
        isinstance(scaler, dict) and set(scaler) == SCALER and all(map(_is_number, scaler.values()))
    )


def _is_log(log):
    lines = isinstance(log, list) and all(isinstance(line, dict) for line in log) and log != []
    return lines and all(is_count(line.get("epoch")) for line in log[1:])


def _is_list(value):
    return isinstance(value, list)


RIGHT = {
    "epoch": is_count,
    "best": _is_best,
    "options": _are_options,
    "momentum": _is_momentum,
    "position": _is_position,
    "scaler": _is_scaler,
    "log": _is_log,
    "agents": _is_list,
}

"""The state schema: what may stand in optimState_N.pth.

`read` refuses what run_folder.py cannot have written, so that whoever resumes need not look again:
a file from a stranger may hold any plain value at any place. Whether the options in it can have
their values is for checkpoints.py, which knows the table.
"""

import torch

from runtime.errors import InputError
from storage import atomic

# as evaluation.metrics.Metrics
SUMS = {"done", "seen", "wrong1", "wrong5", "loss", "seconds", "data_wait"}
# as detection.trainer.Sums
BOXES = {"objectness", "proposal", "classifier", "box", "found", "objects"}
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def read(path):
    """The state; Damaged if the file is not whole, InputError if it is no such state."""
    state = atomic.load(path)
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
        and set(sums) <= SUMS | BOXES
        and all(is_count(sums.get(name)) for name in ("done", "seen", "wrong1", "wrong5"))
        and all(_is_number(sums.get(name, 0)) for name in SUMS | BOXES)
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


def _is_dict(value):
    return isinstance(value, dict)


def _is_list(value):
    return isinstance(value, list)


RIGHT = {
    "epoch": is_count,
    "best": _is_best,
    "options": _is_dict,
    "momentum": _is_momentum,
    "position": _is_position,
    "scaler": _is_scaler,
    "log": _is_log,
    "agents": _is_list,
}

"""The state schema: the fields of optimState_N.pth and their types.

A file from a stranger may hold any plain value under any key. `read` refuses what run_folder.py
cannot have written, so that the code that resumes need not check again. The values of the options
are checked by checkpoints.py, which knows the option table.
"""

import torch

from runtime.errors import InputError
from storage import atomic

# the fields of evaluation.metrics.Metrics
METRICS = {"done", "seen", "wrong1", "wrong5", "loss", "seconds", "data_wait", "odd"}
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def read(path):
    """The state in a file. Damaged if the file is, InputError if it does not fit the schema."""
    state = atomic.load(path)
    if not isinstance(state, dict) or "momentum" not in state:
        raise InputError(f"{path} is not an optimState file of this program")
    for name, is_valid in FIELDS.items():
        if name not in state and name in ("epoch", "best", "options"):
            raise InputError(f"{path} is no checkpoint of this program: its {name} is missing")
        if name in state and not is_valid(state[name]):
            value = "of other types or sizes" if name == "momentum" else f"{state[name]!r:.80}"
            raise InputError(f"{path} is no checkpoint of this program: its {name} is {value}")
    return state


def is_count(value):
    """Whether a value is an integer >= 0."""
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
        # else it is an expanded view of fewer numbers
        and tensor.untyped_storage().nbytes() >= tensor.nbytes
        for tensor in momentum.values()
    )


def _is_position(position):
    """Whether it is a train.Position as a dict; its epoch is None before the first epoch."""
    if not isinstance(position, dict) or "epoch" not in position:
        return False
    if position["epoch"] is None:
        return True
    metrics = [position.get("train"), position.get("test")]
    return is_count(position["epoch"]) and "order" in position and all(map(_is_metrics, metrics))


def _is_metrics(sums):
    return (
        isinstance(sums, dict)
        and set(sums) <= METRICS
        and all(is_count(sums.get(name)) for name in ("done", "seen", "wrong1", "wrong5"))
        and is_count(sums.get("odd", 0))
        and all(_is_number(sums.get(name, 0)) for name in ("loss", "seconds", "data_wait"))
        and "loss" in sums
    )


def _is_scaler(scaler):
    return scaler == {} or (
        isinstance(scaler, dict) and set(scaler) == SCALER and all(map(_is_number, scaler.values()))
    )


def _is_log(log):
    if not isinstance(log, list) or not log or not all(isinstance(line, dict) for line in log):
        return False
    return all(is_count(line.get("epoch")) for line in log[1:])


def _is_dict(value):
    return isinstance(value, dict)


def _is_list(value):
    return isinstance(value, list)


FIELDS = {
    "epoch": is_count,
    "best": _is_best,
    "options": _is_dict,
    "momentum": _is_momentum,
    "position": _is_position,
    "scaler": _is_scaler,
    "log": _is_log,
    "agents": _is_list,
    "digest": is_count,
    "bestDigest": lambda value: value is None or is_count(value),
    "data": lambda value: isinstance(value, list) and all(map(is_count, value)),
}

"""The state schema: the fields of optimState_N.pth and their types.

A file from a stranger may hold any plain value under any key. `read_state` refuses what
run_folder.py cannot have written, so that the code that resumes need not check again.
checkpoints.py checks the values of the options, because it knows the option table.
"""

import math

import torch

from runtime.errors import InputError, shown
from runtime.options import EXACT
from storage import atomic

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def read_state(path):
    """The state in a file, with its path. Damaged, or InputError if it does not fit the schema."""
    state = atomic.load(path)
    if not isinstance(state, dict) or "momentum" not in state:
        raise InputError(f"{path} is not an optimState file of this program")
    foreign = f"{path} is not a checkpoint of this program: its"
    for name, is_valid in FIELDS.items():
        if name not in state and name in ("epoch", "best", "options"):
            raise InputError(f"{foreign} {name} is missing")
        if name in state and not is_valid(state[name]):
            raise InputError(f"{foreign} {name} is {shown(state[name])}")
    for name, tensor in state["momentum"].items():
        fault = "is not a name" if not isinstance(name, str) else tensor_fault(tensor)
        if fault:
            raise InputError(f"{foreign} momentum is wrong: {shown(name)} {fault}")
    return {**state, "file": path}


def tensor_fault(tensor):
    """Why a tensor cannot be weights or momentum of a net, as a phrase; None if it can."""
    if not isinstance(tensor, torch.Tensor):
        return "is not a tensor of weights"
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # an expanded view has more numbers than its memory
    is_dense = is_dense and tensor.untyped_storage().nbytes() >= tensor.nbytes
    if not is_dense or tensor.dtype not in _DTYPES:
        wanted = "of weights, dense and in memory of its own, of 16, 32 or 64-bit floats"
        return f"is not a tensor {wanted}: it is of {tensor.dtype}"
    if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
        return "has a value that is not finite: that training diverged"
    return None


def is_count(value):
    """Whether a value is an integer >= 0, and not above EXACT."""
    return type(value) is int and 0 <= value <= EXACT


def _is_plain(value):
    """Whether a value consists of JSON's types and tuples, without tensors."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    known = value is None or type(value) in (str, bool, int, float)
    return known or _dict_of(_is_plain)(value)


def _list_of(is_valid):
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _dict_of(is_valid):
    def is_dict(value):
        named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        return named and all(map(is_valid, value.values()))

    return is_dict


def _is_finite(value):
    return type(value) in (int, float) and math.isfinite(value)


def _is_best(best):
    """Whether this is a pair of errors in per cent, or of infinities before the first test."""
    is_pair = isinstance(best, (list, tuple)) and len(best) == 2
    numbers = is_pair and all(type(value) in (int, float) for value in best)
    return numbers and all(0 <= value <= 100 or value == math.inf for value in best)


def _is_position(position):
    """Whether this is a loop.Position as a dict; its epoch is None before the first epoch."""
    if not isinstance(position, dict) or "epoch" not in position:
        return False
    if position["epoch"] is None:
        return True
    metrics = [position.get("train"), position.get("test")]
    known = is_count(position["epoch"]) and isinstance(position.get("order"), (dict, list))
    return known and _is_plain(position["order"]) and all(map(_is_metrics, metrics))


def _is_metrics(sums):
    """Whether these are numbers by name; engine.metrics knows the names."""
    return _dict_of(_is_finite)(sums) and is_count(sums.get("done"))


def _is_scaler(scaler):
    right = _dict_of(_is_finite)(scaler) and min(scaler.values(), default=0) >= 0
    return right and set(scaler) in (set(), SCALER)


def _is_log(log):
    if not _list_of(_dict_of(_is_plain))(log) or not log:
        return False
    header, *lines = log
    options, earlier = header.get("options", {}), header.get("earlier", [])
    known = isinstance(options, dict) and isinstance(earlier, list)
    return known and all(is_count(line.get("epoch")) for line in lines)


def _is_head(head):
    known = isinstance(head, dict) and head.keys() == {"first", "size", "crc"}
    counts = known and is_count(head["size"]) and is_count(head["crc"])
    return counts and _is_count_or_none(head["first"])


def _is_count_or_none(value):
    return value is None or is_count(value)


FIELDS = {
    "epoch": is_count,
    "best": _is_best,
    "options": _dict_of(_is_plain),
    "momentum": lambda value: isinstance(value, dict),
    "position": _is_position,
    "scaler": _is_scaler,
    "log": _is_log,
    "logged": _is_head,
    "agents": _list_of(lambda name: isinstance(name, str)),
    "digest": is_count,
    "bestDigest": _is_count_or_none,
    "data": _list_of(is_count),
}

"""Runs of main.py as programs: starting one, and what two of them have to agree on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from storage import atomic

ROOT = str(Path(__file__).parents[2])
NET = "-netType resnet -dataset cifar10 -depth 8 -batchSize 8 -LR 0.01"


def start(command, data, folder, root=ROOT, before=(), **environment):
    """main.py with this command, a group of processes of its own; `before` as in torchrun ..."""
    program = [*(before or [sys.executable]), os.path.join(root, "main.py")]
    return subprocess.Popen(
        [*program, *command.split(), "-data", str(data)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process, status=0, timeout=100):
    """Wait for its end; returns (lines, the text on stderr)."""
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == status, f"{process.returncode}\n{out[-2000:]}\n{error[-4000:]}"
    return out.splitlines(), error


def nobody_left(group, seconds=6):
    """Whether every process of a group has ended within so many seconds."""
    for _ in range(10 * seconds):
        if not any(_runs_in(group, pid) for pid in os.listdir("/proc") if pid.isdigit()):
            return True
        time.sleep(0.1)
    return False


def _runs_in(group, pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, _, of = file.read().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(of) == group and state != "Z"  # dead, but nobody has asked for its status


def log(folder):
    """log.jsonl without its first line and what the clock and the machine decide."""
    with open(os.path.join(folder, "log.jsonl")) as file:
        lines = [json.loads(line) for line in file][1:]
    times = ("seconds", "images_per_second", "data_wait", "peak_memory")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def results(folder, epoch):
    """Everything that a later epoch depends on, and the log without its times."""
    model = atomic.load(os.path.join(folder, f"model_{epoch}.pth"))["model"]
    state = atomic.load(os.path.join(folder, f"optimState_{epoch}.pth"))
    return (
        {**model, **{f"m {k}": v for k, v in state["momentum"].items()}},
        state["best"],
        log(folder),
    )


def same(one, other):
    """Assert that the results are the same to the last bit."""
    assert one[0].keys() == other[0].keys()
    differ = [name for name in one[0] if not torch.equal(one[0][name], other[0][name])]
    assert not differ and one[1:] == other[1:]


def difference(one, other):
    """The largest difference of any number in the results' tensors; the keys agree."""
    assert one[0].keys() == other[0].keys()
    return max(float((one[0][name] - other[0][name]).abs().max()) for name in one[0])

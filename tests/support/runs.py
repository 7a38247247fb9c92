"""Test support: starts main.py as a process, and compares the results of two runs."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from storage import atomic

ROOT = str(Path(__file__).parents[2])
NET = "-netType resnet -dataset cifar10 -depth 8 -batchSize 8 -LR 0.01"


def start(command, data, folder, root=ROOT, before=(), **environment):
    """Start main.py with this command in a process group of its own; `before`: its launcher."""
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
    """Wait for the end and check the status; returns (notes and lines of stdout, errors)."""
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == status, f"{process.returncode}\n{out[-2000:]}\n{error[-4000:]}"
    notes = [line for line in error.splitlines() if NOTE.match(line)]
    return notes + out.splitlines(), errors(error)


# What the program says on stderr that is no error: its own lines, a signal that came.
NOTE = re.compile(r"=> | \| skipped|main\.py: SIG\w+: the run finishes its iteration")


def errors(text):
    """What was printed on stderr, without the notes."""
    return "".join(line + "\n" for line in text.splitlines() if not NOTE.match(line))


def nobody_left(group, seconds=6):
    """Whether every process of a group ends within `seconds`."""
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
    return (
        int(of) == group and state != "Z"
    )  # a zombie has ended; its parent has not read the status


def log(folder):
    """The epochs' lines of log.jsonl, without the fields that clock and machine decide."""
    with open(os.path.join(folder, "log.jsonl")) as file:
        lines = [json.loads(line) for line in file][1:]
    times = ("seconds", "images_per_second", "data_wait", "peak_memory")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def results(folder, epoch):
    """(model and momentum tensors, best error, `log`) after an epoch."""
    model = atomic.load(os.path.join(folder, f"model_{epoch}.pth"))["model"]
    state = atomic.load(os.path.join(folder, f"optimState_{epoch}.pth"))
    return (
        {**model, **{f"m {k}": v for k, v in state["momentum"].items()}},
        state["best"],
        log(folder),
    )


def same(one, other):
    """Assert that two results are equal to the bit."""
    assert one[0].keys() == other[0].keys()
    differ = [name for name in one[0] if not torch.equal(one[0][name], other[0][name])]
    assert not differ and one[1:] == other[1:]


def difference(one, other):
    """The largest absolute difference between the tensors of two results."""
    assert one[0].keys() == other[0].keys()
    return max(float((one[0][name] - other[0][name]).abs().max()) for name in one[0])

"""Test support: main.py as forks of the test's process, which has loaded torch already."""

import os
import sys
import time

import torch._dynamo  # noqa: F401  what a run loads, for its forks to begin at once

import checkpoints  # noqa: F401
import dataloader  # noqa: F401
import main
import train  # noqa: F401
from parallel import guard
from storage import atomic
from storage import run_folder as _folder  # noqa: F401
from support.runs import difference, results, same


def fork(command, data, folder, before=lambda: None, output=None, closed=False):
    """main.py as a fork of this process; what it says is in folder/said.

    before: called in the fork, before the run. output: a file descriptor that takes stdout instead.
    closed: stdout is closed.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        before()
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said if output is None else output, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1) for n in (1, 2))  # noqa: SIM115
        if closed:  # as Python finds it then
            os.close(1)
            sys.stdout = None
        sys.argv = ["main.py", *command.split(), "-data", str(data)]
        guard.guard(main.main)
    finally:
        os._exit(99)


def ended(child, seconds):
    """The exit status of a child that ends in so many seconds, or None."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def finished(command, data, folder, status=0):
    """Run to the end; returns what was said."""
    with open(folder / "said", "w"):
        pass
    assert ended(fork(command, data, folder), 300) == status, (folder / "said").read_text()[-2000:]
    return (folder / "said").read_text()


def same_folders(one, other, epoch):
    """Assert that two runs ended with the same files and numbers; the largest difference, 0."""
    same(results(one, epoch), results(other, epoch))
    best = [atomic.load(folder / "model_best.pth")["model"] for folder in (one, other)]
    assert all((best[0][name] == best[1][name]).all() for name in best[0])
    # after a kill in a save, what the checkpoint does not know is set aside
    names = [{n for n in os.listdir(folder) if "earlier-" not in n} for folder in (one, other)]
    assert names[0] == names[1]
    return difference(results(one, epoch), results(other, epoch))


def await_text(path, text):
    """Wait until a file holds a text."""
    for _ in range(2400):
        if os.path.exists(path):
            with open(path) as file:
                if text in file.read():
                    return
        time.sleep(0.05)
    raise AssertionError(f"{path} without {text!r}")

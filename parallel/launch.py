"""The parent of a run over several processes: starts one a device, watches them, ends them all.

Takes the place of the threads of nn.DataParallelTable. The processes find each other through the
environment variables that torchrun sets as well (group.py). A signal to the process group reaches
parent and processes; a signal to the parent alone is forwarded. The processes end with the parent
even if it is killed. Imports torch only where devices have to be counted.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

from parallel.signals import SIGNALS
from runtime import terminal
from runtime.errors import InputError
from runtime.exit import ROOT, program

PARENT = "MAIN_PY_PARENT"  # in the environment of the processes: the process id of their parent


def processes(opt, replicas):
    """How many processes main.py has to start: `available`, but no more than `replicas`.

    1 if this process can do it all, or is one of those that were started.
    """
    if joined() or (replicas == 1 and opt.nProcs == 1):
        return 1
    count = available(opt)
    if count > replicas and "nProcs" in opt.given:
        print(f"=> -nProcs {count}: as many as there are replicas, {replicas} (-nGPU)", flush=True)
    return min(count, replicas)


def available(opt):
    """On CUDA one process a visible device, on the CPU one, unless -nProcs says otherwise."""
    if joined():
        return 1
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = opt.nProcs if "nProcs" in opt.given or not devices else devices
    if devices and count > devices:
        raise InputError(f"-nProcs {count}, but there are {devices} CUDA devices")
    return count


def joined():
    """Whether this process is one of a group, ours or torchrun's."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def run(argv, count):
    """Start this program `count` times with the words `argv`; returns the exit status of it all."""
    from torch.distributed import TCPStore

    # The parent keeps the store in which they meet: nobody can take its port in between, and it
    # outlives each of them.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    received = []
    for signum in SIGNALS:
        signal.signal(signum, lambda signum, _: received.append(signum))
    children = []
    try:
        for rank in range(count):
            children.append(_start(argv, rank, count, store.port))
        return _watch(children, received)
    finally:
        _end(children)
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # what comes now comes too late


def _start(argv, rank, count, port):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // count)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there, rank 0 need not make it
        PARENT: str(os.getpid()),
    }
    return subprocess.Popen([sys.executable, os.path.join(ROOT, program()), *argv], env=environment)


def _watch(children, received):
    """Wait until all have ended, or one has failed; returns the exit status."""
    forwarded = 0
    while True:
        states = [child.poll() for child in children]
        for rank, state in enumerate(states):
            if state is not None and state != 0 and not _interrupted_by_signal(state):
                return _failed(rank, state, received)
        if None not in states:
            return max(states)
        while forwarded < len(received):
            if received[forwarded] == signal.SIGINT and signal.SIGINT in received[:forwarded]:
                return _interrupted()
            for child in children:
                child.send_signal(
                    received[forwarded]
                )  # twice is as good as once, see interrupts.py
            forwarded += 1
        time.sleep(0.05)


def _interrupted_by_signal(state):
    """Whether a process ended because a signal interrupted the run, after saving."""
    return state in [128 + signum for signum in SIGNALS]


def _failed(rank, state, received):
    if state > 0:  # it has said why
        return state
    if -state in received:  # before there was anything to save
        return _interrupted() if -state == signal.SIGINT else 128 - state
    with contextlib.suppress(ValueError):
        name = signal.Signals(-state).name
        terminal.clear()
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        print(f"{program()}: process {rank} was ended by {name}{hint}", file=sys.stderr, flush=True)
    return 128 - state


def interrupted():
    """What is said after Ctrl-C."""
    hint = (
        "; -resume DIR goes on from the last checkpoint"
        if program() in ("main.py", "detect.py")
        else ""
    )
    return f"{program()}: interrupted{hint}"


def _interrupted():
    terminal.clear()
    print(interrupted(), file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def _end(children):
    """At once: whoever is still here waits for one that is gone. What is on disk stays whole."""
    killed = [child for child in children if child.poll() is None]
    for child in killed:
        child.kill()
    for child in children:
        child.wait()
    if killed:
        terminal.clear()


def die_with_parent():
    """Let this process be killed when its parent ends, however that happens (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

"""The parent process of a run over several processes: starts one for each device and watches them.

Takes the place of the threads of nn.DataParallelTable. The processes find each other through the
environment variables that torchrun also sets (group.py). Ctrl-C in a terminal reaches all of them;
a signal that the parent alone gets is forwarded. The processes end with the parent, even if it is
killed. torch is imported inside functions, so that a run of one process starts without it.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import zlib

from parallel.signals import PARENT, announcement, ended_at_once, handle
from runtime import process, terminal
from runtime.errors import InputError
from runtime.terminal import complain, note

SAVED = [128 + signum for signum in process.SIGNALS]  # statuses after a signal and the save
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that each process needs
# Rank, world size, local rank, local world size. MPI's are tried before Slurm's, because MPI's
# daemons are tasks of srun. SLURM_NTASKS proves nothing: a batch script runs once, and has it too.
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")  # and Intel's MPI
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


def processes(asked, replicas):
    """How many processes main.py has to start: `available`, but no more than `replicas`.

    asked: -nProcs, None if it is not given. The result 1 means that none is started: this process
    runs alone, or is itself one of several.
    """
    if replicas == 1 and asked in (None, 1):
        return 1
    count = available(asked)
    if asked and count > replicas:
        note(f"=> -nProcs {count}: only {replicas} are started, one for each replica (-nGPU)")
    return min(count, replicas)


def available(asked):
    """-nProcs if given; else one process for each visible CUDA device, or one on the CPU."""
    check_environment()  # again, because a caller in Python comes without parallel/guard.py
    if joined():
        return 1
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = asked or devices or 1
    if devices and count > devices:
        raise InputError(f"-nProcs {count}, but there are {devices} CUDA devices")
    return count


def joined():
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_environment():
    """InputError if the variables that make a process one of several are wrong or incomplete.

    Those of srun and mpirun are copied to torch's, which the rest of the program reads.
    """
    os.environ.update(ranks(os.environ))
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT belong together, but this process lacks "
            f"{', '.join(missing)}: set all four, as torchrun does, or unset all for a run of one "
            "process"
        )
    given = {n: os.environ[n] for n in (*TORCH, "MASTER_PORT") if n in os.environ}
    for name, value in given.items():
        if not re.fullmatch("0|[1-9][0-9]{0,8}", value):  # 00 would not be rank 0
            raise InputError(f"{name}={value}: it should be a whole number")
    world, port = int(given["WORLD_SIZE"]), int(given["MASTER_PORT"])
    local, local_world = int(given.get("LOCAL_RANK", 0)), int(given.get("LOCAL_WORLD_SIZE", world))
    if not (int(given["RANK"]) < world and local < local_world <= world and 0 < port < 1 << 16):
        places = " ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(
            f"{places}: ranks count from 0 and are below the sizes, a local size is at most "
            "WORLD_SIZE, and ports are 1 to 65535"
        )


def ranks(environment):
    """torch's variables for a process that srun or mpirun started as one of several; else {}."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return {}
    names = next((n for n in (OPEN_MPI, MPICH, SLURM) if environment.keys() >= {*n}), None)
    if not names or environment[names[1]] == "1":
        return {}
    if names == SLURM and "SLURM_PTY_PORT" in environment:  # the shell of `srun --pty bash`
        return {}
    found = dict(zip(TORCH, (environment[name] for name in names)))
    hosts = ""
    if names == SLURM:
        hosts = environment.get("SLURM_STEP_NODELIST", "")
        # "2(x3),1": 2 tasks on each of three nodes, then 1
        groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", found["LOCAL_WORLD_SIZE"])
        tasks = [count for count, nodes in groups for _ in range(int(nodes or 1))]
        found["LOCAL_WORLD_SIZE"] = tasks[int(environment.get("SLURM_NODEID", "0"))]
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _master(found, hosts)
    # the same in all processes of this run, but not in those of other runs on the machine
    job = [environment.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE")]
    found["MASTER_PORT"] = str(15000 + zlib.crc32(repr(job).encode()) % 15000)
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    if devices and "," not in devices:  # one, for this process alone
        del found["LOCAL_RANK"]
    return {name: environment.get(name) or value for name, value in found.items()}


def _master(found, hosts):
    """The host of rank 0: this one, or the first of Slurm's list, as in "node[07-09,12],other1"."""
    if found["WORLD_SIZE"] == found["LOCAL_WORLD_SIZE"]:
        return "127.0.0.1"
    first = re.match(r"([\w.-]+)(?:\[(\d+)[\d,-]*\])?(?:,|$)", hosts)
    if not first:
        raise InputError(
            f"one of {found['WORLD_SIZE']} processes on several machines, but MASTER_ADDR is not "
            "set: give all of them the host name of rank 0's machine, by `export MASTER_ADDR=HOST` "
            "and with Open MPI `mpirun -x MASTER_ADDR`"
        )
    return first[1] + (first[2] or "")


def run(script, argv, count, folder=None):
    """Start the root's file `script` `count` times with the arguments `argv`; returns the status.

    folder: the run folder, for the messages about signals; None if nothing is saved.
    """
    from torch.distributed import TCPStore

    # The parent keeps the store through which the processes meet, so that no other program can take
    # its port meanwhile, and the store outlives every process.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    received, children = [], []
    handled = handle(received.append)
    try:
        for rank in range(count):
            children.append(_start(script, argv, rank, count, store.port))
        return _watch(children, received, folder)
    finally:
        _end(children)
        for signum in handled:
            signal.signal(signum, signal.SIG_IGN)  # too late to interrupt anything


def _start(script, argv, rank, count, port):
    environment = {
        "OMP_NUM_THREADS": str(max(1, process.cores() // count)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store exists, so rank 0 must not create one
        PARENT: str(os.getpid()),
    }
    command = [sys.executable, os.path.join(process.ROOT, script), *argv]
    return subprocess.Popen(command, env=environment)


def _watch(children, received, folder):
    """Wait until all processes have ended or one has failed; returns the exit status."""
    forwarded = 0
    while True:
        states = [child.poll() for child in children]
        for rank, state in enumerate(states):
            if state not in (None, 0, *SAVED):
                return _failed(rank, state, received, folder)
        if None not in states:
            return max(states)
        while forwarded < len(received):
            if received[forwarded] == signal.SIGINT and signal.SIGINT in received[:forwarded]:
                return _report_interrupted(folder)
            if folder is not None and not forwarded:
                complain(announcement(received[0]))
            for child in children:
                with contextlib.suppress(ValueError):  # on Windows SIGINT goes to all by itself
                    child.send_signal(received[forwarded])  # twice does no harm (signals.py)
            forwarded += 1
        time.sleep(0.05)


def _failed(rank, state, received, folder):
    if state > 0:  # the process has printed its error
        return state
    if -state in received:  # the signal came before there was anything to save
        return _report_interrupted(folder) if -state == signal.SIGINT else 128 - state
    with contextlib.suppress(ValueError):
        name = signal.Signals(-state).name
        terminal.clear()
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        complain(f"{process.script()}: process {rank} was killed by {name}{hint}")
    return 128 - state


def _report_interrupted(folder):
    terminal.clear()
    complain(ended_at_once(folder))
    return 128 + signal.SIGINT


def _end(children):
    """Kill the processes that still wait for one that is gone. Files are written atomically."""
    killed = [child for child in children if child.poll() is None]
    for child in killed:
        child.kill()
    for child in children:
        child.wait()
    if killed:
        terminal.clear()


def die_with_parent(pid):
    """Let the kernel kill this process when its parent ends for any reason (Linux).

    pid: of the parent, known from before this process started: the parent may be gone already.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: on Windows
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # in a virtual environment on Windows the parent is a launcher
    if os.name != "nt" and str(os.getppid()) != str(pid):
        os._exit(1)

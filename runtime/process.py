"""The current process: its script, cores and threads, standard streams and exit."""

import codecs
import contextlib
import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path, PurePath

# Windows has only the first two
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def script():
    """The running script's file name if it lies in the root, such as evaluate.py; else main.py."""
    name = os.path.basename(sys.argv[0])
    return name if os.path.exists(os.path.join(ROOT, name)) and name.endswith(".py") else "main.py"


def cores():
    """The number of cores that this process may use, by its affinity and its quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(count, quota())))


def quota(own="/proc/self/cgroup", root="/sys/fs/cgroup"):
    """The cores' worth of time that the cgroups of this process allow (Linux), or infinity.

    A container may see the host's name of its cgroup: then its own is the root.
    """
    found = [math.inf]
    with contextlib.suppress(OSError), open(own) as file:
        for line in file:
            _, kinds, group = line.rstrip("\n").split(":", 2)
            for folder in (PurePath(group), *PurePath(group).parents):
                with contextlib.suppress(OSError, ValueError):
                    if not kinds:  # version 2
                        limit, period = Path(f"{root}{folder}/cpu.max").read_text().split()
                    elif "cpu" in kinds.split(","):
                        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                        texts = (Path(f"{root}/cpu{folder}/{name}").read_text() for name in names)
                        limit, period = texts
                    else:
                        break
                    if int(limit) > 0:  # "max" or -1: any
                        found.append(int(limit) / int(period))
    return min(found)


def spin_briefly():
    """Let OpenMP threads that wait spin for about 30 microseconds, then sleep.

    By default they spin for milliseconds. Where loading workers or other programs share the cores,
    spinning threads starve each other: an iteration took 3.3 s instead of 0.44 s on two cores.
    Threads that sleep at once make an iteration up to a tenth slower on an idle machine. This sets
    environment variables, so call it before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for an OpenMP other than GNU's: sleep at once
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def limit_threads():
    """Give torch no more threads than cores, because torch does not know a container's quota."""
    import torch  # not at the top: -help and wrong options need not wait for it

    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())


def begin():
    """Prepare the process of a command: its signals and its standard streams."""
    if os.getpid() == 1:  # in a container, where the kernel drops signals without a handler
        for signum in SIGNALS:
            if signal.getsignal(signum) == signal.SIG_DFL:
                signal.signal(signum, _end)
    # Open file descriptors that are closed, so that no other file gets their numbers
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one
    # A closed stream is None, and print(file=None) would write to stdout, so discard its lines
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            lost = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, lost)
    if sys.stdout.errors == "strict":  # as stderr does, print as escapes what the encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def in_notebook():
    """Whether IPython runs this, where ending the process would end the notebook."""
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def _end(signum, _):
    name = os.path.basename(sys.argv[0])
    os.write(2, f"{name}: interrupted by {signal.Signals(signum).name}\n".encode())
    leave(128 + signum)


def print_names():
    """Let stdout print the bytes of file names unchanged; escape what else its encoding lacks."""
    codecs.register_error("names", _byte_or_escape)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout takes any character
        sys.stdout.reconfigure(errors="names")


def _byte_or_escape(error):
    """The error handler of `print_names`: (bytes or text for a character, where to go on)."""
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # stands for a byte that could not be decoded
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.encode("ascii", "backslashreplace").decode(), error.start + 1


def leave(status):
    """End this process at once, without waiting for threads, workers or other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
            stream.flush()
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        with contextlib.suppress(ValueError):  # only the main thread may do this
            # torch's handler raises when a worker dies
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)

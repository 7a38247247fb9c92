"""The script that runs, and how its process ends."""

import multiprocessing
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def program():
    """The name of the script that runs: main.py, or one that borrows its processes."""
    name = os.path.basename(sys.argv[0])
    return name if os.path.exists(os.path.join(ROOT, name)) and name.endswith(".py") else "main.py"


def leave(status):
    """End this process now, whatever still waits for signals or other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)

"""The lock of a run folder: a second run on the same -save is refused.

The kernel holds the lock (flock) on a file `lock` in the folder and frees it when the process ends
for any reason. Over NFS it holds between machines that share a lock service. On a file system
without locks the run prints a warning and goes on without.
"""

import contextlib
import fcntl
import os
import socket
import time

from runtime.errors import InputError
from runtime.terminal import note


@contextlib.contextmanager
def held(folder, seconds):
    """Hold the lock of a folder. InputError if another run still holds it after `seconds`.

    The wait is for a previous run that is just being ended, by torchrun's agent for one.
    """
    path = os.path.join(folder, "lock")
    file = _acquire(path, seconds)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
        # closing is not enough: loading workers have inherited the open file
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _acquire(path, seconds):
    """The file descriptor of the locked file."""
    end = time.monotonic() + seconds
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 200).decode(errors="replace")
            os.close(file)
            if time.monotonic() >= end:
                raise InputError(
                    f"another run writes to {os.path.dirname(path)}: {owner or 'it just started'}"
                    "; wait for its end or give another -save"
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            note(
                f"=> no lock on {path}, {error.strerror}: take care that no other run writes there"
            )
            return file
        if _is_file_at(path, file):
            with contextlib.suppress(OSError):  # only for the message above; the disk may be full
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return file
        os.close(file)


def _is_file_at(path, file):
    """Whether `path` still is this open file: its last owner may have removed it."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False

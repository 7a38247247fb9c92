"""The lock of a run folder: a second run on the same -save is refused.

The operating system holds the lock on a file `lock` in the folder (flock, or msvcrt on Windows) and
frees it when the process ends for any reason. Over NFS it holds between machines that share a lock
service. On a file system without locks the run prints a warning and goes on without.
"""

import contextlib
import os
import socket

import filelock

from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note
from storage import atomic


@contextlib.contextmanager
def held(folder, seconds, advice="give another -save"):
    """Hold the lock of a folder. InputError if another run still holds it after `seconds`.

    The wait is for a previous run that is just being ended, by torchrun's agent for one. `advice`
    is what a user can do other than wait.
    """
    path = os.path.join(folder, "lock")
    # a file of its own: on Windows nobody can read a locked one
    owner = os.path.join(folder, "lock.owner")
    # a soft lock, filelock's substitute, would outlive a killed process on another machine
    # not of one thread: the thread that writes may end it and hold another
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.1)
    except filelock.Timeout:
        raise InputError(
            f"another run writes to {folder}: {_read(owner) or 'it just started'}; wait for its "
            f"end or {advice}"
        ) from None
    except OSError as error:
        if not os.path.isfile(path):  # the folder cannot be written to at all
            raise
        note(f"=> no lock on {path}, {error.strerror}: take care that no other run writes there")
    with contextlib.suppress(OSError), atomic.replacing(owner) as file:  # the disk may be full
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        # Before the release, after which they may be another run's. On Windows an open file cannot
        # be removed; filelock does it there.
        for name in (owner, path):
            with contextlib.suppress(OSError):
                os.remove(name)
        lock.release()


def _read(owner):
    with contextlib.suppress(OSError), regular_files.opened(owner) as file:
        return file.read(200).decode(errors="replace")
    return None

"""The lock of a run folder: a second run on the same -save is refused.

The operating system holds the lock on a file `lock` in the folder (flock, or msvcrt on Windows) and
frees it when the process ends for any reason. Over NFS it holds between machines that share a lock
service. On a file system without locks the run prints a warning and goes on without a lock.
"""

import contextlib
import os
import socket

import filelock

from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note
from storage import atomic

WAIT = 2  # seconds


@contextlib.contextmanager
def held(folder, seconds=WAIT, advice="give another -save"):
    """Hold the lock of a folder. InputError if another run still holds it after `seconds`, or if
    the folder takes no files.

    We wait because a previous run may be about to end, for example killed by torchrun's agent.
    advice: what a user can do instead of waiting.
    """
    path = os.path.join(folder, "lock")
    # a separate file, because nobody can read a locked file on Windows
    owner = os.path.join(folder, "lock.owner")
    # No soft lock, filelock's substitute, because it would outlive a process that was killed on
    # another machine. Not bound to a thread, because the writer's thread may take a new lock.
    if os.path.islink(path):
        raise InputError(f"{path} is a link, not a lock: remove it, or {advice}")
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.1)
    except filelock.Timeout:
        # filelock goes on trying where a folder takes no files, such as /proc
        regular_files.check_outputs([("", path, ("",))])
        who = "it just started"
        with contextlib.suppress(OSError), regular_files.opened(owner) as file:
            who = file.read(200).decode(errors="replace") or who
        raise InputError(
            f"another run writes to {folder}: {who}; wait until it ends, or {advice}"
        ) from None
    except OSError as error:
        if not os.path.isfile(path):  # the folder cannot be written to at all
            raise
        note(f"=> no lock on {path}, {error.strerror}: make sure that no other run writes there")
    with contextlib.suppress(OSError), atomic.replacing(owner) as file:  # the disk may be full
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        # Remove the files before the release, because afterwards they may belong to another run.
        # Windows cannot remove an open file; filelock removes it there.
        for name in (owner, path):
            with contextlib.suppress(OSError):
                os.remove(name)
        lock.release()

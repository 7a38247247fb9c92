"""One run a folder: a second one on the same -save is refused. Not in the Lua.

The lock is the kernel's (flock) on a file `lock` in the folder: it ends with its process, however
that dies. Over NFS it holds between machines where their lock service runs; a file system without
locks is named, and the run goes on without.
"""

import contextlib
import fcntl
import os
import socket
import time

from runtime.errors import InputError


@contextlib.contextmanager
def held(folder, seconds, say):
    """Hold the lock of a folder; another run's is waited for so many seconds, then InputError.

    A predecessor that is just being ended, by torchrun's agent say, needs a moment to go.
    """
    path = os.path.join(folder, "lock")
    file = _take(path, seconds, say)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
        # not by closing alone: loading workers have inherited the open file
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _take(path, seconds, say):
    """The open and locked file."""
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
                    f"another run writes to {os.path.dirname(path)}: {owner or 'it has just begun'}"
                    "; wait for its end or give another -save"
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            say(f"=> no lock on {path}, {error.strerror}: take care that no other run writes there")
            return file
        if _is_still(path, file):
            with contextlib.suppress(OSError):  # for the sentence only, and the disk may be full
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return file
        os.close(file)  # its owner has just removed it


def _is_still(path, file):
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False

"""What may come between two iterations: a signal to stop, the time to save (-saveEvery).

Not in the Lua, which could only be killed. A signal is heeded after the iteration it falls into,
once every process knows of it: the state is saved, and the run ends with the status that a shell
gives the signal: 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
"""

import contextlib
import os
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was told to stop and has saved; `status` is what it exits with."""

    def __init__(self, signum, where, folder):
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} {where}; -resume {folder} goes on from there")
        self.status = 128 + signum


class Interrupts:
    """While entered, signals are counted; `between` acts on them. The run sets `save(stop)`."""

    def __init__(self, minutes=0, folder=None, program=False):
        """`program`: whether the process ends with the run."""
        self.folder, self.program = folder, program
        self.asked = [0] * len(SIGNALS)  # how often each signal came to this process
        self.seconds = 60 * minutes  # 0: only signals save
        self.last = time.monotonic()
        self.save = None

    def __enter__(self):
        self.before = [signal.signal(signum, self._ask) for signum in SIGNALS]
        return self

    def __exit__(self, kind, *_):
        # A process that is done, or has saved because it was told to, may get a signal still, once
        # more from its parent, too: that must not look as if it had been killed.
        deaf = self.program and kind in (None, Stopped)
        for signum, handler in zip(SIGNALS, self.before):
            signal.signal(signum, signal.SIG_IGN if deaf else handler)

    def _ask(self, signum, _):
        place = SIGNALS.index(signum)
        # Ctrl-C twice is impatience; under a parent the same one may come twice, and the parent
        # sees to the impatience (launch.py)
        if signum == signal.SIGINT and self.asked[place] and "MAIN_PY_PARENT" not in os.environ:
            raise KeyboardInterrupt
        self.asked[place] += 1

    def between(self, asked, where, settle=lambda: None):
        """Save if it is time; if `asked`, the sum over all processes, says so, save and stop.

        `settle` is called before a save; an error there comes instead of the save. Returns whether
        there was one.
        """
        saved = False
        told = next((signum for signum, count in zip(SIGNALS, asked) if count), None)
        if self.save and (told or self.seconds and time.monotonic() - self.last >= self.seconds):
            settle()
            self.save(stop=told is not None)
            self.last = time.monotonic()
            saved = True
        if told:
            raise Stopped(told, where, self.folder)
        return saved


@contextlib.contextmanager
def held_back():
    """Signals wait until the end of the block; a process started in it begins so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent():
    """Leave the signals for the whole group to the parent, and end when it says so itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent):
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)

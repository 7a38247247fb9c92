"""Interrupts: a signal saves the state after the current iteration and ends the run.

A signal acts once every process knows of it, so that all stop after the same iteration. The exit
status is the one that a shell gives the signal: 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
The periodic save inside an epoch (-saveEvery) happens at the same point.
"""

import contextlib
import os
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal interrupted the run after the state was saved; `status` is the exit status."""

    def __init__(self, signum, where, folder):
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name} {where}; -resume {folder} goes on from there")
        self.status = 128 + signum


class Interrupts:
    """While entered, counts signals. `poll` acts on them, and on -saveEvery."""

    def __init__(self, minutes=0, folder=None, save=None, ends_process=False):
        """save(final): saves the state inside an epoch; `final`: the run ends after this save.

        minutes: between two saves, 0 if only signals save. folder: the run folder, for the message.
        ends_process: whether the process ends with the run.
        """
        self.folder, self.save, self.ends_process = folder, save, ends_process
        self.received = [0] * len(SIGNALS)  # how often each signal came to this process
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def __enter__(self):
        self.before = [signal.signal(signum, self._receive) for signum in SIGNALS]
        return self

    def __exit__(self, kind, *_):
        # A process that is finished, or interrupted and saved, may get the signal again, also from
        # its parent. It must not die of it: its exit status would say that it was killed.
        ignore = self.ends_process and kind in (None, Interrupted)
        for signum, handler in zip(SIGNALS, self.before):
            signal.signal(signum, signal.SIG_IGN if ignore else handler)

    def _receive(self, signum, _):
        index = SIGNALS.index(signum)
        # A second Ctrl-C ends the run at once. Under a parent one Ctrl-C may arrive twice, from the
        # terminal and from the parent; there the parent counts (launch.py).
        if signum == signal.SIGINT and self.received[index] and "MAIN_PY_PARENT" not in os.environ:
            raise KeyboardInterrupt
        self.received[index] += 1

    def poll(self, received, where, flush=lambda: None):
        """Save if -saveEvery is due. If a signal was received, save and raise Interrupted.

        received: `self.received`, summed over all processes. flush: called before a save; an error
        in it prevents the save. Returns whether the state was saved.
        """
        saved = False
        signum = next((signum for signum, count in zip(SIGNALS, received) if count), None)
        due = self.seconds and time.monotonic() - self.last >= self.seconds
        if self.save and (signum or due):
            flush()
            self.save(final=signum is not None)
            self.last = time.monotonic()
            saved = True
        if signum:
            raise Interrupted(signum, where, self.folder)
        return saved


@contextlib.contextmanager
def blocked():
    """Block SIGNALS in this thread. Threads and processes started meanwhile inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent():
    """In a worker: ignore SIGNALS sent to the process group, but end when the parent sends one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent):
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)

"""What may come between two iterations: a signal that interrupts the run, the time to save.

The Lua could only be killed. A signal acts after the iteration it falls into, once every process
knows of it: the state is saved, and the run ends with the status that a shell gives the signal: 130
for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
"""

import contextlib
import os
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal interrupted the run, which has saved; `status` is the process's exit status."""

    def __init__(self, signum, where, folder):
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name} {where}; -resume {folder} goes on from there")
        self.status = 128 + signum


class Interrupts:
    """While entered, signals are counted; `poll` acts on them, and on -saveEvery."""

    def __init__(self, minutes=0, folder=None, save=None, ends_process=False):
        """save(final): saves the state inside an epoch; `final` if the run ends then.

        minutes: between two saves; 0: only signals save. folder: where, for the message.
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
        # A process that is done, or was interrupted and has saved, may get another signal, once
        # more from its parent, too: that must not look as if it had been killed.
        ignore = self.ends_process and kind in (None, Interrupted)
        for signum, handler in zip(SIGNALS, self.before):
            signal.signal(signum, signal.SIG_IGN if ignore else handler)

    def _receive(self, signum, _):
        place = SIGNALS.index(signum)
        # A second Ctrl-C ends the run at once. Under a parent the same one may come twice, and the
        # parent counts them (launch.py).
        if signum == signal.SIGINT and self.received[place] and "MAIN_PY_PARENT" not in os.environ:
            raise KeyboardInterrupt
        self.received[place] += 1

    def poll(self, received, where, flush=lambda: None):
        """Save if it is time; if a signal was received, save and raise Interrupted.

        received: `self.received` summed over all processes. `flush` is called before a save: an
        error there prevents the save. Returns whether the state was saved.
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
    """Signals wait until the end of the block; a process started in it begins so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent():
    """Leave signals to the process group to the parent; end when the parent itself sends one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent):
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)

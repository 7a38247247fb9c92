"""Interrupts: a signal saves the state after the current iteration and ends the run.

A signal acts once every process knows of it, so that all stop after the same iteration. The exit
status is the one that a shell gives the signal: 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
The periodic save inside an epoch (-saveEvery) happens at the same point.
"""

import contextlib
import os
import shlex
import signal
import socket
import threading
import time

from runtime import terminal
from runtime.exit import leave, script
from runtime.terminal import complain

PARENT = "MAIN_PY_PARENT"  # in the environment of the processes: the process id of their parent
# Windows has no SIGUSR1
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
LONGEST_WAIT = 10  # seconds
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupted(Exception):
    """A signal interrupted the run after the state was saved; `status` is the exit status."""

    def __init__(self, signum, where, command):
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name} {where}; to go on: {command}")
        self.status = 128 + signum


class _WaitEnded(BaseException):
    """Raised by a signal while a batch is waited for. No `except Exception` on the way takes it."""


class _Blocked:
    """The `blocked` blocks at hand: how many, and whether a signal ends the wait after them."""

    depth, ends_wait = 0, False


class Interrupts:
    """While entered, counts signals. `poll` acts on them, and on -saveEvery."""

    def __init__(self, minutes=0, folder="", save=None, command="", ends_process=False):
        """save(final): saves the state inside an epoch; `final`: the run ends after this save.

        minutes: between two saves, 0 if only signals save. folder: the run folder. command: what
        resumes the run. ends_process: whether the process ends with the run.
        """
        self.folder, self.save, self.command = folder, save, command
        self.ends_process = ends_process
        self.received = [0] * len(SIGNALS)  # how often each signal came to this process
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.watch = None
        self.alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else all stop together
        self.waiting = None  # since when a batch is waited for

    def __enter__(self):
        self.before = [signal.signal(signum, self._receive) for signum in SIGNALS]
        # Under a parent one Ctrl-C may arrive twice, from the terminal and from the parent; there
        # the parent counts and speaks (launch.py).
        if self.ends_process and PARENT not in os.environ:
            self.watch = _Watch(self.folder)
        return self

    def __exit__(self, kind, *_):
        if self.watch is not None:
            self.watch.end()
        # A process that is finished, or interrupted and saved, may get the signal again, also from
        # its parent. It must not die of it: its exit status would say that it was killed.
        ignore = self.ends_process and kind in (None, Interrupted)
        for signum, handler in zip(SIGNALS, self.before):
            signal.signal(signum, signal.SIG_IGN if ignore else handler)
        # It refers to the trainer, which refers to this: a cycle, which the garbage collector finds
        # in the midst of other work. torch then waits 5 s for each of the trainer's workers.
        self.save = None

    def _receive(self, signum, _):
        index = SIGNALS.index(signum)
        # a second Ctrl-C in a program that goes on afterwards, such as a test
        if signum == signal.SIGINT and self.received[index] and not self.ends_process:
            raise KeyboardInterrupt
        self.received[index] += 1
        if self.alone and self.waiting:
            if not _Blocked.depth:
                raise _WaitEnded
            _Blocked.ends_wait = True
        if not self.alone and self.ends_process and sum(self.received) == 1:
            threading.Thread(target=self._end_long_wait, args=(signum,), daemon=True).start()

    def next(self, iterator, where, flush=lambda: None):
        """The next of an iterator's batches, None at the end.

        A batch may never come, from a file system that hangs, say. So a signal that comes meanwhile
        is acted on at once, as by `poll(where, flush)`. One of several processes cannot, since all
        stop after the same iteration: it ends without a save after LONGEST_WAIT.
        """
        try:
            self.waiting = time.monotonic()
            if self.alone and any(self.received):
                raise _WaitEnded
            return next(iterator, None)
        except _WaitEnded:
            self.waiting = None
            return self.poll(self.received, where, flush)  # raises Interrupted
        finally:
            self.waiting = None

    def _end_long_wait(self, signum):
        """In a thread: end this process if it still waits for one batch long after a signal."""
        came = time.monotonic()
        while True:
            time.sleep(0.5)
            since = self.waiting
            if since and time.monotonic() - max(since, came) > LONGEST_WAIT:
                what = f"no batch came within {LONGEST_WAIT} s after {signal.Signals(signum).name}"
                complain(f"{script()}: {what}: the run ends{_hint(self.folder)}")
                leave(1)

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
            raise Interrupted(signum, where, self.command)
        return saved


class _Watch:
    """A thread that sees a signal at once, also while one long operation of PyTorch runs.

    Python calls signal handlers between two of its own instructions only. The first signal is
    announced, a second Ctrl-C ends the process.
    """

    def __init__(self, folder):
        self.folder = folder
        # not os.pipe, which cannot be made non-blocking on Windows before Python 3.12
        self.read_end, self.write_end = socket.socketpair()
        self.write_end.setblocking(False)
        fileno = self.write_end.fileno()
        self.before = signal.set_wakeup_fd(fileno, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True).start()

    def end(self):
        """Stop watching."""
        signal.set_wakeup_fd(self.before)
        self.write_end.close()

    def _run(self):
        seen = []
        while byte := self.read_end.recv(1):
            if byte[0] not in SIGNALS:
                continue
            seen.append(byte[0])
            if len(seen) == 1:
                complain(announcement(byte[0]))
            if seen.count(signal.SIGINT) == 2:
                terminal.clear()
                complain(ended_at_once(self.folder))
                leave(128 + signal.SIGINT)
        self.read_end.close()


def announcement(signum, begun=True):
    """What is said when a signal comes; `begun`: it is known that the training has begun."""
    again = "; Ctrl-C again ends it at once" if signum == signal.SIGINT else ""
    name = signal.Signals(signum).name
    what = "finishes its iteration, saves and ends"
    if not begun:
        what = "finishes its iteration and saves, if it is in one, and ends"
    return f"{script()}: {name}: the run {what}{again}"


def ended_at_once(folder):
    """What is said after a second Ctrl-C."""
    return f"{script()}: interrupted{_hint(folder)}"


def _hint(folder):
    if folder and os.path.exists(os.path.join(folder, "latest.pth")):
        return f"; -resume {shlex.quote(folder)} goes on from the last checkpoint"
    return ""


@contextlib.contextmanager
def blocked():
    """Block SIGNALS in this thread. Threads and processes started meanwhile inherit the mask.

    Another thread may still take a signal, whose handler then runs in this one. What it would
    raise is raised at the end.
    """
    masks = hasattr(signal, "pthread_sigmask")  # Windows: signals come to the main thread only
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if masks else None
    _Blocked.depth += 1
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what was blocked comes here
        _Blocked.depth -= 1
        ends_wait, _Blocked.ends_wait = _Blocked.ends_wait, False
    if ends_wait:
        raise _WaitEnded


def obey_parent():
    """In a worker: ignore SIGNALS sent to the process group, but end when the parent sends one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: the parent ends a worker without a signal
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent):
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)

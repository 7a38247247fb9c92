"""Interrupts: a signal saves the state after the current iteration and ends the run.

All processes stop after the same iteration, because the counts of their signals are summed with the
metrics. The exit status is 128 + the signal's number, as in a shell: 143 for SIGTERM. The periodic
save inside an epoch (-saveEvery) happens at the same point.
"""

import contextlib
import os
import shlex
import signal
import socket
import threading
import time

from runtime import terminal
from runtime.errors import cause
from runtime.process import SIGNALS, script
from runtime.terminal import complain, note

PARENT = "MAIN_PY_PARENT"  # environment variable of the processes: their parent's process id
LONGEST_WAIT = 10  # seconds for one batch after a signal, if there are several processes
COPY = 0.5  # seconds within which another SIGINT is a copy of the first


class Interrupted(Exception):
    """A signal interrupted the run after the state was saved; `status` is the exit status."""

    def __init__(self, signum, where, command):
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name} {where}; to go on: {command}")
        self.status = 128 + signum


class Interrupts:
    """While entered, counts signals. `poll` acts on them, and on -saveEvery."""

    save = None  # save(final) saves the state inside an epoch; final: the run ends afterwards

    def __init__(self, minutes=0, folder="", command="", end=None):
        """minutes: between two saves, 0 if only signals save. folder: the run folder.

        command: what resumes the run. end(error): ends the process; None if the process continues
        after the run.
        """
        self.folder, self.command, self.end = folder, command, end
        self.received = [0] * len(SIGNALS)  # how often each signal came to this process
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else all processes stop together
        self.waiting = None  # while waiting for a batch: since when, and arguments of `poll`
        self.lock = threading.Lock()  # held by the watchdog while it ends the process

    def __enter__(self):
        self.before = handle(self._receive)
        if self.end:
            # not os.pipe, which cannot be made non-blocking on Windows before Python 3.12
            self.read_end, self.write_end = socket.socketpair()
            self.write_end.setblocking(False)
            fileno = self.write_end.fileno()
            self.fd_before = signal.set_wakeup_fd(fileno, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        if self.end:
            signal.set_wakeup_fd(self.fd_before)
            self.write_end.close()
        # A process that has finished, or has saved after an interrupt, may get the signal again,
        # for example from its parent. It must survive, or its exit status would say "killed".
        ignore = self.end and kind in (None, Interrupted)
        for signum, handler in self.before.items():
            signal.signal(signum, signal.SIG_IGN if ignore else handler)
        # `save` refers to the trainer, which refers to this object. The garbage collector would
        # find the cycle during other work, and torch would wait 5 s for each of the workers.
        self.save = None

    def _receive(self, signum):
        index = SIGNALS.index(signum)
        # a second Ctrl-C in a program that continues afterwards, such as a notebook
        if signum == signal.SIGINT and self.received[index] and not self.end:
            raise KeyboardInterrupt
        self.received[index] += 1

    def next(self, iterator, where, flush=lambda: None):
        """The iterator's next batch, or None at the end; acts on a signal as `poll` does.

        If a batch never comes, for example because a file system hangs, the watchdog acts.
        """
        if self.alone and any(self.received):
            self.poll(self.received, where, flush)  # raises Interrupted
        self.waiting = time.monotonic(), where, flush
        try:
            return next(iterator, None)
        finally:
            with self.lock:
                self.waiting = None

    @contextlib.contextmanager
    def saving(self, where, flush=lambda: None, begun=True):
        """Save if an error ends the block, which must not change anything that is saved.

        where, flush: as for `poll`; begun: whether the epoch has anything to save.
        """
        try:
            yield
        except Interrupted:  # this has saved already
            raise
        except Exception:
            if begun and self.save:
                save, self.save = self.save, None  # only once if one block is inside another
                try:
                    flush()
                    save(final=True)
                except Exception as failure:  # report the first error
                    note(f"=> not saved: {cause(failure)}")
                else:
                    note(f"=> an error {where}: saved what was done; to go on: {self.command}")
            raise

    def poll(self, received, where, flush=lambda: None):
        """Save if -saveEvery is due. If a signal was received, save and raise Interrupted.

        received: `self.received`, summed over all processes. flush: called before a save; an error
        in it prevents the save. Returns whether the state was saved.
        """
        signum = next((signum for signum, count in zip(SIGNALS, received) if count), None)
        due = self.seconds and time.monotonic() - self.last >= self.seconds
        saves = bool(self.save and (signum or due))
        if saves:
            flush()
            self.save(final=signum is not None)
            self.last = time.monotonic()
        if signum:
            raise Interrupted(signum, where, self.command)
        return saves

    def _watch(self):
        """The watchdog thread: announces the first signal, and ends the process if it must.

        It must after a second Ctrl-C, or if a batch never comes. The thread sees a signal at once,
        but Python calls handlers only in the main thread, between two instructions.
        """
        # Under a parent one Ctrl-C may arrive twice, from the terminal and from the parent. So the
        # parent counts and prints instead (launch.py).
        speaks, is_copy = PARENT not in os.environ, Copies()
        seen, came = [], None
        while True:
            try:
                byte = self.read_end.recv(1)
            except TimeoutError:
                self._end_long_wait(seen[0], came)
                continue
            if not byte:  # the run has ended
                break
            signum = byte[0]
            if signum not in SIGNALS or is_copy(signum):
                continue
            seen.append(signum)
            if len(seen) == 1:
                came = time.monotonic()
                self.read_end.settimeout(0.5)
                if speaks:
                    complain(announcement(signum))
            if speaks and seen.count(signal.SIGINT) == 2:
                terminal.end(ended_at_once(self.folder), 128 + signal.SIGINT)
        self.read_end.close()

    def _end_long_wait(self, signum, came):
        """Save and end the process if it is waiting for a batch.

        One of several processes cannot save alone, because all stop after the same iteration. After
        LONGEST_WAIT the process ends without saving.
        """
        with self.lock:  # so that the main thread cannot go on meanwhile
            if not self.waiting:
                return
            since, where, flush = self.waiting
            if self.alone:
                try:
                    self.poll([signum == other for other in SIGNALS], where, flush)
                except Exception as error:  # Interrupted, or the save failed
                    terminal.show("")
                    self.end(error)
            elif time.monotonic() - max(since, came) > LONGEST_WAIT:
                what = f"no batch came within {LONGEST_WAIT} s after {signal.Signals(signum).name}"
                terminal.end(f"{script()}: {what}: the run ends{_hint(self.folder)}", 1)


class Copies:
    """Called with each signal: returns whether it is a SIGINT within COPY seconds of the first.

    GNU timeout sends two at once, to the process and to its group. No person is that fast.
    """

    first = None

    def __call__(self, signum):
        if signum != signal.SIGINT:
            return False
        now = time.monotonic()
        if self.first is None:
            self.first = now
            return False
        return now - self.first < COPY


def handle(handler):
    """Let handler(signum) handle SIGNALS, without copies; returns the previous handlers by signal.

    Outside the main thread, where Python sets no handlers, there are none: no signal saves the run.

    A signal that was ignored at the start stays ignored, such as SIGHUP under nohup. Only SIGINT is
    handled even then, because a shell script ignores it in every command started with &.
    """
    if threading.current_thread() is not threading.main_thread():
        note("=> not in the main thread, so no signal saves this run; -saveEvery does")
        return {}
    is_copy = Copies()
    return {
        signum: signal.signal(signum, lambda signum, _: is_copy(signum) or handler(signum))
        for signum in SIGNALS
        if signum == signal.SIGINT or signal.getsignal(signum) != signal.SIG_IGN
    }


def announcement(signum):
    """The message when a signal comes, perhaps before the first iteration."""
    again = "; Ctrl-C again ends it at once" if signum == signal.SIGINT else ""
    what = "the run finishes its iteration and saves, if it is in one, and ends"
    return f"{script()}: {signal.Signals(signum).name}: {what}{again}"


def ended_at_once(folder):
    """The message after a second Ctrl-C."""
    return f"{script()}: interrupted{_hint(folder)}"


def _hint(folder):
    if folder and os.path.exists(os.path.join(folder, "latest.pth")):
        return f"; -resume {shlex.quote(folder)} goes on from the last checkpoint"
    return ""


@contextlib.contextmanager
def blocked():
    """Block SIGNALS in this thread, so that processes started meanwhile inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey(pid):
    """In a worker: ignore SIGNALS of the process group, but end when process `pid` sends one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: a worker is ended without a signal
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_wait_for, args=(pid,), daemon=True).start()


def _wait_for(pid):
    while signal.sigwaitinfo(SIGNALS).si_pid != pid:
        pass
    os._exit(0)

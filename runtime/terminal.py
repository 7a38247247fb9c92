"""Printing for the user: lines (`say`, `note`), and a status line on a terminal (`show`).

`say` prints what the original prints, on stdout, where scripts parse it; `note` prints all else, on
stderr. Printed lines scroll above the status line, which is on stdout, or on stderr if only stderr
is a terminal. Without a terminal, or with -progress lines, there is none. Only rank 0 prints.
"""

import contextlib
import os
import sys
import threading
import time

from runtime.errors import cause, visible
from runtime.process import leave, script

ERASE = "\r\x1b[K"  # go to the start of the line, erase it
MIN_INTERVAL = 0.1  # seconds between two redraws of the status line by `show`


def is_rank_0(variable="RANK"):
    """Whether this process is rank 0, or the only one: the process group may not exist yet.

    variable: LOCAL_RANK for the first process of each machine.
    """
    return "WORLD_SIZE" not in os.environ or os.environ.get(variable, "0") == "0"


def say(*args):
    """Print a line, on rank 0 only, and flush it: logs are followed through pipes.

    Control characters, which come from names, are escaped. Tabs are not: the original prints them.
    """
    if is_rank_0():
        text = " ".join(map(str, args))
        line = text.rstrip("\n")
        # one write, because the thread that saves prints too (storage/run_folder.py)
        print(visible(line, "\t") + text[len(line) :] + "\n", end="", flush=True)


def note(*args):
    """Print a line that the original does not have, on stderr, on rank 0 only."""
    if is_rank_0():
        complain(visible(" ".join(map(str, args))))


def complain(text):
    """Print an error, which may be a traceback, on stderr, from any rank.

    A stderr that fails or is closed is no error.
    """
    if sys.stderr is None:  # print would write to stdout, which holds the original's lines only
        return
    with contextlib.suppress(OSError, ValueError):
        print(visible(text, "\t\n") + "\n", end="", file=sys.stderr, flush=True)


def show(text):
    """Set the status line to this text; "" removes it.

    Without a terminal this does nothing: see progress.slow for what a log gets.
    """
    terminal = _entered()
    if terminal:
        terminal.show(text)


def clear():
    """Erase the status line that a killed process left on the terminal."""
    screen = next(filter(_can_erase, (sys.stdout, sys.stderr)), None)
    if screen:
        screen.write(ERASE)
        screen.flush()


def end(text, status):
    """Print an error and end this process. No other thread prints after the error."""
    terminal = _entered()
    with terminal.lock if terminal else contextlib.nullcontext():
        show("")
        complain(text)
        leave(status)


class Output:
    """A standard stream whose failure ends nothing.

    If the reader is gone (a closed pipe) or the disk is full, lines are lost and the run goes on.
    `report(reason)` is called at the first failure.
    """

    def __init__(self, stream, report=lambda reason: None):
        self.stream, self.report, self.failed = stream, report, False

    def write(self, text):
        self._try(self.stream.write, text)
        return len(text)

    def writelines(self, lines):
        self.write("".join(lines))

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, action, *args):
        try:
            action(*args)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            if isinstance(error, BrokenPipeError):  # permanent, so discard what is buffered
                with contextlib.suppress(OSError, ValueError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self.stream.fileno())
                    os.close(null)
            if not self.failed:
                self.failed = True
                self.report(cause(error))

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Terminal:
    """While entered, printed lines go above the status line, if there is a terminal.

    A stream that fails does not end the run: one line on the other stream says so. With `strict`,
    it ends the command.
    """

    def __init__(self, kind="auto", strict=False):
        self.strict = strict
        screen = next(filter(_can_erase, (sys.stdout, sys.stderr)), None)
        self.enabled = kind == "auto" and is_rank_0() and screen is not None
        self.screen = Output(screen)  # of the status line
        self.owner = os.getpid()  # loading workers are forks, whose copies of this must not draw
        self.lock = threading.RLock()
        self.text, self.drawn, self.changed = "", False, 0.0
        self.at_start = True  # else a status line would overwrite a half-printed line

    def __enter__(self):
        self.before = sys.stdout, sys.stderr
        sys.stdout = self._wrapped(sys.stdout, _report_lost_output)
        sys.stderr = self._wrapped(sys.stderr, lambda reason: None)
        return self

    def _wrapped(self, stream, report):
        if stream is not None and not self.strict:
            stream = Output(stream, report)
        return _Stream(self, stream) if self.enabled and _can_erase(stream) else stream

    def __exit__(self, *_):
        if self.enabled:
            self.show("")
        sys.stdout, sys.stderr = self.before

    def show(self, text):
        """See `show`. A text within MIN_INTERVAL of the last redraw is drawn with the next one."""
        with self.lock:
            self.text, now = visible(text), time.monotonic()
            if not text or now - self.changed >= MIN_INTERVAL:
                self.changed = now
                with contextlib.suppress(OSError):  # the terminal has gone
                    self._draw()

    def print(self, stream, text):
        """Write to stdout or stderr, above the status line."""
        if os.getpid() != self.owner:
            stream.write(text)
            return
        with self.lock:
            stream.write(ERASE + text if self.drawn else text)
            stream.flush()  # both streams write to one screen
            self.drawn = False
            if text:
                self.at_start = text.endswith("\n")
            self._draw()

    def _draw(self):
        erase = ERASE if self.drawn else ""
        shown = self.text[: _width(self.screen) - 1] if self.at_start else ""
        if erase or shown:
            # The cursor rests at the start, so that other programs' output overwrites the status.
            self.screen.write(f"{erase}{shown}\r" if shown else erase)
            self.screen.flush()
        self.drawn = bool(shown)


class _Stream(Output):
    """Stands for sys.stdout or sys.stderr while a Terminal is entered."""

    def __init__(self, terminal, stream):
        super().__init__(stream)
        self.terminal = terminal

    def write(self, text):
        self.terminal.print(self.stream, text)
        return len(text)


def _entered():
    """The Terminal that is entered and draws, or None."""
    streams = (s for s in (sys.stdout, sys.stderr) if isinstance(s, _Stream))
    return next((stream.terminal for stream in streams), None)


def _report_lost_output(reason):
    note(f"{script()}: cannot write to stdout ({reason}): the run goes on without these lines")


def _can_erase(stream):
    """Whether a stream is a terminal whose lines can be erased."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in (None, "dumb")


def _width(stream):
    """The present width of the terminal, or 80 if it reports none."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80

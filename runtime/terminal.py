"""Printing for the user: lines (`say`), and a status line at the bottom of a terminal (`show`).

Lines scroll above the status line, whoever prints them. Where the output is no terminal, or with
-progress lines, there is no status line: what is printed is the original's lines to the byte.
"""

import contextlib
import os
import sys
import threading
import time

ERASE = "\r\x1b[K"  # to the start of the line, and to its end
PAUSE = 0.1  # seconds between two changes of the last line by itself


def say(*args):
    """Print a line on the first rank only and flush it: logs are followed through pipes."""
    if int(os.environ.get("RANK", 0)) == 0:
        # in one piece: the thread that saves prints too (storage/run_folder.py)
        print(" ".join(map(str, args)) + "\n", end="", flush=True)


def show(text):
    """Let the last line of the terminal be this text, until the next one; "" is none.

    Without a terminal this does nothing: say a line at the start, and one at the end.
    """
    if isinstance(sys.stdout, _Stream):
        sys.stdout.terminal.show(text)


def clear():
    """Erase the last line in place of a process that was killed before it could."""
    if _able(sys.stdout):
        sys.stdout.write(ERASE)
        sys.stdout.flush()


class Terminal:
    """While entered, what is printed goes above the last line, if stdout is a terminal."""

    def __init__(self, kind="auto"):
        # of several processes only the first prints
        self.wanted = kind == "auto" and os.environ.get("RANK", "0") == "0" and _able(sys.stdout)
        self.owner = os.getpid()  # the loading workers get a copy of this, which is to do nothing
        self.lock = threading.RLock()
        self.text, self.drawn, self.changed = "", False, 0.0
        self.at_start = True  # of a line, where there is nothing to be written over

    def __enter__(self):
        self.before = sys.stdout, sys.stderr
        if self.wanted:
            sys.stdout = _Stream(self, sys.stdout)
            if _able(sys.stderr):
                sys.stderr = _Stream(self, sys.stderr)
        return self

    def __exit__(self, *_):
        if self.wanted:
            self.show("")
            sys.stdout, sys.stderr = self.before

    def show(self, text):
        """See `show`; what comes too soon after the one before waits for the next chance."""
        with self.lock:
            self.text, now = text, time.monotonic()
            if not text or now - self.changed >= PAUSE:
                self.changed = now
                with contextlib.suppress(OSError):  # the terminal has gone: whoever prints tells
                    self._draw()

    def print(self, stream, text):
        """Write to stdout or stderr; the last line stays the last."""
        if os.getpid() != self.owner:
            stream.write(text)
            return
        with self.lock:
            stream.write(ERASE + text if self.drawn else text)
            stream.flush()  # the two streams meet on one screen
            self.drawn = False
            if text:
                self.at_start = text.endswith("\n")
            self._draw()

    def _draw(self):
        stream = self.before[0]
        erase = ERASE if self.drawn else ""
        shown = self.text[: _width(stream) - 1] if self.at_start else ""
        if erase or shown:
            # The cursor rests at the start: what others print writes over this, not behind it.
            stream.write(f"{erase}{shown}\r" if shown else erase)
            stream.flush()
        self.drawn = bool(shown)


class _Stream:
    """sys.stdout or sys.stderr as long as there is a last line."""

    def __init__(self, terminal, stream):
        self.terminal, self.stream = terminal, stream

    def write(self, text):
        self.terminal.print(self.stream, text)
        return len(text)

    def writelines(self, lines):
        self.write("".join(lines))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def _able(stream):
    """Whether a stream is a terminal whose lines can be erased."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in (None, "dumb")


def _width(stream):
    """Columns of the terminal as it is now; of one that does not say, 80."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80

"""What is going on, on the last line of a terminal: the time that is left, a download's share.

No Lua file. Lines scroll above it, whoever prints them. Where the output is no terminal, or with
-progress lines, there is none of this, and what is printed is the original's lines to the byte.
"""

import collections
import contextlib
import os
import sys
import threading
import time

ERASE = "\r\x1b[K"  # to the start of the line, and to its end
PAUSE = 0.1  # seconds between two changes of the last line by itself
RECENT = 100  # iterations that an estimate is the mean of


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


class Clock:
    """The time that is left, from the mean of the latest iterations."""

    def __init__(self, epochs=0, train=0, test=0):
        """Of a run of so many epochs, each of so many iterations and batches of the test."""
        self.epochs, self.sizes = epochs, {"train": train, "test": test}
        self.recent = {split: collections.deque(maxlen=RECENT) for split in self.sizes}

    def tick(self, split, epoch, done, seconds):
        """An iteration, number `done` of a split, has taken so many seconds: show what is left."""
        self.recent[split].append(seconds)
        epoch_left, run_left = self.left(split, epoch, done)
        if epoch:
            show(
                f" epoch {epoch} of {self.epochs}: {span(epoch_left)} left, "
                f"all epochs: {span(run_left)} left"
            )
        else:
            show(f" test: {span(epoch_left)} left")

    def left(self, split, epoch, done):
        """Seconds to the end of this epoch, its test included, and to the end of the run.

        Epoch 0 is a test by itself.
        """
        mean = {name: sum(times) / len(times) for name, times in self.recent.items() if times}
        # Until one of each was seen: backward takes twice as long as forward, of which a test is.
        mean.setdefault("test", mean.get("train", 0) / 3)
        mean.setdefault("train", mean["test"] * 3)
        whole = {name: size * mean[name] for name, size in self.sizes.items()}
        left = max(0, self.sizes[split] - done) * mean[split]
        if split == "train":
            left += whole["test"]
        epochs = max(0, self.epochs - epoch) if epoch else 0
        return left, left + epochs * sum(whole.values())


def span(seconds):
    """A time in words of few changes: 0:07, 12:30, 5:02:11, 3 d 04:02:11."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

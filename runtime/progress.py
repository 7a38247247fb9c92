"""How far the work is: the status line of a terminal, and lines for a log where work is slow."""

import collections
import contextlib
import threading
import time

from runtime.terminal import note, show

SILENT = 10  # seconds
RECENT = 100  # iterations; the estimates are means over these


@contextlib.contextmanager
def slow(what):
    """While the block runs, the status line says `what`; yields a function that adds a detail.

    A block that takes over 10 s prints a line then, and one at its end: a log has no status line.
    """
    began = time.monotonic()
    alarm = threading.Timer(SILENT, note, [f"=> {what} ..."])
    alarm.daemon = True
    alarm.start()
    show(f" {what}")
    try:
        yield lambda detail: show(f" {what}: {detail}")
    finally:
        alarm.cancel()
        show("")
    seconds = time.monotonic() - began
    if seconds > SILENT:
        note(f"=> {what}: done in {span(seconds)}")


class Clock:
    """Estimates the time left from the mean of the latest iterations."""

    def __init__(self, epochs=0, train=0, test=0):
        """epochs: of the run; train, test: iterations of each per epoch."""
        self.epochs, self.sizes = epochs, {"train": train, "test": test}
        self.recent = {split: collections.deque(maxlen=RECENT) for split in self.sizes}

    def tick(self, split, epoch, done, seconds):
        """Count iteration `done` of a split, which took `seconds`, and show the time left."""
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
        """(seconds to the end of the epoch with its test, seconds to the end of the run).

        Epoch 0 is a test alone (-testOnly, evaluate.py).
        """
        mean = {name: sum(times) / len(times) for name, times in self.recent.items() if times}
        # Before the first iteration of a split. A backward pass takes about twice as long as a
        # forward pass, and a test has only the latter.
        mean.setdefault("test", mean.get("train", 0) / 3)
        mean.setdefault("train", mean["test"] * 3)
        full = {name: size * mean[name] for name, size in self.sizes.items()}
        left = max(0, self.sizes[split] - done) * mean[split]
        if split == "train":
            left += full["test"]
        epochs = max(0, self.epochs - epoch) if epoch else 0
        return left, left + epochs * sum(full.values())


def span(seconds):
    """Seconds as text: 0:07, 12:30, 5:02:11, 3 d 04:02:11."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""The time left of an epoch and of a run, for the status line of a terminal."""

import collections

from runtime.terminal import show

RECENT = 100  # iterations that an estimate is the mean of


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

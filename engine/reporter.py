"""Prints the original's line for each iteration. Port of the printing in train.lua."""

from runtime.progress import Clock
from runtime.terminal import say


class Reporter:
    """Prints the metrics of `loop.run` and updates the time left."""

    def __init__(self, clock=None):
        self.clock = clock or Clock()

    def train(self, epoch, size, m):
        """Print a training iteration. Time: since the line before. Data: the wait for the batch.

        On a GPU, lines come one iteration late, but their times still add up to the epoch's.
        """
        say(
            f" | Epoch: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}"
            f"  Err {m.mean_loss:1.4f}  {m.train_text()}"
        )
        self.clock.tick("train", epoch, m.done, m.seconds)

    def test(self, epoch, size, m, total):
        """Print a test batch, with the figures of the whole test so far in brackets."""
        say(
            f" | Test: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}  "
            f"{m.test_text(total)}"
        )
        self.clock.tick("test", epoch, m.done, m.seconds)

"""Prints the original's line for each iteration. Port of the printing in train.lua."""

from runtime.progress import Clock
from runtime.terminal import say


class Reporter:
    """Prints the metrics of `loop.run` and updates the time left."""

    def __init__(self, clock=None, every=1):
        """every: iterations from one line to the next; the last of a pass has a line as well."""
        self.clock, self.every = clock or Clock(), every

    def train(self, epoch, size, m):
        """Print a training iteration. Time: since the line before. Data: the wait for the batch.

        On a GPU, lines come one iteration late, but their times still add up to the epoch's.
        """
        self._line("train", "Epoch", epoch, size, m, f"Err {m.mean_loss:1.4f}  {m.train_text()}")

    def test(self, epoch, size, m, total):
        """Print a test batch, with the figures of the whole test so far in brackets."""
        self._line("test", "Test", epoch, size, m, m.test_text(total))

    def _line(self, split, name, epoch, size, m, text):
        if m.done % self.every == 0 or m.done == size:
            times = f"Time {m.seconds:.3f}  Data {m.data_wait:.3f}"
            say(f" | {name}: [{epoch}][{m.done}/{size}]    {times}  {text}")
        self.clock.tick(split, epoch, m.done, m.seconds)

"""The original's lines, an iteration each, and the time left. Port of the printing in train.lua."""

from runtime.progress import Clock
from runtime.terminal import say


class Reporter:
    """Prints what `Trainer` and `testing.test` report."""

    def __init__(self, clock=None):
        self.clock = clock or Clock()

    def train(self, epoch, size, m):
        """An iteration's line. Time: since the line before. Data: waited for its batch.

        On a GPU, where lines come an iteration late, the times still add up to the epoch's.
        """
        say(
            f" | Epoch: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}"
            f"  Err {m.mean_loss:1.4f}  top1 {m.top1:7.3f}  top5 {m.top5:7.3f}"
        )
        self.clock.tick("train", epoch, m.done, m.seconds)

    def test(self, epoch, size, m, total):
        """A test batch's line; in brackets the errors of the test so far."""
        say(
            f" | Test: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}  "
            f"top1 {m.top1:7.3f} ({total.top1:7.3f})  top5 {m.top5:7.3f} ({total.top5:7.3f})"
        )
        self.clock.tick("test", epoch, m.done, m.seconds)

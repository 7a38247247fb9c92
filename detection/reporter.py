"""The lines of a detector's training and test, in the shape of main.py's."""

from runtime.progress import Clock
from runtime.terminal import say


class Reporter:
    """Prints what the detector's `Trainer` and `testing.test` report."""

    def __init__(self, clock=None):
        self.clock = clock or Clock()
        self.proposing = False  # whether the test is one of the RPN's proposals

    def train(self, epoch, size, m):
        """An iteration's line: the sum of the losses, and each that the step has."""
        parts = [f"{name} {loss:1.4f}" for name, loss in m.losses.items()]
        say(
            f" | Epoch: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}"
            f"  Err {m.mean_loss:1.4f}  {'  '.join(parts)}"
        )
        self.clock.tick("train", epoch, m.done, m.seconds)

    def test(self, epoch, size, m, total):
        """A test batch's line: how many boxes were found, or objects covered by proposals."""
        if self.proposing:
            found = f"recall {m.recall:7.3f} ({total.recall:7.3f})"
        else:
            found = f"found {m.found} ({total.found})"
        say(
            f" | Test: [{epoch}][{m.done}/{size}]    Time {m.seconds:.3f}  Data {m.data_wait:.3f}  "
            f"{found}"
        )
        self.clock.tick("test", epoch, m.done, m.seconds)

    def best(self, errors):
        """The best scores of the run; none, where no epoch had an object to find."""
        ap, ap50 = (100 - error for error in errors)
        if ap >= 0:
            say(f" * Finished AP: {ap:6.3f}  AP50: {ap50:6.3f}")

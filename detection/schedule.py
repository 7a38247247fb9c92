"""How long a detector is trained, and at what rate: steps counted in iterations, as in the paper.

Between two tests lies an "epoch": one pass over the images, or -epochSize iterations. Epochs count
on from one step to the next, so that files, log and resuming are those of any run.
"""

import math
from typing import NamedTuple


class Step(NamedTuple):
    """A step of the training: what is trained, how long, how fast."""

    name: str  # "rpn", "fast" or "shared"
    rate: float
    iterations: tuple  # where the rate drops x0.1; at the last one the step ends
    batch: int  # images
    warmup: int  # iterations over which the rate rises from a thousandth, 0: none

    def rate_at(self, iteration):
        """The rate of an iteration, counted from 0."""
        drops = sum(iteration >= place for place in self.iterations[:-1])
        rise = min(1, max(iteration / self.warmup, 0.001)) if self.warmup else 1
        return self.rate * 0.1**drops * rise


class Stream:
    """The batches of a step by epoch, over as many passes of its loader as it takes."""

    def __init__(self, step, loader, first, every):
        """first: number of its first epoch; every: iterations of an epoch, 0: a pass."""
        self.step, self.loader, self.first = step, loader, first
        self.every = every or loader.size()
        self.epochs = math.ceil(step.iterations[-1] / self.every)
        self.last = first + self.epochs - 1

    def start(self, epoch):
        """The first iteration of an epoch, counted from 0 in the step."""
        return (epoch - self.first) * self.every

    def size(self, epoch):
        """How many iterations an epoch has; the last may be short."""
        return min(self.every, self.step.iterations[-1] - self.start(epoch))

    def images(self, epoch):
        """How many images the iterations of an epoch have."""
        start, each = self.start(epoch), self.loader.dataset.size()

        def before(place):
            passes, rest = divmod(place, self.loader.size())
            return passes * each + min(rest * self.step.batch, each)

        return before(start + self.size(epoch)) - before(start)

    def run(self, epoch, done=0):
        """The batches of an epoch after the first `done`."""
        place, end = self.start(epoch) + done, self.start(epoch) + self.size(epoch)
        size = self.loader.size()
        while place < end:
            number, offset = divmod(place, size)
            stop = min(size, offset + end - place)
            yield from self.loader.run(number + 1, offset, stop)
            place += stop - offset


def streams(steps, loaders, every):
    """The streams of the steps, one after another."""
    found, first = [], 1
    for step, loader in zip(steps, loaders):
        found.append(Stream(step, loader, first, every))
        first = found[-1].last + 1
    return found

"""How long a detector is trained and at what rate: steps counted in iterations, as in the paper.

An "epoch" is one pass over the images, or -epochSize iterations; a test follows each. Epochs are
numbered through all steps, so files, log and resuming work as in any run.
"""

import math
from typing import NamedTuple

from runtime.errors import InputError, shown

COCO = 117266  # images with a box in train2017
TESTS = 12  # in a step whose schedule follows the number of images


class Step(NamedTuple):
    """A step of the training: what is trained, how long, at which rate.

    Its epochs go over as many passes of the loader as they take.
    """

    name: str  # "rpn", "fast" or "shared"
    rate: float
    iterations: tuple  # where the rate drops x0.1; the last one ends the step
    batch: int  # images
    warmup: int  # iterations over which the rate rises from a thousandth; 0: none
    loader: object  # a DataLoader
    every: int  # iterations in an epoch
    first: int = 1  # number of the first epoch

    @property
    def last(self):
        """The number of the last epoch."""
        return self.first + math.ceil(self.iterations[-1] / self.every) - 1

    def start(self, epoch):
        """The first iteration of an epoch, counted from 0 in the step."""
        return (epoch - self.first) * self.every

    def rate_at(self, iteration):
        """The rate of an iteration, counted from 0."""
        drops = sum(iteration >= place for place in self.iterations[:-1])
        rise = min(1, max(iteration / self.warmup, 0.001)) if self.warmup else 1
        return self.rate * 0.1**drops * rise


def fitted(opt, images):
    """The options with a schedule for this number of training images, where the recipe decides.

    Below half of COCO's images a step makes twice the passes that COCO's recipe makes, with a
    warm-up over the first tenth, drops at the recipe's shares of it, and TESTS tests. In any case a
    warm-up ends before its step: the recipe's takes at most half of it.
    """
    changes = {}
    if opt.dataset == "coco" and 2 * images < COCO:
        for name, batch in (("rpnIterations", "rpnBatchSize"), ("iterations", "batchSize")):
            if opt.source(name) == "recipe":
                share = 2 * images / COCO * opt.layers["recipe"][batch] / getattr(opt, batch)
                places = enumerate(getattr(opt, name), 1)
                changes[name] = tuple(round(share * place) + n for n, place in places)
        if "iterations" in changes:
            last = changes["iterations"][-1]
            if opt.source("epochSize") == "default":
                changes["epochSize"] = math.ceil(last / TESTS)
            if opt.source("warmup") == "recipe":
                changes["warmup"] = min(1000, last // 10)
    names = ("iterations",) if opt.shared else ("iterations", "rpnIterations")
    shortest = min(changes.get(name, getattr(opt, name))[-1] for name in names)
    if opt.source("warmup") == "recipe":
        changes["warmup"] = min(changes.get("warmup", opt.warmup), shortest // 2)
    elif opt.source("warmup") == "given" and opt.warmup >= shortest:
        raise InputError(f"-warmup {opt.warmup} is too long: a step has {shortest} iterations")
    return opt.replaced(**changes)


class Epoch:
    """The loader of one epoch of a step."""

    def __init__(self, step, epoch):
        self.step, self.loader, self.dataset = step, step.loader, step.loader.dataset
        self.report_wait = step.loader.report_wait
        self.start = step.start(epoch)
        self.end = min(self.start + step.every, step.iterations[-1])  # may be short

    def size(self):
        """The number of iterations."""
        return self.end - self.start

    def images(self):
        """The number of images in these iterations."""
        each, size, batch = self.dataset.size(), self.loader.size(), self.step.batch
        # of whole passes, whose last batch may be smaller, and of the rest of a pass
        before, after = (n // size * each + n % size * batch for n in (self.start, self.end))
        return after - before

    def run(self, epoch, done=0):
        """The batches after the first `done`."""
        place, size = self.start + done, self.loader.size()
        while place < self.end:
            number, offset = divmod(place, size)
            stop = min(size, offset + self.end - place)
            yield from self.loader.run(number + 1, offset, stop)
            place += stop - offset


def check_place(steps, state):
    """InputError if a resumed run would not go on at the very iteration of its checkpoint.

    The epoch number means that iteration only with the same batch sizes, epoch length and
    iterations of the finished steps. The current step may end elsewhere, but not before what is
    done, and not later if its last epoch was cut short.
    """
    position, count = state.get("position") or {}, len(steps)
    order, epoch = position.get("order", ()), position.get("epoch")
    if epoch is None or len(order) != 2 * count + 1:
        return  # nothing was trained yet
    current = [step.name for step in steps].index(state["step"])
    for k, step in enumerate(steps[: current + 1]):
        option = "rpnIterations" if step.name == "rpn" else "iterations"
        last = (state.get("options", {}).get(option) or step.iterations)[-1]
        before = order[k], order[count + k], last
        now = step.batch, step.every, step.iterations[-1]
        fits = before == now
        if k == current and before[:2] == now[:2]:
            start = step.start(epoch)
            was, end = (min(start + step.every, each[2]) for each in (before, now))
            done = min(start + position["train"]["done"], was)
            is_inside = epoch == state.get("epoch", 0) + 1
            fits = end >= done if is_inside else end == was
        if not fits:
            sizes, saved = (
                "{} images an iteration, {} iterations an epoch and {} in all".format(*each)
                for each in (now, map(shown, before))
            )
            raise InputError(
                f"the {step.name} step would have {sizes}; the checkpoint has {saved}: a resumed "
                "run can only change how long the current step goes on"
            )

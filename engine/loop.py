"""The loop of every training and test, for classifiers and detectors. Port of train.lua's loops.

`run` is one pass over a loader, in training, in a test and in evaluate.py. `Loop` trains by epochs
and can resume inside one. A trainer derives from `Loop` and adds `begin`, which prepares an epoch,
and `step`, one iteration.
"""

import dataclasses
import itertools
import time

import torch

from engine.metrics import MetricQueue, Metrics, Reporter
from parallel.signals import Interrupts
from runtime.errors import InputError
from runtime.precision import Precision
from runtime.terminal import note, say

OFTEN = 100  # iterations between two checks whether the run waits for its data


@dataclasses.dataclass
class Position:
    """How far the run has come: the epoch, and the metrics of its training and test so far."""

    epoch: int | None = None
    order: dict | list = dataclasses.field(default_factory=dict)  # what decides the batches
    train: Metrics = dataclasses.field(default_factory=Metrics)
    test: Metrics = dataclasses.field(default_factory=Metrics)
    trained: bool = False  # the epoch's training is finished


class Loop:
    """Trains one model by epochs. A trainer derives from this class and adds two methods.

    begin(epoch, loader): set the rate and whatever else the epoch needs.
    step(batch, n): train iteration n of the epoch; returns {field of METRICS: scalar tensor}, sums
    over this process's images.
    """

    METRICS = Metrics
    step_name = ""  # names the epoch's step if the training has several
    rate = 0.0  # of the last iteration

    def __init__(
        self, model, device, precision="single", order=None, data=(), reporter=None, interrupts=None
    ):
        """order: what decides the batches of an epoch. data: dataloader.fingerprints."""
        self.model, self.device, self.data = model, device, list(data)
        self.order = order or {}
        self.reporter = reporter or Reporter()
        self.interrupts = interrupts or Interrupts()
        self.queue = MetricQueue(device, self.interrupts)
        self.precision = Precision(precision, device)
        self.scaler = self.precision.scaler()
        self.position = self._new_position()

    def train(self, epoch, loader):
        """Train one epoch, or the rest of it; returns its metrics."""
        total, size = self.at(epoch).train, loader.size()
        self.begin(epoch, loader)
        if self.position.trained:
            return total
        if total.done < size:
            name = f" ({self.step_name})" if self.step_name else ""
            say(f"=> Training epoch # {epoch}{name}")
        self.model.train()

        def report(metrics):
            metrics.check_finite(epoch, size)
            total.add(metrics)
            self.reporter.train(epoch, size, metrics)
            if total.done % OFTEN == 0:
                loader.report_wait(epoch, total.seconds, total.data_wait)

        run("training", epoch, loader, total, self.step, self.queue, report)
        self.position.trained = True
        return total

    def at(self, epoch):
        """The position in this epoch; a new one if the run has not begun the epoch."""
        if self.position.epoch != epoch:
            self.position = self._new_position(epoch)
        return self.position

    def _new_position(self, epoch=None):
        return Position(epoch, self.order, self.METRICS(), self.METRICS())

    def state(self):
        """The trainer's part of optimState_N.pth, in plain values and tensors."""
        return {
            "momentum": self._momentum(),
            "scaler": self.scaler.state_dict(),
            "position": dataclasses.asdict(self.position),
            "data": self.data,
        }

    def _momentum(self):
        """{name: momentum buffer} of the trained parameters."""
        state = self.optimizer.state
        return {name: state[p]["momentum_buffer"] for name, p in self.parameters.items()}

    def load_optimizer(self, state, known, before):
        """Load momentum and loss scale; InputError for a momentum that is missing or does not fit.

        known: {name: parameter} that could be trained. before: names of the parameters that the
        saved run trained.
        """
        own, file = self._momentum(), state.get("file", "the optimState")
        for name, buffer in state["momentum"].items():
            if name not in known or known[name].shape != buffer.shape:
                raise InputError(f"{file} does not belong to this net: {name} differs")
            if name in own:  # -freeze may have been given since
                own[name].copy_(buffer)
        for name in own:
            if name in before and name not in state["momentum"]:
                raise InputError(f"{file} does not belong to this net: its momentum lacks {name}")
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def load_position(self, state, options="options"):
        """Go on inside an epoch, if the state is from inside one and still holds.

        A line names a change of the images, or of the options in `order` (`options` if it has no
        names). If the epoch's training was finished on the same images, only the test begins again.
        """
        position, before = state.get("position"), state.get("data", self.data)
        same_data = before == self.data
        if not same_data:
            note("=> the images in -data have changed since the checkpoint: the new ones are used")
        if position is None or position["epoch"] in (None, state.get("epoch")):
            return  # no epoch was interrupted
        epoch, trained, test = position["epoch"], position.get("trained") is True, position["test"]
        file = state.get("file", "the optimState")
        if epoch != state.get("epoch", epoch - 1) + 1:
            fault = f"its position is in epoch {epoch}, but the last one done is {state['epoch']}"
            raise InputError(f"{file} is not a checkpoint of this program: {fault}")
        order = position["order"]
        if isinstance(order, dict):  # earlier versions had fewer options
            order = {**self.order, **order}
        if order != self.order or not same_data:
            what = self._changed(order, options) if same_data else "the images"
            if not trained or before[:1] != self.data[:1]:
                note(f"=> epoch {epoch} begins again, because {what} changed")
                return
            note(f"=> the test of epoch {epoch} begins again, because {what} changed")
            test = {}
        sums = [self.METRICS.restored(each, file) for each in (position["train"], test)]
        self.position = Position(epoch, self.order, *sums, trained)

    def _changed(self, before, options):
        """The options that changed since the order `before`; `options` if it has no names."""
        if not isinstance(before, dict):
            return options
        return ", ".join(f"-{n}" for n, value in self.order.items() if before.get(n) != value)


def run(what, epoch, loader, total, step, queue, report):
    """Pass over a loader's batches after the first `total.done`.

    what: "training" or "validation". step(batch, n) returns {field of `total`: scalar tensor}, sums
    over this process's images. report(metrics) adds an iteration's metrics to `total`, a Metrics,
    and prints them. InputError if no image could be read.
    """
    size, test = loader.size(), what == "validation"
    unit = "batch" if test else "iteration"

    def where(n):
        return f"in {'the test of ' * test}epoch {epoch} after {unit} {n} of {size}"

    if total.done > size:
        place = f"the checkpoint is {total.done} batches into the {what} of epoch {epoch}"
        raise InputError(f"{place}, which has {size}")
    queue.start(report)
    for n, batch, data_wait in _batches(loader, epoch, total.done, queue, where):
        metrics = type(total)(done=n, seen=batch.count, data_wait=data_wait, odd=batch.odd)
        queue.push(metrics, step(batch, n))
        queue.poll(where(n))
    queue.poll(where(size), lag=0)
    if not total.seen:
        raise InputError(f"no {what} image could be read")


def test(epoch, loader, total, step, queue, reporter):
    """`run` over validation images: adds each batch to `total` and prints its line."""

    def report(metrics):
        total.add(metrics)
        reporter.test(epoch, loader.size(), metrics, total)

    run("validation", epoch, loader, total, step, queue, report)


def _batches(loader, epoch, done, queue, where):
    """(number, batch, seconds waited for it) for each batch of an epoch after the first `done`.

    A batch without a readable image is left out. If a signal or an error ends the wait for a batch,
    the batches done before are saved. where(n) says in messages that n batches are done.
    """
    loaded = iter(loader.run(epoch, done))
    for n in itertools.count(done + 1):
        began, place = time.perf_counter(), (where(n - 1), queue.flush)
        with queue.interrupts.saving(*place, begun=n > 1):
            batch = queue.interrupts.next(loaded, *place)
        if batch is None:
            return
        if batch.count:
            yield n, batch, time.perf_counter() - began


def sgd(groups, **settings):
    """torch.optim.SGD with these parameter groups and settings.

    The momentum begins at 0, in the parameters' memory layout; with dampening 0 the first step is
    the same. Fused SGD itself would begin with uninitialised memory, keep it if the first step with
    -precision half overflows, and assume equal layouts.
    """
    optimizer = torch.optim.SGD(groups, fused=True, **settings)  # one pass over each parameter
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        buffer = torch.zeros_like(parameter, requires_grad=False)
        optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer

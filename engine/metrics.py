"""Asynchronous metrics: from the device to the printed line.

The Lua waits for the loss of each iteration. Here the GPU gets its next iteration before the
metrics of the last one are read, so it never waits for printing, scoring or loading. On the CPU,
metrics are reported at once.
"""

import dataclasses
import math
import time
from collections import deque

import torch

from parallel import group
from parallel.signals import Interrupts
from runtime.errors import InputError, shown
from runtime.progress import Clock
from runtime.terminal import say
from storage import schema

# Iterations in flight on a GPU. One is enough, because queuing it is faster than running it.
LAG = 1


@dataclasses.dataclass
class Metrics:
    """Sums over the images of one or several iterations, on all processes."""

    done: int = 0  # number of the last iteration, from 1
    seen: int = 0  # images
    wrong1: int = 0  # of these, wrong in top-1
    wrong5: int = 0  # and in top-5
    loss: float = 0.0  # sum over the images
    seconds: float = 0.0  # since the report before
    data_wait: float = 0.0  # of these, spent waiting for data
    odd: int = 0  # images whose file is damaged, but whose pixels are intact

    def add(self, other):
        """Add the metrics of a later iteration."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.done = other.done

    @classmethod
    def restored(cls, sums, file):
        """The metrics with these sums from the checkpoint `file`; missing ones begin at 0.

        InputError for sums that this program cannot have saved.
        """
        counts = {field.name: type(field.default) is int for field in dataclasses.fields(cls)}
        strange = [name for name in sums if name not in counts]
        wrong = [name for name in sums if counts.get(name) and not schema.is_count(sums[name])]
        metrics = None if strange or wrong else cls(**sums)
        if metrics is None or not metrics.wrong5 <= metrics.wrong1 <= metrics.seen:
            names = strange or wrong or ("wrong1", "wrong5", "seen")
            held = ", ".join(f"{name} {shown(sums.get(name, 0))}" for name in names)
            raise InputError(f"{file} is not a checkpoint of this program: its position has {held}")
        return metrics

    def check_finite(self, epoch, size):
        """InputError if the loss is not finite; `size`: iterations in the epoch."""
        if not math.isfinite(self.mean_loss):
            raise InputError(
                f"the loss is {self.mean_loss} at epoch {epoch}, iteration {self.done} of {size}:"
                " try a lower -LR or another -precision; checkpoints of earlier epochs are intact"
            )

    def scores(self):
        """The errors of a test, as the log has them."""
        return {"top1": self.top1, "top5": self.top5}

    def means(self):
        """An epoch's training, as the log has it."""
        return {**self.scores(), "loss": self.mean_loss}

    def train_text(self):
        """The text after the loss in the line of a training iteration."""
        return f"top1 {self.top1:7.3f}  top5 {self.top5:7.3f}"

    def test_text(self, total):
        """The text in the line of a test batch; `total`: the metrics of the test so far."""
        return (
            f"top1 {self.top1:7.3f} ({total.top1:7.3f})  top5 {self.top5:7.3f} ({total.top5:7.3f})"
        )

    @property
    def top1(self):
        """Top-1 error in %."""
        return 100 * self.wrong1 / self.seen

    @property
    def top5(self):
        """Top-5 error in %."""
        return 100 * self.wrong5 / self.seen

    @property
    def mean_loss(self):
        """Mean loss over the images."""
        return self.loss / self.seen


class MetricQueue:
    """Pending metrics, in the order of their iterations.

    The lag is fixed, because every process must act on a signal in the same iteration. So no
    process reports metrics as soon as they happen to arrive.
    """

    def __init__(self, device, interrupts=None):
        cuda = device.type == "cuda"
        self.device, self.lag = device, LAG if cuda else 0
        self.interrupts = interrupts or Interrupts()
        # a separate stream, so that the copy does not queue behind the next iteration
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.pending = deque()  # (sums on the host, what the copy needs, metrics, names)
        self.received = deque()  # signal counts of reported iterations, for the next `poll`

    def start(self, report):
        """Send metrics to report(metrics) from now on; the clock of the first iteration starts."""
        self.report, self.last = report, time.perf_counter()

    def push(self, metrics, numbers):
        """Start summing `numbers` over all processes: one all-reduce, asynchronous on a GPU.

        metrics: with done, seen, data_wait, and this process's `odd`. numbers: {field of metrics:
        scalar tensor on the device}. This process's `odd` and signal counts are summed as well.
        """
        values = torch.stack([number.double() for number in numbers.values()])
        own = torch.tensor([metrics.odd, *self.interrupts.received], dtype=torch.float64)
        if self.stream is None:
            sums, copy = group.all_reduce(torch.cat([values, own])), None
        else:
            sums, copy = self._to_host(values, own)
        self.pending.append((sums, copy, metrics, [*numbers, "odd"]))

    def _to_host(self, values, own):
        """Copy the sums to pinned memory: (sums, (event at its end, tensors that it needs))."""
        own = own.pin_memory().to(self.device, non_blocking=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            sums = group.all_reduce(torch.cat([values, own]))
            host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            host.copy_(sums, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # spinning would take a core from the workers
            event.record()
        return host, (event, values, own, sums)

    def poll(self, where, lag=None):
        """Report metrics older than `lag` iterations, then act on signals and -saveEvery.

        where: the position in the run, for the message of an interrupt.
        """
        lag = self.lag if lag is None else lag
        received = ()
        while len(self.pending) + len(self.received) > lag:
            if not self.received:
                self._report()
            received = self.received.popleft()
        if received and self.interrupts.poll(received, where, self.flush):
            self.last = time.perf_counter()  # the next iteration's time does not include the save

    def flush(self):
        """Report all pending metrics; the next `poll` acts on the signals that came with them."""
        while self.pending:
            self._report()

    def _report(self):
        sums, copy, metrics, names = self.pending.popleft()
        if copy is not None:
            copy[0].synchronize()
        sums, now = sums.tolist(), time.perf_counter()
        for name, value in zip(names, sums):
            setattr(metrics, name, type(getattr(metrics, name))(value))
        metrics.seconds, self.last = now - self.last, now
        self.received.append(sums[len(names) :])
        self.report(metrics)


class Reporter:
    """Prints the original's line for each iteration and updates the time left."""

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

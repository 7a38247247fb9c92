"""The training loop, the test and the learning rate. Port of train.lua.

`Trainer` is the only holder of changing state. Differs from the Lua: errors are counted, not
averaged, so that the printed means are exact; a loss that is not finite ends the run; replicas are
slices of one batch instead of devices, dealt to the processes; an epoch can go on from inside.
"""

import contextlib
import copy
import math
import re
import time
from functools import partial

import torch
from torch import nn

import distributed
import norms
import score
from compiling import compiled
from distributed import say
from errors import InputError
from interrupts import Interrupts
from models.blocks import set_slices
from models.fold import folded
from progress import Clock
from results import Results

MIXED = {"half": torch.float16, "bfloat16": torch.bfloat16}  # -precision -> type of the products
ORDER = "-batchSize, -manualSeed or -tenCrop"

# The sums over a split, in the order of `_exchange`, then seconds, of which those waited for data.
START = {"seen": 0, "wrong1": 0, "wrong5": 0, "loss": 0.0, "seconds": 0.0, "data_wait": 0.0}
START["done"] = 0  # iterations


class Trainer:
    """Trains and tests one model; `state` is the optimizer's part of a checkpoint."""

    def __init__(self, model, criterion, opt, device, state=None):
        self.model, self.criterion, self.opt, self.device = model, criterion, opt, device
        # optim.sgd with the original's settings; decay on every parameter, biases and batch
        # norms included. torch's Nesterov step with dampening 0 is the same formula.
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=opt.LR,
            momentum=opt.momentum,
            dampening=0,
            nesterov=True,
            weight_decay=opt.weightDecay,
            fused=True,  # one pass over each parameter
        )
        # From 0 on, in the parameters' memory layout: with dampening 0 the first step is the same.
        # Fused SGD would begin with memory as it found it, and leave it so where a first step with
        # -precision half overflows; and it takes equal layouts for granted.
        for parameter in model.parameters():
            buffer = torch.zeros_like(parameter, requires_grad=False)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.mixed = MIXED.get(opt.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=opt.precision == "half")
        self.position = {"epoch": None}
        if state is not None:
            self.load_state(state)
        self.parallel = distributed.parallel(model, device)  # the same model, as it is trained
        self.compiled = compiled(self.parallel, device) if opt.compile else self.parallel
        self.interrupts, self.clock, self.results = Interrupts(), Clock(), Results(device)
        self.slices = None  # those that the model was given last

    def train(self, epoch, loader):
        """One epoch, or what is left of it; returns the means (top-1 error %, top-5 %, loss)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.opt, epoch)
        sums = self._sums(epoch, "train")
        size = loader.size()
        if sums["done"] < size:
            say(f"=> Training epoch # {epoch}")
        self.model.train()
        self.slices = None  # -recomputeBN gives it others
        self.results.start()
        timer = time.perf_counter()
        for n, batch in enumerate(loader.run(epoch, sums["done"]), sums["done"] + 1):
            data_time = time.perf_counter() - timer
            if _count(batch.slices):
                with self._memory(batch):
                    output, loss = self._step(batch)
                tell = partial(self._tell_train, sums, epoch, n, size, data_time, batch.slices)
                self._exchange(tell, output, batch.target, loss)
                self._between(f"in epoch {epoch} after iteration {n} of {size}")
            timer = time.perf_counter()
        self._between(f"in epoch {epoch} after iteration {size} of {size}", lag=0)
        seen = sums["seen"]
        if not seen:
            raise InputError("no training image could be read")
        return 100 * sums["wrong1"] / seen, 100 * sums["wrong5"] / seen, sums["loss"] / seen

    def _step(self, batch):
        """Forward, backward and update; returns output (N, K) and the loss's sum, detached."""
        input, target, slices = batch
        own = slices[distributed.rank()]
        if self.slices != own:
            self.slices = own
            set_slices(self.model, own)  # a walk over all modules
        if distributed.size() > 1 and any(1 in sizes for sizes in slices):
            # a slice of one sample is normalised by the first replica's running statistics
            distributed.take_first(self.model.buffers())
        # Compiled, the backward pass of a slice of one sample, which is normalised by the running
        # statistics, would see them as the first slice has moved them.
        run = self.parallel if len(input) == 1 or 1 in own else self.compiled
        with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
            # a process without samples was given an image, to take part in the exchange
            output = run(input)[: len(target)]
            loss = self.criterion(output, target)
        self.optimizer.zero_grad(set_to_none=True)
        # The gradient is that of the mean over the whole batch, DataParallelTable's; the processes'
        # gradients are averaged, hence their number.
        self.scaler.scale(loss * (distributed.size() / _count(slices))).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return output.detach(), loss.detach()

    def recompute(self, epoch, loader):
        """Set the running statistics to means over the epoch's first -recomputeBN batches."""
        count = self.opt.recomputeBN
        if not count or self._sums(epoch, "test")["done"]:
            return  # not asked for, or done before a part of the test that is done as well
        self.model.train()
        norms.recompute(self.model, loader, epoch, count, self._running, self.interrupts)

    def _tell_train(self, sums, epoch, n, size, data_time, slices, numbers, seconds):
        """An iteration's line. Time: since the line before. Data: waited for its batch.

        On a GPU, where lines come an iteration late, the times still add up to the epoch's.
        """
        wrong1, wrong5, loss = numbers
        count = _count(slices)
        if not math.isfinite(loss / count):
            raise InputError(_diverged(loss / count, epoch, n, size))
        _add(sums, n, (count, int(wrong1), int(wrong5), loss, seconds, data_time))
        say(
            f" | Epoch: [{epoch}][{n}/{size}]    Time {seconds:.3f}  Data {data_time:.3f}  "
            f"Err {loss / count:1.4f}  "
            f"top1 {100 * wrong1 / count:7.3f}  top5 {100 * wrong5 / count:7.3f}"
        )
        self.clock.tick("train", epoch, n, seconds)

    @torch.inference_mode()
    def test(self, epoch, loader):
        """Errors over the validation set in per cent: (top-1, top-5)."""
        distributed.take_first(self.model.buffers())
        model = folded(self.model, self.mixed)
        size, sums = loader.size(), self._sums(epoch, "test")
        self.results.start()
        timer = time.perf_counter()
        for n, batch in enumerate(loader.run(epoch, sums["done"]), sums["done"] + 1):
            data_time = time.perf_counter() - timer
            if _count(batch.slices):
                with self._memory(batch):
                    output = self._scores(model, batch, loader.crops)
                tell = partial(self._tell_test, sums, epoch, n, size, data_time, batch.slices)
                self._exchange(tell, output, batch.target)
                self._between(f"in the test of epoch {epoch} after batch {n} of {size}")
            timer = time.perf_counter()
        self._between(f"in the test of epoch {epoch} after batch {size} of {size}", lag=0)
        seen = sums["seen"]
        if not seen:
            raise InputError("no validation image could be read")
        top1, top5 = 100 * sums["wrong1"] / seen, 100 * sums["wrong5"] / seen
        say(f" * Finished epoch # {epoch}     top1: {top1:7.3f}  top5: {top5:7.3f}\n")
        return top1, top5

    def _scores(self, model, batch, crops):
        with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
            output = model(batch.input)
        return score.sum_crops(output, crops)[: len(batch.target)]

    def _tell_test(self, sums, epoch, n, size, data_time, slices, numbers, seconds):
        """A test batch's line; its times are those of `_tell_train`."""
        got = (_count(slices), *map(int, numbers), 0.0)
        _add(sums, n, (*got, seconds, data_time))
        so_far = (sums["seen"], sums["wrong1"], sums["wrong5"])
        say(test_line(f"[{epoch}][{n}/{size}]", seconds, data_time, got, so_far))
        self.clock.tick("test", epoch, n, seconds)

    @contextlib.contextmanager
    def _running(self, batch):
        """What a forward pass runs in."""
        mixed = torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None)
        with self._memory(batch), mixed:
            yield

    @contextlib.contextmanager
    def _memory(self, batch):
        """Make one sentence of a want of memory: the sizes, and what helps."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU has none of its own
            asked = re.search(r"[Tt]ried to allocate (\d[\d.]* \w+)", str(error))
            if not asked:
                raise
            raise InputError(_out_of_memory(asked[1], batch, self.device)) from None

    def _exchange(self, tell, output, target, *loss):
        """Send the errors, the loss if any, and how often a signal came: `tell` gets the sums."""
        numbers = [*score.errors(output, target), *loss]
        self.results.send(numbers, self.interrupts.asked, tell)

    def _between(self, where, lag=None):
        """Tell what has come, heed signals and save, after an iteration."""
        asked = self.results.heed(lag)
        if asked and self.interrupts.between(asked, where, self.results.settle):
            self.results.start()  # no iteration took the time of saving

    def _sums(self, epoch, split):
        """The sums so far over a split in this epoch, which `position` keeps."""
        if self.position["epoch"] != epoch:
            self.position = {"epoch": epoch, "order": self._order()}
            self.position.update(train=dict(START), test=dict(START))
        return self.position[split]

    def state(self):
        """The optimizer as plain names and tensors: what optimState_N.pth holds."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
        }
        position = copy.deepcopy(self.position)
        return {"momentum": momentum, "scaler": self.scaler.state_dict(), "position": position}

    def load_state(self, state):
        """Take over `state()`; a momentum buffer that does not fit its parameter is refused."""
        parameters = dict(self.model.named_parameters())
        for name, buffer in state["momentum"].items():
            if name not in parameters or parameters[name].shape != buffer.shape:
                raise InputError(f"the optimState does not belong to this net: {name} differs")
            self.optimizer.state[parameters[name]]["momentum_buffer"].copy_(buffer)
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self._go_on_from(state)

    def _go_on_from(self, state):
        """Take over the place inside an epoch, if the checkpoint is of one."""
        position = state.get("position")
        if position is None or position["epoch"] in (None, state.get("epoch")):
            return  # its epoch is finished, or there is none
        if position["order"] == self._order():
            self.position = copy.deepcopy(position)
            for split in ("train", "test"):  # an older file's has no times
                self.position[split] = {**START, **self.position[split]}
        else:
            say(f"=> {ORDER} changed inside epoch {position['epoch']}: it begins again")

    def _order(self):
        """What the batches of an epoch depend on."""
        return [self.opt.batchSize, self.opt.manualSeed, self.opt.tenCrop]


def criterion():
    """Cross entropy, its sum over the samples; the trainer makes it the mean over the batch."""
    return nn.CrossEntropyLoss(reduction="sum")


def learning_rate(opt, epoch):
    """The rate of an epoch, counted from 1 (Trainer:learningRate of either repository)."""
    how, where = opt.drops
    if how == "every":
        drops = (epoch - 1) // where
    elif how == "after":
        drops = sum(epoch / opt.nEpochs > share for share in where)
    else:
        drops = sum(epoch >= step for step in where)
    return opt.LR * math.pow(0.1, drops)


def test_line(place, seconds, waited, batch, so_far):
    """A line of a test; `batch` and `so_far` begin with images, wrong in top-1, wrong in top-5."""
    (n, wrong1, wrong5), (all, all1, all5) = batch[:3], so_far[:3]
    return (
        f" | Test: {place}    Time {seconds:.3f}  Data {waited:.3f}  "
        f"top1 {100 * wrong1 / n:7.3f} ({100 * all1 / all:7.3f})  "
        f"top5 {100 * wrong5 / n:7.3f} ({100 * all5 / all:7.3f})"
    )


def _count(slices):
    """How many samples a batch has, over all processes."""
    return sum(map(sum, slices))


def _add(sums, n, got):
    """Count iteration n and what it gave."""
    sums["done"] = n
    for name, value in zip(START, got):
        sums[name] += value


def _diverged(loss, epoch, n, size):
    return (
        f"the loss is {loss} at epoch {epoch}, iteration {n} of {size}: try a lower -LR or another "
        "-precision; checkpoints of earlier epochs are intact"
    )


def _out_of_memory(asked, batch, device):
    where = "the CPU"
    if device.type == "cuda":
        free, all = (f"{n / 2**30:.1f} GiB" for n in torch.cuda.mem_get_info(device))
        used = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
        where = f"{device} ({free} of {all} free, the run used up to {used})"
    shape = " x ".join(map(str, batch.input.shape))
    return (
        f"out of memory on {where}: {asked} more were needed for an input of {shape}; give a "
        "smaller -batchSize, more devices to share it, -optnet true or -precision bfloat16"
    )

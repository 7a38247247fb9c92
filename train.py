"""The training loop, the test and the learning rate. Port of train.lua.

`Trainer` is the only holder of changing state. Differs from the Lua: errors are counted, not
averaged, so that the printed means are exact; a loss that is not finite ends the run; replicas are
slices of one batch instead of devices, dealt to the processes; an epoch can resume inside.
"""

import dataclasses
import math
import traceback

import torch
from torch import nn

from evaluation import batchnorm, scores, testing
from evaluation.metrics import MetricQueue, Metrics, batches
from evaluation.reporter import Reporter
from models.blocks import set_slices
from models.compiled import compiled
from models.fold import folded
from models.freezing import held
from parallel import group
from parallel.signals import Interrupts
from runtime import memory
from runtime.errors import InputError
from runtime.precision import Precision
from runtime.terminal import note, say
from storage.position import resumable

# what the batches of an epoch, and the images in its test, depend on
ORDER = ("batchSize", "manualSeed", "tenCrop", "testScale", "testCrop")
ADVICE = "a smaller -batchSize, more devices to share it, -optnet true or -precision bfloat16"
ONE_BY_ONE = "-accumulate true"  # the first advice where replicas share a process


@dataclasses.dataclass
class Position:
    """How far the run has come: the epoch, and what was trained and tested in it."""

    epoch: int | None = None
    order: dict = dataclasses.field(default_factory=dict)  # the values of ORDER
    train: Metrics = dataclasses.field(default_factory=Metrics)
    test: Metrics = dataclasses.field(default_factory=Metrics)
    trained: bool = False  # the epoch's training is finished


class Trainer:
    """Trains and tests one model; `checkpoint` holds the state to go on from, if any."""

    def __init__(
        self,
        model,
        criterion,
        opt,
        device,
        checkpoint=None,
        reporter=None,
        interrupts=None,
        data=(),
    ):
        self.data = list(data)  # dataloader.fingerprints
        self.model, self.criterion, self.opt, self.device = model, criterion, opt, device
        self.reporter, self.interrupts = reporter or Reporter(), interrupts or Interrupts()
        self.queue = MetricQueue(device, self.interrupts)
        self.precision = Precision(opt.precision, device)
        self.scaler = self.precision.scaler()
        self.optimizer = optimizer(model, opt)
        self.rate = learning_rate(opt, 1)  # an unknown schedule is refused before a file is written
        self.position = Position()
        if checkpoint is not None:
            self.load_state(checkpoint)
        self.parallel = group.data_parallel(model, device)  # the same model, as it is trained
        self.compiled = compiled(self.parallel, device) if opt.compile else self.parallel
        self.slices = None  # those of the model's batch norms
        self.accumulates, self.stepped = opt.accumulate, False

    def train(self, epoch, loader):
        """One epoch, or what is left of it; returns (top-1 error %, top-5 error %, mean loss)."""
        self.rate = learning_rate(self.opt, epoch)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.opt, epoch, parameters["initial_lr"])
        total, size = self._position(epoch).train, loader.size()
        if self.position.trained:
            return total.top1, total.top5, total.mean_loss
        if total.done < size:
            say(f"=> Training epoch # {epoch}")
        self.model.train()
        self.slices = None
        set_slices(self.model, None)

        def report(metrics):
            metrics.check_finite(epoch, size)
            total.add(metrics)
            self.reporter.train(epoch, size, metrics)

        def where(n):
            return f"in epoch {epoch} after iteration {n} of {size}"

        self.queue.start(report)
        for n, batch, data_wait in batches(loader, epoch, total.done, self.queue, where):
            output, loss = self._step_that_fits(batch)
            metrics = Metrics(done=n, seen=batch.count, data_wait=data_wait, odd=batch.odd)
            errors = scores.count_errors(output, batch.target)
            self.queue.push(metrics, {**errors, "loss": loss})
            self.queue.poll(where(n))
        self.queue.poll(where(size), lag=0)
        if not total.seen:
            raise InputError("no training image could be read")
        self.position.trained = True
        return total.top1, total.top5, total.mean_loss

    def _step(self, batch):
        """Forward, loss, backward, step; returns output (N, K) and the loss's sum, detached."""
        outputs, losses = [], []
        self.optimizer.zero_grad(set_to_none=True)
        for model, input, target in self._parts(batch):  # one, or with -accumulate true many
            with self.precision.autocast():
                # a process without samples was given an image, to take part in the exchange
                output = model(input)[: len(target)]
                loss = self.criterion(output, target)
            # The gradient is that of the mean over the whole batch, DataParallelTable's. The
            # gradients of the processes are averaged, hence their number.
            self.scaler.scale(loss * (group.world_size() / batch.count)).backward()
            outputs.append(output.detach())
            losses.append(loss.detach())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.cat([outputs[-1], *outputs[:-1]]), sum(losses)

    def _parts(self, batch):
        """(model, input, target) of what goes forward and backward together, as it is trained.

        That is this process's batch, or with -accumulate true each of its replica slices. Their
        gradients add up; the processes exchange them once. The first slice comes last: it alone
        updates the running statistics, and a slice of one sample is normalised by the former ones.
        """
        own = batch.slices[group.rank()]
        if group.world_size() > 1 and any(1 in sizes for sizes in batch.slices):
            # a slice of one sample is normalised by the first replica's running statistics
            group.broadcast(self.model.buffers())
        if not self.accumulates or len(own) < 2:
            yield self._as_trained(own), batch.input, batch.target
            return
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        first, *others = zip(batch.input.split(own), batch.target.split(own))
        for input, target in others:
            with group.no_sync(self.parallel):
                yield self._as_trained([len(target)]), input, target
            torch._foreach_copy_(buffers, before)
        yield self._as_trained(own[:1]), *first

    def _as_trained(self, slices):
        """The model, its batch norms set to these replica slices."""
        several = slices if len(slices) > 1 else None
        if self.slices != several:
            self.slices = several
            set_slices(self.model, several)  # a walk over all modules
        # Compiled, the backward pass of a slice of one sample, which is normalised by the running
        # statistics, would see them as the first slice has moved them.
        return self.parallel if 1 in slices or not slices else self.compiled

    def _step_that_fits(self, batch):
        """`_step`; where the run's first one is out of memory, its replica slices one by one.

        Only in a run of one process: of several, the others would wait for this one's gradients.
        """
        several = len(batch.slices[group.rank()]) > 1 and not self.accumulates
        can_split = several and not self.stepped and group.world_size() == 1
        before = [buffer.clone() for buffer in self.model.buffers()] if can_split else []
        self.stepped = True
        advice = f"{ONE_BY_ONE}, {ADVICE}" if several else ADVICE
        try:
            with memory.out_of_memory(batch.input.shape, self.device, advice):
                return self._step(batch)
        except memory.OutOfMemory as error:
            if not can_split:
                raise
            note(f"=> {error.need}: going on as with {ONE_BY_ONE}")
            # the activations of the pass that failed are in its frames; on Python 3.13 a cycle
            # would keep these until the next garbage collection
            error.__context__ = None
            traceback.clear_frames(error.__traceback__)
        # not above: until its end the exception keeps the activations
        self.accumulates = True
        torch._foreach_copy_(list(self.model.buffers()), before)
        return self._step_that_fits(batch)

    def recompute(self, epoch, loader):
        """Re-estimate batch norm over the epoch's first -recomputeBN batches."""
        count = self.opt.recomputeBN
        if not count or self._position(epoch).test.done:
            return  # not asked for, or done before a part of the test that is done as well
        self.model.train()
        batchnorm.recompute(self.model, loader, epoch, count, self.precision, self.interrupts)

    @torch.inference_mode()
    def test(self, epoch, loader):
        """Errors over the validation set in per cent: (top-1, top-5)."""
        group.broadcast(self.model.buffers())
        model = folded(self.model, self.precision.mixed)
        total = self._position(epoch).test

        def count_errors(batch):
            shape = batch.input.shape
            with memory.out_of_memory(shape, self.device, ADVICE), self.precision.autocast():
                output = model(batch.input)
            output = scores.sum_crops(output, loader.crops)[: len(batch.target)]
            return scores.count_errors(output, batch.target)

        testing.test(epoch, loader, total, count_errors, self.queue, self.reporter)
        say(f" * Finished epoch # {epoch}     top1: {total.top1:7.3f}  top5: {total.top5:7.3f}\n")
        return total.top1, total.top5

    def _position(self, epoch):
        """The position, in this epoch: a new one unless the run has begun it already."""
        if self.position.epoch != epoch:
            self.position = Position(epoch, self._order())
        return self.position

    def _order(self):
        return {name: getattr(self.opt, name) for name in ORDER}

    def state(self):
        """The optimizer as plain names and tensors: what optimState_N.pth holds."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        position = dataclasses.asdict(self.position)
        scaler = self.scaler.state_dict()
        return {"momentum": momentum, "scaler": scaler, "position": position, "data": self.data}

    def load_state(self, state):
        """Take over `state()`; a momentum buffer that does not fit its parameter is refused."""
        parameters = dict(self.model.named_parameters())
        file = state.get("file", "the optimState")
        self._check_complete(state, parameters, file)
        for name, buffer in state["momentum"].items():
            if name not in parameters or parameters[name].shape != buffer.shape:
                raise InputError(f"{file} does not belong to this net: {name} differs")
            if parameters[name].requires_grad:  # -freeze may have been given since
                self.optimizer.state[parameters[name]]["momentum_buffer"].copy_(buffer)
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if not self.opt.testOnly:  # which begins a test of its own
            self._load_position(state, file)

    def _load_position(self, state, file):
        """Go on inside an epoch, if the state is from there and still holds."""
        order, saved = self._order(), state.get("options", {})
        old = state.get("position") or {}
        if "order" in old:
            before = old["order"]
            if isinstance(before, list):  # of before it had names, and at first only three values
                before = dict(zip(ORDER, before))
            before = {n: before.get(n, saved.get(n, value)) for n, value in order.items()}
            state = {**state, "position": {**old, "order": before}}
        options = "-" + ", -".join(ORDER[:-1]) + f" or -{ORDER[-1]}"
        position = resumable(state, order, options, self.data)
        if position is None:
            return
        sums = {split: Metrics.restored(position[split], file) for split in ("train", "test")}
        trained = position.get("trained") is True
        self.position = Position(position["epoch"], position["order"], **sums, trained=trained)

    def _check_complete(self, state, parameters, file):
        """InputError for a parameter to train without momentum, if the run before trained it."""
        before = held(self.model, state.get("options", {}).get("freeze", 0))
        if self.opt.resetClassifier:
            before = (*before, "fc")
        for name, parameter in parameters.items():
            new = name.partition(".")[0] in before
            if parameter.requires_grad and not new and name not in state["momentum"]:
                raise InputError(f"{file} does not belong to this net: its momentum lacks {name}")


def criterion():
    """Cross entropy, its sum over the samples; the trainer makes it the mean over the batch."""
    return nn.CrossEntropyLoss(reduction="sum")


def optimizer(model, opt):
    """optim.sgd with the original's settings: decay on every parameter, batch norms included.

    torch's Nesterov step with dampening 0 is the same formula. Frozen parameters are left out.
    """
    sgd = torch.optim.SGD(
        _parameter_groups(model, opt),
        lr=opt.LR,
        momentum=opt.momentum,
        dampening=0,
        nesterov=True,
        weight_decay=opt.weightDecay,
        fused=True,  # one pass over each parameter
    )
    # From 0 on, in the parameters' memory layout: with dampening 0 the first step is the same.
    # Fused SGD would begin with uninitialised memory, and leave it so where a first step with
    # -precision half overflows; and it takes equal layouts for granted.
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        buffer = torch.zeros_like(parameter, requires_grad=False)
        sgd.state[parameter]["momentum_buffer"] = buffer
    return sgd


def _parameter_groups(model, opt):
    """The parameters to train, with their rate in the first epoch: two groups for -classifierLR."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not opt.classifierLR:
        return [{"params": parameters, "initial_lr": opt.LR}]
    head = list(model.fc.parameters())
    body = [p for p in parameters if all(p is not other for other in head)]
    groups = [(body, opt.LR), (head, opt.classifierLR)]
    return [{"params": group, "initial_lr": rate} for group, rate in groups if group]


def learning_rate(opt, epoch, initial=None):
    """The rate of an epoch, counted from 1 (Trainer:learningRate of either repository).

    initial: the rate of the first epoch, -LR unless it is given.
    """
    how, where = opt.drops
    if how == "every":
        drops = (epoch - 1) // where
    elif how == "after":
        drops = sum(epoch / opt.nEpochs > share for share in where)
    elif how == "at":
        drops = sum(epoch >= step for step in where)
    else:
        known = "every, after or at"
        raise InputError(f"unknown schedule {how!r} in opts.RECIPES: should be {known}")
    return (opt.LR if initial is None else initial) * math.pow(0.1, drops)

"""The trainer of a classifier: its step, its test and the learning rate. Port of train.lua.

The loop over batches and epochs is in engine/loop.py. Differs from the Lua: errors are counted,
not averaged, so the printed means are exact; a loss that is not finite ends the run; replicas are
slices of one batch, dealt to the processes, instead of devices; a run can resume inside an epoch.
"""

import math
import traceback

import torch
from torch import nn

from engine import batchnorm, loop
from evaluation import scores
from models.blocks import held
from models.compiled import compiled
from models.fold import folded
from models.slices import set_slices
from parallel import group
from runtime import memory
from runtime.errors import InputError
from runtime.terminal import note, say

# options that decide the batches of an epoch and the images of its test
ORDER = ("batchSize", "manualSeed", "trainCrop", "tenCrop", "testScale", "testCrop", "testPool")
FEW = 8  # images of a replica slice: fewer make batch norm noisy
ADVICE = "a smaller -batchSize, more devices to share it, -optnet true or -precision bfloat16"
ONE_BY_ONE = "-accumulate true"  # the first advice where replicas share a process


def setup(opt, model, device, **outside):
    """The trainer that the options ask for; `outside`: see Trainer."""
    if not opt.testOnly:
        _report_slices(opt)
    return Trainer(
        model,
        criterion(),
        optimizer(model, opt.LR, opt.momentum, opt.weightDecay, opt.classifierLR),
        lambda epoch: decay(opt.drops, opt.nEpochs, epoch, opt.warmup),
        device,
        precision=opt.precision,
        order={name: getattr(opt, name) for name in ORDER},
        accumulate=opt.accumulate,
        compile=opt.compile,
        capture=opt.cudaGraph and not opt.testOnly,
        **outside,
    )


class Trainer(loop.Loop):
    """Trains and tests one classifier."""

    def __init__(
        self,
        model,
        criterion,
        optimizer,
        decay,
        device,
        *,
        accumulate=False,
        compile=False,
        capture=False,
        **more,
    ):
        """decay(epoch): the rate as a share of the first epoch's. more: arguments of Loop."""
        super().__init__(model, device, **more)
        if capture and (device.type != "cuda" or group.world_size() > 1):
            raise InputError("-cudaGraph true needs a CUDA device and a run of one process")
        self.criterion, self.optimizer, self.decay = criterion, optimizer, decay
        decay(1)  # refuse an unknown schedule before a file is written
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.parallel = group.data_parallel(model, device)  # the same model, wrapped for training
        self.compiled = compiled(self.parallel, device) if compile else self.parallel
        self.slices = None  # the replica slices that the batch norms see
        self.accumulates, self.stepped = accumulate, False
        self.captured = Captured(self._step) if capture else None

    def begin(self, epoch, loader):
        """Set the epoch's rates."""
        factor = self.decay(epoch)
        self.rate = self.optimizer.defaults["lr"] * factor
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["initial_lr"] * factor
        self.slices = None
        set_slices(self.model, None)
        if self.captured:
            self.captured = Captured(self._step)  # a graph keeps the rate of its capture

    def step(self, batch, n):
        """Train on a batch; returns sums of its loss and errors, see Loop."""
        output, loss = self._step_that_fits(batch)
        return {**scores.count_errors(output, batch.target), "loss": loss}

    def _step(self, batch):
        """Forward, loss, backward, step; returns output (N, K) and summed loss, detached."""
        if group.world_size() > 1 and any(1 in sizes for sizes in batch.slices):
            # the first replica's running statistics normalise a slice of one sample
            group.broadcast(self.model.buffers())
        self.optimizer.zero_grad(set_to_none=True)
        run = self._slice_by_slice if self.accumulates else self._together
        output, loss = run(batch)
        if self.counters:
            torch._foreach_add_(self.counters, 1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return output, loss

    def _together(self, batch):
        """Forward and backward pass over this process's whole part of a batch."""
        own = batch.slices[group.rank()]
        return self._backward(self._as_trained(own), batch.input, batch.target, batch.count)

    def _slice_by_slice(self, batch):
        """The same, one replica slice after another (-accumulate true), in less memory.

        The gradients add up, and the processes exchange them once, with the first slice. The first
        slice comes last, because it alone updates the running statistics, and slices of one sample
        still need the old ones.
        """
        own = batch.slices[group.rank()]
        if len(own) < 2:
            return self._together(batch)
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        first, *others = zip(batch.input.split(own), batch.target.split(own))
        done = []
        for input, target in others:
            with group.no_sync(self.parallel):
                model = self._as_trained([len(target)])
                done.append(self._backward(model, input, target, batch.count))
            torch._foreach_copy_(buffers, before)
        done.append(self._backward(self._as_trained(own[:1]), *first, batch.count))
        outputs, losses = zip(*done)
        return torch.cat([outputs[-1], *outputs[:-1]]), sum(losses)

    def _backward(self, model, input, target, count):
        """Forward, loss, backward; `count`: images in the whole batch."""
        with self.precision.autocast():
            # a process without samples got one image, so that it takes part in the exchange
            output = model(input)[: len(target)]
            loss = self.criterion(output, target)
        # The gradient of the mean loss over the whole batch, as in DataParallelTable. The world
        # size is a factor because the processes average their gradients.
        self.scaler.scale(loss * (group.world_size() / count)).backward()
        return output.detach(), loss.detach()

    def _as_trained(self, slices):
        """The model, its batch norms set to these replica slices."""
        own = slices or [1]  # the image that a process without samples was given
        if self.slices != own:
            self.slices = own
            self.counters = set_slices(self.model, own)  # a walk over all modules
        # Running statistics normalise a slice of one sample. The compiled backward pass would read
        # them after the first slice has updated them.
        return self.parallel if 1 in slices or not slices else self.compiled

    def _step_that_fits(self, batch):
        """`_step`; if the run's first step is out of memory, it is retried slice by slice.

        Only with one process, because others would wait for the gradients of the one that retries.
        """
        several = len(batch.slices[group.rank()]) > 1 and not self.accumulates
        can_split = several and not self.stepped and group.world_size() == 1
        before = [buffer.clone() for buffer in self.model.buffers()] if can_split else []
        self.stepped = True
        advice = f"{ONE_BY_ONE}, {ADVICE}" if several else ADVICE
        try:
            with memory.out_of_memory(batch.input.shape, self.device, advice):
                return (self.captured or self._step)(batch)
        except memory.OutOfMemory as error:
            if not can_split:
                raise
            note(f"=> {error.need}: going on with {ONE_BY_ONE}")
            # The frames of the failed pass hold its activations. On Python 3.13 a cycle would keep
            # these frames until the next garbage collection.
            error.__context__ = None
            traceback.clear_frames(error.__traceback__)
        # Retry outside the except block: the exception keeps the activations alive
        self.accumulates = True
        torch._foreach_copy_(list(self.model.buffers()), before)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the pieces that are left of the failed pass
        return self._step_that_fits(batch)

    def recompute(self, epoch, loader, count):
        """Re-estimate batch norm over the epoch's first `count` batches (-recomputeBN)."""
        if not count or self.at(epoch).test.done:
            return  # not asked for, or done already because the test has begun
        self.model.train()
        batchnorm.recompute(self.model, loader, epoch, count, self.precision, self.interrupts)

    @torch.inference_mode()
    def test(self, epoch, loader, window=0):
        """Test on the validation images; returns the metrics.

        window: side of the windows over which the last maps are pooled; 0: the whole maps.
        """
        group.broadcast(self.model.buffers())
        model = folded(self.model, self.precision.mixed)
        total = self.at(epoch).test

        def count_errors(batch, n):
            shape = batch.input.shape
            with memory.out_of_memory(shape, self.device, ADVICE), self.precision.autocast():
                output = scores.outputs(model, batch.input, window).mean(1)
            output = scores.sum_crops(output, loader.crops)[: len(batch.target)]
            return scores.count_errors(output, batch.target)

        loop.test(epoch, loader, total, count_errors, self.queue, self.reporter)
        say(f" * Finished epoch # {epoch}     top1: {total.top1:7.3f}  top5: {total.top5:7.3f}\n")
        return total

    @staticmethod
    def errors(scores):
        """The errors that choose the best model; smaller is better."""
        return scores["top1"], scores["top5"]

    def load_state(self, state, new=(), inside=True):
        """Load a state; InputError for a momentum buffer that does not fit its parameter.

        new: parts of the net that the earlier run did not train. inside: go on inside an epoch.
        """
        saved = state.get("options", {})
        new = (*held(self.model, saved.get("freeze", 0)), *new)
        before = {name for name in self.parameters if name.partition(".")[0] not in new}
        known = dict(self.model.named_parameters())
        self.load_optimizer(state, known, before)
        if inside:
            self.load_position(state)


class Captured:
    """A step on CUDA as a CUDA graph: one launch in place of hundreds, and the same bits.

    step(batch) -> tensors. The next call overwrites the tensors that a call returned. Batches of
    another size than the first one's are plain steps, as is the first batch: it chooses kernels and
    takes memory in ways that cannot be captured. The second batch is captured.
    """

    def __init__(self, step):
        self.step, self.size, self.graph = step, None, None

    def __call__(self, batch):
        size = batch.input.shape, batch.slices
        if size != self.size:
            result = self.step(batch)
            self.size = self.size or size  # not before: one that was out of memory is repeated
            return result
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.batch = batch._replace(input=batch.input.clone(), target=batch.target.clone())
            # other threads may pin memory meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = self.step(self.batch)
        self.batch.input.copy_(batch.input)
        self.batch.target.copy_(batch.target)
        self.graph.replay()
        return self.result


def _report_slices(opt):
    world, sizes = group.world_size(), group.split_sizes(opt.batchSize, opt.nGPU)
    each = " or ".join(map(str, sorted(set(sizes))))
    if opt.nGPU > world:
        processes = f"{world} process{'es' * (world > 1)}"
        note(f"=> {opt.nGPU} replicas in {processes}, {each} images each")
    if sizes[-1] < FEW and opt.source("LR") == "recipe":
        why = f"batch norm over {each} images per replica is noisy, and -LR {opt.LR:g} may diverge"
        note(f"=> {why}: give a larger -batchSize, a smaller -nGPU or a lower -LR")


def note_rise(opt, epoch, log):
    """Say if new options make the rate of this epoch higher than that of the log's last line.

    After the last epoch of a warm-up, the schedule itself makes it higher.
    """
    before = log[-1].get("rate") if log else None
    if epoch > opt.nEpochs or type(before) is not float:
        return
    last, rate = learning_rate(opt, epoch - 1), learning_rate(opt, epoch)
    if rate > 1.01 * before and not math.isclose(last, before):
        cause = f"-nEpochs {opt.nEpochs}, -LR {opt.LR:g} and the schedule"
        note(f"=> the rate rises from {before:g} to {rate:g} in epoch {epoch}, by {cause}")


def criterion():
    """Cross entropy, summed over the samples; the trainer divides by the batch's size."""
    return nn.CrossEntropyLoss(reduction="sum")


def optimizer(model, rate, momentum, weight_decay, classifier_rate=0.0):
    """optim.sgd with the original's settings: decay on every parameter, batch norms included.

    torch's Nesterov step with dampening 0 is the same formula. Frozen parameters are left out.
    classifier_rate: the rate of the fully connected layer (-classifierLR); 0: the common rate.
    """
    groups = {}  # {initial rate: parameters}
    for name, parameter in model.named_parameters():
        own = classifier_rate if name.startswith("fc.") else 0
        if parameter.requires_grad:
            groups.setdefault(own or rate, []).append(parameter)
    groups = [{"params": group, "initial_lr": initial} for initial, group in groups.items()]
    settings = {"dampening": 0, "nesterov": True, "weight_decay": weight_decay}
    return loop.sgd(groups, lr=rate, momentum=momentum, **settings)


def learning_rate(opt, epoch):
    """The rate of an epoch, counted from 1 (Trainer:learningRate in both repositories)."""
    return opt.LR * decay(opt.drops, opt.nEpochs, epoch, opt.warmup)


def decay(schedule, epochs, epoch, warmup=0):
    """The rate of one of `epochs` epochs, as a share of -LR.

    schedule: where the rate drops x0.1, as in opts.RECIPES. warmup: how many epochs at the start
    have a tenth of the rate, as the ResNet paper trains ResNet-110.
    """
    how, where = schedule
    if how == "every":
        drops = (epoch - 1) // where
    elif how == "after":
        drops = sum(epoch / epochs > share for share in where)
    elif how == "at":
        drops = sum(epoch >= step for step in where)
    else:
        known = "every, after or at"
        raise InputError(f"unknown schedule {how!r} in opts.RECIPES: should be {known}")
    return 0.1 if epoch <= warmup else math.pow(0.1, drops)

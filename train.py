"""The training loop, the test and the learning rate. Port of train.lua.

`Trainer` is the only holder of changing state. Differs from the Lua: errors are counted, not
averaged, so that the printed means are exact; a loss that is not finite ends the run; replicas are
slices of one batch instead of devices.
"""

import math
import time

import torch
from torch import nn

import score
from distributed import say
from errors import InputError
from models.blocks import set_slices, split_sizes

MIXED = {"half": torch.float16, "bfloat16": torch.bfloat16}  # -precision -> type of the products


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
        )
        self.mixed = MIXED.get(opt.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=opt.precision == "half")
        if state is not None:
            self.load_state(state)

    def train(self, epoch, loader):
        """One epoch; returns the means (top-1 error %, top-5 error %, loss)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.opt, epoch)
        say(f"=> Training epoch # {epoch}")
        self.model.train()
        size, seen, sums = loader.size(), 0, [0, 0, 0.0]
        timer = time.perf_counter()
        for n, (input, target) in enumerate(loader.run(epoch), 1):
            data_time = time.perf_counter() - timer
            output, loss = self._step(input, target)
            wrong1, wrong5 = (int(count) for count in score.errors(output, target))
            loss = float(loss)
            if not math.isfinite(loss):
                raise InputError(_diverged(loss, epoch, n, size))
            count = len(target)
            say(
                f" | Epoch: [{epoch}][{n}/{size}]    Time {time.perf_counter() - timer:.3f}  "
                f"Data {data_time:.3f}  Err {loss:1.4f}  "
                f"top1 {100 * wrong1 / count:7.3f}  top5 {100 * wrong5 / count:7.3f}"
            )
            sums = [sums[0] + wrong1, sums[1] + wrong5, sums[2] + loss * count]
            seen += count
            timer = time.perf_counter()
        if not seen:
            raise InputError("no training image could be read")
        return 100 * sums[0] / seen, 100 * sums[1] / seen, sums[2] / seen

    def _step(self, input, target):
        """Forward, backward and update on one batch; returns output (N, K) and loss, detached."""
        # the loss is the mean over the whole batch, so its gradient is DataParallelTable's sum
        set_slices(self.model, split_sizes(len(target), self.opt.nGPU))
        with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
            output = self.model(input)
            loss = self.criterion(output, target)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return output.detach(), loss.detach()

    @torch.inference_mode()
    def test(self, epoch, loader):
        """Errors over the validation set in per cent: (top-1, top-5)."""
        self.model.eval()
        size, seen, sums = loader.size(), 0, [0, 0]
        timer = time.perf_counter()
        for n, (input, target) in enumerate(loader.run(epoch), 1):
            data_time = time.perf_counter() - timer
            with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
                output = self.model(input)
            output = score.sum_crops(output, loader.crops)
            wrong = [int(count) for count in score.errors(output, target)]
            count = len(target)
            sums = [sums[0] + wrong[0], sums[1] + wrong[1]]
            seen += count
            say(
                f" | Test: [{epoch}][{n}/{size}]    Time {time.perf_counter() - timer:.3f}  "
                f"Data {data_time:.3f}  "
                f"top1 {100 * wrong[0] / count:7.3f} ({100 * sums[0] / seen:7.3f})  "
                f"top5 {100 * wrong[1] / count:7.3f} ({100 * sums[1] / seen:7.3f})"
            )
            timer = time.perf_counter()
        if not seen:
            raise InputError("no validation image could be read")
        top1, top5 = (100 * wrong / seen for wrong in sums)
        say(f" * Finished epoch # {epoch}     top1: {top1:7.3f}  top5: {top5:7.3f}\n")
        return top1, top5

    def state(self):
        """The optimizer as plain names and tensors: what optimState_N.pth holds."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if parameter in self.optimizer.state
        }
        return {"momentum": momentum, "scaler": self.scaler.state_dict()}

    def load_state(self, state):
        """Take over `state()`; a momentum buffer that does not fit its parameter is refused."""
        parameters = dict(self.model.named_parameters())
        for name, buffer in state["momentum"].items():
            if name not in parameters or parameters[name].shape != buffer.shape:
                raise InputError(f"the optimState does not belong to this net: {name} differs")
            parameter = parameters[name]
            buffer = buffer.to(parameter.device, parameter.dtype, copy=True)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def criterion():
    """Cross entropy, its mean over the batch (nn.CrossEntropyCriterion)."""
    return nn.CrossEntropyLoss()


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


def _diverged(loss, epoch, n, size):
    return (
        f"the loss is {loss} at epoch {epoch}, iteration {n} of {size}: try a lower -LR or another "
        "-precision; checkpoints of earlier epochs are intact"
    )

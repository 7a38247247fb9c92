"""Batch norm re-estimation (precise BN): running statistics as plain means over N batches.

The author of fb.resnet.torch advises this (its issue 43). In training, running statistics average
over about ten batches while the weights change; here they are taken with the final weights. Each
replica slice is normalised by its own statistics, as in training. The new running mean is the mean
of the slices' means, the new running variance that of their unbiased variances.
"""

import copy
import time

import torch
from torch import nn

from models.slices import set_slices
from parallel import group
from runtime.errors import InputError
from runtime.memory import out_of_memory
from runtime.terminal import say

ADVICE = "a smaller -batchSize or -precision bfloat16"  # when out of memory


def check_input(net, images, dataset):
    """InputError if a net needs other input than a dataset's training images."""
    given = images.input_spec()
    own = net.input_spec or given
    for name in ("largest", "mean", "std"):
        if name in given and given[name] != own[name]:
            raise InputError(
                f"-recomputeBN: this net needs input with {name} {own[name]}, but the "
                f"training images of {dataset} have {given[name]}"
            )


def recompute(model, loader, epoch, count, precision, interrupts):
    """Re-estimate over the first `count` training batches of an epoch.

    An interrupt leaves the model with its old statistics.
    """
    estimate, count = Estimate(model), min(count, loader.size())
    loaded = iter(loader.run(epoch, 0, count))

    def where(n):
        return f"in epoch {epoch} after batch {n} of {count} for -recomputeBN"

    timer = time.perf_counter()
    for n in range(1, count + 1):
        batch = interrupts.next(loaded, where(n - 1))
        data_time = time.perf_counter() - timer
        with out_of_memory(batch.input.shape, batch.input.device, ADVICE), precision.autocast():
            estimate.add(batch.input, batch.slices[group.rank()])
        received = group.all_reduce(torch.tensor(interrupts.received)).tolist()
        say(
            f" | Batch norm: [{epoch}][{n}/{count}]    "
            f"Time {time.perf_counter() - timer:.3f}  Data {data_time:.3f}"
        )
        interrupts.poll(received, where(n))
        timer = time.perf_counter()
    estimate.apply()


class Estimate:
    """Sums the statistics of slices. `apply` sets the model's running statistics to their means.

    Until then the model does not change, because an interrupt saves it. A slice of one image is
    left out, because training normalises it by the old running statistics. Frozen batch norms are
    left alone.
    """

    def __init__(self, model):
        self.model, self.copy = model, copy.deepcopy(model)
        set_slices(self.copy, None)
        modules = self.copy.named_modules()
        norms = {n: m for n, m in modules if isinstance(m, nn.BatchNorm2d) and m.training}
        norms = {name: norm for name, norm in norms.items() if norm.track_running_stats}
        if not norms:
            raise InputError("-recomputeBN: this net has no batch norm that is not frozen")
        for norm in norms.values():
            norm.momentum = 1.0  # the running statistics become those of the slice,
            norm.reset_running_stats()  # even if those before are not finite
        self.names = [f"{n}.{which}" for n in norms for which in ("running_mean", "running_var")]
        self.found = [self.copy.get_buffer(name) for name in self.names]
        self.sums = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in self.found]
        self.count = 0  # slices seen by this process

    @torch.no_grad()
    def add(self, input, sizes):
        """Add a batch (N, 3, H, W) of replica slices of these sizes."""
        for part, size in zip(input.split(sizes) if sizes else (), sizes):
            if size > 1:
                self.copy(part)
                torch._foreach_add_(self.sums, [buffer.double() for buffer in self.found])
                self.count += 1

    @torch.no_grad()
    def apply(self):
        """Set the running statistics, equal in all processes; every process must call this."""
        flat = torch.cat([*self.sums, self.sums[0].new_tensor([self.count])])
        *sums, count = group.all_reduce(flat).split([len(s) for s in self.sums] + [1])
        if not count:
            raise InputError("-recomputeBN: no replica has a slice of two images or more")
        for name, total in zip(self.names, sums):
            self.model.get_buffer(name).copy_(total / count)

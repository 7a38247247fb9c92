"""Batches that are ready on the device, in an order that depends on nothing but (seed, epoch).

Port of dataloader.lua. Differs from the Lua: the order and each image's augmentation are pure
functions of (manualSeed, epoch, index), so they do not depend on nThreads and continue after a
resume; batches always come in order; the validation images are not shuffled (their sum is the
same); a data set that is small enough stays on the device and is augmented there by the batch. Each
process loads its own replicas' slices of a batch; a test batch is cut evenly.
"""

import contextlib
import math
import multiprocessing
import signal
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch.utils import data

import datasets
from datasets import workers
from datasets.draws import permutation, table
from parallel import group, signals
from parallel.replicas import split, split_sizes
from runtime.errors import InputError
from runtime.precision import Precision
from runtime.terminal import say

# the published recipes ask for 8 workers on any machine; torch would lecture twice a run
warnings.filterwarnings("ignore", "This DataLoader will create")

LAYOUT = torch.channels_last  # as the model's (models/__init__.py)


def create(opt, device):
    """The loaders of both splits: (train, val)."""
    splits = group.rank_0_first(lambda: datasets.create(opt))
    return tuple(
        DataLoader(dataset, opt, split, device) for dataset, split in zip(splits, ("train", "val"))
    )


class Batch(NamedTuple):
    """One process's part of a batch, on its device.

    Where that part has no sample there is a target of none and an input of one black image, since
    a process without samples still takes part in exchanging gradients.
    """

    input: torch.Tensor  # (N, 3, H, W), with ten crops (10 N, 3, H, W)
    target: torch.Tensor  # (N,)
    slices: list  # for each process the sizes of its slices: the replicas', all together the batch
    odd: int = 0  # images of this process with damage to their file that left the pixels whole

    @property
    def count(self):
        """How many samples the batch has, over all processes."""
        return sum(map(sum, self.slices))


class DataLoader:
    """One split as batches."""

    def __init__(self, dataset, opt, split, device):
        self.dataset, self.opt, self.device = dataset, opt, device
        self.training = split == "train"
        self.crops = 10 if opt.tenCrop and not self.training else 1
        self.batch_size = max(1, opt.batchSize // self.crops)  # in images, not in crops
        self.dtype = Precision(opt.precision, device).dtype
        self.in_memory = hasattr(dataset, "augment")
        self.skipped = 0  # unreadable images left out so far (-skipCorrupt true)
        self.odd, self.named = [], set()  # sentences on odd files: to be named, named before
        if self.in_memory:
            self.images, self.labels = dataset.images.to(device), dataset.labels.to(device)
        else:
            self.jobs, self.processes, self.rooms = workers.Jobs(), [], {}
            # -nThreads is for the machine, as for the Lua's one process
            count = math.ceil(opt.nThreads / group.local_world_size())
            # of each worker its process and the image that it is at
            self.notes = torch.full((count, 2), -1).share_memory_()
            self.workers = data.DataLoader(
                workers.BatchReader(dataset, opt, self.notes),
                sampler=self.jobs,
                batch_size=None,  # a job is a whole batch
                num_workers=count,
                prefetch_factor=workers.AHEAD if count else None,
                pin_memory=device.type == "cuda",
                persistent_workers=opt.nThreads > 0,
                worker_init_fn=workers.shield,
            )

    def size(self):
        """Batches in an epoch, the short last one included."""
        return math.ceil(self.dataset.size() / self.batch_size)

    def run(self, epoch, start=0, stop=None):
        """Yield a Batch for each batch of the epoch, numbers `start` to `stop` as in a slice."""
        size = self.dataset.size()
        order = permutation(self.opt.manualSeed, epoch, size) if self.training else np.arange(size)
        batches = [order[i : i + self.batch_size] for i in range(0, size, self.batch_size)]
        dealt = [self._deal(indices) for indices in batches[start:stop]]
        return self._augmented(epoch, dealt) if self.in_memory else self._prepared(epoch, dealt)

    def _deal(self, indices):
        """This process's part of the indices, and every process's slices."""
        count = len(indices)
        if self.training:
            sizes = split_sizes(count, self.opt.nGPU)
            slices = [sizes[replicas] for replicas in split(self.opt.nGPU, group.world_size())]
        else:
            slices = [[s.stop - s.start] for s in split(count, group.world_size())]
        start = sum(map(sum, slices[: group.rank()]))
        return indices[start : start + sum(slices[group.rank()])], slices

    def _augmented(self, epoch, dealt):
        for indices, slices in dealt:
            places = self._sent(indices)
            target = self.labels[places]
            if not len(indices):
                yield Batch(self._black(), target, slices)
                continue
            uniforms = None
            if self.training:
                uniforms = table(self.opt.manualSeed, epoch, indices, self.dataset.draws)
                uniforms = self._sent(uniforms)
            images = self.images.index_select(0, places)  # on the CPU 5 times as fast as [places]
            input = self.dataset.augment(images, uniforms, self.dtype)
            yield Batch(input.contiguous(memory_format=LAYOUT), target, slices)

    def _sent(self, array):
        """An array on the device; from pinned memory a GPU fetches it when its turn comes."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _prepared(self, epoch, dealt):
        self.jobs.list = [(epoch, indices) for indices, _ in dealt]
        for (input, target, unreadable, odd), (_, slices) in zip(self._results(), dealt):
            for place, reason in unreadable:
                if place is None:
                    raise InputError(reason)
                if not self.opt.skipCorrupt:
                    raise InputError(f"{reason}; mend or remove it, or give -skipCorrupt true")
            if self.opt.skipCorrupt:
                slices = self._skip(unreadable, slices)
            input = self._received(input) if len(target) else self._black()
            self.odd += odd
            target = target.to(self.device, non_blocking=True)
            yield Batch(self._moved(input), target, slices, len(odd))
        self._name_odd()

    def _received(self, input):
        """A batch that a worker handed over; what has lain in its room stays mapped here.

        torch maps such memory anew unless it is still in use, and doing so page by page takes
        longer than a copy.
        """
        if not isinstance(input, workers.Room):
            return input
        self.rooms[input.shared.untyped_storage().data_ptr()] = input.shared
        return input.shared if input.pinned is None else input.pinned

    def _moved(self, input):
        """Images on the device in the run's type; in lists if the dataset has its own `stack`."""
        if isinstance(input, (list, tuple)):
            return [self._moved(part) for part in input]
        if input.dtype == torch.int64:
            return input.to(self.device, non_blocking=True)
        input = input.to(self.device, non_blocking=True)  # as it is: only that does not wait
        # a copy in any case: the worker will use this memory again
        return input.to(self.dtype, copy=True, memory_format=LAYOUT)

    def _results(self):
        """What the workers give for the jobs; one that dies is told with the image it was at."""
        try:
            with signals.blocked():  # the first time, this starts the workers
                results = iter(self.workers)
            self.processes = self.processes or multiprocessing.active_children()
            with contextlib.suppress(ValueError):  # not in the main thread
                # torch would raise its error wherever we are; now it does in next, within 5 s
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield from results
        except RuntimeError as error:
            ended = {p.pid: p.exitcode for p in self.processes if p.exitcode is not None}
            if "DataLoader worker" not in str(error) or not ended:
                raise
            raise InputError(self._death(ended)) from None

    def _death(self, ended):
        """A sentence on the workers that have ended, `ended` being process -> exit code."""
        images = [
            workers.named(self.dataset, index)
            for pid, index in self.notes.tolist()
            if pid in ended and index >= 0
        ]
        pid, code = next(iter(ended.items()))
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        hint = "perhaps for want of memory, fewer -nThreads need less"
        if how == "SIGBUS":
            hint = "perhaps shared memory is too small (/dev/shm; docker run --shm-size)"
        at = f"at {', '.join(images)}" if images else "between two batches"
        return f"a loading worker (process {pid}) was ended by {how} {at}: {hint}"

    def _skip(self, unreadable, slices):
        """Every process's slices without the images that could not be read, which are named."""
        left = []
        for sizes, missing in zip(slices, group.all_gather(unreadable)):
            ends = np.cumsum(sizes)
            sizes = list(sizes)
            for place, reason in missing:
                sizes[int(np.searchsorted(ends, place, "right"))] -= 1
                self.skipped += 1
                say(f" | skipped {reason} ({self.skipped} so far)")
            left.append([n for n in sizes if n])
        return left

    def _name_odd(self):
        """Name the files that were odd in this epoch, each once in a run."""
        for odd in group.all_gather(self.odd):
            for sentence in odd:
                if sentence not in self.named:
                    self.named.add(sentence)
                    say(f" | odd but whole: {sentence} ({len(self.named)} so far)")
        self.odd = []

    def _black(self):
        side = self.dataset.input_spec()["crop"]
        image = torch.zeros(self.crops, 3, side, side, dtype=self.dtype, device=self.device)
        return image.contiguous(memory_format=LAYOUT)

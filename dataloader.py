"""Batches that are ready on the device, in an order that depends only on (seed, epoch).

Port of dataloader.lua. Differs from the Lua:

- The order and each image's augmentation are pure functions of (manualSeed, epoch, index). They do
  not depend on nThreads, and they continue after a resume.
- Batches always come in order. Validation images are not shuffled, which would not change sums.
- A small dataset stays on the device and is augmented there, a batch at a time.
- Each rank loads the slices of its own replicas. A test batch is split evenly over the ranks.
"""

import contextlib
import math
import multiprocessing
import re
import signal
import sys
import traceback
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch.utils import data

import datasets
from datasets import workers
from datasets.draws import permutation, table
from parallel import group, signals
from runtime import process
from runtime.errors import InputError
from runtime.precision import Precision
from runtime.terminal import note

# the published recipes ask for 8 workers on any machine, and torch would warn twice per run
warnings.filterwarnings("ignore", "This DataLoader will create")

LAYOUT = torch.channels_last  # the model's too (models/__init__.py)


def create(opt, device):
    """The loaders, (train, val), or with -valShare or -fold (train, val, test): create_split."""
    train, *others = group.rank_0_first(lambda: datasets.create_split(opt))
    both = {"batch_size": opt.batchSize, **settings(opt, device)}
    crops = 10 if opt.tenCrop else 1
    loaders = [DataLoader(each, device, training=False, crops=crops, **both) for each in others]
    return DataLoader(train, device, training=True, **both), *loaders


def settings(opt, device):
    """The arguments that all DataLoaders of a run share."""
    return {
        "seed": opt.manualSeed,
        "replicas": opt.nGPU,
        "workers": opt.nThreads,
        "dtype": Precision(opt.precision, device).dtype,
        "skip_corrupt": opt.skipCorrupt,
    }


def fingerprints(loaders):
    """A number for each split that changes with its images, as far as the dataset can tell."""
    sets = [loader.dataset for loader in loaders]
    return [s.fingerprint() if hasattr(s, "fingerprint") else s.size() for s in sets]


class Batch(NamedTuple):
    """One rank's part of a batch, on its device.

    A rank without samples gets an empty target and one black image, because it still takes part in
    the exchange of gradients.
    """

    input: torch.Tensor  # (N, 3, H, W), with ten crops (10 N, 3, H, W)
    target: torch.Tensor  # (N,)
    slices: list  # for each rank, the sizes of its replica slices; all sum to the batch
    odd: int = 0  # this rank's images whose file is damaged, but whose pixels are intact

    @property
    def count(self):
        """The number of samples in the batch, over all ranks."""
        return sum(map(sum, self.slices))


class DataLoader:
    """Yields the batches of one split."""

    def __init__(
        self,
        dataset,
        device,
        *,
        training,
        batch_size,
        seed=0,
        replicas=1,
        workers=0,
        dtype=torch.float32,
        crops=1,
        skip_corrupt=False,
    ):
        """training: shuffle, and cut each batch into `replicas` slices.

        batch_size: in crops; each image has `crops`. workers: on this machine, as -nThreads.
        skip_corrupt: leave out images that cannot be read; otherwise they are an error.
        """
        self.dataset, self.device, self.training = dataset, device, training
        self.seed, self.replicas, self.dtype = seed, replicas, dtype
        self.crops, self.skip_corrupt, self.threads = crops, skip_corrupt, workers
        self.batch_size = max(1, batch_size // crops)  # in images, not in crops
        is_known = getattr(dataset, "knows_transform", True)
        self.in_memory = is_known and hasattr(dataset, "augment")
        if not is_known:
            kind = f"this {'training' if training else 'test'} transform"
            note(f"=> {kind} has no fast path, so it runs as written, image by image")
        # on a GPU, a stream of its own copies the next batch while the current iteration runs
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.skipped = 0  # unreadable images left out so far (-skipCorrupt true)
        self.advised = None  # the advice on -nThreads, once printed
        self.odd = []  # this epoch's sentences on damaged files
        self.named = set()  # those that were printed
        if self.in_memory:
            self.images, self.labels = dataset.images.to(device), dataset.labels.to(device)
        else:
            self._plan_workers()

    def _plan_workers(self):
        """Everything but the worker processes, which the first epoch starts."""
        self.requests = []  # (epoch, indices) of each batch to load
        self.processes, self.mapped = [], {}
        # -nThreads counts workers per machine, as in the Lua, which had one process
        count = math.ceil(self.threads / group.local_world_size())
        # for each worker: its process id, and the index of the image that it is reading, or -1
        with workers.passing():
            self.current = torch.full((count, 2), -1).share_memory_()
        self.workers = data.DataLoader(
            workers.BatchReader(self.dataset, self.seed, self.current),
            sampler=self.requests,
            batch_size=None,  # a request is a whole batch
            num_workers=count,
            prefetch_factor=workers.PREFETCH if count else None,
            pin_memory=self.device.type == "cuda",
            persistent_workers=count > 0,
            worker_init_fn=workers.init_worker,
        )

    def size(self):
        """The number of batches in an epoch; the last one may be smaller."""
        return math.ceil(self.dataset.size() / self.batch_size)

    def run(self, epoch, start=0, stop=None):
        """Yield the epoch's batches [start:stop], each as a Batch."""
        size = self.dataset.size()
        order = permutation(self.seed, epoch, size) if self.training else np.arange(size)
        batches = [order[i : i + self.batch_size] for i in range(0, size, self.batch_size)]
        shards = [self._shard(indices) for indices in batches[start:stop]]
        load = self._from_memory if self.in_memory else self._from_workers
        return load(epoch, shards)

    def _shard(self, indices):
        """This rank's part of a batch's indices, and every rank's slice sizes."""
        count = len(indices)
        if self.training:
            sizes = group.split_sizes(count, self.replicas)
            slices = [sizes[part] for part in group.split(self.replicas, group.world_size())]
        else:
            slices = [[s.stop - s.start] for s in group.split(count, group.world_size())]
        start = sum(map(sum, slices[: group.rank()]))
        return indices[start : start + sum(slices[group.rank()])], slices

    def _from_memory(self, epoch, shards):
        """Batches of a dataset that is on the device."""
        for indices, slices in shards:
            on_device = self._array_to_device(indices)
            target = self.labels[on_device]
            if not len(indices):
                yield Batch(self._placeholder(), target, slices)
                continue
            uniforms = None
            if self.training:
                uniforms = table(self.seed, epoch, indices, self.dataset.draws)
                uniforms = self._array_to_device(uniforms)
            # on the CPU 5 times as fast as self.images[on_device]
            images = self.images.index_select(0, on_device)
            input = self.dataset.augment(images, uniforms, self.dtype)
            yield Batch(input.contiguous(memory_format=LAYOUT), target, slices)

    def _array_to_device(self, array):
        """The array as a tensor on the device; pinned memory makes the copy asynchronous."""
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return self._copy_to_device(tensor)

    def _copy_to_device(self, tensor):
        """A plain copy, without converting: only that is asynchronous."""
        if self.stream is None:
            return tensor.to(self.device)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copied = tensor.to(self.device, non_blocking=True)
        current.wait_stream(self.stream)
        copied.record_stream(current)
        return copied

    def _from_workers(self, epoch, shards):
        """Batches of a dataset that the workers read image by image."""
        self.requests[:] = [(epoch, indices) for indices, _ in shards]
        for (input, target, unreadable, odd), (_, slices) in zip(self._worker_results(), shards):
            for place, reason in unreadable:
                if place is None:
                    raise InputError(reason)
                if not self.skip_corrupt:
                    raise InputError(f"{reason}; repair or remove it, or give -skipCorrupt true")
            if self.skip_corrupt:
                slices = self._skip(unreadable, slices)
            self.odd += odd
            input = self._keep_mapped(input) if len(target) else self._placeholder()
            target = self._array_to_device(target)
            yield Batch(self._to_device(input), target, slices, len(odd))
        self._report_odd()

    def _keep_mapped(self, input):
        """A worker's batch. Its shared buffer stays mapped in this process.

        Otherwise torch maps the buffer again for each batch, and the page faults take longer than a
        copy.
        """
        if not isinstance(input, workers.SharedBatch):
            return input
        if input.form is None:
            self.mapped[input.shared.untyped_storage().data_ptr()] = input.shared
        return input.tensors()

    def _to_device(self, input):
        """Images, or lists of them from a dataset's `stack`, on the device, in the run's dtype."""
        if isinstance(input, list):
            return workers.nested(input, self._to_device)
        if input.dtype == torch.int64:
            return self._copy_to_device(input)
        input = self._copy_to_device(input)
        # always a copy, because the worker reuses its buffer
        return input.to(self.dtype, copy=True, memory_format=LAYOUT)

    def _worker_results(self):
        """The workers' results in order. InputError if a worker dies, naming the image it read."""
        try:
            # New workers inherit the signal mask. Later, idle workers may not answer, and then a
            # signal must get through.
            blocked = contextlib.nullcontext() if self.processes else signals.blocked()
            with blocked, workers.passing():
                results = self._started()
            self.processes = self.processes or multiprocessing.active_children()
            with contextlib.suppress(ValueError, AttributeError):  # in another thread, on Windows
                # torch's handler would raise anywhere in the main thread; without it, `next` raises
                # within 5 s
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with workers.passing():
                yield from results
        except RuntimeError as error:
            ended = {p.pid: p.exitcode for p in self.processes if p.exitcode is not None}
            # on CUDA, the thread that pins memory may be the first to notice
            if not re.search("DataLoader worker|Pin memory thread", str(error)) or not ended:
                raise
            raise InputError(self._death_message(ended)) from None

    def _started(self):
        """torch's iterator over the workers' results; the first call starts the workers."""
        try:
            return iter(self.workers)
        except (OSError, RuntimeError) as error:
            # drop the half-built iterator here and silence the traceback of its __del__
            before, sys.unraisablehook = sys.unraisablehook, lambda _: None
            try:
                traceback.clear_frames(error.__traceback__)
            finally:
                sys.unraisablehook = before
            raise

    def _death_message(self, ended):
        """One sentence about the workers that died; ended: {process id: exit code}."""
        read = [index for pid, index in self.current.tolist() if pid in ended and index >= 0]
        images = ", ".join(workers.image_name(self.dataset, index) for index in read)
        pid, code = next(iter(ended.items()))
        name = signal.Signals(-code).name if code < 0 else None
        how = f"was killed by {name}" if name else f"exited with status {code}"
        hint = "perhaps out of memory; if so, lower -nThreads"
        if name == "SIGBUS":
            hint = "perhaps shared memory is too small (/dev/shm; docker run --shm-size)"
        when = f"while reading {images}" if images else "between two batches"
        return f"a loading worker (process {pid}) {how} {when}: {hint}"

    def _skip(self, unreadable, slices):
        """Every rank's slice sizes without the unreadable images; prints a line for each image."""
        # one number first, because gathering objects is slow with many processes
        if group.world_size() > 1 and not group.all_reduce(torch.tensor(len(unreadable))):
            return slices
        left = []
        for sizes, missing in zip(slices, group.all_gather(unreadable)):
            ends = np.cumsum(sizes)
            sizes = list(sizes)
            for place, reason in missing:
                sizes[int(np.searchsorted(ends, place, "right"))] -= 1
                self.skipped += 1
                note(f" | skipped {reason} ({self.skipped} so far)")
            left.append([n for n in sizes if n])
        return left

    def _report_odd(self):
        """Print a line for each damaged file of this epoch that no line has named yet."""
        for sentences in group.all_gather(self.odd):
            for sentence in sentences:
                if sentence not in self.named:
                    self.named.add(sentence)
                    count = f"({len(self.named)} so far)"
                    note(f" | damaged, but all pixels are intact: {sentence} {count}")
        self.odd = []

    def report_wait(self, epoch, seconds, waited):
        """Once in a run, print a line if the epoch waited for data and more workers would help."""
        if self.in_memory or self.advised:
            return
        idle = process.cores() - self.threads - group.local_world_size()
        self.advised = workers.advice(epoch, self.threads, idle, seconds, waited)
        if self.advised:
            note(self.advised)

    def _placeholder(self):
        """The input of a rank without samples: one black image."""
        side = (self.dataset.input_spec() or {"crop": 224})["crop"]  # any size will do
        image = torch.zeros(self.crops, 3, side, side, dtype=self.dtype, device=self.device)
        return image.contiguous(memory_format=LAYOUT)

"""What the loading workers of dataloader.py run: read and transform the images of one batch.

Replaces the threads of dataloader.lua.
"""

import math
import multiprocessing
import os

import numpy as np
import torch
from torch.utils import data

from datasets.draws import Draws
from datasets.sharing import Result, SharedBatch, check_open_files, failed, passing
from parallel import launch, signals
from runtime.errors import InputError, named

PREFETCH = 2  # batches that each worker loads in advance
# `advice` speaks if an epoch spent at least this share of its time waiting for data, and took at
# least so many seconds: a shorter one mostly waits for its workers to start.
WAITS, LASTS = 0.2, 60


class BatchReader(data.Dataset):
    """A dataset for torch's DataLoader: its items are batches, (input, target, unreadable, odd).

    `unreadable` has (place in the batch, reason) for each image that could not be read. An
    exception would arrive wrapped in the worker's traceback, and only the main process prints, and
    decides whether to stop. A place of None means that the worker cannot go on. `odd` has a
    sentence for each image whose file is damaged although its pixels are intact.

    `current`: a shared int64 tensor (workers, 2), see dataloader.py.
    """

    def __init__(self, dataset, seed, current):
        self.dataset, self.seed = dataset, seed
        self.current, self.own_current = current, None
        self.load = None
        self.buffers, self.slot = [torch.empty(0)] * (PREFETCH + 1), 0
        fast_path(dataset)  # compiles the kernels once, before the workers are forked

    def __getitem__(self, batch):
        in_worker = data.get_worker_info() is not None
        try:
            if in_worker and self.load is None:
                check_open_files()
            result = self._read(batch, in_worker)
            return Result(result) if in_worker else result
        except InputError as error:  # memory cannot be shared
            return failed(str(error))

    def _read(self, batch, in_worker):
        """The item, with its images in shared memory if another process will get them."""
        epoch, indices = batch
        # made in the worker, so that transforms need not be picklable
        self.load = self.load or fast_path(self.dataset)
        stack = getattr(self.dataset, "stack", None)
        input, images, targets, unreadable = None, [], [], []
        for place, index in enumerate(indices):
            self._set_current(index)
            out = None if input is None else input[len(targets)].numpy()
            try:
                image, target = self.load(index, Draws(self.seed, epoch, int(index)), out)
            except InputError as error:
                unreadable.append((place, str(named(error, image_name(self.dataset, index)))))
                continue
            except MemoryError:
                reason = f"out of memory at {image_name(self.dataset, index)}; lower -nThreads"
                return failed(reason)
            if stack:
                images.append(image)
            elif image is not out:
                if input is None:
                    input = self._buffer(len(indices), image.shape)
                if image.shape != input.shape[1:]:
                    shapes = f"{tuple(input.shape[1:])} and {tuple(image.shape)}"
                    return failed(f"the transform gives images of different shapes: {shapes}")
                # a user's own transform may give any strides or dtype
                np.copyto(input[len(targets)].numpy(), image)
            targets.append(target)
        self._set_current(-1)
        if images:
            input = stack(images)
            input = SharedBatch.of(input) if in_worker else input
        elif input is not None:
            input = input[: len(targets)]
            if input.dim() == 5:  # (N, 10, 3, H, W) -> (10 N, 3, H, W)
                input = input.flatten(0, 1)
            input = SharedBatch(input) if in_worker else input
        odd = getattr(self.dataset, "odd", [])
        found = list(odd)
        odd.clear()
        return input, np.array(targets, np.int64), unreadable, found

    def _buffer(self, count, shape):
        """A tensor (count, *shape); in a worker, one of PREFETCH + 1 shared buffers in turn.

        Buffers are reused because fresh pages cost as much as a copy. PREFETCH + 1 are enough: a
        worker is at most PREFETCH batches ahead, and the main process copies at most one more,
        after all earlier ones.
        """
        if data.get_worker_info() is None:
            return torch.empty(count, *shape)
        self.slot = (self.slot + 1) % len(self.buffers)
        buffer = self.buffers[self.slot]
        if buffer.shape[1:] != shape or len(buffer) < count:
            with passing():
                buffer = self.buffers[self.slot] = torch.empty(count, *shape).share_memory_()
        return buffer[:count]

    def _set_current(self, index):
        """Record which image this worker reads, so that the main process can name it if it dies."""
        if self.own_current is None:
            worker = data.get_worker_info()
            # a numpy view: setting an element through torch takes 40 us
            self.own_current = np.empty(2) if worker is None else self.current[worker.id].numpy()
            self.own_current[0] = os.getpid()
        self.own_current[1] = index


def fast_path(dataset):
    """The dataset's fast path, or get and transform: (i, draws, out) -> image, target."""
    if hasattr(dataset, "fast_path"):
        return dataset.fast_path()
    transform = dataset.transform()

    def load(i, draws, out=None):
        image, target = dataset.get(i)
        return transform(image, draws), target

    return load


def image_name(dataset, index):
    """What messages call an image: the dataset's name for it (mostly its file), or its index."""
    return dataset.name(index) if hasattr(dataset, "name") else f"image {index}"


def advice(epoch, count, idle, seconds, waited):
    """A line about an epoch that waited for data while cores were idle: what more workers would do.

    count: -nThreads; idle: cores without work; seconds: the epoch's length; waited: the seconds
    spent waiting for data. None if the epoch waited little, or no core is idle. This assumes that
    workers never rest while the epoch waits, and that each new one is as fast.
    """
    if idle < 1 or seconds < LASTS or waited < WAITS * seconds:
        return None
    work = count * seconds if count else waited  # without workers, waiting is reading
    steps = seconds - waited
    threads = min(max(count + 1, math.ceil(work / steps)), count + idle)
    return (
        f"=> epoch {epoch} waited for data {100 * waited / seconds:.0f} % of its {seconds:.0f} s, "
        f"and {idle} cores are idle: with -nThreads {threads} it would take about "
        f"{max(steps, work / threads):.0f} s"
    )


def init_worker(_):
    """Make a worker ignore signals and end with its main process.

    Schedulers signal the whole process group, but only the main process decides when to stop.
    """
    main = multiprocessing.parent_process().pid
    server = multiprocessing.get_start_method() == "forkserver"  # the parent is the server then
    launch.die_with_parent(os.getppid() if server else main)
    signals.obey(main)

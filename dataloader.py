"""Batches that are ready on the device, in an order that depends on nothing but (seed, epoch).

Port of dataloader.lua. Differs from the Lua: the order and each image's augmentation are pure
functions of (manualSeed, epoch, index), so they do not depend on nThreads and continue after a
resume; batches always come in order; the validation images are not shuffled (their sum is the
same); a data set that is small enough stays on the device and is augmented there by the batch.
"""

import math
import signal
import warnings

import numpy as np
import torch
from torch.utils import data

import datasets
from datasets.draws import Draws, permutation, table
from distributed import say
from errors import InputError

# the published recipes ask for 8 workers on any machine; torch would lecture twice a run
warnings.filterwarnings("ignore", "This DataLoader will create")

LAYOUT = torch.channels_last  # as the model's (models/__init__.py)


def create(opt, device):
    """The loaders of both splits: (train, val)."""
    splits = datasets.create(opt)
    return tuple(
        DataLoader(dataset, opt, split, device) for dataset, split in zip(splits, ("train", "val"))
    )


class DataLoader:
    """One split as batches: input (N, 3, H, W), with ten crops (10 N, 3, H, W); target (N,)."""

    def __init__(self, dataset, opt, split, device):
        self.dataset, self.opt, self.device = dataset, opt, device
        self.training = split == "train"
        self.crops = 10 if opt.tenCrop and not self.training else 1
        self.batch_size = max(1, opt.batchSize // self.crops)  # in images, not in crops
        self.dtype = torch.float64 if opt.precision == "double" else torch.float32
        self.in_memory = hasattr(dataset, "augment")
        self.skipped = 0  # unreadable images left out so far (-skipCorrupt true)
        if self.in_memory:
            self.images, self.labels = dataset.images.to(device), dataset.labels.to(device)
        else:
            self.jobs = _Jobs()
            self.workers = data.DataLoader(
                _Preparation(dataset, opt),
                sampler=self.jobs,
                batch_size=None,  # a job is a whole batch
                num_workers=opt.nThreads,
                pin_memory=device.type == "cuda",
                persistent_workers=opt.nThreads > 0,
                worker_init_fn=_ignore_interrupt,
            )

    def size(self):
        """Batches in an epoch, the short last one included."""
        return math.ceil(self.dataset.size() / self.batch_size)

    def run(self, epoch, start=0):
        """Yield (input, target) on the device, from batch number `start` (from 0) of the epoch."""
        size = self.dataset.size()
        order = permutation(self.opt.manualSeed, epoch, size) if self.training else np.arange(size)
        batches = [order[i : i + self.batch_size] for i in range(0, size, self.batch_size)][start:]
        return self._augmented(epoch, batches) if self.in_memory else self._prepared(epoch, batches)

    def _augmented(self, epoch, batches):
        for indices in batches:
            uniforms = None
            if self.training:
                uniforms = table(self.opt.manualSeed, epoch, indices, self.dataset.draws)
                uniforms = torch.from_numpy(uniforms).to(self.device)
            indices = torch.from_numpy(indices).to(self.device)
            input = self.dataset.augment(self.images[indices], uniforms, self.dtype)
            yield input.contiguous(memory_format=LAYOUT), self.labels[indices]

    def _prepared(self, epoch, batches):
        self.jobs.list = [(epoch, indices) for indices in batches]
        for input, target, unreadable in self.workers:
            for reason in unreadable:
                if not self.opt.skipCorrupt:
                    raise InputError(f"{reason}; mend or remove it, or give -skipCorrupt true")
                self.skipped += 1
                say(f" | skipped {reason} ({self.skipped} so far)")
            if len(target):
                yield (
                    input.to(self.device, self.dtype, non_blocking=True, memory_format=LAYOUT),
                    target.to(self.device, non_blocking=True),
                )


class _Jobs(data.Sampler):
    """What the workers are to do in this epoch: (epoch, indices) of each batch."""

    list = ()

    def __iter__(self):
        return iter(self.list)

    def __len__(self):
        return len(self.list)


class _Preparation(data.Dataset):
    """A worker's part: read and transform the images of one job.

    An unreadable image is handed to the main process as a sentence: an exception would come out
    wrapped in the worker's traceback, and only the main process may decide and speak.
    """

    def __init__(self, dataset, opt):
        self.dataset, self.seed = dataset, opt.manualSeed
        self.preprocess = None

    def __getitem__(self, job):
        epoch, indices = job
        # made here, in the worker: transforms need not survive pickling
        self.preprocess = self.preprocess or self.dataset.preprocess()
        images, targets, unreadable = [], [], []
        for index in indices:
            try:
                image, target = self.dataset.get(index)
            except InputError as error:
                unreadable.append(str(error))
                continue
            images.append(self.preprocess(image, Draws(self.seed, epoch, int(index))))
            targets.append(target)
        input = torch.from_numpy(np.stack(images)) if images else torch.empty(0)
        if input.dim() == 5:  # (N, 10, 3, H, W): the crops of an image follow one another
            input = input.flatten(0, 1)
        return input, torch.tensor(targets, dtype=torch.int64), unreadable


def _ignore_interrupt(_):
    """Ctrl-C reaches the whole group; the main process ends the workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

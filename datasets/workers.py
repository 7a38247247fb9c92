"""The loading workers' part of dataloader.py: images of a job, read and transformed into a batch.

Takes the place of the threads of dataloader.lua.
"""

import os

import numpy as np
import torch
from torch.utils import data

from datasets.draws import Draws
from parallel import launch, signals
from runtime.errors import InputError

AHEAD = 2  # batches that each worker prepares in advance


class Jobs(data.Sampler):
    """What the workers are to do in this epoch: (epoch, indices) of each batch."""

    list = ()

    def __iter__(self):
        return iter(self.list)

    def __len__(self):
        return len(self.list)


class Room:
    """A batch in memory that its worker will use again, and its copy on the way to a GPU."""

    def __init__(self, shared):
        self.shared, self.pinned = shared, None

    def pin_memory(self):
        """For torch's loader, whose thread calls this if it was asked for pinned memory."""
        self.pinned = self.shared.pin_memory()
        return self


class BatchReader(data.Dataset):
    """A worker's part: read and transform the images of one job.

    An unreadable image is handed to the main process as a sentence: an exception would come out
    wrapped in the worker's traceback, and only the main process may decide and speak.
    """

    def __init__(self, dataset, opt, notes):
        self.dataset, self.seed, self.notes, self.note = dataset, opt.manualSeed, notes, None
        self.stack = getattr(dataset, "stack", None)
        self.load = None
        self.rooms, self.turn = [torch.empty(0)] * (AHEAD + 1), 0
        fast_path(dataset)  # compiles what it needs: once, before the workers are forked

    def __getitem__(self, job):
        epoch, indices = job
        # made here, in the worker: transforms need not survive pickling
        self.load = self.load or fast_path(self.dataset)
        input, images, targets, faults = None, [], [], []
        for place, index in enumerate(indices):
            self._note(index)
            out = None if input is None else input[len(targets)].numpy()
            try:
                image, target = self.load(index, Draws(self.seed, epoch, int(index)), out)
            except InputError as error:
                faults.append((place, str(error)))
                continue
            except MemoryError:
                reason = f"out of memory at {named(self.dataset, index)}; fewer -nThreads help"
                return torch.empty(0), torch.empty(0), [(None, reason)], []
            if self.stack:
                images.append(image)
            elif image is not out:
                input = self._room(len(indices), image.shape) if input is None else input
                input[len(targets)] = torch.from_numpy(image)
            targets.append(target)
        self._note(-1)
        if self.stack:
            input = self.stack(images) if images else torch.empty(0)
        else:
            input = torch.empty(0) if input is None else input[: len(targets)]
            if input.dim() == 5:  # (N, 10, 3, H, W): the crops of an image follow one another
                input = input.flatten(0, 1)
            input = Room(input) if input.is_shared() else input
        return input, torch.tensor(targets, dtype=torch.int64), faults, self._odd()

    def _odd(self):
        """Sentences on images of this job that are odd but whole."""
        odd = list(getattr(self.dataset, "odd", ()))
        if odd:
            self.dataset.odd.clear()
        return odd

    def _room(self, count, shape):
        """Memory for so many images: shared, and used again, since fresh pages cost as a copy does.

        A worker has AHEAD batches in hand; when it begins another one, the main process is at most
        at work on one more, and has copied all before.
        """
        if data.get_worker_info() is None:
            return torch.empty(count, *shape)
        self.turn = (self.turn + 1) % len(self.rooms)
        room = self.rooms[self.turn]
        if room.shape[1:] != shape or len(room) < count:
            room = self.rooms[self.turn] = torch.empty(count, *shape).share_memory_()
        return room[:count]

    def _note(self, index):
        """Where this worker is, should it be the last thing it does."""
        if self.note is None:
            worker = data.get_worker_info()
            # a numpy array, for torch takes 40 us to set an element
            self.note = np.empty(2) if worker is None else self.notes[worker.id].numpy()
            self.note[0] = os.getpid()
        self.note[1] = index


def fast_path(dataset):
    """A function (i, draws, out) that gives an image and its target (datasets/README.md)."""
    if hasattr(dataset, "fast_path"):
        return dataset.fast_path()
    transform = dataset.transform()

    def load(i, draws, out=None):
        image, target = dataset.get(i)
        return transform(image, draws), target

    return load


def named(dataset, index):
    """An image as its dataset calls it, a file mostly, else by its number."""
    return dataset.name(index) if hasattr(dataset, "name") else f"image {index}"


def shield(_):
    """A worker ends with its process, and only then: schedulers signal the whole group."""
    signals.obey_parent()
    launch.die_with_parent()

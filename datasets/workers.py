"""What the loading workers of dataloader.py run: read the images of a batch and pass it on.

Replaces the threads of dataloader.lua. Batches are passed on in shared memory, whose file goes over
a socket. torch's DataLoader pickles a worker's results in a thread, where an error would be lost
and the main process would wait for ever. Result pickles them earlier, in the code that reads the
batch.
"""

import contextlib
import errno
import math
import multiprocessing
import os
import pickle
import re
import tempfile
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from torch.utils import data

from datasets.draws import Draws
from parallel import launch, signals
from runtime.errors import InputError, named
from runtime.memory import lacking

PREFETCH = 2  # batches that each worker loads in advance
# `advice` gives a line if an epoch waited for data for more than this share of its time, and so
# many seconds more, which workers may take to start.
WAITS, STARTS = 0.2, 5
# Longest path of the folder for sockets; a socket's path may have 103 bytes on macOS, 107 on Linux
_LONGEST = 103 - len("/pymp-12345678/listener-12345678")
_SENTENCES = {
    errno.ENOSPC: "no shared memory is left for the loading workers' batches (/dev/shm; docker run "
    "--shm-size): free some, or lower -nThreads",
    errno.EFBIG: "a batch of the loading workers is larger than the largest file allowed here: "
    "raise `ulimit -f`, or lower -batchSize",
}


class BatchReader(data.Dataset):
    """A dataset for torch's DataLoader: its items are batches, (input, target, unreadable, odd).

    `unreadable` has (place in the batch, reason) for each image that could not be read. An
    exception would arrive wrapped in the worker's traceback, and only the main process prints, and
    decides whether to stop. A place of None means that the worker cannot go on. `odd` has a
    sentence for each image whose file is damaged although its pixels are intact.

    `current`: a shared int64 tensor (workers, 2), see dataloader.py.
    """

    def __init__(self, dataset, seed, current):
        self.dataset, self.seed, self.current, self.load = dataset, seed, current, None
        self.buffers, self.slot = [torch.empty(0)] * (PREFETCH + 1), 0
        fast_path(dataset)  # compiles the kernels once, before the workers are forked

    def __getitem__(self, batch):
        try:
            if self.load is None:
                self._begin()
            result = self._read(*batch)
            return Result(result) if self.in_worker else result
        except InputError as error:  # memory cannot be shared
            return failed(str(error))

    def _begin(self):
        """Make what need not be picklable, such as transforms, in the process that reads."""
        worker = data.get_worker_info()
        self.in_worker = worker is not None
        if self.in_worker:
            check_open_files()
        # a numpy view: setting an element through torch takes 40 us
        self.own_current = self.current[worker.id].numpy() if self.in_worker else np.empty(2)
        self.own_current[0] = os.getpid()
        self.load = fast_path(self.dataset)

    def _read(self, epoch, indices):
        """The item, with its images in shared memory if another process will get them."""
        stack = getattr(self.dataset, "stack", None)
        input, images, targets, unreadable = None, [], [], []
        for place, index in enumerate(indices):
            self.own_current[1] = index  # the main process names it if this worker dies
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
        self.own_current[1] = -1
        if images:
            input = stack(images)
            input = SharedBatch.of(input) if self.in_worker else input
        elif input is not None:
            input = input[: len(targets)]
            if input.dim() == 5:  # (N, 10, 3, H, W) -> (10 N, 3, H, W)
                input = input.flatten(0, 1)
            input = SharedBatch(input) if self.in_worker else input
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
        if not self.in_worker:
            return torch.empty(count, *shape)
        self.slot = (self.slot + 1) % len(self.buffers)
        buffer = self.buffers[self.slot]
        if buffer.shape[1:] != shape or len(buffer) < count:
            with passing():
                buffer = self.buffers[self.slot] = torch.empty(count, *shape).share_memory_()
        return buffer[:count]


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

    count: -nThreads; idle: cores without work; seconds: the epoch's length so far; waited: the
    seconds spent waiting for data. None if the epoch waited little, or no core is idle. This
    assumes that workers never rest while the epoch waits, and that each new one is as fast.
    """
    if idle < 1 or waited < WAITS * seconds + STARTS:
        return None
    work = count * seconds if count else waited  # without workers, waiting is reading
    steps = seconds - waited
    threads = min(max(count + 1, math.ceil(work / steps)), count + idle)
    return (
        f"=> epoch {epoch} waited for data for {100 * waited / seconds:.0f} % of {seconds:.0f} s, "
        f"and {idle} cores are idle: -nThreads {threads} would make that about "
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


@contextlib.contextmanager
def passing():
    """Turn errors in starting workers, or in sharing memory with them, into InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said, sentence = str(error), lacking(error)
        if sentence:
            raise InputError(sentence) from None
        # torch's errors about shared memory have no errno, nor does that about a long socket path
        if not getattr(error, "errno", None) and not re.search("</torch_|^AF_UNIX path", said):
            raise
        for number, sentence in _SENTENCES.items():
            if os.strerror(number) in said and not getattr(error, "filename", None):
                raise InputError(sentence) from None
        raise InputError(
            f"the loading workers cannot pass on their batches ({said}): they need /dev/shm and a "
            "folder for sockets (TMPDIR); to read without workers, give -nThreads 0"
        ) from None


def check_open_files():
    """InputError unless a worker can open its buffers and sockets: at most 24 files.

    The multiprocessing thread that hands over a buffer's file would retry for ever if it could not.
    """
    with passing(), contextlib.ExitStack() as stack:
        for _ in range(12):
            for file in os.pipe():
                stack.callback(os.close, file)


class Result:
    """A worker's result, pickled at once; it arrives in the main process as the result itself."""

    def __init__(self, result):
        with passing():
            if len(os.fsencode(tempfile.gettempdir())) > _LONGEST:
                tempfile.tempdir = "/tmp"
            self.pickled = bytes(ForkingPickler.dumps(result))

    def __reduce__(self):
        return _opened, (self.pickled,)


def _opened(pickled):
    """Runs in the main process, mostly in a thread that an error would end."""
    try:
        return pickle.loads(pickled)
    except (OSError, RuntimeError) as error:
        sentence = lacking(error)
        if not sentence:  # perhaps a worker died, which dataloader.py finds out
            raise
        return failed(sentence)


def failed(reason):
    """What BatchReader returns in a worker that cannot go on."""
    return None, np.empty(0, np.int64), [(None, reason)], []


class SharedBatch:
    """A batch in a shared buffer, and its pinned copy for a GPU.

    `form`: None if the batch is one tensor, whose buffer the worker will reuse. Otherwise the
    nested lists that a dataset's `stack` gave, with (start, end, dtype, shape, stride) for each
    tensor; start and end are in bytes.
    """

    def __init__(self, shared, form=None):
        self.shared, self.form, self.pinned = shared, form, None

    @classmethod
    def of(cls, parts):
        """Put nested lists of tensors in one buffer: each takes an open file in both processes."""
        tensors, ends = [], [0]

        def placed(tensor):
            tensors.append(tensor)
            start = ends[-1]
            ends.append(start + -(-tensor.nbytes // 64) * 64)
            # the tensor's own stride if it has no gaps
            stride = torch.empty_like(tensor, device="meta").stride()
            return start, start + tensor.nbytes, tensor.dtype, tensor.shape, stride

        form = nested(parts, placed)
        with passing():
            batch = cls(torch.empty(ends[-1], dtype=torch.uint8).share_memory_(), form)
        places = []
        nested(batch.tensors(), places.append)
        for place, tensor in zip(places, tensors):
            place.copy_(tensor)
        return batch

    def pin_memory(self):
        """torch's DataLoader calls this in its thread if its pin_memory is set."""
        self.pinned = self.shared.pin_memory()
        return self

    def tensors(self):
        """The tensor, or nested lists of tensors."""
        memory = self.shared if self.pinned is None else self.pinned
        if self.form is None:
            return memory

        def part(place):
            start, end, dtype, shape, stride = place
            return memory[start:end].view(dtype).as_strided(shape, stride)

        return nested(self.form, part)


def nested(parts, function):
    """The same nested lists, with function(part) for each part that is not a list."""
    if isinstance(parts, list):
        return [nested(part, function) for part in parts]
    return function(parts)

"""How the loading workers pass their batches on: in shared memory, whose file goes over a socket.

torch's DataLoader pickles a worker's results in a thread, where an error would be lost and the main
process would wait for ever. Result pickles them earlier, in the code that reads the batch.
"""

import contextlib
import errno
import os
import pickle
import re
import tempfile
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch

from runtime.errors import InputError
from runtime.memory import lacking

# Longest path of the folder for sockets; a socket's path may have 103 bytes on macOS, 107 on Linux
_LONGEST = 103 - len("/pymp-12345678/listener-12345678")
_SENTENCES = {
    errno.ENOSPC: "no shared memory is left for the loading workers' batches (/dev/shm; docker run "
    "--shm-size): free some, or lower -nThreads",
    errno.EFBIG: "a batch of the loading workers is larger than the largest file allowed here: "
    "raise `ulimit -f`, or lower -batchSize",
}


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

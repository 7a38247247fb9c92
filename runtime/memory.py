"""Memory: the heap of a training process, and out-of-memory errors in one sentence."""

import contextlib
import ctypes
import re
import sys

from runtime.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed():
    """Freed memory stays in the heap for the next step, instead of going back to Linux.

    glibc asks the system for every block over 32 MiB, and gives it back when it is freed. The
    system hands out pages one by one, cleared: with maps that large, a third of a step's time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def out_of_memory(shape, device, advice):
    """Make an out-of-memory error one sentence: how much, where, for which input, what helps."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU has none of its own
        needed = re.search(r"[Tt]ried to allocate (\d[\d.]* \w+)", str(error))
        if not needed:
            raise
        shape = " x ".join(map(str, shape))
        raise InputError(
            f"out of memory on {_where(device)}: {needed[1]} more were needed for an input of "
            f"{shape}; give {advice}"
        ) from None


def _where(device):
    if device.type != "cuda":
        return "the CPU"
    import torch

    free, total = (f"{n / 2**30:.1f} GiB" for n in torch.cuda.mem_get_info(device))
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return f"{device} ({free} of {total} free, the run used up to {peak})"

"""The heap of a training process, and out-of-memory errors in one sentence."""

import contextlib
import ctypes
import re
import sys

from runtime.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed():
    """Let freed memory stay in the heap for the next step.

    By default glibc maps every block over 32 MiB on its own and unmaps it when it is freed. Linux
    then clears each page again at the next use: a third of a step's time with activations that
    large.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and others have none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def out_of_memory(shape, device, advice):
    """Turn an out-of-memory error into an InputError: how much, where, for which input, advice."""
    try:
        yield
    except RuntimeError as error:  # what the CPU raises; torch.OutOfMemoryError is a subclass
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

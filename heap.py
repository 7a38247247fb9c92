"""Freed memory stays with the process for the next step, instead of going back to the system.

Nothing of the Lua. glibc asks the system for every block over 32 MiB anew, which then hands out
its pages one by one, cleared: of a training step whose maps are that large, a third was that.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep():
    """Let malloc take blocks of any size from the heap, and the heap never shrink; Linux only."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

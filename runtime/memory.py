"""Keeps freed memory in the heap, measures the peak, and says in a sentence what ran out."""

import contextlib
import ctypes
import re
import sys

from runtime.errors import InputError

try:
    import resource
except ImportError:  # on Windows
    resource = None

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
# What cuDNN and cuBLAS say when they lack memory, and also when they lack a kernel or a driver
_UNSURE = re.compile(
    r"unable to find an engine to execute this computation|CU(BLAS|DNN)\w*_STATUS_NOT_INITIALIZED"
)
# What CUDA and its libraries say when the GPU is out of memory
_CUDA = re.compile(
    r"(Triton Error \[)?(?i:CUDA.{0,40}?out[ _]of[ _]memory)(.*? is free)?"
    r"|would exceed allowed memory|CU[A-Z]+_(STATUS_)?ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_\w+_ALLOCATION_FAILED"
    rf"|Failed to CUDA (host )?\w*alloc|ncclMemAlloc failed|{_UNSURE.pattern}"
)
LITTLE = 2**29  # bytes: cuDNN's workspaces take up to some hundred MiB
# What Python, the dynamic linker, PyTorch and oneDNN say when they get no memory
_SIGNS = re.compile(
    r"failed to map segment|annot allocate memory|can't allocate memory|bad_alloc"
    r"|(?i:out of memory|not enough memory)|could not create a (primitive|memory)(?! desc)"
)
# What the system, PyTorch and multiprocessing say at the limit of open files
_OPEN_FILES = re.compile("[Tt]oo many open files|received 0 items of ancdata")
_NO_THREAD = "can't start new thread"


def keep_freed():
    """Let freed memory stay in the heap for the next step.

    By default glibc maps every block over 32 MiB separately and unmaps it when it is freed, so
    Linux must clear every page again at the next use. With activations of that size this takes a
    third of a step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and others have none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak(device):
    """Peak memory in bytes, of tensors on a CUDA device, else of the process; None if unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # bytes there, KiB on Linux


class OutOfMemory(InputError):
    """need: how much, where, for which input. advice: which options to give instead."""

    def __init__(self, need, advice):
        super().__init__(f"{need}; give {advice}")
        self.need = need


@contextlib.contextmanager
def out_of_memory(shape, device, advice):
    """Turn PyTorch's out-of-memory error into an OutOfMemory that names the input's shape."""
    try:
        yield
    except Exception as error:
        chain, text = _chain(error)
        needed = re.search(r"[Tt]ried to allocate (\d[\d.]* \w+)", text)
        if isinstance(error, InputError) or not (needed or _lacks_memory(chain, text)):
            raise
        shape = " x ".join(map(str, shape))
        more = f"{needed[1]} more were" if needed else "more was"
        need = f"{more} needed for an input of {shape}"
        place, free = _where(device)
        if device.type == "cuda":
            advice += ", or set PYTORCH_ALLOC_CONF=expandable_segments:True"
        unsure = _UNSURE.search(text)
        if unsure and free > LITTLE:
            place += f', unless "{unsure[0]}" has another cause'
        raise OutOfMemory(f"out of memory on {place}: {need}", advice) from None


def _chain(error):
    """An error with those behind it, and all their texts as one."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain, "\n".join(map(str, chain))


def _lacks_memory(chain, text):
    named = any(isinstance(error, MemoryError) for error in chain)
    return named or _CUDA.search(text) or _SIGNS.search(text)


def _where(device):
    """The device in words, and its free memory in bytes."""
    if device.type != "cuda":
        return "the CPU", 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    sizes = (free, total, torch.cuda.max_memory_allocated(device))
    free_text, total_text, peak = (f"{n / 2**30:.1f} GiB" for n in sizes)
    return f"{device} ({free_text} of {total_text} free, the run used up to {peak})", free


def lacking(error):
    """The sentence for an error due to a lack of memory, files or processes; None for others.

    Under a limit such as `ulimit -v` a half-imported module fails with other errors too.
    """
    limit, (chain, text) = _limit("AS"), _chain(error)
    if _OPEN_FILES.search(text):
        most = _limit("NOFILE") or "unlimited"
        return f"too many open files (ulimit -n {most}): raise the limit, or lower -nThreads"
    if any(isinstance(e, BlockingIOError) for e in chain) or _NO_THREAD in text and not limit:
        most = _limit("NPROC") or "unlimited"
        what = f"too many processes or threads (ulimit -u {most})"
        return f"{what}: raise the limit, or lower -nThreads"
    if found := _CUDA.search(text):
        return f"out of memory on the GPU: {found[0]}"
    strange = any(isinstance(e, (SystemError, ImportError)) for e in chain)
    strange |= "can only be initialized once" in text or "primitive descriptor" in text
    if _lacks_memory(chain, text) or _NO_THREAD in text or (limit and strange):
        if not limit:
            return "out of memory: the system gives no more"
        return f"out of memory: this process may use {limit / 2**30:.1f} GiB (ulimit -v)"
    return None


def _limit(name):
    """A limit of this process, such as AS: of its memory in bytes; None if there is none."""
    if resource is None:
        return None
    limit = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return None if limit == resource.RLIM_INFINITY else limit

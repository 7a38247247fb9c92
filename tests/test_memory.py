"""Freed memory stays: the system is asked for no page that a step before had already."""

import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper

from datasets.image import decoding
from runtime import memory
from runtime.errors import InputError

COUNT = """
import resource, sys
import torch
from runtime import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
for step in range(12):
    if step == 4:
        begun = resource.getrusage(resource.RUSAGE_SELF)
    torch.ones(2**24).sum()  # 64 MiB, twice what glibc takes from its heap
    torch.zeros(2**24).sum()
ended = resource.getrusage(resource.RUSAGE_SELF)
print(ended.ru_minflt - begun.ru_minflt)
"""


def test_large_blocks_are_used_again():
    def faults(how):
        run = [sys.executable, "-c", COUNT, how]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    # a block that just does not fit makes the heap grow now and then, hence not 0
    kept, left = faults("keep"), faults("leave")
    assert kept < (left / 4 if sys.platform == "linux" else 2 * left), (kept, left)


NO_ENGINE = "unable to find an engine to execute this computation"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def refused(said):
    """The sentence for a step on an input of 2 x 3 that raises an error."""
    with (
        pytest.raises(memory.OutOfMemory, match="needed for an input of 2 x 3; give less") as stop,
        memory.out_of_memory((2, 3), torch.device("cpu"), "less"),
    ):
        said()
    return str(stop.value)


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


@pytest.mark.parametrize(
    "said, sentence",
    [  # as PyTorch 2.11 to 2.14, cuDNN 9, NCCL 2 and CUDA say it
        (
            f"{FULL}. GPU 0 has a total capacity of "
            "7.79 GiB of which 1.10 GiB is free. Process 7 has 6.69 GiB memory in use. Of the\n",
            f"{FULL}. GPU 0 has a total capacity of 7.79 GiB of which 1.10 GiB is free",
        ),
        (
            "CUDA out of memory. Allocation was preemptively rejected because it would exceed",
            "CUDA out of memory",
        ),
        (
            "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many",
            "CUDA ran out of memory",
        ),
        (
            "Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently",
            "would exceed allowed memory",
        ),
        ("CUDA error: out of memory\nCUDA kernel errors might be", "CUDA error: out of memory"),
        ("CUDA driver error: out of memory", "CUDA driver error: out of memory"),
        ("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_OUT_OF_MEMORY"),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "CUBLAS_STATUS_NOT_INITIALIZED",
        ),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
        ("cuFFT error: CUFFT_ALLOC_FAILED", "CUFFT_ALLOC_FAILED"),
        (f"FIND was {NO_ENGINE}", NO_ENGINE),
        (f"GET was {NO_ENGINE}", NO_ENGINE),
        (
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ),
        (
            "NCCL Error 1: unhandled cuda error (run with NCCL_DEBUG=INFO for details)\nLast "
            "error:\nFailed to CUDA calloc 6291456 bytes",
            "Failed to CUDA calloc",
        ),
        ("Last error:\nFailed to CUDA host alloc 64 bytes", "Failed to CUDA host alloc"),
        ("Last error:\nCuda failure 2 'out of memory'", "Cuda failure 2 'out of memory"),
        ("Triton Error [CUDA]: out of memory", "Triton Error [CUDA]: out of memory"),
    ],
)
def test_a_gpu_without_memory(said, sentence):
    assert memory.lacking(RuntimeError(said)) == f"out of memory on the GPU: {sentence}"
    refused(raising(RuntimeError(said)))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
    ids=repr,
)
def test_a_cpu_without_memory(error):
    assert memory.lacking(error).startswith("out of memory: ")
    assert refused(raising(error)).startswith("out of memory on the CPU: ")


def from_a_worker(error):
    try:
        raise error
    except RuntimeError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    wrapped.reraise()


def from_the_backward_pass(error):
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(raising(error))
    y.backward()


def from_a_compiler(error):
    from torch._dynamo.exc import BackendCompilerFailed

    raise BackendCompilerFailed(from_a_compiler, error, None) from None


def as_the_cause(error):
    raise ValueError("another") from error


def as_the_context(error):
    try:
        raise error
    except RuntimeError:
        raise ValueError("another") from None


@pytest.mark.parametrize(
    "wrapped",
    [from_a_worker, from_the_backward_pass, from_a_compiler, as_the_cause, as_the_context],
)
def test_out_of_memory_within_another_error(wrapped):
    sentence = refused(lambda: wrapped(torch.OutOfMemoryError(FULL)))
    assert sentence.startswith("out of memory on the CPU: 2.00 GiB more were needed")
    with pytest.raises(Exception) as stop:
        wrapped(torch.OutOfMemoryError(FULL))
    assert memory.lacking(stop.value) == f"out of memory on the GPU: {FULL.partition('.')[0]}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid argument"),
        # oneDNN has no kernel, say for bfloat16 on an old processor
        RuntimeError("could not create a primitive descriptor for the matmul primitive."),
        InputError("out of memory"),
    ],
    ids=repr,
)
def test_other_errors_stay(error):
    with (
        pytest.raises(type(error)) as stop,
        memory.out_of_memory((2, 3), torch.device("cpu"), "less"),
    ):
        raise error
    assert stop.value is error
    error.__cause__ = ValueError("another")
    error.__cause__.__cause__ = error  # as after `raise first from second` in its handler
    assert isinstance(error, InputError) or memory.lacking(error) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENFILE, "Too many open files in system"),
        RuntimeError(
            "unable to open shared memory object </torch_1> in read-write mode: Too many"
            " open files (24)"
        ),
        RuntimeError("received 0 items of ancdata"),
    ],
    ids=str,
)
def test_too_many_open_files(error):
    assert memory.lacking(error).startswith("too many open files (ulimit -n ")
    outer = ValueError("another")
    outer.__cause__ = error
    assert memory.lacking(outer) == memory.lacking(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily")],
    ids=str,
)
def test_too_many_processes(error, monkeypatch):
    """Not a lack of memory, unless that is limited."""
    monkeypatch.setattr(memory, "_limit", lambda name: None)
    assert memory.lacking(error).startswith("too many processes or threads (ulimit -u ")
    monkeypatch.setattr(memory, "_limit", lambda name: 1 << 30)
    if isinstance(error, RuntimeError):
        assert memory.lacking(error).startswith("out of memory: ")


def test_an_image_is_not_broken_because_of_too_many_open_files(tmp_path):
    """-skipCorrupt would leave a good image out."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    decoding.decode(str(tmp_path / "a.png"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many") as caught:
            decoding.decode(str(tmp_path / "a.png"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "lower -nThreads" in memory.lacking(caught.value)

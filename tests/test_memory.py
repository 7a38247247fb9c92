"""Freed memory stays: the system is asked for no page that a step before had already."""

import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image import decoding
from runtime import memory

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


@pytest.mark.parametrize(
    "said, sentence",
    [  # as PyTorch 2.11 and CUDA say it
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "7.79 GiB of which 1.10 GiB is free. Process 7 has 6.69 GiB memory in use. Of the\n",
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "7.79 GiB of which 1.10 GiB is free",
        ),
        ("CUDA error: out of memory\nCUDA kernel errors might be", "CUDA error: out of memory"),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
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
        ("Triton Error [CUDA]: out of memory", "Triton Error [CUDA]: out of memory"),
    ],
)
def test_a_gpu_without_memory(said, sentence):
    assert memory.lacking(RuntimeError(said)) == f"out of memory on the GPU: {sentence}"
    with (
        pytest.raises(memory.OutOfMemory, match="needed for an input of 2 x 3; give less"),
        memory.out_of_memory((2, 3), torch.device("cpu"), "less"),
    ):
        raise RuntimeError(said)


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

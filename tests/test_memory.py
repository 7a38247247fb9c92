"""Freed memory stays: the system is asked for no page that a step before had already."""

import subprocess
import sys

import pytest
import torch

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
    ],
)
def test_a_gpu_without_memory(said, sentence):
    assert memory.lacking(RuntimeError(said)) == f"out of memory on the GPU: {sentence}"
    with (
        pytest.raises(memory.OutOfMemory, match="needed for an input of 2 x 3; give less"),
        memory.out_of_memory((2, 3), torch.device("cpu"), "less"),
    ):
        raise RuntimeError(said)

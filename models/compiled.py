"""-compile true: the training step through torch.compile; results differ by rounding only."""

import os
import shutil
import sys

import torch

from runtime.errors import InputError


def compiled(model, device):
    """The model under torch.compile. The first batch of each size compiles it for that size."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise InputError(
            f"-compile true needs a C++ compiler on the CPU, but there is no {compiler}: install "
            "one, or name it in the environment variable CXX"
        )
    return torch.compile(model, dynamic=False)  # code for dynamic shapes is slower

"""-compile true: the training step through torch.compile.

Nothing of the Lua. The results are those of the plain step but for rounding.
"""

import os
import shutil
import sys

import torch

from runtime.errors import InputError


def compiled(model, device):
    """The model, compiled when it first sees a batch; one of another size is compiled apart."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise InputError(
            f"-compile true needs a C++ compiler on the CPU, but there is no {compiler}: install "
            "one, or name it in the environment variable CXX"
        )
    return torch.compile(model, dynamic=False)  # sizes that vary would be slower

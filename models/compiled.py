"""-compile true: the training step through torch.compile; results differ by rounding only."""

import logging
import os
import shutil
import sys

import torch

from runtime.errors import InputError

# Lines that torch prints on stderr while it compiles, and that no user can act on: {logger: how the
# line begins}. All other lines of these loggers are printed.
NOISE = {
    "torch._dynamo.variables.ctx_manager": "Profiler record function ",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}


def compiled(model, device):
    """The model under torch.compile. The first batch of each size compiles it for that size.

    InputError without a compiler for the generated code: C++ on the CPU, C (for Triton) on CUDA.
    """
    if device.type == "cpu":
        _need("C++", "on the CPU", "CXX", ["clang++" if sys.platform == "darwin" else "g++"])
    elif device.type == "cuda" and sys.platform != "win32":  # there Triton brings one
        _need("C", "on CUDA", "CC", ["gcc", "clang"])
    for name in NOISE:
        logging.getLogger(name).addFilter(_is_heard)  # once, however often it is added
    return torch.compile(model, dynamic=False)  # code for dynamic shapes is slower


def _need(language, place, variable, usual):
    """InputError unless the compiler that a variable names, or else a `usual` one, is installed."""
    named = os.environ.get(variable)
    wanted = [named] if named else usual
    if not any(map(shutil.which, wanted)):
        raise InputError(
            f"-compile true needs a {language} compiler {place}, but there is no "
            f"{' or '.join(wanted)}: install one, or name it in the environment variable {variable}"
        )


def _is_heard(record):
    return not str(record.msg).startswith(NOISE[record.name])

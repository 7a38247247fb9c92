"""What log.jsonl says: its first line, and the line of an epoch. Takes the place of optim.Logger.

run_folder.py writes it, plot.py draws it, tensorboard.py gives the same numbers to TensorBoard.
What the clock and the machine decide has names of its own (TIMES); all else is a function of the
options.
"""

import contextlib
import importlib.metadata
import resource
import subprocess
import sys

import numpy as np
import torch

from parallel import group
from parallel.replicas import split_sizes
from runtime.exit import ROOT

TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory")


def about(opt, model, device):
    """The first line: options, versions, device, and what decides the batch norms."""
    line = {
        "options": options(opt),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),  # a class of its own, not plain
        "torchvision": _version("torchvision"),
        "numpy": np.__version__,
        "commit": _commit(),
        "net": model.config,  # from a file, the options do not tell
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": group.world_size(),
        "replicas": opt.nGPU,
        # of each replica, in a full batch
        "images_per_statistic": split_sizes(opt.batchSize, opt.nGPU),
    }
    if device.type == "cuda":
        # one a process
        return {**line, "device": torch.cuda.get_device_name(device), "devices": line["processes"]}
    return {**line, "device": device.type, "threads": torch.get_num_threads()}


def options(opt):
    """The options as plain values."""
    return {name: value for name, value in vars(opt).items() if name not in ("given", "agents")}


def entry(rate, train, test, best, device):
    """The line of an epoch without its number; `train` and `test` are the epoch's Metrics.

    The times are of training and test together, saving left out, with what was before an interrupt
    inside the epoch; images_per_second is of the training. Memory is the first process's.
    """
    return {
        "rate": rate,
        "train": (train.top1, train.top5, train.mean_loss),  # errors in %
        "test": (test.top1, test.top5),
        "best": best,  # the test with the lowest top-1 error so far
        **times(train, test, device),
    }


def times(train, test, device):
    """What the clock and the machine decide of an epoch's line."""
    return {
        "seconds": train.seconds + test.seconds,
        "images_per_second": train.seen / train.seconds if train.seconds else None,
        "data_wait": train.data_wait + test.data_wait,  # seconds
        "peak_memory": _peak_memory(device),  # bytes
    }


def scalars(line):
    """The numbers of an epoch's line by name: {"train/top1": 12.5, ...}."""
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found.update({f"{name}/{part}": number for part, number in value.items()})
        elif isinstance(value, (list, tuple)):
            parts = zip(("top1", "top5", "loss"), value)
            found.update({f"{name}/{part}": number for part, number in parts})
        else:
            found[name] = value
    found.pop("epoch", None)
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _peak_memory(device):
    """The most that tensors took on a CUDA device, or that this process took of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit():
    """The commit of this program, or None outside a clone."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", ROOT, "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() or None
    return None

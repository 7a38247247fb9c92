"""What log.jsonl says: its first line, and the line of an epoch. Takes the place of optim.Logger.

folder.py writes it, plot.py draws it, events.py gives the same numbers to TensorBoard. What the
clock and the machine decide has names of its own (TIMES); all else is a function of the options.
"""

import contextlib
import importlib.metadata
import os
import resource
import subprocess
import sys

import numpy as np
import torch

import distributed
from models.blocks import split_sizes

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
        "processes": distributed.size(),
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


def entry(trainer, train, test, best):
    """The line of an epoch without its number; `train` and `test` are what the trainer returned.

    The times are of training and test together, saving left out, with what was before a stop inside
    the epoch; images_per_second is of the training. Memory is the first process's.
    """
    parts = trainer.position["train"], trainer.position["test"]
    training = parts[0]["seconds"]
    return {
        "rate": trainer.optimizer.param_groups[0]["lr"],
        "train": train,  # top-1 error %, top-5 error %, loss
        "test": test,  # top-1 error %, top-5 error %
        "best": best,  # the test with the lowest top-1 error so far
        "seconds": sum(part["seconds"] for part in parts),
        "images_per_second": parts[0]["seen"] / training if training else None,
        "data_wait": sum(part["data_wait"] for part in parts),  # seconds
        "peak_memory": _peak_memory(trainer.device),  # bytes
    }


def scalars(line):
    """The numbers of an epoch's line by name: {"train/top1": 12.5, ...}."""
    found = {}
    for name, value in line.items():
        if isinstance(value, (list, tuple)):
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
    here = os.path.dirname(os.path.abspath(__file__))
    with contextlib.suppress(OSError):
        command = ["git", "-C", here, "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() or None
    return None

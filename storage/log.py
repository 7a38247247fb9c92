"""The lines of log.jsonl: the header, and one for each epoch. Takes the place of optim.Logger.

run_folder.py writes them, plot.py draws them, tensorboard.py passes them to TensorBoard. Of an
epoch's line seconds, images_per_second, data_wait and peak_memory depend on the clock and the
machine; all other fields depend on the options only.
"""

import contextlib
import importlib.metadata
import subprocess
import sys

import numpy as np
import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None

from parallel import group
from parallel.group import split_sizes
from runtime.process import ROOT


def header(opt, model, device):
    """The first line: options, versions, net, device, and the slices that batch norm sees."""
    line = {
        "options": dict(opt.values),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),  # a plain str instead of torch's subclass
        "torchvision": _version("torchvision"),
        "numpy": np.__version__,
        **_source(),
        "net": model.config,  # the options do not describe a net from a file
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": group.world_size(),
        "replicas": opt.nGPU,
        # the slice of each replica in a full batch
        "images_per_statistic": split_sizes(opt.batchSize, opt.nGPU),
    }
    if device.type == "cuda":
        # one device for each process
        line |= {"device": torch.cuda.get_device_name(device), "devices": line["processes"]}
        return {**line, "cuda": torch.version.cuda, "driver": _driver()}
    return {**line, "device": device.type, "threads": torch.get_num_threads()}


def resumed(header, earlier, done):
    """The header of a start that resumes after `done` epochs, from the header before.

    "earlier" lists for each older start what differed from the next, and the epochs done by then.
    """
    options, before = header["options"], earlier.get("options", {})
    differ = {name: value for name, value in earlier.items() if header.get(name) != value}
    differ["options"] = {n: v for n, v in before.items() if options.get(n) != v and n != "resume"}
    starts = differ.pop("earlier", [])
    if not differ["options"]:
        del differ["options"]
    return {**header, "earlier": [*starts, *([{"epochs": done, **differ}] if differ else [])]}


def entry(trainer, scores, best, images):
    """The line of an epoch, without its number.

    scores, best: of its test, and of the best epoch so far; images: of the epoch and its test.
    seconds and data_wait are sums over training and test, without saving, and include the part of
    the epoch before an interrupt. images_per_second is of training. peak_memory is of rank 0.
    """
    train, test = trainer.position.train, trainer.position.test
    return {
        **({"step": trainer.step_name} if trainer.step_name else {}),
        "rate": trainer.rate,  # of the last iteration
        "train": train.means(),
        "test": scores,
        "best": best,
        "skipped": images - train.seen - test.seen,  # with -skipCorrupt true
        "odd": train.odd + test.odd,  # images whose file is damaged, but whose pixels are intact
        "seconds": train.seconds + test.seconds,
        "images_per_second": train.seen / train.seconds if train.seconds else None,
        "data_wait": train.data_wait + test.data_wait,  # seconds
        "peak_memory": _peak_memory(trainer.device),  # bytes
    }


def scalars(line):
    """The numbers of an epoch's line as TensorBoard tags: {"train/top1": 12.5, ...}."""
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found.update({f"{name}/{part}": number for part, number in value.items()})
        else:
            found[name] = value
    found.pop("epoch", None)
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _peak_memory(device):
    """Peak memory in bytes, of tensors on a CUDA device, else of the process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB on Linux


def _version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _source():
    """The commit of this repository and whether its files were changed; None outside a clone."""
    git = ("git", "--no-optional-locks", "-C", ROOT)
    commit = _output(*git, "rev-parse", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _driver():
    """The version of NVIDIA's driver, or None."""
    versions = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.split()[0] if versions else None


def _output(*command):
    """What a command prints; None if it fails or does not exist."""
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None
    return None

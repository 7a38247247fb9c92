"""log.jsonl of a run folder: the header, then a line for each epoch. Replaces optim.Logger.

plot.py draws the lines, tensorboard.py passes them to TensorBoard. In an epoch's line, seconds,
images_per_second, data_wait and peak_memory depend on the clock and the machine; all other fields
depend on the options only.

Each save appends its lines. A checkpoint holds the header and the newest lines, the tail. It holds
only the size and a checksum of the lines before, the head, because a resumed run takes the head
from the file. So a save costs the same after any number of epochs, and a copy made while the run
writes may have a slightly older log.jsonl than its checkpoint.
"""

import collections
import contextlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import zlib

import numpy as np
import torch

from parallel import group
from parallel.group import split_sizes
from runtime import memory, regular_files
from runtime.process import ROOT
from runtime.terminal import note
from storage import atomic, curves, schema

_TAIL = 10  # lines
_BLOCK = 1 << 20  # bytes


class LogFile:
    """The log of one start of a run. `state` is the part of it that a checkpoint holds."""

    def __init__(self, path, header, checkpoint):
        """header: of this start. checkpoint: what the run resumes, or {}."""
        self.before, *tail = checkpoint.get("log", [header])
        self.path, self.header, self.tail = path, header, collections.deque(tail)
        head = checkpoint.get("logged", {}) if tail else {}
        self.size, self.crc = head.get("size", 0), head.get("crc", 0)
        self.first = head.get("first")  # epoch of the run
        self.begun = None  # bytes of the header in the file; None before the first `write`

    def state(self):
        head = {"first": self.first, "size": self.size, "crc": self.crc}
        return {"log": [self.header, *self.tail], "logged": head}

    def add(self, line):
        """Add an epoch's line. The next `write` puts it into the file."""
        self.tail.append(line)
        self.first = line["epoch"] if self.first is None else self.first

    def is_in(self, path, any_header):
        """Whether a file holds this log, or its beginning, and then at most a final line."""
        tail = _encoded(self.tail)
        with regular_files.opened(path) as file:
            first = file.readline(_BLOCK)
            known = any_header or _encoded([self.before]).startswith(first)
            if not known or self._head(file) is None:
                return False
            found = re.sub(rb'\{"final"[^\n]*\n?\Z', b"", file.read(len(tail) + _BLOCK))
            return tail.startswith(found) and not file.read(1)

    def begin(self, source, header=None):
        """Make the file, with the head of the file `source`. `write` replaces the header."""
        head = None if self.size else b""
        with contextlib.suppress(OSError), regular_files.opened(source) as old:
            old.readline(_BLOCK)
            head = self._head(old)
        if head is None:
            first = self.tail[0]["epoch"]
            lost = f"{source} lacks the lines of the epochs before {first}"
            note(f"=> {lost}: {self.path} begins with epoch {first}")
            head, self.size, self.crc = b"", 0, 0
        first = _encoded([header or self.before])
        with atomic.replacing(self.path) as file:
            file.write(first + head + _encoded(self.tail))
        self.begun = len(first) if header else None

    def write(self, *final):
        """Append the lines that the file lacks, then the line `final`, and flush to disk."""
        there = os.path.getsize(self.path) if os.path.isfile(self.path) else -1
        if self.begun is None or there < self.begun + self.size:  # removed meanwhile
            self.begin(self.path, self.header)
        with open(self.path, "r+b") as file:
            file.seek(self.begun + self.size)
            # overwrite the old lines with themselves, so that a copy or a kill meanwhile loses none
            file.write(_encoded([*self.tail, *final]))
            file.truncate()  # what a full disk or a final line left; this flushes as well
            os.fsync(file.fileno())
        while len(self.tail) > _TAIL:
            line = _encoded([self.tail.popleft()])
            self.size, self.crc = self.size + len(line), zlib.crc32(line, self.crc)

    def after(self, epoch):
        """The lines of the epochs after `epoch`. Those of the head are read from the file."""
        if not self.tail or self.tail[0]["epoch"] > epoch + 1:
            with regular_files.opened(self.path) as file:
                file.readline(_BLOCK)
                head = io.BytesIO(self._head(file))
            for line in map(curves.parsed, head):
                if schema.is_count(line.get("epoch")) and line["epoch"] > epoch:
                    yield line
        yield from (line for line in self.tail if line["epoch"] > epoch)

    def _head(self, file):
        """Read on in a file, as far as the head is long; None if that is not the head."""
        head = file.read(min(self.size, os.fstat(file.fileno()).st_size))
        return head if zlib.crc32(head) == self.crc else None


def _encoded(lines):
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def header(opt, model, device):
    """The first line: options, versions, net, device, and the slices that batch norm sees."""
    git = ("git", "--no-optional-locks", "-C", ROOT)
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    line = {
        "options": dict(opt.values),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),  # a plain str instead of torch's subclass
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": np.__version__,
        "commit": _output(*git, "rev-parse", "HEAD"),  # None outside a clone
        "changed": None if changes is None else bool(changes),
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
        drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = drivers.split()[0] if drivers else None
        return {**line, "cuda": torch.version.cuda, "driver": driver}
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

    scores: of its test. best: of the best epoch so far. images: how many it and its test have.
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
        "peak_memory": memory.peak(trainer.device),  # bytes
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


def _output(*command):
    """What a command prints; None if it fails or does not exist."""
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None
    return None

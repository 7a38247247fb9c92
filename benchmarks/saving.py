"""How long the training loop waits for a save, what the save takes in all, and a resume.

    python benchmarks/saving.py [-depth 50 -cardinality 32 -baseWidth 4 ...]

The options are main.py's. The save is that of an epoch, its writing goes on in a thread while the
loop trains; the loop should lose less than one copy of the state in memory takes.
"""

import contextlib
import io
import os
import sys
import tempfile
import time

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing
import torch

import checkpoints
import models
import opts
from storage.run_folder import RunFolder
from train import setup

NET = "-depth 50 -cardinality 32 -baseWidth 4"


def tensors(value):
    """Every tensor of a state."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list, tuple))
    return [tensor for v in values for tensor in tensors(v)] if nested else []


def trainer_of(opt, checkpoint, device):
    classes = [str(i) for i in range(1000)]
    with contextlib.redirect_stdout(io.StringIO()):
        net = models.from_file(checkpoint, opt.retrain)
        opt = opts.settle(opt.given, checkpoint, net and net.config)
        model = models.setup(opt, net, checkpoint, classes, device)
    model.input_spec = None
    trainer = setup(opt, model, device)
    if checkpoint:
        trainer.load_state(checkpoint)
    return trainer


def latest(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        return checkpoints.latest(folder)


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = sys.argv[1:] or NET.split()
    setting = " ".join(words)
    with tempfile.TemporaryDirectory() as save:
        for split in ("train", "val"):
            os.makedirs(os.path.join(save, "data", split))
        words += ["-data", os.path.join(save, "data"), "-save", save]
        opt = opts.parse(words)
        trainer = trainer_of(opt, None, device)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()  # now there is momentum
        state = [models.pack(trainer.model), trainer.state()]
        size = sum(t.numel() * t.element_size() for t in tensors(state))
        errors = {"top1": 1.0, "top5": 1.0}
        entry = {"train": errors, "test": errors, "best": errors, "seconds": 1.0}

        times = {"a copy of the state": [], "the loop waits": [], "a save in all": []}
        with RunFolder(save) as folder:
            folder.begin(opt, None, trainer.model, device)
            for _ in range(8):
                began = time.perf_counter()
                copy = [tensor.to("cpu", copy=True) for tensor in tensors(state)]
                times["a copy of the state"].append(time.perf_counter() - began)
                del copy
                began = time.perf_counter()
                folder.save(1, models.pack(trainer.model), trainer.state(), True, entry)
                times["the loop waits"].append(time.perf_counter() - began)
                folder.wait()
                times["a save in all"].append(time.perf_counter() - began)
        times["the loop waits, first save"] = [times["the loop waits"].pop(0)]
        del times["a copy of the state"][0], times["a save in all"][0]

        resume = {"a resume": lambda: trainer_of(opt, latest(save), device)}
        times.update(timing.compare(resume, 3))
    print(f"state: {size / 2**20:.0f} MiB; {timing.machine()}")
    rows = [(name, f"{timing.median(times, name):.3f}") for name in times]
    timing.table(("what", "seconds"), rows, setting=setting, device=device)


if __name__ == "__main__":
    main()

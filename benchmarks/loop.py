"""What `Trainer` costs over the bare step: the same net, optimizer and batches in a plain loop.

After the same batches both nets are the same to the last bit; on a GPU that takes -cudnn
deterministic. With --profile, on a GPU, the share of the time in which it has nothing to do.
"""

import argparse
import contextlib
import io
import time

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import torch
from timing import compare, machine, median, ratio, table
from torch import nn

import dataloader
import models
import opts
from models.resnet import resnet
from train import setup

OPTIONS = "-netType resnet -dataset cifar10 -depth 20 -LR 0.01 -cudnn deterministic".split()


class Batches:
    """The same batches in every epoch, on the device; `opt` and `size` as of a loader."""

    crops = 1

    def __init__(self, count, images, device):
        generator = torch.Generator().manual_seed(1)
        self.batches = []
        for _ in range(count):
            input = torch.randn(images, 3, 32, 32, generator=generator).to(device)
            target = torch.randint(10, (images,), generator=generator).to(device)
            input = input.contiguous(memory_format=torch.channels_last)
            self.batches.append(dataloader.Batch(input, target, [[images]]))

    def size(self):
        return len(self.batches)

    def run(self, epoch, start=0):
        return iter(self.batches[start:])


def net(device, small=False):
    """ResNet-20, or ResNet-8 of which an iteration is hardly more than its overhead."""
    torch.manual_seed(1)
    model = resnet(8 if small else 20, 10, "cifar", "A")
    return model.to(device, memory_format=torch.channels_last)


def trained(model, batches, device):
    """One epoch by the trainer, its lines printed into the void: a function."""
    trainer = setup(opts.parse(OPTIONS), model, device)
    epochs = iter(range(1, 10**9))

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(next(epochs), batches)

    return run


def bare(model, batches):
    """The same with nothing around it: no score, no lines, no reading of the loss."""
    rate = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    sgd = torch.optim.SGD(model.parameters(), fused=True, **rate)

    def run():
        model.train()
        for input, target, *_ in batches.batches:
            loss = nn.functional.cross_entropy(model(input), target, reduction="sum")
            sgd.zero_grad(set_to_none=True)
            (loss * (1 / len(target))).backward()
            sgd.step()

    return run


def main():
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=None, help="in a repetition")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="the device's idle time (CUDA)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device, 0 if given.device == "cuda" else None)
    models.set_backend("fastest", "single")
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    count = given.iterations or (100 if wait else 2)
    rows = []
    for name, small, images in (("ResNet-20", False, given.batch), ("ResNet-8", True, 2)):
        batches, nets = Batches(count, images, device), [net(device, small) for _ in range(2)]
        ways = {
            "Trainer": trained(nets[0], batches, device),
            "bare": bare(nets[1], batches),
        }
        times = compare(ways, given.repetitions, wait)
        same = all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
        assert same, f"{name}: the two nets differ"
        us = [1e6 * (ours - theirs) / count for ours, theirs in zip(*times.values())]
        cost = 100 / ratio(times, "Trainer", "bare") - 100
        each = [f"{1e3 * median(times, way) / count:.2f}" for way in ways]
        rows.append(
            (f"{name}, batch {images}", *each, f"{cost:+.1f} %", f"{sorted(us)[len(us) // 2]:.0f}")
        )
    heads = ("net", "Trainer, ms", "bare, ms", "costs", "us an iteration")
    table(heads, rows, device=device)
    print(machine())
    if given.profile:
        profile(given, device)


def profile(given, device):
    """How long the device had nothing to do in 50 iterations of the trainer."""
    from torch.profiler import ProfilerActivity

    batches = Batches(50, given.batch, device)
    run = trained(net(device), batches, device)
    run()
    activities = [ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    busy = busy_us(found.events()) / 1e6
    print(f"device: busy {busy:.3f} s of {seconds:.3f} s, idle {100 * (1 - busy / seconds):.1f} %")


def busy_us(events):
    """The time in which at least one kernel ran; those of two streams may overlap."""
    cuda = torch.autograd.DeviceType.CUDA
    spans = sorted((e.time_range.start, e.time_range.end) for e in events if e.device_type == cuda)
    total = last = 0
    for start, end in spans:
        total += max(0, end - max(start, last))
        last = max(last, end)
    return total


if __name__ == "__main__":
    main()

"""Peak memory of a training step: 8 replicas together and one after another, and torchvision's.

    python benchmarks/memory.py [--batches 16 32 64] [-depth 50 -cardinality 32 -baseWidth 4 ...]

The options are main.py's; the images are random, of 224x224. Each measurement is a process of its
own. On a GPU the peak is what was allocated there, on the CPU the resident memory of the process,
PyTorch's included. A line through the peaks gives the memory of an image, and how large a batch
fits. torchvision's is its script's step: NCHW, the same optimizer.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import project  # noqa: F401  before all else: sets the path, names a missing package

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NET = "-depth 50 -cardinality 32 -baseWidth 4"
PEER = "torchvision's step"
WAYS = {
    "1 replica": "-nGPU 1",
    "8 replicas together": "-nGPU 8",
    "8 replicas, -accumulate true": "-nGPU 8 -accumulate true",
    "8 replicas, -optnet true": "-nGPU 8 -optnet true",
    "8 replicas, both": "-nGPU 8 -accumulate true -optnet true",
    PEER: "",
}
STEPS = 2
SIZES = (4, 8, 16, 24)  # GiB


def measure(way, batch, words):
    """One JSON line: peak bytes, seconds of the last step, its loss."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    input = torch.randn(batch, 3, 224, 224, device=device)
    target = torch.arange(batch, device=device) % 1000
    step = theirs(words, input, target) if way == PEER else ours(words, input, target)
    for _ in range(STEPS):
        if device.type == "cuda":  # the first step tries cuDNN's algorithms, which takes memory
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss = float(step())
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kilobytes
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"peak": peak, "seconds": seconds, "loss": loss}))


def ours(words, input, target):
    """Our step as main.py takes it, a function that returns the mean loss."""
    import steps

    from dataloader import LAYOUT
    from runtime import memory

    model, opt = net(words, input.device)
    if input.device.type == "cpu":
        memory.keep_freed()
    return steps.ours(model, input.contiguous(memory_format=LAYOUT), target, opt)


def theirs(words, input, target):
    """torchvision's net of the same weights, plainly."""
    import steps
    import torchvision

    model, opt = net(words, input.device)
    config = model.config
    width = f"_{config['cardinality']}x{config['base_width']}d" if "cardinality" in config else ""
    name = f"{'resnext' if width else 'resnet'}{config['depth']}{width}"
    peer = torchvision.models.get_model(name)
    peer.load_state_dict(model.state_dict())
    return steps.theirs(peer, input, target, opt.precision, rate=opt.LR)


def net(words, device):
    """(our net, the options)."""
    import models
    import opts

    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            os.mkdir(os.path.join(folder, split))  # opts insists on ImageNet's
        opt = opts.parse([*words, "-data", folder])
    return models.setup(opt, None, None, [str(i) for i in range(1000)], device), opt


def main():
    import timing
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    given, words = parser.parse_known_args()
    words = words or NET.split()
    shown, fitting = [], []
    for way, more in WAYS.items():
        found = []
        for batch in given.batches:
            command = [sys.executable, __file__, "measure", way, str(batch), *words, *more.split()]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(result.stdout.splitlines()[-1]))
            print(f"{way}, batch {batch}: {found[-1]}", file=sys.stderr)
        peaks = [one["peak"] / 2**30 for one in found]
        last = (f"{found[-1]['seconds']:.2f}", f"{found[-1]['loss']:.6f}")
        shown.append((way, *(f"{peak:.2f}" for peak in peaks), *last))
        if len(peaks) < 2:
            continue  # no slope
        slope, rest = statistics.linear_regression(given.batches, peaks)
        fits = [f"{max(0, (size - rest) / slope):.0f}" for size in SIZES]
        fitting.append((way, f"{1024 * slope:.1f}", f"{rest:.2f}", *fits))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = {"setting": " ".join(words), "device": device}
    about["layout"] = lambda way: "NCHW" if way == PEER else "channels_last"
    print(f"{' '.join(words)}; {timing.machine()}\n")
    peaks = [f"batch {batch}, peak GiB" for batch in given.batches]
    timing.table(("what", *peaks, "seconds a step", f"loss of step {STEPS}"), shown, **about)
    fits = [f"batch in {size} GiB" for size in SIZES]
    if fitting:
        timing.table(("what", "MiB an image", "GiB without images", *fits), fitting, **about)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        main()

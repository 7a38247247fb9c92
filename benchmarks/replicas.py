"""The training step with 8 replicas on one device against 1 replica, at the same batch.

    python benchmarks/replicas.py                    (on the CPU; --device cuda on a GPU)

Batch norm sees the batch as slices, nothing else does. First checks in double precision that the
slices' gradients are those of the slices run one by one.
"""

import argparse
import copy
import os
import sys
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import timing
import torch
import torch.nn.functional as F

from models.blocks import set_slices
from models.resnet import resnet
from models.resnext import resnext
from parallel.replicas import split_sizes

# name: net, side of the image, classes, batch on the CPU and on a GPU
NETS = {
    "resnet20": (lambda: resnet(20, 10, "cifar", "A"), 32, 10, 128, 1024),
    "resnext29_4x8d": (lambda: resnext(29, 4, 8, 10, "cifar"), 32, 10, 32, 512),
    "resnext29_8x64d": (lambda: resnext(29, 8, 64, 10, "cifar"), 32, 10, 16, 128),
    "resnext50_32x4d": (lambda: resnext(50, 32, 4), 224, 1000, 16, 256),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["resnet20", "resnext29_4x8d"])
    parser.add_argument("--batch", type=int, help="default: by net and device")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--precision", choices=("single", "bfloat16", "half"), default="single")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    check(device, args.replicas)
    print(timing.machine(), f"precision {args.precision}", sep=", ", end="\n\n")
    rows = []
    for name in args.nets:
        make, side, classes, *batches = NETS[name]
        batch = args.batch or batches[device.type == "cuda"]
        net = make().to(device, memory_format=torch.channels_last).train()
        input, target = data(batch, side, classes, device)
        ways = {}
        for replicas in (1, args.replicas):
            sizes = split_sizes(batch, replicas)
            ways[replicas] = partial(step, net, input, target, sizes, args.precision)
        times = timing.compare(ways, args.repetitions, wait)
        speeds = [f"{batch / timing.median(times, replicas):.4g}" for replicas in ways]
        ratio = timing.ratio(times, args.replicas, 1)
        rows.append((name, batch, *speeds, f"{ratio:.3f}"))
    heads = ("net", "batch", "1 replica, images/s", f"{args.replicas} replicas", "speed, of 1's")
    timing.table(heads, rows)


def data(batch, side, classes, device):
    torch.manual_seed(0)
    input = torch.randn(batch, 3, side, side).to(device, memory_format=torch.channels_last)
    return input, torch.randint(classes, (batch,)).to(device)


def step(net, input, target, sizes, precision):
    """Forward and backward; the update does not know of replicas."""
    dtype = {"bfloat16": torch.bfloat16, "half": torch.float16}.get(precision)
    set_slices(net, sizes)
    with torch.autocast(input.device.type, dtype, enabled=dtype is not None):
        loss = F.cross_entropy(net(input), target)
    for parameter in net.parameters():
        parameter.grad = None
    loss.backward()


def check(device, replicas):
    """The gradients of the slices of one batch are those of the slices one by one."""
    torch.manual_seed(0)
    net = resnet(8, 10, "cifar", "A").to(device, torch.float64).train()
    apart = copy.deepcopy(net)
    input, target = data(3 * replicas - 1, 32, 10, device)
    input, sizes = input.double(), split_sizes(len(input), replicas)
    step(net, input, target, sizes, "single")
    for image, label in zip(input.split(sizes), target.split(sizes)):
        (F.cross_entropy(apart(image), label, reduction="sum") / len(input)).backward()
    for ours, theirs in zip(net.parameters(), apart.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    main()

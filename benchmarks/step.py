"""The training step against torchvision's and timm's, each as their scripts run it and at its best.

    python benchmarks/step.py                                   (on the CPU)
    python benchmarks/step.py --device cuda --precision bfloat16 --nets all

A step is forward, loss, backward and update; ours is Trainer's, with its settings. Peers: the same
net of torchvision and of timm with our weights; for the CIFAR nets, which they lack, ours run
plainly. NCHW without compiling is what their scripts do by default. Before they are timed the nets
must have one gradient in double precision. On the CPU each way has a process of its own, because
main.py's settings of heap and threads are not to serve its peers; they still take turns.
"""

import argparse
import copy
import multiprocessing
import os
import sys
import time
import types
from typing import NamedTuple

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing
import timm
import torch
import torch.nn.functional as F
import torchvision
from steps import options, ours, theirs
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models.resnet import resnet
from models.resnext import resnext
from runtime import memory, process
from runtime.precision import MIXED

# name: ours, side, classes, name at torchvision and timm, batch on the CPU and on a GPU
NETS = {
    "resnext50_32x4d": (lambda: resnext(50, 32, 4), 224, 1000, "resnext50_32x4d", 16, 256),
    "resnet50": (lambda: resnet(50), 224, 1000, "resnet50", 16, 256),
    "resnext101_32x4d": (lambda: resnext(101, 32, 4), 224, 1000, "resnext101_32x4d", 16, 256),
    "resnext101_64x4d": (lambda: resnext(101, 64, 4), 224, 1000, "resnext101_64x4d", 16, 256),
    "resnet101": (lambda: resnet(101), 224, 1000, "resnet101", 16, 256),
    "resnext29_8x64d": (lambda: resnext(29, 8, 64, 10, "cifar"), 32, 10, None, 16, 128),
    "resnext29_16x64d": (lambda: resnext(29, 16, 64, 10, "cifar"), 32, 10, None, 8, 128),
}
PAIRS = (("resnext50_32x4d", "resnet50"), ("resnext101_32x4d", "resnet101"))
CIFAR = 50_000  # images in an epoch


def main():
    args = arguments()
    device = torch.device(args.device)
    models.set_backend("fastest", args.precision)
    print(timing.machine("torchvision", "timm"), f"precision {args.precision}", sep=", ")
    most = types.SimpleNamespace(wait=torch.cuda.synchronize if device.type == "cuda" else None)
    most.product, most.copy = limits(device, MIXED.get(args.precision))
    names = NETS if args.nets == ["all"] else args.nets
    seconds = {name: one_net(name, args, device, most) for name in names}
    for wide, plain in PAIRS:
        if wide in seconds and plain in seconds:
            ratio = seconds[plain] / seconds[wide]
            print(f"{wide} runs at {ratio:.2f} of the speed of {plain} (paper, 101 layers: 0.74)")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nets", nargs="+", default=["resnext50_32x4d"], help="or all")
    parser.add_argument("--batch", type=int, help="default: by net and device")
    parser.add_argument("--precision", choices=("single", "tf32", *MIXED), default="single")
    parser.add_argument("--compile", action="store_true", help="also every way compiled")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.nets) - {*NETS, "all"}
    if unknown:
        parser.error(f"no net {', '.join(sorted(unknown))}: there are {', '.join(NETS)}, all")
    return args


def limits(device, mixed):
    """(FLOP/s of a large product, bytes/s of a copy, read and written): what there is at most."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1536
    a = torch.randn(size, size, device=device, dtype=mixed)
    long = torch.randn(2**28 if cuda else 2**25, device=device)
    out = torch.empty_like(long)
    wait = torch.cuda.synchronize if cuda else None
    until = time.perf_counter() + cuda
    while time.perf_counter() < until:  # a second of work, until a GPU's clock has risen
        float((a @ a)[0, 0])
    times = timing.compare({"product": lambda: a @ a, "copy": lambda: out.copy_(long)}, 9, wait)
    product = 2 * size**3 / timing.median(times, "product")
    copy = 2 * long.nbytes / timing.median(times, "copy")
    print(f"limits: product {product / 1e12:.4g} TFLOP/s, copy {copy / 1e9:.4g} GB/s", end="\n\n")
    return product, copy


def one_net(name, args, device, most):
    """Check and time every way of training one net; seconds of our step as it is by default."""
    torch.compiler.reset()  # torch.compile keeps eight versions of a function, and then gives up
    nets, side, classes, batch = build(name, args, device)
    check(nets, side, classes)
    ways = [
        Way(name, who, layout, compiled, args)
        for who in nets
        for layout in ("NCHW", "channels_last")
        if (who, layout, device.type) != ("ours", "NCHW", "cpu")
        for compiled in ((False, True) if args.compile else (False,))
    ]
    steps = {way.label: Apart(way) if device.type == "cpu" else start(way) for way in ways}
    losses, compiling = {}, {}
    for label, step in steps.items():
        began = time.perf_counter()
        losses[label] = float(step())
        compiling[label] = time.perf_counter() - began
    times = timing.compare(steps, args.repetitions, most.wait)
    for step in steps.values():
        if isinstance(step, Apart):
            step.end()
    print(f"\n{name}, batch {batch} of {side}x{side}", end="\n\n")
    about = {"setting": f"{name}, batch {batch} of {side}x{side}", "precision": args.precision}
    about["layout"] = lambda way: "NCHW" if "NCHW" in way else "channels_last"
    timing.rate_table(times, "ours", batch, "images", device=device, **about)
    far = max(abs(loss / losses["ours"] - 1) for loss in losses.values())
    print(f"the losses of the first step differ by {far:.0e} at most")
    if args.compile:
        took = ", ".join(f"{k} {s:.0f}" for k, s in compiling.items() if "compiled" in k)
        print(f"seconds to the end of the first step: {took}")
    ours = timing.median(times, "ours")
    print(shares(nets["ours"], torch.randn(batch, 3, side, side), ours, most, args))
    if side == 32:
        print(f"{CIFAR / batch * ours:.1f} s of steps an epoch")
    print(flush=True)
    return ours


class Way(NamedTuple):
    """One way of training a net."""

    name: str  # of NETS
    who: str
    layout: str
    compiled: bool
    args: argparse.Namespace

    @property
    def label(self):
        layout = "" if (self.who, self.layout) == ("ours", "channels_last") else self.layout
        return " ".join(filter(None, (self.who, layout, "compiled" * self.compiled)))


def build(name, args, device):
    """(nets that all have our weights, side, classes, batch)."""
    make, side, classes, peer, *batches = NETS[name]
    torch.manual_seed(0)
    nets = {"ours": make(), **peers(peer, make)}
    for net in nets.values():
        net.load_state_dict(nets["ours"].state_dict())
    return nets, side, classes, args.batch or batches[device.type == "cuda"]


def start(way):
    """A function that takes one step in this way and returns the loss."""
    device = torch.device(way.args.device)
    nets, side, classes, batch = build(way.name, way.args, device)
    torch.manual_seed(1)
    input, target = torch.randn(batch, 3, side, side), torch.randint(classes, (batch,))
    to = torch.channels_last if way.layout == "channels_last" else torch.contiguous_format
    net = nets[way.who].to(device, memory_format=to).train()
    images, target, precision = (
        input.to(device, memory_format=to),
        target.to(device),
        way.args.precision,
    )
    if way.who == "ours":
        compiled = str(way.compiled).lower()
        return ours(net, images, target, options(f"-precision {precision} -compile {compiled}"))
    return theirs(net, images, target, precision, way.compiled)


class Apart:
    """A way in a process of its own, which takes a step whenever it is called."""

    def __init__(self, way):
        self.pipe, theirs = multiprocessing.Pipe()
        before = dict(os.environ)
        if way.who == "ours":
            process.spin_briefly()  # as main.py
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=serve, args=(theirs, way), daemon=True)
        self.process.start()
        os.environ.clear()
        os.environ.update(before)

    def __call__(self):
        try:
            self.pipe.send("step")
            return self.pipe.recv()
        except (OSError, EOFError):
            sys.exit("a way's process has ended, perhaps out of memory: try a smaller --batch")

    def end(self):
        self.process.kill()
        self.process.join()


def serve(pipe, way):
    """The process's part: a step for each message."""
    if way.who == "ours":
        memory.keep_freed()  # as main.py
    step = start(way)
    while pipe.recv():
        pipe.send(step().item())


def peers(name, make):
    """The same net of torchvision and timm, or ours once more, to be run plainly."""
    if name is None:
        return {"plain": make()}
    nets = {"timm": timm.create_model(name)}
    if name in torchvision.models.list_models():
        nets["torchvision"] = torchvision.models.get_model(name)
    return nets


def check(nets, side, classes):
    """Leave unless all nets have one loss and one gradient, in double precision and a small size.

    In single precision rounding grows with depth to per cents of the gradient, the layout's too.
    """
    side = min(side, 64)
    input = torch.randn(4, 3, side, side, dtype=torch.float64)
    target = torch.randint(classes, (4,))
    found = {}
    for who, net in nets.items():
        net = copy.deepcopy(net).double().train()
        loss = F.cross_entropy(net(input), target)
        found[who] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])
        far = (found[who] - found["ours"]).norm() / found["ours"].norm()
        if not far < 1e-9:
            sys.exit(f"the gradient of {who} differs from ours by {far:.1e} of its length")


def shares(net, input, seconds, most, args):
    """What part of the limits a step reaches.

    Three products for each of the forward pass. A map passes through memory 14 times if batch norm
    and ReLU are one: forward it is written by the convolution, read twice and written by batch
    norm, read by the next convolution; backward batch norm reads map and gradient twice and writes
    one, the convolution reads map and gradient, the gradient again, and writes one.
    """
    sizes = []
    net = copy.deepcopy(net).to("meta")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, given, out: sizes.append(out.numel()))
    with FlopCounterMode(display=False) as counter:
        net(input.to("meta"))
    flops = 3 * counter.get_total_flops() / seconds
    width = 2 if args.precision in MIXED else 4
    moved = 14 * width * sum(sizes) / seconds
    return (
        f"ours: {flops / 1e12:.4g} TFLOP/s, {flops / most.product:.2f} of the product's; "
        f"at least {moved / 1e9:.4g} GB/s, {moved / most.copy:.2f} of the copy's"
    )


if __name__ == "__main__":
    main()

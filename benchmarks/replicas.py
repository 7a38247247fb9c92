"""The training step with 8 replicas on one device against 1 replica, at the same batch.

    python benchmarks/replicas.py                    (on the CPU; --device cuda on a GPU)

The 8 run together, as one pass whose batch norm sees slices, and one after another (-accumulate
true). Checked first: in double precision both give the same weights and momentum. A step is
Trainer's, at a rate of 0.
"""

import argparse

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing
import torch

import models
import opts
from dataloader import LAYOUT, Batch
from models.resnet import resnet
from models.resnext import resnext
from parallel.group import split_sizes
from runtime import memory
from train import setup

COMMAND = "-netType resnet -dataset cifar10 -depth 20"  # for its options; the nets are below
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
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    models.set_backend("fastest", args.precision)
    if device.type == "cpu":
        memory.keep_freed()  # as main.py
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    check(device, args.replicas)
    print(timing.machine(), f"precision {args.precision}", sep=", ", end="\n\n")
    together, apart = f"{args.replicas} together", f"{args.replicas} one after another"
    rows = []
    for name in args.nets:
        make, side, classes, *batches = NETS[name]
        batch = args.batch or batches[device.type == "cuda"]
        input, target = data(batch, side, classes, device)
        words = f"-precision {args.precision} -compile {str(args.compile).lower()} -LR 0"
        ways = {
            "1 replica": step(make, input, target, 1, words),
            together: step(make, input, target, args.replicas, words),
            apart: step(make, input, target, args.replicas, f"{words} -accumulate true"),
        }
        times = timing.compare(ways, args.repetitions, wait)
        speeds = [f"{batch / timing.median(times, way):.4g}" for way in ways]
        ratios = [f"{timing.ratio(times, way, '1 replica'):.3f}" for way in (together, apart)]
        rows.append((name, batch, *speeds, *ratios))
    shares = (f"{together}, of 1's speed", f"{apart}, of 1's speed")
    heads = ("net", "batch", *(f"{way}, images/s" for way in ways), *shares)
    setting = f"{args.replicas} replicas" + ", compiled" * args.compile
    about = {"precision": args.precision, "device": device, "setting": setting}
    timing.table(heads, rows, **about)


def data(batch, side, classes, device):
    torch.manual_seed(0)
    input = torch.randn(batch, 3, side, side).to(device, memory_format=LAYOUT)
    return input, torch.randint(classes, (batch,)).to(device)


def step(make, input, target, replicas, words):
    """A function that takes one step of a new net; it has the `trainer`."""
    command = f"{COMMAND} -nGPU {replicas} {words}"
    torch.manual_seed(1)
    net = make().to(input.device, input.dtype, memory_format=LAYOUT).train()
    trainer = setup(opts.parse(command.split()), net, input.device)
    batch = Batch(input, target, [split_sizes(len(target), replicas)])

    def run():
        return trainer._step(batch)

    run.trainer = trainer
    return run


def resnet8():
    return resnet(8, 10, "cifar", "A")


def check(device, replicas):
    """Weights and momentum after two steps are the same both ways."""
    input, target = data(3 * replicas - 1, 32, 10, device)
    found = []
    for words in ("-LR 0.1", "-LR 0.1 -accumulate true"):
        run = step(resnet8, input.double(), target, replicas, words)
        run()
        run()
        state = run.trainer.model.state_dict()
        found.append([*state.values(), *run.trainer.state()["momentum"].values()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    main()

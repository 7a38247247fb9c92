"""What there is to measure on a GPU, in nine minutes and one process; benchmarks/gpu.sh starts it.

    python benchmarks/gpu.py --until 480                  (a GPU, with timm if it is installed)
    python benchmarks/gpu.py --device cpu --tiny          (a trial, in two minutes)

The stages come in the order of their worth, each with a share of the time that is left, and go on
after an error of one. Each row is printed and appended to rows.jsonl in $OUT, or in the working
folder, as soon as it is known.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing
import torch
import torch.nn.functional as F
import torchvision
from steps import options, ours, theirs
from torch import nn

import models
from dataloader import LAYOUT
from models.blocks import Bottleneck
from models.fold import folded
from models.resnet import resnet
from models.resnext import resnext

try:
    import timm
except ImportError:
    timm = None

ROOT = Path(__file__).parents[1]
OUT = Path(os.environ.get("OUT", "."))
IMAGENET = {"resnet50": lambda: resnet(50), "resnext50_32x4d": lambda: resnext(50, 32, 4)}
CIFAR = {
    "ResNet-20": lambda: resnet(20, 10, "cifar", "A"),
    "ResNeXt-29 8x64d": lambda: resnext(29, 8, 64, 10, "cifar"),
}
BFLOAT16 = "-precision bfloat16"
# grouped and dense 3x3 convolutions: (channels, groups, side) of the paper's nets
SHAPES = [
    *((128 * 2**k, groups, 56 // 2**k) for k in range(4) for groups in (32, 1)),
    *((256 * 2**k, 64, 56 // 2**k) for k in range(4)),
    *((512 * 2**k, 8, 32 // 2**k) for k in range(3)),
]


class Late(BaseException):
    """A stage has used up its time; a BaseException, so that no `except Exception` swallows it."""


class Bench:
    """The device, the sizes, the clock; `row` writes what a stage finds."""

    def __init__(self, device, tiny, until):
        self.device, self.tiny, self.cuda = torch.device(device), tiny, device != "cpu"
        self.end = time.monotonic() + until
        self.rows = open(OUT / "rows.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self.stage = ""

    def row(self, what, value, unit, **more):
        """Print and write one figure. Late if the stage has no time left."""
        line = {"stage": self.stage, "what": what, "value": float(f"{value:.5g}"), "unit": unit}
        line |= more
        print(f"{self.stage:<12} {what:<58} {line['value']:>12g} {unit}", flush=True)
        self.rows.write(json.dumps(line) + "\n")
        self.rows.flush()
        if time.monotonic() > self.end:
            raise Late

    def size(self, full, tiny):
        """A size for a GPU, or for a trial."""
        return tiny if self.tiny else full

    def seconds(self, function, times=20):
        """The median seconds of a call, after three to warm up; on CUDA between events."""
        for _ in range(self.size(3, 1)):
            function()
        marks = [self._mark()]
        for _ in range(self.size(times, 1)):
            function()
            marks.append(self._mark())
        self.wait()
        pairs = itertools.pairwise(marks)
        return statistics.median(a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs)

    def _mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def graph(self, function):
        """A call as a CUDA graph, so that launches do not count; itself where a capture fails."""
        if not self.cuda or self.tiny:
            return function
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        try:
            with torch.cuda.graph(graph):
                function()
        except RuntimeError as error:
            print(f"no CUDA graph: {error}")
            return function
        return graph.replay

    def wait(self):
        """Wait for the GPU."""
        if self.cuda:
            torch.cuda.synchronize()

    def images(self, count, side, classes, layout=LAYOUT):
        """A batch of random images and their targets."""
        images = torch.randn(count, 3, side, side, device=self.device).contiguous(
            memory_format=layout
        )
        return images, torch.randint(classes, (count,), device=self.device)

    def nets(self):
        """{name: our net}, those of the headline."""
        return {"resnet18": lambda: resnet(18)} if self.tiny else IMAGENET

    def imagenet(self, count=256, **layout):
        """The same in ImageNet's sizes."""
        return self.images(self.size(count, 2), self.size(224, 32), 1000, **layout)


def peers(name):
    """{project: its net of this name}."""
    found = {"torchvision": lambda: torchvision.models.get_model(name)}
    if timm:
        found["timm"] = lambda: timm.create_model(name)
    return found


def limits(b):
    """What all else is a share of: products, copies, launches, the way to the device."""
    size = b.size(8192, 64)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a = torch.randn(size, size, device=b.device, dtype=dtype)
            name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
            taken = b.seconds(functools.partial(torch.matmul, a, a))
            b.row(f"product, {name}", 2 * size**3 / taken / 1e12, "TFLOP/s")
    long = torch.randn(b.size(2**28, 2**16), device=b.device)
    into = torch.empty_like(long)
    copied = b.seconds(lambda: into.copy_(long))
    b.row("copy on the device, read and written", 2 * long.nbytes / copied / 1e9, "GB/s")
    host = torch.empty(b.size(2**28, 2**16), dtype=torch.uint8)
    host = host.pin_memory() if b.cuda else host
    taken = b.seconds(lambda: host.to(b.device, non_blocking=True, copy=True))
    b.row("copy of pinned memory to the device", host.nbytes / taken / 1e9, "GB/s")
    one = torch.zeros(1, device=b.device)
    taken = b.seconds(lambda: [one.add_(1) for _ in range(1000)], 5)
    b.row("a small operation", taken * 1e3, "us")


def headline(b):
    """bfloat16, channels_last, eager: ours and the peers."""
    images, targets = b.imagenet()
    for name, make in b.nets().items():
        net = make().to(memory_format=LAYOUT)
        rates = {"ours": len(images) / b.seconds(ours(net, images, targets, options(BFLOAT16)))}
        b.row(f"{name}, ours", rates["ours"], "images/s")
        for who, create in peers(name).items():
            net = create().to(memory_format=LAYOUT)
            step = theirs(net, images, targets, "bfloat16", fused=True)
            rates[who] = len(images) / b.seconds(step)
            b.row(f"{name}, {who}", rates[who], "images/s", ratio=rates["ours"] / rates[who])


KINDS = {
    "grouped or depthwise convolution": ("group", "depthwise", "conv2d_c"),
    "batch norm": ("batch_norm", "batchnorm", "bn_", "norm"),
    "convolution": ("conv", "gemm", "xmma", "cutlass", "implicit", "wgrad", "dgrad", "nchw"),
    "element by element": ("elementwise", "relu", "add", "vectorized", "copy"),
    "update": ("multi_tensor", "fused_sgd"),
}


def profile(b):
    """Seconds of a step by kind of kernel, the number of launches, and the idle share."""
    activity = torch.profiler.ProfilerActivity
    images, targets = b.imagenet()
    for name, make in b.nets().items():
        step = ours(make().to(memory_format=LAYOUT), images, targets, options(BFLOAT16))
        step()
        step()
        b.wait()
        kinds = [activity.CPU, activity.CUDA] if b.cuda else [activity.CPU]
        began = time.perf_counter()
        with torch.profiler.profile(activities=kinds) as found:
            for _ in range(3):
                step()
            b.wait()
        wall = time.perf_counter() - began
        sums, launches, table = dict.fromkeys([*KINDS, "rest"], 0.0), 0, []
        for event in found.key_averages():
            spent = event.self_device_time_total if b.cuda else event.self_cpu_time_total
            if not spent:
                continue
            key = event.key.lower()
            kind = next((k for k, words in KINDS.items() if any(w in key for w in words)), "rest")
            sums[kind] += spent / 3e6
            launches += event.count / 3
            table.append((spent / 3, event.count / 3, event.key))
        for kind, spent in sums.items():
            b.row(f"{name}, {kind}", 1e3 * spent, "ms")
        b.row(f"{name}, kernels", launches, "a step")
        b.row(f"{name}, idle", 100 * max(0, 1 - 3 * sum(sums.values()) / wall), "%")
        with open(OUT / "kernels.txt", "a", encoding="utf-8") as file:
            lines = (f"{us:12.1f} us {n:6.1f} x {key}\n" for us, n, key in sorted(table)[:-41:-1])
            file.write(f"{name}\n{''.join(lines)}\n")


def replicas(b):
    """-nGPU 8 on one GPU, together and one by one, and a batch of one of eight GPUs."""
    cases = [(name, make, 32, 10, 1024, 8) for name, make in CIFAR.items()]
    cases += [("ResNeXt-50 32x4d", IMAGENET["resnext50_32x4d"], 224, 1000, 256, 8)]
    for name, make, side, classes, count, most in cases[: b.size(3, 1)]:
        side, count = b.size(side, 32), b.size(count, 16)
        images, targets = b.images(count, side, classes)
        for words, number in (("", 1), ("", most), ("-accumulate true", most)):
            opt = options(f"-precision {b.size('bfloat16', 'single')} -nGPU {number} {words}")
            step = ours(make().to(memory_format=LAYOUT), images, targets, opt)
            rate = count / b.seconds(step, 10)
            b.row(f"{name}, batch {count}, -nGPU {number} {words}", rate, "images/s")
    images, targets = b.imagenet(32)
    for name, make in list(b.nets().items())[:1]:
        step = ours(make().to(memory_format=LAYOUT), images, targets, options())
        b.row(f"{name}, batch 32, single", len(images) / b.seconds(step), "images/s")


def fused(b):
    """Batch norm, sum and ReLU as one operation in Triton, alone and in whole steps."""
    if not b.cuda or b.tiny:
        return
    import norm_relu

    for channels, side in ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)):
        norm = nn.BatchNorm2d(channels).to(b.device)
        maps = torch.randn(3, 256, channels, side, side, device=b.device, dtype=torch.bfloat16)
        x, shortcut, g = (m.contiguous(memory_format=LAYOUT).requires_grad_() for m in maps)
        ways = {
            "plain": lambda x, shortcut, norm=norm: F.relu(norm(x) + shortcut, inplace=True),
            "Triton": functools.partial(norm_relu.norm_relu, norm),
        }
        for way, forward in ways.items():
            taken = b.seconds(lambda f=forward, x=x, s=shortcut, g=g: f(x, s).backward(g))
            b.row(f"{channels} x {side} x {side}, with a sum, {way}", 1e3 * taken, "ms")
    images, targets = b.imagenet()
    for name, make in b.nets().items():
        for count in (1, 8):
            net = make().to(memory_format=LAYOUT)
            norm_relu.use(net, count)
            opt = options(f"-precision bfloat16 -nGPU {count}")
            step = ours(net, images, targets, opt)
            b.row(f"{name}, -nGPU {count}", len(images) / b.seconds(step), "images/s")


def precisions(b):
    """Every precision in both layouts, ours alone."""
    for name, make in b.nets().items():
        for precision in ("half", "tf32", "single"):
            for layout in (LAYOUT, torch.contiguous_format):
                images, targets = b.imagenet(layout=layout)
                net = make().to(memory_format=layout)
                step = ours(net, images, targets, options(f"-precision {precision}"))
                where = "channels_last" if layout == LAYOUT else "NCHW"
                rate = len(images) / b.seconds(step, 10)
                b.row(f"{name}, {precision}, {where}", rate, "images/s")


def layers(b):
    """3x3 convolutions alone, forward and backward, in both layouts; groups as a dense weight.

    As CUDA graphs where they can be captured, so that launches do not count.
    """
    models.set_backend("fastest", "single")
    for channels, groups, side in SHAPES[:: b.size(1, 6)]:
        for dtype in (torch.bfloat16, torch.float32)[: b.size(2, 1)]:
            for layout in (LAYOUT, torch.contiguous_format):
                count, width = b.size(64, 1), b.size(channels, groups)
                x = torch.randn(count, width, side, side, device=b.device, dtype=dtype)
                x = x.contiguous(memory_format=layout).requires_grad_()
                for dense in (False, True)[: 1 + (groups > 1 and layout == LAYOUT)]:
                    made = nn.Conv2d(width, width, 3, 1, 1, groups=1 if dense else groups)
                    made = made.to(b.device, dtype, memory_format=layout)

                    def both(made=made, x=x):
                        made(x).sum().backward()

                    run = b.graph(both)
                    where = "channels_last" if layout == LAYOUT else "NCHW"
                    how = "as dense, " if dense else ""
                    kind = str(dtype).removeprefix("torch.")
                    what = f"{channels} wide, {groups} groups, side {side}, {how}{kind}, {where}"
                    b.row(what, 1e3 * b.seconds(run, 8), "ms", graph=run is not both)


def graphs(b):
    """The step as a CUDA graph, and whether it trains the same bits."""
    ways = {"eager": "", "-cudaGraph true": "-cudaGraph true", "compiled with CUDA graphs": ""}
    after = {}
    for way, words in ways.items() if b.cuda else ():
        for name, make in CIFAR.items():
            if b.tiny and (way.startswith("compiled") or name != "ResNet-20"):
                continue
            torch.manual_seed(1)
            net = make().to(b.device, memory_format=LAYOUT)
            forward = torch.compile(net, mode="reduce-overhead") if way.startswith("c") else net
            images, targets = b.images(4 if b.tiny else 128, 32, 10)
            step = ours(forward, images, targets, options(f"{BFLOAT16} {words}"))
            for _ in range(4):
                step()
            weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
            off = float((weights - after.setdefault(name, weights)).abs().max())
            b.row(f"{name}, {way}", 1e3 * b.seconds(step), "ms a step", weights_differ=off)


def compiled(b):
    """torch.compile: ours, and the best peer."""
    if b.tiny and b.cuda:  # the pretended GPU runs no compiled code
        return
    images, targets = b.imagenet()
    for name, make in reversed(b.nets().items()):
        words = "-precision bfloat16 -compile true"
        began = time.perf_counter()
        step = ours(make().to(memory_format=LAYOUT), images, targets, options(words))
        step()
        b.wait()
        taken = time.perf_counter() - began
        b.row(f"{name}, ours", len(images) / b.seconds(step), "images/s", compiling=taken)
        if timm:
            net = timm.create_model(name).to(memory_format=LAYOUT)
            step = theirs(net, images, targets, "bfloat16", compiled=True, fused=True)
            b.row(f"{name}, timm", len(images) / b.seconds(step), "images/s")


def inference(b):
    """Images a second in a test: ours, folded, and the peers."""
    images, _ = b.imagenet()
    for name, make in b.nets().items():
        nets = {"ours": make(), "ours, folded": folded(make().eval(), torch.bfloat16)}
        nets |= {who: create() for who, create in peers(name).items()}
        for who, net in nets.items():
            net = net.to(b.device, memory_format=LAYOUT).eval()
            with torch.inference_mode(), torch.autocast(b.device.type, torch.bfloat16):
                taken = b.seconds(functools.partial(net, images))
            b.row(f"{name}, {who}", len(images) / taken, "images/s")


def cudnn(b):
    """Inference of our bottlenecks with bias, sum and ReLU inside cuDNN's convolutions."""
    if not b.cuda or b.tiny:
        return

    def relu(conv, x):
        place = conv.stride, conv.padding, conv.dilation, conv.groups
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *place)

    def forward(block, x):
        conv, branch = block.conv3, relu(block.conv2, relu(block.conv1, x))
        place = conv.stride, conv.padding, conv.dilation, conv.groups
        shortcut = block.downsample(x)
        return torch.cudnn_convolution_add_relu(branch, conv.weight, shortcut, 1, conv.bias, *place)

    images, _ = b.imagenet()
    for name, make in b.nets().items():
        net = folded(make().to(b.device, memory_format=LAYOUT).eval(), torch.bfloat16)
        with torch.inference_mode(), torch.autocast(b.device.type, torch.bfloat16):
            plain = net(images)
            for block in net.modules():
                if isinstance(block, Bottleneck):
                    block._forward = forward.__get__(block)
            off = float((net(images) - plain).norm() / plain.norm())
            taken = b.seconds(functools.partial(net, images))
        b.row(f"{name}, by cuDNN's fused convolutions", len(images) / taken, "images/s", off=off)


def memory(b):
    """Peak memory of a step, and what comes where it does not fit."""
    if not b.cuda:
        return
    name, make = next(iter(b.nets().items()))
    for words, number in (("", 1), ("", 8), ("-accumulate true", 8), ("-optnet true", 1)):
        torch.cuda.empty_cache()
        net, (images, targets) = make(), b.imagenet(64)
        models.blocks.set_recompute(net, "optnet" in words)
        opt = options(f"-nGPU {number} {words}")
        step = ours(net.to(memory_format=LAYOUT), images, targets, opt)
        step()  # in which cuDNN tries its kernels, some with large workspaces
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / 2**20
        b.row(f"{name}, batch {len(images)}, -nGPU {number} {words}", peak, "MiB")
    del net, step, images
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(b.device).total_memory
    torch.cuda.set_per_process_memory_fraction(7.5 * 2**30 / total)
    try:
        images, targets = b.imagenet(256)
        ours(make().to(memory_format=LAYOUT), images, targets, options("-nGPU 8"))()
        b.row(f"{name}, batch {len(images)}, fits 7.5 GiB", 1, "")
    except RuntimeError as error:
        b.row(f"{name}, batch 256, in 7.5 GiB", 0, "", error=str(error)[:300])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def runs(b):
    """main.py itself, its second epoch: CIFAR of random bytes, and photos through the loader."""
    temporary = tempfile.TemporaryDirectory()  # removed with the variable
    folder = Path(temporary.name)
    cifar = folder / "cifar-10-batches-bin"
    cifar.mkdir()
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    for name in names:
        records = torch.randint(0, 256, (b.size(10_000, 20), 3073), dtype=torch.uint8)
        records[:, 0] %= 10
        (cifar / name).write_bytes(records.numpy().tobytes())
    precision = "half" if b.cuda else "single"
    common = f"-nEpochs 2 -batchSize 128 -precision {precision} -progress lines"
    common += f" -data {cifar} -gen {folder}/gen"
    small = "-netType resnet -depth 8" if b.tiny else "-netType resnet -depth 20"
    commands = {"cifar ResNet": f"-dataset cifar10 {small} {common}"}
    if not b.tiny:
        wide = "-depth 29 -cardinality 8 -baseWidth 64"
        commands["cifar ResNeXt"] = f"-dataset cifar10 {wide} {common}"
    photos = os.environ.get("PHOTOS")  # with train/ and val/
    if photos:
        net = "-depth 50 -cardinality 32 -baseWidth 4 -batchSize 256 -precision bfloat16"
        net += f" -data {photos} -gen {folder}/photos -nEpochs 2"
        for threads in (14, 2):
            commands[f"photos, {threads} workers"] = f"{net} -nThreads {threads}"
    for what, words in commands.items():
        save = folder / what.replace(" ", "_").replace(",", "")
        command = [sys.executable, str(ROOT / "main.py"), *words.split(), "-save", str(save)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        lines = (save / "log.jsonl").read_text().splitlines() if done.returncode == 0 else []
        if not lines:
            b.row(what, 0, "images/s", error=done.stderr[-300:])
            continue
        entry = json.loads(lines[-1])
        b.row(what, entry["images_per_second"], "images/s", data_wait=entry["data_wait"])


def detector(b):
    """A detector's step against torchvision's, by benchmarks/detect.py."""
    if b.tiny and b.cuda:  # a process of its own would not find the pretended GPU
        return
    command = [sys.executable, str(ROOT / "benchmarks" / "detect.py"), "--device", str(b.device)]
    command += b.size([], "--net resnet18 --side 64 --repetitions 1".split())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout[-2000:], done.stderr[-1000:])
    b.row("benchmarks/detect.py went well", done.returncode == 0, "")


# in this order, with the seconds that each is expected to take: 470 in all
STAGES = {
    limits: 15, headline: 55, profile: 25, replicas: 35, fused: 30, precisions: 45, compiled: 90,
    graphs: 30, layers: 35, inference: 20, cudnn: 10, memory: 20, runs: 40, detector: 20,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, each once: a trial")
    parser.add_argument("--until", type=float, default=480, help="seconds for all stages")
    parser.add_argument("--stages", nargs="+", default=[stage.__name__ for stage in STAGES])
    args = parser.parse_args()
    bench = Bench(args.device, args.tiny, args.until)
    last = bench.end
    print(timing.machine(), flush=True)
    stages = [stage for stage in STAGES if stage.__name__ in args.stages]
    for place, stage in enumerate(stages):
        began = time.monotonic()
        if began >= last:
            print(f"no time is left for {stage.__name__}", flush=True)
            continue
        share = STAGES[stage] / sum(STAGES[other] for other in stages[place:])
        most = share * (last - began)
        bench.stage, bench.end = stage.__name__, began + most
        quiet = contextlib.redirect_stderr(io.StringIO() if args.tiny else sys.stderr)
        if hasattr(signal, "alarm"):  # where a stage does not look at its clock
            signal.signal(signal.SIGALRM, _raise_late)
            signal.alarm(int(most) + 10)
        try:
            with quiet:
                stage(bench)
        except Late:
            print(f"{bench.stage}: out of time", flush=True)
        except Exception:
            traceback.print_exc(file=sys.stdout)
        finally:
            if hasattr(signal, "alarm"):
                signal.alarm(0)
        print(f"{bench.stage}: {time.monotonic() - began:.0f} s", flush=True)
        if bench.cuda:
            torch.cuda.empty_cache()


def _raise_late(*_):
    raise Late


if __name__ == "__main__":
    main()
